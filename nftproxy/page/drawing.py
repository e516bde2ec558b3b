"""A path as a picture: stations from top to bottom, as a packet meets them. Pure.

A narrow picture, so that a phone shows it without scrolling to the side. First come the steps of
every packet; then, for each endpoint that may answer, its share and the steps on the way to it; at
the end the endpoints that get nothing, each with the reason.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nftproxy.path.model import Candidate, Outcome, Path, Reach, Step

WIDTH: Final = 360
_LINE: Final = 16  # height of a line of text
_GAP: Final = 14  # between two stations
_TRUNK: Final = 20  # x of the line that all packets follow
_BRANCH: Final = 44  # x of the line of those to one endpoint
_COLUMNS: Final = 46  # characters of a line beside the trunk
_MOST: Final = 12  # endpoints drawn

_CLASSES: Final = {
    Outcome.OK: "ok",
    Outcome.FOUND: "found",
    Outcome.STOPPED: "stopped",
    Outcome.MAY: "may",
    Outcome.UNCHECKED: "unchecked",
}
_ITSELF = "endpoint"  # the step that says how an endpoint is reached
_CLIENTS: Final = {"pod": "a pod on this node", "node": "this node", "outside": "a client outside"}
_REACH: Final = {Reach.YES: "ok", Reach.NO: "stopped", Reach.MAY: "may", None: "unchecked"}


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text and the place of its left end; `kind` is a class of the style sheet."""

    x: int
    y: int
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Station:
    """A stop on the line, with the line that leads to it from above."""

    x: int
    y: int
    kind: str
    start_x: int  # of the line to it
    start_y: int
    texts: tuple[Text, ...]
    share: float = 0  # of 1; how wide the line to it is
    endpoint: str = ""  # the endpoint that it stands for, whose counter is shown beside it

    @property
    def is_joined(self) -> bool:
        """Whether a line leads to it."""
        return (self.start_x, self.start_y) != (self.x, self.y)

    @property
    def width(self) -> float:
        """The width of the line to it."""
        return 2 + 6 * self.share


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture, `WIDTH` wide; `title` says in words what it shows."""

    title: str
    height: int
    stations: tuple[Station, ...]

    @property
    def width(self) -> int:
        """The width, for the template."""
        return WIDTH


def draw(path: Path) -> Drawing:
    """Return the picture of a path."""
    pen = _Pen()
    pen.station(
        path.client.address or path.client.what,
        [_CLIENTS.get(path.client.what, path.client.what)],
        "found",
    )
    for step in path.steps:
        if not step.endpoint:
            pen.station(step.name, _words(step), _CLASSES[step.outcome])
    used = [each for each in path.candidates if each.used]
    _draw_endpoints(pen, path, used)
    left_out = [each for each in path.candidates if not each.used]
    for each in left_out[:_MOST]:
        pen.aside(f"{each}", [each.reason or "gets no connections"])
    if len(left_out) > _MOST:
        pen.aside(f"{len(left_out) - _MOST} more endpoints", ["left out"])
    if path.reply:
        pen.station(path.reply.what, [path.reply.who] if path.reply.who else [], _reply(path))
    return Drawing(_title(path), pen.y, tuple(pen.stations))


def _draw_endpoints(pen: "_Pen", path: Path, used: list[Candidate]) -> None:
    fork = pen.last
    for each in used[:_MOST]:
        steps = [step for step in path.steps if step.endpoint == str(each)]
        words = [] if each.share is None else [f"{each.share:.0%} of new connections"]
        words += [step.came_out for step in steps if step.name == _ITSELF]
        pen.branch(fork, f"{each}", words, _REACH[each.reach], each.share or 0)
        for step in steps:
            if step.name != _ITSELF:
                pen.follow(step.name, _words(step), _CLASSES[step.outcome])
    if len(used) > _MOST:
        pen.branch(fork, f"{len(used) - _MOST} more endpoints", [], "unchecked", 0)


class _Pen:
    """Where the next station goes."""

    def __init__(self) -> None:
        self.y = 0
        self.stations: list[Station] = []
        self.last: tuple[int, int] | None = None

    def station(self, name: str, words: Iterable[str], kind: str) -> None:
        """Draw a stop on the line of all packets."""
        self._draw(_TRUNK, self.last, name, words, kind, 0)

    def branch(
        self,
        fork: tuple[int, int] | None,
        name: str,
        words: Iterable[str],
        kind: str,
        share: float,
    ) -> None:
        """Draw an endpoint, with a line from where the ways part."""
        self._draw(_BRANCH, fork, name, words, kind, share, name)

    def follow(self, name: str, words: Iterable[str], kind: str) -> None:
        """Draw a stop on the way to the last endpoint."""
        self._draw(_BRANCH, self.last, name, words, kind, 0)

    def aside(self, name: str, words: Iterable[str]) -> None:
        """Draw an endpoint to which no line leads."""
        self._draw(_BRANCH, None, name, words, "out", 0)

    def _draw(
        self,
        x: int,
        start: tuple[int, int] | None,
        name: str,
        words: Iterable[str],
        kind: str,
        share: float,
        endpoint: str = "",
    ) -> None:
        self.y += _GAP
        y = self.y + _LINE // 2
        left, columns = x + 16, _COLUMNS - (x - _TRUNK) // 7
        texts = []
        for line in textwrap.wrap(name, columns):
            self.y += _LINE
            texts.append(Text(left, self.y - 4, line, "name"))
        for word in words:
            for line in textwrap.wrap(word, columns):
                self.y += _LINE
                texts.append(Text(left, self.y - 4, line, "word"))
        start_x, start_y = start or (x, y)
        self.stations.append(Station(x, y, kind, start_x, start_y, tuple(texts), share, endpoint))
        self.last = x, y


def _words(step: Step) -> list[str]:
    said = [step.looked_up, step.came_out]
    if step.rule and step.rule.text:
        said.append(step.rule.text)
    return [each for each in said if each]


def _reply(path: Path) -> str:
    return {Reach.YES: "ok", Reach.NO: "stopped", Reach.MAY: "may"}[path.reach]


def _title(path: Path) -> str:
    ends = {
        Reach.YES: "gets through",
        Reach.NO: "does not get through",
        Reach.MAY: "may get through",
    }
    return (
        f"A connection from {path.client.address or path.client.what} to {path.target.asked} "
        f"{ends[path.reach]}"
    )
