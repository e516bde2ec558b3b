"""A batch of a plan: changes for one transaction, with their elements."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from nftproxy.model import Scheduler
from nftproxy.routes import Affinity, Compiled, Element, Frontend, Key, Route, Value
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.delta import Delta, Place
from nftproxy.table.difference import settled
from nftproxy.table.elements import (
    between,
    elements,
    heads,
    members,
    members_between,
    memory_members,
    paired,
)
from nftproxy.table.holdings import Holdings
from nftproxy.table.memories import Memory, Regrouped, begun, reduced, regrouped
from nftproxy.table.packing import SetShape, pack_value, shape, slot_keys
from nftproxy.table.remembered import Change, Remembered, claims

Packed = Mapping[str, Mapping[bytes, bytes]]  # elements as in the kernel, by set or map


@dataclass(slots=True)
class Batch:
    """Changes for one transaction, or, if the kernel refuses them, for two halves."""

    changes: list[Change]
    delta: Delta  # all elements; the caller may use them up
    affinities: list[Affinity]  # the ClientIP service ports whose chains and sets are needed first
    # Memories that get into use; memories that lose endpoints, with those that stay; and shared
    # memories that lose endpoints or exchange them
    begun: list[str]
    reduced: list[Memory]
    regrouped: list[Regrouped]
    _comparison: "Comparison"
    _parts: list[Delta]  # the elements of each change except the shared ones
    holdings: Holdings | None = None  # of the last after reading back: what it leaves

    def halves(self) -> "Iterator[Batch]":
        """Yield two batches with half of the changes each; nothing for a single change.

        The second is made on demand: its shared elements depend on whether the first was accepted.
        """
        if middle := len(self.changes) // 2:
            yield self._comparison.batch(self.changes[:middle], self._parts[:middle])
            yield self._comparison.batch(self.changes[middle:], self._parts[middle:])

    def leave(self) -> None:
        """Leave what services have in the table as it is: the kernel refuses the changes."""
        self._comparison.refused += self.changes


@dataclass(slots=True)
class Comparison:
    """The basis of a comparison.

    The memory, and the elements read back that no service has claimed yet.
    """

    _remembered: Remembered
    # its own copy, as claimed elements are removed from it
    _unclaimed: dict[str, dict[bytes, bytes]]
    _read: Packed  # all that was read back
    _reads: bool
    # Endpoint lists of the next delta, by map and frontend, that were read back as they should be
    _whole: set[tuple[str, Frontend]] = field(default_factory=set)
    refused: list[Change] = field(default_factory=list)

    def settled(self, change: Change) -> Change:
        """Return a change with the endpoints of its routes in the slots of the kernel."""
        if not self._reads:
            return change
        routes = {
            frontend: (old, new and self._settled(new))
            for frontend, (old, new) in change.routes.items()
        }
        return Change(change.services, routes, change.claimants)

    def delta(self, change: Change) -> Delta:
        """Return the elements of a change except the shared ones."""
        found = Delta()
        family, reads = self._remembered.family, self._reads
        before: list[Affinity] = []
        after: list[Affinity] = []
        for name, new in change.services.items():
            old = self._remembered.services.get(name)
            before += old.affinities if old else ()
            after += new.affinities if new else ()
            self._of_memories(found, old, new)
        for was, becomes in change.routes.values():
            if was is None and not reads and becomes is not None:
                for element in elements(becomes, family):
                    found.add(element)
            elif was is not None and becomes is not None and not reads:
                if was != becomes:
                    gone, come = between(was, becomes, family)
                    self._compare(found, come, gone)
            elif was != becomes or reads:
                self._compare(
                    found,
                    self._unsettled(becomes) if becomes else (),
                    elements(was, family) if was else (),
                )
        if before or after:
            self._members(found, before, after)
        return found

    def _members(self, found: Delta, before: list[Affinity], after: list[Affinity]) -> None:
        """Add the step from the members of some service ports to those of others."""
        if self._reads:
            self._compare(
                found,
                [e for a in after for e in members(a)],
                [e for a in before for e in members(a)],
            )
            return
        for pair in paired(before, after):
            gone, come = members_between(*pair)
            self._compare(found, come, gone)

    def _of_memories(self, found: Delta, old: Compiled | None, new: Compiled | None) -> None:
        """Add the step between the members of memories that the ports of a Service share."""
        before, after = old and old.shared, new and new.shared
        if (before or after) and (self._reads or before != after):
            self._compare(
                found,
                memory_members(after) if after else (),
                memory_members(before) if before else (),
            )

    def shared(self, changes: Iterable[Change]) -> Delta:
        """Return the elements that several services may have.

        They are added with the first claim and deleted late with the last.
        """
        found = Delta()
        counts: dict[Element, int] = {}
        for change in changes:
            for name, new in change.services.items():
                for element, count in claims(
                    self._remembered.services.get(name), new, self._remembered.family
                ):
                    counts[element] = counts.get(element, 0) + count
        for element, count in counts.items():
            had = self._remembered.shared.get(element.where, {}).get(element.key, 0)
            present = self._reads and self._claim(element.where, element.key) is not None
            if had == 0 and count > 0 and not present:
                found.add(element)
            elif had > 0 and had + count == 0:
                # The table may stop learning at once, which often saves the second transaction.
                drop = (
                    found.remove
                    if schema.declaration(element.where) is schema.MEMBERS
                    else found.remove_late
                )
                drop(element.where, element.key)
        return found

    def batch(self, changes: list[Change], parts: list[Delta]) -> Batch:
        """Join changes, each with its own elements."""
        affinities = [
            a
            for change in changes
            for new in change.services.values()
            if new
            for a in new.affinities
        ]
        whole = self.shared(changes)
        for part in parts:
            whole.merge(part)
        known = [] if self._reads else changes  # after reading back, all memories are looked at
        return Batch(
            changes,
            whole,
            affinities,
            list(begun(known, self._remembered)),
            list(reduced(known, self._remembered)),
            list(regrouped(known, self._remembered)),
            self,
            parts,
        )

    def rest(self) -> Batch:
        """Return the removal of everything that no service has claimed.

        Services whose change was refused keep all that they had.
        """
        found = Delta()
        holdings = Holdings(
            [name for change in self.refused for name in change.services],
            [frontend for change in self.refused for frontend in change.routes],
            self._remembered.owners,
            self._read,
        )
        for where, keys in self._unclaimed.items():
            for key in map(_shape(where).key.unpack, keys):
                if (where, key) not in holdings:
                    found.drop(where, key)
        rest = self.batch([], [found])
        rest.holdings = holdings
        return rest

    def _compare(self, found: Delta, new: Iterable[Element], old: Iterable[Element]) -> None:
        """Add the step from `old` to `new` to a delta.

        An element that was read back and not claimed yet counts as old, too.
        """
        before: dict[Place, Value] = {(e.where, e.key): e.value for e in old}
        if self._reads:
            new = [each for each in new if not self._stays(each, before)]
        found.compare(new, before)

    def _stays(self, element: Element, before: dict[Place, Value]) -> bool:
        """Whether an element was read back as it should be; another value goes into `before`."""
        where, key, value = element
        if (where, key) in before or (packed := self._claim(where, key)) is None:
            return False
        if packed == pack_value(value, _shape(where).value):
            return True
        before[where, key] = None
        return False

    def _claim(self, where: str, key: Key) -> bytes | None:
        """Remove an element from those read back; None if it is not among them."""
        return self._unclaimed.get(where, {}).pop(_shape(where).key.pack(key), None)

    def _settled(self, route: Route) -> Route:
        """Return a route with its endpoints in the slots that were read back."""
        if route.scheduler is not Scheduler.RANDOM:
            return route
        cluster, local = (
            self._slots(where, route.frontend, wanted) for where, wanted in self._lists(route)
        )
        if cluster is route.cluster and local is route.local:
            return route
        return settled(route, msgspec.structs.replace(route, cluster=cluster, local=local))

    def _lists(self, route: Route) -> tuple[tuple[str, Sequence[Endpoint]], ...]:
        """Return the endpoint lists of a route, each with its map."""
        frontend = route.frontend
        maps = schema.maps(self._remembered.family, frontend.proto, frontend.is_node_port)
        return (maps.endpoints, route.cluster), (maps.local_endpoints, route.local)

    def _slots(
        self, where: str, frontend: Frontend, wanted: Sequence[Endpoint]
    ) -> Sequence[Endpoint]:
        """Return the slots of a list that were read back; as wanted, they are claimed at once."""
        if not wanted:
            return wanted
        known, (key, value) = self._unclaimed.get(where, {}), _shape(where)
        assert value is not None  # noqa: S101 - lists of endpoints have values
        keys = list(islice(slot_keys(key, frontend.slot(0)), len(wanted)))
        if [known.get(packed) for packed in keys] == [value.pack(endpoint) for endpoint in wanted]:
            for packed in keys:
                del known[packed]
            self._whole.add((where, frontend))
            return wanted
        slots: list[Endpoint] = []
        for packed in slot_keys(key, frontend.slot(0)):
            if (endpoint := known.get(packed)) is None:
                break
            address, port = value.unpack(endpoint)
            slots.append(Endpoint(str(address), int(port)))
        return tuple(slots)

    def _unsettled(self, route: Route) -> Iterator[Element]:
        """Yield the elements of a route without the lists that were just claimed as a whole."""
        yield from heads(route, self._remembered.family)
        for where, endpoints in self._lists(route):
            if (where, route.frontend) in self._whole:
                self._whole.remove((where, route.frontend))
                continue
            for slot, endpoint in enumerate(endpoints):
                yield Element(where, route.frontend.slot(slot), endpoint)


def _shape(where: str) -> SetShape:
    found = shape(where)
    assert found is not None, where  # noqa: S101 - the schema has all that routes name
    return found
