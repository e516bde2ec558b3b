"""A path as text for a terminal.

Pure: lines with the names of styles, which the command turns into colour.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from nftproxy.path.model import Candidate, Outcome, Path, Reach, Step

_WIDTH: Final = 14  # of the names of steps
_WORDS: Final = {
    Outcome.OK: "ok",
    Outcome.FOUND: "found",
    Outcome.STOPPED: "STOPPED",
    Outcome.MAY: "MAY STOP",
    Outcome.UNCHECKED: "not checked",
}
_STYLES: Final = {
    Outcome.OK: "",
    Outcome.FOUND: "",
    Outcome.STOPPED: "bad",
    Outcome.MAY: "warning",
    Outcome.UNCHECKED: "quiet",
}
_REACH: Final = {
    Reach.YES: ("reached", ""),
    Reach.NO: ("NOT REACHED", "bad"),
    Reach.MAY: ("may be reached", "warning"),
    None: ("", ""),
}
_CLIENTS: Final = {
    "pod": "a pod on this node",
    "node": "this node",
    "outside": "a client outside",
}


class Line(NamedTuple):
    """A line and the name of its style: bad, warning, quiet, bold, or none."""

    text: str
    style: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Yield a path from the client to the answer, then the causes."""
    yield Line(_head(path), "bold")
    if path.target.address:
        yield Line(f"  asked by {_client(path)}")
    yield from _way(path)
    if path.reply:
        yield Line(f"     {'reply':{_WIDTH}} {_reply(path)}")
    yield from _answer(path)


def _way(path: Path) -> Iterator[Line]:
    number = 0
    for step in path.steps:
        if not step.endpoint:
            number += 1
            yield from _step(number, step)
    used = [each for each in path.candidates if each.used]
    for each in used:
        number += 1
        yield _endpoint(number, each)
        for step in path.steps:
            if step.endpoint == str(each):
                yield from _step(0, step)
    for each in path.candidates:
        if not each.used:
            yield Line(f"     {'left out':{_WIDTH}} {each}  {each.reason}", "quiet")


def _answer(path: Path) -> Iterator[Line]:
    style = "" if path.reach is Reach.YES else "bad" if path.reach is Reach.NO else "warning"
    for cause in path.causes:
        yield Line(cause.text, style)
        for command in cause.commands:
            yield Line(f"{'try':12} {command}")
    if path.not_checked:
        yield Line(f"{'not checked':12} {'; '.join(path.not_checked)}", "quiet")


def _head(path: Path) -> str:
    target = path.target
    if not target.address:
        return target.asked
    host = f"[{target.address}]" if ":" in target.address else target.address
    names = [target.service or target.asked, f"{host}:{target.port}/{target.protocol}"]
    return "  ".join([*names, target.kind or "no Service's address"])


def _client(path: Path) -> str:
    client = path.client
    what = _CLIENTS.get(client.what, client.what)
    behind = f" ({client.interface})" if client.interface else ""
    return f"{client.address}, {what}{behind}" if client.address else what


def _step(number: int, step: Step) -> Iterator[Line]:
    start = f"{number:3}" if number else "   "
    said = f"{step.looked_up} -> {step.came_out}" if step.looked_up else step.came_out
    yield Line(
        f"{start}  {step.name:{_WIDTH}} {said}  {_WORDS[step.outcome]}", _STYLES[step.outcome]
    )
    for detail in step.details:
        yield Line(f"     {'':{_WIDTH}} {detail}", _STYLES[step.outcome])


def _endpoint(number: int, each: Candidate) -> Line:
    words, style = _REACH[each.reach]
    share = "" if each.share is None else f"{each.share:.0%}"
    return Line(f"{number:3}  {'endpoint':{_WIDTH}} {each}  {share}  {words}".rstrip(), style)


def _reply(path: Path) -> str:
    reply = path.reply
    assert reply  # noqa: S101 - asked by the caller
    after = "" if reply.milliseconds is None else f" after {reply.milliseconds:.1f} ms"
    return f"{reply.what}{f' by {reply.who}' if reply.who else ''}{after}"
