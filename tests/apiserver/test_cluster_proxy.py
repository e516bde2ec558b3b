"""The program kube-proxy on a lab's node, against a real API server.

Objects made with kubectl, packets that follow.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Outcome, Refused
from nftproxy.lab.lab import Lab
from tests.support.cluster import Cluster, Document, needs_cluster
from tests.support.paths import ROOT
from tests.support.running import eventually
from tests.support.world import unique_name

pytestmark = [needs_cluster, pytest.mark.timeout(300)]
DEPLOY = ROOT / "deploy"
V4, V6 = Family.IPv4, Family.IPv6


class Node:
    """A lab whose first node runs a control plane and kube-proxy as a kubeadm cluster would start
    it.
    """

    def __init__(self, lab: Lab, cluster: Cluster, folder: Path) -> None:
        self.lab = lab
        self.cluster = cluster
        self.log = folder / "log"
        self._config = folder / "config.conf"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configuration = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.cluster.kubeconfig("system:kube-proxy"))},
            "clusterCIDR": "10.244.0.0/16,fd00:244::/32",
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
        self._config.write_text(yaml.dump(configuration))
        program = str(Path(sys.executable).with_name("kube-proxy"))
        with self.log.open("ab") as log:
            argv = [program, f"--config={self._config}", "--hostname-override=node1"]
            self._process = self.lab.popen("node1", argv, stdout=log, stderr=log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process
        self._process.send_signal(number)
        code = self._process.wait(20)
        self._process = None
        return code

    def connect(
        self, address: str, port: int = 80, protocol: str = "TCP", where: str = "pod1-1"
    ) -> Outcome:
        return self.lab.connect(where, address, port, protocol, timeout=0.3)

    def reached(
        self, address: str, port: int = 80, protocol: str = "TCP", where: str = "pod1-1"
    ) -> set[str]:
        """The pods that answer in a dozen tries."""
        outcomes = [self.connect(address, port, protocol, where) for _ in range(12)]
        return {outcome.name for outcome in outcomes if isinstance(outcome, Answer)}

    def until(self, condition: Callable[[], bool]) -> None:
        eventually(condition)

    def slice_of(self, service: str, *pods: str, family: Family = V4) -> Document:
        known = {pod.name: pod for pod in self.lab.pods}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service}-{family.lower()}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": str(family),
            "ports": [
                {"name": "http", "port": 8080, "protocol": "TCP"},
                {"name": "dns", "port": 9376, "protocol": "UDP"},
            ],
            "endpoints": [
                {
                    "addresses": [known[pod].addresses[family]],
                    "nodeName": known[pod].node,
                    "conditions": {"ready": True},
                }
                for pod in pods
            ],
        }


def service(name: str, ip: str, **spec: Any) -> Document:
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports, **spec},
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Lab(unique_name(), nodes=2, pods=2) as lab, Cluster(lab.nodes[0].namespace) as cluster:
        found = Node(lab, cluster, tmp_path_factory.mktemp("node"))
        cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}})
        addresses = [
            {"type": "InternalIP", "address": address}
            for address in lab.nodes[0].addresses.values()
        ]
        cluster.kubectl(
            "patch",
            "node",
            "node1",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": {"addresses": addresses}}),
        )
        found.start()
        try:
            yield found
        finally:
            found.stop()


@pytest.fixture(autouse=True)
def clean(node: Node) -> Iterator[None]:
    yield
    node.cluster.kubectl(
        "delete", "services,endpointslices", "--all", "--ignore-not-found", "-n", "default"
    )


@pytest.mark.contract("10.2.1", "10.3.2", "10.3.5", "1.1.1", "1.1.2")
def test_packets_follow_what_kubectl_does(node: Node) -> None:
    node.cluster.apply(service("web", "10.96.10.1"), node.slice_of("web", "pod1-1", "pod2-1"))
    node.until(lambda: node.reached("10.96.10.1") == {"pod1-1", "pod2-1"})
    assert node.reached("10.96.10.1", 53, "UDP") == {"pod1-1", "pod2-1"}
    node.cluster.apply(node.slice_of("web", "pod2-2"))
    node.until(lambda: node.reached("10.96.10.1") == {"pod2-2"})
    node.cluster.kubectl("delete", "endpointslice", "web-ipv4")
    node.until(lambda: node.connect("10.96.10.1") == Refused())
    node.cluster.apply(service("np", "10.96.10.2", type="NodePort"), node.slice_of("np", "pod1-2"))
    port = json.loads(node.cluster.kubectl("get", "service", "np", "-o", "json"))["spec"]["ports"][
        0
    ]["nodePort"]
    address = node.lab.nodes[0].addresses[V4]
    node.until(lambda: node.reached(address, port, where="client") == {"pod1-2"})
    node.cluster.kubectl("delete", "service", "np")
    node.until(lambda: node.connect(address, port, where="client") == Refused())


def test_dual_stack(node: Node) -> None:
    spec = {
        "clusterIPs": ["10.96.10.3", "fd00:10:96::a3"],
        "ipFamilyPolicy": "RequireDualStack",
        "ipFamilies": ["IPv4", "IPv6"],
    }
    node.cluster.apply(
        service("dual", "10.96.10.3", **spec),
        node.slice_of("dual", "pod1-2"),
        node.slice_of("dual", "pod2-2", family=V6),
    )
    node.until(lambda: node.reached("10.96.10.3") == {"pod1-2"})
    node.until(lambda: node.reached("fd00:10:96::a3") == {"pod2-2"})


@pytest.mark.contract("1.1.5", "1.1.7")
def test_a_label_takes_a_service_away_and_brings_it_back(node: Node) -> None:
    node.cluster.apply(service("labelled", "10.96.10.4"), node.slice_of("labelled", "pod1-2"))
    node.until(lambda: node.reached("10.96.10.4") == {"pod1-2"})
    node.cluster.kubectl(
        "label", "service", "labelled", "service.kubernetes.io/service-proxy-name=other"
    )
    node.until(lambda: node.reached("10.96.10.4") == set())
    node.cluster.kubectl(
        "label", "service", "labelled", "service.kubernetes.io/service-proxy-name-"
    )
    node.until(lambda: node.reached("10.96.10.4") == {"pod1-2"})


@pytest.mark.contract("1.1.6")
def test_headless_on_a_slice_counts_on_a_service_it_does_not(node: Node) -> None:
    node.cluster.apply(service("head", "10.96.10.5"), node.slice_of("head", "pod1-2"))
    node.cluster.kubectl("label", "service", "head", "service.kubernetes.io/headless=")
    node.until(lambda: node.reached("10.96.10.5") == {"pod1-2"})
    node.cluster.kubectl("label", "endpointslice", "head-ipv4", "service.kubernetes.io/headless=")
    node.until(lambda: node.connect("10.96.10.5") == Refused())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["in-good-order", "killed"])
def test_traffic_goes_on_without_the_api_server(node: Node, how: signal.Signals) -> None:
    node.cluster.apply(service("stays", "10.96.10.6"), node.slice_of("stays", "pod1-2", "pod2-1"))
    node.until(lambda: node.reached("10.96.10.6") == {"pod1-2", "pod2-1"})
    node.cluster.stop_apiserver(how)
    assert node.reached("10.96.10.6") == {"pod1-2", "pod2-1"}
    node.cluster.start_apiserver()
    node.cluster.apply(node.slice_of("stays", "pod2-2"))
    node.until(lambda: node.reached("10.96.10.6") == {"pod2-2"})


@pytest.mark.contract("10.2.1")
def test_without_permission_traffic_goes_on(node: Node) -> None:
    node.cluster.apply(service("denied", "10.96.10.7"), node.slice_of("denied", "pod1-2"))
    node.until(lambda: node.reached("10.96.10.7") == {"pod1-2"})
    binding = json.loads(
        node.cluster.kubectl("get", "clusterrolebinding", "system:node-proxier", "-o", "json")
    )
    node.cluster.kubectl("delete", "clusterrolebinding", "system:node-proxier")
    node.stop(signal.SIGKILL)
    node.start()
    node.until(lambda: "403" in node.log.read_text() or "orbidden" in node.log.read_text())
    assert node.reached("10.96.10.7") == {"pod1-2"}
    binding["metadata"] = {"name": binding["metadata"]["name"]}
    node.cluster.kubectl("create", "-f", "-", documents=binding)
    node.cluster.apply(node.slice_of("denied", "pod2-2"))
    node.until(lambda: node.reached("10.96.10.7") == {"pod2-2"})


@pytest.mark.contract("10.1.1")
def test_the_starting_event_is_written(node: Node) -> None:
    def reasons() -> set[str]:
        events = json.loads(
            node.cluster.kubectl("get", "events.events.k8s.io", "-n", "default", "-o", "json")
        )["items"]
        return {
            event["reason"] for event in events if event.get("reportingController") == "kube-proxy"
        }

    node.until(lambda: "Starting" in reasons())


@pytest.mark.contract("10.3.1", "10.2.1")
def test_the_api_server_accepts_the_manifests_of_deploy(node: Node) -> None:
    manifests = node.cluster.kubectl("kustomize", str(DEPLOY))
    documents = list(yaml.safe_load_all(manifests))
    assert {document["kind"] for document in documents} == {
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "DaemonSet",
    }
    node.cluster.apply(*documents)
    for verb, resource in (
        ("list", "services"),
        ("watch", "endpointslices"),
        ("get", "nodes"),
        ("list", "servicecidrs"),
        ("patch", "events"),
    ):
        said = node.cluster.kubectl(
            "auth", "can-i", verb, resource, "--as=system:serviceaccount:kube-system:nftproxy"
        )
        assert said.strip() == "yes", f"{verb} {resource}"
    node.cluster.kubectl("delete", "-f", "-", documents=documents)


def test_restart_with_nothing_changed_writes_nothing(node: Node) -> None:
    node.cluster.apply(
        service("same", "10.96.10.8", sessionAffinity="ClientIP"),
        node.slice_of("same", "pod1-2", "pod2-1"),
    )
    node.until(lambda: node.reached("10.96.10.8") != set())
    kept = node.reached("10.96.10.8")
    assert len(kept) == 1
    assert node.stop() == 0
    before = len(node.log.read_text())
    node.start()
    node.until(
        lambda: (
            "IPv6: in step" in node.log.read_text()[before:]
            and "IPv4: in step" in node.log.read_text()[before:]
        )
    )
    assert node.log.read_text()[before:].count(" 0 elements written in 0 transactions") == 2
    assert node.reached("10.96.10.8") == kept
