"""`nftproxy doctor`: what is wrong with this node, and the command that cures it."""

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from nftproxy.configuration.flags import CONTEXT_SETTINGS, whose_options
from nftproxy.doctor.model import CheckState, Result
from nftproxy.node import memory

if TYPE_CHECKING:
    from nftproxy.doctor.gathering import Asked

Command = TypeVar("Command", bound=Callable[..., Any])
_COLOURS = {
    CheckState.OK: "green",
    CheckState.WARNING: "yellow",
    CheckState.BAD: "red",
    CheckState.UNCHECKED: "cyan",
}
_WIDTH = 100
_INDENT = 15
_EXAMPLES = """\b
For example:
  nftproxy doctor
  nftproxy doctor --probe
  nftproxy doctor --config /etc/nftproxy/config.conf --output json
"""


class Examined(msgspec.Struct, frozen=True):
    """What `--output json` prints."""

    version: int
    counts: dict[str, int]
    checks: tuple[Result, ...]


def asking_options(command: Command) -> Command:
    """Add the options that say where the facts are to a command."""
    manifests = click.option(
        "--manifests",
        type=click.Path(path_type=Path, readable=False),  # `Manifests` reports its faults
        multiple=True,
        metavar="PATH",
        help="Read the Node and the ServiceCIDRs from these files or folders instead of the API "
        "server; may be repeated.",
    )
    root = click.option(
        "--host-root",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        default="/",
        show_default=True,
        metavar="FOLDER",
        help="Where the host's files are, for a container that mounts them.",
    )
    probe = click.option(
        "--probe",
        is_flag=True,
        help="Also connect to kubernetes.default and the cluster's DNS, through the ClusterIP and "
        "at each endpoint.",
    )
    return manifests(probe(root(whose_options(command))))


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@asking_options
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
def doctor(output: str, **options: Any) -> int:
    """Say what is wrong with this node, and the command that cures it.

    Each check is ok, a warning, bad or not checked, with what it means for Services and what to
    type. Nothing is changed. What cannot be looked at is named with the reason: most of it needs
    the capability NET_ADMIN, and the checks of the node's place in the cluster need its
    configuration, which the running process serves or --config names.

    In a cluster: kubectl -n kube-system exec POD -- nftproxy doctor, in the pod of that node.

    Exit code: 0 nothing is bad, 1 something is bad, 2 after an error.
    """
    memory.collect_seldom()
    found = examine(options)
    bad = any(result.state is CheckState.BAD for result in found)
    if output == "json":
        click.echo(examined(found))
    else:
        for line in lines(found, _columns()):
            click.echo(line)
    return 1 if bad else 0


def examine(options: dict[str, Any]) -> list[Result]:
    """Gather all facts and judge them; `options` are those of `asking_options`."""
    from nftproxy.doctor.checks import CHECKS
    from nftproxy.doctor.gathering import gather
    from nftproxy.doctor.judgement import judge

    return judge(CHECKS, gather(asked_of(options)))


def asked_of(options: dict[str, Any]) -> "Asked":
    """Return what the parameters of a command with `asking_options` ask for."""
    from nftproxy.doctor.gathering import Asked

    flags = dict(options)
    return Asked(
        manifests=flags.pop("manifests"),
        host_root=flags.pop("host_root"),
        probe=flags.pop("probe"),
        flags=flags,
    )


def examined(results: Iterable[Result]) -> str:
    """Return findings as JSON."""
    found = tuple(results)
    counts = Counter(result.state.value for result in found)
    whole = Examined(1, {state.value: counts[state.value] for state in CheckState}, found)
    return msgspec.json.format(msgspec.json.encode(whole)).decode()


def lines(results: Iterable[Result], width: int) -> Iterable[str]:
    """Yield what people read: a line for each check, what to do below those that are not ok."""
    group = ""
    results = list(results)
    names = max(len(result.check) for result in results)
    for result in results:
        if result.group != group:
            yield from ([""] if group else [])
            group = result.group
            yield click.style(group, bold=True)
        state = click.style(f"{result.state.value:<13}", fg=_COLOURS[result.state])
        first, *more = _wrapped(result.found, width - _INDENT - names - 2)
        yield f"  {state}{result.check:<{names}}  {first}".rstrip()
        yield from (" " * (_INDENT + names + 2) + line for line in more)
        yield from _advice("means", result.means, width)
        for number, cure in enumerate(result.cures):
            label = "" if number else "try"
            yield f"{'':{_INDENT}}{label:<7}{click.style(_printable(cure), bold=True)}"
    counts = Counter(result.state for result in results)
    yield ""
    yield ", ".join(f"{counts[state]} {state.value}" for state in CheckState if counts[state])


def _advice(label: str, text: str, width: int) -> Iterable[str]:
    for number, line in enumerate(_wrapped(text, width - _INDENT - 7) if text else ()):
        yield f"{'':{_INDENT}}{'' if number else label:<7}{line}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        _printable(text), max(width, 20), break_long_words=False, break_on_hyphens=False
    ) or [""]


def _printable(text: str) -> str:
    """Return a text without control characters: names of other programs' chains may hold any."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _columns() -> int:
    return (
        min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
        if sys.stdout.isatty()
        else _WIDTH
    )
