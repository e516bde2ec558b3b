"""Routes, addresses, links and neighbours of the maker's network namespace, asked one by one."""

import socket
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Self

from nftproxy.path.packet import text
from nftproxy.path.ruleset import Link, Way

UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST, UNREACHABLE = 1, 2, 3, 4, 5, 7
_BAD = {0x20: "failed", 0x01: "incomplete"}  # NUD_*
_GOOD = {
    0x02: "reachable",
    0x04: "stale",
    0x08: "delayed",
    0x10: "probed",
    0x40: "needs none",
    0x80: "permanent",
}


class Routing:
    """What the kernel says about addresses and interfaces."""

    def __init__(self) -> None:
        from pyroute2 import IPRoute

        self._route: Any = IPRoute()
        self._kinds: dict[bytes, int] = {}
        self._types: dict[tuple[bytes, str], int] = {}
        self._ways: dict[tuple[bytes, bytes, str, int], Way] = {}
        links = list(self._route.get_links())
        by_index = {message["index"]: message.get_attr("IFLA_IFNAME") for message in links}
        self.links = {link.name: link for link in (_link(message, by_index) for message in links)}
        self._names = by_index
        self._addresses: list[tuple[bytes, str]] = []
        self._networks: list[tuple[IPv4Network | IPv6Network, str]] = []
        for message in self._route.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if address:
                name = by_index.get(message["index"], "")
                self._addresses.append((_packed(address), name))
                self._networks.append(
                    (ip_network(f"{address}/{message['prefixlen']}", strict=False), name)
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def link(self, name: str) -> Link | None:
        """Return an interface."""
        return self.links.get(name)

    def addresses(self, link: str = "") -> list[bytes]:
        """Return the addresses of an interface, or of all."""
        return [address for address, name in self._addresses if not link or name == link]

    def address_of(self, link: str, size: int) -> bytes | None:
        """Return the first address of an interface; IPv6: the first that is not link-local."""
        own = [
            address for address, name in self._addresses if name == link and len(address) == size
        ]
        return next(
            (address for address in own if address[:2] != b"\xfe\x80"), next(iter(own), None)
        )

    def address_type(self, address: bytes, device: str) -> int:
        """Return what the kernel calls an address, as `fib ... type` does."""
        key = address, device
        if key not in self._types:
            self._types[key] = self._type(address, device)
        return self._types[key]

    def _type(self, address: bytes, device: str) -> int:
        if len(address) == 4:
            if address == b"\xff\xff\xff\xff" or address[0] == 0:
                return BROADCAST
            if 224 <= address[0] < 240:
                return MULTICAST
        elif address[0] == 0xFF:
            return MULTICAST
        way = self.to(address)
        if way.local:
            if (
                not device
                or (address, device) in self._addresses
                or (address[0] == 127 and device == "lo")
            ):
                return LOCAL
            return UNICAST
        if len(address) == 16:
            return (
                ANYCAST
                if self._kinds.get(address) == ANYCAST
                else UNREACHABLE
                if way.error
                else UNICAST
            )
        return BROADCAST if self._kinds.get(address) == BROADCAST else UNICAST

    def way(self, address: bytes, mark: int | None) -> str:
        """Return the interface that packets to an address leave by; empty without one."""
        way = self.to(address, mark=mark or 0)
        return "" if way.local or way.error else way.device

    def to(self, address: bytes, *, source: bytes = b"", iif: str = "", mark: int = 0) -> Way:
        """Ask for the way to an address.

        Of this node's own packets, or of packets that come in from somebody.
        """
        key = address, source, iif, mark
        if key not in self._ways:
            self._ways[key] = self._ask(address, source, iif, mark)
        return self._ways[key]

    def _ask(self, address: bytes, source: bytes, iif: str, mark: int) -> Way:
        from pyroute2.netlink.exceptions import NetlinkError

        wanted: dict[str, Any] = {
            "dst": text(address),
            "family": socket.AF_INET if len(address) == 4 else socket.AF_INET6,
        }
        if source:
            wanted["src"] = text(source)
        if iif:
            wanted["iif"] = self.links[iif].index
        if mark:
            wanted["mark"] = mark
        try:
            message = next(iter(self._route.route("get", **wanted)))
        except NetlinkError as error:
            return Way(error=_REASONS.get(error.code, error.args[-1]))
        metrics = message.get_attr("RTA_METRICS")
        device = self._names.get(message.get_attr("RTA_OIF"), "")
        mtu = (metrics and metrics.get_attr("RTAX_MTU")) or (
            self.links[device].mtu if device in self.links else 0
        )
        failed = (message.get_attr("RTA_CACHEINFO") or {}).get("rta_error", 0)
        kind = self._kinds[address] = message["type"]
        if kind == UNREACHABLE or (len(address) == 16 and failed):
            return Way(error="no route")
        gateway = message.get_attr("RTA_GATEWAY") or ""
        return Way(device, gateway, message.get_attr("RTA_PREFSRC") or "", kind == LOCAL, mtu)

    def neighbour(self, address: str, device: str) -> str:
        """Return what the kernel knows of a neighbour.

        Reachable, stale, failed and so on; empty when it has not asked yet.
        """
        for message in self._neighbours(address, device):
            state = message["state"]
            return _BAD.get(state) or _GOOD.get(state, "")
        return ""

    def _neighbours(self, address: str, device: str) -> list[Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        index = self.links[device].index
        return [
            message
            for message in self._route.get_neighbours(family=family, ifindex=index)
            if message.get_attr("NDA_DST") == address
        ]

    def belongs_to(self, address: str) -> str:
        """Return the interface whose own network holds an address, whether it is up or not.

        Empty if none does.
        """
        found = ip_address(address)
        return next((name for network, name in self._networks if found in network), "")

    def port_of(self, address: str, bridge: str) -> str:
        """Return the port of a bridge behind which an address is; empty when that is not known."""
        near = {one.get_attr("NDA_LLADDR") for one in self._neighbours(address, bridge)}
        for message in self._route.fdb("dump"):
            name = str(self._names.get(message["ifindex"], ""))
            at = self.links.get(name)
            if at and at.master == bridge and message.get_attr("NDA_LLADDR") in near:
                return name
        return ""

    def isolated(self, port: str) -> bool:
        """Whether a port of a bridge reaches no other isolated port of it."""
        for message in self._route.get_links(self.links[port].index):
            info = message.get_attr("IFLA_LINKINFO")
            slave = info and info.get_attr("IFLA_INFO_SLAVE_DATA")
            return bool(slave and slave.get_attr("IFLA_BRPORT_ISOLATED"))
        return False


REVERSE_PATH = "rp_filter: answers to the source would leave by another interface"
SOURCE_REFUSED = "the kernel takes no such source on this interface"
_REASONS = {
    101: "no route",  # ENETUNREACH
    113: "no route, or this node does not forward",  # EHOSTUNREACH
    18: REVERSE_PATH,  # EXDEV
    22: SOURCE_REFUSED,  # EINVAL
    13: "a route forbids it",  # EACCES
}


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _link(message: Any, by_index: dict[int, str]) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info and info.get_attr("IFLA_INFO_KIND")) or ""
    master = by_index.get(message.get_attr("IFLA_MASTER") or 0, "")
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        type=message["ifi_type"],
        group=message.get_attr("IFLA_GROUP") or 0,
        kind=kind,
        master=master or "",
        up=bool(message["flags"] & 1) and message.get_attr("IFLA_OPERSTATE") != "DOWN",
        mtu=message.get_attr("IFLA_MTU") or 0,
    )
