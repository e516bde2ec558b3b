"""Connections to Services of which no answer is seen, by service port and endpoint.

Conntrack knows them: it has translated their destination and seen no reply. The kernel selects
them, so that a reading takes only these apart, and nothing is counted where nobody reads. A
connection counts if two readings in a row find it, so that it has waited for the time between them.
"""

from collections import Counter
from dataclasses import dataclass, field

from nftproxy.address import Family, unpack
from nftproxy.errors import KernelError
from nftproxy.kernel.headers import PacketEnd
from nftproxy.kernel.reader import Reader
from nftproxy.node import ctdump
from nftproxy.node.ctdump import CtEntry
from nftproxy.routes import Frontend, Verdict
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.packing import PROTOCOL_NAMES


@dataclass(slots=True)
class Waiting:
    """The connections of a service port that wait for an answer, by endpoint."""

    endpoints: Counter[Endpoint] = field(default_factory=Counter)
    frontends: set[tuple[Family, Frontend]] = field(default_factory=set)


class Unanswered:
    """Readings of conntrack; for one thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._before: dict[bytes, CtEntry] = {}

    def read(self) -> dict[str, Waiting]:
        """Return who waits since the reading before; KernelError if conntrack cannot be read."""
        seen: dict[bytes, CtEntry] = {}
        count: Counter[tuple[int, PacketEnd, PacketEnd]] = Counter()
        try:
            for identity, entry in ctdump.unanswered(self._before):
                seen[identity] = entry
                if identity in self._before:
                    count[entry.protocol, entry.asked, entry.answers] += 1
        except OSError as error:
            raise KernelError(
                f"conntrack cannot be read: {error.strerror}",
                hint="it needs the capability NET_ADMIN and the module nf_conntrack_netlink",
            ) from error
        self._before = seen
        found: dict[str, Waiting] = {}
        names: dict[tuple[int, PacketEnd], tuple[str, Frontend] | None] = {}
        for (protocol, asked, answers), number in count.items():
            if (protocol, asked) not in names:
                names[protocol, asked] = self._service(protocol, asked)
            if (known := names[protocol, asked]) is None:  # another table translated it
                continue
            name, frontend = known
            one = found.setdefault(name, Waiting())
            one.endpoints[Endpoint(unpack(answers.address), answers.port)] += number
            one.frontends.add((asked.family, frontend))
        return found

    def _service(self, protocol: int, asked: PacketEnd) -> tuple[str, Frontend] | None:
        """Return the service port that has a frontend, and the frontend as it is in the table."""
        if (proto := PROTOCOL_NAMES.get(protocol)) is None:
            return None
        for address in (unpack(asked.address), ""):
            frontend = Frontend(address, proto, asked.port)
            name = schema.SERVICES.name(asked.family, node_port=frontend.is_node_port)
            counted = self._reader.element(name, frontend.key)
            if counted and isinstance(counted.element.value, Verdict):
                return counted.element.value.comment, frontend
        return None
