"""kube-proxy's nftables mode: what its syncs run and write, over `nft_rules` (contract 5.7 to 5.9).

A full sync lists every map and set, rewrites every chain and applies the difference of elements. A
partial one lists the table to find unused chains, and rewrites only chains of changed services. All
of it is one transaction, except the deletion of chains that have been unused for more than a
second, which is before it. Left out: source ranges.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from nftproxy.bench.modes import nft_rules
from nftproxy.bench.modes.baseline import Baseline
from nftproxy.bench.modes.nft_rules import CONTAINERS, TABLE, NftElement, NftRules
from nftproxy.bench.modes.served import ServedPort, node_addresses, pod_network
from nftproxy.bench.modes.uses import Uses
from nftproxy.errors import NftproxyError
from nftproxy.model import ObjectName

STALE: Final = 1.0  # seconds for which an unused chain is kept (contract 5.9.2)
_PROBE: Final = (
    "add table ip nftproxy-probe",
    "add chain ip nftproxy-probe c { type nat hook prerouting priority -100 ; }",
    (
        "add rule ip nftproxy-probe c meta l4proto tcp dnat ip addr . port to numgen random mod 1 "
        "map "
        "{ 0 : 192.0.2.1 . 80 }"
    ),
    "delete table ip nftproxy-probe",
)


class _NamedChains(msgspec.Struct, frozen=True):
    name: str


class _Listed(msgspec.Struct, frozen=True):
    """One object of a listed table; rules and other objects are ignored."""

    chain: _NamedChains | None = None
    set: _NamedChains | None = None


class _Table(msgspec.Struct, frozen=True):
    nftables: list[_Listed]


class KubeNftables(Baseline[NftRules]):
    """The mode."""

    name = "kube-proxy-nftables"
    needs = {"nft": "nftables"}  # noqa: RUF012

    def prepare(self) -> None:
        """Start empty."""
        super().prepare()
        self.pods = pod_network(self.place.settings)
        self.verdicts: dict[
            tuple[str, str], str
        ] = {}  # the elements in the kernel, by container and key
        self.uses: Uses[tuple[str, str]] = Uses()
        self.stale: dict[str, float] = {}  # unused chains, and since when

    def unavailable(self) -> str:
        """Name the missing program, or support for such rules, found by making one."""
        if missing := super().unavailable():
            return missing
        try:
            self._commit(_PROBE)
        except NftproxyError as error:
            return f"this machine cannot hold the rules ({error})"
        return ""

    def render(self, ports: Sequence[ServedPort]) -> NftRules:
        """Render a service."""
        return nft_rules.render(ports, self.pods)

    def full(self) -> None:
        """Read everything back, write every chain and the difference of elements (contract 5.7)."""
        for container, (kind, *_) in CONTAINERS.items():
            listed = self.programs.run(
                "nft", "--json", "list", kind, *TABLE.split(), container, may_fail=True
            )
            self.verdicts |= {(container, key): verdict for key, verdict in _elements(listed, kind)}
        chains, sets = self._listed()
        everything = list(self.rendered.values())
        self.uses.exchange(_places(everything), ())
        unused = self.verdicts.keys() - _places(everything)
        cidrs = [cidr for cidr in self.place.service_cidr.spec.cidrs or () if ":" not in cidr]
        program = nft_rules.program(self.pods, node_addresses(self.place.settings), cidrs)
        self._commit([*program, *self._commands(everything, unused), *self._tidied(chains, sets)])

    def partial(self, put: Sequence[ObjectName], gone: Mapping[ObjectName, NftRules]) -> None:
        """Rewrite chains of changed services, and different elements (contract 5.8)."""
        self._delete_stale()
        changed = [self.rendered[name] for name in put]
        _, unused = self.uses.exchange(_places(changed), _places(gone.values()))
        chains, sets = self._listed()
        self._commit([*self._commands(changed, unused), *self._tidied(chains, sets)])

    def stop(self) -> None:
        """Delete the table."""
        self.programs.run("nft", "delete", "table", *TABLE.split(), may_fail=True)

    def _commands(
        self, services: Iterable[NftRules], unused: Iterable[tuple[str, str]]
    ) -> Iterator[str]:
        """Yield the commands that write services in turn, then those that delete elements."""
        for rules in services:
            for chain in rules.chains:
                yield f"add chain {TABLE} {chain}"
                yield f"flush chain {TABLE} {chain}"
            for element in rules.elements:
                before = self.verdicts.get(element.place)
                if before != element.verdict:
                    if before is not None:
                        yield element.deleted
                    yield element.added
                    self.verdicts[element.place] = element.verdict
            for name, seconds in rules.sets.items():
                yield (
                    f"add set {TABLE} {name} "
                    f"{{ type ipv4_addr ; flags dynamic,timeout ; timeout {seconds}s ; }}"
                )
            for chain_rules in rules.chains.values():
                yield from chain_rules
        for place in unused:
            yield NftElement(*place).deleted
            del self.verdicts[place]

    def _tidied(self, chains: Iterable[str], sets: Iterable[str]) -> Iterator[str]:
        """Yield commands that empty unused chains and delete unused sets (contract 5.9)."""
        used = {chain for rules in self.rendered.values() for chain in rules.chains}
        for chain in chains:
            if "/" in chain and chain not in used and chain not in self.stale:
                self.stale[chain] = time.monotonic()
                yield f"flush chain {TABLE} {chain}"
        for chain in self.stale.keys() & used:  # contract 5.9.3
            del self.stale[chain]
        remembering = {name for rules in self.rendered.values() for name in rules.sets}
        for name in sets:
            if name.startswith("affinity-") and name not in remembering:
                yield f"delete set {TABLE} {name}"

    def _delete_stale(self) -> None:
        before = time.monotonic() - STALE
        old = [chain for chain, since in self.stale.items() if since < before]
        if old:
            self._commit([f"delete chain {TABLE} {chain}" for chain in old])
            for chain in old:
                del self.stale[chain]

    def _listed(self) -> tuple[list[str], list[str]]:
        """Return the chains and sets of the table (contract 5.8.4)."""
        listed = self.programs.run(
            "nft", "--json", "--terse", "list", "table", *TABLE.split(), may_fail=True
        )
        if not listed:
            return [], []
        found = msgspec.json.decode(listed, type=_Table).nftables
        return [each.chain.name for each in found if each.chain], [
            each.set.name for each in found if each.set
        ]

    def _commit(self, commands: Iterable[str]) -> None:
        self.programs.run("nft", "-f", "-", given="\n".join(commands) + "\n")


def _places(services: Iterable[NftRules]) -> list[tuple[str, str]]:
    return [element.place for rules in services for element in rules.elements]


def _elements(listed: str | None, kind: str) -> Iterator[tuple[str, str]]:
    """Yield key and verdict of every element that nft listed."""
    if not listed:
        return
    for item in _objects(listed, kind):
        for each in item.get("elem", ()):
            key, verdict = (each, None) if kind == "set" else each
            if isinstance(key, dict) and "elem" in key:  # with a comment (contract 5.7.4a)
                key = key["elem"]["val"]
            yield _key(key), _verdict(verdict)


def _objects(listed: str, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of one kind."""
    for item in msgspec.json.decode(listed)["nftables"]:
        if kind in item:
            yield item[kind]


def _key(key: Any) -> str:
    return " . ".join(map(str, key["concat"])) if isinstance(key, dict) else str(key)


def _verdict(verdict: Any) -> str:
    if not verdict:
        return ""
    ((verb, target),) = verdict.items()
    return f"{verb} {target['target']}" if target else str(verb)
