"""A service in the words of kube-proxy's ipvs mode.

Virtual servers, elements of ipsets, addresses of kube-ipvs0. Pure.

IPVS translates and balances; netfilter only masquerades, by sets, so that the number of its rules
is constant.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nftproxy.bench.modes.iptables_rules import MARK, MASQUERADE_MARK
from nftproxy.bench.modes.served import ServedPort
from nftproxy.bench.modes.xtables import Jump
from nftproxy.selection import Endpoint

DEVICE = "kube-ipvs0"
SETS = {
    "KUBE-LOOP-BACK": "hash:ip,port,ip maxelem 1048576",
    "KUBE-CLUSTER-IP": "hash:ip,port maxelem 1048576",
    "KUBE-EXTERNAL-IP": "hash:ip,port maxelem 1048576",
    "KUBE-EXTERNAL-IP-LOCAL": "hash:ip,port maxelem 1048576",
    "KUBE-LOAD-BALANCER": "hash:ip,port maxelem 1048576",
    "KUBE-LOAD-BALANCER-LOCAL": "hash:ip,port maxelem 1048576",
    "KUBE-NODE-PORT-TCP": "bitmap:port range 0-65535",
    "KUBE-NODE-PORT-LOCAL-TCP": "bitmap:port range 0-65535",
    "KUBE-NODE-PORT-UDP": "bitmap:port range 0-65535",
    "KUBE-NODE-PORT-LOCAL-UDP": "bitmap:port range 0-65535",
}
FILTER_CHAINS = ("KUBE-FORWARD",)
NAT_CHAINS = ("KUBE-SERVICES", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-POSTROUTING", MARK)
JUMPS = (
    Jump("nat", "OUTPUT", "KUBE-SERVICES", (), "kubernetes service portals"),
    Jump("nat", "PREROUTING", "KUBE-SERVICES", (), "kubernetes service portals"),
    Jump("nat", "POSTROUTING", "KUBE-POSTROUTING", (), "kubernetes postrouting rules"),
    Jump("filter", "FORWARD", "KUBE-FORWARD", (), "kubernetes forwarding rules"),
)
_OPTIONS = {"tcp": "-t", "udp": "-u"}


Servers = dict[str, tuple[str, tuple[str, ...]]]
"""By virtual server: its scheduler and its real servers, in the words of `ipvsadm -S` and `-R`."""


class IpvsRules(NamedTuple):
    """A service."""

    servers: Servers
    elements: frozenset[tuple[str, str]]  # set, element
    addresses: frozenset[str]


def render(ports: Sequence[ServedPort], node_addresses: Sequence[str]) -> IpvsRules:
    """Render a service; `node_addresses` accept NodePorts."""
    servers: Servers = {}
    elements: set[tuple[str, str]] = set()
    addresses: set[str] = set()
    for port in ports:
        where = [(port.cluster_ip, port.port, port.internal)]
        where += [(address, port.port, port.external) for address in port.outside]
        where += [
            (address, port.node_port, port.external) for address in node_addresses if port.node_port
        ]
        schedule = f"-s rr -p {port.affinity_seconds}" if port.affinity_seconds else "-s rr"
        for address, number, endpoints in where:
            servers[f"{_OPTIONS[port.proto]} {address}:{number}"] = (
                schedule,
                tuple(map(_real, endpoints)),
            )
        elements |= set(_elements(port))
        addresses |= {port.cluster_ip, *port.outside}
    return IpvsRules(servers, frozenset(elements), frozenset(addresses))


def merged(services: Iterable[IpvsRules]) -> Servers:
    """Return the virtual servers of several services."""
    return {server: found for rules in services for server, found in rules.servers.items()}


def parse(saved: str) -> Servers:
    """Return the virtual servers that `ipvsadm -S -n` printed."""
    found: Servers = {}
    for line in saved.splitlines():
        verb, option, address, rest = line.split(maxsplit=3)
        server = f"{option} {address}"
        if verb == "-A":
            found[server] = rest.strip(), ()
        else:
            schedule, real = found[server]
            found[server] = schedule, (*real, rest.strip())
    return found


def _real(endpoint: Endpoint) -> str:
    return f"-r {endpoint} -m -w 1"


def _elements(port: ServedPort) -> Iterator[tuple[str, str]]:
    for endpoint in port.here:
        yield (
            "KUBE-LOOP-BACK",
            f"{endpoint.address},{port.proto}:{endpoint.port},{endpoint.address}",
        )
    yield "KUBE-CLUSTER-IP", f"{port.cluster_ip},{port.proto}:{port.port}"
    for name, addresses in (
        ("KUBE-EXTERNAL-IP", port.external_ips),
        ("KUBE-LOAD-BALANCER", port.vips),
    ):
        for address in addresses:
            yield name, f"{address},{port.proto}:{port.port}"
            if port.external_local:
                yield f"{name}-LOCAL", f"{address},{port.proto}:{port.port}"
    if port.node_port:
        protocol = port.proto.upper()
        yield f"KUBE-NODE-PORT-{protocol}", str(port.node_port)
        if port.external_local:
            yield f"KUBE-NODE-PORT-LOCAL-{protocol}", str(port.node_port)


def nat_rules(pods: str) -> Iterator[str]:
    """Yield the rules of the nat table, the same in every sync."""
    bit = MASQUERADE_MARK.partition("/")[0]
    both = "dst,dst"
    yield "KUBE-SERVICES -s 127.0.0.0/8 -j RETURN"
    yield f"KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER {both} -j KUBE-LOAD-BALANCER"
    yield f"KUBE-SERVICES ! -s {pods} -m set --match-set KUBE-CLUSTER-IP {both} -j {MARK}"
    yield f"KUBE-SERVICES -m set --match-set KUBE-EXTERNAL-IP-LOCAL {both} -j ACCEPT"
    yield f"KUBE-SERVICES -m set --match-set KUBE-EXTERNAL-IP {both} -j {MARK}"
    yield "KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"
    yield f"KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP {both} -j ACCEPT"
    yield f"KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER {both} -j ACCEPT"
    for protocol in ("tcp", "udp"):
        start = f"KUBE-NODE-PORT -p {protocol} -m set --match-set"
        yield f"{start} KUBE-NODE-PORT-LOCAL-{protocol.upper()} dst -j RETURN"
        yield f"{start} KUBE-NODE-PORT-{protocol.upper()} dst -j {MARK}"
    yield f"KUBE-LOAD-BALANCER -m set --match-set KUBE-LOAD-BALANCER-LOCAL {both} -j RETURN"
    yield f"KUBE-LOAD-BALANCER -j {MARK}"
    yield "KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE"
    yield f"KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK} -j RETURN"
    yield f"KUBE-POSTROUTING -j MARK --xor-mark {bit}"
    yield "KUBE-POSTROUTING -j MASQUERADE --random-fully"
    yield f"{MARK} -j MARK --or-mark {bit}"


def filter_rules() -> Iterator[str]:
    """Yield the rules of the filter table, the same in every sync."""
    yield f"KUBE-FORWARD -m mark --mark {MASQUERADE_MARK} -j ACCEPT"
    yield "KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
