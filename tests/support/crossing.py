"""A router with somebody else's rules, and packets sent across it.

What became of each, seen where they arrive.

A client, a pod on a bridge and a server hang on the router. Frames are made by hand, so that
nothing is sent but what a test wants, and each carries a number by which it is known again however
often it is translated. Nobody answers: client, pod and server drop what they get after it was seen.
What the router takes for itself is counted behind all its other rules.
"""

import contextlib
import itertools
import select
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from nftproxy.kernel.channel import Channel
from nftproxy.lab import build, namespace
from nftproxy.lab.namespace import enter
from nftproxy.path.packet import ICMP, ICMPV6, TCP, UDP, Ends, Packet
from nftproxy.path.routing import Routing
from nftproxy.table import netlink
from nftproxy.table.netlink import Message, named
from tests.support.world import SLOW, unique_name

PATIENCE = 2.0 * SLOW
"""Seconds for what must come."""
SILENCE = 0.004 * SLOW
"""Seconds for what must not come: a veth hands a frame over before the sender goes on."""

_OBSERVER = """
table inet zz-observer {
    chain input {
        type filter hook input priority 400
        icmp type != echo-request accept
        icmpv6 type != echo-request accept
        tcp flags & rst == rst accept
        counter
    }
}
"""
_NO_RULES = "".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat", "filter"))
_QUIET = (
    "table inet quiet { chain pre { type filter hook prerouting priority -400; policy drop; }; }"
)
_MAC = {"client": "0a:00:00:00:01:02", "pod": "0a:00:00:00:02:02", "server": "0a:00:00:00:03:02"}
_ROUTER_MAC = {
    "client": "0a:00:00:00:01:01",
    "pod": "0a:00:00:00:02:01",
    "server": "0a:00:00:00:03:01",
}
NETWORK = {"client": 1, "pod": 2, "server": 3}
LINK = {"client": "in0", "pod": "br0", "server": "out0"}
PORT = {"client": "in0", "pod": "port0", "server": "out0"}


class Shot(NamedTuple):
    """A packet to send: from a place, or from the router itself ("")."""

    place: str
    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int

    def packet(self) -> Packet:
        """As the evaluation wants it."""
        kind = socket.AF_INET6 if ":" in self.source else socket.AF_INET
        ends = Ends(
            socket.inet_pton(kind, self.source),
            socket.inet_pton(kind, self.destination),
            self.source_port,
            self.destination_port,
        )
        return Packet(ends, self.protocol, iif=PORT.get(self.place, ""))


class Seen(NamedTuple):
    """What became of a packet.

    `where` it arrived: a place, "router", or nowhere (""); `refused`: somebody said so.
    """

    where: str
    source: str = ""
    destination: str = ""
    port: int = 0
    refused: bool = False


def address(place: str, *, six: bool, host: int = 2) -> str:
    """The address of a host in the network of a place; 1 is the router."""
    return f"fd0{NETWORK[place]}::{host}" if six else f"10.{NETWORK[place]}.0.{host}"


