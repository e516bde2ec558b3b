"""`nftproxy diff`: what a sync would change, without changing it."""

import json
from pathlib import Path
from typing import Any

import click

from nftproxy.commands.input import Input, input_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.configuration.settings import accepted_nodeport_addresses
from nftproxy.kernel.transactions import Kernel
from nftproxy.node import interfaces
from nftproxy.routes import Key, Value
from nftproxy.sync.syncer import compared
from nftproxy.table import preview
from nftproxy.table.program import Program

Line = tuple[str, str, str]  # sign, set or map, element


@click.command(context_settings=CONTEXT_SETTINGS)
@input_options
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="What to print.")
def diff(manifests: tuple[Path, ...], output: str, **flags: Any) -> int:
    """Show what a sync would change in this machine's table; nothing is applied.

    Exit code: 0 when nothing would change, 1 when something would, 2 when something is wrong.
    """
    given = Input(manifests, flags)
    given.refuse_problems()
    with Kernel() as kernel:
        kernel.require()
        lines = sorted(_compare(given, kernel), key=lambda line: (line[1] != "program", line[1], line[2]))
    if output == "json":
        click.echo(json.dumps([{"change": sign, "where": where, "element": text} for sign, where, text in lines], indent=2))
        return 1 if lines else 0
    for sign, where, text in lines:
        click.echo(click.style(f"{sign} {where} {text}".rstrip(), fg={"+": "green", "-": "red"}.get(sign)))
    return 1 if lines else 0


def _compare(given: Input, kernel: Kernel) -> list[Line]:
    settings = given.settings
    program = Program(settings)
    lines: list[Line] = []
    exists = kernel.refresh()
    if program.marker not in kernel.chains:
        lines.append(("+", "program", program.digest))
        lines += [
            ("-", "program", name.removeprefix("program-")) for name in sorted(kernel.chains) if name.startswith("program-")
        ]
    own = interfaces.addresses()
    for family in settings.families:
        names = [name for name in kernel.sets if compared(name, family)]
        before = {name: kernel.elements(name) for name in names}
        found = preview.preview(settings, given.store, family, {name: kernel.packed(name) for name in names})
        for where in sorted({*found.delta.removed, *found.delta.late, *found.delta.added}):
            gone = {**found.delta.removed.get(where, {}), **found.delta.late.get(where, {})}
            lines += [("-", where, preview.line(key, before[where][key])) for key in gone]
            lines += [("+", where, preview.line(key, value)) for key, value in found.delta.added.get(where, {}).items()]
        accepted, _ = accepted_nodeport_addresses({family: settings.nodeport_addresses[family]}, own)
        where = f"nodeport_ips{family.digit}"
        there: dict[Key, Value] = kernel.elements(where) if exists else {}
        wanted: dict[Key, Value] = {(address.text,): None for address in accepted.get(family, ())}
        lines += [("-", where, preview.line(key)) for key in there.keys() - wanted.keys() if family in accepted]
        lines += [("+", where, preview.line(key)) for key in wanted.keys() - there.keys()]
        where = f"service_cidrs{family.digit}"
        networks = kernel.networks(where, family) if exists else []
        lines += [("-", where, str(network)) for network in networks if network not in found.networks]
        lines += [("+", where, str(network)) for network in found.networks if network not in networks]
    return lines
