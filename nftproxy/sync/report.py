"""The result of one sync of one family, for the log, metrics, health and the work after a sync."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loguru import logger

from nftproxy.address import Family
from nftproxy.errors import BlockedError, KernelError
from nftproxy.model import ObjectName
from nftproxy.routes import Frontend, Route
from nftproxy.store import Pending
from nftproxy.table.remembered import Change, Remembered


@dataclass(slots=True)
class Report:
    """The result of one sync."""

    family: Family
    services: int = 0  # looked at
    written: int = 0  # elements added, rewritten or deleted
    transactions: int = 0
    read_back: bool = False
    refused: dict[ObjectName, str] = field(default_factory=dict)
    looked_at: dict[ObjectName, Pending] = field(default_factory=dict)
    # Not yet looked at; the next sync continues with them
    postponed: dict[ObjectName, Pending] = field(default_factory=dict)
    # Changed NodePorts for TCP where these are forwarded on localhost, None for removed ones; with
    # `read_back` these are all, except those of postponed services and those that are `kept`
    node_ports: dict[int, Route | None] = field(default_factory=dict)
    # NodePorts for TCP that may belong to refused services, which keep them
    kept: set[int] = field(default_factory=set)
    # Seconds for compile, read_back, difference, kernel
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that a block takes to a stage, without that of stages inside the block."""
        begin, before = time.perf_counter(), sum(self.stages.values())
        try:
            yield
        finally:
            inside = sum(self.stages.values()) - before
            taken = time.perf_counter() - begin - inside
            self.stages[stage] = self.stages.get(stage, 0) + taken

    def refuse(self, change: Change, error: KernelError) -> None:
        """Note that the kernel refuses a change, and log it."""
        for name in change.services:
            self.refused[name] = str(error)
            if isinstance(error, BlockedError):
                logger.error(
                    "Service {} {}: it needs a chain or set that only libnftables can make; it "
                    "stays as it was until that may be called",
                    name,
                    self.family,
                )
                continue
            logger.error(
                "Service {} {}: the kernel refuses it ({}); it stays as it was, all others are "
                "applied. "
                "It is tried again when it changes.",
                name,
                self.family,
                error,
            )

    def keep(self, frontends: Iterable[Frontend]) -> None:
        """Note the frontends that refused services keep."""
        self.kept |= {each.port for each in frontends if each.is_node_port and each.proto == "tcp"}

    def accepted(
        self, changes: Iterable[Change], remembered: Remembered, *, forwarded: bool
    ) -> None:
        """Log which services claim the same frontends, once until it changes (contract 2.2.3).

        With `forwarded`, note the NodePorts for TCP that changed: a process forwards them.
        """
        for change in changes:
            _log_rivals(change, remembered)
            for frontend, (_, after) in change.routes.items() if forwarded else ():
                if frontend.is_node_port and frontend.proto == "tcp":
                    self.node_ports[frontend.port] = after


def _log_rivals(change: Change, remembered: Remembered) -> None:
    shared: dict[tuple[str, tuple[ObjectName, ...]], list[Frontend]] = {}
    for frontend, claimants in change.claimants.items():
        if len(claimants) > 1 and remembered.rivals.get(frontend) != claimants:
            owner = change.services.get(claimants[0]) or remembered.services[claimants[0]]
            why = (
                "its ClusterIP"
                if owner.cluster_ip == frontend.address
                else "the oldest of those who claim it"
            )
            shared.setdefault((why, tuple(claimants)), []).append(frontend)
    for (why, (name, *others)), frontends in shared.items():
        more = f" and {len(frontends) - 1} more" if len(frontends) > 1 else ""
        logger.error(
            "Service {} has {}{}, as {}; without it: {}",
            name,
            frontends[0],
            more,
            why,
            ", ".join(map(str, others)),
        )
