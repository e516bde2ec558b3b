"""The command `nftproxy bench`: reads options, runs, reports, and ends cleanly at any time."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from nftproxy import columns
from nftproxy.bench import charts, machine, report, shapes
from nftproxy.bench.api import ApiServer
from nftproxy.bench.bed import clear, scratch
from nftproxy.bench.controlplane import PROGRAMS, assets
from nftproxy.bench.modes import MODES, REAL, KubeProxyProgram, ModePlace, make
from nftproxy.bench.offer import FEWEST, Offer
from nftproxy.bench.plan import FULL, QUICK, BenchPlan
from nftproxy.bench.rounds import Run
from nftproxy.bench.statistics import Summary
from nftproxy.bench.workload import MOST, Mix, Workload, node_settings
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import NftproxyError
from nftproxy.lab import build

_SIZES, _QUICK_SIZES = "100,1000,10000", "100,1000"
_MODES, _QUICK_MODES = (
    "none,nftproxy,iptables,kube-proxy-nftables,ipvs,userspace",
    "none,nftproxy,iptables,kube-proxy-nftables",
)
_REPEAT, _QUICK_REPEAT = 3, 1
ENDED_EARLY = "ended early: the results so far"


@click.command(context_settings=CONTEXT_SETTINGS)
@click.option("--services", metavar="N,N...", help=f"Numbers of services, by default {_SIZES}.")
@click.option("--endpoints", default=3, show_default=True, help="Endpoints of each service.")
@click.option(
    "--mix",
    type=click.Choice([mix.value for mix in Mix]),
    default=Mix.PLAIN.value,
    show_default=True,
    help="Plain: ClusterIPs. Mixed: a fifth are LoadBalancers with NodePort and external policy "
    "Local, one in a hundred has "
    "ClientIP affinity.",
)
@click.option(
    "--modes",
    metavar="MODE,MODE...",
    help=f"What to compare, of {', '.join(MODES)}, iptables, {', '.join(REAL)}; by default "
    f"{_MODES}.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    help=f"Rounds for each number of services, by default {_REPEAT}.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"Less of everything, under a minute: {_QUICK_SIZES} services, {_QUICK_REPEAT} round; or "
    "smaller shapes.",
)
@click.option(
    "--shapes",
    "by_shape",
    is_flag=True,
    help="Compare no modes, but odd Services with plain ones, as ratios: very large ones, many "
    "ports, affinity, and a restart with a first sync. With nftproxy alone, and without packets.",
)
@click.option(
    "--kube-proxy",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help=f"Measure a real kube-proxy, too, as {' and '.join(REAL)}. Needs an API server: "
    "KUBEBUILDER_ASSETS has to name a folder "
    f"with {' and '.join(PROGRAMS)}.",
)
@click.option(
    "--iptables-backend", type=click.Choice(["legacy", "nft"]), default="legacy", show_default=True
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("nftproxy-bench"),
    show_default=True,
    help="Folder for CSV and charts.",
)
def bench(
    services: str | None,
    endpoints: int,
    mix: str,
    modes: str | None,
    repeat: int | None,
    kube_proxy: Path | None,
    iptables_backend: Literal["legacy", "nft"],
    output: Path,
    *,
    quick: bool,
    by_shape: bool,
) -> int:
    """Measure what Services cost on this machine, and compare ways to proxy them.

    The bench uses network namespaces of its own and removes them at the end; needs root. Every mode
    writes rules for the same services and gets the same connections, in turns. Single connections
    and datagrams are timed with client and endpoints on one processor. Ctrl-C ends it with the
    results so far.
    """
    build.check_machine()
    if by_shape:
        _refuse_with_shapes(click.get_current_context())
        return _compare_shapes(repeat or (_QUICK_REPEAT if quick else _REPEAT), output, quick=quick)
    program, version = _kube_proxy(kube_proxy) if kube_proxy else ("", "")
    default = ",".join([_QUICK_MODES if quick else _MODES, *(REAL if program else ())])
    wanted = _modes(modes or default, iptables_backend, program)
    available = [mode for mode, reason in wanted.items() if not reason]
    for reason in filter(None, wanted.values()):
        click.echo(f"{click.style('left out:', fg='yellow')} {reason}", err=True)
    if not available:
        raise NftproxyError("no mode is left to measure")
    plan = BenchPlan(
        offers=_offers(services or (_QUICK_SIZES if quick else _SIZES), endpoints, Mix(mix)),
        modes=tuple(available),
        repeat=repeat or (_QUICK_REPEAT if quick else _REPEAT),
        effort=QUICK if quick else FULL,
        iptables_backend=iptables_backend,
        kube_proxy=program,
    )
    output.mkdir(parents=True, exist_ok=True)
    described = _machine() | ({"kube-proxy": version} if version else {})
    run, interrupted = _run(plan)
    for note in dict.fromkeys(run.notes):
        click.echo(f"{click.style('warning:', fg='yellow')} {note}", err=True)
    _report(run, described, output, interrupted=interrupted)
    return 130 if interrupted else 0


def _refuse_with_shapes(context: click.Context) -> None:
    """Raise NftproxyError for options that say what to compare otherwise."""
    for name in ("services", "endpoints", "mix", "modes", "kube_proxy", "iptables_backend"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise NftproxyError(
                f"--shapes cannot be used with --{name.replace('_', '-')}",
                hint="it compares Services of its own, with nftproxy alone",
            )


def _kube_proxy(path: Path) -> tuple[str, str]:
    """Return a kube-proxy and its version; NftproxyError if it is invalid or has no API server."""
    try:
        said = subprocess.run(
            [path.absolute(), "--version"], capture_output=True, text=True, check=False, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NftproxyError(
            f"--kube-proxy: {path} cannot be run: {error}", hint="name kube-proxy's own program"
        ) from error
    if not said.startswith("Kubernetes v"):
        raise NftproxyError(
            f"--kube-proxy: {path} is no kube-proxy: it says {said[:60]!r} to --version"
        )
    assets()
    return str(path.absolute()), said


def _modes(text: str, backend: Literal["legacy", "nft"], kube_proxy: str) -> dict[str, str]:
    """Return the modes named in a list, each with why it cannot be measured here, or ""."""
    program = KubeProxyProgram(kube_proxy, ApiServer("", "", ""), "") if kube_proxy else None
    found = {}
    with scratch() as name:
        place = ModePlace(name, node_settings(), Workload(1).service_cidr())
        for wanted in dict.fromkeys(text.split(",")):
            mode = make(wanted.strip(), place, backend, program)
            found[mode.name] = mode.unavailable()
    return found


def _offers(text: str, endpoints: int, mix: Mix) -> tuple[Offer, ...]:
    offers = []
    for size in text.split(","):
        if not size.strip().isdecimal() or not FEWEST <= int(size) <= MOST:
            raise NftproxyError(
                f"--services: {size.strip()!r} is not a number from {FEWEST} to {MOST}"
            )
        offers.append(Offer(int(size), endpoints, mix))
        offers[-1].workload()  # raises if there are too few addresses
    return tuple(offers)


def _run(plan: BenchPlan) -> tuple[Run, bool]:
    """Run a plan; return the results, and whether a signal ended it."""
    with _progress(plan.steps) as advance:
        run = Run(plan, advance)
        return run, _interrupted(run.go)


def _compare_shapes(repeat: int, output: Path, *, quick: bool) -> int:
    """Compare shapes of Services, and report; return the exit code."""
    sizes = shapes.QUICK if quick else shapes.FULL
    output.mkdir(parents=True, exist_ok=True)
    found: list[shapes.Compared] = []
    described = _machine()
    with _progress(2 * repeat * len(shapes.pairs(sizes))) as advance:
        interrupted = _interrupted(
            lambda: found.extend(shapes.compare(sizes, repeat, lambda title: advance(title, 1)))
        )
    if found:
        header, *rows = report.shapes(found)
        columns.show(header, rows)
    if interrupted:
        click.echo(ENDED_EARLY)
    report.write_shapes(output / "shapes.csv", found)
    report.write_machine(output / "machine.csv", described)
    click.echo(f"{output}: shapes.csv, machine.csv")
    return 130 if interrupted else 0


def _machine() -> dict[str, str]:
    return machine.describe() | {"command": shlex.join(["nftproxy", *sys.argv[1:]])}


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar on a terminal; the function that it lends takes a text and how far to advance."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    line = TextColumn("{task.description}")
    with Progress(
        BarColumn(),
        TimeElapsedColumn(),
        line,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=steps)
        yield lambda text, done: bar.update(task, description=text, advance=done)


def _interrupted(go: Callable[[], None]) -> bool:
    """Run something; return whether a signal ended it."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _interrupt_once(signals)) for number in signals]
    try:
        go()
    except KeyboardInterrupt:
        clear()  # nothing disturbs any more
        return True
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    return False


def _interrupt_once(signals: Sequence[int]) -> Callable[[int, Any], None]:
    """Return a handler: the first signal ends the run; further ones do not disturb the clean-up."""

    def handler(_number: int, _frame: Any) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    return handler


def _report(run: Run, described: dict[str, str], output: Path, *, interrupted: bool) -> None:
    figures = Summary(run.samples, run.plan.modes)
    for size in figures.sizes:
        header, *rows = report.table(figures, size)
        columns.show(header, rows)
        click.echo()
    if figures.sizes:
        click.echo(report.LEGEND)
    if interrupted:
        click.echo(ENDED_EARLY)
    report.write_samples(output / "samples.csv", run.samples)
    report.write_machine(output / "machine.csv", described)
    written = ["samples.csv", "machine.csv", *charts.draw(figures, output)]
    click.echo(f"{output}: {', '.join(written)}")
    if not charts.available():
        click.echo("for charts: pip install 'nftproxy[bench]'")
