"""What nodes take of the API server, and what it takes of them: bytes, requests, processor time.

    sudo .venv/bin/python -m tests.tools.scale --services 10000 --rounds 3

A stand-in for the API server has Services and EndpointSlices as Helm and the control plane make
them, and answers in JSON and in protobuf in turn. For each, `kube-proxy` starts in a network of its
own, and then a rolling update goes on: one slice after the other changes. Bytes are those of the
bodies that the server sends, processor time and memory those of `kube-proxy`.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from dataclasses import astuple, dataclass

from tests.support import protobuf
from tests.support.paths import ROOT
from tests.support.population import Document, endpoint_slice, service

PAGE = 500
ENCODINGS = {"JSON": "application/json", "protobuf": protobuf.CONTENT_TYPE}

_INSIDE = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
from pyroute2 import IPRoute
from tests.support.fake_apiserver import FakeApiServer
from tests.support.population import endpoint_slice, service

services, changes, rate, content_type = sys.argv[1:]
services, changes, rate = int(services), int(changes), float(rate)
with IPRoute() as network:
    network.link("set", index=1, state="up")

def used():
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

def memory():
    lines = Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

with FakeApiServer(protobuf=True) as server, tempfile.NamedTemporaryFile("w") as output:
    log = Path(output.name)
    server.begin_with("services", *map(service, range(services)))
    server.begin_with("endpointslices", *map(endpoint_slice, range(services)))
    address = {"type": "InternalIP", "address": "127.0.0.1"}
    server.begin_with("nodes", {"metadata": {"name": "node1"}, "status": {"addresses": [address]}})
    program = Path(sys.executable).with_name("kube-proxy")
    proxy = subprocess.Popen([
        program, f"--master={server.url}", "--hostname-override=node1",
        "--cluster-cidr=10.128.0.0/9", "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
        f"--kube-api-content-type={content_type}"], stderr=output)
    while log.read_text().count("in step") < 2:
        if proxy.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.05)
    time.sleep(1)
    print(server.sent, used(), memory(), len(server.requests))
    sent, before, begin = server.sent, used(), time.monotonic()
    for number in range(changes):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        server.put("endpointslices", endpoint_slice(number % services, turn=1 + number // services))
    time.sleep(2)
    print(server.sent - sent, used() - before, memory(), time.monotonic() - begin)
    proxy.terminate()
    proxy.wait()
"""


@dataclass(frozen=True)
class Measured:
    """What one start and the changes after it took."""

    start_bytes: float
    start_seconds: float
    memory: float
    requests: float
    change_bytes: float
    change_seconds: float
    memory_after: float
    lasted: float


def measure(content_type: str, services: int, changes: int, rate: float) -> Measured:
    """Start `kube-proxy` in a network of its own and let slices change."""
    order = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    arguments = [str(services), str(changes), str(rate), content_type]
    done = subprocess.run(
        [*order, sys.executable, "-c", _INSIDE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr + done.stdout)
    return Measured(*map(float, done.stdout.split()))


def sizes(kind: str, documents: list[Document]) -> None:
    """Print how long an object is in a stream and in a page, encoded in each way."""
    for name in ENCODINGS:
        if name == "JSON":
            one = json.dumps({"type": "ADDED", "object": documents[0]}, separators=(",", ":"))
            page = json.dumps({"kind": "List", "items": documents}, separators=(",", ":")).encode()
            event = len(one) + 1
        else:
            event = len(protobuf.event("ADDED", kind, documents[0]))
            page = protobuf.enveloped(f"{kind}List", {"items": documents})
        each, packed = len(page) / PAGE, len(gzip.compress(page, 1)) / PAGE
        print(
            f"{kind} in {name}: {event} bytes in a stream; {each:.0f} in a page, {packed:.0f} gzip"
        )


def main() -> None:
    """Measure both encodings in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--services", type=int, default=10_000, help="with 3 endpoints each [10000]"
    )
    parser.add_argument("--changes", type=int, default=1000, help="of slices [1000]")
    parser.add_argument("--rate", type=float, default=50, help="changes a second [50]")
    parser.add_argument("--rounds", type=int, default=3, help="how often [3]")
    given = parser.parse_args()
    sizes("Service", [service(number) for number in range(PAGE)])
    sizes("EndpointSlice", [endpoint_slice(number) for number in range(PAGE)])
    found: dict[str, list[Measured]] = {name: [] for name in ENCODINGS}
    for _ in range(given.rounds):
        for name, content_type in ENCODINGS.items():
            found[name].append(measure(content_type, given.services, given.changes, given.rate))
    for name, rounds in found.items():
        all_ = Measured(
            *(statistics.median(each) for each in zip(*map(astuple, rounds), strict=True))
        )
        print(
            f"{name}: start {all_.start_bytes / 1e6:.2f} MB, {all_.requests:.0f} requests, "
            f"{all_.start_seconds:.2f} s of a processor, {all_.memory / 1024:.0f} MiB; a change "
            f"{all_.change_bytes / given.changes:.0f} bytes, "
            f"{1e3 * all_.change_seconds / given.changes:.2f} ms of a processor; "
            f"{all_.memory_after / 1024:.0f} MiB after {given.changes} in {all_.lasted:.0f} s"
        )
    ratios = [
        pb.start_seconds / js.start_seconds
        for js, pb in zip(found["JSON"], found["protobuf"], strict=True)
    ]
    print("start in protobuf, times JSON:", ", ".join(f"{each:.2f}" for each in sorted(ratios)))


if __name__ == "__main__":
    main()
