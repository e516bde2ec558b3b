"""A line in the log for each refused connection, as rules of the table hand them out.

The kernel limits the lines for each reason and counts the rest, which gets a line every ten
seconds. A client that tries again is refused again, and logged again. The table has the name of the
Service beside the refusal; for a port that a ClusterIP lacks, the objects have it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from loguru import logger

from nftproxy.address import Family, bracketed, unpack
from nftproxy.errors import KernelError
from nftproxy.kernel.headers import PacketEnd, PacketHeader
from nftproxy.kernel.nflog import LoggedPacket, Nflog
from nftproxy.kernel.reader import Reader
from nftproxy.monitoring.refusals import MEANINGS, unlogged
from nftproxy.routes import Frontend, Key, Verdict
from nftproxy.table import schema
from nftproxy.table.packing import PROTOCOL_NAMES
from nftproxy.table.schema import Reason

PERIOD: Final = 10.0
"""Seconds between two lines about refusals that were too many to be logged."""


class RefusalLog:
    """Logs refusals; belongs to the event loop's thread."""

    def __init__(self, owner: Callable[[str], str]) -> None:
        """Take the group of NFLOG; UnusableError if that cannot be.

        `owner` names the Service that has a ClusterIP; empty if none does.
        """
        self._nflog = Nflog(schema.LOG_GROUP, schema.LOG_BYTES)
        self._reader = Reader()
        self._owner = owner
        self._some = asyncio.Event()
        self._before = self._unlogged() or Counter()

    async def follow(self) -> None:
        """Log until cancelled, then give the group back."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._nflog.socket, self._read)
        try:
            while True:
                await self._some.wait()
                self._some.clear()
                await asyncio.sleep(PERIOD)
                self._sum_up()
        finally:
            loop.remove_reader(self._nflog.socket)
            self._nflog.close()
            self._reader.close()

    def _read(self) -> None:
        for packet in self._nflog.packets():
            self._some.set()
            with suppress(ValueError):  # a rule of somebody else, who logs to this group
                self._log(packet, Reason(packet.prefix))

    def _log(self, packet: LoggedPacket, reason: Reason) -> None:
        header = packet.header
        asked, client = _place(header.destination), _place(header.source)
        protocol = _protocol(header)
        service = self._service(header, protocol, reason)
        logger.bind(
            service=service, client=client, asked=f"{asked}/{protocol}", reason=str(reason)
        ).info(
            "{}: refused {}, which asked for {}/{}: {} ({})",
            service or "no Service",
            client,
            asked,
            protocol,
            MEANINGS[reason],
            reason,
        )

    def _service(self, header: PacketHeader, protocol: str, reason: Reason) -> str:
        """Return the service port that refused; the Service alone where it has no such port."""
        address = unpack(header.destination.address)
        if reason is Reason.UNALLOCATED:
            return ""
        if reason is Reason.UNKNOWN_PORT:
            return self._owner(address)
        frontend = Frontend(address, protocol, header.destination.port)
        for declaration in (schema.NO_ENDPOINTS, schema.SERVICES):
            for node_port in (False, True):
                key = frontend._replace(address="").key if node_port else frontend.key
                name = declaration.name(header.family, node_port=node_port)
                if found := self._comment(name, key):
                    return found
        return ""

    def _comment(self, name: str, key: Key) -> str:
        with suppress(KernelError):
            counted = self._reader.element(name, key)
            if counted and isinstance(counted.element.value, Verdict):
                return counted.element.value.comment
        return ""

    def _unlogged(self) -> Counter[Reason] | None:
        with suppress(KernelError):
            return unlogged(self._reader)
        return None

    def _sum_up(self) -> None:
        """Log how many refusals were too many; a counter that is smaller has started again."""
        if (now := self._unlogged()) is None:  # the next sum has what this one could not read
            return
        before, self._before = self._before, now
        more = {
            reason: packets - before[reason] if packets >= before[reason] else packets
            for reason, packets in now.items()
        }
        if more := {reason: packets for reason, packets in more.items() if packets}:
            logger.info(
                "refusals: {} more were not logged, because at most {} a second are for each "
                "reason: {}; nftproxy top shows the busiest Services",
                sum(more.values()),
                schema.LOG_LINES,
                ", ".join(f"{packets} {reason}" for reason, packets in more.items()),
            )


def _protocol(header: PacketHeader) -> str:
    if header.is_error:
        return "icmp" if header.family is Family.IPv4 else "icmpv6"
    return PROTOCOL_NAMES.get(header.protocol, str(header.protocol))


def _place(end: PacketEnd) -> str:
    """Return an address with its port, if it has one."""
    host = unpack(end.address)
    return f"{bracketed(host)}:{end.port}" if end.port else host
