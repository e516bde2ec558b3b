"""The load of an empty table: what it holds back until everything else is there, and the thread that commits while more is made."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from nftproxy.errors import KernelError
from nftproxy.routes import Affinity
from nftproxy.table import schema
from nftproxy.table.delta import Delta
from nftproxy.table.plan import BATCH

_MEMBERS = (schema.CLUSTER_MEMBERS, schema.LOCAL_MEMBERS)
AHEAD = 3  # transactions made while the kernel takes one


class FirstLoadError(Exception):
    """The kernel refused something of many services; they have to be tried by themselves."""


class FirstLoad:
    """Commits the deltas of an empty table's services, in order, each while the next are made.

    The kernel validates all verdicts there are with each transaction that adds one, or a chain, so they wait until they are a
    quarter of those there, and then go together, but those of one service never apart; before them what ClientIP services have of
    their own. After them go the addresses of their Services: connections to an address without a verdict are refused.
    """

    def __init__(self, commit: Callable[[Delta, Iterable[Affinity]], None]) -> None:
        self._transact = commit
        self._thread = ThreadPoolExecutor(1, "first-load")
        self._under_way: deque[Future[None]] = deque()
        self._verdicts: list[Delta] = []
        self._addresses: list[Delta] = []
        self._affinities: list[Affinity] = []
        self._waiting = self._there = 0  # verdicts, and members that wait with them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, whole: Delta, affinities: Iterable[Affinity]) -> None:
        """Have the delta of some services committed; it is used up. FirstLoadError when one before failed."""
        if whole.removed:  # of two that claim a frontend the older one came later: what it replaces has to be there
            self._release()
        verdicts, addresses = Delta(), Delta()
        for where in [
            *whole.verdict_maps(),
            *(w for w in whole.added if schema.declaration(w) in _MEMBERS),
        ]:
            verdicts.take(whole, where)
        for where in [
            where for where in whole.added if schema.declaration(where) is schema.CLUSTER_IPS
        ]:
            addresses.take(whole, where)
        self._verdicts.append(verdicts)
        self._addresses.append(addresses)
        self._affinities += affinities
        self._waiting += len(verdicts)
        self._commit(whole)
        if self._waiting > self._there / 4:
            self._release()

    def finish(self) -> None:
        """Return when everything is in the kernel; FirstLoadError when that failed."""
        self._release()
        self._wait(0)

    def _release(self) -> None:
        held, affinities = (*self._verdicts, *self._addresses), self._affinities
        self._verdicts, self._addresses, self._affinities = [], [], []
        self._there += self._waiting
        self._waiting = 0
        self._commit(Delta(), affinities)
        part = Delta()
        for each in held:
            if part and len(part) + len(each) > BATCH:
                self._commit(part)
                part = Delta()
            part.merge(each)
        self._commit(part)

    def _commit(self, delta: Delta, affinities: Iterable[Affinity] = ()) -> None:
        self._wait(AHEAD)
        self._under_way.append(self._thread.submit(self._transact, delta, affinities))

    def _wait(self, number: int) -> None:
        """Wait until at most so many transactions are under way."""
        try:
            while len(self._under_way) > number:
                self._under_way.popleft().result()
        except KernelError as error:
            raise FirstLoadError(str(error)) from error
