"""`nftproxy trace` as its users run it, in a namespace, while a test sends packets."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import msgspec

from nftproxy.kernel.channel import Channel
from nftproxy.lab import namespace
from nftproxy.path.model import Outcome, Path, Step
from nftproxy.table import netlink
from nftproxy.table.netlink import Message, TableAttribute
from tests.support.process import NFTPROXY, PATIENCE
from tests.support.running import eventually


def tables(where: str) -> list[str]:
    """The names of all tables of a namespace."""
    with namespace.enter(where):
        channel = Channel()
    try:
        return [
            netlink.text(netlink.parts(message)[TableAttribute.NAME])
            for _, message in channel.dump_all(Message.GET_TABLE, 20)
        ]
    finally:
        channel.close()


def marks(where: str) -> list[str]:
    """The tables of `trace` that a namespace has."""
    return [name for name in tables(where) if name.startswith("nftproxy-trace")]


class Traced:
    """A running `trace` with `--output json`; `end` returns what it saw."""

    def __init__(
        self, where: str, target: str, *arguments: str, before: tuple[str, ...] = ()
    ) -> None:
        self.where = where
        self._argv = [*before, *NFTPROXY, "trace", target, "--output", "json", *arguments]
        self.code = -1
        self.said = ""

    def __enter__(self) -> Self:
        with namespace.enter(self.where):
            self.process = subprocess.Popen(
                self._argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        try:
            eventually(lambda: bool(marks(self.where)) or self.process.poll() is not None)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> list[Path]:
        """Wait until it ends by itself."""
        output, self.said = self.process.communicate(timeout=2 * PATIENCE)
        self.code = self.process.returncode
        assert "Traceback" not in self.said, self.said
        return [msgspec.json.decode(line, type=Path) for line in output.splitlines()]


def seen(where: str, target: str, act: Callable[[], object], *arguments: str) -> Path:
    """The path of the one connection that `act` makes to a target."""
    with Traced(where, target, "--count", "1", *arguments) as traced:
        act()
        paths = traced.end()
    assert len(paths) == 1, traced.said
    return paths[0]


def step(path: Path, name: str) -> Step:
    """The step of that name."""
    found = [each for each in path.steps if each.name == name]
    assert len(found) == 1, [each.name for each in path.steps]
    return found[0]


def stops(path: Path) -> list[str]:
    """The names of the steps that stopped the packet."""
    return [each.name for each in path.steps if each.outcome is Outcome.STOPPED]


@contextlib.contextmanager
def rules(where: str, text: str, *names: str) -> Iterator[None]:
    """Tables of others in a namespace, for the length of a block."""
    nft(where, text)
    try:
        yield
    finally:
        for name in names:
            nft(where, f"delete table {name}")


def nft(where: str, text: str) -> str:
    """Run nft on a text."""
    with namespace.enter(where):
        done = subprocess.run(
            ["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout
