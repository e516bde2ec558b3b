"""Watching.

The table that marks packets, the kernel's reports about them, and answers beside the hooks.

The table lives as long as the socket that made it, so nothing is left behind, whatever ends this
process. Nothing is read or written while no connection is marked.
"""

import errno
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from nftproxy.errors import KernelError, UnusableError
from nftproxy.kernel.channel import Channel
from nftproxy.path.ruleset import Link
from nftproxy.table import netlink
from nftproxy.table.netlink import Message
from nftproxy.trace.beside import Beside
from nftproxy.trace.events import event_of
from nftproxy.trace.flows import PATIENCE, Flows, TracedFlow
from nftproxy.trace.marks import ANSWERED, BEGAN, Wanted, changes, key, noted, request

TABLE = "nftproxy-trace"
_BUFFER = 4 << 20  # bytes
_REPORT = 1 << 13  # bytes: more than any report has
_PAUSE = 0.05  # seconds


class Tracer:
    """Marks packets from its beginning to its end."""

    def __init__(self, wanted: Wanted, links: Mapping[str, Link]) -> None:
        self._links = links
        self.lost = False  # reports: more came than were read
        self.beside_lacks = False  # the permission to look beside the hooks
        self._beside: Beside | None = None
        self._reports = _subscribe()
        self._owner = Channel()
        self.table = f"{TABLE}-{self._owner.port}"
        try:
            self._owner.transact(changes(self.table, wanted))
        except KernelError as error:
            self.close()
            if not error.hint:
                error.hint = "trace needs Linux 5.13 or later"
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the table, with all that is in it."""
        self._owner.close()
        self._reports.close()
        if self._beside:
            self._beside.close()

    def watch(
        self,
        count: int,
        seconds: float,
        seen: Callable[[TracedFlow], None],
        tick: Callable[[], None],
    ) -> int:
        """Show `seen` each connection once it is complete, until `count` are or the time is over.

        Returns how many.

        `tick` is called again and again.
        """
        flows = Flows(self.table, count)
        until = time.monotonic() + seconds
        complete = 0
        while complete < count:
            now = time.monotonic()
            if now > until + (PATIENCE + 1 if flows.open else 0):
                break
            if now > until:
                flows.end()
            tick()
            self._wait()
            self._read(flows)
            now = time.monotonic()
            self._look_beside(flows.open, now)
            for flow in flows.done(now):
                complete += 1
                flow.took = self._took(flow)
                seen(flow)
        return complete

    def _took(self, flow: TracedFlow) -> float:
        """Return the seconds from the first packet to the answer by the clock of the kernel.

        0 without an answer.
        """
        first = flow.first
        wanted = key(*first.source, *first.destination)
        times = []
        for name in (BEGAN, ANSWERED):
            asked = request(self.table, f"{name}{first.family.digit}", wanted)
            with suppress(KernelError):
                times += [noted(answer) for answer in self._owner.get(Message.GET_ELEMENTS, asked)]
        return (times[1] - times[0]) / 1e9 if len(times) == 2 else 0.0

    def _wait(self) -> None:
        sockets: Sequence[socket.socket] = [self._reports]
        if self._beside:
            sockets = [self._reports, self._beside.socket]
        select.select(sockets, [], [], _PAUSE)

    def _read(self, flows: Flows) -> None:
        """Read all reports there are before any is taken apart.

        Their times are those of reading.
        """
        waiting: list[tuple[float, bytes]] = []
        with suppress(BlockingIOError):
            while True:
                try:
                    data = self._reports.recv(_REPORT)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self.lost = True
                    continue
                waiting.append((time.monotonic(), data))
        for when, data in waiting:
            event = event_of(data)
            if event:
                flows.feed(event, when)

    def _look_beside(self, flows: Sequence[TracedFlow], now: float) -> None:
        for flow in flows:
            if not flow.late(now):
                continue
            flow.silenced = True
            if self._beside is None and not self.beside_lacks:
                try:
                    self._beside = Beside(self._links)
                except PermissionError:
                    self.beside_lacks = True
            if self._beside:
                self._beside.watch(flow)
        if self._beside:
            self._beside.read()


def _subscribe() -> socket.socket:
    """Open a socket that the kernel sends its reports to."""
    found = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        netlink.NETFILTER,
    )
    try:
        found.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    found.bind((0, 0))
    try:
        found.setsockopt(netlink.SOL_NETLINK, netlink.ADD_MEMBERSHIP, netlink.TRACES_OF_NFTABLES)
    except PermissionError as error:
        found.close()
        raise UnusableError(
            "the kernel shows its trace only to who has the capability NET_ADMIN",
            hint="run as root or with the capability NET_ADMIN",
        ) from error
    return found
