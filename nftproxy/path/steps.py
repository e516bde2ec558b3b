"""A journey as steps.

Every base chain that stopped, translated or marked a packet, and how many others let it pass. Pure.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nftproxy.path.hooks import Branch, Visit
from nftproxy.path.journey import Journey, Stop
from nftproxy.path.model import Outcome, Place, PlaceKind, Rule, Step, Whose
from nftproxy.path.packet import place
from nftproxy.path.ruleset import OURS, NftBaseChain, NftRule
from nftproxy.table.expressions import VerdictCode


@dataclass(frozen=True, slots=True)
class Met:
    """What a base chain said to packets to one endpoint, or to all."""

    base: NftBaseChain
    endpoint: str
    visits: tuple[Visit, ...]

    @property
    def dead(self) -> list[Visit]:
        """The visits that ended there."""
        return [visit for visit in self.visits if visit.outcome.verdict != VerdictCode.ACCEPT]

    @property
    def is_ours(self) -> bool:
        """Whether it is our table's."""
        return self.base.chain.table == OURS


def met(stop: Stop, before: set[int], frontend: str) -> list[Met]:
    """Return what each base chain of a stop said, in order.

    Visits that earlier stops have shown are left out.
    """
    found: dict[tuple[NftBaseChain, str], dict[int, Visit]] = {}
    for branch in stop.branches:
        for visit in branch.visits:
            if id(visit) in before or visit.base.hook != stop.hook:
                continue
            there = place(visit.packet.ends.destination, visit.packet.ends.destination_port)
            found.setdefault((visit.base, "" if there == frontend else there), {})[id(visit)] = (
                visit
            )
    return [
        Met(base, endpoint, tuple(visits.values())) for (base, endpoint), visits in found.items()
    ]


def hook_steps(
    journey: Journey, frontend: str, text_of: Callable[[NftRule], str]
) -> Iterator[tuple[Stop, list[Met], list[Step]]]:
    """Yield each stop with what was met there, and the steps at foreign chains."""
    shown: set[int] = set()
    for stop in journey.stops:
        everything = met(stop, shown, frontend)
        shown |= {id(visit) for branch in stop.branches for visit in branch.visits}
        foreign = [one for one in everything if not one.is_ours]
        steps = [step for one in foreign if (step := _step(stop, one, text_of))]
        quiet = list(dict.fromkeys(one.base for one in foreign if not _is_told(one)))
        if quiet:
            steps.append(_passed(stop, quiet))
        yield stop, everything, steps


def _is_told(one: Met) -> bool:
    return bool(one.dead) or any(visit.outcome.translated for visit in one.visits)


def _step(stop: Stop, one: Met, text_of: Callable[[NftRule], str]) -> Step | None:
    if not _is_told(one):
        return None
    deciding = (one.dead or [visit for visit in one.visits if visit.outcome.translated])[0]
    outcome = deciding.outcome
    rule = rule_of(deciding, text_of)
    if one.dead:
        verb = "rejects" if outcome.reject else "drops"
        said = f"{rule.name}: {'policy ' if outcome.rule is None else 'rule '}{verb}"
        if outcome.rule is not None:
            said += f" ({outcome.rule.place})"
        certain = len(one.dead) == len(one.visits)
        came = Outcome.STOPPED if certain else Outcome.MAY
        doubts = (
            ()
            if certain
            else tuple(
                dict.fromkeys(
                    f"{doubt.what} decides"
                    for visit in one.visits
                    for doubt in visit.outcome.doubts
                )
            )
        )
    else:
        to = place(outcome.packet.ends.destination, outcome.packet.ends.destination_port)
        source = place(outcome.packet.ends.source, None)
        moved = outcome.packet.ends.destination != deciding.packet.ends.destination
        port = outcome.packet.ends.destination_port != deciding.packet.ends.destination_port
        said = f"{rule.name}: " + (
            f"sends it to {to}" if moved or port else f"gives it the source {source}"
        )
        came, doubts = Outcome.OK, ()
    details = (*([f"rule {rule.text}"] if rule.text else []), *doubts)
    where = Place(PlaceKind.HOOK, stop.hook, one.base.chain.table.family, one.base.priority)
    return Step(_hook_name(stop), where, rule.name, said, came, rule, one.endpoint, details)


def _passed(stop: Stop, chains: list[NftBaseChain]) -> Step:
    tables = list(dict.fromkeys(str(chain.chain.table) for chain in chains))
    number = f"{len(chains)} chain{'s' if len(chains) > 1 else ''}"
    said = f"{number} of {', '.join(tables)} let it pass"
    return Step(
        _hook_name(stop), Place(PlaceKind.HOOK, stop.hook), ", ".join(tables), said, Outcome.OK
    )


def _hook_name(stop: Stop) -> str:
    return (
        stop.hook
        if stop.family == "inet"
        else f"{stop.hook} ({stop.family}{f' {stop.device}' if stop.device else ''})"
    )


def rule_of(visit: Visit, text_of: Callable[[NftRule], str]) -> Rule:
    """Return the rule that decided, for people."""
    outcome = visit.outcome
    table = visit.base.chain.table
    whose = Whose.OURS if table == OURS else Whose.FOREIGN
    if outcome.rule is None:
        return Rule(whose, table.family, table.name, visit.base.chain.name)
    return Rule(
        whose,
        table.family,
        table.name,
        outcome.chain.name,
        outcome.rule.handle,
        text_of(outcome.rule),
    )


def doubted(branches: Iterable[Branch]) -> list[str]:
    """Return what is in doubt about branches, each once."""
    found = dict.fromkeys(
        f"{doubt.what} ({doubt.rule.chain.table} {doubt.rule.chain.name}, {doubt.rule.place})"
        if doubt.rule
        else doubt.what
        for branch in branches
        for doubt in branch.doubts
        if doubt.kind in {"limit", "unknown", "size"}
        or (doubt.rule and doubt.rule.chain.table != OURS)
    )
    return list(found)
