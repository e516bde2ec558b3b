"""Run programs in a mode's namespace, and measure them."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from nftproxy.bench.modes.mode import Work
from nftproxy.errors import NftproxyError
from nftproxy.lab.namespace import enter


class Programs:
    """Runs programs in one namespace and adds up their times."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._spent = Work()

    def run(self, *argv: str, given: str = "", may_fail: bool = False) -> str | None:
        """Run a program to its end and return its output.

        A failure is None if it may fail, else an NftproxyError.
        """
        began = time.perf_counter()
        with enter(self._namespace):
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        with process:
            output, complaint = process.communicate(given)
        self.count(time.perf_counter() - began, len(given))
        if process.returncode == 0:
            return output
        if may_fail:
            return None
        line = next(iter(complaint.strip().splitlines()), f"exit code {process.returncode}")
        raise NftproxyError(f"{' '.join(argv)}: {line}")

    def count(self, seconds: float, sent: int) -> None:
        """Add one program."""
        spent = self._spent
        self._spent = replace(
            spent,
            programs=spent.programs + seconds,
            commands=spent.commands + 1,
            sent=spent.sent + sent,
        )

    def measured(self, action: Callable[[], None]) -> Work:
        """Call a function and return its cost."""
        self._spent = Work()
        began = time.perf_counter()
        action()
        return replace(self._spent, own=time.perf_counter() - began - self._spent.programs)
