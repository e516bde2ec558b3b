"""From endpoint lists to elements.

What each kind of frontend is under each policy (contract 2.3, 2.5, 2.7, 4.4).
"""

from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.routes import (
    Affinity,
    Compiled,
    Context,
    Element,
    Frontend,
    Refusal,
    Route,
    Verdict,
    compile_service,
)
from nftproxy.selection import Endpoint, Locality
from nftproxy.table.elements import elements, members, shared, targets
from nftproxy.table.program import Program
from nftproxy.table.schema import NAME_LIMIT, Policy
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.world import settings

CONTEXT = Context(Family.IPv4, Locality("node1", ""), "192.168.50.11")
HERE, THERE = ("10.244.1.2", "node1"), ("10.244.2.2", "node2")
A, B = Endpoint("10.244.1.2", 8080), Endpoint("10.244.2.2", 8080)
ALL_KINDS: dict[str, Any] = {
    "node_port": 30080,
    "vips": ["203.0.113.1"],
    "externalIPs": ["198.51.100.1"],
}
CLUSTER_IP, VIP = Frontend("10.96.0.10", "tcp", 80), Frontend("203.0.113.1", "tcp", 80)
EXTERNAL_IP, NODE_PORT = Frontend("198.51.100.1", "tcp", 80), Frontend("", "tcp", 30080)


def compiled(
    *places: tuple[str, str],
    notes: list[str] | None = None,
    context: Context = CONTEXT,
    **spec: Any,
) -> Compiled:
    slices = [endpoint_slice(endpoints=[endpoint(address, node) for address, node in places])]
    found = compile_service(service(**spec), slices, context, [] if notes is None else notes)
    assert found is not None
    return found


def routes(*places: tuple[str, str], **spec: Any) -> dict[Frontend, Route]:
    return {route.frontend: route for route in compiled(*places, **spec).routes}


def rendered(*places: tuple[str, str], **spec: Any) -> dict[str, dict[Any, str]]:
    """All elements, with verdicts as text."""
    found: dict[str, dict[Any, str]] = {}
    for route in compiled(*places, **spec).routes:
        for where, key, value in elements(route, Family.IPv4):
            found.setdefault(where, {})[key] = (
                str(value) if isinstance(value, Verdict) else ":".join(map(str, value or ()))
            )
    return found


@pytest.mark.contract("2.2", "2.3.5", "2.3.6", "2.3.7")
@pytest.mark.parametrize(
    ("spec", "internal", "external"),
    [
        ({}, Policy.CLUSTER, Policy.EXTERNAL),
        ({"internalTrafficPolicy": "Local"}, Policy.LOCAL, Policy.EXTERNAL),
        ({"externalTrafficPolicy": "Local"}, Policy.CLUSTER, Policy.PRESERVE),
        (
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
            Policy.LOCAL,
            Policy.PRESERVE,
        ),
    ],
    ids=str,
)
def test_every_frontend_has_a_policy(
    spec: dict[str, Any], internal: Policy, external: Policy
) -> None:
    found = routes(HERE, THERE, **ALL_KINDS, **spec)
    assert {frontend: route.policy for frontend, route in found.items()} == {
        CLUSTER_IP: internal,
        VIP: external,
        EXTERNAL_IP: external,
        NODE_PORT: external,
    }


