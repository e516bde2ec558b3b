"""A service in the words of kube-proxy's iptables mode.

Rules for iptables-restore, as that mode is known to write them.

    KUBE-SERVICES    every ClusterIP, external IP and VIP, one rule each, in turn; last of all the
                     jump to KUBE-NODEPORTS
    KUBE-NODEPORTS   every NodePort: one rule for connections to 127.0.0.0/8, which the original
                     counts, and one for all others
    KUBE-EXT-*       traffic from outside: masquerade, or for policy Local send pods and the node
                     on to all endpoints
    KUBE-SVC-*       one of all endpoints: a rule per endpoint, with probabilities 1/n, 1/(n-1) ... 1
    KUBE-SVL-*       one of the endpoints on this node
    KUBE-SEP-*       one endpoint: masquerade its packets to itself, DNAT

The hash in a chain's name is part of that mode's interface: administrators look for it. Pure.
"""  # noqa: E501

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nftproxy.bench.modes.served import ServedPort
from nftproxy.selection import Endpoint

MASQUERADE_MARK = "0x00004000/0x00004000"
MARK = "KUBE-MARK-MASQ"
FILTER_CHAINS = (
    "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL", "KUBE-FIREWALL",
)  # fmt: skip
NAT_CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", MARK)
OWN = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-")


class IptablesRules(NamedTuple):
    """A service.

    Rules of the filter table, dispatching rules of the nat table, and the rules of its own chains.
    """

    filter: tuple[str, ...]
    dispatch: tuple[str, ...]
    chains: dict[str, tuple[str, ...]]


def render(ports: Sequence[ServedPort], pods: str, *, comments: bool) -> IptablesRules:
    """Return the rules of a service.

    `pods` is the network of local pods, `comments` is off in a large cluster.
    """
    refusals: list[str] = []
    dispatch: list[str] = []
    chains: dict[str, tuple[str, ...]] = {}
    for port in ports:
        each = _IptablesPort(port, pods, comments=comments)
        refusals += each.refusals()
        dispatch += each.dispatch()
        chains |= each.chains()
    return IptablesRules(tuple(refusals), tuple(dispatch), chains)


def before_filter() -> Iterator[str]:
    """Yield the first rules in the filter table of every sync."""
    yield (
        'KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! '
        "-s 127.0.0.0/8"
        " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
    )


def after_filter() -> Iterator[str]:
    """Yield the last rules in the filter table of every sync."""
    yield "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield (
        'KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark '
        f"{MASQUERADE_MARK} -j ACCEPT"
    )
    yield (
        'KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule"'
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )


def before_nat() -> Iterator[str]:
    """Yield the first rules in the nat table of every sync."""
    bit = MASQUERADE_MARK.partition("/")[0]
    yield f"KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK} -j RETURN"
    yield f"KUBE-POSTROUTING -j MARK --xor-mark {bit}"
    yield (
        'KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j '
        "MASQUERADE --random-fully"
    )
    yield f"{MARK} -j MARK --or-mark {bit}"


