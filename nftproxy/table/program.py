"""The program: the text of `rulesets/` filled in for one node.

Pure, except that it reads its own files. The text is a function of the node's settings alone, never
of services; `digest` names it, so that a restart knows whether the table already holds it. Chains
and sets that are made on demand (a pick for another number of endpoints, a prefix length, a
ClientIP service port) are made here, too. The name of a chain determines its content, so none is
ever rewritten under the same program.
"""

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from string import Template

import msgspec

from nftproxy import shipped
from nftproxy.address import Address, Family, mask
from nftproxy.configuration.settings import ALL, Cidr, NodeSettings
from nftproxy.model import Scheduler
from nftproxy.routes import Affinity
from nftproxy.selection import Endpoint
from nftproxy.sharing import SharedPart
from nftproxy.table import schema
from nftproxy.table.schema import (
    LOG_BURST,
    LOG_BYTES,
    LOG_GROUP,
    LOG_LINES,
    PROTOCOLS,
    Policy,
    Reason,
)

TABLE = "inet nftproxy"
_HEADER = re.compile(r"^(?:\[\w+\] )?(set|map|chain) (\S+) \{", re.MULTILINE)
_MARKED = re.compile(r"(\s*)((?:\[[\w ]+\])*) ?(.*)", re.DOTALL)
_MARKER = re.compile(r"\[([\w ]+)\]")
_GOTO = re.compile(r"\bgoto (\S+)")
_NAMED = re.compile(r"(?:\bgoto |@)(\S+)")  # chains, sets and maps that a rule names
_IP = {Family.IPv4: "ip", Family.IPv6: "ip6"}
_LOOPBACK = {Family.IPv4: "127.0.0.0/8", Family.IPv6: "::1"}

_ID, _PORT = "\0", 999983
"""A name and a port number that no Service has, nor any number in the text of a rule."""
_LOOKUP, _NUMBER, _UNKNOWN = "\1", "\2", -1
"""The same for ports that share a memory, whose names have digits that may be any number."""

Variables = Mapping[str, str | int]


