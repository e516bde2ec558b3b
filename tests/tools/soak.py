"""`make soak`: random packets and churn in turn, for as long as told.

    python -m tests.tools.soak --seconds 600 --seed 1

Prints progress, the seed and the number of cases, and the smallest case for what it finds; exit
code 1 when it finds something. The same seed makes the same clusters; what the kernel picks at
random, and when the clients connect, is never the same twice.
"""

import argparse
import random
import sys
import time

from loguru import logger

from tests.support.churn import churn
from tests.support.search import Search
from tests.support.stage import FindingError

PACKETS = 120.0  # seconds of random packets, then
CHURN = 60.0  # seconds of churn
RATE = 100.0  # changes a second


def soak(seconds: float, seed: int) -> bool:
    """Run for some time; return whether nothing was found."""
    begin = time.monotonic()
    search = Search(seed)
    connections = changes = resets = 0
    print(f"seed {seed}", flush=True)
    while (left := begin + seconds - time.monotonic()) > 0:
        try:
            search.run(min(PACKETS, left * PACKETS / (PACKETS + CHURN)))
        except FindingError as error:
            print(
                f"kernel and oracle disagree after {search.tally.packets} packets:\n{error}",
                flush=True,
            )
            return False
        tally = search.tally
        outcomes = ", ".join(
            f"{count} {name.lower()}" for name, count in sorted(tally.outcomes.items())
        )
        print(
            f"{time.monotonic() - begin:5.0f} s: {tally.scenarios} scenarios, {tally.steps} "
            "states of the cluster, "
            f"{tally.packets} connections compared ({outcomes})",
            flush=True,
        )
        if (left := begin + seconds - time.monotonic()) > 5:
            outcome = churn(min(CHURN, left), RATE, search.seed)
            connections += outcome.connections
            changes += outcome.changes.total()
            resets += outcome.reset
            if outcome.problems:
                print(
                    f"churn, seed {search.seed}: {len(outcome.problems)} problems",
                    *outcome.problems[:30],
                    sep="\n",
                    flush=True,
                )
                return False
            print(
                f"{time.monotonic() - begin:5.0f} s: {connections} connections during {changes} "
                f"changes, none refused or lost; {resets} to pods that were gone were reset, no "
                "other",
                flush=True,
            )
    print(
        f"nothing found: {search.tally.packets} connections compared, {connections} during "
        f"{changes} changes",
        flush=True,
    )
    return True


def main() -> None:
    """Read the command line and soak."""
    parser = argparse.ArgumentParser(description="random packets against the oracle, and churn")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    logger.remove()
    sys.exit(0 if soak(options.seconds, options.seed) else 1)


if __name__ == "__main__":
    main()
