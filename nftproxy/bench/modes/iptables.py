"""kube-proxy's iptables mode: what its syncs run and write, over `iptables_rules`.

A full sync ensures the chains and jumps one by one, lists the nat table and rewrites everything in
one iptables-restore. A partial sync rewrites only chains of changed services, together with the
chains that have a rule for every service. It lists the table to find unused chains, which a cluster
of more than 1000 endpoints leaves to the next full sync.

Left out: counters of the nfacct module, NodePorts on loopback (the sysctl route_localnet is not
set), health check node ports.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from nftproxy.bench.modes import iptables_rules
from nftproxy.bench.modes.baseline import Baseline
from nftproxy.bench.modes.iptables_rules import FILTER_CHAINS, NAT_CHAINS, OWN, IptablesRules
from nftproxy.bench.modes.mode import Load, Work
from nftproxy.bench.modes.served import ServedPort, pod_network
from nftproxy.bench.modes.xtables import Jump, Xtables, chains, restore
from nftproxy.errors import NftproxyError
from nftproxy.model import ObjectName

LARGE: Final = (
    1000  # endpoints; above this the original omits comments and does not clean up in partial syncs
)
CANARY: Final = "KUBE-PROXY-CANARY"
_NEW: Final = ("-m", "conntrack", "--ctstate", "NEW")
JUMPS: Final = (
    Jump(
        "filter",
        "INPUT",
        "KUBE-EXTERNAL-SERVICES",
        _NEW,
        "kubernetes externally-visible service portals",
    ),
    Jump(
        "filter",
        "FORWARD",
        "KUBE-EXTERNAL-SERVICES",
        _NEW,
        "kubernetes externally-visible service portals",
    ),
    Jump("filter", "INPUT", "KUBE-NODEPORTS", (), "kubernetes health check service ports"),
    Jump("filter", "FORWARD", "KUBE-SERVICES", _NEW, "kubernetes service portals"),
    Jump("filter", "OUTPUT", "KUBE-SERVICES", _NEW, "kubernetes service portals"),
    Jump("filter", "FORWARD", "KUBE-FORWARD", (), "kubernetes forwarding rules"),
    Jump("filter", "INPUT", "KUBE-PROXY-FIREWALL", _NEW, "kubernetes load balancer firewall"),
    Jump("filter", "OUTPUT", "KUBE-PROXY-FIREWALL", _NEW, "kubernetes load balancer firewall"),
    Jump("filter", "FORWARD", "KUBE-PROXY-FIREWALL", _NEW, "kubernetes load balancer firewall"),
    Jump("nat", "OUTPUT", "KUBE-SERVICES", (), "kubernetes service portals"),
    Jump("nat", "PREROUTING", "KUBE-SERVICES", (), "kubernetes service portals"),
    Jump("nat", "POSTROUTING", "KUBE-POSTROUTING", (), "kubernetes postrouting rules"),
    Jump("filter", "INPUT", "KUBE-FIREWALL"),
    Jump("filter", "OUTPUT", "KUBE-FIREWALL"),
)


class Iptables(Baseline[IptablesRules]):
    """The mode with either backend; the program's name says which."""

    program: str

    def prepare(self) -> None:
        """Start empty."""
        super().prepare()
        self.tables = Xtables(self.programs, self.program)
        self.pods = pod_network(self.place.settings)
        self.large = False

    def unavailable(self) -> str:
        """Name missing programs, or matches of the kernel, found by making a chain with all."""
        if missing := super().unavailable():
            return missing
        probe = "KUBE-PROXY-PROBE"
        rules = [
            (
                f"{probe} -m comment --comment probe -m addrtype --dst-type LOCAL -m conntrack "
                "--ctstate NEW -j RETURN"
            ),
            f"{probe} -m recent --name {probe} --rcheck --seconds 10 --reap -j RETURN",
            (
                f"{probe} -m statistic --mode random --probability 0.5 -m mark --mark 1 -j "
                "MASQUERADE "
                "--random-fully"
            ),
        ]
        try:
            self.tables.restore(restore("nat", [probe], rules))
            self.tables.restore(restore("nat", [probe], deleted=[probe]))
        except NftproxyError as error:
            return f"this machine cannot hold the rules ({error})"
        return ""

    def start(self, load: Sequence[Load]) -> Work:
        """Decide whether the cluster is large, as the original does in every sync."""
        self.large = (
            sum(len(piece.endpoints or ()) for each in load for piece in each.slices) > LARGE
        )
        return super().start(load)

    def render(self, ports: Sequence[ServedPort]) -> IptablesRules:
        """Return the rules of a service."""
        return iptables_rules.render(ports, self.pods, comments=not self.large)

    def full(self) -> None:
        """Ensure every chain and jump, find leftovers, rewrite everything."""
        for table in ("mangle", "nat", "filter"):
            self.tables.chain(table, CANARY)
        self.tables.ensure(JUMPS)
        self._write(self.rendered, self._stale())

    def partial(self, put: Sequence[ObjectName], gone: Mapping[ObjectName, IptablesRules]) -> None:  # noqa: ARG002
        """Rewrite the chains of some services, and all dispatching chains."""
        self._write(
            {name: self.rendered[name] for name in put}, [] if self.large else self._stale()
        )

    def stop(self) -> None:
        """Remove jumps and chains, as the original's --cleanup does."""
        self.tables.remove()

    def _write(self, changed: Mapping[ObjectName, IptablesRules], stale: Sequence[str]) -> None:
        everything = self.rendered.values()
        own = [rules.chains for rules in changed.values()]
        filter_rules = (
            iptables_rules.before_filter(),
            *(rules.filter for rules in everything if rules.filter),
            iptables_rules.after_filter(),
        )
        nat_rules = (
            iptables_rules.before_nat(),
            *(rules.dispatch for rules in everything),
            *(rules for chains in own for rules in chains.values()),
            iptables_rules.after_nat(),
        )
        declared = itertools.chain(NAT_CHAINS, *own, stale)
        flat = itertools.chain.from_iterable
        self.tables.restore(
            restore("filter", FILTER_CHAINS, flat(filter_rules))
            + restore("nat", declared, flat(nat_rules), deleted=stale)
        )

    def _stale(self) -> list[str]:
        """Return chains in the kernel that no service has."""
        used = {chain for rules in self.rendered.values() for chain in rules.chains}
        return [chain for chain in chains(self.tables.save("nat"), OWN) if chain not in used]


class IptablesLegacy(Iptables):
    """With the kernel's ip_tables."""

    name = "iptables-legacy"
    program = "iptables-legacy"
    needs = {"iptables-legacy-restore": "iptables"}  # noqa: RUF012


class IptablesNft(Iptables):
    """With iptables' syntax over nf_tables, which is what `iptables` is on most systems."""

    name = "iptables-nft"
    program = "iptables-nft"
    needs = {"iptables-nft-restore": "iptables"}  # noqa: RUF012
