"""What one sync of one family did, for the log, metrics, health and whatever follows a sync."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nftproxy.address import Family
from nftproxy.model import ObjectName
from nftproxy.store import Pending
from nftproxy.table.difference import Change, Delta

PORTION = 1000  # services looked at together after reading back; what a sync needs on the way grows with it
FORGET = 2000  # remembered clients deleted in one transaction

Pair = tuple[Change, Delta]


@dataclass(slots=True)
class Report:
    """What one sync did."""

    family: Family
    services: int = 0  # looked at
    written: int = 0  # elements added, rewritten or deleted
    transactions: int = 0
    read_back: bool = False
    refused: dict[ObjectName, str] = field(default_factory=dict)
    looked_at: dict[ObjectName, Pending] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)  # seconds for compile, read_back, difference, kernel

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that a block takes to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0) + time.perf_counter() - begin
