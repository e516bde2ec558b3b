"""This node, as far as the path of a connection needs it.

Chains, rules, interfaces, routes, neighbours, settings.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from nftproxy.address import Family
from nftproxy.errors import KernelError
from nftproxy.kernel.headers import PacketHeader
from nftproxy.path.live import LiveRuleset
from nftproxy.path.packet import text
from nftproxy.path.routing import Routing
from nftproxy.path.ruleset import OURS, NftBaseChain, NftChain, NftRule, NftTable, Way
from nftproxy.table import expressions as nft
from nftproxy.table import netlink
from nftproxy.trace.clients import Clients, Pods, pods_of
from nftproxy.trace.events import RULE, TraceEvent
from nftproxy.trace.texts import Texts


class Here:
    """The node of the network namespace of the thread that made this object."""

    def __init__(self, rules: LiveRuleset, routing: Routing) -> None:
        self.name = ""
        self.clients = Clients()
        self.services: Mapping[tuple[str, int, int], tuple[str, str]] = {}
        self.rules, self.routing = rules, routing
        self._texts = Texts()
        self._links = {link.index: link.name for link in routing.links.values()}
        self._bases: dict[NftChain, NftBaseChain] = {}

    def pods(self) -> dict[Family, Pods]:
        """Return how our table recognizes pods; empty where it does not."""
        found = {}
        for family in Family:
            with suppress(KernelError):
                rules = self.rules.rules(NftChain(OURS, f"find-service{family.digit}"))
                pods = pods_of(rules[0].expressions) if rules else None
                if pods:
                    found[family] = pods
        return found

    def base(self, event: TraceEvent) -> NftBaseChain | None:
        """Return the base chain that a report names."""
        if not self._bases:
            self._bases = {base.chain: base for base in self.rules.base_chains()}
        return self._bases.get(_chain(event))

    def text(self, event: TraceEvent) -> str:
        """Return the rule of a report as nft prints it; empty when nobody can say."""
        return self._texts.get(_chain(event), event.rule) if event.kind == RULE else ""

    def rejects(self, event: TraceEvent) -> bool:
        """Whether the rule of a report rejects."""
        rule = self._rule(event)
        return rule is not None and any(
            one.name == "reject"
            or (
                one.name == "target"
                and netlink.text(one.data.get(nft.Extension.NAME, b"")) == "REJECT"
            )
            for one in rule.expressions
        )

    def _rule(self, event: TraceEvent) -> NftRule | None:
        if event.kind != RULE:
            return None
        with suppress(KernelError):  # the chain was deleted meanwhile
            for rule in self.rules.rules(_chain(event)):
                if rule.handle == event.rule:
                    return rule
        return None

    def link(self, index: int) -> str:
        """Return the name of an interface."""
        return self._links.get(index, f"interface {index}") if index else ""

    def way(self, header: PacketHeader, iif: str) -> Way:
        """Return how a packet goes on, or why it does not."""
        known = iif if iif in self.routing.links and iif != "lo" else ""
        source = header.source.address if known else b""
        return self.routing.to(header.destination.address, source=source, iif=known)

    def forwards(self, header: PacketHeader) -> str:
        """Return the setting that allows forwarding, `0` if it does not.

        Empty where the packet need not be forwarded.
        """
        if self.routing.to(header.destination.address).local:
            return ""
        four = len(header.source.address) == 4
        where = "ipv4/ip_forward" if four else "ipv6/conf/all/forwarding"
        return _setting(where)

    def neighbour(self, header: PacketHeader, oif: str) -> str:
        """Return what the kernel knows of the next machine on the way."""
        if oif not in self.routing.links:
            return ""
        way = self.routing.to(header.destination.address)
        return self.routing.neighbour(way.gateway or text(header.destination.address), oif)

    def tracking(self) -> tuple[int, int]:
        """Return how many connections the kernel tracks, and how many it can."""
        count, limit = (_setting(f"netfilter/nf_conntrack_{one}") for one in ("count", "max"))
        return int(count or 0), int(limit or 0)


def _setting(name: str) -> str:
    with suppress(OSError):
        return Path("/proc/sys/net", name).read_text().strip()
    return ""


def _chain(event: TraceEvent) -> NftChain:
    return NftChain(NftTable(event.family, event.table), event.chain)
