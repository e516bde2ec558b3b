"""The judge judged: the oracle on cases worked out by hand from the contract."""

from collections.abc import Iterable
from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.configuration.settings import ALL, BridgeInterface, InterfaceNamePrefix, LocalDetector
from nftproxy.model import EndpointSlice, Proto, Service
from tests.support.objects import endpoint, endpoint_slice, service, service_cidr
from tests.support.oracle import (
    Cluster,
    Endpoint,
    Fate,
    Host,
    Link,
    Packet,
    Served,
    Verdict,
    oracles,
)
from tests.support.world import CLUSTER, settings

POD, POD2, REMOTE, CLIENT, NODE, GATEWAY = (
    "10.244.1.2", "10.244.1.3", "10.244.2.2", "192.168.50.201", "192.168.50.11", "10.244.1.1",
)  # fmt: skip
CLUSTER_IP, EXTERNAL, VIP = "10.96.0.10", "203.0.113.1", "203.0.113.10"
LINKS = (
    Link("192.168.50.0/24", NODE),
    Link("10.244.1.0/24", GATEWAY),
    Link("fd00:50::/64", "fd00:50::11"),
)
HERE, ELSEWHERE = endpoint(POD, "node1"), endpoint(REMOTE, "node2")
EVERY = dict.fromkeys(Family, ALL)
REFUSED, SILENT, UNTOUCHED = Fate.REFUSED, Fate.SILENT, Fate.UNTOUCHED


def host(zone: str = "", **options: Any) -> Host:
    return Host(settings(**options), zone, LINKS)


def judge(
    *objects: Service | EndpointSlice,
    to: str = CLUSTER_IP,
    source: str = POD,
    port: int = 80,
    proto: Proto = Proto.TCP,
    interface: str | None = None,
    at: Host | None = None,
    cidrs: Iterable[str] = (),
) -> list[Verdict]:
    """What may become of a packet, in each reading.

    It came in where its source says unless told otherwise.
    """
    if interface is None:
        interface = {POD: "cni0", POD2: "cni0", NODE: "", GATEWAY: ""}.get(source, "eth0")
    cluster = Cluster(
        tuple(o for o in objects if isinstance(o, Service)),
        tuple(o for o in objects if isinstance(o, EndpointSlice)),
        (service_cidr("kubernetes", *cidrs),) if cidrs else (),
    )
    family = Family.IPv6 if ":" in to else Family.IPv4
    packet = Packet(source, to, port, proto, interface)
    return [
        verdict
        for oracle in oracles(cluster, at or host(), family)
        for verdict in oracle.judge(packet)
    ]


def one(*objects: Service | EndpointSlice, **options: Any) -> Verdict:
    (verdict,) = judge(*objects, **options)
    return verdict


def addresses(verdict: Verdict) -> list[str] | Fate:
    """The addresses of the endpoints, or the fate."""
    return sorted(e.address for e in verdict.endpoints) if isinstance(verdict, Served) else verdict


def seen(verdict: Verdict) -> dict[str, str]:
    """The source that each endpoint sees."""
    assert isinstance(verdict, Served), verdict
    return {
        reached.endpoint.address: ",".join(sorted(reached.sources)) for reached in verdict.reached
    }


def slice_of(*endpoints: dict[str, Any], **options: Any) -> EndpointSlice:
    return endpoint_slice(endpoints=endpoints, **options)


BOTH = slice_of(HERE, ELSEWHERE)
ONLY_ELSEWHERE = slice_of(ELSEWHERE)
LEAVING_HERE = slice_of(
    endpoint(POD, "node1", ready=False, serving=True, terminating=True), ELSEWHERE
)
NOT_READY = slice_of(endpoint(POD, "node1", ready=False, serving=True))
CLUSTER_POLICY = service(node_port=30080, vips=[VIP], externalIPs=[EXTERNAL])
LOCAL_POLICY = service(
    node_port=30080, vips=[VIP], externalIPs=[EXTERNAL], externalTrafficPolicy="Local"
)
INTERNAL_LOCAL = service(internalTrafficPolicy="Local")


