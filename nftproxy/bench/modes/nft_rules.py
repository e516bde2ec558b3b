"""A service in the words of kube-proxy's nftables mode (contract 5).

Chains, elements and sets, in nft syntax. Pure.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nftproxy.bench.modes.served import ServedPort
from nftproxy.selection import Endpoint

TABLE = "ip kube-proxy"
_BASE = (  # contract 5.2
    ("filter-prerouting-pre-dnat", "filter", "prerouting", -110),
    ("filter-output-pre-dnat", "filter", "output", -110),
    ("filter-input", "filter", "input", 0),
    ("filter-forward", "filter", "forward", 0),
    ("filter-output", "filter", "output", 0),
    ("nat-prerouting", "nat", "prerouting", -100),
    ("nat-output", "nat", "output", -100),
    ("nat-postrouting", "nat", "postrouting", 100),
)
_KEY = "ipv4_addr . inet_proto . inet_service"
CONTAINERS = {  # contract 5.3, without nodeport-ips, which every full sync refills
    "cluster-ips": ("set", "type ipv4_addr", "Active ClusterIPs"),
    "service-ips": (
        "map",
        f"type {_KEY} : verdict",
        "ClusterIP, ExternalIP and LoadBalancer IP traffic",
    ),
    "firewall-ips": (
        "map",
        f"type {_KEY} : verdict",
        "destinations that are subject to LoadBalancerSourceRanges",
    ),
    "no-endpoint-services": (
        "map",
        f"type {_KEY} : verdict",
        "vmap to drop or reject packets to services with no endpoints",
    ),
    "no-endpoint-nodeports": (
        "map",
        "type inet_proto . inet_service : verdict",
        "vmap to drop or reject packets to service nodeports with no endpoints",
    ),
    "service-nodeports": ("map", "type inet_proto . inet_service : verdict", "NodePort traffic"),
    "hairpin-connections": ("set", f"type ipv4_addr . {_KEY}", "service hairpin connections"),
}
# Contract 5.4: chains with their rules, and the jumps to them; a chain stands before its first use
_FILLED = {
    "nodeport-endpoints-check": ("ct state new ", ("filter-input",)),
    "service-endpoints-check": (
        "ct state new ",
        ("filter-input", "filter-forward", "filter-output"),
    ),
    "firewall-check": ("ct state new ", ("filter-prerouting-pre-dnat", "filter-output-pre-dnat")),
    "services": ("", ("nat-output", "nat-prerouting")),
    "masquerading": ("", ("nat-postrouting",)),
    "cluster-ips-check": ("ct state new ", ("filter-forward", "filter-output")),
}
_SET_MARK = "mark set mark or 0x00004000"


class NftElement(NamedTuple):
    """An element of a container; the verdict is empty in a set."""

    container: str
    key: str
    verdict: str = ""
    comment: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """Its unique key."""
        return self.container, self.key

    @property
    def added(self) -> str:
        """The command that adds it."""
        comment = f' comment "{self.comment}"' if self.comment else ""
        verdict = f" : {self.verdict}" if self.verdict else ""
        return f"add element {TABLE} {self.container} {{ {self.key}{comment}{verdict} }}"

    @property
    def deleted(self) -> str:
        """The command that deletes it."""
        return f"delete element {TABLE} {self.container} {{ {self.key} }}"


class NftRules(NamedTuple):
    """A service.

    Elements, chains with their rules, and affinity sets with their timeouts in seconds.
    """

    elements: tuple[NftElement, ...]
    chains: dict[str, tuple[str, ...]]
    sets: dict[str, int]


def render(ports: Sequence[ServedPort], pods: str) -> NftRules:
    """Render a service; `pods` is the network of local pods."""
    elements: list[NftElement] = []
    chains: dict[str, tuple[str, ...]] = {}
    sets: dict[str, int] = {}
    for port in ports:
        each = _NftPort(port, pods)
        elements += each.elements()
        chains |= each.chains()
        sets |= each.sets()
    return NftRules(tuple(elements), chains, sets)


def program(
    pods: str, node_addresses: Sequence[str], service_cidrs: Sequence[str]
) -> Iterator[str]:
    """Yield the commands for everything except services.

    The start of a process's first full sync (contract 5.7.3).
    """
    yield f'add table {TABLE} {{ comment "rules for kube-proxy" ; }}'
    for name, *_ in _BASE:
        yield f"add chain {TABLE} {name}"
        yield f"delete chain {TABLE} {name}"
    for name, kind, hook, priority in _BASE:
        yield f"add chain {TABLE} {name} {{ type {kind} hook {hook} priority {priority} ; }}"
        yield f"flush chain {TABLE} {name}"
    for name, (condition, sources) in _FILLED.items():
        yield f"add chain {TABLE} {name}"
        yield f"flush chain {TABLE} {name}"
        for source in sources:
            yield f"add rule {TABLE} {source} {condition}jump {name}"
    for name, (kind, declaration, comment) in CONTAINERS.items():
        yield f'add {kind} {TABLE} {name} {{ {declaration} ; comment "{comment}" ; }}'
    yield (
        f"add set {TABLE} nodeport-ips "
        f'{{ type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }}'
    )
    yield f"flush set {TABLE} nodeport-ips"
    for address in node_addresses:
        yield f"add element {TABLE} nodeport-ips {{ {address} }}"
    yield (
        f"add chain {TABLE} reject-chain "
        f'{{ comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }}'
    )
    yield f"flush chain {TABLE} reject-chain"
    for rule in _rules(pods, service_cidrs):
        yield f"add rule {TABLE} {rule}"


def _rules(pods: str, service_cidrs: Sequence[str]) -> Iterator[str]:
    """Yield the rules of the common chains (contract 5.4)."""
    target, nodeport = (
        "ip daddr . meta l4proto . th dport",
        "ip daddr @nodeport-ips meta l4proto . th dport",
    )
    yield (
        "masquerading mark and 0x00004000 != 0 mark set mark xor 0x00004000 masquerade fully-random"
    )
    yield (
        "masquerading ct status dnat ip saddr . ip daddr . meta l4proto . th dport "
        "@hairpin-connections masquerade fully-random"
    )
    yield (
        'cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid '
        'ports of ClusterIPs"'
    )
    if service_cidrs:
        cidrs = ", ".join(service_cidrs)
        yield (
            f'cluster-ips-check ip daddr {{ {cidrs} }} drop comment "Drop traffic to '
            'unallocated ClusterIPs"'
        )
    yield "reject-chain reject"
    yield f"service-endpoints-check {target} vmap @no-endpoint-services"
    yield f"nodeport-endpoints-check {nodeport} vmap @no-endpoint-nodeports"
    yield f"firewall-check {target} vmap @firewall-ips"
    outsiders = f"ip daddr @cluster-ips ip saddr != {pods}"
    yield (
        f'services {outsiders} {_SET_MARK} comment "masquerade clusterIP traffic from outside '
        'cluster"'
    )
    yield f"services {target} vmap @service-ips"
    yield f"services {nodeport} vmap @service-nodeports"


class _NftPort:
    """The names, elements and rules of one service port."""

    def __init__(self, port: ServedPort, pods: str) -> None:
        self.port = port
        self.pods = pods
        self.path = f"{port.service}/{port.proto}/{port.port_name}"
        base = _name(self.path)
        self.service, self.local, self.external = (
            f"{prefix}-{base}" for prefix in ("service", "local", "external")
        )

    def elements(self) -> Iterator[NftElement]:
        """Yield the elements of a service port (contract 5.3)."""
        port = self.port
        for endpoint in port.here:
            yield NftElement(
                "hairpin-connections",
                f"{endpoint.address} . {endpoint.address} . {port.proto} . {endpoint.port}",
            )
        yield NftElement("cluster-ips", port.cluster_ip)
        key = f"{port.cluster_ip} . {port.proto} . {port.port}"
        if port.internal:
            yield NftElement(
                "service-ips", key, f"goto {self.local if port.internal_local else self.service}"
            )
        else:
            yield self._refused("no-endpoint-services", key)
        for address in port.outside:
            yield from self._outside(
                "service-ips", "no-endpoint-services", f"{address} . {port.proto} . {port.port}"
            )
        if port.node_port:
            yield from self._outside(
                "service-nodeports", "no-endpoint-nodeports", f"{port.proto} . {port.node_port}"
            )

    def chains(self) -> dict[str, tuple[str, ...]]:
        """Return the chains of a service port with their rules (contract 5.5)."""
        port = self.port
        found: dict[str, Iterator[str]] = {}
        if port.affinity_seconds:
            found |= {
                self._endpoint(endpoint): self._remembering(endpoint) for endpoint in port.reachable
            }
        if port.cluster:
            found[self.service] = self._choice(port.cluster)
        if port.local:
            found[self.local] = self._choice(port.local)
        if port.is_external and port.anywhere:
            found[self.external] = self._outsiders()
        return {
            chain: tuple(f"add rule {TABLE} {chain} {rule}" for rule in rules)
            for chain, rules in found.items()
        }

    def sets(self) -> dict[str, int]:
        """Return the affinity sets (contract 5.5.3)."""
        seconds = self.port.affinity_seconds
        return (
            {self._affinity(endpoint): seconds for endpoint in self.port.reachable}
            if seconds
            else {}
        )

    def _outside(self, container: str, refusing: str, key: str) -> Iterator[NftElement]:
        if self.port.anywhere:
            yield NftElement(container, key, f"goto {self.external}")
        if not self.port.external:
            yield self._refused(refusing, key)

    def _refused(self, container: str, key: str) -> NftElement:
        name = (
            f"{self.port.service}:{self.port.port_name}"
            if self.port.port_name
            else str(self.port.service)
        )
        return NftElement(
            container, key, "drop" if self.port.anywhere else "goto reject-chain", name
        )

    def _outsiders(self) -> Iterator[str]:
        if not self.port.external_local:
            yield f'{_SET_MARK} comment "masquerade"'
            yield f"goto {self.service}"
            return
        if self.port.cluster:
            yield f'ip saddr {self.pods} goto {self.service} comment "short-circuit pod traffic"'
            yield f'fib saddr type local {_SET_MARK} comment "masquerade local traffic"'
            yield f'fib saddr type local goto {self.service} comment "short-circuit local traffic"'
        if self.port.local:
            yield f"goto {self.local}"

    def _choice(self, endpoints: Sequence[Endpoint]) -> Iterator[str]:
        random = f"numgen random mod {len(endpoints)}"
        if not self.port.affinity_seconds:
            slots = " , ".join(
                f"{slot} : {e.address} . {e.port}" for slot, e in enumerate(endpoints)
            )
            yield (
                f"meta l4proto {self.port.proto} dnat ip addr . port to {random} map {{ {slots} }}"
            )
            return
        for endpoint in endpoints:
            yield f"ip saddr @{self._affinity(endpoint)} goto {self._endpoint(endpoint)}"
        slots = " , ".join(
            f"{slot} : goto {self._endpoint(endpoint)}" for slot, endpoint in enumerate(endpoints)
        )
        yield f"{random} vmap {{ {slots} }}"

    def _remembering(self, endpoint: Endpoint) -> Iterator[str]:
        yield f"update @{self._affinity(endpoint)} {{ ip saddr }}"
        yield f"meta l4proto {self.port.proto} dnat to {endpoint}"

    def _endpoint(self, endpoint: Endpoint) -> str:
        return f"endpoint-{_name(f'{self.path}__{endpoint.address}/{endpoint.port}')}"

    def _affinity(self, endpoint: Endpoint) -> str:
        return f"affinity-{_name(f'{self.path}__{endpoint.address}/{endpoint.port}')}"


def _name(path: str) -> str:
    """Return a name: the start of a digest, then the path, cut to 240 characters (contract 5.6)."""
    digest = base64.b32encode(hashlib.sha256(path.encode()).digest())[:8].decode()
    name = f"{digest}-{path}"
    return name if len(name) <= 240 else f"{name[:237]}..."