ELEMENTS: dict[str, tuple[dict[str, Any], dict[str, dict[Any, str]]]] = {
    "policy Cluster": (
        {},
        {
            "services4": {
                ("10.96.0.10", "tcp", 80): "goto pick4-tcp-2",
                ("203.0.113.1", "tcp", 80): "goto external4-tcp-2",
            },
            "nodeport_services4": {("tcp", 30080): "goto nodeport-external4-tcp-2"},
            "endpoints4-tcp": {
                ("10.96.0.10", 80, 0): "10.244.1.2:8080",
                ("10.96.0.10", 80, 1): "10.244.2.2:8080",
                ("203.0.113.1", 80, 0): "10.244.1.2:8080",
                ("203.0.113.1", 80, 1): "10.244.2.2:8080",
            },
            "nodeport_endpoints4-tcp": {
                (30080, 0): "10.244.1.2:8080",
                (30080, 1): "10.244.2.2:8080",
            },
        },
    ),
    "both policies Local": (
        {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
        {
            "services4": {
                ("10.96.0.10", "tcp", 80): "goto local4-tcp-1",
                ("203.0.113.1", "tcp", 80): "goto preserve4-tcp-2-1",
            },
            "nodeport_services4": {("tcp", 30080): "goto nodeport-preserve4-tcp-2-1"},
            "endpoints4-tcp": {
                ("203.0.113.1", 80, 0): "10.244.1.2:8080",
                ("203.0.113.1", 80, 1): "10.244.2.2:8080",
            },
            "local_endpoints4-tcp": {
                ("10.96.0.10", 80, 0): "10.244.1.2:8080",
                ("203.0.113.1", 80, 0): "10.244.1.2:8080",
            },
            "nodeport_endpoints4-tcp": {
                (30080, 0): "10.244.1.2:8080",
                (30080, 1): "10.244.2.2:8080",
            },
            "nodeport_local_endpoints4-tcp": {(30080, 0): "10.244.1.2:8080"},
        },
    ),
}


@pytest.mark.contract("5.3.2", "5.3.3")
@pytest.mark.parametrize(("spec", "expected"), ELEMENTS.values(), ids=ELEMENTS)
def test_elements(spec: dict[str, Any], expected: dict[str, dict[Any, str]]) -> None:
    assert rendered(HERE, THERE, node_port=30080, vips=["203.0.113.1"], **spec) == expected


@pytest.mark.contract("5.3.3", "2.3.8", "2.5")
def test_without_a_local_endpoint_an_address_is_served_and_refused() -> None:
    """Needed for pods and the node, who still reach the cluster list."""
    found = rendered(
        THERE, vips=["203.0.113.1"], externalTrafficPolicy="Local", internalTrafficPolicy="Local"
    )
    assert found == {
        "services4": {("203.0.113.1", "tcp", 80): "goto preserve4-tcp-1"},
        "endpoints4-tcp": {("203.0.113.1", 80, 0): "10.244.2.2:8080"},
        "no_endpoints4": {("10.96.0.10", "tcp", 80): "drop", ("203.0.113.1", "tcp", 80): "drop"},
    }


@pytest.mark.contract("2.5", "5.3.3", "5.4.5")
@pytest.mark.parametrize(
    ("places", "spec", "internal", "external"),
    [
        ([], {}, Refusal.REJECT, Refusal.REJECT),
        (
            [],
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
            Refusal.REJECT,
            Refusal.REJECT,
        ),
        ([THERE], {}, Refusal.NONE, Refusal.NONE),
        ([THERE], {"internalTrafficPolicy": "Local"}, Refusal.DROP, Refusal.NONE),
        ([THERE], {"externalTrafficPolicy": "Local"}, Refusal.NONE, Refusal.DROP),
        (
            [HERE],
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
            Refusal.NONE,
            Refusal.NONE,
        ),
    ],
)
def test_refusals(
    places: list[tuple[str, str]], spec: dict[str, Any], internal: Refusal, external: Refusal
) -> None:
    found = routes(*places, **ALL_KINDS, **spec)
    assert found[CLUSTER_IP].refusal is internal
    assert {found[frontend].refusal for frontend in (VIP, EXTERNAL_IP, NODE_PORT)} == {external}


@pytest.mark.contract("2.4.2")
def test_affinity_is_one_for_all_frontends_of_a_port() -> None:
    found = compiled(
        HERE, THERE, sessionAffinity="ClientIP", externalTrafficPolicy="Local", **ALL_KINDS
    )
    (affinity,) = found.affinities
    assert {route.affinity for route in found.routes} == {affinity}
    assert (affinity.cluster, affinity.local) == ((A, B), (A,))
    assert set(members(affinity)) == {
        Element("cluster_members4-default/web/tcp/http", tuple(A)),
        Element("cluster_members4-default/web/tcp/http", tuple(B)),
        Element("local_members4-default/web/tcp/http", tuple(A)),
    }
    found = compiled(HERE, THERE, sessionAffinity="ClientIP", **ALL_KINDS)
    chains = {route.frontend: set(targets(route, Family.IPv4)) for route in found.routes}
    learn = "learn4-10800-8080-default/web/tcp/http"
    assert chains[CLUSTER_IP] == {"sticky-pick4-tcp-2-8080-default/web/tcp/http", learn}
    assert chains[VIP] == {"sticky-external4-tcp-2-8080-default/web/tcp/http", learn}
    assert chains[NODE_PORT] == {"sticky-nodeport-external4-tcp-2-8080-default/web/tcp/http", learn}
    assert set.union(*chains.values()) == set(found.affinities[0].chains)


@pytest.mark.contract("2.4.2")
def test_each_port_has_an_affinity_of_its_own() -> None:
    ports = [
        {"name": "a", "port": 80},
        {"name": "b", "port": 81},
        {"name": "a", "port": 80, "protocol": "UDP"},
    ]
    both = [
        {"name": "a", "port": 1},
        {"name": "b", "port": 2},
        {"name": "a", "port": 3, "protocol": "UDP"},
    ]
    slices = [endpoint_slice(endpoints=[endpoint(*HERE)], ports=both)]
    found = compile_service(service(ports=ports, sessionAffinity="ClientIP"), slices, CONTEXT, [])
    assert found is not None
    names = [affinity.name for affinity in found.affinities]
    assert names == ["default/web/tcp/a", "default/web/tcp/b", "default/web/udp/a"]


def test_without_endpoints_there_is_nothing_to_remember() -> None:
    found = compiled(sessionAffinity="ClientIP", **ALL_KINDS)
    assert found.affinities == ()
    assert {route.affinity for route in found.routes} == {None}


@pytest.mark.contract("5.6.3")
@pytest.mark.parametrize("internal", ["Cluster", "Local"])
@pytest.mark.parametrize("external", ["Cluster", "Local"])
@pytest.mark.parametrize("node_port", [0, 30080], ids=["ClusterIP", "NodePort"])
def test_names_are_bounded_and_differ_all_the_same(
    internal: str, external: str, node_port: int
) -> None:
    """Names of 253 characters, 20 port numbers, a day.

    On names longer than 255, libnftables aborts the process.
    """
    names: list[str] = []
    for last in "ab":
        spec: dict[str, Any] = {
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}},
            "internalTrafficPolicy": internal,
            "externalTrafficPolicy": external,
            "port_name": "p" * 63,
            "node_port": node_port,
        }
        ports = [{"name": "p" * 63, "port": 60000 + number} for number in range(20)]
        slices = [endpoint_slice("web", [endpoint(*HERE)], ports=ports)]
        found = compile_service(service("s" * 252 + last, **spec), slices, CONTEXT, [])
        assert found is not None
        (affinity,) = found.affinities
        assert len(affinity.name) == NAME_LIMIT
        made = Program(settings(families=[Family.IPv4])).affinity(affinity)
        assert {element.where for element in members(affinity)} <= made.keys()
        names += [name for name in made if affinity.name in name]
    assert max(map(len, names)) <= 255
    assert len(set(names)) == len(names)


