"""Makes clients forget removed endpoints.

The kernel remembers them for ClientIP affinity and knows nothing of endpoints. First an endpoint
leaves the members, so that no client learns it any more. When every packet has left that still
found it there, its clients forget it. Then the change itself is made.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from nftproxy.kernel.transactions import Kernel
from nftproxy.routes import Affinity
from nftproxy.table import schema
from nftproxy.table.delta import Delta
from nftproxy.table.remembered import Change, Remembered

FORGET = 2000  # remembered clients deleted in one transaction


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
            elif (
                set(old.cluster) - set(new.cluster)
                or set(old.local) - set(new.local)
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
        for old, new in _before_after(change, remembered):
            self._forget(new, {*new.ports, *(old.ports if old else ())})

    def forget_strangers(self, affinities: Iterable[Affinity], sets: set[str]) -> None:
        """Make clients forget every address that is no endpoint, after reading back.

        Only memories among `sets`, which existed before, hold any; each costs the kernel a walk
        along all sets.
        """
        for affinity in affinities:
            if any(memory in sets for memory, _ in affinity.memories(affinity.ports)):
                self._forget(affinity, affinity.ports)

    def _forget(self, affinity: Affinity, ports: Iterable[int]) -> None:
        """Delete the clients' memory of endpoints that are no members."""
        for memory, usable in affinity.memories(ports):
            if memory in self._kernel.sets:
                stale = {k: v for k, v in self._kernel.elements(memory).items() if v not in usable}
                entries = iter(stale.items())
                while part := dict(itertools.islice(entries, FORGET)):
                    self._kernel.forget(memory, part)


def _before_after(
    change: Change, remembered: Remembered
) -> Iterator[tuple[Affinity | None, Affinity]]:
    """Yield the affinities that a change leaves, each with its former state."""
    for name, new in change.services.items():
        if new and new.affinities:
            old = remembered.services.get(name)
            known = {a.name: a for a in old.affinities} if old else {}
            yield from ((known.get(affinity.name), affinity) for affinity in new.affinities)
