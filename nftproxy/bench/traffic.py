"""Packets through one mode's node.

Commands to the `client` process of its bed, and iperf3 where installed.

Commands are short, so that modes can take turns: a disturbance of the machine then hits all alike.
Microseconds are measured on one processor, throughput on all of them.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Final, Self

import msgspec

from nftproxy.bench.bed import Bed
from nftproxy.bench.client import BenchTarget, Order
from nftproxy.bench.measures import Measure, MeasurePlace
from nftproxy.bench.offer import IPERF_PORT, Offer
from nftproxy.errors import NftproxyError
from nftproxy.lab.namespace import enter

_SPREAD: Final = 64  # services that get new connections for the count

Reading = tuple[Measure, str, float]


class TrafficAnswer(msgspec.Struct):
    """The answer of the client process."""

    readings: list[list[float]] = []
    problem: str = ""


class Received(msgspec.Struct):
    """The throughput, counted by its receiver."""

    bits_per_second: float = 0.0


class TrafficEnd(msgspec.Struct):
    """The summary."""

    sum_received: Received = msgspec.field(default_factory=Received)


class TrafficReport(msgspec.Struct):
    """The output of iperf3: a summary, or an error and an empty one."""

    end: TrafficEnd
    error: str = ""


class BenchClient:
    """The process of `nftproxy.bench.client` in a bed, for the length of a block."""

    def __init__(self, bed: Bed) -> None:
        with enter(bed.client):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nftproxy.bench.client"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the bench alone
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Its process, which may be bound to a processor."""
        return self._process.pid

    def ask(self, order: Order) -> list[list[float]]:
        """Return its readings, a list for each target; NftproxyError without them."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None  # noqa: S101 - both are pipes
        assert answers is not None  # noqa: S101
        orders.write(msgspec.json.encode(order).decode() + "\n")
        orders.flush()
        answer = msgspec.json.decode(
            answers.readline() or '{"problem": "the client ended"}', type=TrafficAnswer
        )
        if answer.problem:
            raise NftproxyError(answer.problem)
        return answer.readings


class Traffic:
    """The clients of one bed with all services of the offer.

    `proxied` says whether they use the services' addresses.
    """

    def __init__(self, bed: Bed, offer: Offer, *, proxied: bool) -> None:
        self._bed = bed
        self._places = {
            place: offer.target(offer.place(place), proxied=proxied) for place in MeasurePlace
        }
        self._spread = [offer.target(number, proxied=proxied) for number in offer.spread(_SPREAD)]
        self._datagrams = offer.target(offer.datagrams, proxied=proxied)
        self._iperf = offer.target(offer.iperf, proxied=proxied)
        self._client = BenchClient(bed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.__exit__(*error)

    def connections(self, count: int) -> Iterator[Reading]:
        """Yield the times of connections, for each place of the list."""
        with self._one_processor():
            found = self._client.ask(
                Order(what="connections", targets=list(self._places.values()), count=count)
            )
        for place, readings in zip(self._places, found, strict=True):
            yield from ((Measure.CONNECT, place, reading) for reading in readings)

    def datagrams(self, count: int) -> Iterator[Reading]:
        """Yield the times until answers to first datagrams."""
        with self._one_processor():
            found = self._client.ask(
                Order(what="datagrams", targets=[self._datagrams], count=count)
            )
        yield from ((Measure.DATAGRAM, "", reading) for reading in found[0])

    def rate(self, seconds: float) -> Iterator[Reading]:
        """Yield the connections per second to services from all over the list."""
        yield (
            Measure.RATE,
            "",
            self._client.ask(Order(what="rate", targets=self._spread, seconds=seconds))[0][0],
        )

    def throughput(self, seconds: float) -> Iterator[Reading]:
        """Yield the bytes per second of a connection."""
        if shutil.which("iperf3"):
            yield Measure.THROUGHPUT, "", self._by_iperf(seconds)
        else:
            order = Order(
                what="throughput", targets=[self._places[MeasurePlace.MIDDLE]], seconds=seconds
            )
            yield Measure.THROUGHPUT, "", self._client.ask(order)[0][0]

    @contextlib.contextmanager
    def _one_processor(self) -> Iterator[None]:
        """Keep client and endpoints, and so all work of the kernel between them, on one processor.

        Waking an endpoint on another one, or being preempted by it, adds some 10 or 18 µs to some
        readings: two hills, and the median is on either by chance. With SCHED_BATCH an endpoint
        does not preempt the client when it wakes up.
        """
        processes = [self._client.pid, self._bed.endpoints]
        everywhere = [os.sched_getaffinity(pid) for pid in processes]
        for pid in processes:
            os.sched_setaffinity(pid, {max(everywhere[0])})
        os.sched_setscheduler(self._bed.endpoints, os.SCHED_BATCH, os.sched_param(0))
        try:
            yield
        finally:
            for pid, before in zip(processes, everywhere, strict=True):
                os.sched_setaffinity(pid, before)
            os.sched_setscheduler(self._bed.endpoints, os.SCHED_OTHER, os.sched_param(0))

    def _by_iperf(self, seconds: float) -> float:
        with enter(self._bed.server):
            server = subprocess.Popen(
                ["iperf3", "--server", "--one-off", "--forceflush", "--port", str(IPERF_PORT)],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        try:
            assert server.stdout is not None  # noqa: S101 - it is a pipe
            for line in server.stdout:
                if "listening" in line:
                    break
            return self._iperf_client(self._iperf, seconds)
        finally:
            server.kill()
            server.communicate()

    def _iperf_client(self, target: BenchTarget, seconds: float) -> float:
        argv = [
            "iperf3",
            "--client",
            target.address,
            "--port",
            str(target.port),
            "--time",
            f"{max(1, round(seconds))}",
            "--json",
        ]
        with enter(self._bed.client):
            client = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        try:
            report = msgspec.json.decode(
                client.communicate(timeout=seconds + 30)[0], type=TrafficReport
            )
        except (msgspec.DecodeError, subprocess.TimeoutExpired) as error:
            raise NftproxyError(
                f"iperf3 through {target.address}:{target.port} failed: {error}"
            ) from error
        finally:
            client.kill()
            client.communicate()
        if report.error:
            raise NftproxyError(
                f"iperf3 through {target.address}:{target.port} failed: {report.error}"
            )
        return report.end.sum_received.bits_per_second / 8
