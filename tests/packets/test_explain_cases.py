"""Why a Service does not answer.

Each cause set up, met by real packets, found by `explain`, and cured by the command that it
proposes.
"""

import shlex
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.configuration.settings import Cidr, OnLocalhost
from nftproxy.lab.client import Answer, Connection, Outcome, Refused, Silent
from nftproxy.lab.namespace import enter
from nftproxy.model import EndpointSlice, Node, Object, Service, ServiceCIDR
from nftproxy.path.cluster import Cluster
from nftproxy.path.explanation import explain
from nftproxy.path.model import Outcome as Came
from nftproxy.path.model import Path, Reach
from nftproxy.path.node import LiveNode
from nftproxy.path.request import request
from nftproxy.sources.manifests import Manifests
from tests.support.firewalls import Firewall, need
from tests.support.objects import endpoint, endpoint_slice, node, service, service_cidr
from tests.support.paths import ROOT
from tests.support.world import World

CLIENT = "192.168.50.201"
POD = "10.244.1.2"
ADDRESS = "10.96.0.10"
WEB = "default/web"
KINDS = (Service, EndpointSlice, Node, ServiceCIDR)


@pytest.fixture
def world() -> Iterator[World]:
    with World(lab={"pods": 2, "families": (Family.IPv4,)}) as world:
        yield world


def of(objects: tuple[Object, ...]) -> Cluster:
    slices: dict[object, list[EndpointSlice]] = {}
    for each in objects:
        if isinstance(each, EndpointSlice):
            slices.setdefault(each.service, []).append(each)
    return Cluster(
        {each.metadata.key: each for each in objects if isinstance(each, Service)},
        {name: tuple(pieces) for name, pieces in slices.items()},  # type: ignore[misc]
        {each.metadata.name: each for each in objects if isinstance(each, Node)},
    )


def ask(
    world: World,
    target: str,
    client: str = "node",
    *objects: Object,
    on: str = "node1",
    protocol: str = "",
) -> Path:
    """What explain says on a node; without objects from the table alone."""
    with enter(world.lab.place(on).namespace), LiveNode(on) as live:
        return explain(request(target, client, protocol), live, of(objects) if objects else None)


def codes(path: Path) -> list[str]:
    return [cause.code for cause in path.causes]


def cure(world: World, path: Path, on: str = "node1") -> None:
    """Run the commands of the first cause."""
    assert path.causes[0].commands
    for command in path.causes[0].commands:
        world.lab.run(on, shlex.split(command))


def nft(world: World, text: str, on: str = "node1") -> None:
    world.lab.run(on, ["nft", "-f", "-"], input=text)


def web(world: World, *pods: str, **spec: Any) -> tuple[Object, ...]:
    """Make a Service with these pods behind it."""
    objects = (service(**spec), world.endpoints(*pods))
    world.apply(*objects)
    return objects


def silent(outcome: Outcome) -> bool:
    return isinstance(outcome, Silent)


# ---- the Service ----


@pytest.mark.parametrize("known", [True, False], ids=["objects", "table"])
def test_1_no_such_service(world: World, known: bool) -> None:
    objects = web(world, "pod1-1") if known else (web(world, "pod1-1"), ())[1]
    for spelled in ("default/wbe", "other/web"):
        path = ask(world, spelled, "node", *objects)
        assert path.reach is Reach.NO
        assert codes(path) == ["no-service"]
        assert WEB in path.causes[0].text
        assert path.causes[0].commands == (f"nftproxy explain {WEB}",)
    assert ask(world, path.causes[0].commands[0].split()[-1]).reach is Reach.YES


