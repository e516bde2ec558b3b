"""Makes clients forget removed endpoints.

The kernel remembers them for ClientIP affinity and knows nothing of endpoints. First an endpoint
leaves the members, so that no client learns it any more. When every packet has left that still
found it there, its clients forget it. Then the change itself is made.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from nftproxy.chunks import difference
from nftproxy.kernel.transactions import Kernel
from nftproxy.routes import Affinity
from nftproxy.table import schema
from nftproxy.table.delta import Delta
from nftproxy.table.remembered import Change, Remembered

FORGET = 2000  # remembered clients deleted in one transaction
AT_ONCE = 100  # memories read together


class Forgetting:
    """Forgets for the syncs of one family."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def concerns(self, remembered: Remembered, change: Change) -> bool:
        """Whether some client may remember an endpoint that it must not reach any more."""
        for old, new in _before_after(change, remembered):
            if old is None:
                if any(memory in self._kernel.sets for memory, _ in new.memories(new.ports)):
                    return True
            elif old is not new and (
                difference(old.cluster, new.cluster)[0]
                or difference(old.local, new.local)[0]
                or set(new.ports) - set(old.ports)
            ):
                return True
        return False

    def forget_departed(
        self, change: Change, remembered: Remembered, whole: Delta, commit: Callable[[Delta], None]
    ) -> None:
        """Remove endpoints from the members, and so from `whole`, and make clients forget them.

        `commit` waits for packets that found their endpoint among the members and are about to be
        remembered.
        """
        departed = Delta()
        departed.take_removed(whole, (schema.CLUSTER_MEMBERS, schema.LOCAL_MEMBERS))
        if departed:
            commit(departed)
        self._forget(
            memory
            for old, new in _before_after(change, remembered)
            for memory in new.memories({*new.ports, *(old.ports if old else ())})
        )

    def forget_strangers(self, affinities: Iterable[Affinity], sets: set[str]) -> None:
        """Make clients forget every address that is no endpoint, after reading back.

        Only memories among `sets`, which existed before, hold any; each costs the kernel a walk
        along all sets.
        """
        self._forget(
            memory
            for affinity in affinities
            for memory in affinity.memories(affinity.ports)
            if memory[0] in sets
        )

    def _forget(self, memories: Iterable[tuple[str, frozenset[str]]]) -> None:
        """Delete the clients' memory of addresses that are not those of members."""
        there = ((where, usable) for where, usable in memories if where in self._kernel.sets)
        while some := dict(itertools.islice(there, AT_ONCE)):
            for where, known in self._kernel.elements_of(list(some)).items():
                stale = {key: value for key, value in known.items() if value not in some[where]}
                entries = iter(stale.items())
                while part := dict(itertools.islice(entries, FORGET)):
                    self._kernel.forget(where, part)


def _before_after(
    change: Change, remembered: Remembered
) -> Iterator[tuple[Affinity | None, Affinity]]:
    """Yield the affinities that a change leaves, each with its former state."""
    for name, new in change.services.items():
        if new and new.affinities:
            old = remembered.services.get(name)
            known = {a.name: a for a in old.affinities} if old else {}
            yield from ((known.get(affinity.name), affinity) for affinity in new.affinities)
