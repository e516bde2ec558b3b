"""Makes clients forget removed endpoints.

The kernel remembers them for ClientIP affinity and knows nothing of endpoints. An endpoint leaves
the members, so that no client learns it any more, in the same transaction as the slots; right after
it, clients forget the endpoint. A packet that found it among the members just before may still be
remembered after that. So quiet times look again, which wait for such packets.

A memory outlives its Service by seconds. One that comes back starts with nobody remembered, also if
the proxy was started again meanwhile: only an endpoint that was a member all the time may be known.

Ports that share a memory by groups of endpoints do it in another order, because clients may have to
move between groups: an endpoint leaves the members, packets are waited for, clients move or forget,
and then the change itself is made.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from nftproxy.address import Family
from nftproxy.kernel.transactions import Kernel
from nftproxy.routes import Key, Value
from nftproxy.sharing import Shared
from nftproxy.table import schema
from nftproxy.table.batch import Packed
from nftproxy.table.delta import Delta
from nftproxy.table.memories import Memory
from nftproxy.table.packing import shape
from nftproxy.table.remembered import Change, Remembered

Usable = Mapping[str, Collection[str]]
"""By memory: the addresses of the endpoints that clients may be remembered with."""

FORGET = 2000  # remembered clients deleted in one transaction
AT_ONCE = 100  # memories read together
ONE_PIECE = 300  # clients that the kernel lists in one message, so without missing any
READINGS = 3
"""How often a memory is read at most.