@pytest.mark.parametrize(
    ("spec", "code", "word"),
    [
        ({"cluster_ip": "None"}, "headless", "DNS"),
        ({"type": "ExternalName", "externalName": "example.org"}, "external-name", "DNS"),
        ({}, "other-proxy-label", "mesh serves it"),
    ],
    ids=["headless", "external name", "label"],
)
def test_2_somebody_else_serves_it(
    world: World, spec: dict[str, Any], code: str, word: str
) -> None:
    made = service(**spec)
    if not spec:
        from msgspec.structs import replace

        from nftproxy.model import Labels

        made = replace(made, metadata=replace(made.metadata, labels=Labels(proxy_name="mesh")))
    world.apply(made)
    path = ask(world, WEB, "node", made)
    assert codes(path) == [code]
    assert word in path.causes[0].text


def test_3_wrong_port_or_protocol(world: World) -> None:
    objects = web(world, "pod1-1")
    assert isinstance(world.connect("pod1-2", ADDRESS, 81), Refused)
    for target, protocol in ((f"{WEB}:81", ""), (f"{ADDRESS}:81", ""), (f"{WEB}:http", "udp")):
        for known in (objects, ()):
            path = ask(world, target, POD, *known, protocol=protocol)
            assert codes(path) == ["wrong-port"], target
            assert "80/tcp" in path.causes[0].text
    (cause,) = ask(world, ADDRESS, POD).causes
    assert cause.text == f"{ADDRESS} is asked for no port: it has 80/tcp."
    assert ask(world, f"{ADDRESS}:80/tcp", POD).reach is Reach.YES
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


def test_4_address_of_no_service(world: World) -> None:
    web(world, "pod1-1")
    world.apply(service_cidr("kubernetes", "10.96.0.0/16"))
    assert silent(world.connect("pod1-2", "10.96.7.7", 80, timeout=0.3))
    assert codes(ask(world, "10.96.7.7:80", POD)) == ["unallocated-address"]
    assert codes(ask(world, "198.51.100.7:80", POD)) == ["no-service-address"]
    nft(world, FOREIGN["policy"])  # what stops it here is said all the same
    path = ask(world, "198.51.100.7:80", POD)
    assert codes(path) == ["no-service-address", "foreign-drop"]
    assert path.reach is Reach.NO


def test_5_ping(world: World) -> None:
    web(world, "pod1-1")
    assert world.lab.run("pod1-2", ["ping", "-c1", "-W1", ADDRESS], check=False).returncode
    path = ask(world, ADDRESS, POD, protocol="icmp")
    assert codes(path) == ["ping"]
    assert "no port" in path.causes[0].text
    assert codes(ask(world, WEB, POD, protocol="icmp")) == ["ping"]


NONE: dict[str, tuple[Object, ...]] = {
    "no-slices": (),
    "empty-slices": (endpoint_slice(endpoints=[]),),
    "not-ready": (endpoint_slice(endpoints=[endpoint("10.244.1.2", ready=False)]),),
    "terminating": (
        endpoint_slice(
            endpoints=[endpoint("10.244.1.2", ready=False, serving=False, terminating=True)]
        ),
    ),
    "other-ports": (endpoint_slice(endpoints=[endpoint("10.244.1.2")], port_name="metrics"),),
    "fqdn": (endpoint_slice(endpoints=[endpoint("example.org")], family="FQDN"),),
}


@pytest.mark.parametrize("code", NONE)
def test_6_no_endpoints(world: World, code: str) -> None:
    objects = (service(), *NONE[code])
    world.apply(*objects)
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Refused)
    path = ask(world, WEB, POD, *objects)
    assert path.reach is Reach.NO
    assert codes(path) == [code]
    assert "kubectl -n default get endpointslices" in path.causes[0].commands[0]
    assert codes(ask(world, f"{ADDRESS}:80", POD)) == ["no-endpoints"]


