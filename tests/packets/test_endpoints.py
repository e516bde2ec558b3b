"""Which endpoints connections reach.

Conditions, slices, topology, endpoints on the node itself (contract 3).
"""

from typing import Any

import pytest
from msgspec import structs

from nftproxy.lab.client import Answer, Connection
from nftproxy.model import EndpointSlice
from tests.support.frontends import (
    SILENCE,
    Kind,
    Ready,
    Web,
    Wire,
    each_kind,
    each_wire,
    masked,
)
from tests.support.objects import node
from tests.support.world import World


@pytest.fixture(scope="module")
def world(world: World) -> World:
    for name in ("node1", "node2"):  # as hostNetwork pods
        world.lab.listen(name, [8080])
    return world


NOT_READY = {"ready": False, "serving": False, "terminating": False}
SERVING = {"ready": False, "serving": True, "terminating": False}
DRAINING = {"ready": False, "serving": True, "terminating": True}
ENDING = {"ready": False, "serving": False, "terminating": True}
READY_TERMINATING = {"ready": True, "serving": True, "terminating": True}
UNSET: dict[str, Any] = {"ready": None, "serving": None, "terminating": None}
UNSET_DRAINING = {"ready": False, "serving": None, "terminating": True}

CONDITIONS: dict[str, tuple[tuple[Ready, ...], set[str]]] = {
    "not ready is left out": (("pod1-1", ("pod2-1", NOT_READY)), {"pod1-1"}),
    "serving alone is left out": (("pod1-1", ("pod2-1", SERVING)), {"pod1-1"}),
    "draining waits for need": (("pod1-1", ("pod2-1", DRAINING)), {"pod1-1"}),
    "draining when none is ready": (
        (("pod1-1", DRAINING), ("pod2-1", DRAINING), ("pod2-2", NOT_READY)),
        {"pod1-1", "pod2-1"},
    ),
    "draining counts, serving does not": ((("pod1-1", DRAINING), ("pod2-1", SERVING)), {"pod1-1"}),
    "draining counts, ending does not": ((("pod1-1", DRAINING), ("pod2-1", ENDING)), {"pod1-1"}),
    "ready is trusted": ((("pod1-1", READY_TERMINATING), "pod2-1"), {"pod1-1", "pod2-1"}),
    "unset is ready": ((("pod1-1", UNSET), ("pod2-1", NOT_READY)), {"pod1-1"}),
    "unset serving is serving": ((("pod1-1", UNSET_DRAINING), ("pod2-1", NOT_READY)), {"pod1-1"}),
}


