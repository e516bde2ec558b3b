"""The load of an empty table: its order, and the thread that commits while more is prepared."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from nftproxy.address import Family
from nftproxy.errors import KernelError
from nftproxy.routes import Affinity
from nftproxy.table import schema
from nftproxy.table.delta import Delta
from nftproxy.table.elements import pick
from nftproxy.table.plan import BATCH, Wanted

AHEAD = 3  # transactions prepared while the kernel takes one


class FirstLoadError(Exception):
    """The kernel refused a part of many services; each has to be tried alone."""


class FirstLoad:
    """Commits the deltas of an empty table's services, in order, each while the next are prepared.

    With each transaction that adds a verdict or a chain the kernel validates all existing verdicts,
    so verdicts wait until they are a quarter of the existing ones, and then go together, but those
    of one service never apart. Picks are first, because the kernel walks along a map for each chain
    that looks into it; then the chains and sets of ClientIP services. The addresses of
    the Services are last: connections to an address without a verdict are refused.
    """

    def __init__(
        self,
        family: Family,
        commit: Callable[[Delta, Iterable[Affinity]], None],
        make: Callable[[set[str]], None],
    ) -> None:
        """`commit` makes a transaction, `make` makes the picks of these names."""
        self._family = family
        self._transact = commit
        self._make = make
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

    def prepared(self, wanted: Wanted) -> Wanted:
        """Return services whose picks are made before any of their elements."""
        picks = {
            pick(route, self._family)
            for compiled in wanted.values()
            if compiled
            for route in compiled.routes
        }
        self._submit(self._make, picks - {""})
        return wanted

    def add(self, whole: Delta, affinities: Iterable[Affinity]) -> None:
        """Commit the delta of some services, which is used up.

        FirstLoadError if an earlier one failed.
        """
        # Of two that claim a frontend the older one came later: what it replaces has to be there
        if whole.removed:
            self._release()
        verdicts, addresses = Delta(), Delta()
        for where in [
            *whole.verdict_maps(),
            *(w for w in whole.added if schema.declaration(w) in schema.REMEMBERED_IN),
        ]:
            verdicts.take_additions(whole, where)
        for where in [
            where for where in whole.added if schema.declaration(where) is schema.CLUSTER_IPS
        ]:
            addresses.take_additions(whole, where)
        self._verdicts.append(verdicts)
        self._addresses.append(addresses)
        self._affinities += affinities
        self._waiting += len(verdicts)
        self._commit(whole)
        if self._waiting > self._there / 4:
            self._release()

    def finish(self) -> None:
        """Wait until everything is in the kernel; FirstLoadError if that failed."""
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
        self._submit(self._transact, delta, affinities)

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._wait(AHEAD)
        self._under_way.append(self._thread.submit(work, *arguments))

    def _wait(self, number: int) -> None:
        """Wait until at most that many transactions are under way."""
        try:
            while len(self._under_way) > number:
                self._under_way.popleft().result()
        except KernelError as error:
            raise FirstLoadError(str(error)) from error
