"""--log-refusals: a line for each refused connection, and nothing of it in the rules without the
option.
"""

import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nftproxy.address import Family
from nftproxy.kernel.nflog import Nflog
from nftproxy.lab.client import Answer, Refused, Silent
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS
from nftproxy.routes import Verdict
from nftproxy.table import schema
from nftproxy.table.schema import LOG_BURST, LOG_GROUP, LOG_LINES, Reason
from tests.support.frontends import SILENCE, WIRES, Wire, becomes, each_wire
from tests.support.process import Run, nftproxy, reading, write
from tests.support.world import SLOW, unique_name

HURRIED = (
    sys.executable,
    "-c",
    (
        "from nftproxy import __main__; from nftproxy.monitoring import refusallog as log; "
        "log.PERIOD = 0.3; __main__.main()"
    ),
)
"""nftproxy that does not wait long before it says what it did not log."""
ONLY_NET_ADMIN = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin")


def address(kind: str, number: int, family: Family) -> str:
    """A ClusterIP, or a load balancer's address."""
    start = {
        "cluster": {Family.IPv4: "10.96.0.", Family.IPv6: "fd00:10:96::"},
        "vip": {Family.IPv4: "203.0.113.", Family.IPv6: "fd00:beef::"},
    }
    return f"{start[kind][family]}{number}"


def service(name: str, number: int, **spec: Any) -> dict[str, Any]:
    own = [address("cluster", number, family) for family in Family]
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": 80, "nodePort": 30000 + number}
        for protocol in ("TCP", "UDP")
    ]
    vips = [{"ip": address("vip", number, family)} for family in Family]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": own[0],
            "clusterIPs": own,
            "ipFamilies": [str(family) for family in Family],
            "ports": ports,
            **spec,
        },
        "status": {"loadBalancer": {"ingress": vips}},
    }


def slices(lab: Lab, name: str, *pods: str) -> Iterator[dict[str, Any]]:
    known = {pod.name: pod for pod in lab.pods}
    for family in Family:
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family.lower()}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": str(family),
            "endpoints": [
                {"addresses": [known[pod].addresses[family]], "nodeName": known[pod].node}
                for pod in pods
            ],
            "ports": [
                {"name": protocol.lower(), "protocol": protocol, "port": 8080}
                for protocol in ("TCP", "UDP")
            ],
        }


def objects(lab: Lab) -> Iterator[dict[str, Any]]:
    local = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    nobody = {"loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/64"]}
    node = lab.nodes[0]
    yield {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": node.addresses[family]} for family in Family
            ]
        },
    }
    yield {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [SERVICE_CIDRS[family] for family in Family]},
    }
    yield service("empty", 20)
    yield service("elsewhere", 21, **local)
    yield from slices(lab, "elsewhere", "pod2-1")
    yield service("guarded", 22, **nobody)
    yield from slices(lab, "guarded", "pod1-1")
    yield service("web", 23)
    yield from slices(lab, "web", "pod1-1")