@pytest.mark.parametrize(
    ("objects", "packet", "expected"),
    [
        pytest.param([CLUSTER_POLICY, BOTH], {}, [POD, REMOTE], id="2.3.5-cluster-ip"),
        pytest.param([CLUSTER_POLICY, BOTH], {"to": VIP, "source": CLIENT}, [POD, REMOTE], id="2.3.6-vip"),
        pytest.param([CLUSTER_POLICY, BOTH], {"to": NODE, "port": 30080}, [POD, REMOTE], id="2.3.6-node-port"),
        pytest.param([CLUSTER_POLICY, BOTH], {"proto": Proto.UDP}, REFUSED, id="2.5.6-other-protocol"),
        pytest.param([CLUSTER_POLICY, BOTH], {"port": 81}, REFUSED, id="2.5.6-undefined-port"),
        pytest.param([CLUSTER_POLICY, BOTH], {"to": EXTERNAL, "port": 81}, UNTOUCHED, id="2.2.2-undefined-port"),
        pytest.param([CLUSTER_POLICY, BOTH], {"to": GATEWAY, "port": 30080}, UNTOUCHED, id="2.6.1-other-own-address"),
        pytest.param([CLUSTER_POLICY, BOTH], {"to": GATEWAY, "port": 30080, "at": host(nodeports=EVERY)}, [POD, REMOTE], id="2.6.4"),
        pytest.param(
            [CLUSTER_POLICY, BOTH], {"to": "127.0.0.1", "source": NODE, "port": 30080,
            "at": host(nodeports=EVERY)},
            UNTOUCHED, id="2.6.7-loopback",
        ),
        pytest.param([INTERNAL_LOCAL, BOTH], {}, [POD], id="2.3.1-internal-local"),
        pytest.param([INTERNAL_LOCAL, ONLY_ELSEWHERE], {}, SILENT, id="2.5-internal-local-elsewhere"),
        pytest.param([INTERNAL_LOCAL], {}, REFUSED, id="2.5-internal-local-nowhere"),
        pytest.param([LOCAL_POLICY, BOTH], {"to": VIP, "source": CLIENT}, [POD], id="2.3.7-rule-3"),
        pytest.param([LOCAL_POLICY, BOTH], {"to": VIP}, [POD, REMOTE], id="2.3.7-rule-1"),
        pytest.param([LOCAL_POLICY, BOTH], {"to": VIP, "source": NODE}, [POD, REMOTE], id="2.3.7-rule-2"),
        pytest.param([LOCAL_POLICY, BOTH], {"to": VIP, "at": host(detector=None)}, [POD], id="4.1.7-pods-like-outside"),
        pytest.param([LOCAL_POLICY, ONLY_ELSEWHERE], {"to": VIP, "source": CLIENT}, SILENT, id="2.3.8-outside"),
        pytest.param([LOCAL_POLICY, ONLY_ELSEWHERE], {"to": VIP, "source": NODE}, [REMOTE], id="2.3.8-node"),
        pytest.param([LOCAL_POLICY, ONLY_ELSEWHERE], {"to": NODE, "port": 30080, "source": CLIENT}, SILENT, id="2.5-node-port-drop"),
        pytest.param([LOCAL_POLICY], {"to": NODE, "port": 30080, "source": CLIENT}, REFUSED, id="2.5-node-port-reject"),
        pytest.param([LOCAL_POLICY], {"to": VIP, "source": CLIENT}, REFUSED, id="2.5-vip-reject"),
        pytest.param([CLUSTER_POLICY, NOT_READY], {}, REFUSED, id="3.4.7-not-ready"),
        pytest.param([LOCAL_POLICY, LEAVING_HERE], {}, [REMOTE], id="3.4.5-cluster-list"),
        pytest.param([LOCAL_POLICY, LEAVING_HERE], {"to": VIP, "source": CLIENT}, [POD], id="3.4.5-local-list"),
        pytest.param([service(externalTrafficPolicy="Local", node_port=1, type="ClusterIP"), ONLY_ELSEWHERE],
                     {"to": NODE, "port": 1, "source": CLIENT}, [REMOTE], id="2.3.2-cluster-ip-service"),
        pytest.param([service(type="ExternalName"), BOTH], {}, UNTOUCHED, id="2.1.1-external-name"),
        pytest.param([service(ipFamilies=["IPv6"]), BOTH], {}, UNTOUCHED, id="2.1.2-other-family"),
        pytest.param([service(ports=[]), BOTH], {}, UNTOUCHED, id="2.1.3-no-ports"),
        pytest.param([service("b", externalIPs=[EXTERNAL], created="2026-01-02T00:00:00Z", cluster_ip="10.96.0.11"),
                      service("c", externalIPs=[EXTERNAL], cluster_ip="10.96.0.12"), endpoint_slice("b", [HERE])],
                     {"to": EXTERNAL}, REFUSED, id="2.2.3-older-without-endpoints"),
        pytest.param([service("b", created="2026-01-02T00:00:00Z"), endpoint_slice("b", [HERE]),
                      service("c", externalIPs=[CLUSTER_IP], cluster_ip="10.96.0.12")],
                     {}, [POD], id="2.2.3-cluster-ip-wins"),
        pytest.param([service(), endpoint_slice(endpoints=[HERE], port_name="other")], {}, REFUSED, id="3.1.4-port-name"),
        pytest.param([service(), endpoint_slice(endpoints=[HERE], protocol="UDP")], {}, REFUSED, id="3.1.4-protocol"),
        pytest.param([service(), endpoint_slice(endpoints=[HERE], ports=[{"port": 8080}])], {}, REFUSED, id="3.1.3-nil-name"),
        pytest.param([service(), endpoint_slice(endpoints=[HERE], ports=[{"name": "http"}])], {}, REFUSED, id="3.1.3-nil-port"),
        pytest.param([service(), slice_of(HERE, labels={"service.kubernetes.io/headless": ""})], {}, REFUSED, id="1.1.6"),
    ],
)  # fmt: skip
def test_where_it_goes(
    objects: list[Service | EndpointSlice], packet: dict[str, Any], expected: list[str] | Fate
) -> None:
    assert addresses(one(*objects, **packet)) == expected


