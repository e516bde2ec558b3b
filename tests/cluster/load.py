"""Services with endpoints on all nodes, and clients that connect to them during a trial.

A pod asks ClusterIPs of both families, so does a node; a client outside asks NodePorts of each
node. One Service has affinity: its client must get the same endpoint all the time.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster import network
from tests.cluster.cluster import kubectl, read
from tests.cluster.images import agnhost
from tests.cluster.names import CONTROL, NODES, Node
from tests.cluster.waiting import wait

NAMESPACE = "load"
_PORT = 8080


@dataclass
class Outcome:
    """What became of all connections during a trial."""

    opened: int = 0
    asked: int = 0
    retransmitted: int = 0
    longest: float = 0.0
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    moved: int = 0
    """How often the client of the Service with affinity was sent to another endpoint."""


def deploy() -> None:
    """Make the Services and their pods, and wait until all run."""
    kubectl("apply", "--filename=-", documents=list(_objects()))
    for name in ("server", "client", "moving"):
        kubectl("--namespace", NAMESPACE, "rollout", "status", f"deployment/{name}")


@contextmanager
def running(nodes: Sequence[Node] = NODES) -> Iterator[Outcome]:
    """Connect during the block, from outside to the NodePorts of some nodes.

    Afterwards the outcome is filled.
    """
    web, sticky = (
        [f"{name}{family}={address}:80" for family, address in addresses(name).items()]
        for name in ("web", "sticky")
    )
    port = read("service", "web", "--namespace", NAMESPACE)["spec"]["ports"][0]["nodePort"]
    outside = [
        f"{node.name}-{address}={address}:{port}"
        for node in nodes
        for address in (node.ipv4, f"[{node.ipv6}]")
    ]
    clients = [
        _client(["nsenter", f"--net=/proc/{_process_of_client()}/ns/net"], web + sticky),
        _client(network.inside(NODES[1].namespace), web),
        _client(network.inside(CONTROL), outside),
    ]
    outcome = Outcome()
    try:
        yield outcome
    finally:
        printed = [client.communicate("")[0] for client in clients]
    collect(outcome, [each for text in printed for each in json.loads(text)])


def collect(outcome: Outcome, reports: list[dict[str, Any]]) -> None:
    """Add up what the clients print."""
    for report in reports:
        outcome.opened += report["opened"]
        outcome.asked += report["asked"]
        outcome.retransmitted += report["retransmitted"]
        outcome.longest = max(outcome.longest, report["longest"])
        outcome.failed += [f"{report['target']}: {each}" for each in report["failed"]]
        outcome.broken += [f"{report['target']}: {each}" for each in report["broken"]]
        if report["target"].startswith("sticky"):
            outcome.moved += report["moved"]


def answers(namespace: str, address: str) -> bool:
    """Say whether a Service's port answers to a client in a network namespace."""
    argv = network.inside(namespace, "curl", "--silent", "--globoff", "--max-time", "3")
    return not subprocess.run(
        [*argv, "--output", "/dev/null", f"http://{address}/hostname"], check=False
    ).returncode


def _client(where: list[str], targets: list[str]) -> "subprocess.Popen[str]":
    program = Path(__file__).with_name("connections.py")
    return subprocess.Popen(
        [*where, sys.executable, "-I", str(program), *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def addresses(name: str) -> dict[str, str]:
    """Return the ClusterIPs of a Service by family, those of IPv6 in brackets."""
    found = read("service", name, "--namespace", NAMESPACE)["spec"]["clusterIPs"]
    return {"6" if ":" in each else "4": f"[{each}]" if ":" in each else each for each in found}


def _process_of_client() -> int:
    """Return the number of the process in the client's pod, as this machine counts."""
    pods = read("pods", "--namespace", NAMESPACE, "--selector=app=client")["items"]
    uid = pods[0]["metadata"]["uid"]

    def found() -> Iterator[int]:
        for path in Path("/proc").glob("[0-9]*/cgroup"):
            try:
                if uid in path.read_text():
                    yield int(path.parent.name)
            except OSError:
                continue

    wait(lambda: next(found(), None), problem="the client's pod has no process")
    return next(found())


def _objects() -> Iterator[dict[str, Any]]:
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    yield _deployment(
        "server", 6, "netexec", f"--http-port={_PORT}", "--delay-shutdown=20", probe=True
    )
    yield _deployment("moving", 3, "netexec", f"--http-port={_PORT}", probe=True)
    yield _deployment("client", 1, "pause", node=NODES[0].name)
    services: dict[str, dict[str, Any]] = {
        "web": {"type": "NodePort", "selector": {"app": "server"}},
        "sticky": {"sessionAffinity": "ClientIP", "selector": {"app": "server"}},
        "moving": {"selector": {"app": "moving"}},
    }
    for name, spec in services.items():
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": 80, "targetPort": _PORT}],
                **spec,
            },
        }


def _deployment(
    name: str, replicas: int, *arguments: str, node: str = "", probe: bool = False
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": agnhost(),
        "imagePullPolicy": "Never",
        "args": arguments,
    }
    if probe:
        container["readinessProbe"] = {"httpGet": {"path": "/healthz", "port": _PORT}}
    labels = {"app": name}
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": 40 if probe else 1,
        "containers": [container],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
    }
    if node:
        pod["nodeName"] = node
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
