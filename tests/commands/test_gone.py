"""--reset-gone-endpoints as its users run it: a process, on manifests in files."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Connection, Refused, Unreachable
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS
from tests.support.frontends import WIRES, Wire
from tests.support.process import Run, nftproxy, reading, write
from tests.support.world import unique_name

CLUSTER_IP = {Family.IPv4: "10.96.0.10", Family.IPv6: "fd00:10:96::10"}
PORTS = [
    {"name": protocol.lower(), "protocol": protocol, "port": 80, "nodePort": 30080}
    for protocol in ("TCP", "UDP")
]
RESET = {"TCP": Unreachable("ECONNRESET"), "UDP": Refused()}
SCRAPE = (
    "from urllib.request import urlopen; "
    "print(urlopen('http://127.0.0.1:10249/metrics').read().decode())"
)
HURRIED = (
    sys.executable,
    "-c",
    (
        "from nftproxy import __main__; from nftproxy.sync import resets; "
        "resets.TIMEOUT = 1.0; __main__.main()"
    ),
)
"""nftproxy that believes that the kernel forgets after a second."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(unique_name(), nodes=2, pods=3) as lab:
        yield lab


def objects(lab: Lab, *pods: str) -> list[dict[str, Any]]:
    """A node, and a Service with these pods."""
    own = [CLUSTER_IP[family] for family in Family]
    node = lab.nodes[0]
    addresses = [{"type": "InternalIP", "address": node.addresses[f]} for f in Family]
    found: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "node1"},
            "status": {"addresses": addresses},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "NodePort",
                "clusterIP": own[0],
                "clusterIPs": own,
                "ipFamilies": [str(family) for family in Family],
                "ports": PORTS,
            },
        },
    ]
    known = {pod.name: pod for pod in lab.pods}
    for family in Family:
        found += [
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"web-{family.lower()}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": str(family),
                "endpoints": [
                    {"addresses": [known[pod].addresses[family]], "nodeName": known[pod].node}
                    for pod in pods
                ],
                "ports": [
                    {"name": each["name"], "protocol": each["protocol"], "port": 8080}
                    for each in PORTS
                ],
            }
        ]
    return found