def ranges(*texts: str) -> Service:
    return service(vips=[VIP], loadBalancerSourceRanges=texts)


@pytest.mark.parametrize(
    ("web", "packet", "expected"),
    [
        pytest.param(ranges(f"{CLIENT}/32"), {"source": CLIENT}, [POD], id="inside"),
        pytest.param(ranges(f"{CLIENT}/32"), {}, SILENT, id="2.7.5-pod"),
        pytest.param(ranges(f"{CLIENT}/32"), {"source": NODE}, SILENT, id="2.7.5-node"),
        pytest.param(ranges(f"{CLIENT}/32"), {"to": CLUSTER_IP}, [POD], id="2.7.4-cluster-ip"),
        pytest.param(ranges(" 192.168.050.000/24 "), {"source": CLIENT}, [POD], id="2.7.1-lenient"),
        pytest.param(ranges("10.1.2.3/32", "0.0.0.0/0"), {}, [POD], id="2.7.2-zero-length"),
        pytest.param(ranges("fd00::/8", "rubbish", ""), {}, [POD], id="2.7.3-none-of-the-family"),
        pytest.param(
            ranges("192.168.50.0/24"),
            {"source": VIP, "interface": ""},
            [POD],
            id="2.7.6-node-in-range",
        ),
        pytest.param(
            ranges(f"{CLIENT}/32"),
            {"source": VIP, "interface": ""},
            SILENT,
            id="2.7.6-node-not-in-range",
        ),
    ],
)
def test_source_ranges(web: Service, packet: dict[str, Any], expected: list[str] | Fate) -> None:
    assert addresses(one(web, slice_of(HERE), **{"to": VIP, **packet})) == expected


def test_source_ranges_are_not_for_the_node_port_of_the_same_address() -> None:
    web = service(node_port=30080, vips=[NODE], loadBalancerSourceRanges=["10.1.2.3/32"])
    assert one(web, to=NODE, port=30080) is REFUSED  # 2.7.4, 2.6.8
    assert one(web, to=NODE) is SILENT


def test_a_blocked_source_sees_a_drop_even_without_endpoints() -> None:
    assert one(ranges("10.1.2.3/32"), to=VIP) is SILENT  # 2.5.8, 2.7.9
    assert one(ranges(f"{POD}/32"), to=VIP) is REFUSED