class Program:
    """The constant program of one node, and its parts that are made on demand."""

    def __init__(self, settings: NodeSettings) -> None:
        self.families = settings.families
        self._variables = {family: _variables(settings, family) for family in settings.families}
        self._all = self._variables[settings.families[0]]
        self._example = lru_cache(1000)(self._texts)
        self._picks: dict[str, dict[str, str]] = {}
        self._resets = settings.reset_gone
        self._log: list[Variables] = [{}] if settings.log_refusals else []
        self._spared: dict[Family, list[Variables]] = {
            family: [{"spared": str(each)} for each in settings.no_masquerade.get(family, ())]
            for family in settings.families
        }
        self._localhost: list[Variables] = [{}] if settings.serves_localhost else []
        self._reasons: list[Variables] = [{"reason": each} for each in Reason if self._log]
        sample = list(self.resets().values())
        for family in settings.families:
            affinity = Affinity("", family, "tcp", 1, (Endpoint("", 1),), (), ())
            sample += self._of_service(affinity).values()
            shared = msgspec.structs.replace(
                affinity, part=SharedPart.of("", (("", 1),), (("", 1),))
            )
            sample += self._of_service(shared).values()
            for node_port in (False, True):
                # Goes to every other kind
                picked = schema.pick(Policy.PRESERVE, family, "tcp", 1, 1, node_port=node_port)
                sample += self.pick(picked).values()
                sample += self._of_service(affinity, self._numbers(picked)).values()
                sample += self._of_service(shared, self._numbers(picked)).values()
        self.optional = schema.optional(self.families)
        body = self.text(optional=self.optional)
        self.digest = hashlib.sha256("\n".join([body, *sample]).encode()).hexdigest()[:16]

    @property
    def marker(self) -> str:
        """The name of the empty chain that names the program in the table."""
        return schema.program(self.digest)

    def text(
        self,
        lengths: Mapping[Family, Iterable[int]] | None = None,
        optional: Collection[str] = (),
    ) -> str:
        """Return the body of the table without parts made on demand, except those asked for.

        These are look-ups for prefix lengths of source ranges, and optional chains among the names
        in `optional`. Hooks are first, as a packet meets them; the heads of the files stand once.
        """
        remembering = {family: schema.remember(family) in optional for family in self.families}
        each: dict[str, Sequence[Variables]] = {
            "family": list(self._variables.values()),
            "sources": [{}] if any(name in optional for name in schema.SOURCE_RANGES) else [],
            "remembering": [
                self._variables[family] for family in filter(remembering.get, remembering)
            ],
            "log": self._log,
            "reason": self._reasons,
        }
        parts = [_expand(_read("hooks.nft"), self._all, each)]
        for number, family in enumerate(self.families):
            prefixes = self._lengths(family, (lengths or {}).get(family, ()))
            spared = self._spared[family]
            each = {
                "length": prefixes,
                "spared": spared,
                "sparing": [{}] if spared else [],
                "localhost": self._localhost,
                "remembering": [{}] if remembering[family] else [],
            }
            text = _expand(_read("family.nft"), self._variables[family], each)
            parts.append(_headless(text) if number else text)
            parts += [_headless(part) for part in self._allowed(family, prefixes).values()]
        for number, variables in enumerate(self._variables.values() if self._resets else ()):
            text = _expand(_read("gone.nft"), variables)
            parts.append(_headless(text) if number else text)
        for number, (family, proto) in enumerate(itertools.product(self.families, PROTOCOLS)):
            text = _expand(_read("protocol.nft"), {**self._variables[family], "proto": proto})
            parts.append(_headless(text) if number else text)
        return "\n".join(parts)

    def names(self, optional: Collection[str] = ()) -> set[str]:
        """Return the names of everything in `text`, and the marker."""
        return {self.marker, *blocks(self.text(optional=optional))}

    def having(self, optional: Collection[str]) -> dict[str, str]:
        """Return the text of optional chains, and of the one whose rules depend on them."""
        wanted = self.optional | {schema.TRANSLATED}
        found = blocks(self.text(optional=optional))
        return {name: text for name, text in found.items() if name in wanted}

    def chains(self, optional: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """Return the names of the base chains and of the other chains of `text`."""
        base: list[str] = []
        other: list[str] = []
        for name, block in blocks(self.text(optional=optional)).items():
            if block.startswith("chain"):
                (base if " hook " in block else other).append(name)
        return base, other

    def pick(self, name: str) -> dict[str, str]:
        """Return the text of a pick chain and of those it goes to, by name, declared before use."""
        if name not in self._picks:
            self._picks[name] = self._pick(name)
        return self._picks[name]

    def _pick(self, name: str) -> dict[str, str]:
        variables = self._numbers(name)
        if variables is None:
            return {}
        text = blocks(_expand(_read("pick.nft"), variables))[name]
        found: dict[str, str] = {}
        for other in _GOTO.findall(text):
            found |= self.pick(other)
        return {**found, name: text}

    def affinity(self, affinity: Affinity) -> dict[str, str]:
        """Return the text of everything that one ClientIP service port needs, by name, in order.

        This includes picks. Thousands of service ports differ in their names and in the port
        number of their endpoints alone: these are filled into the text of an example.
        """
        example, fillings = _example(affinity)

        def filled(text: str) -> str:
            for stands, real in fillings.items():
                text = text.replace(stands, real)
            return text

        return {filled(name): filled(text) for name, text in self._example(example).items()}

    def _texts(self, affinity: Affinity) -> dict[str, str]:
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
        """Return the possible parts of a ClientIP service port.

        The chains before a pick of such numbers, or all others.
        """
        variables = {
            **self._variables[affinity.family],
            **(numbers or {}),
            "proto": affinity.proto,
            "id": affinity.name,
            "ports": affinity.ports_name,
            "timeout": affinity.timeout,
            "service": affinity.part.service if affinity.part else "",
            "groups": affinity.part.groups if affinity.part else "",
        }
        cluster, local = (affinity.part.cluster, affinity.part.local) if affinity.part else ((), ())
        each: dict[str, Sequence[Variables]] = {
            "port": [{"port": port} for port in affinity.ports],
            "own group": _numbered(cluster),
            "own local group": _numbered(local),
            "group": [{"peers": name} for name, _ in cluster],
            "local group": [{"peers": name} for name, _ in local],
            "memory": [{"peers": name} for name in dict.fromkeys([n for n, _ in cluster + local])],
        }
        return {
            name: block
            for template, text in blocks(_read("affinity.nft")).items()
            if schema.is_sticky(template) == bool(numbers)
            for name, block in blocks(_expand(text, variables, each)).items()
        }

    def _numbers(self, name: str) -> Variables | None:
        """Return the variables in the name of a pick chain.

        None for others, and for a family not served.
        """
        picked = schema.parse_pick(name)
        if not picked or picked.family not in self._variables:
            return None
        return {
            **self._variables[picked.family],
            "by": picked.by,
            "side": picked.side,
            "proto": picked.proto,
            "count": picked.size,
            "own": picked.own,
            "lists": f"{picked.size}-{picked.own}" if picked.own else picked.size,
            "random": picked.scheduler is Scheduler.RANDOM,
            "hash": picked.scheduler is not Scheduler.RANDOM,
            "seed": schema.SEED,
            "NodePort": picked.node_port,
            "with address": not picked.node_port,
            "local list": picked.own,
        }

    def resets(self) -> dict[str, str]:
        """Return the base chains that are there only while endpoints are gone, by name."""
        each = {"family": list(self._variables.values())}
        return blocks(_expand(_read("gone-hooks.nft"), self._all, each)) if self._resets else {}

    def sources(self, family: Family, lengths: Iterable[int]) -> dict[str, str]:
        """Return the sets of allowed sources for these prefix lengths, and their chain."""
        prefixes = self._lengths(family, lengths)
        template = blocks(_read("family.nft"))["allowed$v"]
        chain = _expand(template, self._variables[family], {"length": prefixes})
        return {**self._allowed(family, prefixes), schema.allowed(family): chain}

    def _allowed(self, family: Family, prefixes: Sequence[Variables]) -> dict[str, str]:
        found: dict[str, str] = {}
        for prefix in prefixes:
            found |= blocks(_expand(_read("sources.nft"), {**self._variables[family], **prefix}))
        return found

    def _lengths(self, family: Family, lengths: Iterable[int]) -> list[Variables]:
        ones = Address(
            family, "255.255.255.255" if family is Family.IPv4 else ":".join(["ffff"] * 8)
        )
        return [
            {"length": length, "netmask": mask(ones, length).text} for length in sorted(lengths)
        ]


def _example(affinity: Affinity) -> tuple[Affinity, dict[str, str]]:
    """Return what stands for a ClientIP service port and others like it, and what to fill in."""
    ports, part = affinity.ports, affinity.part
    cluster, local = (
        (Endpoint("", _PORT),) * len(each) for each in (affinity.cluster, affinity.local)
    )
    fillings = {_ID: affinity.name}
    if part:
        numbers = {number for _, number in part.cluster + part.local if number}
        if len(numbers) == 1:
            fillings |= {_NUMBER: str(numbers.pop()), _LOOKUP: part.lookup}
            in_cluster, in_local = (
                tuple((name, _UNKNOWN if number else 0) for name, number in each)
                for each in (part.cluster, part.local)
            )
            part = msgspec.structs.replace(part, lookup=_LOOKUP, cluster=in_cluster, local=in_local)
    elif len(ports) == 1:
        fillings = {str(_PORT): str(ports[0]), **fillings}
    else:
        cluster, local = tuple(affinity.cluster), tuple(affinity.local)
    return (
        msgspec.structs.replace(affinity, name=_ID, cluster=cluster, local=local, part=part),
        fillings,
    )


def _numbered(groups: Iterable[tuple[str, int]]) -> list[Variables]:
    """Return the groups that a service port has, each with its port number."""
    return [
        {"peers": name, "port": _NUMBER if number == _UNKNOWN else number}
        for name, number in groups
        if number
    ]


def is_pick(name: str) -> bool:
    """Whether a chain's name is that of a pick, or of a chain that leads to one."""
    return schema.parse_pick(name) is not None


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


@cache
def _read(name: str) -> str:
    return (shipped.folder("rulesets") / name).read_text()


def _expand(
    text: str, variables: Variables, each: Mapping[str, Sequence[Variables]] | None = None
) -> str:
    """Fill in variables and obey markers.

    A marked line stands once for each value, or only under a condition.
    """
    lines: list[str] = []
    block: tuple[str, list[str]] | None = None  # a marked declaration, up to its end
    for line in text.splitlines():
        indent, markers, template = _line(line)
        if block is None and not indent and markers:
            block = markers[0], []
        if block is not None:
            block[1].append(line.removeprefix(f"[{block[0]}] "))
            if line == "}":
                whole, several = "\n".join(block[1]), (each or {})[block[0]]
                lines += [
                    _expand(whole, {**variables, **one}, each).rstrip("\n") for one in several
                ]
                block = None
            continue
        wanted: Sequence[Variables] = ({},)
        for marker in markers:
            if each and marker in each:
                wanted = each[marker]
        for one in wanted:
            known = {**variables, **one} if one else variables
            if all(known.get(marker, marker in (each or ())) for marker in markers):
                lines.append(indent + template.substitute(known))
    return "\n".join(lines) + "\n"


@lru_cache(4096)
def _line(line: str) -> tuple[str, tuple[str, ...], Template]:
    """Return indentation, markers and the rest of a line.

    Cached: thousands of services share few lines.
    """
    match = _MARKED.match(line)
    assert match  # noqa: S101 - it matches everything
    return match[1], tuple(_MARKER.findall(match[2])), Template(match[3])


def _headless(text: str) -> str:
    """Return text without headers, which stand once in the table."""
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith("#")
    ).lstrip("\n")


