"""All base chains of one hook in a packet's order, with what the kernel does in between.

Pure except for what the chains ask. The kernel's own steps: conntrack looks at a packet at priority
-200, and chains of type nat are all asked at -100 (destination) or 100 (source), in the order of
their own priorities, until one translates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nftproxy.path.evaluate import ChainOutcome, run
from nftproxy.path.packet import CtStatus, Packet
from nftproxy.path.ruleset import NftBaseChain, Ruleset, Surroundings
from nftproxy.path.state import Doubt
from nftproxy.table.expressions import VerdictCode

_CONNTRACK = -200
_DESTINATION, _SOURCE = -100, 100
_TRACKING = {"prerouting", "output"}
_MOST_BRANCHES = 512


@dataclass(frozen=True, slots=True)
class Visit:
    """A base chain that a packet met, and what it said; `packet` is what it was before."""

    base: NftBaseChain
    outcome: ChainOutcome
    packet: Packet


@dataclass(frozen=True, slots=True)
class Branch:
    """One way that a packet can take: what it has met, and what it is now. `alive`: it goes on."""

    packet: Packet
    visits: tuple[Visit, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    alive: bool = True
    why: str = ""  # it does not go on, where no rule decided that

    @property
    def last(self) -> Visit | None:
        """The chain that decided."""
        return self.visits[-1] if self.visits else None

    @property
    def rejected(self) -> str:
        """How the client learns of it, if it does."""
        return self.last.outcome.reject if self.last and not self.alive else ""


def chains_of(
    chains: Iterable[NftBaseChain], hook: str, families: set[str], device: str = ""
) -> list[NftBaseChain]:
    """Return the chains of a hook for some families.

    Chains of devices are among them only if they are on this one.
    """
    found = [
        chain for chain in chains if chain.hook == hook and chain.chain.table.family in families
    ]
    return [chain for chain in found if not device or device in chain.devices]


def pass_hook(
    branches: Iterable[Branch],
    chains: Sequence[NftBaseChain],
    hook: str,
    rules: Ruleset,
    around: Surroundings,
) -> list[Branch]:
    """Send packets through the chains of one hook."""
    nat = [chain for chain in chains if chain.kind == "nat"]
    at = _DESTINATION if hook in _TRACKING else _SOURCE
    order: list[tuple[int, list[NftBaseChain]]] = [
        (chain.priority, [chain]) for chain in chains if chain.kind != "nat"
    ]
    if nat:
        order.append((at, nat))
    found = list(branches)
    if hook in _TRACKING:
        order.append((_CONNTRACK, []))
    # Those of one priority stand in the order in which the kernel has them; what the kernel does
    # itself comes first.
    for _, group in sorted(
        order, key=lambda one: (one[0], len(one[1]) == 1 and one[1][0].kind != "nat")
    ):
        if not group:
            found = [
                replace(branch, packet=branch.packet.track()) if branch.alive else branch
                for branch in found
            ]
        elif group is nat:
            found = _merged(
                each
                for branch in found
                for each in _nat(branch, nat, rules, around, destination=at == _DESTINATION)
            )
        else:
            found = _merged(
                each for branch in found for each in _one(branch, group[0], rules, around)
            )
    return found


def _one(branch: Branch, base: NftBaseChain, rules: Ruleset, around: Surroundings) -> list[Branch]:
    if not branch.alive:
        return [branch]
    return [_after(branch, base, outcome) for outcome in run(base, branch.packet, rules, around)]


def _after(branch: Branch, base: NftBaseChain, outcome: ChainOutcome) -> Branch:
    return Branch(
        outcome.packet,
        (*branch.visits, Visit(base, outcome, branch.packet)),
        (*branch.doubts, *outcome.doubts),
        outcome.verdict == VerdictCode.ACCEPT,
    )


def _nat(
    branch: Branch,
    chains: Sequence[NftBaseChain],
    rules: Ruleset,
    around: Surroundings,
    *,
    destination: bool,
) -> list[Branch]:
    """Ask chains of type nat, until one translates; once for each connection."""
    done = CtStatus.DESTINATION_DONE if destination else CtStatus.SOURCE_DONE
    if not branch.alive or branch.packet.tracked is None or done in branch.packet.tracked.status:
        return [branch]
    waiting, ended = [branch], []
    for base in chains:
        after = [
            (outcome.translated, each)
            for one in waiting
            for each, outcome in _asked(one, base, rules, around)
        ]
        ended += [each for translated, each in after if translated or not each.alive]
        waiting = [each for translated, each in after if each.alive and not translated]
    found = ended + waiting
    return [replace(each, packet=each.packet.done(destination=destination)) for each in found]


def _asked(
    branch: Branch, base: NftBaseChain, rules: Ruleset, around: Surroundings
) -> list[tuple[Branch, ChainOutcome]]:
    return [
        (_after(branch, base, outcome), outcome)
        for outcome in run(base, branch.packet, rules, around)
    ]


def _merged(branches: Iterable[Branch]) -> list[Branch]:
    """Return branches that differ; of two that lead to the same, the one with fewer doubts."""
    found: dict[tuple[object, ...], Branch] = {}
    for branch in branches:
        last = branch.last
        ended = None if branch.alive or last is None else (last.base, bool(last.outcome.reject))
        key = branch.packet, branch.alive, ended
        if key not in found or len(branch.doubts) < len(found[key].doubts):
            found[key] = branch
    return list(found.values())[:_MOST_BRANCHES]