def after_nat() -> Iterator[str]:
    """Yield the last rules in the nat table of every sync."""
    yield (
        'KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the '
        'last rule in this chain"'
        " -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    )


class _IptablesPort:
    """The names and rules of one service port."""

    def __init__(self, port: ServedPort, pods: str, *, comments: bool) -> None:
        self.port = port
        self.pods = pods
        self.title = f"{port.service}:{port.port_name}" if port.port_name else str(port.service)
        self.protocol = f"-m {port.proto} -p {port.proto}"
        self.comments = comments
        identity = _hash(self.title + port.proto)
        self.svc, self.svl, self.ext = (f"KUBE-{kind}-{identity}" for kind in ("SVC", "SVL", "EXT"))

    def refusals(self) -> Iterator[str]:
        """Yield the rules that refuse or drop without an endpoint (contract 2.5)."""
        port = self.port
        if not port.internal:
            yield self._refuse(
                "KUBE-SERVICES", f"-d {port.cluster_ip}", port.port, rejects=not port.anywhere
            )
        if not port.external:
            for address in port.outside:
                yield self._refuse(
                    "KUBE-EXTERNAL-SERVICES", f"-d {address}", port.port, rejects=not port.anywhere
                )
            if port.node_port:
                local = "-m addrtype --dst-type LOCAL"
                yield self._refuse(
                    "KUBE-EXTERNAL-SERVICES",
                    local,
                    port.node_port,
                    rejects=not port.anywhere,
                    first=True,
                )

    def dispatch(self) -> Iterator[str]:
        """Yield the rules that send the service's addresses to its chains."""
        port = self.port
        if port.internal:
            chain = self.svl if port.internal_local else self.svc
            yield (
                f"KUBE-SERVICES {self._comment('cluster IP')} {self._to(port.cluster_ip)} -j "
                f"{chain}"
            )
        if not port.anywhere:
            return
        for address in port.external_ips:
            yield f"KUBE-SERVICES {self._comment('external IP')} {self._to(address)} -j {self.ext}"
        for address in port.vips:
            yield (
                f"KUBE-SERVICES {self._comment('loadbalancer IP')} {self._to(address)} -j "
                f"{self.ext}"
            )
        if port.node_port:
            start = f"KUBE-NODEPORTS -m comment --comment {self.title} {self.protocol}"
            yield f"{start} -d 127.0.0.0/8 --dport {port.node_port} -j {self.ext}"
            yield f"{start} --dport {port.node_port} -j {self.ext}"

    def chains(self) -> dict[str, tuple[str, ...]]:
        """Return the service port's own chains, in the order in which they are written."""
        port = self.port
        found: dict[str, list[str]] = {}
        if port.is_external and port.anywhere:
            found[self.ext] = list(self._external())
        if port.cluster:
            found[self.svc] = []
        if port.local:
            found[self.svl] = []
        if port.internal:
            chain = self.svl if port.internal_local else self.svc
            outsiders = (
                f"{self._comment('cluster IP')} {self._to(port.cluster_ip)} ! -s "
                f"{self.pods} -j {MARK}"
            )
            found[chain].append(outsiders)
        if port.cluster:
            found[self.svc] += self._choice(port.cluster)
        if port.local:
            found[self.svl] += self._choice(port.local)
        for endpoint in port.reachable:
            found[self._endpoint(endpoint)] = list(self._translate(endpoint))
        return {chain: tuple(f"{chain} {rule}" for rule in rules) for chain, rules in found.items()}

    def _external(self) -> Iterator[str]:
        destinations = f"{self.title} external destinations"
        if not self.port.external_local:
            yield f'-m comment --comment "masquerade traffic for {destinations}" -j {MARK}'
            yield f"-j {self.svc}"
            return
        if self.port.cluster:
            yield (
                f'-m comment --comment "pod traffic for {destinations}" -s {self.pods} -j '
                f"{self.svc}"
            )
            local = "-m addrtype --src-type LOCAL"
            yield (
                f'-m comment --comment "masquerade LOCAL traffic for {destinations}" {local} '
                f"-j {MARK}"
            )
            yield (
                f'-m comment --comment "route LOCAL traffic for {destinations}" {local} -j '
                f"{self.svc}"
            )
        if self.port.local:
            yield f"-j {self.svl}"

    def _choice(self, endpoints: Sequence[Endpoint]) -> Iterator[str]:
        """Yield the rules of a chain that picks an endpoint.

        The client's previous one, else any.
        """
        if self.port.affinity_seconds:
            for endpoint in endpoints:
                chain = self._endpoint(endpoint)
                known = (
                    f"-m recent --name {chain} --rcheck --seconds "
                    f"{self.port.affinity_seconds} --reap"
                )
                yield f"{self._optional(f' -> {endpoint}')}{known} -j {chain}"
        for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
            chance = (
                f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            )
            yield f"{self._optional(f' -> {endpoint}')}{chance}-j {self._endpoint(endpoint)}"

    def _translate(self, endpoint: Endpoint) -> Iterator[str]:
        comment = f"-m comment --comment {self.title} " if self.comments else ""
        yield f"{comment}-s {endpoint.address} -j {MARK}"
        remember = (
            f"-m recent --name {self._endpoint(endpoint)} --set "
            if self.port.affinity_seconds
            else ""
        )
        yield f"{comment}{remember}{self.protocol} -j DNAT --to-destination {endpoint}"

    def _endpoint(self, endpoint: Endpoint) -> str:
        return f"KUBE-SEP-{_hash(f'{self.title}{self.port.proto}{endpoint}')}"

    def _refuse(
        self, chain: str, where: str, number: int, *, rejects: bool, first: bool = False
    ) -> str:
        comment = self._comment("has no endpoints" if rejects else "has no local endpoints")
        match = f"{where} {self.protocol}" if first else f"{self.protocol} {where}"
        return f"{chain} {comment} {match} --dport {number} -j {'REJECT' if rejects else 'DROP'}"

    def _to(self, address: str) -> str:
        return f"{self.protocol} -d {address} --dport {self.port.port}"

    def _comment(self, what: str) -> str:
        return f'-m comment --comment "{self.title} {what}"'

    def _optional(self, what: str) -> str:
        return f'-m comment --comment "{self.title}{what}" ' if self.comments else ""


def _hash(identity: str) -> str:
    return base64.b32encode(hashlib.sha256(identity.encode()).digest())[:16].decode()
