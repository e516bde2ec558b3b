"""The program: the text of `rulesets/` filled in for one node.

Pure but for reading its own files. The text is a function of the node's settings alone, never of services; `digest` names it, so
that a restart knows whether the table already holds it. Chains and sets that are made on demand (a pick for one more number of
endpoints, a prefix length, a ClientIP service port) come from here too. A chain's name tells its whole content, so none
is ever rewritten under the same program.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from string import Template

from nftproxy import shipped
from nftproxy.address import Address, Family, mask
from nftproxy.configuration.settings import ALL, Cidr, NodeSettings
from nftproxy.routes import NODE_PORT, Affinity
from nftproxy.selection import Endpoint

TABLE = "inet nftproxy"
PROTOCOLS = ("tcp", "udp", "sctp")
_HEADER = re.compile(r"^(set|map|chain) (\S+) \{", re.MULTILINE)
_PICK = re.compile(
    r"(?P<side>nodeport-)?(?:pick|external|local|(?P<preserve>preserve))(?P<v>[46])-(?P<proto>tcp|udp|sctp)"
    r"-(?P<count>[1-9][0-9]*)(?(preserve)(?:-(?P<own>[1-9][0-9]*))?)"
)
_GOTO = re.compile(r"\bgoto (\S+)")
_NAMED = re.compile(r"(?:\bgoto |@)(\S+)")  # chains, sets and maps that a rule names
_IP = {Family.IPv4: "ip", Family.IPv6: "ip6"}
_LOOPBACK = {Family.IPv4: "127.0.0.0/8", Family.IPv6: "::1"}

Variables = Mapping[str, str | int | None]


class Program:
    """The constant program of one node, and the parts of it that are made on demand."""

    def __init__(self, settings: NodeSettings) -> None:
        self.families = settings.families
        self._variables = {family: _variables(settings, family) for family in settings.families}
        sample: list[str] = []
        for family in settings.families:
            affinity = Affinity("", family, "tcp", 1, (Endpoint("", 1),), (), ())
            sample += self._of_service(affinity).values()
            for side in ("", NODE_PORT):
                picked = f"{side}preserve{family.digit}-tcp-1-1"  # goes to every other kind of pick
                sample += self.pick(picked).values()
                sample += self._of_service(affinity, self._numbers(picked)).values()
        body = self.text()
        self.digest = hashlib.sha256("\n".join([body, *sample]).encode()).hexdigest()[:16]

    @property
    def marker(self) -> str:
        """The name of the empty chain that says which program the table holds."""
        return f"program-{self.digest}"

    def text(self, lengths: Mapping[Family, Iterable[int]] | None = None) -> str:
        """Return the body of the table without what is made on demand, but with look-ups for these lengths of source ranges."""
        parts = [_fill(_read("protocol.nft"), {**self._variables[f], "proto": p}) for f in self.families for p in PROTOCOLS]
        for family in self.families:
            sources = self.sources(family, (lengths or {}).get(family, ()))
            chain = sources.pop(f"allowed{family.digit}")
            whole = _fill(_read("family.nft"), self._variables[family])
            parts += [*sources.values(), whole.replace(blocks(whole)[f"allowed{family.digit}"], chain.rstrip("\n"))]
        parts.append(_per_family(_read("hooks.nft"), list(self._variables.values())))
        return "\n".join(parts)

    def names(self) -> set[str]:
        """Return the names of everything in `text`, and the marker."""
        return {self.marker, *blocks(self.text())}

    def chains(self) -> tuple[list[str], list[str]]:
        """Return the names of the base chains and of the other chains of `text`."""
        base: list[str] = []
        other: list[str] = []
        for name, block in blocks(self.text()).items():
            if block.startswith("chain"):
                (base if " hook " in block else other).append(name)
        return base, other

    def pick(self, name: str) -> dict[str, str]:
        """Return the text of a pick chain and of those it goes to, by name, in an order that declares before use."""
        variables = self._numbers(name)
        if variables is None:
            return {}
        text = blocks(_fill(_read("pick.nft"), variables))[name]
        found: dict[str, str] = {}
        for other in _GOTO.findall(text):
            found |= self.pick(other)
        return {**found, name: text}

    def affinity(self, affinity: Affinity) -> dict[str, str]:
        """Return the text of everything one ClientIP service port needs, picks included, by name, in order."""
        found: dict[str, str] = {}
        known = self._of_service(affinity)
        for picked in affinity.picks:
            found |= self.pick(picked)
            known |= self._of_service(affinity, self._numbers(picked))
        needed: set[str] = set()
        wanted = list(affinity.chains)
        while wanted:
            name = wanted.pop()
            if name in known and name not in needed:
                needed.add(name)
                wanted += _NAMED.findall(known[name])
        return found | {name: text for name, text in known.items() if name in needed}

    def _of_service(self, affinity: Affinity, numbers: Variables | None = None) -> dict[str, str]:
        """Return what a ClientIP service port may need: the chains before a pick of such numbers, or all else."""
        variables = {
            **self._variables[affinity.family],
            **(numbers or {}),
            "proto": affinity.proto,
            "id": affinity.name,
            "ports": affinity.ports_name,
            "timeout": affinity.timeout,
        }
        found: dict[str, str] = {}
        for name, block in blocks(_read("affinity.nft")).items():
            if name.startswith("sticky-") != bool(numbers):
                continue
            if name.endswith("-$port"):
                texts = [_fill(block, {**variables, "port": port}) for port in affinity.ports]
            else:
                texts = ["\n".join(_per_port(block, variables, affinity.ports))]
            for text in texts:
                found |= blocks(text)
        return found

    def _numbers(self, name: str) -> Variables | None:
        """Return the variables that the name of a pick chain tells; None when it is none, or of a family not served."""
        matched = _PICK.fullmatch(name)
        family = matched and (Family.IPv4 if matched["v"] == "4" else Family.IPv6)
        if not matched or family not in self._variables:
            return None
        variables, count, own = self._variables[family], matched["count"], matched["own"]
        frontend = (
            "meta l4proto . th dport @nodeport_" if matched["side"] else f"{variables['ip']} daddr . meta l4proto . th dport @"
        )
        return {
            **variables,
            "side": matched["side"] or "",
            "counted": f"{frontend}new_clients{family.digit}",
            "proto": matched["proto"],
            "count": count,
            "own": own,
            "lists": f"{count}-{own}" if own else count,
        }

    def sources(self, family: Family, lengths: Iterable[int]) -> dict[str, str]:
        """Return the sets of allowed sources for these prefix lengths, and the chain that looks them up."""
        lengths = sorted(lengths)
        variables = self._variables[family]
        found: dict[str, str] = {}
        rules = []
        for length in lengths:
            found |= blocks(_fill(_read("sources.nft"), {**variables, "length": length}))
            ones = Address(family, "255.255.255.255" if family is Family.IPv4 else ":".join(["ffff"] * 8))
            rules.append(
                f"{variables['ip']} daddr . meta l4proto . th dport . {variables['ip']} saddr & {mask(ones, length).text}"
                f" @allowed{family.digit}-{length} return"
            )
        name = f"allowed{family.digit}"
        found[name] = _block(_read("family.nft"), "allowed$v", {**variables, "sources": "\n    ".join(rules) or None})
        return found


def is_pick(name: str) -> bool:
    """Whether a chain's name is that of a pick, or of a chain that leads to one."""
    return _PICK.fullmatch(name) is not None


