"""`nftproxy run`: follow manifests and keep the table in step."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import click
from loguru import logger

from nftproxy import log
from nftproxy.commands.input import Input, input_options
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.kernel.transactions import Kernel
from nftproxy.node import instance, memory
from nftproxy.sources.folders import Folders
from nftproxy.sources.manifests import Scan
from nftproxy.sync.proxy import Proxy
from nftproxy.sync.table import Table


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
    memory.collect_seldom()
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
    _tell(given.scan)
    logger.info("node {}: following {}", given.settings.node_name, ", ".join(map(str, sorted(given.manifests.folders()))))
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(proxy.run()), tasks.create_task(_rescan(given, proxy))]
        proxy.changed()
        await stop.wait()
        for task in running:
            task.cancel()
    logger.info("stopped; the table stays, so traffic goes on")


async def _rescan(given: Input, proxy: Proxy) -> None:
    """Scan again whenever a file has changed, and once at the start: one may have changed before it was watched."""
    with Folders(given.manifests.folders()) as folders:
        while True:
            scan = await asyncio.to_thread(given.manifests.scan, folders.unfinished)
            _tell(scan)
            if given.deliver(scan):
                proxy.changed()
            await folders.changed()


def _tell(scan: Scan) -> None:
    for problem in scan.news:
        logger.error("{}", problem)
    if scan.mended:
        logger.info("problems that are gone: {}; left: {}", scan.mended, len(scan.problems))
