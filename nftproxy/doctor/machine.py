"""What the kernel says of itself, of interfaces, routes and conntrack, in /proc and by netlink."""

import errno
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nftproxy.address import Network, pack, parse_network
from nftproxy.doctor.facts import ConntrackFill, CountedFact, Interface, RouteFact, Tracking
from nftproxy.doctor.model import Unknown
from nftproxy.errors import AddressError

_NET = Path("/proc/thread-self/net")
_KINDS = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_MAIN = 254
_FAILED = 0x20  # NUD_FAILED
_BETWEEN_LOOKS = 1.0  # seconds
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/ipv4/conf/all/rp_filter",
)


def sysctls(interfaces: Iterable[Interface]) -> dict[str, str]:
    """Return the settings that checks look at, by path below /proc/sys, as far as they exist."""
    names = [interface.name for interface in interfaces]
    paths = [
        *_SYSCTLS,
        *(f"net/ipv4/conf/{name}/{key}" for name in names for key in ("rp_filter", "forwarding")),
        *(f"net/ipv6/conf/{name}/forwarding" for name in names),
    ]
    found = {}
    for path in paths:
        with suppress(OSError):
            found[path] = Path("/proc/sys", path).read_text().strip()
    return found


def interfaces() -> tuple[Interface, ...]:
    """Return the interfaces of this network namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        links = list(netlink.get_links())
        held: dict[int, list[tuple[str, int]]] = {}
        for message in netlink.get_addr():
            # IFA_LOCAL is the own end of a point-to-point link; IPv6 has only IFA_ADDRESS.
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                held.setdefault(message["index"], []).append((text, message["prefixlen"]))
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
    return tuple(
        Interface(
            names[link["index"]],
            _kind(link),
            names.get(link.get_attr("IFLA_MASTER"), ""),
            tuple(held.get(link["index"], ())),
        )
        for link in links
    )


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str((info and info.get_attr("IFLA_INFO_KIND")) or "")


def routes() -> tuple[RouteFact, ...]:
    """Return the routes of the main table, of both families."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        return tuple(
            route
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in netlink.get_routes(family=family, table=_MAIN)
            if (route := _route(message, names))
        )


def _route(message: Any, names: dict[int, str]) -> RouteFact | None:
    four = message["family"] == socket.AF_INET
    text = message.get_attr("RTA_DST") or ("0.0.0.0" if four else "::")  # noqa: S104 - not bound
    try:
        network = parse_network(f"{text}/{message['dst_len']}")
    except AddressError:
        return None
    paths = message.get_attr("RTA_MULTIPATH") or ()
    device = message.get_attr("RTA_OIF") or next((path["oif"] for path in paths), 0)
    return RouteFact(
        network,
        names.get(device, ""),
        message.get_attr("RTA_GATEWAY") or "",
        _KINDS.get(message["type"], "other"),
    )


def silent() -> frozenset[tuple[str, str]]:
    """Return the neighbours that do not answer: address and interface."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        return frozenset(
            (message.get_attr("NDA_DST"), names.get(message["ifindex"], ""))
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in netlink.get_neighbours(family=family)
            if message["state"] & _FAILED
        )


def filtered() -> int | Unknown:
    """Return how many packets rp_filter has dropped in this network namespace."""
    try:
        lines = (_NET / "netstat").read_text().splitlines()
    except OSError as error:
        return Unknown(f"{_NET}/netstat cannot be read: {error.strerror}")
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        row = dict(zip(names.split(), values.split(), strict=False))
        if "IPReversePathFilter" in row:
            return int(row["IPReversePathFilter"])
    return Unknown("this kernel does not count what rp_filter drops")


def fill(settings: dict[str, str]) -> ConntrackFill | Unknown:
    """Return how full the conntrack table of this network namespace is."""
    try:
        return ConntrackFill(
            int(settings["net/netfilter/nf_conntrack_count"]),
            int(settings["net/netfilter/nf_conntrack_max"]),
        )
    except (KeyError, ValueError):
        return Unknown("/proc/sys/net/netfilter/nf_conntrack_count is not there")


def tracking() -> CountedFact | Unknown:
    """Return conntrack's counters twice, as an old loss differs from one that goes on."""
    try:
        before = _tracking()
        time.sleep(_BETWEEN_LOOKS)
        return CountedFact(before, _tracking())
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Unknown(
                f"{_NET}/stat/nf_conntrack is not there: the kernel keeps no such figures"
            )
        return Unknown(f"{_NET}/stat/nf_conntrack cannot be read: {error.strerror}")


def _tracking() -> Tracking:
    head, *rows = (_NET / "stat/nf_conntrack").read_text().splitlines()
    names = head.split()
    sums = dict.fromkeys(names, 0)
    for row in rows:
        for name, value in zip(names, row.split(), strict=True):
            sums[name] += int(value, 16)
    return Tracking(sums["drop"], sums["early_drop"], sums["insert_failed"])


def overlap(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common."""
    if one.family is not other.family:
        return False
    length = min(one.length, other.length)
    shift = one.family.bits - length
    return _number(one) >> shift == _number(other) >> shift


def inside(one: Network, other: Network) -> bool:
    """Whether the first network is part of the second."""
    return one.length >= other.length and overlap(one, other)


def _number(network: Network) -> int:
    return int.from_bytes(pack(network.text))


def networks(texts: Iterable[str]) -> Iterator[Network]:
    """Yield those texts that are networks."""
    for text in texts:
        with suppress(AddressError):
            yield parse_network(text)