class Crossing:
    """The router and its neighbours."""

    def __init__(self) -> None:
        self.name = unique_name()
        self.router = f"{self.name}.router"
        self._places = {place: f"{self.name}.{place}" for place in NETWORK}
        self._taps: dict[str, socket.socket] = {}
        self._raw: dict[bool, socket.socket] = {}
        self._channel: Channel | None = None
        self.routing: Routing
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        for each in (self.router, *self._places.values()):
            namespace.create(each)
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in (*self._taps.values(), *self._raw.values()):
            each.close()
        if self._channel:
            self._channel.close()
            self.routing.close()
        build.remove([self.router, *self._places.values()])

    def _build(self) -> None:
        with enter(self.router):
            for path, value in _SYSCTLS.items():
                if (file := Path("/proc/sys") / path).exists():
                    file.write_text(value)
        lines = [
            "link set lo up",
            "link add br0 address 0a:00:00:00:02:01 type bridge stp_state 0 mcast_snooping 0",
            "link set br0 up",
        ]
        for place, netns in self._places.items():
            mac = _ROUTER_MAC[place] if place != "pod" else "0a:00:00:00:02:03"
            lines.append(
                f"link add {PORT[place]} address {mac} type veth peer name eth0 address "
                f"{_MAC[place]} netns {netns}"
            )
        lines += [
            "link set port0 master br0",
            *(f"link set {PORT[place]} up" for place in NETWORK),
            "link set in0 group 7",
        ]
        for place in NETWORK:
            for six in (False, True):
                lines.append(
                    f"addr add {address(place, six=six, host=1)}/{64 if six else 24} dev "
                    f"{LINK[place]}{' nodad' if six else ''}"
                )
                for host in range(2, 10):
                    lines.append(
                        f"neigh add {address(place, six=six, host=host)} lladdr {_MAC[place]} "
                        f"dev {LINK[place]} nud permanent"
                    )
        lines += [
            f"route add 10.9.0.0/16 via {address('server', six=False)}",
            f"route add fd09::/64 via {address('server', six=True)}",
        ]
        build.batch("ip", self.router, lines)
        for netns in self._places.values():
            with enter(netns):  # what the kernel itself sends would be taken for our packets
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
            build.batch("ip", netns, ["link set eth0 up"])
            nft(netns, _QUIET)
        for place, netns in self._places.items():
            with enter(netns):
                tap = socket.socket(
                    socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3)
                )
                tap.bind(("eth0", 3))
                self._taps[place] = tap
        with enter(self.router):
            self._channel = Channel()
            self.routing = Routing()
            for six in (False, True):
                raw = socket.socket(
                    socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
                )
                raw.setblocking(False)  # noqa: FBT003
                self._raw[six] = raw

    def load(self, name: str, text: str) -> None:
        """Replace all rules of the router by nft text, or by what iptables-restore reads."""
        text_of_nft = "" if name.endswith((".rules", ".legacy")) else text
        nft(self.router, "flush ruleset\n" + _OBSERVER + text_of_nft)
        if name.endswith(".rules"):
            run(self.router, "iptables-nft-restore", text)
        if name.endswith(".legacy"):
            for program in ("iptables", "ip6tables"):
                run(self.router, f"{program}-legacy-restore", _NO_RULES)
                run(self.router, f"{program}-legacy-restore", text)

    def send(self, shot: Shot, *, expected: bool) -> Seen:
        """Send a packet and say what became of it. `expected`: something is to be seen of it."""
        number = next(self._numbers)
        before = self._taken()
        content = _datagram(shot, number)
        if shot.place:
            ether = bytes.fromhex((_ROUTER_MAC[shot.place] + _MAC[shot.place]).replace(":", ""))
            self._taps[shot.place].send(
                ether + (b"\x86\xdd" if ":" in shot.source else b"\x08\x00") + content
            )
        else:
            with contextlib.suppress(PermissionError):  # a rule dropped it
                self._raw[":" in shot.source].sendto(content, (shot.destination, 0))
        end = time.monotonic() + (PATIENCE if expected else SILENCE)
        seen = Seen("")
        while True:
            for place, tap in self._taps.items():
                seen = self._look(place, tap, number, seen)
            if self._taken() > before:
                return Seen("router", refused=False)
            left = end - time.monotonic()
            if seen != Seen("") or left <= 0:
                return seen
            select.select(list(self._taps.values()), [], [], min(left, 0.01))

    def _look(self, place: str, tap: socket.socket, number: int, seen: Seen) -> Seen:
        while True:
            try:
                frame, origin = tap.recvfrom(2048)
            except BlockingIOError:
                return seen
            if origin[2] == socket.PACKET_OUTGOING:
                continue
            found = _parse(frame[14:], number)
            if found == "refused":
                seen = seen._replace(refused=True)
            elif isinstance(found, tuple):
                seen = Seen(place, *found)

    def _taken(self) -> int:
        """How many packets the router has taken for itself."""
        assert self._channel
        wanted = named(netlink.RuleAttribute.TABLE, "zz-observer") + named(
            netlink.RuleAttribute.CHAIN, "input"
        )
        *_, message = self._channel._exchange(Message.GET_RULE, netlink.DUMP, wanted, netlink.INET)[
            0
        ]
        packed = netlink.parts(message[4:])[netlink.RuleAttribute.EXPRESSIONS]
        counter = netlink.parts(
            netlink.parts(netlink.parts(packed)[1])[netlink.ExpressionAttribute.DATA]
        )
        return int.from_bytes(bytes(counter[netlink.Counter.PACKETS]))