Clients are missed when others expire while a longer memory is listed: of 60 000 for three hours,
four in every tenth reading. Nobody learns the endpoint any more, so few are left after the first
reading, and hardly one of these is missed again by the second.
"""


class Forgetting:
    """Forgets for the syncs of one family."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def moves(self, remembered: Remembered, change: Change) -> bool:
        """Whether a memory that ports share may hold an address that does not belong there."""
        return any(self._moves(old, new) for old, new in _shared(change, remembered))

    def settle(
        self, change: Change, remembered: Remembered, whole: Delta, commit: Callable[[Delta], None]
    ) -> None:
        """Remove endpoints from the members, and so from `whole`, and make clients forget or move.

        `commit` waits for packets that found their endpoint among the members and are about to be
        remembered.
        """
        departed = Delta()
        departed.take_removed(whole, schema.REMEMBERED_IN)
        if departed:
            commit(departed)
        self._settle(
            (new, old.memories() if old else {}) for old, new in _shared(change, remembered)
        )

    def forget(self, memories: Iterable[Memory]) -> None:
        """Delete what clients remember but those addresses."""
        there = ((where, usable) for where, usable in memories if where in self._kernel.sets)
        while some := dict(itertools.islice(there, AT_ONCE)):
            for _ in range(READINGS):
                if not (some := self._forget_listed(some)):
                    break

    def forget_strangers(self, remembered: Remembered, sets: set[str], elements: Packed) -> None:
        """Make clients forget every address that is no endpoint, after reading back.

        Only memories among `sets`, which existed before, hold any; each costs the kernel a walk
        along all sets. `elements` are those that were read.
        """
        before = _read(elements)
        self.forget(
            memory
            for affinity in remembered.affinities
            for memory in _staying(before, affinity.memories(affinity.ports))
            if memory[0] in sets
        )
        shared = (each.shared for each in remembered.services.values())
        self._settle((each, before) for each in shared if each)

    def _forget_listed(self, memories: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Delete what one reading finds; return those memories that may hold more."""
        doubtful = {}
        for where, known in self._kernel.elements_of(list(memories)).items():
            stale = {key: value for key, value in known.items() if value not in memories[where]}
            for part in _parts(stale):
                self._kernel.forget(where, part)
            if stale and len(known) > ONE_PIECE:
                doubtful[where] = memories[where]
        return doubtful

    def _moves(self, old: Shared | None, new: Shared) -> bool:
        """Whether a memory that ports share may hold an address that does not belong there."""
        if old is new:
            return False
        before, after = old.places() if old else {}, new.places()
        if any(after.get(place) != memory for place, memory in before.items()):
            return True
        there = set(before.values())
        return any(memory not in there and memory in self._kernel.sets for memory in after.values())

    def _settle(self, memories: Iterable[tuple[Shared, Usable]]) -> None:
        """Move what clients remember to where the group of the endpoint is looked up.

        They forget what is no endpoint or, by the state before that stands beside each memory, was
        none. A client that is moved begins its time again.
        """
        there: dict[tuple[schema.Declaration, Family, str], list[str]] | None = None
        for shared, before in memories:
            there = _memories(self._kernel.sets) if there is None else there
            places = shared.places()
            for _, declaration, _ in shared.lists():
                names = there.get((declaration, shared.family, shared.service), [])
                known = {address for name in names for address in before.get(name, ())}
                belong = {
                    address: where
                    for (which, address), where in places.items()
                    if which is declaration and address in known
                }
                for _ in range(READINGS):
                    if not self._move_listed(names, belong, shared.timeout):
                        break

    def _move_listed(self, names: Sequence[str], places: Mapping[str, str], timeout: int) -> bool:
        """Move what one reading finds; return whether the memories may hold more."""
        known = self._kernel.elements_of(names)
        long = any(len(clients) > ONE_PIECE for clients in known.values())
        moved = False
        for where in names:
            moves = {
                (client, address): places.get(str(address), "")
                for client, address in known[where].items()
            }
            moved |= self._move(where, moves, known, timeout)
        return moved and long

    def _move(
        self,
        where: str,
        moves: Mapping[tuple[Key, Value], str],
        known: Mapping[str, dict[Key, Value]],
        timeout: int,
    ) -> bool:
        """Move clients from a memory to others, and return whether there was any.

        One that is known there stays as it is. `moves` says where each remembered client and its
        address belong, if anywhere.
        """
        stale = {entry: place for entry, place in moves.items() if place != where}
        for place in {place for place in stale.values() if place in known}:
            clients = dict(entry for entry, to in stale.items() if to == place)
            new = {client: clients[client] for client in clients.keys() - known[place].keys()}
            for part in _parts(new):
                self._kernel.remember(place, part, timeout)
            known[place].update(new)
        for part in _parts(dict(list(stale))):
            self._kernel.forget(where, part)
        return bool(stale)


def _staying(before: Usable, after: Iterable[Memory]) -> Iterator[Memory]:
    """Yield memories, each with the addresses that were usable before and are now."""
    for where, usable in after:
        yield where, usable.intersection(before.get(where, ()))


def _read(elements: Packed) -> Usable:
    """Return what the sets of members say that were read back."""
    found: dict[str, set[str]] = {}
    for where, packed in elements.items():
        place, form = schema.parse(where), shape(where)
        if place and form and (memory := schema.REMEMBERED_IN.get(place.declaration)):
            for address, *port in map(form.key.unpack, packed):
                name = memory.name(place.family, place.detail, *port)
                found.setdefault(name, set()).add(str(address))
    return found


def _memories(sets: Iterable[str]) -> dict[tuple[schema.Declaration, Family, str], list[str]]:
    """Return the memories of each list of each Service whose ports share one."""
    found: dict[tuple[schema.Declaration, Family, str], list[str]] = {}
    for name in sorted(sets):
        place = schema.parse(name)
        if place and place.declaration.learnt and place.declaration.per is schema.Per.GROUP:
            key = place.declaration, place.family, place.service
            found.setdefault(key, []).append(name)
    return found


def _parts(entries: dict[Key, Value]) -> Iterator[dict[Key, Value]]:
    items = iter(entries.items())
    while part := dict(itertools.islice(items, FORGET)):
        yield part


def _shared(change: Change, remembered: Remembered) -> Iterator[tuple[Shared | None, Shared]]:
    """Yield the memories that ports share and that a change leaves, each with its former state."""
    for name, new in change.services.items():
        if new and new.shared:
            old = remembered.services.get(name)
            yield old.shared if old else None, new.shared
