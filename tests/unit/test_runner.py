"""When syncs run: coalescing, periods and retries, on a clock of the test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from nftproxy.errors import KernelError
from nftproxy.sync.runner import HOURLY, Runner
from tests.support import virtualtime

MIN, RETRY, TOOK = 1.0, 30.0, 0.25


class Runs:
    """A runner whose runs take a quarter of a second, and when they started."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.error: Exception | None = None
        self.runner = Runner("test", self._run, min_period=MIN, retry_period=RETRY)

    async def _run(self) -> None:
        self.at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(TOOK)
        if self.error:
            raise self.error


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[Runs]:
    runs = Runs()
    task = asyncio.create_task(runs.runner.run_forever())
    try:
        yield runs
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.contract("1.3.1", "1.3.2")
def test_many_requests_before_a_run_are_one_run() -> None:
    async def main() -> None:
        async with started() as runs:
            await asyncio.sleep(10)
            for _ in range(5):
                runs.runner.request()
            await asyncio.sleep(100)
            assert runs.at == [10]

    virtualtime.run(main())


@pytest.mark.contract("1.3.2")
def test_the_next_run_starts_a_period_after_the_last_one_finished() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.runner.request()
            await asyncio.sleep(0.1)
            runs.runner.request()  # while the first is under way
            await asyncio.sleep(5)
            assert runs.at == [0, TOOK + MIN]
            runs.runner.request()  # idle for long: at once
            await asyncio.sleep(5)
            assert runs.at[2:] == [5.1]

    virtualtime.run(main())


@pytest.mark.contract("1.3.3")
def test_a_run_every_hour_without_any_request() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.runner.request()
            await asyncio.sleep(2 * HOURLY + 10)
            assert len(runs.at) == 3
            assert runs.at[1] == pytest.approx(TOOK + HOURLY)

    virtualtime.run(main())


@pytest.mark.contract("1.3.4", "1.2.6")
def test_a_failed_run_is_tried_again() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.error = KernelError("no")
            runs.runner.request()
            await asyncio.sleep(1)
            runs.error = None
            assert runs.runner.failing
            await asyncio.sleep(100)
            assert len(runs.at) == 2
            assert runs.at[1] == pytest.approx(TOOK + RETRY)
            assert not runs.runner.failing

    virtualtime.run(main())


@pytest.mark.contract("1.3.4")
def test_a_request_cancels_the_pending_retry() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.error = KernelError("no")
            runs.runner.request()
            await asyncio.sleep(0.5)
            runs.error = None
            runs.runner.request()
            await asyncio.sleep(100)
            assert runs.at == [0, TOOK + MIN], (
                "never earlier than the period, and no retry after a success"
            )

    virtualtime.run(main())


@pytest.mark.contract("1.3.5")
def test_an_unexpected_exception_does_not_stop_the_runner() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.error = ZeroDivisionError("a bug")
            runs.runner.request()
            await asyncio.sleep(5)
            runs.error = None
            runs.runner.request()
            await asyncio.sleep(5)
            assert runs.at == [0, 5]

    virtualtime.run(main())


@pytest.mark.parametrize("turns", range(5))
def test_a_request_does_not_swallow_the_end(turns: int) -> None:
    """The runner is cancelled that many turns of the loop after a request: it ends, where it is."""

    async def main() -> None:
        async with started() as runs:
            await asyncio.sleep(10)
            runs.runner.request()
            for _ in range(turns):
                await asyncio.sleep(0)
        # Now `started` has cancelled it, and waited for its end: if that was swallowed, there is
        # none.

    virtualtime.run(main())


def test_settled_waits_for_runs_that_were_requested() -> None:
    async def main() -> None:
        async with started() as runs:
            runs.runner.request()
            assert runs.runner.busy
            await runs.runner.settled()
            assert asyncio.get_running_loop().time() == TOOK
            assert not runs.runner.busy

    virtualtime.run(main())