@pytest.mark.parametrize("which", ["internal", "external"])
def test_7_policy_local(world: World, which: str) -> None:
    if which == "internal":
        objects = web(world, "pod2-1", internalTrafficPolicy="Local")
        target, client, place, address, port = WEB, "10.244.1.3", "pod1-2", ADDRESS, 80
    else:
        objects = web(world, "pod2-1", node_port=30080, externalTrafficPolicy="Local")
        target, client, place, address, port = "30080", CLIENT, "client", "192.168.50.11", 30080
    assert silent(world.connect(place, address, port, timeout=0.3))
    path = ask(world, target, client, *objects)
    assert codes(path)[0] == "policy-local"
    assert f"{which}TrafficPolicy" in path.causes[0].text
    assert "node2 has one" in path.causes[0].text
    assert f'"{which}TrafficPolicy":"Cluster"' in path.causes[0].commands[0]
    web(world, "pod2-1", node_port=30080)  # what the command does
    assert isinstance(world.connect(place, address, port), Answer)


def test_8_endpoints_of_another_zone(world: World) -> None:
    zones = (node("node1", zone="a"), node("node2", zone="b"))
    world.tables["node1"].store.put(zones[0])
    slices = endpoint_slice(
        endpoints=[
            endpoint("10.244.1.2", "node1", zones=["a"]),
            endpoint("10.244.2.2", "node2", zones=["b"]),
        ]
    )
    objects = (service(), slices)
    world.apply(*objects)
    assert set(world.answers("pod1-2", ADDRESS, 80, times=12)) == {"pod1-1"}
    path = ask(world, WEB, "10.244.1.3", *objects, *zones)
    assert path.reach is Reach.YES
    assert [str(each) for each in path.candidates if each.used] == ["10.244.1.2:8080"]
    (other,) = (each for each in path.candidates if not each.used)
    assert str(other) == "10.244.2.2:8080"
    assert "zone b; this node is in zone a" in other.reason


def test_9_source_ranges(world: World) -> None:
    ranges: dict[str, Any] = {
        "vips": ("203.0.113.10",),
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
    }
    objects = web(world, "pod1-1", **ranges)
    assert silent(world.connect("client", "203.0.113.10", 80, timeout=0.3))
    path = ask(world, "203.0.113.10:80", CLIENT, *objects)
    assert codes(path) == ["source-ranges"]
    assert "198.51.100.0/24" in path.causes[0].text
    wanted = f'"loadBalancerSourceRanges":["198.51.100.0/24","{CLIENT}/32"]'
    assert wanted in path.causes[0].commands[0]
    ranges["loadBalancerSourceRanges"] = ["198.51.100.0/24", f"{CLIENT}/32"]
    objects = web(world, "pod1-1", **ranges)  # what the command does
    assert ask(world, "203.0.113.10:80", CLIENT, *objects).reach is Reach.YES
    assert isinstance(world.connect("client", "203.0.113.10", 80), Answer)


def test_10_node_port_on_localhost(world: World) -> None:
    """Refused there, or forwarded by a process; explain says which."""
    for choice, said in (
        (OnLocalhost.REFUSED, "NodePort 30080 is refused on loopback addresses"),
        (OnLocalhost.FORWARDED, "nftproxy itself listens on 127.0.0.1 for NodePort 30080"),
        (OnLocalhost.UNTOUCHED, "NodePort 30080 is not accepted on 127.0.0.1"),
    ):
        world.start("node1", on_localhost=choice)
        web(world, "pod1-1", node_port=30080)
        world.tables["node1"].tidy()
        path = ask(world, "127.0.0.1:30080")
        assert codes(path) == ["node-port-address"]
        assert said in path.causes[0].text


@pytest.mark.parametrize("address", ["127.0.0.1", "10.244.1.1"])
def test_10_node_port_elsewhere(world: World, address: str) -> None:
    web(world, "pod1-1", node_port=30080)
    assert not isinstance(world.connect("node1", address, 30080, timeout=0.3), Answer)
    path = ask(world, f"{address}:30080")
    assert codes(path) == ["node-port-address"]
    assert "accepts NodePorts on 192.168.50.11" in path.causes[0].text
    (command,) = path.causes[0].commands
    assert ask(world, command.split()[-1]).reach is Reach.YES
    assert isinstance(world.connect("client", "192.168.50.11", 30080), Answer)