def test_other_ports_are_another_chain() -> None:
    def chain(*ports: int) -> str:
        return Affinity(
            "n", Family.IPv4, "tcp", 1, tuple(Endpoint("10.0.0.1", port) for port in ports), (), ()
        ).sticky("pick")

    assert chain(*range(60000, 60020)) != chain(*range(60000, 60021))
    assert chain(1, 2) == "sticky-pick-1.2-n"


@pytest.mark.contract("2.7.4", "2.7.6")
@pytest.mark.parametrize(
    ("ranges", "node_ip", "expected"),
    [
        (["198.51.100.0/24"], "192.168.50.11", ["198.51.100.0/24"]),
        (
            ["192.168.50.0/24"],
            "192.168.50.11",
            ["192.168.50.0/24", "203.0.113.1/32", "203.0.113.2/32"],
        ),
        (["192.168.50.0/24"], "", ["192.168.50.0/24"]),
        (
            ["203.0.113.1/32", "192.168.50.11/32"],
            "192.168.50.11",
            ["192.168.50.11/32", "203.0.113.1/32", "203.0.113.2/32"],
        ),
    ],
)
def test_sources(ranges: list[str], node_ip: str, expected: list[str]) -> None:
    """An allowed node may come from its own load-balancer addresses.

    The other kinds of frontends have no filter.
    """
    spec: dict[str, Any] = {
        **ALL_KINDS,
        "vips": ["203.0.113.1", "203.0.113.2"],
        "loadBalancerSourceRanges": ranges,
    }
    context = CONTEXT._replace(node_ip=node_ip)
    found = {
        route.frontend: route.sources for route in compiled(HERE, context=context, **spec).routes
    }
    networks = tuple(sorted(map(parse_network, expected)))
    assert found == {
        CLUSTER_IP: None,
        VIP: networks,
        Frontend("203.0.113.2", "tcp", 80): networks,
        EXTERNAL_IP: None,
        NODE_PORT: None,
    }


