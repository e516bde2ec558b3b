"""The cluster as a whole: up, down, and kubectl."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tests.cluster import controlplane, images, network, nodes, pki, processes
from tests.cluster.names import CONTROL, FOLDER, NODES, Node, program
from tests.cluster.waiting import wait

Document = dict[str, Any]


def up() -> None:
    """Make the cluster, up to the point where nodes are ready; it has no service proxy yet."""
    nodes.unpack()
    images.make()
    pki.make()
    network.make()
    controlplane.start()
    for node in NODES:
        nodes.start(node)
    pods: dict[Node, tuple[str, ...]] = {}
    for node in NODES:
        wait(partial(_pod_networks, node), problem=f"{node.name} has no network of pods")
        pods[node] = _pod_networks(node)
        nodes.attach_pods(node, pods[node])
    network.connect(pods)
    kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")


def _pod_networks(node: Node) -> tuple[str, ...]:
    path = "jsonpath={.spec.podCIDRs[*]}"
    return tuple(kubectl("get", "node", node.name, "--output", path, check=False).split())


def down() -> None:
    """End everything, and remove what is not of use to the next cluster."""
    for name in ("balancer",):
        processes.stop(name)
    for node in NODES:
        nodes.stop(node)
    controlplane.stop()
    network.remove()
    for name in ("nodes", "etcd", "pki", "run"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def kubectl(
    *arguments: str, documents: Sequence[Mapping[str, Any]] | str = (), check: bool = True
) -> str:
    """Run kubectl and return what it prints; `documents` go to its standard input."""
    argv = [program("kubectl"), f"--kubeconfig={pki.kubeconfig('admin')}", *arguments]
    given = documents
    if not isinstance(given, str):
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
    done = subprocess.run(
        network.inside(CONTROL, *argv), input=given, capture_output=True, text=True, check=False
    )
    if done.returncode and check:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout if not done.returncode else ""


def read(*arguments: str) -> Document:
    """Return an object, or a list of objects."""
    found: Document = json.loads(kubectl("get", *arguments, "--output=json"))
    return found