@pytest.mark.parametrize(
    ("to", "cidrs", "expected"),
    [
        pytest.param("10.96.0.99", ["10.96.0.0/16"], SILENT, id="2.5.7"),
        pytest.param("10.96.0.99", [], UNTOUCHED, id="2.5.7-no-cidr"),
        pytest.param("10.96.0.99", ["fd00:10:96::/112"], UNTOUCHED, id="2.5.7-other-family"),
        pytest.param(CLUSTER_IP, ["10.96.0.0/16"], REFUSED, id="2.5.6-before-2.5.7"),
    ],
)
def test_service_cidrs(to: str, cidrs: list[str], expected: Fate) -> None:
    assert one(service(), to=to, port=99, cidrs=cidrs) is expected


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param({"source": POD2}, {POD: POD2, REMOTE: POD2}, id="4.1.6-pod"),
        pytest.param({"source": CLIENT}, {POD: GATEWAY, REMOTE: NODE}, id="4.1.2-outside"),
        pytest.param({"source": NODE}, {POD: GATEWAY, REMOTE: NODE}, id="4.1.6-host-process"),
        pytest.param(
            {"source": CLIENT, "at": host(detector=None)}, {POD: CLIENT, REMOTE: CLIENT}, id="4.1.7"
        ),
        pytest.param(
            {"source": POD2, "at": host(masquerade_all=True)},
            {POD: GATEWAY, REMOTE: NODE},
            id="4.1.1",
        ),
        pytest.param({"source": POD}, {POD: GATEWAY, REMOTE: POD}, id="4.1.5-hairpin"),
        pytest.param({"source": POD2, "to": VIP}, {POD: GATEWAY, REMOTE: NODE}, id="4.1.3-pod-too"),
        pytest.param(
            {"source": GATEWAY},
            {POD: GATEWAY, REMOTE: GATEWAY},
            id="4.2-gateway-is-inside-the-cidr",
        ),
    ],
)
def test_what_the_endpoint_sees(packet: dict[str, Any], expected: dict[str, str]) -> None:
    assert seen(one(CLUSTER_POLICY, BOTH, **packet)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(POD2, {POD: POD2, REMOTE: POD2}, id="rule-1"),
        pytest.param(POD, {POD: GATEWAY, REMOTE: POD}, id="rule-1-hairpin"),
        pytest.param(NODE, {POD: GATEWAY, REMOTE: NODE}, id="4.1.4"),
        pytest.param(CLIENT, {POD: CLIENT}, id="rule-3"),
    ],
)
def test_what_the_endpoint_sees_through_a_local_policy(
    source: str, expected: dict[str, str]
) -> None:
    assert seen(one(LOCAL_POLICY, BOTH, to=VIP, source=source)) == expected


@pytest.mark.parametrize(
    ("detector", "source", "interface", "local_pod"),
    [
        pytest.param(CLUSTER, REMOTE, "eth0", True, id="2.3.9-cluster-cidr-covers-other-nodes"),
        pytest.param(BridgeInterface("cni0"), POD2, "cni0", True, id="bridge"),
        pytest.param(BridgeInterface("cni0"), REMOTE, "eth0", False, id="bridge-other-node"),
        pytest.param(InterfaceNamePrefix("cn"), POD2, "cni0", True, id="prefix"),
        pytest.param(InterfaceNamePrefix("veth"), POD2, "cni0", False, id="prefix-other"),
        pytest.param(InterfaceNamePrefix("cn"), NODE, "", False, id="4.2.1-locally-generated"),
    ],
)
def test_who_is_a_local_pod(
    detector: LocalDetector, source: str, interface: str, *, local_pod: bool
) -> None:
    verdict = one(
        service(),
        slice_of(ELSEWHERE),
        source=source,
        interface=interface,
        at=host(detector=detector),
    )
    assert isinstance(verdict, Served)
    assert [reached.masqueraded for reached in verdict.reached] == [not local_pod]


def test_what_is_delivered_to_the_node_itself_is_not_masqueraded() -> None:
    on_node = slice_of(endpoint(NODE, "node1"))
    assert seen(one(CLUSTER_POLICY, on_node, source=CLIENT)) == {NODE: CLIENT}
    assert seen(one(CLUSTER_POLICY, on_node, source=NODE)) == {NODE: f"{GATEWAY},{NODE}"}


def test_a_remote_endpoint_cannot_hairpin() -> None:
    nowhere = slice_of(endpoint(POD))
    assert seen(one(service(), nowhere)) == {POD: POD}  # 4.4.2
    other = service("other", cluster_ip="10.96.0.11")
    # 4.4.1: any local endpoint
    assert seen(one(service(), nowhere, other, endpoint_slice("other", [HERE]))) == {POD: GATEWAY}