@pytest.mark.contract("3.1.6", "3.4.1", "3.4.2", "3.4.7")
@each_wire
@pytest.mark.parametrize(("endpoints", "answering"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(
    world: World, wire: Wire, endpoints: tuple[Ready, ...], answering: set[str]
) -> None:
    web = Web(world)
    web.apply(*endpoints)
    assert web.answers("pod1-3", "cluster", wire) == answering
    assert web.answers("client", "vip", wire) == answering


@pytest.mark.contract("3.4.7", "3.4.6")
@each_wire
@each_kind
@pytest.mark.parametrize(
    "conditions", [NOT_READY, SERVING, ENDING], ids=["not ready", "serving alone", "ending"]
)
def test_conditions_that_are_never_used(
    world: World, wire: Wire, kind: Kind, conditions: dict[str, Any]
) -> None:
    web = Web(world)
    web.apply(("pod1-1", conditions))
    web.assert_refused("client", kind, wire)


LOCAL_CONDITIONS: dict[str, tuple[tuple[Ready, ...], set[str]]] = {
    "ready here": (("pod1-1", ("pod1-2", DRAINING), "pod2-1"), {"pod1-1"}),
    "draining here": ((("pod1-1", DRAINING), ("pod1-2", NOT_READY), "pod2-1"), {"pod1-1"}),
    "everything drains": ((("pod1-1", DRAINING), ("pod2-1", DRAINING)), {"pod1-1"}),
}


@pytest.mark.contract("3.4.3", "3.4.4")
@each_wire
@pytest.mark.parametrize(
    ("endpoints", "answering"), LOCAL_CONDITIONS.values(), ids=LOCAL_CONDITIONS
)
def test_conditions_in_the_local_list(
    world: World, wire: Wire, endpoints: tuple[Ready, ...], answering: set[str]
) -> None:
    web = Web(world)
    web.apply(*endpoints, internalTrafficPolicy="Local", externalTrafficPolicy="Local")
    assert web.answers("pod1-3", "cluster", wire) == answering
    assert web.answers("client", "vip", wire) == answering


@pytest.mark.contract("3.1.7")
@each_wire
@pytest.mark.parametrize("name", ["NODE1", "node1.example", "node", ""])
def test_local_means_exactly_this_node(world: World, wire: Wire, name: str) -> None:
    web = Web(world)
    web.apply(("pod1-1", {"node": name}), internalTrafficPolicy="Local")
    web.assert_dropped("pod1-2", "cluster", wire)
    web.apply(("pod1-1", {"node": "node1"}), internalTrafficPolicy="Local")
    assert world.ask("pod1-2", *web.at("cluster", wire)).name == "pod1-1"


@pytest.mark.contract("3.1.4", "3.2.1", "3.2.3")
@each_wire
def test_slices_are_merged(world: World, wire: Wire) -> None:
    """Two slices of one Service; one pod in both with different port numbers is two endpoints."""
    web = Web(world)
    one, two = (
        web.slices("pod1-1", "pod2-1", suffix="-a"),
        web.slices("pod1-1", port=9376, suffix="-b"),
    )
    world.apply(web.service(), *one, *two)
    seen = {
        (a.name, a.port) for a in (world.ask("pod1-2", *web.at("cluster", wire)) for _ in range(48))
    }
    assert seen == {("pod1-1", 8080), ("pod2-1", 8080), ("pod1-1", 9376)}
    world.delete(*one)
    seen = {
        (a.name, a.port) for a in (world.ask("pod1-2", *web.at("cluster", wire)) for _ in range(12))
    }
    assert seen == {("pod1-1", 9376)}


@pytest.mark.contract("3.2.2")
@each_wire
@pytest.mark.parametrize("order", ["a", "z"])
def test_a_terminating_duplicate_never_wins(world: World, wire: Wire, order: str) -> None:
    """Whichever slice comes first; a duplicate is one endpoint, not two shares."""
    web = Web(world)
    ending = web.slices(("pod1-1", ENDING), suffix=f"-{order}")
    world.apply(web.service(), *web.slices("pod1-1", "pod2-1", suffix="-m"), *ending)
    assert web.answers("pod1-3", "cluster", wire) == {"pod1-1", "pod2-1"}
    v, proto = wire.family.digit, wire.protocol.lower()
    address = web.address("cluster", wire.family)
    slots = [
        key
        for key in world.tables["node1"].kernel.elements(f"endpoints{v}-{proto}")
        if key[0] == address
    ]
    assert len(slots) == 2


@pytest.mark.contract("3.1.8", "1.3.7")
@each_wire
def test_slices_may_come_first_and_stay_behind(world: World, wire: Wire) -> None:
    web = Web(world)
    world.apply(*web.slices("pod2-1"))
    assert not isinstance(world.connect("client", *web.at("vip", wire), timeout=SILENCE), Answer)
    world.apply(web.service())
    assert world.ask("client", *web.at("vip", wire)).name == "pod2-1"
    world.delete(web.service())
    assert not isinstance(world.connect("client", *web.at("vip", wire), timeout=SILENCE), Answer)
    world.apply(web.service())
    assert world.ask("client", *web.at("vip", wire)).name == "pod2-1"


@pytest.mark.contract("3.2.5")
@each_wire
def test_a_slice_that_changes_its_service_moves(world: World, wire: Wire) -> None:
    old, new = Web(world), Web(world)
    old.apply("pod1-1")
    new.apply()
    moved = new.slices("pod1-1")
    world.apply(*(_renamed(piece, f"{old.name}-{piece.address_type.lower()}") for piece in moved))
    old.assert_refused("client", "cluster", wire)
    assert world.ask("client", *new.at("cluster", wire)).name == "pod1-1"


@pytest.mark.contract("2.9.1", "3.4.1")
@each_wire
def test_scaling(world: World, wire: Wire) -> None:
    """Through every number of endpoints.

    Exactly those that are there answer, and established connections stay.
    """
    web = Web(world)
    steps = [
        ("pod1-1",),
        ("pod1-1", "pod2-1"),
        ("pod2-1", "pod2-2", "pod1-2", "pod1-1"),
        ("pod2-2",),
        (),
        ("pod1-3", "pod2-3"),
    ]
    opened: list[Connection] = []
    try:
        for places in [*steps, *reversed(steps)]:
            web.apply(*places)
            if places:
                assert web.answers("client", "nodeport", wire, times=64) == set(places)
                connection = world.lab.open_connection("client", *web.at("nodeport", wire))
                assert isinstance(connection, Connection)
                opened.append(connection)
            else:
                web.assert_refused("client", "nodeport", wire)
            assert all(connection.again() == connection.answer for connection in opened)
    finally:
        for connection in opened:
            connection.close()


@pytest.mark.contract("3.4.1", "4.1.2", "4.1.3")
@each_wire
@each_kind
@pytest.mark.parametrize("where", ["pod1-1", "node1", "client", "pod2-1"])
def test_endpoints_on_the_node_itself(world: World, wire: Wire, kind: Kind, where: str) -> None:
    web = Web(world)
    web.apply("node1")
    answer = world.ask(where, *web.at(kind, wire))
    entry = "node2" if where == "pod2-1" and kind != "nodeport" else "node1"
    assert (answer.name, answer.port) == ("node1", 8080)
    # What ends on the node that translated it never passes postrouting: there is nothing to
    # masquerade for.
    through = entry == "node2" and (kind != "cluster" or not where.startswith("pod"))
    expected = (
        masked(world, entry, "node1", wire.family) if through else world.address(where, wire.family)
    )
    assert answer.source == expected


@pytest.mark.contract("2.3.5", "2.3.7")
@each_wire
def test_endpoints_on_the_node_itself_are_local(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("node1", "node2", internalTrafficPolicy="Local", externalTrafficPolicy="Local")
    assert web.answers("pod1-1", "cluster", wire) == {"node1"}
    assert web.answers("client", "vip", wire) == {"node1"}
    assert web.answers("pod1-1", "vip", wire) == {"node1", "node2"}


def here(*zones: str, nodes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Hints."""
    return {**({"zones": zones} if zones else {}), **({"nodes": nodes} if nodes else {})}


BOTH = {"pod1-1", "pod2-1"}
TOPOLOGY: dict[str, tuple[str, tuple[Ready, ...], set[str]]] = {
    "same zone": ("a", (("pod1-1", here("a")), ("pod2-1", here("b"))), {"pod1-1"}),
    "far only": ("a", (("pod1-1", here("b")), ("pod2-1", here("a"))), {"pod2-1"}),
    "several zones": ("a", (("pod1-1", here("b", "a")), ("pod2-1", here("b", "c"))), {"pod1-1"}),
    "one without hints": ("a", (("pod1-1", here("a")), "pod2-1"), BOTH),
    "no zone of ours": ("a", (("pod1-1", here("b")), ("pod2-1", here("c"))), BOTH),
    "a node without a zone": ("", (("pod1-1", here("a")), ("pod2-1", here("b"))), BOTH),
    "same node": ("a", (("pod1-1", here("b", nodes=("node1",))), ("pod2-1", here("a", nodes=("node2",)))), {"pod1-1"}),
    "same node, several": ("a", (("pod1-1", here(nodes=("node2", "node1"))), ("pod2-1", here(nodes=("node2",)))), {"pod1-1"}),
    "not all have node hints": ("a", (("pod1-1", here("b", nodes=("node1",))), ("pod2-1", here("a"))), {"pod2-1"}),
    "no node of ours": ("a", (("pod1-1", here("b", nodes=("node3",))), ("pod2-1", here("a", nodes=("node3",)))), {"pod2-1"}),
    "not ready without hints": ("a", (("pod1-1", here("a")), ("pod2-1", here("b")), ("pod2-2", NOT_READY)), {"pod1-1"}),
    "not ready with hints": ("a", (("pod1-1", NOT_READY | here("a")), ("pod2-1", here("b")), ("pod1-2", here("c"))), {"pod2-1", "pod1-2"}),
    "draining ignores hints": ("a", (("pod1-1", DRAINING | here("a")), ("pod2-1", DRAINING | here("b"))), BOTH),
}  # fmt: skip


@pytest.mark.contract("3.3.1", "3.3.2", "3.3.3", "3.3.4", "3.3.5", "3.3.6", "3.4.1", "3.4.2")
@each_wire
@pytest.mark.parametrize(("zone", "endpoints", "answering"), TOPOLOGY.values(), ids=TOPOLOGY)
def test_topology(
    world: World, wire: Wire, zone: str, endpoints: tuple[Ready, ...], answering: set[str]
) -> None:
    """As node1 sees it; every node believes that it is in `zone`."""
    web = Web(world)
    world.apply(node(zone=zone))
    web.apply(*endpoints)
    assert web.answers("pod1-3", "cluster", wire) == answering
    assert web.answers("client", "nodeport", wire) == answering


@pytest.mark.contract("3.3.6")
@each_wire
def test_hints_are_nothing_to_the_local_list(world: World, wire: Wire) -> None:
    web = Web(world)
    world.apply(node(zone="a"))
    endpoints = (("pod1-1", here("b")), ("pod2-1", here("a")))
    web.apply(*endpoints, internalTrafficPolicy="Local", externalTrafficPolicy="Local")
    assert web.answers("pod1-3", "cluster", wire) == {"pod1-1"}
    assert web.answers("client", "vip", wire) == {"pod1-1"}
    assert web.answers("pod1-3", "vip", wire) == {"pod2-1"}


@pytest.mark.contract("1.4.1", "3.3.3", "3.3.4")
@each_wire
def test_a_node_that_changes_its_zone(world: World, wire: Wire) -> None:
    web = Web(world)
    world.apply(node(zone="a"))
    web.apply(("pod1-1", here("a")), ("pod2-1", here("b")))
    for zone, answering in (("b", {"pod2-1"}), ("c", BOTH), ("a", {"pod1-1"}), ("", BOTH)):
        world.apply(node(zone=zone))
        assert web.answers("pod1-3", "cluster", wire) == answering


@pytest.mark.contract("3.3.7", "2.1.6")
@each_wire
def test_only_slices_speak_about_topology(world: World, wire: Wire) -> None:
    """Fields that say what a controller should put into slices, and what a cloud should do, change
    nothing here.
    """
    web = Web(world)
    world.apply(node(zone="a"))
    spec: dict[str, Any] = {
        "trafficDistribution": "PreferSameZone",
        "publishNotReadyAddresses": True,
        "selector": {"app": "other"},
        "loadBalancerIP": "203.0.113.250",
        "loadBalancerClass": "example.com/other",
    }
    web.apply("pod1-1", "pod2-1", ("pod2-2", NOT_READY), **spec)
    assert web.answers("pod1-3", "cluster", wire) == BOTH
    assert web.answers("client", "vip", wire) == BOTH


def _renamed(piece: EndpointSlice, name: str) -> EndpointSlice:
    return structs.replace(piece, metadata=structs.replace(piece.metadata, name=name))
