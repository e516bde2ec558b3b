"""What one changed endpoint costs in Services of different sizes, from the slice to the kernel.

    sudo .venv/bin/python -m tests.tools.large 10 10000

Slices have 100 endpoints, as the control plane makes them. Prints the median of 60 changes, and
its ratio to the first size.
"""

import statistics
import sys
import time

from nftproxy.address import Family
from nftproxy.model import EndpointSlice
from nftproxy.node import memory
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import bare_table, deliver

_SLICE = 100  # endpoints


def measure(size: int) -> float:
    """Return the median processor time of a change, in seconds."""
    count = -(-size // _SLICE)
    took = []
    with bare_table() as table:
        deliver(table, service(), *(_piece(number, size) for number in range(count)))
        table.sync(Family.IPv4, [])
        for turn in range(1, 32):
            for replaced in (turn, None):
                changed = _piece(turn * 7 % count, size, replaced)
                begin = time.process_time()
                table.store.put(changed)
                table.sync(Family.IPv4, [])
                took.append(time.process_time() - begin)
    return statistics.median(took[2:])


def _piece(number: int, size: int, replaced: int | None = None) -> EndpointSlice:
    """Return a slice; in one with `replaced` the last endpoint is another."""
    pods = [*range(number * _SLICE, min(size, (number + 1) * _SLICE))]
    if replaced is not None:
        pods[-1] = 50_000 + replaced
    addresses = [f"10.{128 + n // 65536}.{n // 256 % 256}.{n % 256}" for n in pods]
    found = [
        endpoint(address, f"node{2 + pod % 50}")
        for address, pod in zip(addresses, pods, strict=True)
    ]
    return endpoint_slice("web", found, name=f"web-{number:04}")


def main(sizes: list[int]) -> None:
    memory.collect_seldom()
    first = measure(sizes[0])
    for size in sizes:
        median = measure(size)
        print(f"{size:6} endpoints: {median * 1e3:6.2f} ms, {median / first:.2f} times")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [10, 10_000])
