"""`nftproxy render`: the whole table, for reading and for checking elsewhere."""

import json
from pathlib import Path
from typing import Any

import click

from nftproxy.commands.input import Input, accepted_addresses, input_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.routes import Verdict
from nftproxy.table import preview, schema
from nftproxy.table.preview import Preview
from nftproxy.table.program import Program

_EXAMPLES = """\b
For example:
  nftproxy render --manifests examples/ --node-name node1 | less
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@input_options
@click.option(
    "--assign-cluster-ips",
    is_flag=True,
    help="Give a ClusterIP to each Service that has none, as an API server would, so that a chart "
    "can be tried as its author wrote it: "
    "from the ServiceCIDRs in the manifests, or else from 10.96.0.0/12 and fd00:96::/112. The "
    "choice depends on the Services alone.",
)
@click.option(
    "--output",
    type=click.Choice(["nft", "json"]),
    default="nft",
    show_default=True,
    help="What to print.",
)
def render(
    manifests: tuple[Path, ...], output: str, *, assign_cluster_ips: bool, **flags: Any
) -> None:
    """Print the table as it would be loaded; needs no root and no kernel.

    The output replaces our table when nft loads it, and nft -c -f
    - checks it, also on a node where nftproxy runs.
    """
    given = Input(manifests, flags, assign_cluster_ips=assign_cluster_ips)
    given.refuse_problems()
    settings = given.settings
    accepted, doubts = accepted_addresses(settings)
    previews = [
        preview.preview(settings, given.store, family, accepted.get(family))
        for family in settings.families
    ]
    for note in (*given.warnings, *doubts, *(note for each in previews for note in each.notes)):
        click.echo(f"{click.style('warning:', fg='yellow')} {note}", err=True)
    program = Program(settings)
    if output == "nft":
        click.echo(preview.text(program, previews), nl=False)
    else:
        click.echo(json.dumps(_json(program, previews), indent=2))


def _json(program: Program, previews: list[Preview]) -> dict[str, Any]:
    elements = {where: items for each in previews for where, items in sorted(each.added.items())}
    cidrs = [elements.pop(schema.SERVICE_CIDRS.name(each.family), {}) for each in previews]
    return {
        "program": program.digest,
        "elements": {
            where: [
                {"key": key, **({} if value is None else {"value": _value(value)})}
                for key, value in items.items()
            ]
            for where, items in elements.items()
        },
        "serviceCIDRs": [key[0] for keys in cidrs for key in keys],
    }


def _value(value: Any) -> Any:
    if isinstance(value, Verdict):
        return {"verdict": str(value), **({"service": value.comment} if value.comment else {})}
    return value