ZONED = [
    endpoint(POD, "node1", zones=["a"]),
    endpoint(POD2, "node1", zones=["b"]),
    endpoint(REMOTE, "node2", zones=["a", "b"]),
]
NODED = [
    endpoint(POD, "node1", nodes=["node1"], zones=["b"]),
    endpoint(REMOTE, "node2", nodes=["node2"], zones=["a"]),
]


@pytest.mark.parametrize(
    ("endpoints", "zone", "expected"),
    [
        pytest.param(ZONED, "a", [POD, REMOTE], id="3.3.3"),
        pytest.param(ZONED, "c", [POD, POD2, REMOTE], id="3.3.4-nobody-for-us"),
        pytest.param(ZONED, "", [POD, POD2, REMOTE], id="3.3.4-no-zone"),
        pytest.param([*ZONED[:2], ELSEWHERE], "a", [POD, POD2, REMOTE], id="3.3.4-one-without"),
        pytest.param([*ZONED[:2], endpoint(REMOTE, ready=False)], "a", [POD], id="3.3.6"),
        pytest.param(NODED, "a", [POD], id="3.3.2-nodes-before-zones"),
        pytest.param(
            [endpoint(POD, ready=False, serving=True, terminating=True, zones=["b"])],
            "a",
            [POD],
            id="3.4.2",
        ),
    ],
)
def test_hints(endpoints: list[dict[str, Any]], zone: str, expected: list[str]) -> None:
    assert addresses(one(service(), slice_of(*endpoints), at=host(zone))) == expected


def test_duplicates() -> None:
    leaving = endpoint(POD, "node1", ready=False, serving=True, terminating=True)
    pieces = [
        endpoint_slice(name=f"s{n}", endpoints=[e]) for n, e in enumerate([leaving, HERE, leaving])
    ]
    assert addresses(one(service(), *pieces)) == [POD]
    # 3.2.2: undefined which one wins
    remote = endpoint_slice(name="s9", endpoints=[endpoint(POD, "node2")])
    readings = judge(INTERNAL_LOCAL, pieces[1], remote)
    assert {verdict if isinstance(verdict, Fate) else "served" for verdict in readings} == {
        "served",
        SILENT,
    }


def test_a_node_port_behind_an_external_ip_is_either() -> None:
    other = service("b", externalIPs=[NODE], port=30080, cluster_ip="10.96.0.11")
    verdicts = judge(other, CLUSTER_POLICY, BOTH, to=NODE, port=30080, source=CLIENT)
    # 2.2.3
    assert sorted(map(str, map(addresses, verdicts))) == sorted(map(str, ([POD, REMOTE], REFUSED)))


def test_the_same_address_with_two_ports_is_two_endpoints() -> None:
    verdict = one(service(), slice_of(HERE), slice_of(HERE, name="other", port=9376))
    assert isinstance(verdict, Served)
    assert verdict.endpoints == {Endpoint(POD, 8080), Endpoint(POD, 9376)}  # 3.2.3, 3.1.4


@pytest.mark.parametrize(
    ("text", "to"),
    [
        pytest.param("203.000.113.001", EXTERNAL, id="leading-zeros"),
        pytest.param("::ffff:203.0.113.1", EXTERNAL, id="ipv4-mapped"),
        pytest.param("FD00:BEEF:0::1", "fd00:beef::1", id="ipv6"),
    ],
)
def test_addresses_are_read_leniently(text: str, to: str) -> None:
    web = service(cluster_ip=[CLUSTER_IP, "fd00:10:96::10"], externalIPs=[text])
    assert one(web, to=to) is REFUSED  # 2.1.5


def test_affinity_is_told() -> None:
    verdict = one(service(sessionAffinity="ClientIP"), BOTH)
    assert isinstance(verdict, Served)
    assert verdict.sticky


def test_prefix_lists_of_node_ports() -> None:
    inside = host(nodeports={Family.IPv4: (parse_network("10.244.0.0/16"),), Family.IPv6: ALL})
    assert addresses(one(CLUSTER_POLICY, BOTH, to=GATEWAY, port=30080, at=inside)) == [POD, REMOTE]
    assert one(CLUSTER_POLICY, BOTH, to=NODE, port=30080, at=inside) is UNTOUCHED
