"""What a Service and its slices mean for one family on one node (contract 2.1 to 2.4, 2.7, 3)."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.model import EndpointSlice, Service
from nftproxy.selection import Endpoint, Lists, Locality, View, lists, local_ready, refusal, view
from tests.support.objects import endpoint, endpoint_slice, service

HERE = Locality("node1", "east")
V4, V6 = Family.IPv4, Family.IPv6
UNSPECIFIED = ".".join("0000")


def seen(item: Service, family: Family = V4, **options: Any) -> View:
    found = view(item, family, [], **options)
    assert found is not None
    return found


# --- which services there are (2.1) ---------------------------------------------------------------


@pytest.mark.contract("2.1.1", "2.1.3")
@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": ""},
        {"clusterIP": None},
        {"clusterIP": "None"},
        {"type": "ExternalName"},
        {"ports": []},
        {"ports": None},
        {"clusterIP": "nonsense"},
        {"clusterIP": "127.0.0.1", "clusterIPs": ["127.0.0.1"]},
    ],
    ids=str,
)
def test_services_that_are_none(spec: dict[str, Any]) -> None:
    base = {"clusterIPs": None, "ipFamilies": None}
    assert view(service(**{**base, **spec}), V4, []) is None


def addressed(cluster_ip: str, cluster_ips: list[str] | None, *families: str) -> dict[str, Any]:
    return {"clusterIP": cluster_ip, "clusterIPs": cluster_ips, "ipFamilies": list(families)}


BOTH = ["10.96.0.1", "fd00::1"]
FAMILIES: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "no families": (addressed("10.96.0.1", None), "10.96.0.1", None),
    "no families, IPv6": (addressed("fd00::1", []), None, "fd00::1"),
    "no families, two addresses": (addressed("10.96.0.1", BOTH), "10.96.0.1", None),
    "dual": (addressed("10.96.0.1", BOTH, "IPv4", "IPv6"), "10.96.0.1", "fd00::1"),
    "dual, IPv6 first": (addressed("fd00::1", BOTH[::-1], "IPv6", "IPv4"), "10.96.0.1", "fd00::1"),
    "fewer addresses": (addressed("10.96.0.1", BOTH[:1], "IPv4", "IPv6"), "10.96.0.1", None),
    "fewer families": (addressed("10.96.0.1", BOTH, "IPv4"), "10.96.0.1", None),
    "wrong family at the index": (addressed("10.96.0.1", BOTH[1:], "IPv4"), None, None),
}


@pytest.mark.contract("2.1.2")
@pytest.mark.parametrize(("spec", "ipv4", "ipv6"), FAMILIES.values(), ids=FAMILIES)
def test_the_cluster_ip_of_a_family(
    spec: dict[str, Any], ipv4: str | None, ipv6: str | None
) -> None:
    found = {family: view(service(**spec), family, []) for family in Family}
    assert {family: each and each.cluster_ip for family, each in found.items()} == {
        V4: ipv4,
        V6: ipv6,
    }


@pytest.mark.contract("2.1.5")
def test_addresses_are_canonical() -> None:
    item = service(
        cluster_ip="010.020.003.004",
        externalIPs=["192.0.2.001", "::ffff:192.0.2.1", "FD00:0::1"],
        vips=["192.0.02.3", "fd00:0:0::02"],
        loadBalancerSourceRanges=["192.0.2.000/024", "10.1.2.3/8"],
    )
    found = seen(item)
    assert (found.cluster_ip, found.external_ips, found.vips) == (
        "10.20.3.4",
        ("192.0.2.1",),
        ("192.0.2.3",),
    )
    assert found.ranges == (parse_network("10.0.0.0/8"), parse_network("192.0.2.0/24"))


@pytest.mark.contract("2.1.6", "2.7.8", "3.3.7")
def test_fields_that_are_not_read() -> None:
    """They are not even decoded."""
    unread: dict[str, Any] = {
        "loadBalancerIP": "203.0.113.1",
        "loadBalancerClass": "x",
        "selector": {"app": "x"},
        "trafficDistribution": "PreferClose",
        "publishNotReadyAddresses": True,
    }
    with_them = service(**unread)
    document = msgspec.to_builtins(with_them)
    document["metadata"]["annotations"] = {
        "service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"
    }
    document["spec"]["ports"][0]["targetPort"] = 1234
    assert (
        msgspec.to_builtins(msgspec.convert(document, Service))["spec"]
        == msgspec.to_builtins(service())["spec"]
    )
    assert view(msgspec.convert(document, Service), V4, []) == view(service(), V4, [])


# --- addresses and policies (2.2, 2.3) ------------------------------------------------------------


@pytest.mark.contract("2.2")
def test_external_ips_and_load_balancer_addresses() -> None:
    notes: list[str] = []
    document = msgspec.to_builtins(
        service(externalIPs=["198.51.100.1", "", " ", "fd00::9", "nonsense", "198.51.100.1"])
    )
    document["status"] = {
        "loadBalancer": {
            "ingress": [
                {"ip": "203.0.113.1"},
                {"ip": "203.0.113.2", "ipMode": "VIP"},
                {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "lb.example"},
                {"ip": ""},
                {"ip": "fd00::3"},
            ]
        }
    }
    found = view(msgspec.convert(document, Service), V4, notes)
    assert found is not None
    assert found.external_ips == ("198.51.100.1",)
    assert found.vips == ("203.0.113.1", "203.0.113.2")
    assert len(notes) == 1
    assert "nonsense" in notes[0]


@pytest.mark.contract("2.2")
def test_without_the_gate() -> None:
    assert seen(service(externalIPs=["198.51.100.1"]), external_ips=False).external_ips == ()


@pytest.mark.contract("2.2.1")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, False),
        ({"node_port": 30080}, True),
        ({"externalIPs": ["198.51.100.1"]}, True),
        ({"vips": ["203.0.113.1"]}, True),
        ({"externalIPs": ["fd00::1"]}, False),
        ({"vips": ["fd00::1"]}, False),
    ],
    ids=str,
)
def test_externally_accessible(spec: dict[str, Any], expected: bool) -> None:
    item = service(**spec)
    assert item.spec.ports
    assert seen(item).externally_accessible(item.spec.ports[0]) == expected


@pytest.mark.contract("2.3.1", "2.3.2")
@pytest.mark.parametrize(
    ("spec", "internal", "external"),
    [
        ({}, False, False),
        ({"internalTrafficPolicy": "Local"}, True, False),
        ({"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local"}, False, False),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, False, True),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, False, True),
        (
            {
                "type": "ClusterIP",
                "externalTrafficPolicy": "Local",
                "externalIPs": ["198.51.100.1"],
            },
            False,
            True,
        ),
        (
            {"type": "ClusterIP", "externalTrafficPolicy": "Local", "externalIPs": ["fd00::1"]},
            False,
            True,
        ),
        (
            {"type": "ClusterIP", "externalTrafficPolicy": "Local", "vips": ["203.0.113.1"]},
            False,
            False,
        ),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}, False, False),
    ],
    ids=str,
)
def test_policies(spec: dict[str, Any], internal: bool, external: bool) -> None:
    found = seen(service(**spec))
    assert (found.internal_local, found.external_local) == (internal, external)


@pytest.mark.contract("2.4.1")
@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, None),
        (
            {
                "sessionAffinity": "None",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
            },
            None,
        ),
        ({"sessionAffinity": "ClientIP"}, 10800),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
            },
            5,
        ),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}}, 10800),
    ],
    ids=str,
)
def test_affinity(spec: dict[str, Any], seconds: int | None) -> None:
    assert seen(service(**spec)).affinity_seconds == seconds


@pytest.mark.contract("2.7.1", "2.7.2", "2.7.3")
@pytest.mark.parametrize(
    ("ranges", "ipv4", "ipv6", "notes"),
    [
        ([], None, None, 0),
        (["10.0.0.0/8"], ["10.0.0.0/8"], None, 0),
        (["fd00::/64"], None, ["fd00::/64"], 0),
        (["10.0.0.0/8", "0.0.0.0/0", "fd00::/64"], None, ["fd00::/64"], 0),
        (["10.0.0.0/8", "fd00::/64", "::/0"], ["10.0.0.0/8"], None, 0),
        ([" 010.0.0.0/08\t"], ["10.0.0.0/8"], None, 0),
        (["", " "], None, None, 0),
        (["x", "10.0.0.0", "10.0.0.0/33"], None, None, 3),
        (["x", "10.0.0.0/8"], ["10.0.0.0/8"], None, 1),
        (["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"], ["10.0.0.0/8", "10.1.0.0/16"], None, 0),
        (["::ffff:10.0.0.0/104"], ["10.0.0.0/8"], None, 0),
    ],
    ids=str,
)
def test_source_ranges(
    ranges: list[str], ipv4: list[str] | None, ipv6: list[str] | None, notes: int
) -> None:
    item = service(cluster_ip=["10.96.0.1", "fd00::1"], loadBalancerSourceRanges=ranges)
    for family, expected in ((V4, ipv4), (V6, ipv6)):
        told: list[str] = []
        found = view(item, family, told)
        assert found is not None
        assert found.ranges == (None if expected is None else tuple(map(parse_network, expected)))
        assert len(told) == notes


# --- reading slices (3.1, 3.2) --------------------------------------------------------------------


def chosen(
    slices: EndpointSlice | Iterable[EndpointSlice],
    item: Service | None = None,
    family: Family = V4,
    *,
    notes: list[str] | None = None,
    here: Locality = HERE,
) -> Lists:
    item = item or service()
    assert item.spec.ports
    slices = [slices] if isinstance(slices, EndpointSlice) else slices
    return lists(
        seen(item, family), item.spec.ports[0], slices, family, here, [] if notes is None else notes
    )


def cluster(*arguments: Any, **options: Any) -> list[str]:
    return [str(each) for each in chosen(*arguments, **options).cluster]


def raw_slice(**fields: Any) -> EndpointSlice:
    """A slice of `web` whose document is changed as told."""
    document = msgspec.to_builtins(endpoint_slice(endpoints=[endpoint("10.244.1.2")]))
    return msgspec.convert({**document, **fields}, EndpointSlice)


@pytest.mark.contract("3.1.2")
@pytest.mark.parametrize(
    ("kind", "told"),
    [("IPv6", []), ("FQDN", ["EndpointSlice web-ipv4: addressType FQDN; ignored"])],
)
def test_slices_of_another_address_type(kind: str, told: list[str]) -> None:
    """Another family's are none of ours; those of names are said to be ignored."""
    notes: list[str] = []
    assert cluster(raw_slice(addressType=kind), notes=notes) == []
    assert notes == told


