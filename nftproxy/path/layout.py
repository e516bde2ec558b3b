"""A path as text for a terminal. Pure."""

from collections.abc import Iterator

from nftproxy.address import bracketed
from nftproxy.path.model import Candidate, Client, Outcome, Path, Reach, Step, Target

_WORDS = {
    Outcome.OK: "ok",
    Outcome.FOUND: "found",
    Outcome.STOPPED: "STOPPED",
    Outcome.MAY: "may stop",
    Outcome.UNCHECKED: "not checked",
}
_WHAT = {"pod": "a pod on this node", "node": "this node", "outside": "outside of the cluster"}
_NAME, _SAID = 18, 62


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a path."""
    yield f"{_target(path.target)}   asked by {_client(path.client)}"
    number = 0
    before = ""
    shares = {str(each): each for each in path.candidates}
    for step in path.steps:
        same = step.name == before and bool(step.endpoint)
        number += not same
        yield from _step(step, "" if same else str(number), shares)
        before = step.name
    title = "left out"
    for each in path.candidates:
        if not each.used:
            yield f"  {title:>{_NAME + 4}}  {each}  {each.reason}"
            title = ""
    yield _verdict(path)
    for cause in path.causes:
        yield cause.text
        yield from (f"try          {command}" for command in cause.commands)
    title = "not checked"
    for what in path.not_checked:
        yield f"{title:<11}  {what}"
        title = ""


def _target(target: Target) -> str:
    if not target.address:
        return target.service or target.asked
    host = bracketed(target.address)
    place = f"{host}:{target.port}" if target.port else host
    return "  ".join(filter(None, (target.service, f"{place}/{target.protocol}", target.kind)))


def _client(client: Client) -> str:
    where = f" ({client.interface})" if client.interface else ""
    return (
        f"{client.address}, {_WHAT[client.what]}{where}" if client.address else _WHAT[client.what]
    )


def _step(step: Step, number: str, shares: dict[str, Candidate]) -> Iterator[str]:
    said = step.came_out
    if step.name == "endpoint":
        found = shares.get(step.endpoint)
        share = f"  {found.share:.0%}" if found and found.share else ""
        said = f"{step.endpoint}{share}  {said}"
    elif step.place.kind.value == "table" and step.looked_up not in step.came_out:
        said = f"{step.looked_up} -> {said}" if step.name != "source ranges" else said
    elif step.endpoint:
        said = f"{said}  (to {step.endpoint})"
    name = "" if not number else step.name
    yield f"  {number:>2}  {name:<{_NAME}}  {said:<{_SAID}}  {_WORDS[step.outcome]}"
    yield from (f"{'':{_NAME + 8}}{detail}" for detail in step.details)


def _verdict(path: Path) -> str:
    used = [each for each in path.candidates if each.used]
    if path.reach is Reach.NO:
        return "Does not reach an endpoint."
    if path.reach is Reach.YES:
        where = f"any of {len(used)} endpoints" if len(used) > 1 else "its endpoint"
        return f"Reaches {where}." + (" But:" if path.causes else " Nothing is wrong here.")
    fine = [each for each in used if each.reach is Reach.YES]
    if used and fine:
        return f"Reaches {len(fine)} of {len(used)} endpoints."
    if used and not path.causes and all(each.reach is None for each in used):
        return f"Should reach any of {len(used)} endpoints, as far as the objects show."
    return "May reach an endpoint: what is not checked decides."