def test_one_set_of_sources_for_each_prefix_length() -> None:
    found = rendered(
        vips=["203.0.113.1"],
        loadBalancerSourceRanges=["10.0.0.0/8", "192.0.2.0/24", "198.51.100.0/24"],
    )
    key = ("203.0.113.1", "tcp", 80)
    assert found["firewall4"] == {key: "goto allowed4"}
    assert set(found["allowed4-8"]) == {(*key, "10.0.0.0")}
    assert set(found["allowed4-24"]) == {(*key, "192.0.2.0"), (*key, "198.51.100.0")}


@pytest.mark.contract("2.2.3")
def test_an_address_twice_in_one_service_is_one_frontend() -> None:
    """What has source ranges keeps them.

    A ClusterIP that is an external address as well stays what it is.
    """
    found = routes(
        HERE,
        vips=["203.0.113.1", "10.96.0.10"],
        externalIPs=["203.0.113.1"],
        loadBalancerSourceRanges=["10.0.0.0/8"],
    )
    assert found[VIP].sources is not None
    assert found[CLUSTER_IP].policy is Policy.CLUSTER
    assert len(found) == 2


@pytest.mark.contract("4.4.1", "4.4.2", "3.4.8")
@pytest.mark.parametrize("spec", [{}, {"internalTrafficPolicy": "Local"}])
def test_hairpins_are_of_endpoints_here(spec: dict[str, Any]) -> None:
    found = compiled(HERE, THERE, **spec)
    assert set(shared(found, Family.IPv4)) == {
        Element("cluster_ips4", ("10.96.0.10",)),
        Element("hairpin4", ("10.244.1.2", "10.244.1.2", "tcp", 8080)),
    }


@pytest.mark.contract("5.3.1")
@pytest.mark.parametrize(
    ("port_name", "expected"),
    [("http", "default/web:http"), ("", "default/web"), (None, "default/web")],
)
def test_comments(port_name: str | None, expected: str) -> None:
    (route,) = compiled(port_name=port_name).routes
    (element,) = elements(route, Family.IPv4)
    assert element.value == Verdict("goto", "reject-new", expected)


def test_a_long_comment_is_one_the_kernel_keeps() -> None:
    name = "s" * 120
    found = compile_service(service(name), [], CONTEXT, [])
    assert found is not None
    (route,) = found.routes
    assert len(route.name) < 128
    assert route.name.startswith(f"default/{name[:100]}")


def test_all_protocols_and_families() -> None:
    for family, address in ((Family.IPv4, "10.96.0.10"), (Family.IPv6, "fd00::10")):
        for protocol in ("TCP", "UDP", "SCTP"):
            pod = "10.244.1.2" if family is Family.IPv4 else "fd00:244::2"
            slices = [endpoint_slice(endpoints=[endpoint(pod)], family=family, protocol=protocol)]
            context = CONTEXT._replace(family=family)
            found = compile_service(
                service(cluster_ip=address, protocol=protocol), slices, context, []
            )
            assert found is not None
            (verdict, slot) = elements(found.routes[0], family)
            kind = f"{family.digit}-{protocol.lower()}"
            assert verdict == (
                f"services{family.digit}",
                (address, protocol.lower(), 80),
                ("goto", f"pick{kind}-1", "default/web:http"),
            )
            assert slot == (f"endpoints{kind}", (address, 80, 0), (pod, 8080))


def test_printing() -> None:
    """As people read them in logs."""
    assert str(CLUSTER_IP) == "10.96.0.10:80/tcp"
    assert str(NODE_PORT) == "*:30080/tcp"
    assert str(Frontend("fd00::1", "udp", 53)) == "[fd00::1]:53/udp"
    assert str(Endpoint("fd00::1", 80)) == "[fd00::1]:80"
