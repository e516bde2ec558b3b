"""Memory of the proxies, and how long a container of theirs takes until it is in step.

On a busy machine the processor time says more than the clock.
"""

import json
import statistics
import time
from pathlib import Path

from tests.cluster import observed, proxies
from tests.cluster.names import FOLDER, NODES, Node
from tests.cluster.waiting import wait

MEASURED = FOLDER / "measured.json"
_TICKS = 100


def memory(name: str) -> None:
    """Keep what the proxies' processes have resident now."""
    found = [_rollup(number) for node in NODES for number in observed.processes_of(node)[:1]]
    _keep(
        name,
        {
            "resident, MB": round(statistics.median(each["Rss"] for each in found) / 1000),
            "not shared, MB": round(
                statistics.median(each["Private_Clean"] + each["Private_Dirty"] for each in found)
                / 1000
            ),
        },
    )


def starts(name: str) -> None:
    """Start the proxy's pods again, and keep how long each took."""
    before = {number for node in NODES for number in observed.processes_of(node)}
    took: dict[Node, float] = {}
    used: dict[Node, float] = {}

    def asked() -> bool:
        for node in NODES:
            number = next(iter(observed.processes_of(node)), None)
            # At once, as the metric has the last sync, and the first is wanted.
            if node not in took and number and number not in before:
                times = observed.sync_times(node)
                if len(times) == 2:
                    took[node] = max(times) - _born(number)
                    used[node] = _used(number)
        return len(took) == len(NODES)

    proxies.restart(wait=False)
    wait(asked)
    proxies.rollout(proxies.DAEMONSET)
    figures = {"start, s": took, "processor in it, s": used}
    _keep(name, {what: round(statistics.median(of.values()), 1) for what, of in figures.items()})


def _born(number: int) -> float:
    """Return when a process started, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS


def _used(number: int) -> float:
    """Return the processor time of a process and of those that it has waited for, in seconds."""
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS


def _rollup(number: int) -> dict[str, int]:
    """Return the sums of a process's memory, in kB."""
    lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def _keep(name: str, figures: dict[str, float]) -> None:
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    measured[name] = {**measured.get(name, {}), **figures}
    MEASURED.write_text(json.dumps(measured, indent=1))
    print(name, figures, flush=True)
