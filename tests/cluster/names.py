"""Names and addresses of the cluster, and where its programs and files are.

A cluster is made of network namespaces on this machine: `cluster-cp` has the control plane and the
bridge to which the nodes are attached, the others are nodes.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = ROOT / "build/cluster"
"""Whatever a cluster writes: state, logs, images, reports."""

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
    "kubeadm",
    "kube-proxy",
    "coredns",
    "e2e.test",
    "ginkgo",
    "agnhost",
    "pause",
    "regression-issue-74839",
)

CONTROL = "cluster-cp"
CONTROL_IPV4, CONTROL_IPV6 = "172.30.0.1", "fd00:30::1"
SERVER = f"https://{CONTROL_IPV4}:6443"
SERVICES = "10.96.0.0/16,fd00:96::/112"
DNS = "10.96.0.10"
KUBERNETES_SERVICE = "10.96.0.1", "fd00:96::1"
PODS = "10.244.0.0/16,fd00:244::/48"
REPOSITORY = "example.org"
"""Where kubeadm takes the names of its images from; nothing is fetched."""
NFTPROXY = f"{REPOSITORY}/nftproxy:test"


@dataclass(frozen=True)
class Node:
    """A node: a network namespace, and a folder for its files."""

    number: int
    zone: str

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def namespace(self) -> str:
        return f"cluster-{self.name}"

    @property
    def ipv4(self) -> str:
        return f"172.30.0.1{self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:30::1{self.number}"

    @property
    def folder(self) -> Path:
        return FOLDER / "nodes" / self.name


NODES = (Node(1, "zone1"), Node(2, "zone2"), Node(3, "zone3"))


def missing(folder: str) -> str:
    """Return why there can be no cluster of the programs in a folder; empty if there can."""
    if not folder:
        return "KUBERNETES_BINARIES is not set: it names a folder with " + ", ".join(PROGRAMS)
    absent = [each for each in PROGRAMS if not Path(folder, each).is_file()]
    return f"{folder} has no {' and no '.join(absent)}" if absent else ""


def program(name: str) -> str:
    """Return the path of a program of Kubernetes."""
    return str(Path(os.environ["KUBERNETES_BINARIES"], name))
