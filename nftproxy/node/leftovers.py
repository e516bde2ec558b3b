"""The rules that another mode of kube-proxy left here, and their removal (contract 5.12).

Pure: from the output of iptables-save to the input of iptables-restore. Only chains that kube-proxy
makes are ever named: kubelet's (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT), those of
network policy programs (KUBE-POD-FW-*, KUBE-NWPLCY-*) and all foreign rules stay (contract 5.12.2).
A chain that a foreign rule jumps to cannot be deleted without changing that rule, so it is emptied,
except KUBE-MARK-MASQ, which marks packets for other programs; our table masquerades them by the
same mark.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

INTERFACE = "kube-ipvs0"
NFT_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
_IPVS_CHAINS = {
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
}
_CHAINS = {
    "nat": {
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-PROXY-CANARY",
    }
    | _IPVS_CHAINS,
    "filter": {
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-FIREWALL",
        "KUBE-PROXY-CANARY",
    }
    | _IPVS_CHAINS,
    "mangle": {"KUBE-PROXY-CANARY"},
}
_PER_SERVICE = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-")
_MARKS_FOR_ANYBODY = "KUBE-MARK-MASQ"
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TARGET = re.compile(r" -[jg] (\S+)")
_SETS = (
    "CLUSTER-IP",
    "LOOP-BACK",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
)
# The kernel keeps 31 characters of a name
IPSETS = frozenset(f"KUBE-{six}{name}"[:31] for six in ("", "6-") for name in _SETS)


@dataclass(frozen=True, slots=True)
class Saved:
    """One table as iptables-save prints it."""

    table: str
    policies: Mapping[str, str]  # of builtin chains
    chains: tuple[str, ...]  # all others
    rules: tuple[str, ...]  # "-A CHAIN ..."


@dataclass(frozen=True, slots=True)
class LeftoverRules:
    """What to remove from one table of one iptables program."""

    program: str
    table: str
    jumps: tuple[str, ...] = ()  # rules of builtin chains, as saved
    chains: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()  # a foreign rule jumps there

    def __str__(self) -> str:
        names = ", ".join(self.chains[:3]) + (", ..." if len(self.chains) > 3 else "")
        kept = f", {len(self.emptied)} emptied ({', '.join(self.emptied)})" if self.emptied else ""
        return (
            f"{self.program} table {self.table}: {len(self.jumps)} jumps, {len(self.chains)} "
            f"chains ({names}){kept}"
        )

    @property
    def restore(self) -> str:
        """The input of iptables-restore --noflush that removes it in one transaction."""
        lines = [f"*{self.table}"]
        lines += [f"-D{jump.removeprefix('-A')}" for jump in self.jumps]
        lines += [f"-F {chain}" for chain in (*self.chains, *self.emptied)]
        lines += [f"-X {chain}" for chain in self.chains]
        return "\n".join([*lines, "COMMIT", ""])


@dataclass(frozen=True, slots=True)
class Leftovers:
    """All leftovers of other modes of kube-proxy; false if empty.

    `problems` are the places that could not be read.
    """

    rules: tuple[LeftoverRules, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()  # nftables: family and name
    virtual_services: int = 0
    interface: bool = False
    ipsets: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=(), compare=False)

    def __bool__(self) -> bool:
        return bool(
            self.rules or self.tables or self.virtual_services or self.interface or self.ipsets
        )

    def lines(self) -> Iterator[str]:
        """Yield a line for each thing found."""
        yield from map(str, self.rules)
        yield from (f"nftables table {family} {name}" for family, name in self.tables)
        if self.virtual_services:
            yield f"{self.virtual_services} IPVS virtual services"
        if self.interface:
            yield f"interface {INTERFACE}"
        if self.ipsets:
            yield f"{len(self.ipsets)} IP sets ({', '.join(self.ipsets)})"


def parse(text: str) -> list[Saved]:
    """Return the tables in the output of iptables-save."""
    tables = []
    name = ""
    policies: dict[str, str] = {}
    chains: list[str] = []
    rules: list[str] = []
    for line in text.splitlines():
        if line.startswith("*"):
            name, policies, chains, rules = line[1:].strip(), {}, [], []
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            if policy == "-":
                chains.append(chain)
            else:
                policies[chain] = policy
        elif line.startswith("-A "):
            rules.append(line)
        elif line == "COMMIT":
            tables.append(Saved(name, policies, tuple(chains), tuple(rules)))
    return tables


def rules_left(program: str, saved: Saved) -> LeftoverRules | None:
    """Return the leftovers of kube-proxy in a table; None without any."""
    ours = {chain for chain in saved.chains if _is_kube_proxys(saved.table, chain)}
    if not ours:
        return None
    jumps = []
    used = set()
    filled = set()
    for rule in saved.rules:
        chain = rule.split(" ", 2)[1]
        if chain in ours:
            filled.add(chain)
        elif (target := _target(rule)) in ours:
            if chain in saved.policies:
                jumps.append(rule)
            else:
                used.add(target)
    kept = (used & filled) - {_MARKS_FOR_ANYBODY}
    emptied = [chain for chain in saved.chains if chain in kept]
    chains = [chain for chain in saved.chains if chain in ours and chain not in used]
    if not (jumps or emptied or chains):
        return None
    return LeftoverRules(program, saved.table, tuple(jumps), tuple(chains), tuple(emptied))


def dropping(saved: Saved) -> list[str]:
    """Return the builtin chains whose policy drops (contract 9.8)."""
    return [chain for chain, policy in saved.policies.items() if policy == "DROP"]


def _is_kube_proxys(table: str, chain: str) -> bool:
    return chain in _CHAINS.get(table, ()) or (table == "nat" and chain.startswith(_PER_SERVICE))


def _target(rule: str) -> str:
    """Return the target of a rule; a target in its comment does not count."""
    found = _TARGET.search(_QUOTED.sub("", rule))
    return found[1] if found else ""
