"""`explain` against real packets: each cause is made, seen to stop a connection, named, and cured by the command proposed."""

import contextlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Refused, Silent
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Node, Object, ObjectName, Service, ServiceCIDR
from nftproxy.path.cluster import Cluster
from nftproxy.path.explain import explain
from nftproxy.path.model import Cause, Outcome, Path, Reach
from nftproxy.path.node import ThisNode
from nftproxy.path.request import parse_target
from nftproxy.path.view import Fill
from tests.support.frontends import foreign_rules, route_outside
from tests.support.objects import endpoint, endpoint_slice, node, service
from tests.support.world import World

VIP = "203.0.113.40"
FAMILIES = pytest.mark.parametrize("family", Family)
CLUSTER_IP = {Family.IPv4: "10.96.0.40", Family.IPv6: "fd00:10:96::40"}


class Town:
    """A World, the objects in it as a cluster, and explanations on its node1."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[tuple[type[Object], ObjectName], Object] = {}

    def apply(self, *objects: Object) -> None:
        """Deliver objects."""
        self.objects |= {(type(each), each.metadata.key): each for each in objects}
        self.world.apply(*(each for each in objects if not isinstance(each, Node)))

    def clear(self) -> None:
        """Delete all objects."""
        self.world.delete(*(each for each in self.objects.values() if not isinstance(each, Node)))
        self.objects.clear()

    def of(self, kind: type[Any]) -> list[Any]:
        """All objects of a kind."""
        return [each for each in self.objects.values() if isinstance(each, kind)]

    @property
    def cluster(self) -> Cluster:
        """The objects."""
        slices: dict[ObjectName, tuple[EndpointSlice, ...]] = {}
        for piece in self.of(EndpointSlice):
            name = ObjectName("default", piece.metadata.labels.service_name)
            slices[name] = (*slices.get(name, ()), piece)
        return Cluster(
            {each.metadata.key: each for each in self.of(Service)},
            slices,
            {each.metadata.name: each for each in self.of(Node)},
            tuple(self.of(ServiceCIDR)),
        )

    def explain(
        self, target: str, source: str = "", protocol: str = "", *, objects: bool = True
    ) -> Path:
        """Explain on node1."""
        with enter(self.world.lab.place("node1").namespace), ThisNode("node1") as here:
            cluster = self.cluster if objects else None
            return explain(parse_target(target), source, protocol, here, cluster)

    def cause(
        self, target: str, source: str = "", protocol: str = "", *, objects: bool = True
    ) -> Cause:
        """Return the first cause of a connection that does not get through."""
        path = self.explain(target, source, protocol, objects=objects)
        assert path.reach is not Reach.YES, path
        return path.causes[0]

    def cure(self, cause: Cause) -> None:
        """Run the commands of a cause on node1; a patch is applied to the object."""
        assert cause.commands, cause
        for command in cause.commands:
            words = shlex.split(command)
            if words[:3] == ["kubectl", "patch", "service"]:
                assert words[6:9] == ["--type", "merge", "-p"]
                self._patch(ObjectName(words[4], words[5]), words[9])
            else:
                self.world.lab.run("node1", words)

    def _patch(self, name: ObjectName, change: str) -> None:
        document = msgspec.to_builtins(self.objects[Service, name])
        document["spec"] |= json.loads(change)["spec"]
        self.apply(msgspec.convert(document, Service))

    def asks(self, where: str, address: str, port: int = 80, protocol: str = "TCP") -> object:
        """Connect, and return what became of it."""
        return self.world.connect(where, address, port, protocol)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with World(lab={"echo": "thread"}) as world:
        route_outside(world)
        yield world


@pytest.fixture
def town(shared: World) -> Iterator[Town]:
    town = Town(shared)
    yield town
    town.clear()


def web(family: Family = Family.IPv4, **spec: Any) -> Service:
    return service("web", CLUSTER_IP[family], **spec)


def slice_of(town: Town, *pods: str, family: Family = Family.IPv4, **options: Any) -> EndpointSlice:
    return town.world.endpoints(*pods, family=family, **options)


@FAMILIES
def test_nothing_is_wrong(town: Town, family: Family) -> None:
    town.apply(web(family), slice_of(town, "pod1-1", "pod2-1", family=family))
    assert isinstance(town.asks("pod1-2", CLUSTER_IP[family]), Answer)
    path = town.explain("default/web:http", town.world.address("pod1-2", family))
    assert path.reach is Reach.YES
    assert path.causes[0].code == "ok"
    assert "the way beyond" in "; ".join(path.not_checked)
    assert [(each.address, each.share) for each in path.candidates] == [
        (town.world.address("pod1-1", family), 0.5),
        (town.world.address("pod2-1", family), 0.5),
    ]
    assert path.client.what == "pod"
    assert path.target.kind == "ClusterIP"


def test_a_name_that_nobody_has(town: Town) -> None:
    town.apply(web())
    for target, near in (
        ("default/wep", "default/web"),
        ("kube-system/web", "default/web"),
    ):
        for objects in (True, False):
            cause = town.cause(target, objects=objects)
            assert cause.code == "no-such-service"
            assert f"Did you mean {near}" in cause.text
            assert cause.commands[0] == f"nftproxy explain {near}"


def test_who_serves_it_instead(town: Town) -> None:
    headless = service("headless", "None")
    external = service("external", "10.96.0.41", type="ExternalName")
    other = msgspec.convert(
        msgspec.to_builtins(service("other", "10.96.0.42"))
        | {
            "metadata": {
                "name": "other",
                "namespace": "default",
                "labels": {"service.kubernetes.io/service-proxy-name": "mesh"},
            }
        },
        Service,
    )
    town.apply(headless, external, other)
    assert town.cause("default/headless").code == "headless"
    assert town.cause("default/external").code == "external-name"
    cause = town.cause("default/other")
    assert cause.code == "other-proxy"
    assert "mesh" in cause.text


def test_a_wrong_port(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod1-1"))
    assert isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4], 81), Refused)
    cause = town.cause(f"{CLUSTER_IP[Family.IPv4]}:81")
    assert cause.code == "wrong-port"
    assert "it has 80/tcp" in cause.text
    cause = town.cause("default/web:metrics")
    assert (cause.code, cause.commands) == ("wrong-port", ("nftproxy explain default/web:http",))


def test_an_address_without_a_service(town: Town) -> None:
    cidr = msgspec.convert(
        {"metadata": {"name": "all"}, "spec": {"cidrs": ["10.96.0.0/16"]}}, ServiceCIDR
    )
    town.apply(cidr)
    assert isinstance(town.asks("pod1-2", "10.96.9.9"), Silent)
    assert town.cause("10.96.9.9:80").code == "unallocated"


def test_an_address_of_nobody(town: Town) -> None:
    path = town.explain(f"{town.world.address('pod1-1')}:8080", town.world.address("pod1-2"))
    assert (path.reach, path.causes[0].code) == (Reach.YES, "no-service")


def test_ping(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod1-1"))
    cause = town.cause(CLUSTER_IP[Family.IPv4])
    assert cause.code == "ping"
    assert cause.commands == (f"nftproxy explain {CLUSTER_IP[Family.IPv4]}:80",)


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([], "no-slices"),
        ([endpoint_slice()], "empty-slices"),
        ([endpoint_slice(endpoints=[endpoint("10.244.1.2", ready=False)])], "not-ready"),
        (
            [
                endpoint_slice(
                    endpoints=[endpoint("10.244.1.2", ready=False, serving=False, terminating=True)]
                )
            ],
            "not-ready",
        ),
        ([endpoint_slice(endpoints=[endpoint("10.244.1.2")], port_name="other")], "other-ports"),
        ([endpoint_slice(endpoints=[endpoint("fd00:244:1::2")], family=Family.IPv6)], "no-slices"),
    ],
)
def test_no_endpoints(town: Town, pieces: list[EndpointSlice], code: str) -> None:
    town.apply(web(), *pieces)
    assert isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Refused)
    cause = town.cause("default/web")
    assert cause.code == code
    assert cause.commands == (
        "kubectl get endpointslices -n default -l kubernetes.io/service-name=web",
    )
    assert town.cause("default/web", objects=False).code == "no-endpoints"


@pytest.mark.parametrize("kind", ["internal", "external"])
def test_policy_local(town: Town, kind: str) -> None:
    policy: Any = {f"{kind}TrafficPolicy": "Local"}
    town.apply(
        web(vips=[VIP], **policy),
        slice_of(town, "pod2-1"),
    )
    place, address = ("pod1-2", CLUSTER_IP[Family.IPv4]) if kind == "internal" else ("client", VIP)
    assert isinstance(town.asks(place, address), Silent)
    source = town.world.address("pod1-2") if kind == "internal" else "outside"
    cause = town.cause(f"{address}:80", source)
    assert cause.code == "policy-local"
    assert "Nodes that have one: node2." in cause.text
    town.cure(cause)
    assert isinstance(town.asks(place, address), Answer)


def test_hints_leave_endpoints_out(town: Town) -> None:
    pods = [town.world.address("pod1-1"), town.world.address("pod2-1")]
    town.apply(
        node("node1", ["192.168.50.11"], "a"),
        web(),
        endpoint_slice(endpoints=[endpoint(pods[0], zones=["a"]), endpoint(pods[1], zones=["b"])]),
    )
    for table in town.world.tables.values():
        table.store.put(node("node1", ["192.168.50.11"], "a"))
    town.world.sync()
    assert set(town.world.answers("pod1-2", CLUSTER_IP[Family.IPv4], 80)) == {"pod1-1"}
    path = town.explain("default/web")
    (out,) = [each for each in path.candidates if not each.used]
    assert (out.address, out.reason) == (
        pods[1],
        "zone b; this node is in zone a and hints keep traffic there",
    )


def test_a_source_that_is_not_allowed(town: Town) -> None:
    town.apply(
        web(vips=[VIP], loadBalancerSourceRanges=["198.18.0.0/15"]), slice_of(town, "pod1-1")
    )
    assert isinstance(town.asks("client", VIP), Silent)
    cause = town.cause(f"{VIP}:80", town.world.address("client"))
    assert cause.code == "source-range"
    assert "198.18.0.0/15" in cause.text
    town.cure(cause)
    assert isinstance(town.asks("client", VIP), Answer)
    assert town.explain(f"{VIP}:80", town.world.address("client")).reach is Reach.YES


def test_nodeports_where_they_are_not_accepted(town: Town) -> None:
    town.apply(web(node_port=30040), slice_of(town, "pod1-1"))
    cause = town.cause("127.0.0.1:30040")
    assert cause.code == "nodeport-loopback"
    gateway = "10.244.1.1"
    assert not isinstance(town.asks("pod1-2", gateway, 30040), Answer)
    cause = town.cause(f"{gateway}:30040", town.world.address("pod1-2"))
    assert cause.code == "nodeport-address"
    (command,) = cause.commands
    path = town.explain(command.rpartition(" ")[2], "outside")
    assert path.reach is Reach.YES
    assert path.target.kind == "NodePort"
    assert isinstance(town.asks("client", path.target.address, 30040), Answer)


@pytest.mark.parametrize(
    ("rules", "code", "text"),
    [
        (
            "chain forward { type filter hook forward priority 0; policy drop; }",
            "foreign-drop",
            "the policy of chain forward in table inet foreign",
        ),
        (
            "chain forward { type filter hook forward priority 10;\nip daddr 10.244.0.0/16 tcp dport 8080 reject with tcp reset\n}",
            "foreign-reject",
            "`ip daddr 10.244.0.0/16 tcp dport 8080 reject with tcp reset`",
        ),
        (
            """set bad { type ipv4_addr; elements = { 10.244.1.3 } }
            chain early { type filter hook prerouting priority -300; ip saddr @bad drop; }""",
            "foreign-drop",
            "`ip saddr @bad drop`",
        ),
        (
            """chain deep { counter drop; }
            chain forward { type filter hook forward priority 0; tcp dport vmap { 8080 : jump deep }; }""",
            "foreign-drop",
            "chain deep in table inet foreign",
        ),
    ],
    ids=["policy", "reject", "set", "map"],
)
def test_another_table_stops_it(town: Town, rules: str, code: str, text: str) -> None:
    town.apply(web(), slice_of(town, "pod1-1", "pod2-1"))
    with foreign_rules(town.world, "node1", rules):
        assert not isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
        path = town.explain("default/web", town.world.address("pod1-2"))
        assert path.reach is Reach.NO
        cause = path.causes[0]
        assert cause.code == code
        assert text in cause.text
        assert "not by nftproxy" in cause.text
        assert [step for step in path.steps if step.outcome is Outcome.STOPPED]
        town.cure(cause)
        for each in path.causes[1:]:
            if each.code.startswith("foreign"):
                town.cure(each)
        assert isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)


def test_another_table_translates_it_first(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod1-1"))
    rules = (
        "chain nat { type nat hook prerouting priority -101;\n"
        "ip daddr 10.96.0.40 tcp dport 80 dnat ip to 10.244.1.4:9999\n}"
    )
    with foreign_rules(town.world, "node1", rules):
        assert not isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
        path = town.explain("default/web", town.world.address("pod1-2"))
        cause = path.causes[0]
        assert cause.code == "foreign-translation"
        assert "10.244.1.4:9999" in cause.text
        town.cure(cause)
        assert isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)


def test_this_node_does_not_forward(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod2-1"))
    town.world.lab.run("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    try:
        assert not isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
        cause = town.cause("default/web", town.world.address("pod1-2"))
        assert cause.code == "ip-forward"
        town.cure(cause)
        assert isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
    finally:
        town.world.lab.run("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])


def test_no_route(town: Town) -> None:
    town.apply(web(), endpoint_slice(endpoints=[endpoint("172.31.9.9")]))
    town.world.lab.ip("node1", "route add unreachable 172.31.9.0/24")
    try:
        assert not isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
        cause = town.cause("default/web", town.world.address("pod1-2"))
        assert cause.code == "no-route"
        assert "172.31.9.9" in cause.text
        town.cure(Cause("", "", ("ip route del unreachable 172.31.9.0/24",)))
    finally:
        town.world.lab.run("node1", ["ip", "route", "flush", "172.31.9.0/24"], check=False)


def test_an_interface_without_carrier(town: Town) -> None:
    town.apply(web(), endpoint_slice(endpoints=[endpoint("10.99.0.2")]))
    town.world.lab.ip(
        "node1",
        "link add far9 type veth peer name near9",
        "addr add 10.99.0.1/24 dev far9",
        "link set far9 up",
    )
    try:
        assert not isinstance(town.asks("pod1-2", CLUSTER_IP[Family.IPv4]), Answer)
        cause = town.cause("default/web", town.world.address("pod1-2"))
        assert cause.code == "link-down"
        assert "far9" in cause.text
    finally:
        town.world.lab.ip("node1", "link del far9")


def test_a_neighbour_that_does_not_answer(town: Town) -> None:
    town.apply(web(), endpoint_slice(endpoints=[endpoint("10.244.1.99")]))
    assert not isinstance(
        town.world.connect("pod1-2", CLUSTER_IP[Family.IPv4], 80, timeout=4), Answer
    )
    cause = town.cause("default/web", town.world.address("pod1-2"))
    assert cause.code == "neighbour"
    assert "10.244.1.99 does not answer on cni0" in cause.text


def test_conntrack_is_full(town: Town) -> None:
    """The limit belongs to the machine, so it is not reached here: what the kernel says is replaced."""
    town.apply(web(), slice_of(town, "pod1-1"))
    target = parse_target("default/web")
    with enter(town.world.lab.place("node1").namespace), ThisNode("node1") as here:
        fill = here.machine.fill()
        assert fill.limit > fill.count
        assert explain(target, "", "", here, None).causes[0].code == "ok"
        here.machine.fill = lambda: Fill(99, 99)  # type: ignore[method-assign]
        cause = explain(target, "", "", here, None).causes[0]
    assert cause.code == "conntrack-full"
    assert cause.commands == ("sysctl -w net.netfilter.nf_conntrack_max=198",)


def test_a_stale_entry(town: Town) -> None:
    udp: Any = {"protocol": "UDP"}
    old = town.world.address("pod1-1")
    town.apply(web(**udp), slice_of(town, "pod1-1", **udp))
    connection = town.world.lab.open_connection(
        "pod1-2", CLUSTER_IP[Family.IPv4], 80, "UDP", timeout=5
    )
    with contextlib.closing(connection):  # type: ignore[type-var]
        town.apply(slice_of(town, "pod2-1", **udp))  # nobody cleans up: there is no daemon here
        cause = town.explain("default/web", town.world.address("pod1-2")).causes[0]
        assert cause.code == "stale-entry"
        assert f"{old}:8080" in cause.text
        town.cure(cause)
        assert connection.again(5).name == "pod2-1"  # type: ignore[union-attr]
        codes = {
            each.code for each in town.explain("default/web", town.world.address("pod1-2")).causes
        }
        assert "stale-entry" not in codes


def test_two_services_claim_an_address(town: Town) -> None:
    town.apply(
        web(externalIPs=[VIP]),
        service("late", "10.96.0.44", externalIPs=[VIP], created="2026-02-01T00:00:00Z"),
        slice_of(town, "pod1-1"),
    )
    assert town.world.ask("client", VIP, 80).name == "pod1-1"
    path = town.explain(f"{VIP}:80", "outside")
    assert path.target.service == "default/web:http"
    (cause,) = [each for each in path.causes if each.code == "claimed-twice"]
    assert cause.text.startswith("default/late claims")


def test_two_proxies(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod1-1"))
    chain = "chain nat-prerouting {\ntype nat hook prerouting priority -100\n}"
    rules = f"table ip kube-proxy {{\n{chain}\n}}"
    lab = town.world.lab
    lab.run("node1", ["nft", "-f", "-"], input=rules)
    try:
        codes = {each.code: each for each in town.explain("default/web").causes}
        assert "table ip kube-proxy" in codes["other-proxy"].text
    finally:
        lab.run("node1", ["nft", "delete", "table", "ip", "kube-proxy"])


def test_answers_within_a_bridge(town: Town) -> None:
    town.apply(web(), slice_of(town, "pod1-1"))
    setting = "net.bridge.bridge-nf-call-iptables"
    if town.world.lab.run("node1", ["sysctl", "-n", setting], check=False).returncode:
        pytest.skip("this kernel has no br_netfilter")
    before = town.world.lab.run("node1", ["sysctl", "-n", setting]).stdout.strip()
    town.world.lab.run("node1", ["sysctl", "-qw", f"{setting}=0"])
    try:
        path = town.explain("default/web", town.world.address("pod1-2"))
        codes = {each.code: each for each in path.causes}
        assert codes["bridge-nf-call"].commands[-1] == f"sysctl -w {setting}=1"
    finally:
        town.world.lab.run("node1", ["sysctl", "-qw", f"{setting}={before}"])


def test_no_table() -> None:
    with World(lab={"nodes": 1, "pods": 1}) as world:
        town = Town(world)
        assert town.cause("default/web").code == "no-table"


def test_only_single_elements_are_asked_for(town: Town) -> None:
    """An address is explained without listing any map, so the number of Services does not matter."""
    town.apply(web(), slice_of(town, "pod1-1"))
    with enter(town.world.lab.place("node1").namespace), ThisNode("node1") as here:
        here._verdicts = _never  # type: ignore[method-assign]
        target = parse_target(f"{CLUSTER_IP[Family.IPv4]}:80")
        assert explain(target, "outside", "", here, None).reach is Reach.YES
        assert len(here.machine.rules._elements) < 150


def _never(part: bytes) -> Iterator[Any]:
    pytest.fail(f"a map is listed for {part!r}")
