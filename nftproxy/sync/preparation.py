"""A Service that needs very many chains lets others go first.

Two thousand ClientIP ports need four thousand chains, which takes a second. Chains without
references do no harm, so they are made in portions, and changes that arrive meanwhile wait for one
portion, not for all. No other state is kept: the next sync compiles again and sees the existing
chains. Portions are large, because libnftables looks at all chains for each.
"""

from nftproxy.kernel.transactions import Kernel
from nftproxy.routes import Affinity
from nftproxy.table.delta import Delta
from nftproxy.table.program import Program
from nftproxy.table.remembered import Change

LAST = 50  # ClientIP service ports; a Service with more comes last in a sync
# ClientIP service ports whose chains one sync makes for a Service with more: a third of a second
PREPARED = 1000


class Preparation:
    """Makes the chains of large changes in advance."""

    def __init__(self, kernel: Kernel, program: Program) -> None:
        self._kernel = kernel
        self._program = program

    def is_large(self, change: Change, limit: int) -> bool:
        """Whether a change of more ClientIP ports than a limit lacks chains."""
        ports = sum([len(new.affinities) for new in change.services.values() if new])
        return ports > limit and bool(self._lacking(change))

    def prepare(self, change: Change) -> None:
        """Make a portion of the chains that a large change needs."""
        self._kernel.ensure_for(Delta(), self._program, self._lacking(change)[:PREPARED])

    def _lacking(self, change: Change) -> list[Affinity]:
        """Return the ClientIP service ports of a change whose chains are missing."""
        return [
            a
            for new in change.services.values()
            if new
            for a in new.affinities
            if self._kernel.lacks(a)
        ]
