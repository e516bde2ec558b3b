"""Chains, run on a packet as the kernel runs them.

Every rule's expressions, jumps, verdicts, policies.

Pure except for what it asks of `Ruleset` and `Surroundings`. Where a packet may go two ways,
because chance decides or because somebody cannot know, both are followed; an outcome carries a
doubt for each such fork on its way. Different ways to the same place are followed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nftproxy.path.expressions import RuleMachine
from nftproxy.path.packet import Packet
from nftproxy.path.ruleset import NftBaseChain, NftChain, NftRule, Ruleset, Surroundings
from nftproxy.path.state import Doubt, Event, RuleState
from nftproxy.table.expressions import VerdictCode

_DEEPEST = 16  # NFT_JUMP_STACK_SIZE
_MOST = 20_000
"""Rules run for one chain and packet; more are not followed."""


@dataclass(frozen=True, slots=True)
class ChainOutcome:
    """What a base chain says to a packet; without a rule it was the policy."""

    verdict: int
    packet: Packet
    chain: NftChain
    rule: NftRule | None
    doubts: tuple[Doubt, ...] = ()
    events: tuple[Event, ...] = ()
    reject: str = ""
    translated: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the packet lives."""
        return self.verdict == VerdictCode.ACCEPT


@dataclass(frozen=True, slots=True)
class _At:
    """A place in a chain, with the places to return to."""

    chain: NftChain
    index: int
    returns: tuple[tuple[NftChain, int], ...] = ()


def run(
    base: NftBaseChain, packet: Packet, rules: Ruleset, around: Surroundings
) -> list[ChainOutcome]:
    """Run a base chain; the outcomes that a packet can have there, each once."""
    machine = RuleMachine(base, rules, around)
    found: dict[tuple[int, Packet, bool], ChainOutcome] = {}
    seen: set[tuple[_At, Packet]] = set()
    waiting = [(_At(base.chain, 0), RuleState(packet))]
    steps = 0
    while waiting:
        at, state = waiting.pop()
        if (at, state.packet) in seen:
            continue
        seen.add((at, state.packet))
        steps += 1
        if steps > _MOST:
            doubt = Doubt("size", f"more than {_MOST} rules, the rest were not followed", None)
            _keep(
                found,
                ChainOutcome(
                    VerdictCode.ACCEPT,
                    state.packet,
                    at.chain,
                    None,
                    (*state.doubts, doubt),
                    state.events,
                ),
            )
            break
        here = rules.rules(at.chain)
        if at.index >= len(here):
            waiting += _returned(at, state, base, found)
            continue
        rule = here[at.index]
        for after in machine.run(rule, state):
            waiting += _next(at, rule, after, base, found)
    outcomes = list(found.values())
    if len(outcomes) == 1:  # whatever was in doubt made no difference
        return [replace(outcomes[0], doubts=())]
    return outcomes


def _next(
    at: _At,
    rule: NftRule,
    state: RuleState,
    base: NftBaseChain,
    found: dict[tuple[int, Packet, bool], ChainOutcome],
) -> list[tuple[_At, RuleState]]:
    """Return where a rule's verdict leads to; an end is kept in `found`."""
    on = replace(at, index=at.index + 1)
    state, code, target = (
        replace(state, code=VerdictCode.CONTINUE, target=""),
        state.code,
        state.target,
    )
    match code:
        case VerdictCode.CONTINUE | VerdictCode.BREAK:
            return [(on, state)]
        case VerdictCode.JUMP if len(at.returns) < _DEEPEST:
            return [
                (
                    _At(
                        NftChain(at.chain.table, target), 0, (*at.returns, (at.chain, at.index + 1))
                    ),
                    state,
                )
            ]
        case VerdictCode.GOTO:
            return [(_At(NftChain(at.chain.table, target), 0, at.returns), state)]
        case VerdictCode.RETURN:
            return _returned(at, state, base, found)
        case VerdictCode.JUMP:
            code = VerdictCode.DROP
    _keep(
        found,
        ChainOutcome(
            code,
            state.packet,
            at.chain,
            rule,
            state.doubts,
            state.events,
            state.reject,
            translated=state.translated,
        ),
    )
    return []


def _returned(
    at: _At,
    state: RuleState,
    base: NftBaseChain,
    found: dict[tuple[int, Packet, bool], ChainOutcome],
) -> list[tuple[_At, RuleState]]:
    """Go back to where a jump came from, or meet the policy."""
    if at.returns:
        chain, index = at.returns[-1]
        return [(_At(chain, index, at.returns[:-1]), state)]
    policy = VerdictCode.DROP if base.drops else VerdictCode.ACCEPT
    _keep(found, ChainOutcome(policy, state.packet, base.chain, None, state.doubts, state.events))
    return []


def _keep(found: dict[tuple[int, Packet, bool], ChainOutcome], outcome: ChainOutcome) -> None:
    """Keep one outcome of each kind: the one with the fewest doubts."""
    key = outcome.verdict, outcome.packet, bool(outcome.reject)
    if key not in found or len(outcome.doubts) < len(found[key].doubts):
        found[key] = outcome


def on_hook(
    chains: Sequence[NftBaseChain], packet: Packet, rules: Ruleset, around: Surroundings
) -> Iterator[tuple[NftBaseChain, ChainOutcome]]:
    """Run chains of one hook one after the other.

    Yield each outcome where the packet ends, and the last one where it lives.
    """
    if not chains:
        return
    first, *rest = chains
    for outcome in run(first, packet, rules, around):
        yield first, outcome
        if outcome.goes_on:
            yield from on_hook(rest, outcome.packet, rules, around)
