"""One mode's control plane, in a process of its own.

`python -m nftproxy.bench.control JOB` measures it apart from all others.

The job is one JSON object; each reading is one line of JSON, followed by `null` at the end. Then
the process stays until its input ends, because packets may need a child of it. A restart is a job
of its own: a new process that finds the rules of the previous one.

Objects are decoded one by one when the mode takes them, and that time is not counted. Only the mode
keeps them, so memory is that of a daemon that reads them from a watch.
"""

import functools
import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, overload

import msgspec

from nftproxy.bench.lines import say
from nftproxy.bench.measures import Measure
from nftproxy.bench.modes import KubeProxyProgram, Load, Mode, ModePlace, Work, make
from nftproxy.bench.offer import Offer
from nftproxy.bench.workload import node_settings
from nftproxy.errors import NftproxyError
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.node import memory

_STRIDE: Final = 7919  # a prime: services that change in a row are far from each other
_KERNEL_MEMORY: Final = ("SUnreclaim", "VmallocUsed", "Percpu")
"""Memory of rules and elements, by names in /proc/meminfo.

Reclaimable slab holds files, which others read meanwhile.
"""

_OWN: Final = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Job(msgspec.Struct, kw_only=True):
    """The job of a process.

    It makes at least one and at most `changes` changes of each kind, within `seconds`.
    """

    mode: str
    iptables_backend: Literal["legacy", "nft"]
    namespace: str
    offer: Offer
    restart: bool
    changes: int = 0
    seconds: float = 0.0
    program: KubeProxyProgram | None = None


class ControlReading(msgspec.Struct):
    """One line of the answer."""

    measure: Measure
    value: float


Answer = ControlReading | str | None
"""A reading, an error, or the end."""


class Arriving(Sequence[Load]):
    """The services of an offer, decoded on demand.

    `seconds` and `processor` are the cost of the latest pass.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self.seconds = self.processor = 0.0

    def __len__(self) -> int:
        return self._offer.services

    @overload
    def __getitem__(self, index: int) -> Load: ...
    @overload
    def __getitem__(self, index: slice) -> list[Load]: ...
    def __getitem__(self, index: int | slice) -> Load | list[Load]:
        found = range(len(self))[index]
        return (
            self._offer.load(found)
            if isinstance(found, int)
            else [self._offer.load(number) for number in found]
        )

    def __iter__(self) -> Iterator[Load]:
        self.seconds = self.processor = 0.0
        for number in range(len(self)):
            began, used = time.perf_counter(), time.process_time()
            load = self._offer.load(number)
            self.seconds += time.perf_counter() - began
            self.processor += time.process_time() - used
            yield load


def readings(job: Job) -> Iterator[ControlReading]:
    """Do a job and yield its readings."""
    place = ModePlace(job.namespace, node_settings(), job.offer.workload().service_cidr())
    mode = make(job.mode, place, job.iptables_backend, job.program)
    load = Arriving(job.offer)
    if job.restart:
        work, processor = _watched(mode, lambda: mode.restart(load))
        yield ControlReading(Measure.RESTART, work.seconds - load.seconds)
        yield from _asked(Measure.RESTART_ASKED, work)
        yield ControlReading(Measure.RESTART_CPU, processor - load.processor)
        yield from _memory(mode)
        return
    before = kernel_memory()
    work, processor = _watched(mode, lambda: mode.start(load))
    yield ControlReading(Measure.FIRST_SYNC, work.seconds - load.seconds)
    yield from _asked(Measure.FIRST_SYNC_ASKED, work)
    yield ControlReading(Measure.FIRST_SYNC_CPU, processor - load.processor)
    yield ControlReading(Measure.KERNEL, kernel_memory() - before)
    yield from _changes(mode, job)
    if mode.name == "nftproxy":
        yield from _transactions(job)


def _asked(measure: Measure, work: Work) -> Iterator[ControlReading]:
    if work.asked:
        yield ControlReading(measure, work.asked)


def _watched(mode: Mode, work: Callable[[], Work]) -> tuple[Work, float]:
    """Call a function.

    Return its result and its processor time, programs included, which other processes do not
    affect.
    """
    before = _processor(mode)
    done = work()
    return done, _processor(mode) - before


def _processor(mode: Mode) -> float:
    """Return the processor time of a mode so far, with that of finished children."""
    used = 0.0 if mode.elsewhere else sum(sum(resource.getrusage(who)[:2]) for who in _OWN)
    for pid in mode.processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # utime, stime and those of children, proc_pid_stat(5)
        used += sum(map(int, fields[11:15])) / _TICKS
    return used


def _changes(mode: Mode, job: Job) -> Iterator[ControlReading]:
    """Change services and change them back: the next process finds the rules of the first sync."""
    offer = job.offer
    until = time.monotonic() + job.seconds
    for turn in range(job.changes):
        number = turn * _STRIDE % offer.services
        for replaced in (1, 0):
            load = [offer.load(number, replaced)]
            work, processor = _watched(mode, functools.partial(mode.update, put=load))
            yield ControlReading(Measure.UPDATE, work.seconds)
            yield from _asked(Measure.UPDATE_ASKED, work)
            yield ControlReading(Measure.UPDATE_CPU, processor)
        if time.monotonic() > until:
            break
    until = time.monotonic() + job.seconds
    for number in itertools.islice(itertools.count(offer.services), job.changes):
        load = [offer.load(number)]
        yield ControlReading(Measure.ADD, mode.update(put=load).seconds)
        yield ControlReading(Measure.DELETE, mode.update(deleted=load).seconds)
        if time.monotonic() > until:
            break


def _transactions(job: Job) -> Iterator[ControlReading]:
    """Measure an empty transaction, the lower limit of any change."""
    with enter(job.namespace):
        kernel = Kernel()
    with kernel:
        for _ in range(job.changes):
            began = time.perf_counter()
            kernel.probe()
            yield ControlReading(Measure.TRANSACTION, time.perf_counter() - began)


def _memory(mode: Mode) -> Iterator[ControlReading]:
    pids = [*([] if mode.elsewhere else ["self"]), *map(str, mode.processes())]
    peak = sum(_status(pid, "VmHWM") for pid in pids)
    yield ControlReading(Measure.SETTLED, sum(_status(pid, "VmRSS") for pid in pids))
    yield ControlReading(Measure.PEAK, peak)
    # A program's figure starts with that of this process; one that is not larger says nothing.
    programs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if programs > peak:
        yield ControlReading(Measure.PROGRAMS, programs)


def _status(pid: str, field: str) -> float:
    return _kilobytes(Path("/proc", pid, "status"), (field,))


def kernel_memory() -> float:
    """Return the bytes of the kernel's memory for rules, of the whole machine.

    Only differences count.
    """
    return _kilobytes(Path("/proc/meminfo"), _KERNEL_MEMORY)


def _kilobytes(file: Path, fields: Sequence[str]) -> float:
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return sum(int(value.split()[0]) * 1024 for name, _, value in lines if name in fields)


def main() -> None:
    """Do the job, and stay."""
    memory.collect_seldom()  # as `nftproxy run` does; baselines gain by it, too
    try:
        for reading in readings(msgspec.json.decode(sys.argv[1], type=Job)):
            say(reading)
        say(None)
    except NftproxyError as error:
        say(str(error))
    sys.stdin.read()


if __name__ == "__main__":
    main()
