"""`nftproxy render`: the whole table, for reading and for checking elsewhere."""

import json
from pathlib import Path
from typing import Any

import click

from nftproxy.address import Family
from nftproxy.commands.input import Input, input_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.configuration.settings import ALL, NodeSettings
from nftproxy.routes import Verdict
from nftproxy.table import preview
from nftproxy.table.preview import Preview
from nftproxy.table.program import Program


@click.command(context_settings=CONTEXT_SETTINGS)
@input_options
@click.option("--output", type=click.Choice(["nft", "json"]), default="nft", show_default=True, help="What to print.")
def render(manifests: tuple[Path, ...], output: str, **flags: Any) -> None:
    r"""Print what would be loaded; needs no root and no kernel.

    The output replaces our table when nft loads it, and nft -c -f - checks it, also on a node where nftproxy runs.

    \b
    For example:
      nftproxy render --manifests examples/ --node-name node1 | less
    """
    given = Input(manifests, flags)
    given.refuse_problems()
    settings = given.settings
    previews = [preview.preview(settings, given.store, family) for family in settings.families]
    addresses, doubts = _nodeport_ips(settings)
    for note in (*given.warnings, *doubts, *(note for each in previews for note in each.notes)):
        click.echo(f"{click.style('warning:', fg='yellow')} {note}", err=True)
    program = Program(settings)
    if output == "nft":
        click.echo(preview.text(program, previews, addresses), nl=False)
    else:
        click.echo(json.dumps(_json(program, previews, addresses), indent=2))


def _nodeport_ips(settings: NodeSettings) -> tuple[dict[Family, list[str]], list[str]]:
    """Return the addresses that accept NodePorts as far as the settings alone tell, and what they leave open."""
    addresses: dict[Family, list[str]] = {}
    doubts: list[str] = []
    for family, networks in settings.nodeport_addresses.items():
        if networks is not ALL:
            addresses[family] = [network.text for network in networks if network.length == family.bits]
            doubts += [
                f"nodePortAddresses: which addresses of {network} this node has is not known here; "
                f"nodeport_ips{family.digit} has none of them"
                for network in networks
                if network.length != family.bits
            ]
    return addresses, doubts


def _json(program: Program, previews: list[Preview], nodeport_ips: dict[Family, list[str]]) -> dict[str, Any]:
    elements = {where: items for each in previews for where, items in sorted(each.delta.added.items())}
    elements |= {f"nodeport_ips{family.digit}": {(ip,): None for ip in ips} for family, ips in nodeport_ips.items() if ips}
    return {
        "program": program.digest,
        "elements": {
            where: [{"key": key, **({} if value is None else {"value": _value(value)})} for key, value in items.items()]
            for where, items in elements.items()
        },
        "serviceCIDRs": [str(network) for each in previews for network in each.networks],
    }


def _value(value: Any) -> Any:
    if isinstance(value, Verdict):
        return {"verdict": str(value), **({"service": value.comment} if value.comment else {})}
    return value
