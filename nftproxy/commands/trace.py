"""`nftproxy trace`: what really happens to connections, from the kernel's own reports."""

import signal
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import click
import msgspec

from nftproxy.address import pack, parse_address
from nftproxy.configuration.duration import Duration
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import AddressError, ConfigError, NftproxyError
from nftproxy.kernel.channel import Channel
from nftproxy.kernel.headers import PacketEnd
from nftproxy.kernel.reader import Reader
from nftproxy.path.held import HeldByKernel
from nftproxy.path.layout import lines
from nftproxy.path.live import LiveRuleset
from nftproxy.path.model import Path, Reach
from nftproxy.path.request import parse_target
from nftproxy.path.routing import Routing
from nftproxy.trace.clients import NODE, OUTSIDE, POD, Clients
from nftproxy.trace.flows import TracedFlow
from nftproxy.trace.frontends import Frontends, resolve
from nftproxy.trace.here import Here
from nftproxy.trace.marks import Wanted
from nftproxy.trace.probe import Probe
from nftproxy.trace.telling import tell, unsent
from nftproxy.trace.tracer import Tracer

_EXAMPLES = """\b
For example:
  nftproxy trace default/web:http                  the next five connections to it
  nftproxy trace default/web --from 10.244.1.9     those of one client
  nftproxy trace 30080 --from outside --count 1    one to this NodePort, from outside
  nftproxy trace default/web --probe --count 1     one that this node makes now
  nftproxy trace 10.96.0.10:53 --output json       a line of JSON for each
"""
_WORDS = (POD, NODE, OUTSIDE)
_LONGEST = 86_400  # seconds


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.argument("target")
@click.option(
    "--from", "source", metavar="ADDRESS|pod|node|outside", default="", help="Only of this client."
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="End after this number of connections.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="End after this time, as 30s or 2m.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Trace at most this number of connections a second; others pass unseen.",
)
@click.option("--probe", is_flag=True, help="Make the connections, from this node.")
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
def trace(
    target: str, source: str, count: int, timeout: str, rate: int, output: str, *, probe: bool
) -> int:
    """Show what happens to real connections to TARGET, and who answers.

    TARGET is a Service as NAMESPACE/NAME or NAMESPACE/NAME:PORT, an address as ADDRESS:PORT or
    [ADDRESS]:PORT, or the number of a NodePort; the latter two also with a protocol, as
    10.96.0.10:53/udp, which nftproxy show prints.

    The kernel reports which rules of all tables the first packet of a connection meets, ours and
    those of other programs, and which ones its answer meets. Each chain is a line: what was looked
    up or which rule decided, and the result. The last line is the answer: answered, refused, or
    silent.

    On the node of the client, this shows the whole choice. Packets are marked by a table of its
    own, inet nftproxy-trace-NUMBER, which decides about none and goes with this command, however
    it ends. Rules of iptables-legacy are not reported.

    The exit code is 0 if connections were seen and all were answered, 1 if one was not or none was
    seen, 2 if the input is wrong. Needs the capability NET_ADMIN, and NET_RAW to see answers that
    pass this node by.
    """
    wanted_target = parse_target(target)
    seconds = _seconds(timeout)
    # Before the table is there: SIGTERM ends this as Ctrl-C does, and takes the table away
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        rules = LiveRuleset()
        stack.callback(rules.close)
        here = Here(rules, stack.enter_context(Routing()))
        here.clients = _clients(source, here, probe=probe)
        reader = Reader(Channel())
        stack.callback(reader.close)
        found = resolve(wanted_target, reader, HeldByKernel(rules), here.routing.addresses())
        here.services = found.services
        session = _TraceSession(target, here, output)
        tracer = stack.enter_context(
            Tracer(Wanted(found.wanted, here.clients, rate), here.routing.links)
        )
        session.tracer = tracer
        return session.run(found, count, seconds, probe=probe)


def _clients(source: str, here: Here, *, probe: bool) -> Clients:
    pods = here.pods()
    if probe and source not in {"", NODE}:
        raise ConfigError(
            [f"--probe connects from this node, not from {source}"], hint="leave out --from"
        )
    if probe or source in _WORDS:
        if source == POD and not pods:
            raise NftproxyError(
                "the table does not say which addresses are pods'", hint="--from ADDRESS"
            )
        return Clients(NODE if probe else source, None, pods)
    if not source:
        return Clients("", None, pods)
    try:
        return Clients("", parse_address(source), pods)
    except AddressError:
        raise ConfigError(
            [f"--from: {source[:80]!r} is neither an address nor pod, node or outside"],
            hint="the addresses of pods: kubectl get pods -o wide",
        ) from None


@dataclass(slots=True)
class _TraceSession:
    """Prints the connections of one run."""

    target: str
    here: Here
    output: str
    tracer: Tracer = field(init=False)
    paths: list[Path] = field(default_factory=list)

    def run(self, found: Frontends, count: int, seconds: float, *, probe: bool) -> int:
        """Watch, and return the exit code."""
        frontends = [one for family in found.wanted.values() for one in family]
        if self.output == "text":
            places = ", ".join(map(str, frontends[:3])) + (" ..." if len(frontends) > 3 else "")
            click.echo(
                f"connections to {places}: waiting for {count}, at most {seconds:g} s", err=True
            )
        prober = Probe(frontends, count) if probe else None
        try:
            self.tracer.watch(count, seconds, self._seen, lambda: self._tick(prober))
        finally:
            if prober:
                prober.close()
        return self._end(seconds)

    def _tick(self, prober: Probe | None) -> None:
        if prober is None:
            return
        prober.tick()
        while prober.unsent:
            frontend, why = prober.unsent.pop()
            there = PacketEnd(pack(frontend.address), frontend.port)
            self._print(unsent(self.target, there, frontend.proto, why, self.here))

    def _seen(self, flow: TracedFlow) -> None:
        path = tell(flow, self.here, self.target)
        missing = []
        if flow.silenced and self.tracer.beside_lacks:
            missing.append("answers that pass this node by: needs the capability NET_RAW")
        if self.tracer.lost:
            missing.append(
                "some rules: the kernel had more reports than were read; try a lower --rate"
            )
        self._print(msgspec.structs.replace(path, not_checked=(*path.not_checked, *missing)))

    def _print(self, path: Path) -> None:
        self.paths.append(path)
        if self.output == "json":
            click.echo(msgspec.json.encode(path))
        else:
            click.echo("\n".join(lines(path)))
            click.echo()

    def _end(self, seconds: float) -> int:
        if not self.paths:
            click.echo(f"no new connection to {self.target} came by in {seconds:g} s", err=True)
            click.echo("--probe makes one; on a client's own node all of its are seen", err=True)
            return 1
        words = Counter(path.reply.what if path.reply else "silent" for path in self.paths)
        if self.output == "text":
            said = ", ".join(f"{number} {what}" for what, number in words.items())
            plural = "s" if len(self.paths) > 1 else ""
            click.echo(f"{len(self.paths)} connection{plural}: {said}")
        return int(any(path.reach is not Reach.YES for path in self.paths))


def _seconds(timeout: str) -> float:
    try:
        found = Duration.parse(timeout).seconds
    except ValueError as error:
        raise ConfigError([f"--timeout: {error}"], hint="as in --timeout 30s") from None
    if not 0 < found <= _LONGEST:
        raise ConfigError([f"--timeout: {timeout[:20]} is not between 0 s and a day"])
    return found
