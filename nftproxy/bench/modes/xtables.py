"""Chains that start with KUBE- in the tables of iptables: make, write and remove them."""

from collections.abc import Iterable
from typing import NamedTuple

from nftproxy.bench.modes.programs import Programs

_TABLES = ("filter", "nat", "mangle")


class Jump(NamedTuple):
    """A jump from a built-in chain to one of ours, inserted as its first rule."""

    table: str
    source: str
    target: str
    match: tuple[str, ...] = ()
    comment: str = ""


class Xtables:
    """The tables in one namespace; `program` is iptables, or the name that picks a backend."""

    def __init__(self, programs: Programs, program: str = "iptables") -> None:
        self._programs = programs
        self._program = program

    def chain(self, table: str, name: str) -> None:
        """Make a chain unless it exists."""
        self._run("-N", name, "-t", table)

    def ensure(self, jumps: Iterable[Jump]) -> None:
        """Ensure jumps one by one, with two or three programs each, as kube-proxy on iptables."""
        for jump in jumps:
            self.chain(jump.table, jump.target)
            comment = ("-m", "comment", "--comment", jump.comment) if jump.comment else ()
            rule = (jump.source, "-t", jump.table, *jump.match, *comment, "-j", jump.target)
            if not self._run("-C", *rule):
                self._run("-I", *rule)

    def save(self, table: str) -> list[str]:
        """Return a table as lines."""
        return (self._programs.run(f"{self._program}-save", "-t", table) or "").splitlines()

    def restore(self, text: str) -> None:
        """Apply text of `restore`."""
        self._programs.run(
            f"{self._program}-restore", "-w", "5", "--noflush", "--counters", given=text
        )

    def remove(self) -> None:
        """Remove jumps to chains that start with KUBE-, and the chains."""
        for table in _TABLES:
            lines = self.save(table)
            ours = chains(lines)
            rules = [
                line.removeprefix("-A ")
                for line in lines
                if line.startswith("-A ") and " -j KUBE-" in line
            ]
            undone = [rule for rule in rules if not rule.startswith("KUBE-")]
            if ours:
                self.restore(restore(table, ours, undone=undone, deleted=ours))

    def _run(self, *argv: str) -> bool:
        return self._programs.run(self._program, "-w", "5", *argv, may_fail=True) is not None


def chains(lines: Iterable[str], prefixes: str | tuple[str, ...] = "KUBE-") -> list[str]:
    """Return the names of the chains in a saved table that start with one of some prefixes."""
    names = [line[1:].split()[0] for line in lines if line.startswith(":")]
    return [name for name in names if name.startswith(prefixes)]


def restore(
    table: str,
    declared: Iterable[str],
    rules: Iterable[str] = (),
    *,
    undone: Iterable[str] = (),
    deleted: Iterable[str] = (),
) -> str:
    """Return the input of iptables-restore for one table.

    Chains to make or empty; rules to append and remove; chains to delete.
    """
    lines = [f"*{table}"]
    lines += [f":{chain} - [0:0]" for chain in declared]
    lines += [f"-A {rule}" for rule in rules]
    lines += [f"-D {rule}" for rule in undone]
    lines += [f"-X {chain}" for chain in deleted]
    return "\n".join([*lines, "COMMIT", ""])