@pytest.mark.contract("3.1.3", "3.1.4", "2.1.4")
@pytest.mark.parametrize(
    ("port_name", "ports", "numbers"),
    [
        ("http", [{"name": "http", "port": 8080}], [8080]),
        ("http", [{"name": "http", "port": 8080, "protocol": "TCP"}], [8080]),
        ("http", [{"name": "http", "port": 8080, "protocol": "UDP"}], []),
        ("http", [{"name": "other", "port": 80}], []),
        ("http", [{"port": 8080}], []),
        ("http", [{"name": None, "port": 8080}], []),
        ("http", [{"name": "http"}], []),
        ("http", [{"name": "http", "port": None}], []),
        ("http", [{"name": "http", "port": 0}], []),
        ("", [{"name": "", "port": 8080}], [8080]),
        (None, [{"name": "", "port": 8080}], [8080]),
        ("", [{"port": 8080}], []),
        ("http", [{"name": "http", "port": 8080}, {"name": "http", "port": 9090}], [8080, 9090]),
        ("http", [], []),
        ("http", None, []),
    ],
    ids=str,
)
def test_slice_ports(
    port_name: str | None, ports: list[dict[str, Any]] | None, numbers: list[int]
) -> None:
    found = chosen(raw_slice(ports=ports), service(port_name=port_name))
    assert [each.port for each in found.cluster] == numbers


