"""`nftproxy cleanup`: remove the table."""

import click

from nftproxy.kernel.transactions import Kernel
from nftproxy.node import instance


@click.command()
def cleanup() -> None:
    """Remove the table inet nftproxy from this machine.

    Services are then unreachable through this node, unless another proxy serves them. Refuses while
    nftproxy runs.
    """
    with instance.claim(), Kernel() as kernel:
        kernel.require()
        if not kernel.refresh():
            click.echo("there is no table inet nftproxy, nothing to remove")
            return
        chains, sets = len(kernel.chains), len(kernel.sets)
        kernel.delete_table()
        click.echo(f"removed table inet nftproxy with {chains} chains and {sets} maps and sets")
