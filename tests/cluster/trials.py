"""What happens to a cluster in operation, while clients connect; each trial returns its figures.

A trial that loses a connection has failed. What it found is kept in `results.json`.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster import controlplane, images, load, network, nodes, proxies
from tests.cluster.cluster import kubectl, read, wait
from tests.cluster.names import (
    FOLDER,
    KUBERNETES_SERVICE,
    NFTPROXY,
    NODES,
    REPOSITORY,
    SERVER,
    Node,
)

RESULTS = FOLDER / "results.json"
Figures = dict[str, Any]
_MAY_MOVE = {"swap-nftables": 4, "swap-iptables": 4, "own-manifests": 4}
"""How often clients of both families lose affinity: proxies do not read each other's memory."""
_SETTLED = 20
"""Seconds of connections after the last change, and before the first."""
_CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW"}
"""linux/capability.h"""
_CHANGED = f"{REPOSITORY}/nftproxy:changed"


def swap(mode: str) -> Figures:
    """Swap the image from kube-proxy to nftproxy and back, as docs/operations.md says."""
    proxies.set_mode(mode)
    proxies.set_image(proxies.original())
    until_synced()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.set_mode("nftables")
        proxies.set_image(NFTPROXY)
        time.sleep(_SETTLED)
        _expect_table(there=True)
        proxies.set_mode(mode)
        proxies.set_image(proxies.original())
        until_synced()
        cleanup()
        time.sleep(_SETTLED)
        _expect_table(there=False)
    return asdict(outcome)


def upgrade() -> Figures:
    """Swap our image for one whose rules are another program, and back."""
    images.changed(_CHANGED, images.IMAGES / "changed.tar")
    for node in NODES:
        nodes.load(node)
    _serve()
    before = _programs()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.set_image(_CHANGED)
        time.sleep(_SETTLED)
        between = _programs()
        proxies.set_image(NFTPROXY)
        time.sleep(_SETTLED)
    assert not before & between
    assert before == _programs()
    return asdict(outcome)


def crash_loop() -> Figures:
    """Kill the proxy of a node every second, for a minute."""
    _serve()
    killed = 0
    with load.running() as outcome:
        time.sleep(_SETTLED)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for number in _processes(NODES[0]):
                os.kill(number, signal.SIGKILL)
                killed += 1
            time.sleep(1)
        # The kubelet waits for longer after each end, up to five minutes.
        waited = wait(lambda: _processes(NODES[0]) and _synced(NODES[0]), seconds=400)
        time.sleep(_SETTLED)
    return {**asdict(outcome), "killed": killed, "back after": round(waited)}


def drained_node() -> Figures:
    """Drain a node, stop it as a loss of power does, and start it with nothing in its kernel."""
    _serve()
    last = NODES[-1]
    with load.running(nodes=NODES[:-1]) as outcome:
        time.sleep(_SETTLED)
        kubectl("drain", last.name, "--ignore-daemonsets", "--force", "--delete-emptydir-data")
        nodes.stop(last)
        subprocess.run(network.inside(last.namespace, "nft", "flush", "ruleset"), check=True)
        subprocess.run(
            network.inside(last.namespace, "conntrack", "--flush"), check=True, capture_output=True
        )
        time.sleep(_SETTLED)
        nodes.start(last)
        begin = time.monotonic()
        kubectl("uncordon", last.name)
        address = load.addresses("web")["4"]
        wait(lambda: load.answers(last.namespace, f"{address}:80"), seconds=300)
        served = time.monotonic() - begin
        time.sleep(_SETTLED)
    # Pods of the drained node have ended, and with them the connections that they had.
    outcome.broken, outcome.moved = [], 0
    return {**asdict(outcome), "node serves after": round(served)}


def server_away(seconds: float = 300) -> Figures:
    """Take the control plane away while pods get new addresses, and see how long news take then."""
    _serve()
    before = _endpoints("moving")
    with load.running() as outcome:
        time.sleep(5)
        controlplane.stop_apiserver()
        time.sleep(seconds / 2)
        moved = sum(nodes.restart_pods(node, "moving-") for node in NODES)
        time.sleep(seconds / 2)
        controlplane.start_apiserver()
        begin = time.monotonic()
        wait(
            lambda: len(_endpoints("moving") - before) >= moved,
            problem="pods have kept their addresses",
        )
        known = time.monotonic() - begin
        wait(lambda: all(_holds(node, _endpoints("moving")) for node in NODES))
        applied = time.monotonic() - begin
        time.sleep(_SETTLED)
    return {
        **asdict(outcome),
        "pods moved": moved,
        "API server knows after": round(known, 1),
        "nodes have it after": round(applied, 1),
    }