def _variables(settings: NodeSettings, family: Family) -> dict[str, str | int]:
    """Return the conditions that the settings of a node meet (contract 4.1, 4.2, 2.6)."""
    detector = settings.detector
    pods = (
        detector.networks.get(family)
        if isinstance(detector, Cidr)
        else detector and detector.pattern
    )
    listed = settings.nodeport_addresses[family] is not ALL
    return {
        "v": family.digit,
        "nfproto": f"ipv{family.digit}",
        "ip": _IP[family],
        "loopback": _LOOPBACK[family],
        "bit": f"{settings.masquerade_bit:#x}",
        "pods": str(pods),
        "pod network": bool(pods) and isinstance(detector, Cidr),
        "pod interface": bool(pods)
        and not isinstance(detector, Cidr),  # packets made on this node are not from a pod either
        "masquerade": f"jump {schema.masquerade(family)}"
        if settings.no_masquerade.get(family)
        else f"meta mark set meta mark | {settings.masquerade_bit:#x}",
        "masquerade all": settings.masquerade_all,
        "masquerade others": not settings.masquerade_all,
        "all addresses": not listed,
        "listed addresses": listed,
        "log": settings.log_refusals,
        "localhost": settings.serves_localhost,
        "group": LOG_GROUP,
        "lines": LOG_LINES,
        "burst": LOG_BURST,
        "bytes": LOG_BYTES,
    }