# ---- others' rules ----

FOREIGN = {
    "policy": "table inet other { chain forwarding { type filter hook forward priority 10; "
    "policy drop; "
    "ct state established accept; }; }",
    "reject": "table inet other { chain forwarding { type filter hook forward priority filter; "
    "ct state established accept; iifname cni0 jump pods; }; chain pods { }; }\n"
    "add rule inet other pods ct state new reject with icmpx admin-prohibited",
    "raw": "table ip other { chain pre { type filter hook prerouting priority raw; "
    "ip daddr 10.96.0.0/16 tcp dport 80 drop; }; }",
    "set": "table ip other { set bad { type ipv4_addr; elements = { 10.244.1.3 } }; "
    "chain forwarding { type filter hook forward priority 5; ip saddr @bad ct state new drop; }; }",
    "iptables": "table ip filter { chain FORWARD { type filter hook forward priority filter; "
    "policy drop; ct state established accept; }; }",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_11_stopped_by_another_table(world: World, kind: str) -> None:
    web(world, "pod1-1")
    nft(world, FOREIGN[kind])
    before = world.connect("pod1-2", ADDRESS, 80, timeout=0.3)
    assert not isinstance(before, Answer)
    path = ask(world, WEB, "10.244.1.3")
    assert path.reach is Reach.NO
    (cause,) = path.causes
    assert cause.code == ("foreign-reject" if kind == "reject" else "foreign-drop")
    assert "not by nftproxy" in cause.text
    (stopped,) = (step for step in path.steps if step.outcome is Came.STOPPED)
    assert stopped.rule is not None
    if kind == "reject":
        assert stopped.rule.chain == "pods"
        assert "reject with icmpx admin-prohibited" in stopped.rule.text
        assert stopped.rule.text in cause.text
    cure(world, path)
    assert ask(world, WEB, "10.244.1.3").reach is Reach.YES
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


LEGACY = {
    "drop": "-A FORWARD -p tcp -m multiport --dports 80,8080 -j DROP",
    "reject": "-A FORWARD -i cni+ -m conntrack --ctstate NEW -j REJECT",
    "policy": "-P FORWARD DROP",
}


@pytest.mark.skipif(not shutil.which("iptables-legacy"), reason="iptables-legacy is not installed")
@pytest.mark.parametrize("kind", LEGACY)
def test_11_stopped_by_iptables_legacy(world: World, kind: str) -> None:
    web(world, "pod1-1")
    node = world.lab.place("node1").namespace
    argv = ["ip", "netns", "exec", node, "iptables-legacy", *LEGACY[kind].split()]
    subprocess.run(argv, check=True)
    try:
        assert not isinstance(world.connect("pod1-2", ADDRESS, 80, timeout=0.3), Answer)
        path = ask(world, WEB, "10.244.1.3")
        assert path.reach is Reach.NO
        assert codes(path) == ["foreign-reject" if kind == "reject" else "foreign-drop"]
        assert "of iptables-legacy" not in " ".join(path.not_checked)
        said = path.causes[0].text
        if kind == "policy":
            assert "the policy of chain FORWARD in table iptables filter" in said
        else:
            assert "`-A FORWARD " in said
            assert "(number 1) of chain FORWARD in table iptables filter" in said
        cure(world, path)
        assert ask(world, WEB, "10.244.1.3").reach is Reach.YES
        assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)
    finally:
        for reset in ("-F FORWARD", "-P FORWARD ACCEPT"):
            subprocess.run([*argv[:5], *reset.split()], check=True)


def test_11_stopped_by_ufw(world: World) -> None:
    need("ufw")
    web(world, "pod1-1")
    with Firewall("ufw", world.lab.place("node1").namespace) as firewall:
        real_firewall(world, firewall, "ufw", WEB, "pod1-2", (ADDRESS, 80))