@pytest.mark.contract("3.1.5")
def test_only_the_first_address_counts() -> None:
    notes: list[str] = []
    piece = raw_slice(
        endpoints=[{"addresses": ["10.244.1.2", "10.244.1.3"]}, {"addresses": []}, {}]
    )
    assert cluster(piece, notes=notes) == ["10.244.1.2:8080"]
    assert len(notes) == 2
    assert all("without addresses" in note for note in notes)


@pytest.mark.contract("3.1.5", "2.1.5")
@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "",
        "fd00::1",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        UNSPECIFIED,
        "255.255.255.255",
        "10.0.0.256",
    ],
)
def test_impossible_addresses_are_named_and_left_out(text: str) -> None:
    notes: list[str] = []
    assert cluster(
        raw_slice(endpoints=[{"addresses": [text]}, {"addresses": ["10.244.1.2"]}]), notes=notes
    ) == ["10.244.1.2:8080"]
    assert len(notes) == 1
    assert "web-ipv4" in notes[0]


@pytest.mark.contract("3.1.6", "3.4.1", "3.4.2", "3.4.7")
@pytest.mark.parametrize("ready", [True, False, None])
@pytest.mark.parametrize("serving", [True, False, None])
@pytest.mark.parametrize("terminating", [True, False, None])
@pytest.mark.parametrize("another_ready", [True, False])
def test_conditions(
    ready: bool | None, serving: bool | None, terminating: bool | None, another_ready: bool
) -> None:
    """Every combination, beside an endpoint that is ready and without one."""
    one = endpoint("10.244.1.2", "node1", ready=ready, serving=serving, terminating=terminating)
    others = [endpoint("10.244.2.2", "node2")] if another_ready else []
    found = chosen(
        endpoint_slice(endpoints=[one, *others]),
        service(internalTrafficPolicy="Local", node_port=30080),
    )
    is_ready = ready is not False
    drains = not is_ready and serving is not False and terminating is True
    mine = Endpoint("10.244.1.2", 8080)
    assert (mine in found.cluster) == (is_ready or (drains and not another_ready))
    assert (mine in found.local) == (is_ready or drains)
    assert found.usable_anywhere == (is_ready or drains or another_ready)
    assert (mine in found.here) == (mine in found.cluster or mine in found.local)