def own_address() -> Figures:
    """Give the proxy the API server's address as a Service's, which it serves itself."""
    _serve()
    with load.running() as outcome:
        proxies.set_server(f"https://{KUBERNETES_SERVICE[0]}:443")
        proxies.restart()
        until_synced()
        controlplane.stop_apiserver()
        time.sleep(_SETTLED)
        proxies_before = [_processes(node) for node in NODES]
        controlplane.start_apiserver()
        before = _endpoints("moving")
        kubectl("--namespace", load.NAMESPACE, "rollout", "restart", "deployment/moving")
        kubectl("--namespace", load.NAMESPACE, "rollout", "status", "deployment/moving")
        wait(lambda: not _endpoints("moving") & before)
        wait(lambda: all(_holds(node, _endpoints("moving")) for node in NODES))
        assert proxies_before == [_processes(node) for node in NODES], "the proxy has ended"
        proxies.set_server(SERVER)
        proxies.restart()
        time.sleep(_SETTLED)
    return asdict(outcome)


def own_manifests() -> Figures:
    """Let `deploy/` take over from kube-proxy, and give back, as docs/operations.md says.

    What the process may do is read from the kernel meanwhile.
    """
    proxies.set_mode("nftables")
    proxies.set_image(proxies.original())
    until_synced()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.select_nodes(all_nodes=False)
        wait(lambda: not any(_processes(node) for node in NODES))
        proxies.apply_own()
        until_synced()
        time.sleep(_SETTLED)
        _expect_table(there=True)
        may = {_rights(number) for node in NODES for number in _processes(node)}
        proxies.delete_own()
        wait(lambda: not any(_processes(node) for node in NODES))
        proxies.select_nodes(all_nodes=True)
        until_synced()
        cleanup()
        time.sleep(_SETTLED)
        _expect_table(there=False)
    assert len(may) == 1, may
    return {**asdict(outcome), "the process has": may.pop()}


def _rights(number: int) -> str:
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


ALL: dict[str, Callable[[], Figures]] = {
    "swap-nftables": lambda: swap("nftables"),
    "swap-iptables": lambda: swap("iptables"),
    "upgrade": upgrade,
    "crash-loop": crash_loop,
    "drained-node": drained_node,
    "own-address": own_address,
    "own-manifests": own_manifests,
    "server-away": server_away,
}
"""All trials, in the order in which they run."""


def keep(name: str) -> bool:
    """Do a trial, keep its figures, and say whether no connection was lost."""
    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
    begin = time.monotonic()
    try:
        figures = ALL[name]()
    except (AssertionError, OSError, RuntimeError) as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return False
    figures["seconds"] = round(time.monotonic() - begin)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, name: figures}, indent=1))
    shown = {key: value for key, value in figures.items() if value not in ([], 0)}
    print(f"{time.strftime('%H:%M:%S')} {name}: {shown}", flush=True)
    return not (figures["failed"] or figures["broken"] or figures["moved"] > _MAY_MOVE.get(name, 0))


def _serve() -> None:
    """Let nftproxy serve in kubeadm's DaemonSet."""
    proxies.set_mode("nftables")
    proxies.set_image(NFTPROXY)
    until_synced()


def cleanup() -> None:
    """Remove our table from all nodes, as docs/operations.md says."""
    folder = str(proxies.own() / "deploy/cleanup")
    kubectl("apply", "--kustomize", folder)
    proxies.rollout("daemonset/nftproxy-cleanup")
    kubectl("delete", "--kustomize", folder)


def _expect_table(*, there: bool) -> None:
    for node in NODES:
        assert ("inet nftproxy" in _nft(node, "tables")) is there, f"our table on {node.name}"


def _programs() -> set[str]:
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
    wait(lambda: all(_synced(node) for node in NODES), problem="a proxy has not synced")


def _synced(node: Node) -> bool:
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


def _processes(node: Node) -> list[int]:
    return list(processes_of(node))


def processes_of(node: Node) -> Iterator[int]:
    """Yield the numbers of the proxy's processes in containers of a node."""
    there = Path(f"/run/netns/{node.namespace}").stat().st_ino
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            program = any(word.endswith(b"/kube-proxy") for word in words[:2])
            if program and (path / "ns/net").stat().st_ino == there:
                yield int(path.name)
        except OSError:
            continue


def _endpoints(service: str) -> set[str]:
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


def _holds(node: Node, addresses: set[str]) -> bool:
    argv = network.inside(node.namespace, "nft", "list", "table", "inet", "nftproxy")
    text = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return bool(addresses) and all(f"{each} " in text for each in addresses)