def table(blocks_by_name: Iterable[str]) -> str:
    """Wrap declarations into nft text that adds them to our table."""
    return f"table {TABLE} {{\n" + "\n".join(blocks_by_name) + "\n}\n"


def blocks(text: str) -> dict[str, str]:
    """Split nft text into its set, map and chain blocks, by name."""
    found = {}
    for match in _HEADER.finditer(text):
        end = text.index("\n}", match.start()) + 2
        found[match[2]] = text[match.start() : end]
    return found


def _block(text: str, name: str, variables: Variables) -> str:
    return _fill(blocks(text)[name], variables)


@cache
def _read(name: str) -> str:
    return (shipped.folder("rulesets") / name).read_text()


def _fill(text: str, variables: Variables) -> str:
    """Fill in the variables, line by line; a line with a condition that is never true (None) is left out."""
    lines = []
    for line in text.splitlines():
        template, names = _template(line)
        if all(variables[name] is not None for name in names):
            lines.append(template.substitute(variables))
    return "\n".join(lines) + "\n"


@lru_cache(4096)
def _template(line: str) -> tuple[Template, frozenset[str]]:
    """Return a line of a ruleset and the names of its variables; thousands of services share the few lines there are."""
    template = Template(line)
    return template, frozenset(template.get_identifiers())


def _per_family(text: str, families: list[Variables]) -> str:
    """Fill in the variables; the lines about one family once for each."""
    lines = []
    for line in text.splitlines():
        template, names = _template(line)
        lines += [template.substitute(variables) for variables in (families if "v" in names else families[:1])]
    return "\n".join(lines) + "\n"


def _per_port(block: str, variables: Variables, ports: Iterable[int]) -> Iterator[str]:
    """Yield the lines of a block, those about one port number once for each."""
    for line in block.splitlines():
        template, names = _template(line)
        if "port" in names:
            for port in ports:
                yield template.substitute(variables, port=port)
        else:
            yield from _fill(line, variables).splitlines()


def _variables(settings: NodeSettings, family: Family) -> dict[str, str | int | None]:
    """Turn the settings of a node into the conditions of its rules (contract 4.1, 4.2, 2.6)."""
    ip = _IP[family]
    detector = settings.detector
    if isinstance(detector, Cidr):
        pods = detector.networks.get(family)
        from_pod = f"{ip} saddr {pods}" if pods else None
        not_from_pod = f"{ip} saddr != {pods}" if pods else None
    elif detector is None:
        from_pod = not_from_pod = None
    else:
        from_pod = f'iifname "{detector.pattern}"'
        not_from_pod = f'iifname != "{detector.pattern}"'  # true for packets made on this node, as contract 4.2.1 wants
    if settings.nodeport_addresses[family] is ALL:
        elsewhere = f"!= {_LOOPBACK[family]}"
        to_nodeport = f"fib daddr type local {ip} daddr {elsewhere}"
        at_nodeport = f"{ip} daddr {elsewhere}"
        # No `fib` there: other addresses of Services pass for this node's, but at least those with the same ports do not.
        originally = f"ct original {at_nodeport} ct original {ip} daddr != @cluster_ips{family.digit}"
    else:
        to_nodeport = at_nodeport = f"{ip} daddr @nodeport_ips{family.digit}"
        originally = f"ct original {to_nodeport}"
    return {
        "v": family.digit,
        "nfproto": f"ipv{family.digit}",
        "ip": ip,
        "bit": f"{settings.masquerade_bit:#x}",
        "from_pod": from_pod,
        "not_from_pod": "" if settings.masquerade_all else not_from_pod,
        "to_nodeport": to_nodeport,
        "at_nodeport": at_nodeport,
        "originally_to_nodeport": originally,
        "sources": None,
    }
