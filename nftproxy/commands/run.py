"""`nftproxy run`: follow manifests and keep the table in step."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from loguru import logger

from nftproxy import instance, log
from nftproxy.commands.input import Input, input_options
from nftproxy.flags import CONTEXT_SETTINGS
from nftproxy.kernel import Kernel
from nftproxy.proxy import Proxy, Table


@click.command(context_settings=CONTEXT_SETTINGS)
@input_options
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How log lines look.")
@click.option("-v", "--verbosity", type=int, default=0, metavar="N", help="4 and more: debugging lines.")
def run(manifests: tuple[Path, ...], log_format: str, verbosity: int, **flags: Any) -> None:
    r"""Keep this node's table in step with manifests, until told to stop.

    A change is applied when a file is closed or renamed into place. What is broken is named in the log and leaves the last good
    version in use. SIGTERM and SIGINT end the process and leave the table as it is, so traffic goes on: nftproxy cleanup removes it.

    \b
    For example, on a node of the lab:
      nftproxy run --manifests examples/ --node-name node1 --cluster-cidr 10.244.0.0/16,fd00:244::/32
    """
    log.start(log_format, verbosity=verbosity)
    given = Input(manifests, flags)
    for warning in given.warnings:
        logger.warning("{}", warning)
    lock = instance.claim()
    with lock, Kernel() as kernel:
        kernel.require()
        asyncio.run(_follow(given, Table(given.settings, given.store, kernel)))


async def _follow(given: Input, table: Table) -> None:
    """Run until a signal says stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    proxy = Proxy(table)
    for problem in given.scan.news:
        logger.error("{}", problem)
    logger.info("node {}: following {} folders", given.settings.node_name, len(given.manifests.folders()))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(proxy.run()), tasks.create_task(_rescan(given, proxy))]
        proxy.changed()
        await stop.wait()
        for task in running:
            task.cancel()
    logger.info("stopped; the table stays, so traffic goes on")


async def _rescan(given: Input, proxy: Proxy) -> None:
    """Scan again whenever a file has changed."""
    from nftproxy.folders import Folders

    with Folders(given.manifests.folders()) as folders:
        while True:
            with suppress(TimeoutError):
                await folders.changed()
            scan = await asyncio.to_thread(given.manifests.scan)
            for problem in scan.news:
                logger.error("{}", problem)
            if given.deliver(scan):
                proxy.changed()