@pytest.mark.contract("3.1.7", "3.4.3")
@pytest.mark.parametrize(
    ("name", "local"),
    [("node1", True), ("", False), ("node", False), ("node10", False), ("NODE1", False)],
)
def test_local(name: str, local: bool) -> None:
    found = chosen(
        endpoint_slice(endpoints=[endpoint("10.244.1.2", name)]),
        service(internalTrafficPolicy="Local"),
    )
    assert bool(found.local) == local


@pytest.mark.contract("3.1.7")
def test_a_host_name_is_not_a_node_name() -> None:
    piece = raw_slice(endpoints=[{"addresses": ["10.244.1.2"], "hostname": "node1"}])
    assert chosen(piece, service(internalTrafficPolicy="Local")).local == ()


@pytest.mark.contract("3.2.1", "3.2.3", "3.2.4")
def test_merging_and_order() -> None:
    """By text, so .10 comes before .2, whatever the order of slices."""
    one = endpoint_slice(endpoints=[endpoint("10.9.8.2"), endpoint("10.9.8.10")], name="b")
    two = endpoint_slice(endpoints=[endpoint("10.9.8.2"), endpoint("10.9.8.1")], name="a", port=90)
    three = endpoint_slice(endpoints=[endpoint("10.9.8.1"), endpoint("10.9.8.2")], name="c")
    expected = ["10.9.8.10:8080", "10.9.8.1:8080", "10.9.8.1:90", "10.9.8.2:8080", "10.9.8.2:90"]
    assert cluster([one, two, three]) == expected
    assert cluster([three, two, one]) == expected