class Node:
    """A lab whose first node has `nftproxy run` as its proxy."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.netns = lab.nodes[0].namespace

    def run(self, *flags: str, program: tuple[str, ...] = HURRIED) -> Run:
        cidrs = ",".join(CLUSTER_CIDRS[family] for family in Family)
        all_flags = ("--cluster-cidr", cidrs, "--log-format", "json", *flags)
        return Run(self.netns, self.folder, *all_flags, program=program)

    def connect(self, where: str, wire: Wire, there: str, port: int = 80, **options: Any) -> object:
        options.setdefault("timeout", 1.0 * SLOW)
        return self.lab.connect(where, there, port, wire.protocol, **options)

    def text(self) -> str:
        """The rules of the table."""
        argv = ["ip", "netns", "exec", self.netns, "nft", "-s", "list", "table", "inet", "nftproxy"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def refusals(run: Run, **wanted: str) -> list[Mapping[str, str]]:
    """The refusals in the log that have these fields."""
    found = []
    for line in run.logged('"extra"'):
        extra = json.loads(line)["record"]["extra"]
        if "reason" in extra and wanted.items() <= extra.items():
            found.append(extra)
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("refusals") / "manifests"
    folder.mkdir()
    with Lab(unique_name()) as lab:
        for cidr in (*SERVICE_CIDRS.values(), "203.0.113.0/24", "fd00:beef::/64"):
            lab.route(lab.clients[0], cidr, lab.nodes[0].name)
        write(folder / "objects.yaml", *objects(lab))
        yield Node(lab, folder)


@pytest.fixture(scope="module")
def logging(node: Node) -> Iterator[Run]:
    """A proxy with no capability but NET_ADMIN."""
    with node.run("--log-refusals", program=(*ONLY_NET_ADMIN, *HURRIED)) as run:
        run.until_started()
        yield run


class Case(NamedTuple):
    """A connection that is refused: whom it asks, and what the log says of it."""

    reason: Reason
    service: str
    kind: str
    number: int
    port: int = 80
    sources: tuple[str, ...] = ("client",)

    def there(self, node: Node, family: Family) -> str:
        return (
            node.lab.nodes[0].addresses[family]
            if self.kind == "node"
            else address(self.kind, self.number, family)
        )


ALL = ("pod1-1", "node1", "client")
CASES = {
    "no endpoints": Case(Reason.NO_ENDPOINTS, "empty", "cluster", 20, sources=ALL),
    "no endpoints of a load balancer": Case(Reason.NO_ENDPOINTS, "empty", "vip", 20),
    "no endpoints of a NodePort": Case(Reason.NO_ENDPOINTS, "empty", "node", 20, port=30020),
    "no local endpoint": Case(Reason.POLICY_LOCAL, "elsewhere", "cluster", 21, sources=ALL),
    "no local endpoint of a load balancer": Case(Reason.POLICY_LOCAL, "elsewhere", "vip", 21),
    "no local endpoint of a NodePort": Case(
        Reason.POLICY_LOCAL, "elsewhere", "node", 21, port=30021
    ),
    "source ranges": Case(Reason.SOURCE_RANGE, "guarded", "vip", 22, sources=ALL),
    "undefined port": Case(Reason.UNKNOWN_PORT, "web", "cluster", 23, port=81, sources=ALL),
    "no such Service": Case(Reason.UNALLOCATED, "", "cluster", 99, sources=ALL),
}
REJECTED = {Reason.NO_ENDPOINTS, Reason.UNKNOWN_PORT}


@each_wire
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_refused_connection_gets_a_line(
    node: Node, logging: Run, case: Case, wire: Wire
) -> None:
    there = case.there(node, wire.family)
    rejected = case.reason in REJECTED
    protocol = wire.protocol.lower()
    asked = f"[{there}]" if wire.family is Family.IPv6 else there
    wanted = {"asked": f"{asked}:{case.port}/{protocol}", "reason": str(case.reason)}
    name = f"default/{case.service}" if case.service else ""
    if case.service and case.reason is not Reason.UNKNOWN_PORT:
        name += f":{protocol}"
    for where in case.sources:
        before = len(refusals(logging, **wanted))
        outcome = node.connect(
            where, wire, there, case.port, timeout=1.0 * SLOW if rejected else SILENCE
        )
        assert outcome == (Refused() if rejected else Silent())
        assert becomes(lambda: len(refusals(logging, **wanted)), before + 1) == before + 1
        line = refusals(logging, **wanted)[-1]
        client, _, port = line["client"].rpartition(":")
        assert line["service"] == name
        assert client.strip("[]") == source(node, where, wire.family, there)
        assert 0 < int(port) < 65536


def source(node: Node, where: str, family: Family, there: str) -> str:
    """The address that a place takes as its own towards another."""
    kind = socket.AF_INET6 if family is Family.IPv6 else socket.AF_INET
    with node.lab.enter(where), socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.connect((there, 9))
        return str(sock.getsockname()[0])


@each_wire
def test_who_is_answered_gets_none(node: Node, logging: Run, wire: Wire) -> None:
    there = address("cluster", 23, wire.family)
    for where in ALL:
        assert isinstance(node.connect(where, wire, there, timeout=5.0), Answer)
    assert not [line for line in refusals(logging) if line["asked"].startswith(f"{there}:80")]
    assert not [line for line in refusals(logging) if line["asked"].startswith(f"[{there}]:80")]


def test_the_line_is_for_people_too(node: Node, logging: Run) -> None:
    there = address("cluster", 20, Family.IPv4)
    assert node.connect("pod1-1", WIRES[0], there) == Refused()
    wanted = f"which asked for {there}:80/tcp: no usable endpoint (no-endpoints)"
    assert becomes(lambda: bool(logging.logged(wanted)), expected=True)
    assert "default/empty:tcp: refused " in logging.logged(wanted)[-1]


def test_a_flood_is_counted_not_logged(node: Node, logging: Run) -> None:
    """Each of many refusals is either logged or counted."""
    many = 400
    there = address("cluster", 98, Family.IPv4)
    wanted = {"asked": f"{there}:80/udp", "reason": str(Reason.UNALLOCATED)}
    with reading(node.netns) as reader:
        _, before = reader.rule_counters("refuse-unknown4")
        start = counted(logging)
        for _ in range(many):
            node.connect("client", Wire(Family.IPv4, "UDP"), there, timeout=0.0001)
        assert becomes(lambda: reader.rule_counters("refuse-unknown4")[1] - before, many) == many, (
            "each is refused, logged or not"
        )
    assert (
        becomes(lambda: len(refusals(logging, **wanted)) + counted(logging) - start, many, 10)
        == many
    )
    assert LOG_BURST <= len(refusals(logging, **wanted)) < many / 2


def counted(run: Run) -> int:
    """How many refusals the log says were too many."""
    total = 0
    for line in run.logged("more were not logged"):
        text = json.loads(line)["record"]["message"]
        assert f"at most {LOG_LINES} a second" in text
        total += int(text.split()[1])
    return total


def test_explain_and_doctor_know_the_rules(node: Node, logging: Run) -> None:
    """The rules that log change no answer."""
    assert logging.process.poll() is None
    there = address("cluster", 20, Family.IPv4)
    done = nftproxy("explain", f"{there}:80", "--manifests", node.folder, where=node.netns)
    assert done.returncode == 1
    assert "default/empty" in done.stdout
    assert "no endpoint to use: rejected" in done.stdout
    there = address("cluster", 21, Family.IPv4)
    done = nftproxy("explain", f"{there}:80", "--manifests", node.folder, where=node.netns)
    assert "internalTrafficPolicy of default/elsewhere:tcp is Local" in done.stdout, done
    shown = nftproxy("show", "default/elsewhere", where=node.netns).stdout
    assert "no endpoint on this node (policy Local): " in shown
    cidrs = ",".join(CLUSTER_CIDRS[family] for family in Family)
    flags = ("--manifests", node.folder, "--node-name", "node1", "--cluster-cidr", cidrs)
    done = nftproxy("diff", *flags, where=node.netns)
    assert (done.returncode, done.stdout) == (0, "")
    done = nftproxy("doctor", "--manifests", node.folder, "--output", "json", where=node.netns)
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert checks["program"]["state"] == "ok", checks["program"]


def test_without_the_option_the_table_has_no_trace_of_it(node: Node, logging: Run) -> None:
    """And after a start without it, nothing is left; refusals stay the same."""
    assert f'log prefix "{Reason.NO_ENDPOINTS}" group {LOG_GROUP}' in node.text()
    logging.end(signal.SIGTERM)
    there = address("cluster", 21, Family.IPv4)
    frontend = (there, "tcp", 80)
    with reading(node.netns) as reader:
        assert reader.elements("no_endpoints4")[frontend] == Verdict(
            "goto", schema.DROP_NEW, "default/elsewhere:tcp"
        )
    with node.run() as run:
        run.until_started()
        run.until(lambda: "log" not in words(node.text()))
        with reading(node.netns) as reader:
            assert reader.elements("no_endpoints4")[frontend] == Verdict(
                "drop", "", "default/elsewhere:tcp"
            )
            assert not {name for name in reader.chains() if name.startswith("log-")}
        for case in CASES.values():
            outcome = node.connect(
                "client", WIRES[0], case.there(node, Family.IPv4), case.port, timeout=SILENCE
            )
            assert outcome == (Refused() if case.reason in REJECTED else Silent())
        assert not refusals(run)


def words(rules: str) -> Counter[str]:
    return Counter(rules.split())


def test_another_program_has_the_group(node: Node) -> None:
    """The log says so, and everything else works, without a rule that logs."""
    with node.lab.enter("node1"), closing(Nflog(LOG_GROUP, 64)), node.run("--log-refusals") as run:
        run.until_started()
        (line,) = run.logged("refusals are not logged")
        assert f"reads group {LOG_GROUP} of NFLOG already" in line
        assert "process" in line
        there = address("cluster", 23, Family.IPv4)
        assert isinstance(node.connect("client", WIRES[0], there, timeout=5.0), Answer)
        run.until(lambda: "log" not in words(node.text()))
