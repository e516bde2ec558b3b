"""How long after a change of an EndpointSlice a client of a gone endpoint is reset.

    python -m tests.tools.resetting --rounds 50 --services 1000 --rate 50

A proxy with --reset-gone-endpoints serves one node of a lab, with Services that nobody connects to,
some of which change all the time. In each round a client in a pod connects, the endpoint leaves its
only slice, and the client sends every half millisecond until it gets ECONNRESET. The time starts
when the changed slice is put into the store.
"""

import argparse
import itertools
import statistics
import threading
import time

from loguru import logger

from nftproxy.address import Family
from nftproxy.lab.client import Connection
from nftproxy.lab.lab import Lab
from nftproxy.model import EndpointSlice, Service
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.running import Running, eventually, running
from tests.support.world import settings, unique_name

ADDRESS = "10.96.0.10"
PAUSE = 0.0005  # seconds between two packets of the client


def main() -> None:
    """Measure, and print the distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--services", type=int, default=0, help="with 3 endpoints each [0]")
    parser.add_argument("--rate", type=float, default=0.0, help="of their changes a second [0]")
    given = parser.parse_args()
    logger.remove()
    with Lab(unique_name(), nodes=2, pods=1) as lab:
        node = lab.nodes[0]
        chosen = settings(node.name, node.addresses, reset_gone=True)
        with running(node.namespace, chosen) as proxy:
            proxy.apply(*(item for number in range(given.services) for item in _other(number)))
            eventually(proxy.settled, 120)
            stop = threading.Event()
            changing = threading.Thread(target=_change, args=(proxy, given, stop))
            changing.start()
            try:
                found = sorted(_measure(lab, proxy) for _ in range(given.rounds))
            finally:
                stop.set()
                changing.join()
    late = found[int(len(found) * 0.95)]
    print(
        f"{given.services} Services, {given.rate:g} changes a second, {len(found)} rounds: "
        f"median {statistics.median(found):.0f} ms, 95th percentile {late:.0f} ms, "
        f"at most {found[-1]:.0f} ms"
    )


def _measure(lab: Lab, proxy: Running) -> float:
    """Return the milliseconds until the reset, in one round."""
    pod = lab.place("pod2-1").addresses[Family.IPv4]
    proxy.apply(service(), endpoint_slice(endpoints=[endpoint(pod, "node2")]))
    eventually(lambda: _answered(lab) is not None, 30)
    held = _answered(lab)
    assert held
    time.sleep(0.2)
    sock = held._socket
    begin = time.monotonic()
    proxy.apply(endpoint_slice(endpoints=[]))
    try:
        while time.monotonic() < begin + 10:
            sock.send(b"x")
            time.sleep(PAUSE)
    except ConnectionError:
        return (time.monotonic() - begin) * 1000
    finally:
        held.close()
    raise SystemExit("no reset in 10 s")


def _answered(lab: Lab) -> Connection | None:
    found = lab.open_connection("pod1-1", ADDRESS, 80, timeout=0.5)
    return found if isinstance(found, Connection) else None


def _other(number: int, version: int = 0) -> tuple[Service, EndpointSlice]:
    high, low = divmod(number, 250)
    members = [
        endpoint(f"10.200.{high}.{low + 1}", "node2"),
        endpoint(f"10.201.{high}.{low + 1}", "node1"),
        endpoint(f"10.{202 + version % 2}.{high}.{low + 1}", "node2"),
    ]
    name = f"other{number}"
    return service(name, f"10.96.{10 + high}.{low + 1}"), endpoint_slice(name, members)


def _change(proxy: Running, given: argparse.Namespace, stop: threading.Event) -> None:
    """Change one Service after the other."""
    for number in itertools.count():
        if not given.rate or not given.services or stop.wait(1 / given.rate):
            return
        proxy.apply(_other(number % given.services, number // given.services + 1)[1])


if __name__ == "__main__":
    main()
