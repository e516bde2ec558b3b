"""`nftproxy diff`: what a sync would change, without changing it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nftproxy.commands.input import Input, input_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.configuration.settings import accepted_nodeport_addresses
from nftproxy.kernel.transactions import Kernel
from nftproxy.node import interfaces
from nftproxy.routes import Key
from nftproxy.table import preview, schema
from nftproxy.table.plan import ReadBack
from nftproxy.table.program import Program

Line = tuple[str, str, str]  # sign, set or map, element


@click.command(context_settings=CONTEXT_SETTINGS)
@input_options
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="What to print.",
)
def diff(manifests: tuple[Path, ...], output: str, **flags: Any) -> int:
    """Show what a sync would change in this machine's table, without changing it.

    Exit code: 0 without changes, 1 with changes, 2 after an error.
    """
    given = Input(manifests, flags)
    given.refuse_problems()
    with Kernel() as kernel:
        kernel.require()
        lines = sorted(
            _compare(given, kernel), key=lambda line: (line[1] != "program", line[1], line[2])
        )
    if output == "json":
        click.echo(
            json.dumps(
                [{"change": sign, "where": where, "element": text} for sign, where, text in lines],
                indent=2,
            )
        )
        return 1 if lines else 0
    for sign, where, text in lines:
        click.echo(
            click.style(f"{sign} {where} {text}".rstrip(), fg={"+": "green", "-": "red"}.get(sign))
        )
    return 1 if lines else 0


def _compare(given: Input, kernel: Kernel) -> list[Line]:
    settings = given.settings
    program = Program(settings)
    lines: list[Line] = []
    exists = kernel.refresh()
    logging = replace(settings, log_refusals=True)
    if Program(logging).marker in kernel.chains:  # as --log-refusals of the process asks for
        settings, program = logging, Program(logging)
    if program.marker not in kernel.chains:
        lines.append(("+", "program", program.digest))
        lines += [
            ("-", "program", digest)
            for digest in sorted(filter(None, map(schema.parse_program, kernel.chains)))
        ]
    own = interfaces.addresses()
    for family in settings.families:
        names = [name for name in kernel.sets if schema.is_compared(name, family)]
        before = {name: kernel.elements(name) for name in names}
        basis = ReadBack(kernel.packed(names))
        accepted, _ = accepted_nodeport_addresses(
            {family: settings.nodeport_addresses[family]}, own, settings.forwarded
        )
        found = preview.preview(settings, given.store, family, accepted.get(family), basis)
        for where in sorted({*found.delta.removed, *found.delta.late, *found.delta.added}):
            gone = {**found.delta.removed.get(where, {}), **found.delta.late.get(where, {})}
            lines += [("-", where, preview.line(key, before[where][key])) for key in gone]
            lines += [
                ("+", where, preview.line(key, value))
                for key, value in found.delta.added.get(where, {}).items()
            ]
        for where, keys in found.node.items():
            there = kernel.keys(where) if exists else set[Key]()
            lines += [("-", where, preview.line(key)) for key in there.difference(keys)]
            lines += [("+", where, preview.line(key)) for key in set(keys) - there]
    return lines
