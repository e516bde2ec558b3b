"""What has to change in the table: from remembered routes and wanted services to element additions and deletions.

Pure. Three things hold for every difference:

- Slots are stable: an endpoint that stays keeps its number, the last one moves into the place of one that goes.
- A frontend that two services claim belongs to the older one; the younger gets it when the older lets go (contract 2.2.3).
- What nothing points to any more goes *late*, in a second transaction: a packet makes two look-ups and may
  fall between two states.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from nftproxy.address import Family
from nftproxy.model import ObjectName
from nftproxy.routes import Affinity, Compiled, Element, Frontend, Key, Route, Value, Verdict, elements
from nftproxy.selection import Endpoint
from nftproxy.table.packing import Shape, pack_value, shape

# Sets and maps (without the family) that a verdict points to: their elements go after the verdict.
_LATE = {"endpoints", "local_endpoints", "nodeport_endpoints", "nodeport_local_endpoints", "allowed"}

Place = tuple[str, Key]
Actual = dict[str, dict[bytes, bytes]]  # what the kernel holds: packed elements, by set or map


class Delta:
    """Elements to add and to delete; a rewritten key stands in both `removed` and `added`."""

    __slots__ = ("added", "late", "removed")

    def __init__(self, late: dict[str, dict[Key, None]] | None = None) -> None:
        self.removed: dict[str, dict[Key, None]] = {}
        self.added: dict[str, dict[Key, Value]] = {}
        self.late: dict[str, dict[Key, None]] = late or {}

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.late)

    def __len__(self) -> int:
        return sum(len(keys) for part in (self.removed, self.added, self.late) for keys in part.values())

    def add(self, element: Element) -> None:
        """Have an element added."""
        self.added.setdefault(element.where, {})[element.key] = element.value

    def remove(self, where: str, key: Key) -> None:
        """Have an element deleted, before the additions of the same transaction."""
        self.removed.setdefault(where, {})[key] = None

    def remove_late(self, where: str, key: Key) -> None:
        """Have an element deleted once nothing points to it."""
        self.late.setdefault(where, {})[key] = None

    def merge(self, other: "Delta") -> None:
        """Take in all of another delta; its dictionaries may be used up."""
        for mine, theirs in ((self.removed, other.removed), (self.late, other.late)):
            for where, keys in theirs.items():
                mine.setdefault(where, {}).update(keys)
        for where, items in other.added.items():
            self.added.setdefault(where, {}).update(items)

    def take(self, other: "Delta", where: str) -> None:
        """Move what another delta adds to one set into this one."""
        if where in other.added:
            self.added.setdefault(where, {}).update(other.added.pop(where))

    def cancel(self, added: Mapping[str, Mapping[Key, Value]]) -> None:
        """Drop late deletions of what has been added again meanwhile."""
        for where in self.late.keys() & added.keys():
            for key in added[where]:
                self.late[where].pop(key, None)

    def verdict_maps(self) -> list[str]:
        """Return the maps that verdicts are added to; what is in one map is all of one kind."""
        return [where for where, items in self.added.items() if items and type(next(iter(items.values()))) is Verdict]

    def targets(self) -> set[str]:
        """Return the chains that added verdicts go to."""
        added = (value for where in self.verdict_maps() for value in self.added[where].values())
        return {value.target for value in added if isinstance(value, Verdict) and value.target}

    def compare(self, new: Iterable[Element], old: dict[Place, Value]) -> None:
        """Take in what turns `old` into `new`."""
        for element in new:
            where, key, value = element
            if (where, key) not in old:
                self.add(element)
                continue
            if old.pop((where, key)) != value:
                self.remove(where, key)
                self.add(element)
        for where, key in old:
            self.drop(where, key)

    def drop(self, where: str, key: Key) -> None:
        """Have an element deleted that nothing replaces: verdicts at once, what they point to late."""
        if is_late(where):
            self.remove_late(where, key)
        else:
            self.remove(where, key)


def is_late(where: str) -> bool:
    """Whether elements of this set or map are pointed to by verdicts."""
    base = where.partition("-")[0].rstrip("46")
    return base in _LATE


@dataclass(slots=True)
class Change:
    """What one service, or several that exchange a frontend, change; applied whole or not at all."""

    services: dict[ObjectName, Compiled | None] = field(default_factory=dict)
    routes: dict[Frontend, tuple[Route | None, Route | None]] = field(default_factory=dict)  # before, after
    claimants: dict[Frontend, list[ObjectName]] = field(default_factory=dict)  # the owner first


class Remembered:
    """What the table is known to hold of one family, as routes; changed only after the kernel accepted a change."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.services: dict[ObjectName, Compiled] = {}
        self.routes: dict[Frontend, Route] = {}
        self.owners: dict[Frontend, ObjectName] = {}
        self.rivals: dict[Frontend, list[ObjectName]] = {}  # all who claim it where there are two or more, the owner first
        self.shared: dict[str, dict[Key, int]] = {}  # by set: how many services have the element

    def accept(self, change: Change) -> None:
        """Take over a change that the kernel accepted."""
        for name, new in change.services.items():
            old = self.services.pop(name, None)
            if new is not None:
                self.services[name] = new
            for element, count in _claims(old, new, self.family):
                counts = self.shared.setdefault(element.where, {})
                counts[element.key] = counts.get(element.key, 0) + count
                if not counts[element.key]:
                    del counts[element.key]
        for frontend, (_, after) in change.routes.items():
            claimants = change.claimants[frontend]
            if after is None:
                self.routes.pop(frontend, None)
                self.owners.pop(frontend, None)
            else:
                self.routes[frontend] = after
                self.owners[frontend] = claimants[0]
            if len(claimants) > 1:
                self.rivals[frontend] = claimants
            elif self.rivals:
                self.rivals.pop(frontend, None)


