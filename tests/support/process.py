"""nftproxy as its users run it: processes, in network namespaces, on manifests in files."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from nftproxy.kernel import snapshot
from nftproxy.kernel.reader import Reader
from nftproxy.lab import namespace

NFTPROXY = (sys.executable, "-m", "nftproxy")
PATIENCE = 60.0  # seconds for what must come, on a machine that others use too
_numbers = itertools.count()

Line = dict[str, Any]


@contextlib.contextmanager
def network() -> Iterator[str]:
    """A network namespace of one's own, with loopback up."""
    name = f"t{os.getpid()}-p{next(_numbers)}"
    namespace.create(name)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        namespace.kill(namespace.processes([name]))
        namespace.delete(name)


def nftproxy(
    *arguments: str | Path, where: str = "", before: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `before` is what runs it, such as `setpriv`."""
    argv = [*before, *NFTPROXY, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    with namespace.enter(where) if where else contextlib.nullcontext():
        return subprocess.run(argv, check=False, **options)


def taken(where: str) -> snapshot.Snapshot | None:
    """What a namespace's table holds."""
    with reading(where) as reader:
        return snapshot.take_snapshot(reader)


@contextlib.contextmanager
def reading(where: str) -> Iterator[Reader]:
    """A reader of a namespace's table."""
    with namespace.enter(where):
        reader = Reader()
    try:
        yield reader
    finally:
        reader.close()


def everything(where: str) -> dict[str, Any]:
    """All elements of a namespace's table by set and map, the names of its chains, and how many
    rules there are.
    """
    from nftproxy.address import Family

    with reading(where) as reader:
        found: dict[str, Any] = {name: reader.elements(name) for name in reader.sets()}
        for family in Family:
            name = f"service_cidrs{family.digit}"
            if name in found:
                found[name] = reader.networks(name, family)
        return {**found, "chains": sorted(reader.chains()), "rules": reader.rules()}


class Run:
    """`nftproxy run` in a namespace; killed at the end of the block if it still runs."""

    def __init__(
        self, where: str, folder: Path, *arguments: str, program: Sequence[str] = NFTPROXY
    ) -> None:
        self.where = where
        self._argv = [
            *program,
            "run",
            "--manifests",
            str(folder),
            "--node-name",
            "node1",
            *arguments,
        ]
        self._log = folder.parent / f"{where}.log"
        self._log.touch()
        self._seen = 0
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(signal.SIGKILL)

    def start(self) -> None:
        """Start it, again."""
        self._seen = len(self._log.read_text().splitlines())
        with namespace.enter(self.where), self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def end(self, number: int) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def logged(self, text: str) -> list[str]:
        """The whole lines of its log since the latest start that contain a text."""
        written, _, _ = self._log.read_text().rpartition("\n")
        return [line for line in written.splitlines()[self._seen :] if text in line]

    def until(self, true: Callable[[], object]) -> float:
        """Wait until something is true; returns the seconds it took."""
        started = time.monotonic()
        while not true():
            if time.monotonic() - started > PATIENCE or self.process.poll() is not None:
                raise AssertionError(f"not reached; its log:\n{self._log.read_text()}")
            time.sleep(0.001)
        return time.monotonic() - started

    def until_started(self) -> None:
        """Wait until both families are in step."""
        self.until(lambda: len(self.logged("(read back)")) == 2)


def write(path: Path, *documents: Line) -> None:
    """Put documents into a file in one step."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(yaml.safe_dump_all(documents))
    draft.replace(path)


def service(name: str = "web", address: str = "10.96.0.10", **spec: Any) -> Line:
    """A Service document."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"name": "http", "port": 80}],
            **spec,
        },
    }


def endpoints(*addresses: str, of: str = "web", node: str = "node1") -> Line:
    """An EndpointSlice document."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{of}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "nodeName": node} for address in addresses],
        "ports": [{"name": "http", "port": 8080}],
    }
