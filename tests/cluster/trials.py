"""What happens to a cluster in operation, while clients connect; each trial returns its figures.

A trial that loses a connection has failed. What it found is kept in `results.json`.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tests.cluster import controlplane, images, load, network, nodes, observed, proxies
from tests.cluster.cluster import kubectl
from tests.cluster.names import (
    FOLDER,
    KUBERNETES_SERVICE,
    NFTPROXY,
    NODES,
    REPOSITORY,
    SERVER,
)
from tests.cluster.waiting import wait

RESULTS = FOLDER / "results.json"
Figures = dict[str, Any]
_MAY_MOVE = {"swap-nftables": 4, "swap-iptables": 4, "own-manifests": 4, "kubeadm-upgrade": 4}
"""How often clients of both families lose affinity: proxies do not read each other's memory."""
_SETTLED = 20
"""Seconds of connections after the last change, and before the first."""
_CHANGED = f"{REPOSITORY}/nftproxy:changed"


def swap(mode: str) -> Figures:
    """Swap the image from kube-proxy to nftproxy and back, as docs/operations.md says."""
    proxies.set_mode(mode)
    proxies.set_image(proxies.original())
    observed.until_synced()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.set_mode("nftables")
        proxies.set_image(NFTPROXY)
        time.sleep(_SETTLED)
        observed.expect_table(there=True)
        proxies.set_mode(mode)
        proxies.set_image(proxies.original())
        observed.until_synced()
        cleanup()
        time.sleep(_SETTLED)
        observed.expect_table(there=False)
    return asdict(outcome)


def upgrade() -> Figures:
    """Swap our image for one whose rules are another program, and back."""
    images.changed(_CHANGED, images.IMAGES / "changed.tar")
    for node in NODES:
        nodes.load(node)
    _serve()
    before = observed.programs()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.set_image(_CHANGED)
        time.sleep(_SETTLED)
        between = observed.programs()
        proxies.set_image(NFTPROXY)
        time.sleep(_SETTLED)
    assert not before & between
    assert before == observed.programs()
    return asdict(outcome)


def kubeadm_upgrade() -> Figures:
    """Let kubeadm write its addon again, as its upgrade does.

    The DaemonSet then has kube-proxy's image, until ours is set again, as docs/install.md says.
    """
    _serve()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.addon("kube-proxy")
        proxies.rollout(proxies.DAEMONSET)
        observed.until_synced()
        assert proxies.image() == proxies.original()
        time.sleep(_SETTLED)
        _serve()
        time.sleep(_SETTLED)
        observed.expect_table(there=True)
    return asdict(outcome)


def crash_loop() -> Figures:
    """Kill the proxy of a node every second, for a minute."""
    _serve()
    killed = 0
    with load.running() as outcome:
        time.sleep(_SETTLED)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for number in observed.processes_of(NODES[0]):
                os.kill(number, signal.SIGKILL)
                killed += 1
            time.sleep(1)
        # The kubelet waits for longer after each end, up to five minutes.
        waited = wait(
            lambda: observed.processes_of(NODES[0]) and observed.synced(NODES[0]), seconds=400
        )
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
    before = observed.endpoints("moving")
    with load.running() as outcome:
        time.sleep(5)
        controlplane.stop_apiserver()
        time.sleep(seconds / 2)
        moved = sum(nodes.restart_pods(node, "moving-") for node in NODES)
        time.sleep(seconds / 2)
        controlplane.start_apiserver()
        begin = time.monotonic()
        wait(
            lambda: len(observed.endpoints("moving") - before) >= moved,
            problem="pods have kept their addresses",
        )
        known = time.monotonic() - begin
        wait(lambda: all(observed.holds(node, observed.endpoints("moving")) for node in NODES))
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
        observed.until_synced()
        controlplane.stop_apiserver()
        time.sleep(_SETTLED)
        proxies_before = [observed.processes_of(node) for node in NODES]
        controlplane.start_apiserver()
        before = observed.endpoints("moving")
        kubectl("--namespace", load.NAMESPACE, "rollout", "restart", "deployment/moving")
        kubectl("--namespace", load.NAMESPACE, "rollout", "status", "deployment/moving")
        wait(lambda: not observed.endpoints("moving") & before)
        wait(lambda: all(observed.holds(node, observed.endpoints("moving")) for node in NODES))
        assert proxies_before == [observed.processes_of(node) for node in NODES], (
            "the proxy has ended"
        )
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
    observed.until_synced()
    with load.running() as outcome:
        time.sleep(_SETTLED)
        proxies.select_nodes(all_nodes=False)
        wait(lambda: not any(observed.processes_of(node) for node in NODES))
        proxies.apply_own()
        observed.until_synced()
        time.sleep(_SETTLED)
        observed.expect_table(there=True)
        may = {observed.rights(number) for node in NODES for number in observed.processes_of(node)}
        proxies.delete_own()
        wait(lambda: not any(observed.processes_of(node) for node in NODES))
        proxies.select_nodes(all_nodes=True)
        observed.until_synced()
        cleanup()
        time.sleep(_SETTLED)
        observed.expect_table(there=False)
    assert len(may) == 1, may
    return {**asdict(outcome), "the process has": may.pop()}


ALL: dict[str, Callable[[], Figures]] = {
    "swap-nftables": lambda: swap("nftables"),
    "swap-iptables": lambda: swap("iptables"),
    "upgrade": upgrade,
    "kubeadm-upgrade": kubeadm_upgrade,
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
    observed.until_synced()


def cleanup() -> None:
    """Remove our table from all nodes, as docs/operations.md says."""
    folder = str(proxies.own() / "deploy/cleanup")
    kubectl("apply", "--kustomize", folder)
    proxies.rollout("daemonset/nftproxy-cleanup")
    kubectl("delete", "--kustomize", folder)
