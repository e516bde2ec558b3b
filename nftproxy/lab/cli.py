"""The commands `nftproxy lab ...`: experiments without a cluster.

The commands import the lab themselves, so that listing them costs nothing.
"""

import json
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from nftproxy.errors import NftproxyError

if TYPE_CHECKING:
    from nftproxy.lab.lab import Lab

_name = click.option(
    "--name",
    default="lab",
    show_default=True,
    help="Which lab; several can be up at the same time.",
)


@click.group()
def lab() -> None:
    """Build a throw-away cluster out of network namespaces.

    It has nodes with a cni0 bridge, pods that answer with their name and the client's address, a
    network between the nodes and a client outside, all in IPv4 and IPv6. Needs root.
    """


@lab.command()
@_name
@click.option("--nodes", default=2, show_default=True, help="Number of nodes.")
@click.option("--pods", default=3, show_default=True, help="Number of pods on each node.")
@click.option(
    "--vxlan", is_flag=True, help="Carry pod traffic between nodes in VXLAN instead of routing it."
)
def up(name: str, nodes: int, pods: int, *, vxlan: bool) -> None:
    """Build a lab and leave it running."""
    from rich.console import Console

    from nftproxy.lab.lab import PORTS, Lab

    built = Lab(name, nodes=nodes, pods=pods, vxlan=vxlan, echo="background")
    with Console(stderr=True).status(f"building {nodes} nodes with {pods} pods each"):
        built.up()
    click.echo(f"lab {name!r} is up; nodes: {nodes}, pods on each: {pods}, clients: 1")
    if built.pods:
        last = built.pods[-1]
        address = next(iter(last.addresses.values()))
        option = "" if name == "lab" else f"--name {name} "
        click.echo(
            f"pods answer on ports {' and '.join(map(str, PORTS))}, TCP and UDP; try for example"
        )
        # bash and head are on every machine, nc is not.
        click.echo(
            f"  nftproxy lab exec {option}client -- bash -c 'head -n 1 "
            f"</dev/tcp/{address}/{PORTS[0]}'"
        )


@lab.command()
@_name
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(name: str, output: str) -> None:
    """Show the places of a lab, their addresses and their state."""
    from nftproxy.lab.lab import Lab

    attached = Lab.attach(name)
    if output == "json":
        click.echo(json.dumps(_status(attached), indent=2))
    else:
        _print_status(attached)


@lab.command(
    name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_name
@click.argument("place", metavar="NODE|POD|CLIENT")
@click.argument("command", metavar="-- CMD...", nargs=-1, type=click.UNPROCESSED, required=True)
def execute(name: str, place: str, command: tuple[str, ...]) -> None:
    """Run a command in a node, pod or client, with its exit code."""
    from nftproxy.lab import build
    from nftproxy.lab.lab import Lab

    build.check_machine()
    where = Lab.attach(name).place(place)
    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise click.UsageError("a command must follow the --")
    if not shutil.which(argv[0]):
        raise NftproxyError(
            f"there is no program {argv[0]!r}",
            hint="places share the files and the PATH of this machine",
        )
    sys.stdout.flush()
    # Not `enter`: `ip netns exec` also mounts the namespace's /sys, which tcpdump and others read.
    os.execvp("ip", ["ip", "netns", "exec", where.namespace, *argv])  # noqa: S606  no shell is the point


@lab.command()
@click.option("--name", default="demo", show_default=True, help="The name of the lab.")
def demo(name: str) -> int:
    """Walk through the behaviour of a service proxy, with real connections.

    Builds a lab, runs nftproxy on both nodes with the manifests of examples/, connects, and shows
    which endpoint answered and why; then breaks five Services, and lets nftproxy explain name
    causes and cures. Takes half a minute and removes everything afterwards. Exit code 1 if a packet
    takes a wrong path.
    """
    from nftproxy import columns
    from nftproxy.lab import build
    from nftproxy.lab.demo import Demo, walk
    from nftproxy.lab.riddles import walk_riddles

    build.check_machine()
    for end in (signal.SIGTERM, signal.SIGHUP):  # the lab is removed then, too
        signal.signal(end, lambda number, _: sys.exit(128 + number))
    started, wrong, checks = time.monotonic(), 0, 0
    click.echo(
        "Two nodes, three pods on each, a client outside; nftproxy runs on both nodes, on a copy "
        "of examples/."
    )
    with Demo(name) as walked:
        for number, step in enumerate(walk(walked), 1):
            click.secho(f"\n{number}  {step.title}", bold=True)
            if said := step.before(walked) if step.before else "":
                click.echo(f"   {said}")
            results = [(check, walked.check(check)) for check in step.checks]
            rows = [
                (*found.row, "ok" if found.right else f"WRONG: expected {check.expected()}")
                for check, found in results
            ]
            columns.show(("FROM", "TO", "ANSWERED BY", "SOURCE SEEN", ""), rows, indent=3)
            click.echo(f"   {step.why}")
            checks += len(rows)
            wrong += sum(not found.right for _, found in results)
        click.secho("\nWhy does it not answer? Five causes, made on purpose", bold=True)
        for riddle, solution in walk_riddles(walked):
            click.secho(f"\n   {riddle.title}", bold=True)
            for what, text in solution.lines:
                click.echo(f"   {what:8} {text}")
            click.echo(f"   {'':8} {'ok' if solution.right else 'WRONG'}")
            checks += 1
            wrong += not solution.right
        wrong += walked.failures
    seconds = time.monotonic() - started
    click.echo(
        f"\n{checks} checks in {seconds:.1f} s: "
        f"{f'{wrong} went wrong' if wrong else 'every packet went where it should'}"
    )
    return 1 if wrong else 0


@lab.command()
@_name
def down(name: str) -> None:
    """Remove a lab, complete or not, with everything that runs inside."""
    from nftproxy.lab.lab import tear_down

    removed = tear_down(name)
    click.echo(
        f"lab {name!r} is down" if removed else f"there is no lab {name!r}, nothing to remove"
    )


def _status(attached: "Lab") -> dict[str, Any]:
    from nftproxy.lab import namespace
    from nftproxy.lab.plan import LabClient, LabNode, Pod

    kinds = {LabNode: "node", Pod: "pod", LabClient: "client"}
    present = set(namespace.names(attached.name))
    places = [
        {
            "name": place.name,
            "kind": kinds[type(place)],
            "node": getattr(place, "node", None),
            "namespace": place.namespace,
            "present": place.namespace in present,
            "addresses": dict(place.addresses),
        }
        for place in attached.plan.places
    ]
    return {
        "name": attached.name,
        "network": "vxlan" if attached.plan.shape.vxlan else "host-gw",
        "complete": all(place["present"] for place in places) and attached.plan.underlay in present,
        "servers": bool(namespace.processes([attached.plan.underlay])),
        "places": places,
    }


def _print_status(attached: "Lab") -> None:
    from rich.console import Console
    from rich.table import Table

    found = _status(attached)
    table = Table("place", "on", "namespace", *attached.families, box=None, pad_edge=False)
    missing = set()
    for place, row in zip(attached.plan.places, found["places"], strict=True):
        if not row["present"]:
            missing.add(place.name)
        table.add_row(place.name, row["node"] or "", place.namespace, *place.addresses.values())
    # Piped output has no terminal whose width could cut it.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if missing:
        click.echo(f"missing: {', '.join(sorted(missing))}")
    if not found["servers"]:
        click.echo("the pods do not answer: the echo server has ended")