class Node:
    """The first node of the lab, and the folder of manifests that its proxy follows."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.where = lab.nodes[0].namespace
        self.folder = folder / "manifests"
        self.folder.mkdir()
        self.held = ExitStack()  # connections: also a test that fails leaves none open

    def say(self, *pods: str) -> None:
        write(self.folder / "all.yaml", *objects(self.lab, *pods))

    def run(self, *arguments: str, **options: Any) -> Run:
        pods = ",".join(CLUSTER_CIDRS.values())
        return Run(self.where, self.folder, "--cluster-cidr", pods, *arguments, **options)

    def mentions(self) -> set[str]:
        """The sets and chains that have to do with it."""
        with reading(self.where) as reader:
            return {name for name in reader.sets() | reader.chains().keys() if "gone" in name}

    def hold(self, place: str, wire: Wire) -> Connection:
        """An open connection: of outsiders to the NodePort, of others to the ClusterIP."""
        outside = place == "client"
        address = self.lab.nodes[0].addresses if outside else CLUSTER_IP
        found = self.lab.open_connection(
            place, address[wire.family], 30080 if outside else 80, wire.protocol, timeout=5.0
        )
        assert isinstance(found, Connection), (place, wire, found)
        return self.held.enter_context(found)

    def until_gone(self, run: Run) -> None:
        """Wait until an endpoint is gone in each family, TCP and UDP."""
        with reading(self.where) as reader:
            run.until(lambda: all(reader.count(f"gone{family.digit}") == 2 for family in Family))

    def hooks(self) -> set[str]:
        with reading(self.where) as reader:
            return {name for name, is_base in reader.chains().items() if is_base}


@pytest.fixture
def node(lab: Lab, tmp_path: Path) -> Iterator[Node]:
    node = Node(lab, tmp_path)
    node.say("pod1-1", "pod2-1")
    with node.held:
        yield node


@pytest.fixture(autouse=True)
def _no_table(lab: Lab) -> Iterator[None]:
    yield
    nftproxy("cleanup", where=lab.nodes[0].namespace)


def test_clients_are_told_when_the_last_endpoint_is_gone(node: Node) -> None:
    """In a pod, on the node, and outside; of UDP the flow is forgotten, and the next refused."""
    node.say("pod2-1")
    with node.run("--reset-gone-endpoints") as run:
        run.until_started()
        held = [
            (wire, node.hold(place, wire))
            for wire in WIRES
            for place in ("pod1-3", "node1", "client")
        ]
        node.say()
        node.until_gone(run)
        for wire, connection in held:
            assert connection.again(5.0) == RESET[wire.protocol]


def test_a_udp_flow_goes_on_with_another_endpoint(node: Node) -> None:
    with node.run("--reset-gone-endpoints") as run:
        run.until_started()
        held = [node.hold("pod1-3", Wire(family, "UDP")) for family in Family for _ in range(16)]
        assert {connection.answer.name for connection in held} == {"pod1-1", "pod2-1"}
        node.say("pod2-1")
        node.until_gone(run)
        for connection in held:
            outcome = connection.again(5.0)
            assert isinstance(outcome, Answer)
            assert outcome.name == "pod2-1"


def test_metrics_show_and_the_log_know_of_it(node: Node) -> None:
    wire = Wire(Family.IPv4, "TCP")
    gone = f"{node.lab.place('pod1-1').addresses[Family.IPv4]}:8080"
    with node.run("--reset-gone-endpoints") as run:
        run.until_started()
        assert "gone" not in nftproxy("show", where=node.where).stdout
        held = [node.hold("pod1-3", wire) for _ in range(16)]
        node.say("pod2-1")
        node.until_gone(run)
        run.until(lambda: any(gone in line for line in run.logged("connections to them are reset")))
        reset = [c for c in held if c.again(5.0) == RESET["TCP"]]
        assert reset
        assert {c.answer.name for c in reset} == {"pod1-1"}
        shown = nftproxy("show", where=node.where).stdout
        assert f"Connections to endpoints that are gone are reset: {gone}/tcp, " in shown
        as_json = yaml.safe_load(nftproxy("show", "--output", "json", where=node.where).stdout)
        assert f"{gone}/tcp" in as_json["goneEndpoints"]
        text = metrics(node)
        counter = 'nftproxy_gone_endpoint_packets_total{ip_family="IPv4",protocol="tcp"}'
        assert f"{counter} {len(reset)}.0" in text
        assert 'nftproxy_map_elements{map="gone4"} 2.0' in text


def metrics(node: Node) -> str:
    with node.lab.enter("node1"):
        return subprocess.run(
            [sys.executable, "-c", SCRAPE], check=True, capture_output=True, text=True
        ).stdout


def test_in_quiet_times_the_table_is_that_of_a_proxy_that_knows_nothing_gone(node: Node) -> None:
    """Base chains come with the first endpoint that is gone, and go with the last."""
    with node.run("--reset-gone-endpoints", program=HURRIED) as run:
        run.until_started()
        quiet = node.hooks()
        assert not {name for name in quiet if name.startswith("gone")}
        node.say("pod2-1")
        node.until_gone(run)
        assert node.hooks() - quiet == {"gone-prerouting", "gone-output"}
        with node.lab.enter("node1"):
            for family in Family:
                subprocess.run(
                    ["nft", "flush", "set", "inet", "nftproxy", f"gone{family.digit}"], check=True
                )
        run.until(lambda: node.hooks() == quiet)


def test_a_file_can_ask_for_it_and_a_restart_without_it_removes_all(
    node: Node, tmp_path: Path
) -> None:
    wire = Wire(Family.IPv4, "TCP")
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "nftables: {resetGoneEndpoints: true}\n"
    )
    node.say("pod1-1")
    with node.run("--config", str(config)) as run:
        run.until_started()
        connection = node.hold("pod1-3", wire)
        node.say()
        run.until(lambda: "gone-prerouting" in node.hooks())
        run.end(15)
        assert connection.again(5.0) == RESET["TCP"], "traffic goes on without a process"
    with node.run("--config", str(config)) as run:
        run.until_started()
        assert "gone-prerouting" in node.hooks()
        run.end(15)
    with node.run() as run:
        run.until_started()
        run.until(lambda: not node.mentions())