def test_11_stopped_by_firewalld(world: World) -> None:
    """It accepts what is translated, so Services pass; connections to Pods from outside do not."""
    need("firewalld")
    objects = web(world, "pod1-1")
    with Firewall("firewalld", world.lab.place("node1").namespace) as firewall:
        assert ask(world, WEB, CLIENT, *objects).reach is Reach.YES
        assert isinstance(world.connect("client", ADDRESS, 80), Answer)
        pod = (POD, 8080)
        real_firewall(world, firewall, "firewalld", f"{POD}:8080", "client", pod, *objects)


def real_firewall(
    world: World,
    firewall: Firewall,
    kind: str,
    target: str,
    place: str,
    at: tuple[str, int],
    *objects: Object,
) -> None:
    client = world.address(place)
    assert not isinstance(world.connect(place, *at, timeout=0.5), Answer)
    path = ask(world, target, client, *objects)
    assert path.reach is Reach.NO
    cause = path.causes[0]
    assert f"by {kind}, not by nftproxy" in cause.text
    for command in cause.commands:
        firewall.run(command)
    assert ask(world, target, client, *objects).reach is Reach.YES
    assert isinstance(world.connect(place, *at), Answer)


def test_11_a_limit_may_stop(world: World) -> None:
    web(world, "pod1-1")
    chain = "chain forwarding { type filter hook forward priority 5; limit rate over 1/day drop; }"
    nft(world, f"table ip other {{ {chain}; }}")
    path = ask(world, WEB, "10.244.1.3")
    assert path.reach is Reach.MAY
    assert any("limit" in what for what in path.not_checked)