def age(name: ObjectName, created: str) -> tuple[bool, str, ObjectName]:
    """Order services: the older first; without a creation time last; then by name."""
    return not created, created, name


def difference(remembered: Remembered, wanted: Mapping[ObjectName, Compiled | None]) -> list[Change]:
    """Return the changes that make `wanted` true (None: the service is gone); services not named stay as they are."""
    changed = {name: new for name, new in wanted.items() if remembered.services.get(name) != new}
    touched: dict[Frontend, dict[ObjectName, Route | None]] = {}  # who has to do with it, and what each newly wants
    for name, new in changed.items():
        old = remembered.services.get(name)
        for route in old.routes if old else ():
            touched.setdefault(route.frontend, {})[name] = None
        for route in new.routes if new else ():
            touched.setdefault(route.frontend, {})[name] = route
    groups = _Groups(changed)
    for frontend, wishes in touched.items():
        change = groups.of(list(wishes))
        claimants = [name for name, route in wishes.items() if route is not None]
        owner = remembered.owners.get(frontend)
        standing = remembered.rivals.get(frontend) or ([owner] if owner else [])
        claimants += [name for name in standing if name not in changed]
        if len(claimants) > 1:
            claimants.sort(key=lambda name: age(name, _claimed(name, changed, remembered).created))
        before, after = remembered.routes.get(frontend), None
        if claimants:
            after = _settled(wishes.get(claimants[0]) or _wish(remembered.services[claimants[0]], frontend), before)
        change.routes[frontend] = (before, after)
        change.claimants[frontend] = claimants
    return groups.changes()


class _Groups:
    """Services that must change together, joined as frontends show it."""

    def __init__(self, changed: Mapping[ObjectName, Compiled | None]) -> None:
        self._of = {name: Change(services={name: new}) for name, new in changed.items()}

    def of(self, names: list[ObjectName]) -> Change:
        """Return the one change that all of `names` are part of from now on."""
        first = self._of[names[0]]
        for name in names[1:]:
            other = self._of[name]
            if other is not first:
                first.services |= other.services
                first.routes |= other.routes
                first.claimants |= other.claimants
                for member in other.services:
                    self._of[member] = first
        return first

    def changes(self) -> list[Change]:
        """Return every change once."""
        return list({id(change): change for change in self._of.values()}.values())


def delta(change: Change, remembered: Remembered, actual: Actual | None = None) -> Delta:
    """Return the elements of a change but for the shared ones.

    With `actual`, the elements read back from the kernel, these count as the state before, and what is found is taken out of it;
    an empty one, as at a first start, is nothing to compare with.
    """
    found = Delta()
    family = remembered.family
    before: list[Affinity] = []
    after: list[Affinity] = []
    for name, new in change.services.items():
        old = remembered.services.get(name)
        before += old.affinities if old else ()
        after += new.affinities if new else ()
    for frontend, (old_route, wanted) in change.routes.items():
        new_route = wanted
        if actual and wanted is not None:
            new_route = _settled_as_read(wanted, family, actual)
            change.routes[frontend] = (old_route, new_route)
        if old_route is None and not actual and new_route is not None:
            for element in elements(new_route, family):
                found.add(element)
        elif old_route != new_route or actual:
            _compare(
                found, elements(new_route, family) if new_route else (), elements(old_route, family) if old_route else (), actual
            )
    if before != after or actual:
        _compare(found, [e for a in after for e in a.elements()], [e for a in before for e in a.elements()], actual)
    return found


