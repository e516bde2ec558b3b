"""The README's pictures of the page, from a real one: python -m tests.tools.pictures [FOLDER].

A lab with the examples as its Services, pods that connect all the time, and Chromium.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from nftproxy.lab import namespace
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS
from tests.support.browser import Browser
from tests.support.paths import ROOT
from tests.support.process import NFTPROXY, Run
from tests.support.world import unique_name

_URL = "http://127.0.0.1:10260"
_WATCHED = 60.0  # seconds until the sparklines say something
_BUSY = {
    "10.96.0.10": 0.12,  # default/web: seconds between two connections
    "10.96.0.20": 0.3,
    "10.96.0.50": 0.5,
    "10.96.0.60": 1.0,  # has no endpoint
}


def main(folder: Path) -> None:
    """Make both."""
    with Lab(unique_name()) as lab, tempfile.TemporaryDirectory() as scratch:
        node = lab.nodes[0]
        cidrs = ",".join(CLUSTER_CIDRS.values())
        flags = ("--cluster-cidr", cidrs)
        log = Path(scratch) / "log"
        log.mkdir()
        (log / "examples").symlink_to(ROOT / "examples")
        with Run(node.namespace, log / "examples", *flags) as run, clients(lab):
            run.until_started()
            with namespace.enter(node.namespace):
                page = subprocess.Popen([*NFTPROXY, "page"], stdout=subprocess.PIPE)
            try:
                assert page.stdout
                page.stdout.readline()
                with namespace.enter(node.namespace):
                    asyncio.run(look(node.namespace, Path(scratch), folder))
            finally:
                page.terminate()
                page.wait()


@contextlib.contextmanager
def clients(lab: Lab) -> Iterator[None]:
    """Connections from a pod to some Services, more and less of them."""
    over = threading.Event()

    def connect(address: str, pause: float) -> None:
        number = 0
        while not over.wait(pause * (1 + number % 7 / 3)):
            lab.connect("pod1-3", address, 80, timeout=1.0)
            number += 1

    threads = [threading.Thread(target=connect, args=item) for item in _BUSY.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


async def look(where: str, scratch: Path, folder: Path) -> None:
    """Open the pages and take the pictures."""
    async with Browser(where, scratch / "profile") as browser:
        services = await browser.open(f"{_URL}/", width=1000, height=476)
        await services.ask("Emulation.setScrollbarsHidden", hidden=True)
        await asyncio.sleep(_WATCHED)
        await services.go(f"{_URL}/")  # sorted by what is busy
        await asyncio.sleep(3)
        (folder / "page-services.png").write_bytes(await services.picture())
        path = "/explain?to=default/web:http&from=10.244.1.4"
        explained = await browser.open(f"{_URL}{path}", width=900, height=1110)
        await explained.ask("Emulation.setScrollbarsHidden", hidden=True)
        (folder / "page-path.png").write_bytes(await explained.picture())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/pictures")
