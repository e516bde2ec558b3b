"""`show`: from the elements in the table back to services, and the figures of real connections."""

import json
import os
import pty
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import Family
from nftproxy.kernel.reader import Counted
from nftproxy.kernel.snapshot import AddressKind, Shown, ShownServicePort, services
from nftproxy.lab import namespace
from nftproxy.lab.client import Refused, Silent
from nftproxy.model import Scheduler, Service
from nftproxy.routes import Compiled, Context, Element, Refusal, Route, compile_service
from nftproxy.selection import Locality
from nftproxy.table.elements import elements, members, shared
from tests.support.objects import annotated, endpoint, endpoint_slice, service
from tests.support.process import NFTPROXY, network, nftproxy
from tests.support.world import VIP, World

HERE = Locality("node1", "")


def table(
    *compiled: Compiled, counts: dict[tuple[str, str], int] | None = None
) -> dict[str, list[Counted]]:
    """The elements of services as the kernel would return them; `counts` by map and key as text."""
    found: dict[str, list[Counted]] = {}
    for one in compiled:
        parts: Iterable[Element] = [
            *shared(one, Family.IPv4),
            *(element for route in one.routes for element in elements(route, Family.IPv4)),
            *(element for affinity in one.affinities for element in members(affinity)),
        ]
        for element in parts:
            packets = (counts or {}).get((element.where, " . ".join(map(str, element.key))), 0)
            found.setdefault(element.where, []).append(Counted(element, packets))
    return found


def compiled(item: Service, *addresses: tuple[str, str]) -> Compiled:
    piece = endpoint_slice(endpoints=[endpoint(address, node) for address, node in addresses])
    done = compile_service(item, [piece], Context(Family.IPv4, HERE, "192.168.50.11"), [])
    assert done
    return done


def only(ports: tuple[ShownServicePort, ...], frontend: str) -> Shown:
    return next(
        shown for port in ports for shown in port.frontends if str(shown.frontend) == frontend
    )


@given(
    external_local=st.booleans(),
    internal_local=st.booleans(),
    affinity=st.booleans(),
    ranges=st.booleans(),
    here=st.integers(0, 3),
    elsewhere=st.integers(0, 3),
)
def test_what_was_compiled_is_what_is_shown(
    *,
    external_local: bool,
    internal_local: bool,
    affinity: bool,
    ranges: bool,
    here: int,
    elsewhere: int,
) -> None:
    item = service(
        node_port=30080,
        vips=["203.0.113.1"],
        externalIPs=["198.51.100.1"],
        externalTrafficPolicy="Local" if external_local else "Cluster",
        internalTrafficPolicy="Local" if internal_local else "Cluster",
        sessionAffinity="ClientIP" if affinity else "None",
        loadBalancerSourceRanges=["10.0.0.0/8", "192.168.50.0/24"] if ranges else [],
    )
    pods = [(f"10.244.1.{n}", "node1") for n in range(here)] + [
        (f"10.244.2.{n}", "node2") for n in range(elsewhere)
    ]
    done = compiled(item, *pods)
    (port,) = services(table(done))
    assert port.name == "default/web:http"
    shown = {one.frontend: one for one in port.frontends}
    assert shown.keys() == {route.frontend for route in done.routes}
    for route in done.routes:
        check(shown[route.frontend], route)


def check(one: Shown, route: Route) -> None:
    assert tuple(listed.endpoint for listed in one.cluster) == route.cluster
    assert tuple(listed.endpoint for listed in one.local) == route.local
    refusals = {Refusal.NONE: None, Refusal.REJECT: "reject", Refusal.DROP: "drop"}
    assert (one.refused.verdict if one.refused else None) == refusals[route.refusal]
    assert one.policy is (None if route.refusal is Refusal.REJECT else route.policy)
    assert (one.affinity.timeout_seconds if one.affinity else None) == (
        10800 if route.affinity else None
    )
    assert (None if one.sources is None else set(one.sources)) == (
        None if route.sources is None else {str(n) for n in route.sources}
    )
    kinds = {
        "10.96.0.10": AddressKind.CLUSTER_IP,
        "": AddressKind.NODE_PORT,
        "198.51.100.1": AddressKind.EXTERNAL,
    }
    assert one.kind is kinds.get(
        one.address, AddressKind.EXTERNAL if route.sources is None else AddressKind.LOAD_BALANCER
    )


def test_an_endpoint_with_many_slots_is_shown_once() -> None:
    """With the connections of all of them."""
    item = annotated(service(node_port=30080), scheduler="maglev")
    done = compiled(item, ("10.244.1.2", "node1"), ("10.244.2.2", "node2"))
    first, second = (
        [n for n, e in enumerate(done.routes[0].cluster) if e.address == address][:2]
        for address in ("10.244.1.2", "10.244.2.2")
    )
    counts = {("endpoints4-tcp", f"10.96.0.10 . 80 . {n}"): 3 for n in (*first, second[0])}
    shown = only(services(table(done, counts=counts)), "10.96.0.10:80/tcp")
    assert shown.scheduler is Scheduler.MAGLEV
    assert {str(one.endpoint): one.connections for one in shown.cluster} == {
        "10.244.1.2:8080": 6,
        "10.244.2.2:8080": 3,
    }
    assert sum(one.slots for one in shown.cluster) == 2048
    assert only(services(table(done)), "*:30080/tcp").scheduler is Scheduler.MAGLEV


