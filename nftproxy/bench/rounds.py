"""A run, round by round.

Each sets up every mode on a bed of its own, and then sends packets to all of them in turn.

`samples` always has the readings so far, whatever ends the run. A mode that fails is left out of
the rest of its round and named in `notes`; the others continue. However a round ends, it removes
its processes and namespaces.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from nftproxy.bench.bed import Bed
from nftproxy.bench.control import Answer, ControlReading, Job
from nftproxy.bench.controlplane import ControlPlane
from nftproxy.bench.measures import FLOOR, NO_PROXY, Sample
from nftproxy.bench.modes import REAL, KubeProxyProgram, ModePlace, make
from nftproxy.bench.offer import Offer
from nftproxy.bench.plan import BenchPlan
from nftproxy.bench.traffic import Reading, Traffic
from nftproxy.bench.workload import node_settings
from nftproxy.errors import NftproxyError

Progress = Callable[[str, int], None]
"""The current work, and the number of newly finished steps."""


class Run:
    """A plan, the results so far, and the errors."""

    def __init__(self, plan: BenchPlan, progress: Progress) -> None:
        self.plan = plan
        self.samples: list[Sample] = []
        self.notes: list[str] = []
        self._progress = progress

    def go(self) -> None:
        """Do all of it."""
        for offer in self.plan.offers:
            with self._served(offer) as server:
                for number in range(self.plan.repeat):
                    _Round(self, offer, number, server).go()

    @contextlib.contextmanager
    def _served(self, offer: Offer) -> Iterator[ControlPlane | None]:
        """Lend an API server with the objects of an offer, if a mode needs one."""
        if not set(REAL) & set(self.plan.modes):
            yield None
            return
        with contextlib.ExitStack() as stack:
            server = None
            try:
                self.tell(f"{offer.services} services: starting an API server")
                server = stack.enter_context(ControlPlane())
                server.load(
                    offer,
                    lambda made: self.tell(
                        f"{offer.services} services: {made} objects in the API server"
                    ),
                )
            except NftproxyError as error:
                server = None
                self.notes.append(
                    f"no real kube-proxy with {offer.services} services: {_said(error)}"
                )
            yield server

    def tell(self, text: str, steps: int = 0) -> None:
        """Report the current work."""
        self._progress(text, steps)


class _Round:
    """One round: an offer, and the modes that still work."""

    def __init__(self, run: Run, offer: Offer, number: int, server: ControlPlane | None) -> None:
        self._run = run
        self._server = server
        self._offer = offer
        self._number = number
        self._traffic: dict[str, Traffic] = {}

    def go(self) -> None:
        with contextlib.ExitStack() as stack:
            for mode in self._run.plan.turn(self._number):
                if mode in REAL and self._server is None:
                    self._tell(mode, "left out", 4)
                    continue
                with self._blamed(mode):
                    self._set_up(mode, stack)
            self._send()

    def _set_up(self, mode: str, stack: contextlib.ExitStack) -> None:
        bed = stack.enter_context(Bed())
        if mode == NO_PROXY:
            self._tell(mode, "nothing to write", 2)
        elif mode == FLOOR:
            self._tell(mode, "one rule to write", 2)
            place = ModePlace(bed.node, node_settings(), self._offer.workload().service_cidr())
            make(mode, place).start([self._offer.load(0)])
        else:
            if self._server is not None and mode in REAL:
                self._server.attach(bed.node)
            for restart in (False, True):
                self._tell(mode, "restart" if restart else "first sync, changes")
                keep = stack if restart else None
                for reading in self._control(mode, bed, keep, restart=restart):
                    self._note(mode, [(reading.measure, "", reading.value)])
                self._tell(mode, "", 1)
        self._traffic[mode] = stack.enter_context(
            Traffic(bed, self._offer, proxied=mode != NO_PROXY)
        )

    def _control(
        self, mode: str, bed: Bed, keep: contextlib.ExitStack | None, *, restart: bool
    ) -> Iterator[ControlReading]:
        plan = self._run.plan
        job = Job(
            mode=mode,
            iptables_backend=plan.iptables_backend,
            namespace=bed.node,
            offer=self._offer,
            restart=restart,
            changes=plan.effort.changes,
            seconds=plan.effort.seconds,
            program=KubeProxyProgram(plan.kube_proxy, self._server.access, self._server.folder)
            if self._server is not None
            else None,
        )
        with contextlib.ExitStack() as own:
            process = subprocess.Popen(
                [sys.executable, "-m", "nftproxy.bench.control", msgspec.json.encode(job).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the bench alone
            )
            (keep or own).callback(_end, process)
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            for line in process.stdout:
                answer = msgspec.json.decode(line, type=Answer)
                if answer is None:
                    return
                if isinstance(answer, str):
                    raise NftproxyError(answer)
                yield answer
            raise NftproxyError("its process ended", hint="what it printed says why")

    def _send(self) -> None:
        effort = self._run.plan.effort
        for turn in range(effort.turns):
            for mode in self._turn(turn):
                self._tell(mode, "connections", int(turn == 0))
                with self._blamed(mode):
                    self._note(mode, self._traffic[mode].connections(effort.connections))
                    if mode != FLOOR:  # its rule is about TCP, and about one port of endpoints
                        self._note(mode, self._traffic[mode].datagrams(effort.datagrams))
        # Connections without a pause are last: a forwarder may still clean up afterwards.
        for what in (Traffic.throughput, Traffic.rate):
            for turn in range(effort.steady_turns):
                for mode in self._turn(turn):
                    if mode == FLOOR and what is Traffic.throughput:
                        continue
                    self._tell(mode, what.__name__, int(turn == 0 and what is Traffic.rate))
                    with self._blamed(mode):
                        self._note(mode, what(self._traffic[mode], effort.steady))

    def _turn(self, number: int) -> list[str]:
        return [
            mode for mode in self._run.plan.turn(self._number + number) if mode in self._traffic
        ]

    def _note(self, mode: str, readings: Iterable[Reading]) -> None:
        for measure, place, value in readings:
            self._run.samples.append(
                Sample(self._offer.services, self._number + 1, mode, measure, place, value)
            )

    @contextlib.contextmanager
    def _blamed(self, mode: str) -> Iterator[None]:
        try:
            yield
        except NftproxyError as error:
            self._traffic.pop(mode, None)
            self._run.notes.append(
                f"{mode} failed with {self._offer.services} services: {_said(error)}"
            )

    def _tell(self, mode: str, what: str, steps: int = 0) -> None:
        self._run.tell(
            f"{self._offer.services} services, round {self._number + 1}: {mode} {what}", steps
        )


def _said(error: NftproxyError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _end(process: "subprocess.Popen[Any]") -> None:
    process.kill()
    process.communicate()
