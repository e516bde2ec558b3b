"""Processes that outlive the program that started them, each with its log.

A file for each has its number and when it started, so no other process is ever stopped.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.names import FOLDER

_STOP = 20.0


def start(name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Start a process in the background, and return its number."""
    log = FOLDER / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    _file(name).parent.mkdir(parents=True, exist_ok=True)
    _file(name).write_text(f"{process.pid} {_born(process.pid)}")
    return process.pid


def running(name: str) -> int | None:
    """Return the number of a process that was started, if it still runs."""
    try:
        number, born = _file(name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(number) if _born(int(number)) == born else None


def send(name: str, what: signal.Signals) -> None:
    """Send a signal, if the process runs."""
    if number := running(name):
        os.kill(number, what)


def stop(name: str, how: signal.Signals = signal.SIGTERM) -> None:
    """End a process, and wait for its end."""
    if number := running(name):
        os.kill(number, how)
        deadline = time.monotonic() + _STOP
        while _born(number) and running(name):
            if time.monotonic() > deadline:
                os.kill(number, signal.SIGKILL)
            time.sleep(0.05)
    _file(name).unlink(missing_ok=True)


def _file(name: str) -> Path:
    return FOLDER / "run" / f"{name}.pid"


def _born(number: int) -> str:
    """Return when a process started, in the kernel's ticks; empty without one."""
    try:
        status = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if status[0] == "Z" else status[19]
