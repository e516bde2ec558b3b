"""The console blocks of a Markdown file.

What a reader types and what should appear, and a shell to try it in.

In a block fenced ```console every line `$ command` is typed, lines `> ...` below it go on with it,
and what follows is what it prints: all of it, where a line `...` stands for any lines, and `...`
within a line for any text. Blocks fenced otherwise are not run. All blocks of a file are run in
order in one shell, in a folder with copies of examples/ and docs/.

    python -m tests.tools.consoles docs/limits.md       prints what each command really prints
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.paths import ROOT

PROJECT = ROOT
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Namespaces for mounts, network and processes: the names of labs are the shell's own, and all it
# started ends with it.
_ALONE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_START = "mount -t tmpfs tmpfs /run && ip link set lo up"


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what it should print, and the line it stands in."""

    command: str
    expected: str
    line: int

    def matches(self, printed: str) -> bool:
        """Whether that is what it should print."""
        return re.fullmatch(_pattern(self.expected), f"{printed}\n" if printed else "") is not None


def steps(text: str) -> list[Step]:
    """Return the commands of all console blocks of a Markdown text."""
    found = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1)) + 1
        command: list[str] = []
        expected: list[str] = []
        start = line
        for number, content in enumerate(block[1].splitlines(), line):
            if content.startswith("$ "):
                if command:
                    found.append(Step("\n".join(command), _lines(expected), start))
                command, expected, start = [content[2:]], [], number
            elif content.startswith("> ") and not expected:
                command.append(content[2:])
            elif command:
                expected.append(content)
            else:
                raise ValueError(f"line {number}: a console block begins with a command")
        if command:
            found.append(Step("\n".join(command), _lines(expected), start))
    return found


class Shell:
    """A bash in a machine of its own, as far as network, names in /run and processes go.

    Ends at the end of its `with` block.
    """

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="nftproxy-docs-")
        for name in ("examples", "docs", "vagrant"):
            if (PROJECT / name).is_dir():
                shutil.copytree(PROJECT / name, Path(self._folder.name, name))
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        self._bash = subprocess.Popen(
            [*_ALONE, "bash", "--noprofile", "--norc"],
            cwd=self._folder.name,
            env={"PATH": path, "HOME": self._folder.name, "LC_ALL": "C.UTF-8", "TERM": "dumb"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.run(_START)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bash.kill()
        self._bash.communicate()
        self._folder.cleanup()

    def run(self, command: str) -> str:
        """Have a command done, and return what it printed.

        The functions and variables it makes stay.
        """
        assert self._bash.stdin
        assert self._bash.stdout
        end = f"-- end {time.monotonic_ns()} --"
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '%s\\n' '{end}'\n")
        self._bash.stdin.flush()
        printed: list[str] = []
        for line in self._bash.stdout:
            before, found, _ = line.rstrip("\n").partition(end)
            if found:
                return "\n".join([*printed, before]).rstrip("\n")
            printed.append(before.rstrip())
        raise AssertionError(f"the shell ended at: {command}")

    def try_step(self, step: Step, patience: float = 30.0) -> str:
        """Do a step, and again for some seconds if it does not print what it should.

        Readers are slower than tests.
        """
        deadline = time.monotonic() + patience
        while not step.matches(printed := self.run(step.command)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return printed


def play(path: Path) -> Iterator[tuple[Step, str]]:
    """Do all steps of a file, and yield each with what it printed."""
    with Shell() as shell:
        for step in steps(path.read_text()):
            yield step, shell.try_step(step)


def _lines(expected: list[str]) -> str:
    return "\n".join(line.rstrip() for line in expected).rstrip("\n")


def _pattern(expected: str) -> str:
    """Return the regular expression for an output with wildcards.

    Blanks in a row count as one, as columns move.
    """
    lines = []
    for line in expected.split("\n") if expected else ():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            parts = (
                r"[ \t]+".join(map(re.escape, re.split(r"[ \t]+", part)))
                for part in line.split("...")
            )
            lines.append(".*".join(parts) + r"\n")
    return "".join(lines)


if __name__ == "__main__":
    for step, printed in play(Path(sys.argv[1])):
        verdict = "" if step.matches(printed) else f"   <-- line {step.line}: not as written"
        sys.stdout.write(f"$ {step.command}{verdict}\n{printed}\n")