def shared_delta(changes: Iterable[Change], remembered: Remembered, actual: Actual | None = None) -> Delta:
    """Return the elements that several services may have: added with the first claim, deleted late with the last."""
    found = Delta()
    claims: dict[Element, int] = {}
    for change in changes:
        for name, new in change.services.items():
            for element, count in _claims(remembered.services.get(name), new, remembered.family):
                claims[element] = claims.get(element, 0) + count
    for element, count in claims.items():
        had = remembered.shared.get(element.where, {}).get(element.key, 0)
        present = _take(actual, element.where, element.key) is not None if actual else False
        if had == 0 and count > 0 and not present:
            found.add(element)
        elif had > 0 and had + count == 0:
            # What nobody may learn about any more may go at once, which often saves the second transaction.
            drop = found.remove if element.where.startswith("members") else found.remove_late
            drop(element.where, element.key)
    return found


def _compare(found: Delta, new: Iterable[Element], old: Iterable[Element], actual: Actual | None) -> None:
    """Take in what turns `old` into `new`; what was read back and nobody has claimed yet counts as old, too."""
    before = {(e.where, e.key): e.value for e in old}
    if actual:
        for where, key, value in (new := list(new)):
            if (where, key) not in before and (packed := _take(actual, where, key)) is not None:
                before[where, key] = value if packed == pack_value(value, _shape(where).value) else None
    found.compare(new, before)


def _take(actual: Actual, where: str, key: Key) -> bytes | None:
    """Take an element out of what was read; None when it is not there."""
    return actual.get(where, {}).pop(_shape(where).key.pack(key), None)


def unpacked(where: str, keys: Iterable[bytes]) -> Iterator[Key]:
    """Yield keys as they are written."""
    return map(_shape(where).key.unpack, keys)


def _shape(where: str) -> Shape:
    found = shape(where)
    assert found is not None, where  # noqa: S101 - the compiler names no others
    return found


def _claims(old: Compiled | None, new: Compiled | None, family: Family) -> Iterator[tuple[Element, int]]:
    """Yield the shared elements that a service claims newly (1) or no longer (-1)."""
    after = dict.fromkeys(new.shared(family), 1) if new else {}
    if old is None:
        yield from after.items()
        return
    before = set(old.shared(family))
    yield from ((element, 1) for element in after if element not in before)
    yield from ((element, -1) for element in before if element not in after)


def _wish(compiled: Compiled, frontend: Frontend) -> Route:
    return next(route for route in compiled.routes if route.frontend == frontend)


def _claimed(name: ObjectName, changed: Mapping[ObjectName, Compiled | None], remembered: Remembered) -> Compiled:
    compiled = changed[name] if name in changed else remembered.services[name]
    assert compiled is not None  # noqa: S101 - only services that exist claim a frontend
    return compiled


def _settled(route: Route, before: Route | None) -> Route:
    """Return `route` with its endpoints in the slots they had."""
    if before is None:
        return route
    cluster, local = settle(before.cluster, route.cluster), settle(before.local, route.local)
    if cluster == route.cluster and local == route.local:
        return route
    return msgspec.structs.replace(route, cluster=cluster, local=local)


def _settled_as_read(route: Route, family: Family, actual: Actual) -> Route:
    """Return `route` with its endpoints in the slots that the kernel holds."""
    maps = "" if route.frontend.address else "nodeport_"
    kind = f"{family.digit}-{route.frontend.proto}"
    read = []
    for where, wanted in ((f"{maps}endpoints{kind}", route.cluster), (f"{maps}local_endpoints{kind}", route.local)):
        known, pack, fields = actual.get(where, {}), _shape(where).key.pack, _shape(where).value
        assert fields is not None  # noqa: S101 - lists of endpoints have values
        if all(known.get(pack(route.frontend.slot(n))) == fields.pack(endpoint) for n, endpoint in enumerate(wanted)):
            read.append(wanted)
            continue
        slots: list[Endpoint] = []
        while packed := known.get(pack(route.frontend.slot(len(slots)))):
            address, port = fields.unpack(packed)
            slots.append(Endpoint(str(address), int(port)))
        read.append(tuple(slots))
    return _settled(route, msgspec.structs.replace(route, cluster=read[0], local=read[1]))


def settle(before: tuple[Endpoint, ...], wanted: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Return the endpoints of `wanted` in an order that moves as few as possible away from their slots in `before`."""
    if not before or before == wanted:
        return wanted
    remaining = dict.fromkeys(wanted)
    slots: list[Endpoint | None] = [None] * len(wanted)
    for slot, endpoint in enumerate(before[: len(wanted)]):
        if endpoint in remaining:
            slots[slot] = endpoint
            del remaining[endpoint]
    movers = iter(remaining)
    return tuple(endpoint if endpoint is not None else next(movers) for endpoint in slots)
