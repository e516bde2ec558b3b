"""Makes clients forget removed endpoints.

The kernel remembers them for ClientIP affinity and knows nothing of endpoints. A sync does this:

1. Memories that get into use are emptied. One outlives its Service by seconds, and a Service that
   comes back starts with nobody remembered. Where ports share memories by groups of endpoints,
   clients whose endpoint gets into a new group are copied there.
2. The transaction of the change follows. In it, removed endpoints leave the members, so that no
   client learns them any more.
3. Clients forget them, or move to the memory of the endpoint's group.
4. A packet that found its endpoint among the members just before may be remembered after that. So
   quiet times wait for such packets and look again.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

from nftproxy.kernel.transactions import Kernel
from nftproxy.routes import Key, Value
from nftproxy.table import schema
from nftproxy.table.memories import Memory, Regrouped

FORGET = 2000  # remembered clients deleted in one transaction
AT_ONCE = 100  # memories read together
ONE_PIECE = 300  # clients that the kernel lists in one message, so without missing any
READINGS = 3
"""How often a memory is read at most.

Clients are missed when others expire while a longer memory is listed: of 60 000 for three hours,
four in every tenth reading. Hardly anybody learns the endpoint any more, so few are left after the
first reading, and hardly one of these is missed again by the second.
"""


class Forgetting:
    """Forgets for the syncs of one family."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def empty(self, names: Iterable[str]) -> None:
        """Make clients forget everything in some memories."""
        self.forget((where, frozenset()) for where in names)

    def forget(self, memories: Iterable[Memory]) -> None:
        """Make clients forget every address but those beside each memory."""
        there = ((where, usable) for where, usable in memories if where in self._kernel.sets)
        while some := dict(itertools.islice(there, AT_ONCE)):
            for _ in range(READINGS):
                if not (some := self._forget_listed(some)):
                    break

    def copy(self, regrouped: Regrouped) -> None:
        """Copy clients whose endpoint gets into a new group to its memory, which nobody reads yet.

        A client that is copied begins its time again, as one that moves.
        """
        for names, homes in self._lists(regrouped):
            before = regrouped.before
            new = {address: home for address, home in homes.items() if home not in before}
            known: dict[str, dict[Key, Value]] = {home: {} for home in new.values()}
            old = [where for where in names if where in before] if new else []
            for clients in self._kernel.elements_of(old).values():
                self._remember(clients, new, known, regrouped.after.timeout)

    def move(self, regrouped: Regrouped) -> None:
        """Move clients to the memory of the group that their endpoint is in now.

        They forget what is no endpoint any more.
        """
        for names, homes in self._lists(regrouped):
            for _ in range(READINGS):
                if not self._move_listed(names, homes, regrouped.after.timeout):
                    break

    def _lists(self, regrouped: Regrouped) -> Iterator[tuple[list[str], dict[str, str]]]:
        """Yield for each list its memories, before and after, and where an address belongs."""
        before, after = regrouped
        homes = after.places()
        for _, declaration, _ in after.lists():
            names = {*before, *homes.values()} & self._kernel.sets
            yield (
                sorted(name for name in names if schema.declaration(name) is declaration),
                {address: home for (which, address), home in homes.items() if which is declaration},
            )

    def _move_listed(self, names: list[str], homes: Mapping[str, str], timeout: int) -> bool:
        """Move what one reading finds; return whether the memories may hold more."""
        known = self._kernel.elements_of(names)
        long = any(len(clients) > ONE_PIECE for clients in known.values())
        astray = {
            where: {key: value for key, value in clients.items() if homes.get(str(value)) != where}
            for where, clients in known.items()
        }
        # Gone addresses come first: they would be in the way of those that move
        for where, clients in astray.items():
            for part in _parts({k: v for k, v in clients.items() if str(v) not in homes}):
                self._kernel.forget(where, part)
            known[where] = {k: v for k, v in known[where].items() if k not in clients}
        for where, clients in astray.items():
            moving = {key: value for key, value in clients.items() if str(value) in homes}
            self._remember(moving, homes, known, timeout)
            for part in _parts(moving):
                self._kernel.forget(where, part)
        return long and any(astray.values())

    def _remember(
        self,
        clients: Mapping[Key, Value],
        homes: Mapping[str, str],
        known: Mapping[str, dict[Key, Value]],
        timeout: int,
    ) -> None:
        """Add clients to the memories where their addresses belong, if they are not known there."""
        for home in {homes[str(value)] for value in clients.values() if str(value) in homes}:
            new = {
                key: value
                for key, value in clients.items()
                if homes.get(str(value)) == home and key not in known[home]
            }
            for part in _parts(new):
                self._kernel.remember(home, part, timeout)
            known[home].update(new)

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


def _parts(entries: dict[Key, Value]) -> Iterator[dict[Key, Value]]:
    items = iter(entries.items())
    while part := dict(itertools.islice(items, FORGET)):
        yield part
