"""`nftproxy top`: who is asked how often, and who refuses."""

import select
import sys
import termios
import time
import tty
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import NftproxyError
from nftproxy.kernel.reader import Reader
from nftproxy.monitoring.activity import Activity, Busy, Share
from nftproxy.table.schema import Reason

_ROWS: Final = 20
_SHOWN: Final = 3  # endpoints of a row
_EXAMPLES = """\b
For example:
  nftproxy top
  nftproxy top --by refused --interval 5
  nftproxy top --by unanswered
  nftproxy top --once --output json
"""


class TopRow(msgspec.Struct, frozen=True, rename="camel"):
    """A service port: rates in packets of new connections a second, endpoints with their share."""

    service: str
    connections_per_second: float
    refused_per_second: float
    reasons: dict[str, float]
    unanswered: int | None  # connections that wait for an answer; None if nobody asked
    endpoints: list[dict[str, Any]]


class Picture(msgspec.Struct, frozen=True, rename="camel"):
    """One refresh: the busiest service ports, refusals by reason, and how full conntrack is."""

    seconds: float
    services: list[TopRow]
    refused_per_second: dict[str, float]
    conntrack_entries: int
    conntrack_limit: int


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.option(
    "--by",
    type=click.Choice(["rate", "refused", "unanswered"]),
    default="rate",
    show_default=True,
    help="Sort by new connections a second, by refused packets a second, or by connections that "
    "wait for an answer of their endpoint.",
)
@click.option("--once", is_flag=True, help="Print one picture, of one interval, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two pictures.",
)
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What --once prints.",
)
def top(by: str, interval: float, output: str, *, once: bool) -> None:
    """Show which Services and endpoints get new connections, refuse them, or do not answer.

    Rates are those of the last interval; only busy Services are shown. The share of an endpoint is
    that of all its connections so far. A client that tries again is refused again, so a refusal
    counts packets. With --by unanswered, conntrack is read as well: a connection counts, with the
    endpoint that was to answer it, from the second picture that finds it without an answer until
    conntrack forgets it, after 2 minutes of TCP or 30 s of UDP by default. Needs the capability
    NET_ADMIN. q or Ctrl-C ends it.
    """
    if output == "json" and not once:
        raise click.UsageError("--output json needs --once")
    with closing(Reader()) as reader:
        if not reader.table_exists():
            raise NftproxyError(
                "there is no table inet nftproxy here, so no service is programmed",
                hint="nftproxy run makes it; in a lab: nftproxy lab demo",
            )
        activity = Activity(reader, unanswered=by == "unanswered")
        activity.read()
        if once or not sys.stdout.isatty():
            _print(_picture(activity, by, _wait(interval)), output)
        else:
            _watch(activity, by, interval)


def _wait(seconds: float) -> float:
    start = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - start


def _picture(activity: Activity, by: str, seconds: float) -> Picture:
    busy, reasons = activity.read()
    rows = [_row(name, one, activity, seconds, by) for name, one in _first(busy, by)]
    return Picture(
        round(seconds, 3),
        rows,
        _rates(reasons, seconds),
        *(_conntrack(each) for each in ("count", "max")),
    )


def _first(busy: dict[str, Busy], by: str) -> list[tuple[str, Busy]]:
    """Return the service ports to show, sorted."""

    def rank(item: tuple[str, Busy]) -> tuple[int, int, int, str]:
        name, one = item
        refused, waiting = one.refused.total(), one.unanswered.total()
        first = {"rate": 0, "refused": refused, "unanswered": waiting}[by]
        return -first, -one.connections, -refused, name

    return sorted(busy.items(), key=rank)[:_ROWS]


def _row(name: str, one: Busy, activity: Activity, seconds: float, by: str) -> TopRow:
    shares = activity.shares(one.frontends)
    known = {share.endpoint for share in shares}
    shares += [Share(gone, 0) for gone in one.unanswered if gone not in known]
    shares.sort(key=lambda share: -one.unanswered[share.endpoint])
    total = sum(share.connections for share in shares)
    return TopRow(
        name,
        round(one.connections / seconds, 2),
        round(one.refused.total() / seconds, 2),
        _rates(one.refused, seconds),
        one.unanswered.total() if by == "unanswered" else None,
        [
            _endpoint(share, total, one.unanswered[share.endpoint] if by == "unanswered" else None)
            for share in shares
        ],
    )


def _endpoint(share: Share, total: int, unanswered: int | None) -> dict[str, Any]:
    part = round(share.connections / total, 4) if total else None
    return {
        "endpoint": str(share.endpoint),
        "connections": share.connections,
        "share": part,
        "unanswered": unanswered,
    }


def _rates(reasons: Counter[Reason], seconds: float) -> dict[str, float]:
    return {str(reason): round(packets / seconds, 2) for reason, packets in reasons.most_common()}


def _conntrack(what: str) -> int:
    try:
        return int(Path(f"/proc/sys/net/netfilter/nf_conntrack_{what}").read_text())
    except OSError:
        return 0


def _print(picture: Picture, output: str) -> None:
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(picture)))
    else:
        Console(highlight=False).print(_drawn(picture))


def _drawn(picture: Picture) -> Group:
    refused = ", ".join(f"{name} {rate:g}/s" for name, rate in picture.refused_per_second.items())
    head = Text(
        f"conntrack {picture.conntrack_entries} of {picture.conntrack_limit}   "
        f"refused: {refused or 'nothing'}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("SERVICE", overflow="fold")
    table.add_column("NEW/s", justify="right")
    table.add_column("REFUSED/s", justify="right")
    waits = any(row.unanswered is not None for row in picture.services)
    if waits:
        table.add_column("UNANSWERED", justify="right")
    table.add_column("ENDPOINTS", overflow="fold")
    for row in picture.services:
        table.add_row(
            row.service,
            f"{row.connections_per_second:g}",
            _red(row.refused_per_second),
            *((_red(row.unanswered or 0),) if waits else ()),
            _shares(row),
        )
    quiet = Text(f"no Service was asked in {picture.seconds:.1f} s", style="dim")
    return Group(head, table if picture.services else quiet)


def _red(number: float) -> Text:
    return Text(f"{number:g}", style="red" if number else "")


def _shares(row: TopRow) -> str:
    if not row.endpoints:
        return ", ".join(row.reasons)
    shown = [_shown(each) for each in row.endpoints[:_SHOWN]]
    more = len(row.endpoints) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _shown(endpoint: dict[str, Any]) -> str:
    """Return an endpoint with its share, or with how many connections wait for it."""
    if endpoint["unanswered"]:
        return f"{endpoint['endpoint']} ({endpoint['unanswered']})"
    if endpoint["share"] is None or endpoint["unanswered"] is not None:
        return str(endpoint["endpoint"])
    return f"{endpoint['endpoint']} {endpoint['share']:.0%}"


def _watch(activity: Activity, by: str, interval: float) -> None:
    start = time.monotonic()
    with _keys(), Live(screen=True, auto_refresh=False) as live:
        live.update(Text("reading..."), refresh=True)
        while not _quits(interval):
            now = time.monotonic()
            live.update(_drawn(_picture(activity, by, now - start)), refresh=True)
            start = now


@contextmanager
def _keys() -> Iterator[None]:
    """Get keys at once and unseen, until the block ends."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(seconds: float) -> bool:
    """Wait, and return whether somebody pressed q."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1) == "q"