def test_12_translated_by_another_table(world: World) -> None:
    web(world, "pod1-1")
    rule = "tcp dport 80 dnat to 10.244.2.2:81"
    nft(world, f"table ip old {{ chain p {{ type nat hook prerouting priority -105; {rule}; }}; }}")
    assert not isinstance(world.connect("pod1-2", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, "10.244.1.3")
    assert path.reach is Reach.NO
    assert codes(path)[0] == "foreign-translation"
    assert "10.244.2.2:81" in path.causes[0].text
    assert "ip old" in path.causes[0].text
    cure(world, path)
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


def test_12_not_tracked(world: World) -> None:
    web(world, "pod1-1")
    chain = "chain p { type filter hook prerouting priority raw; tcp dport 80 notrack; }"
    nft(world, f"table ip raws {{ {chain}; }}")
    assert not isinstance(world.connect("pod1-2", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, "10.244.1.3")
    assert codes(path)[0] == "untracked"
    cure(world, path)
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


# ---- ways ----


def test_13_no_route(world: World) -> None:
    web(world, "pod2-1")
    world.lab.ip("node1", "route add unreachable 10.244.2.2/32")
    assert not isinstance(world.connect("pod1-2", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, "10.244.1.3")
    assert codes(path) == ["no-route"]
    assert "10.244.2.2" in path.causes[0].text


def test_13_no_route_to_the_service(world: World) -> None:
    """This node chooses a route before it translates."""
    web(world, "pod1-1")
    world.lab.ip("node1", "route del default")
    assert not isinstance(world.connect("node1", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB)
    assert codes(path) == ["no-route"]
    assert path.reach is Reach.NO
    assert ask(world, WEB, "10.244.1.3").reach is Reach.YES
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


def test_13_no_forwarding(world: World) -> None:
    web(world, "pod1-1")
    world.lab.run("node1", ["sysctl", "-w", "net.ipv4.ip_forward=0"])
    assert not isinstance(world.connect("client", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, CLIENT)
    assert codes(path) == ["ip-forward"]
    cure(world, path)
    assert isinstance(world.connect("client", ADDRESS, 80), Answer)


def test_13_reverse_path_filter(world: World) -> None:
    web(world, "pod1-1")
    world.lab.run("node1", ["sysctl", "-w", "net.ipv4.conf.eth0.rp_filter=1"])
    world.lab.ip(
        "node1",
        f"route add {CLIENT}/32 dev eth0 table 100",
        "rule add fwmark 1 lookup 100",
        f"route add {CLIENT}/32 dev cni0",
    )
    chain = "type filter hook prerouting priority mangle; iifname cni0 meta mark set 1;"
    nft(world, f"table ip marks {{ chain p {{ {chain} }}; }}")  # answers know the way
    assert not isinstance(world.connect("client", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, f"{CLIENT}%eth0")  # the route to the client is another one
    assert codes(path)[0] == "rp-filter"
    cure(world, path)
    assert isinstance(world.connect("client", ADDRESS, 80), Answer)


def test_13_interface_down(world: World) -> None:
    web(world, "pod1-1")
    world.lab.ip("node1", "link set cni0 down")
    assert not isinstance(world.connect("client", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, CLIENT)
    assert codes(path) == ["link-down"]
    cure(world, path)
    assert isinstance(world.connect("client", ADDRESS, 80), Answer)


def test_13_neighbour_failed(world: World) -> None:
    objects = (service(), endpoint_slice(endpoints=[endpoint("10.244.1.77")]))
    world.apply(*objects)
    assert not isinstance(world.connect("client", ADDRESS, 80, timeout=4.0), Answer)
    path = ask(world, WEB, CLIENT, *objects)
    assert codes(path)[0] == "neighbour-failed"
    assert "10.244.1.77" in path.causes[0].text


def test_13_bridge_without_netfilter(world: World) -> None:
    web(world, "pod1-1")
    settings = ["net.bridge.bridge-nf-call-iptables=0"]
    world.lab.run("node1", ["sysctl", "-w", *settings])
    assert not isinstance(world.connect("pod1-2", ADDRESS, 80, timeout=0.3), Answer)
    path = ask(world, WEB, "10.244.1.3")
    assert codes(path)[0] == "bridge-nf-call"
    assert path.reach is Reach.NO
    cure(world, path)
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Answer)


# ---- answers ----


def test_14_endpoint_refuses(world: World) -> None:
    """The kernel keeps nothing of a connection that a reset ends at once, so explain says what it
    did not look at.
    """
    world.apply(service(), world.endpoints("pod1-1", port=8099))
    assert isinstance(world.connect("pod1-2", ADDRESS, 80), Refused)
    path = ask(world, WEB, "10.244.1.3")
    assert path.reach is Reach.YES
    assert any("whether anything listens" in what for what in path.not_checked)


def test_14_endpoint_is_silent(world: World) -> None:
    web(world, "pod1-1")
    nft(world, "table ip mute { chain i { type filter hook input priority 0; drop; }; }", "pod1-1")
    assert silent(world.connect("pod1-2", ADDRESS, 80, timeout=0.3))
    path = ask(world, WEB, "10.244.1.3")
    assert codes(path) == ["endpoint-silent"]
    assert path.reach is Reach.NO


def test_14_answer_passes_by() -> None:
    wrong = Cidr({Family.IPv4: parse_network("0.0.0.0/0")})
    with World(lab={"pods": 2, "families": (Family.IPv4,)}, detector=wrong) as world:
        web(world, "pod2-1")
        assert not isinstance(world.connect("client", ADDRESS, 80, timeout=0.3), Answer)
        path = ask(world, WEB, CLIENT)
        assert "asymmetric-return" in codes(path)
        world.start("node1", detector=Cidr({Family.IPv4: parse_network("10.244.0.0/16")}))
        web(world, "pod2-1")
        assert "asymmetric-return" not in codes(ask(world, WEB, CLIENT))
        assert isinstance(world.connect("client", ADDRESS, 80), Answer)


def test_15_stale_entry(world: World) -> None:
    world.apply(service(protocol="UDP"), world.endpoints("pod1-1", protocol="UDP"))
    with enter(world.lab.place("pod1-2").namespace), socket.socket(type=socket.SOCK_DGRAM) as flow:
        flow.settimeout(5)
        flow.connect((ADDRESS, 80))
        flow.send(b"x")
        flow.recv(2000)
        world.apply(world.endpoints("pod2-1", protocol="UDP"))
        path = ask(world, WEB, "10.244.1.3")
        assert codes(path)[0] == "stale-entry"
        assert "10.244.1.2:8080" in path.causes[0].text
        cure(world, path)
        flow.send(b"x")
        assert b"pod2-1" in flow.recv(2000)
    assert ask(world, WEB, "10.244.1.3").reach is Reach.YES


# ---- this node ----


def test_16_this_node_is_behind(world: World) -> None:
    web(world, "pod1-1")
    news = (service(), world.endpoints("pod1-1", "pod2-1"))
    path = ask(world, WEB, "10.244.1.3", *news)
    assert codes(path) == ["behind"]
    assert "it lacks 10.244.2.2:8080" in path.causes[0].text
    assert "no nftproxy runs on this node" in path.causes[0].text
    world.apply(*news)
    assert codes(ask(world, WEB, "10.244.1.3", *news)) == []


def test_17_two_claims(world: World) -> None:
    shared: dict[str, Any] = {"externalIPs": ["203.0.113.10"]}
    old = (service(**shared), world.endpoints("pod1-1"))
    new = (
        service("shop", "10.96.0.11", created="2026-02-01T00:00:00Z", **shared),
        world.endpoints("pod2-1", of="shop"),
    )
    world.apply(*old, *new)
    assert set(world.answers("client", "203.0.113.10", 80, times=8)) == {"pod1-1"}
    path = ask(world, "203.0.113.10:80", CLIENT, *old, *new)
    assert codes(path) == ["two-claims"]
    assert "default/web has it" in path.causes[0].text
    assert "default/shop" in path.causes[0].text


def test_18_small_mtu(world: World) -> None:
    web(world, "pod2-1")
    world.lab.ip("node1", "link set eth0 mtu 1400")
    path = ask(world, WEB, "10.244.1.3")
    assert path.reach is Reach.YES
    assert codes(path) == ["mtu"]
    assert "1400" in path.causes[0].text
    cure(world, path)
    assert codes(ask(world, WEB, "10.244.1.3")) == []


def test_19_two_proxies(world: World) -> None:
    web(world, "pod1-1")
    table = "table ip kube-proxy { chain s { type nat hook prerouting priority -100; }; }"
    nft(world, table)
    path = ask(world, WEB, "10.244.1.3")
    assert codes(path) == ["two-proxies"]
    assert "ip kube-proxy" in path.causes[0].text
    cure(world, path)
    assert codes(ask(world, WEB, "10.244.1.3")) == []


def test_20_nothing_is_wrong(world: World) -> None:
    objects = web(world, "pod1-1", "pod2-1")
    for client, place in (("10.244.1.3", "pod1-2"), (CLIENT, "client"), ("node", "node1")):
        path = ask(world, WEB, client, *objects)
        assert (path.reach, path.causes) == (Reach.YES, ())
        assert path.not_checked
        assert isinstance(world.connect(place, ADDRESS, 80), Answer)


def test_ipv6() -> None:
    """The same in the other family: who reaches what, a foreign table, its cure."""
    address, pod = "fd00:10:96::10", "fd00:244:1::3"
    with World(lab={"pods": 2}) as world:
        objects = (
            service(cluster_ip=address),
            world.endpoints("pod1-1", "pod2-1", family=Family.IPv6),
        )
        world.apply(*objects)
        for client, place in ((pod, "pod1-2"), ("fd00:50::201", "client"), ("node", "node1")):
            path = ask(world, f"[{address}]:80", client, *objects)
            assert (path.reach, path.causes) == (Reach.YES, ())
            world.ask(place, address, 80)
        neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"  # of bridged pods
        accept = f"ct state established accept; {neighbours} accept"
        rules = f"type filter hook forward priority 0; policy drop; {accept};"
        nft(world, f"table ip6 other {{ chain forwarding {{ {rules} }}; }}")
        assert not isinstance(world.connect("pod1-2", address, 80, timeout=0.3), Answer)
        path = ask(world, WEB, pod, *objects)
        assert codes(path) == ["foreign-drop"]
        cure(world, path)
        world.ask("pod1-2", address, 80)


def test_ipv6_connections() -> None:
    """What conntrack knows: an endpoint that does not answer, and a flow to a former one."""
    address, pod = "fd00:10:96::10", "fd00:244:1::3"
    with World(lab={"pods": 2}) as world:
        world.apply(service(cluster_ip=address), world.endpoints("pod1-1", family=Family.IPv6))
        mute = "type filter hook input priority 0; tcp dport 8080 drop;"
        nft(world, f"table ip6 mute {{ chain i {{ {mute} }}; }}", "pod1-1")
        assert silent(world.connect("pod1-2", address, 80, timeout=0.3))
        path = ask(world, f"[{address}]:80", pod)
        assert codes(path) == ["endpoint-silent"]
        world.apply(
            service(cluster_ip=address, protocol="UDP"),
            world.endpoints("pod1-1", family=Family.IPv6, protocol="UDP"),
        )
        flow = world.lab.open_connection("pod1-2", address, 80, "UDP", timeout=5.0)
        assert isinstance(flow, Connection)
        with flow:
            assert flow.answer.name == "pod1-1"
            world.apply(world.endpoints("pod2-1", family=Family.IPv6, protocol="UDP"))
            path = ask(world, f"[{address}]:80/udp", pod)
            assert codes(path)[0] == "stale-entry"
            cure(world, path)
            again = flow.again(5.0)
            assert isinstance(again, Answer)
            assert again.name == "pod2-1"


def test_what_is_said_is_what_happens() -> None:
    """Every frontend of the examples, from everywhere: explain's verdict against a connection."""
    scan = Manifests([ROOT / "examples"]).scan()
    objects = tuple(
        each for kind in KINDS for each in scan.objects[kind] if not isinstance(each, Node)
    )
    with World() as world:
        world.apply(*objects)
        compared = Counter(
            compare(world, objects, place, target)
            for target in frontends(world)
            for place in ("pod1-1", "pod1-3", "node1", "client")
        )
    assert compared[Reach.YES] > 30
    assert compared[Reach.NO] > 10


def frontends(world: World) -> set[tuple[str, int]]:
    """Addresses and ports of TCP on node1, and some that nobody has."""
    with enter(world.lab.place("node1").namespace), LiveNode("node1") as live:
        known = list(live.frontends())
    found = {
        (frontend.address or world.address("node1", family), frontend.port)
        for family, frontend, _ in known
        if frontend.proto == "tcp"
    }
    return {*found, (ADDRESS, 81), ("10.96.7.7", 80), (world.address("node1"), 31999)}


def compare(
    world: World, objects: tuple[Object, ...], place: str, target: tuple[str, int]
) -> Reach:
    address, port = target
    family = Family.IPv6 if ":" in address else Family.IPv4
    client = "node" if place == "node1" else world.address(place, family)
    asked = f"[{address}]:{port}" if family is Family.IPv6 else f"{address}:{port}"
    path = ask(world, asked, client, *objects)
    outcome = world.connect(place, address, port, timeout=0.4)
    said = f"{place} {asked}: {path.reach} {path.causes}, but {outcome}"
    if path.reach is Reach.MAY:  # whether anything listens on an address of no Service
        assert codes(path) == ["no-service-address"], said
        return path.reach
    assert isinstance(outcome, Answer) is (path.reach is Reach.YES), said
    return path.reach
