"""Our table and its writers, for both families: settings, store, kernel and a syncer each.

The removal of unused chains starts here.
"""

from collections.abc import Callable, Iterable

from loguru import logger

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import NodeSettings, accepted_nodeport_addresses
from nftproxy.errors import BlockedError, KernelError
from nftproxy.kernel.transactions import Kernel
from nftproxy.store import Store
from nftproxy.sync.report import Report
from nftproxy.sync.resets import Resets
from nftproxy.sync.syncer import Syncer
from nftproxy.table import schema
from nftproxy.table.plan import node_elements
from nftproxy.table.program import Program

SPARE_PICKS = 64  # unused picks that may stay: each costs a transaction two microseconds


class Table:
    """Our table and its writers; every method belongs to one thread at a time."""

    def __init__(self, settings: NodeSettings, store: Store, kernel: Kernel) -> None:
        self.settings = settings
        self.store = store
        self.kernel = kernel
        self.program = Program(settings)
        self.blocked: BlockedError | None = None  # as last noticed
        self._accepted: dict[
            Family, tuple[Address, ...]
        ] = {}  # the addresses that accept NodePorts, as in the table
        self.resets = (
            Resets(kernel, self.program, settings.families) if settings.reset_gone else None
        )
        self.syncers = {
            family: Syncer(family, settings, self.program, kernel, store, self.resets)
            for family in settings.families
        }

    def sync(self, family: Family, own_addresses: Iterable[Address]) -> Report:
        """Bring one family in step; `own_addresses` are those of this machine's interfaces."""
        syncer = self.syncers[family]
        report = syncer.sync()
        accepted, errors = accepted_nodeport_addresses(
            {family: self.settings.nodeport_addresses[family]},
            own_addresses,
            self.settings.forwarded,
        )
        for error in errors:
            logger.error("{}", error)
        if family in accepted and (
            report.read_back or accepted[family] != self._accepted.get(family)
        ):
            self._accepted.pop(family, None)  # unknown until it is written
            syncer.say_of_node(node_elements(family, accepted[family], None))
            self._accepted[family] = accepted[family]
        return report

    def distrust(self, *, program: bool) -> None:
        """Let the next syncs read the table back, and load a program that may have changed."""
        if program:
            self.kernel.doubt()
        for syncer in self.syncers.values():
            syncer.distrust()

    def notice(self) -> bool:
        """Check whether libnftables may be called.

        True if it may again; then the next syncs write everything that waited.
        """
        blocked, self.blocked = self.blocked, self.kernel.blocked
        if self.blocked and not blocked:
            logger.warning(
                "{}; it is not called, and only changes of elements are written until that table "
                "is gone ({})",
                self.blocked,
                self.blocked.hint,
            )
        if blocked and not self.blocked:
            logger.info(
                "no other program's table keeps us from calling libnftables any more; everything "
                "is written again"
            )
            self.distrust(program=False)
            return True
        return False

    @property
    def untidy(self) -> bool:
        """Whether chains or sets may be unused, or clients may remember what is gone."""
        if self.resets and self.resets.over:
            return True
        return any(syncer.untidy for syncer in self.syncers.values())

    def tidy(self, busy: Callable[[], bool] = lambda: False) -> bool:
        """Delete unused chains and sets; False if some are still referenced and stay for now.

        Before that, clients forget what a packet on its way made them remember after a change.
        Nothing is done, and the work stays, if `busy` reports meanwhile that a sync waits.
        """
        if self.kernel.blocked or not all(syncer.in_step for syncer in self.syncers.values()):
            return True
        for syncer in self.syncers.values():
            if busy():
                return True
            syncer.forget_doubtful()
        if (used := self._used(busy)) is None:
            return True
        chains = self.kernel.chains - used
        # Not those of a family that is no longer served
        picks = {name for name in chains if self.program.pick(name)}
        if len(picks) <= SPARE_PICKS:
            chains -= picks
        sets = {
            name
            for name in self.kernel.sets - used
            if schema.declaration(name) is not schema.ALLOWED
        }
        for syncer in self.syncers.values():
            syncer.remembered.untidy = False
        try:
            self.kernel.without(self.program, self.program.optional - used)
            self.kernel.tidy(chains - self.program.optional, sets)
        except KernelError as error:
            logger.debug("chains out of use are kept for now: {}", error)
            self.kernel.refresh()
            for syncer in self.syncers.values():
                syncer.remembered.untidy = True
            return False
        return True

    def _used(self, busy: Callable[[], bool]) -> set[str] | None:
        """Return the names of chains and sets in use; None if others wait."""
        used = self.program.names()
        if self.resets:
            used |= self.resets.needed()
        for syncer in self.syncers.values():
            if (needed := syncer.needed(busy)) is None:
                return None
            used = used | needed
        return used