_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv6/icmp/ratemask": "2",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}


def nft(netns: str, text: str) -> None:
    """Load nft text in a namespace."""
    run(netns, "nft -f -", text)


def run(netns: str, command: str, text: str) -> None:
    """Run a program in a namespace with an input."""
    with enter(netns):
        done = subprocess.run(
            command.split(), input=text, text=True, capture_output=True, check=False
        )
    assert done.returncode == 0, f"{done.stderr}\n{text}"


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _datagram(shot: Shot, number: int) -> bytes:
    """A whole packet without its frame, with right checksums."""
    six = ":" in shot.source
    kind = socket.AF_INET6 if six else socket.AF_INET
    source, destination = (
        socket.inet_pton(kind, shot.source),
        socket.inet_pton(kind, shot.destination),
    )
    mark = struct.pack(">I", number)
    if shot.protocol == TCP:
        body = struct.pack(
            ">HHIIBBHHH", shot.source_port, shot.destination_port, number, 0, 0x50, 2, 64240, 0, 0
        )
        place = 16
    elif shot.protocol == UDP:
        body = struct.pack(">HHHH", shot.source_port, shot.destination_port, 16, 0) + b"nftp" + mark
        place = 6
    else:
        body = (
            struct.pack(">BBHHH", 8 if shot.protocol == ICMP else 128, 0, 0, shot.source_port, 1)
            + b"nftp"
            + mark
        )
        place = 2
    pseudo = (
        source
        + destination
        + struct.pack(
            ">II" if six else ">HH",
            *((len(body), shot.protocol) if six else (shot.protocol, len(body))),
        )
    )
    if shot.protocol == ICMP:
        pseudo = b""
    total = _checksum(pseudo + body)
    body = body[:place] + struct.pack(">H", total or 0xFFFF) + body[place + 2 :]
    if six:
        return (
            struct.pack(">IHBB", 6 << 28, len(body), shot.protocol, 64)
            + source
            + destination
            + body
        )
    head = (
        struct.pack(
            ">BBHHHBBH", 0x45, 0, 20 + len(body), number & 0xFFFF, 0x4000, 64, shot.protocol, 0
        )
        + source
        + destination
    )
    return head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + body


def _parse(data: bytes, number: int) -> tuple[str, str, int] | str:
    """Source, destination and port of our packet, "refused" if this is an answer that refuses it,
    or nothing.
    """
    if data[0] >> 4 == 4:
        protocol, body = data[9], data[20:]
        source, destination = (
            socket.inet_ntop(socket.AF_INET, data[12:16]),
            socket.inet_ntop(socket.AF_INET, data[16:20]),
        )
    elif data[0] >> 4 == 6:
        protocol, body = data[6], data[40:]
        source, destination = (
            socket.inet_ntop(socket.AF_INET6, data[8:24]),
            socket.inet_ntop(socket.AF_INET6, data[24:40]),
        )
    else:
        return ""
    mark = struct.pack(">I", number)
    if protocol == TCP:
        if body[13] & 4 and body[8:12] == struct.pack(">I", number + 1):
            return "refused"
        return (
            (source, destination, int.from_bytes(body[2:4]))
            if body[4:8] == mark and body[13] & 2
            else ""
        )
    if protocol == UDP:
        return (
            (source, destination, int.from_bytes(body[2:4])) if body[8:16] == b"nftp" + mark else ""
        )
    if protocol in {ICMP, ICMPV6} and body[0] in {8, 128}:
        return (source, destination, 0) if body[8:16] == b"nftp" + mark else ""
    if (protocol == ICMP and body[0] == 3) or (protocol == ICMPV6 and body[0] == 1):
        inner = body[8:]
        held = inner[20:] if inner[:1] and inner[0] >> 4 == 4 else inner[40:]
        return "refused" if mark in {held[4:8], held[12:16]} else ""
    return ""