def test_a_connection_is_counted_once_however_many_look_ups_it_takes() -> None:
    item = service(
        node_port=30080,
        externalIPs=["198.51.100.1"],
        externalTrafficPolicy="Local",
        sessionAffinity="ClientIP",
        type="NodePort",
    )
    done = compiled(item, ("10.244.1.2", "node1"), ("10.244.2.2", "node2"))
    key = "198.51.100.1 . tcp . 80"
    counts = {
        ("services4", key): 10,  # all
        ("new_clients4", key): 6,  # four were known and sent on
        ("local_endpoints4-tcp", "198.51.100.1 . 80 . 0"): 5,
        ("endpoints4-tcp", "198.51.100.1 . 80 . 1"): 1,
        ("nodeport_new_clients4", "tcp . 30080"): 3,
    }
    ports = services(table(done, counts=counts))
    one = only(ports, "198.51.100.1:80/tcp")
    assert one.connections == 10
    assert [listed.connections for listed in one.cluster] == [0, 1]
    assert [listed.connections for listed in one.local] == [5]
    assert only(ports, "*:30080/tcp").connections == 0


def test_remembered_clients_by_endpoint() -> None:
    done = compiled(
        service(sessionAffinity="ClientIP"), ("10.244.1.2", "node1"), ("10.244.2.2", "node2")
    )
    found = table(done)
    memory = "affinity4-default/web/tcp/http-8080"
    found[memory] = [
        Counted(Element(memory, (f"10.0.0.{n}",), f"10.244.{1 + n % 2}.2"), 0) for n in range(5)
    ]
    affinity = only(services(found), "10.96.0.10:80/tcp").affinity
    assert affinity
    assert affinity.clients == {"10.244.1.2:8080": 3, "10.244.2.2:8080": 2}


def test_remembered_clients_of_a_service_whose_ports_share_a_memory() -> None:
    done = compiled(
        service(sessionAffinity="ClientIP", annotations={"nftproxy.io/affinity-scope": "service"}),
        ("10.244.1.2", "node1"),
        ("10.244.2.2", "node2"),
    )
    found = table(done)
    memory = "service_affinity4-default/web-8080"
    found[memory] = [
        Counted(Element(memory, (f"10.0.0.{n}",), f"10.244.{1 + n % 2}.2"), 0) for n in range(5)
    ]
    shown = only(services(found), "10.96.0.10:80/tcp")
    assert shown.affinity
    assert shown.affinity.shared
    assert shown.affinity.clients == {"10.244.1.2:8080": 3, "10.244.2.2:8080": 2}


def test_what_is_left_of_a_frontend_between_two_transactions_is_no_service() -> None:
    slot = Element("endpoints4-tcp", ("10.96.0.10", 80, 0), ("10.244.1.2", 8080))
    assert services({"endpoints4-tcp": [Counted(slot, 0)]}) == ()


def test_order_is_that_of_people() -> None:
    many = [
        service("b", "10.96.0.9"),
        service("a", "10.96.0.10", node_port=30080, externalIPs=["9.9.9.9", "100.9.9.9"]),
    ]
    ports = services(table(*(compiled(item) for item in many)))
    assert [port.name for port in ports] == ["default/a:http", "default/b:http"]
    assert [str(one.frontend) for one in ports[0].frontends] == [
        "10.96.0.10:80/tcp",
        "9.9.9.9:80/tcp",
        "100.9.9.9:80/tcp",
        "*:30080/tcp",
    ]


# --- with packets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        pods = ("pod1-1", "pod1-2", "pod2-1")
        vips = [VIP[Family.IPv4]]
        world.apply(
            service("web", "10.96.0.10"),
            world.endpoints(*pods, of="web"),
            service("cart", "10.96.0.11", sessionAffinity="ClientIP"),
            world.endpoints(*pods, of="cart"),
            service(
                "mail",
                "10.96.0.12",
                25,
                port_name="smtp",
                node_port=30025,
                vips=vips,
                externalTrafficPolicy="Local",
            ),
            world.endpoints("pod2-1", of="mail", port_name="smtp"),
            service("none", "10.96.0.13"),
            service(
                "kept",
                "10.96.0.14",
                vips=["203.0.113.14"],
                loadBalancerSourceRanges=["198.51.100.0/24"],
            ),
            world.endpoints("pod1-1", of="kept"),
        )
        for _ in range(12):
            world.ask("pod1-3", "10.96.0.10", 80)
            world.ask("pod1-3", "10.96.0.11", 80)
        world.ask("pod1-3", world.address("node1"), 30025)  # a pod: any endpoint
        assert isinstance(world.connect("client", VIP[Family.IPv4], 25, timeout=0.1), Silent)
        assert isinstance(world.connect("pod1-3", "10.96.0.13", 80), Refused)
        yield world