@pytest.mark.contract("3.2.2")
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_duplicates(names: tuple[str, str]) -> None:
    """A terminating one never takes the place of another; a non-terminating one always does."""
    live = endpoint_slice(endpoints=[endpoint("10.9.8.1", "node1")], name=names[0])
    ending = endpoint_slice(
        endpoints=[endpoint("10.9.8.1", "node2", ready=False, terminating=True)], name=names[1]
    )
    found = chosen([live, ending], service(internalTrafficPolicy="Local", node_port=30080))
    assert len(found.cluster) == len(found.local) == 1


@pytest.mark.contract("3.2.2")
def test_of_two_live_duplicates_always_the_same_wins() -> None:
    near = endpoint_slice(endpoints=[endpoint("10.9.8.1", "node1")], name="a")
    far = endpoint_slice(endpoints=[endpoint("10.9.8.1", "node2")], name="b")
    item = service(internalTrafficPolicy="Local")
    assert chosen([near, far], item) == chosen([far, near], item)


# --- lists (3.3, 3.4) -----------------------------------------------------------------------------


@pytest.mark.contract("2.3.3", "2.3.4")
@pytest.mark.parametrize(
    ("spec", "uses_cluster", "uses_local"),
    [
        ({}, True, False),
        ({"internalTrafficPolicy": "Local"}, False, True),
        ({"internalTrafficPolicy": "Local", "node_port": 30080}, True, True),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, True, False),
        (
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "vips": ["203.0.113.1"]},
            True,
            True,
        ),
        ({"node_port": 30080, "externalTrafficPolicy": "Local"}, True, True),
    ],
    ids=str,
)
def test_which_lists_are_used(spec: dict[str, Any], uses_cluster: bool, uses_local: bool) -> None:
    found = chosen(endpoint_slice(endpoints=[endpoint("10.244.1.2", "node1")]), service(**spec))
    assert (bool(found.cluster), bool(found.local)) == (uses_cluster, uses_local)


def hinted(
    address: str, zones: Iterable[str] = (), nodes: Iterable[str] = (), **more: Any
) -> dict[str, Any]:
    more |= {key: names for key, names in (("zones", zones), ("nodes", nodes)) if names}
    return endpoint(address, **more)


@pytest.mark.contract("3.3.2", "3.3.3", "3.3.4")
@pytest.mark.parametrize(
    ("node", "zone"),
    [("node1", "east"), ("node1", ""), ("node9", "east"), ("node9", "far"), ("node9", "")],
)
def test_topology(node: str, zone: str) -> None:
    """Node hints first, then zone hints, then everybody."""
    endpoints = [
        hinted("10.9.8.1", ["east"], ["node1", "node2"]),
        hinted("10.9.8.2", ["west", "east"], ["node2"]),
    ]
    expected = ["10.9.8.1:8080"] if node == "node1" else ["10.9.8.1:8080", "10.9.8.2:8080"]
    assert cluster(endpoint_slice(endpoints=endpoints), here=Locality(node, zone)) == expected


@pytest.mark.contract("3.3.4")
def test_an_empty_zone_is_no_zone() -> None:
    """Even if a hint names it."""
    endpoints = [hinted("10.9.8.1", [""]), hinted("10.9.8.2", ["east"])]
    assert len(cluster(endpoint_slice(endpoints=endpoints), here=Locality("node1", ""))) == 2


