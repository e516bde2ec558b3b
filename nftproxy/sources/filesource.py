"""Manifests as a source: changed files are read again, and the store follows them.

A Node in the manifests counts like one of an API server: addresses, zone and pod CIDRs. Nothing
waits for a missing one.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

from loguru import logger

from nftproxy.model import Node
from nftproxy.sources.delivery import deliver, doubts
from nftproxy.sources.folders import STALLED, Folders
from nftproxy.sources.manifests import Manifests, Scan
from nftproxy.store import Store

AGAIN: Final = 0.05  # seconds between scans at the start, while somebody writes a file


class FileSource:
    """Delivers all objects of manifests into a store.

    For the event loop's thread, except `wait_for_node`.
    """

    node_required = False

    def __init__(
        self,
        manifests: Manifests,
        store: Store,
        node_name: str,
        *,
        changed: Callable[[], None],
        node_changed: Callable[[Node | None], None],
    ) -> None:
        """Prepare; nothing is read before `follow`."""
        self._manifests = manifests
        self._store = store
        self._node_name = node_name
        self._changed = changed
        self._node_changed = node_changed
        self._first = threading.Event()  # set when the first scan is delivered, or will never be

    async def follow(self) -> None:
        """Scan at the start and whenever a file has changed."""
        patience = time.monotonic() + STALLED
        with Folders(self._manifests.folders()) as watched:
            while True:
                scan = await asyncio.to_thread(self._manifests.scan, watched.unfinished)
                if scan.unread and not self._first.is_set() and time.monotonic() < patience:
                    # The table may have objects of these files, which are to stay in it
                    await asyncio.sleep(AGAIN)
                    continue
                self._report(scan)
                self._deliver(scan)
                if not self._first.is_set():
                    for doubt in doubts(self._manifests, scan, self._node_name):
                        logger.warning("{}", doubt)
                    self._first.set()
                await watched.changed()

    def wait_for_node(
        self,
        timeout: float,  # noqa: ARG002
        usable: Callable[[Node], bool] = lambda _: True,  # noqa: ARG002
        /,
    ) -> Node | None:
        """Wait for the first scan; a Node that it does not have will not appear."""
        self._first.wait()
        return self._store.node

    def stop(self) -> None:
        """Wake the waiting threads."""
        self._first.set()

    def _deliver(self, scan: Scan) -> None:
        before = self._store.node
        changed = deliver(self._store, scan, self._node_name)
        node = self._store.node
        if node is not None and node != before:
            self._node_changed(node)
        if changed:
            self._changed()

    def _report(self, scan: Scan) -> None:
        for problem in scan.news:
            logger.error("{}", problem)
        if scan.mended:
            logger.info("manifests: {} problems solved, {} left", scan.mended, len(scan.problems))
        for note in scan.notes:
            logger.warning("{}", note)
