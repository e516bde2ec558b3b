"""kube-proxy's ipvs mode: what its syncs write, over `ipvs_rules`.

The original uses netlink; here `ipvsadm -R` does, with the same virtual and real servers. Every
sync lists the virtual servers, writes the differences, and repeats the constant rules with
iptables-restore. Where the kernel has no ip_vs, or no dummy devices or ipsets, the mode is
unavailable.

Left out: ending real servers gracefully, health check node ports, source ranges.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from nftproxy.bench.modes import ipvs_rules
from nftproxy.bench.modes.baseline import Baseline
from nftproxy.bench.modes.ipvs_rules import (
    DEVICE,
    FILTER_CHAINS,
    JUMPS,
    NAT_CHAINS,
    SETS,
    IpvsRules,
    Servers,
)
from nftproxy.bench.modes.served import ServedPort, node_addresses, pod_network
from nftproxy.bench.modes.uses import Uses
from nftproxy.bench.modes.xtables import Xtables, restore
from nftproxy.model import ObjectName

# Netfilter must see translated packets to masquerade them; connections must not stay with removed
# real servers.
_SYSCTLS = ("conntrack", "expire_nodest_conn", "expire_quiescent_template")


class Ipvs(Baseline[IpvsRules]):
    """The mode."""

    name = "ipvs"
    needs = {"ipvsadm": "ipvsadm", "ipset": "ipset", "iptables-restore": "iptables"}  # noqa: RUF012

    def prepare(self) -> None:
        """Start empty."""
        super().prepare()
        self.tables = Xtables(self.programs)
        self.pods = pod_network(self.place.settings)
        self.nodes = node_addresses(self.place.settings)
        self.elements: Uses[tuple[str, str]] = Uses()
        self.addresses: Uses[str] = Uses()

    def unavailable(self) -> str:
        """Name the missing programs, or parts of the kernel, found by using them."""
        if missing := super().unavailable():
            return missing
        probe = "nftproxy-probe"
        if self.programs.run("ipvsadm", "-L", "-n", may_fail=True) is None:
            return "this kernel has no ip_vs"
        if self.programs.run("ipset", "create", probe, "hash:ip,port", may_fail=True) is None:
            return "this kernel has no ipsets"
        self.programs.run("ipset", "destroy", probe)
        if self.programs.run("ip", "link", "add", probe, "type", "dummy", may_fail=True) is None:
            return "this kernel has no dummy devices"
        self.programs.run("ip", "link", "delete", probe)
        return ""

    def render(self, ports: Sequence[ServedPort]) -> IpvsRules:
        """Render a service."""
        return ipvs_rules.render(ports, self.nodes)

    def full(self) -> None:
        """Make device, sets and rules; write the differences to the kernel."""
        self.programs.run("ip", "link", "add", DEVICE, "type", "dummy", may_fail=True)
        for switch in _SYSCTLS:
            self.programs.run("sysctl", "-qw", f"net.ipv4.vs.{switch}=1")
        self.tables.ensure(JUMPS)
        before = self._servers()
        saved = (self.programs.run("ipset", "save") or "").splitlines()
        elements = {(words[1], words[2]) for words in map(str.split, saved) if words[0] == "add"}
        listed = (
            self.programs.run("ip", "-o", "-4", "address", "show", "dev", DEVICE) or ""
        ).splitlines()
        addresses = {line.split()[3].partition("/")[0] for line in listed}
        everything = self.rendered.values()
        wanted, _ = self.elements.exchange((e for rules in everything for e in rules.elements), ())
        own, _ = self.addresses.exchange((a for rules in everything for a in rules.addresses), ())
        self._address(set(own) - addresses, addresses - set(own))
        self._balance(ipvs_rules.merged(everything), before)
        self._fill(set(wanted) - elements, elements - set(wanted), create=True)
        self._rewrite()

    def partial(self, put: Sequence[ObjectName], gone: Mapping[ObjectName, IpvsRules]) -> None:
        """Write the differences."""
        self._servers()
        changed = [self.rendered[name] for name in put]
        old = list(gone.values())
        self._address(
            *self.addresses.exchange(
                (a for r in changed for a in r.addresses), (a for r in old for a in r.addresses)
            )
        )
        self._balance(ipvs_rules.merged(changed), ipvs_rules.merged(old))
        self._fill(
            *self.elements.exchange(
                (e for r in changed for e in r.elements), (e for r in old for e in r.elements)
            )
        )
        self._rewrite()

    def stop(self) -> None:
        """Remove rules, then the sets that they name."""
        self.tables.remove()
        for name in SETS:
            self.programs.run("ipset", "destroy", name, may_fail=True)
        self.programs.run("ipvsadm", "-C", may_fail=True)
        self.programs.run("ip", "link", "delete", DEVICE, may_fail=True)

    def _servers(self) -> Servers:
        """Return the virtual servers of the kernel."""
        return ipvs_rules.parse(self.programs.run("ipvsadm", "-S", "-n") or "")

    def _address(self, added: Iterable[str], removed: Iterable[str]) -> None:
        lines = [f"address add {address}/32 dev {DEVICE}" for address in added]
        lines += [f"address delete {address}/32 dev {DEVICE}" for address in removed]
        self._run(lines, "ip", "-batch", "-")

    def _balance(self, wanted: Servers, before: Servers) -> None:
        self._run(list(_changes(wanted, before)), "ipvsadm", "-R")

    def _fill(
        self,
        added: Iterable[tuple[str, str]],
        removed: Iterable[tuple[str, str]],
        *,
        create: bool = False,
    ) -> None:
        lines = [f"create {name} {kind}" for name, kind in SETS.items()] if create else []
        lines += [f"add {name} {element}" for name, element in added]
        lines += [f"del {name} {element}" for name, element in removed]
        self._run(lines, "ipset", "restore", "-exist")

    def _run(self, lines: Sequence[str], *argv: str) -> None:
        if lines:
            self.programs.run(*argv, given="\n".join(lines) + "\n")

    def _rewrite(self) -> None:
        filters = restore("filter", FILTER_CHAINS, ipvs_rules.filter_rules())
        self.tables.restore(filters + restore("nat", NAT_CHAINS, ipvs_rules.nat_rules(self.pods)))


def _changes(wanted: Servers, before: Servers) -> Iterator[str]:
    """Yield the input of `ipvsadm -R`."""
    for server in before.keys() - wanted.keys():
        yield f"-D {server}"
    for server, (schedule, real) in wanted.items():
        old_schedule, old_real = before.get(server, ("", ()))
        if schedule != old_schedule:
            yield f"{'-E' if server in before else '-A'} {server} {schedule}"
        for each in real:
            if each not in old_real:
                yield f"-a {server} {each}"
        for each in old_real:
            if each not in real:
                yield f"-d {server} {' '.join(each.split()[:2])}"