def shown(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return nftproxy("show", *arguments, where=world.lab.place("node1").namespace)


def frontends(world: World, name: str) -> dict[str, Any]:
    (port,) = json.loads(shown(world, name, "--output", "json").stdout)["services"]
    return {frontend["address"]: frontend for frontend in port["frontends"]}


def test_connections_are_counted_at_frontend_and_endpoint(world: World) -> None:
    web = frontends(world, "default/web")["10.96.0.10"]
    assert web["connections"] == 12
    assert sum(listed["connections"] for listed in web["cluster"]) == 12


def test_a_client_that_comes_back_is_counted_at_the_frontend(world: World) -> None:
    cart = frontends(world, "default/cart")["10.96.0.11"]
    assert cart["connections"] == 12
    assert sum(listed["connections"] for listed in cart["cluster"]) == 1
    assert list(cart["affinity"]["clients"].values()) == [1]
    assert cart["affinity"]["timeoutSeconds"] == 10800


def test_refusals_are_counted_with_their_reason(world: World) -> None:
    mail, none = frontends(world, "default/mail"), frontends(world, "default/none:http")
    refused = mail[VIP[Family.IPv4]]["refused"]
    assert (refused["verdict"], refused["reason"]) == (
        "drop",
        "no endpoint on this node (policy Local)",
    )
    assert refused["packets"] >= 1
    assert mail[""]["connections"] == 1
    refused = none["10.96.0.13"]["refused"]
    assert (refused["verdict"], refused["reason"]) == ("reject", "no endpoint in the cluster")
    assert refused["packets"] >= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("default/web", ["10.96.0.10:80/tcp", "ClusterIP", "12", "any endpoint"]),
        (
            "default/cart",
            ["a client keeps its endpoint for 10800 s (1 remembered)", "CLIENTS REMEMBERED"],
        ),
        (
            "default/mail",
            [
                "*:30025/tcp",
                "NodePort IPv4",
                "no endpoint on this node (policy Local): ",
                "packets dropped",
            ],
        ),
        ("default/mail", ["endpoints on this node; pods and this node get any (policy Local)"]),
        ("default/none", ["no endpoint in the cluster: ", "packets rejected"]),
        (
            "default/kept",
            [
                "203.0.113.14:80/tcp",
                "LoadBalancer",
                "any endpoint, masqueraded",
                "only from 198.51.100.0/24",
            ],
        ),
    ],
)
def test_details_in_words(world: World, name: str, words: list[str]) -> None:
    text = shown(world, name).stdout
    assert [word for word in words if word not in text] == []


def test_the_overview_has_a_line_for_each_frontend(world: World) -> None:
    lines = shown(world).stdout.splitlines()
    assert lines[0].split() == [
        "SERVICE",
        "FRONTEND",
        "KIND",
        "CONNECTIONS",
        "ENDPOINTS",
        "WHAT",
        "HAPPENS",
    ]
    assert [line.split()[:2] for line in lines if line.startswith("default/mail")] == [
        ["default/mail:smtp", "10.96.0.12:25/tcp"],
        ["default/mail:smtp", "203.0.113.10:25/tcp"],
        ["default/mail:smtp", "*:30025/tcp"],
    ]
    assert f"NodePorts are accepted on, IPv4: {world.address('node1')}" in lines


def test_a_terminal_gets_no_less(world: World) -> None:
    screen, end = pty.openpty()
    with namespace.enter(world.lab.place("node1").namespace):
        process = subprocess.Popen(
            [*NFTPROXY, "show", "default/web"],
            stdout=end,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
    os.close(end)
    text = b""
    try:
        while data := os.read(screen, 4096):
            text += data
    except OSError:  # the other end is closed: that is how a terminal tells
        pass
    os.close(screen)
    assert process.wait() == 0
    assert all(
        word in text.decode()
        for word in ("10.96.0.10:80/tcp", "ClusterIP", "any endpoint", "10.244.1.2:8080", "\x1b[")
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("web", "did you mean default/web?"),
        ("default/wep", "did you mean default/web"),
        ("default/web:https", "did you mean default/web:http"),
        ("kube-system/dns", "nftproxy show lists all services"),
    ],
)
def test_an_unknown_name_is_answered_with_those_like_it(world: World, name: str, hint: str) -> None:
    done = shown(world, name)
    assert (done.returncode, done.stdout) == (2, "")
    error, said = done.stderr.splitlines()
    assert error == f"error: no service {name!r} is programmed on this node"
    assert said.startswith(f"hint: {hint}")


def test_without_a_table() -> None:
    with network() as where:
        done = nftproxy("show", where=where)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: there is no table inet nftproxy here, so no service is programmed\n"
        "hint: nftproxy run makes it; in a lab: nftproxy lab demo\n"
    )


def test_an_empty_table_is_no_error() -> None:
    with network() as where:
        with namespace.enter(where):
            subprocess.run(["nft", "add table inet nftproxy"], check=True)
        done = nftproxy("show", where=where)
    assert (done.returncode, done.stdout) == (0, "the table is there, but no service is in it\n")
