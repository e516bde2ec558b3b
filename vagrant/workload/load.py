"""A client of the workload.

load.py connect ADDRESS PORT SECONDS        connects in turn, and prints figures as a line of JSON
load.py until answered|refused ADDRESS PORT tries without pause until that is what becomes of it
"""

import json
import socket
import sys
import time

TIMEOUT = 1.0
PATIENCE = 60.0


def attempt(address: str, port: int) -> str:
    """Make one connection and return what became of it: answered, refused or nothing."""
    try:
        with socket.create_connection((address, port), TIMEOUT) as connection:
            return "answered" if connection.recv(1) else "nothing"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "nothing"


def connect(address: str, port: int, seconds: float) -> dict[str, float]:
    """Connect for some seconds.

    Return how many per second, how many failed, and how long they took in microseconds.
    """
    took: list[float] = []
    failed = 0
    started = now = time.perf_counter()
    while now - started < seconds:
        outcome = attempt(address, port)
        before, now = now, time.perf_counter()
        if outcome == "answered":
            took.append((now - before) * 1e6)
        else:
            failed += 1
    took.sort()
    middle, high = (took[int(len(took) * part)] if took else 0.0 for part in (0.5, 0.99))
    return {
        "per_second": round(len(took) / (now - started), 1),
        "failed": failed,
        "p50_us": round(middle),
        "p99_us": round(high),
    }


def until(outcome: str, address: str, port: int) -> bool:
    """Try until that is what becomes of it; whether it did in time."""
    deadline = time.monotonic() + PATIENCE
    while attempt(address, port) != outcome:
        if time.monotonic() > deadline:
            return False
    return True


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    match arguments:
        case ["connect", address, port, seconds]:
            print(json.dumps(connect(address, int(port), float(seconds))))
            return 0
        case ["until", ("answered" | "refused") as outcome, address, port]:
            return 0 if until(outcome, address, int(port)) else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