@pytest.mark.contract("3.4.6")
@pytest.mark.parametrize(
    ("spec", "endpoints", "expected"),
    [
        ({}, [], False),
        ({"internalTrafficPolicy": "Local"}, [endpoint("10.9.8.1", "node2")], True),
        (
            {"internalTrafficPolicy": "Local"},
            [endpoint("10.9.8.1", "node2", ready=False, terminating=True)],
            True,
        ),
        (
            {"internalTrafficPolicy": "Local"},
            [endpoint("10.9.8.1", "node2", ready=False, serving=True)],
            False,
        ),
        ({"internalTrafficPolicy": "Local"}, [], False),
    ],
)
def test_usable_anywhere(
    spec: dict[str, Any], endpoints: list[dict[str, Any]], expected: bool
) -> None:
    assert chosen(endpoint_slice(endpoints=endpoints), service(**spec)).usable_anywhere == expected


@pytest.mark.contract("3.5.1")
def test_local_ready_counts_addresses_over_all_ports() -> None:
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    item = service(ports=ports)
    endpoints = [
        endpoint("10.9.8.1", "node1"),
        endpoint("10.9.8.2", "node1", ready=False, serving=True, terminating=True),
        endpoint("10.9.8.3", "node2"),
    ]
    one = endpoint_slice(
        endpoints=endpoints, ports=[{"name": "a", "port": 1}, {"name": "b", "port": 2}], name="one"
    )
    two = endpoint_slice(
        endpoints=[endpoint("10.9.8.4", "node1")], port=3, port_name="b", name="two"
    )
    three = endpoint_slice(
        endpoints=[endpoint("10.9.8.5", "node1")], port=3, port_name="nobody", name="three"
    )
    assert local_ready(item, [one, two, three], V4, "node1") == {"10.9.8.1", "10.9.8.4"}


conditions = st.sampled_from([True, False, None])
endpoints = st.builds(
    lambda address, node, ready, serving, terminating: endpoint(
        address, node, ready=ready, serving=serving, terminating=terminating
    ),
    st.sampled_from([f"10.244.{n}.{p}" for n in (1, 2) for p in (2, 3, 4)]),
    st.sampled_from(["node1", "node2", ""]),
    conditions,
    conditions,
    conditions,
)
slices = st.lists(
    st.builds(
        lambda ends, name, port: endpoint_slice(endpoints=ends, name=name, port=port),
        st.lists(endpoints, max_size=5),
        st.text("abc", min_size=1, max_size=3),
        st.sampled_from([8080, 9376]),
    ),
    max_size=4,
    unique_by=lambda piece: piece.metadata.name,
)


@pytest.mark.contract("3.2.1", "3.2.2", "3.4.5", "3.4.8")
@given(pieces=slices, shuffled=st.randoms(use_true_random=False))
def test_lists_do_not_depend_on_the_order_of_slices(
    pieces: list[EndpointSlice], shuffled: Any
) -> None:
    item = service(internalTrafficPolicy="Local", externalTrafficPolicy="Local", node_port=30080)
    found = chosen(pieces, item)
    other = list(pieces)
    shuffled.shuffle(other)
    assert chosen(other, item) == found
    assert len(set(found.cluster)) == len(found.cluster)
    assert set(found.here) >= set(found.local)
    assert set(found.here) <= {*found.cluster, *found.local}
    assert list(found.cluster) == sorted(found.cluster, key=str)


# --- addresses that nothing can have --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1", ""),
        ("1.0.0.1", ""),
        ("223.255.255.255", ""),
        ("169.253.0.1", ""),
        (UNSPECIFIED, "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("169.254.0.1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.1.2.3", "multicast"),
        ("255.255.255.255", "reserved"),
        ("fd00::1", ""),
        ("2001:db8::1", ""),
        ("::2", ""),
        ("f::1", ""),
        ("fe00::1", ""),
        ("fec0::1", ""),
        ("ff::1", ""),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("ff02::1", "multicast"),
        ("ff00::", "multicast"),
        ("::ffff:127.0.0.1", "loopback"),
    ],
)
def test_refusal(text: str, reason: str) -> None:
    found = refusal(parse_address(text))
    assert reason in found
    assert bool(found) == bool(reason)
