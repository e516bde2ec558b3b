"""What can be seen of the proxies from outside: processes, tables, metrics."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import load, network
from tests.cluster.cluster import read
from tests.cluster.names import NODES, Node
from tests.cluster.waiting import wait

_CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW"}
"""linux/capability.h"""


def rights(number: int) -> str:
    """Return the capabilities of a process, whether seccomp filters it, and its root's mount."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines()
    )
    capabilities = int(status["CapEff"], 16)
    names = [name for bit, name in _CAPABILITIES.items() if capabilities & 1 << bit]
    assert capabilities == sum(1 << bit for bit in _CAPABILITIES if _CAPABILITIES[bit] in names)
    seccomp = {"0": "no seccomp", "2": "a seccomp filter"}[status["Seccomp"].strip()]
    mounts = Path(f"/proc/{number}/mountinfo").read_text().splitlines()
    (root,) = (line.split()[5].split(",")[0] for line in mounts if line.split()[4] == "/")
    return f"{' and '.join(names)}; {seccomp}; a root that is {root}"


def expect_table(*, there: bool) -> None:
    """Fail unless our table is on all nodes, or on none."""
    for node in NODES:
        assert ("inet nftproxy" in _nft(node, "tables")) is there, f"our table on {node.name}"


def programs() -> set[str]:
    """Return the digests of the programs that the nodes' tables hold."""
    return {
        word
        for node in NODES
        for word in _nft(node, "chains", "inet").split()
        if word.startswith("program-")
    }


def _nft(node: Node, *what: str) -> str:
    argv = network.inside(node.namespace, "nft", "--terse", "list", *what)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def until_synced() -> None:
    """Wait until the proxies of all nodes have synced."""
    wait(lambda: all(synced(node) for node in NODES), problem="a proxy has not synced")


def synced(node: Node) -> bool:
    """Say whether the proxy of a node has applied both families since its start."""
    return len(sync_times(node)) == 2


def sync_times(node: Node) -> list[float]:
    """Return when the proxy of a node last synced each family, from its own metrics."""
    argv = network.inside(
        node.namespace, "curl", "--silent", "--max-time", "3", "http://127.0.0.1:10249/metrics"
    )
    text = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
    return [
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith(name) and float(line.split()[1])
    ]


def processes_of(node: Node) -> list[int]:
    """Return the numbers of the proxy's processes in containers of a node."""
    return list(_processes(node))


def _processes(node: Node) -> Iterator[int]:
    there = Path(f"/run/netns/{node.namespace}").stat().st_ino
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            program = any(word.endswith(b"/kube-proxy") for word in words[:2])
            if program and (path / "ns/net").stat().st_ino == there:
                yield int(path.name)
        except OSError:
            continue


def endpoints(service: str) -> set[str]:
    """Return the IPv4 addresses of a Service's ready pods, by its EndpointSlices."""
    slices = read(
        "endpointslices",
        "--namespace",
        load.NAMESPACE,
        f"--selector=kubernetes.io/service-name={service}",
    )
    return {
        address
        for each in slices["items"]
        if each["addressType"] == "IPv4"
        for endpoint in each.get("endpoints") or []
        for address in endpoint["addresses"]
        if endpoint["conditions"].get("ready")
    }


def holds(node: Node, addresses: set[str]) -> bool:
    """Say whether the table of a node has all these endpoints."""
    argv = network.inside(node.namespace, "nft", "list", "table", "inet", "nftproxy")
    text = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return bool(addresses) and all(f"{each} " in text for each in addresses)
