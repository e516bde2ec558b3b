"""A new process and the table that an old one left.

Nothing is written that is right, everything goes that is not (contract 5.7).

A restart is played by a new Kernel, a new store and a new table object: what a new process has.
"""

import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from nftproxy.address import Family, parse_address
from nftproxy.configuration.settings import ALL, Cidr
from nftproxy.errors import KernelError
from nftproxy.lab.client import Answer
from nftproxy.model import Object, ServiceCIDR
from nftproxy.routes import Compiled, compile_service
from nftproxy.sync import compilation
from nftproxy.sync.table import Table
from nftproxy.table.program import is_pick
from tests.support.frontends import KINDS, WIRES, Web, Wire, each_wire, nft, route_outside
from tests.support.objects import endpoint, endpoint_slice, service, service_cidr
from tests.support.tables import (
    contents,
    deliver,
    generation,
    new_namespace,
    reading,
    table_in,
    unordered,
)
from tests.support.world import World, settings

STICKY = {"sessionAffinity": "ClientIP"}
LOCAL = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}


def cluster(*, scale: int = 3) -> list[Object]:
    """Some services of every kind."""
    specs: list[dict[str, Any]] = [
        {
            "node_port": 30001,
            "vips": ["203.0.113.1"],
            "loadBalancerSourceRanges": ["198.51.100.0/24", "10.0.0.0/8"],
        },
        {"node_port": 30002, "vips": ["203.0.113.2"], "externalIPs": ["198.51.100.2"], **LOCAL},
        {"node_port": 30003, "vips": ["203.0.113.3"], **STICKY, **LOCAL},
        {"node_port": 30004, **STICKY},
        {"protocol": "UDP", "node_port": 30001},
        {"protocol": "SCTP"},
    ]
    found: list[Object] = [service_cidr("kubernetes", "10.96.0.0/16")]
    for number, spec in enumerate(specs):
        members = [
            endpoint(f"10.244.{pod % 2 + 1}.{10 * number + pod + 2}", f"node{pod % 2 + 1}")
            for pod in range(scale)
        ]
        protocol = spec.get("protocol", "TCP")
        found.append(service(f"s{number}", f"10.96.0.{10 + number}", **spec))
        found.append(endpoint_slice(f"s{number}", members, protocol=protocol))
    return found


def synced(table: Table) -> Table:
    for family in table.settings.families:
        own = [parse_address("192.168.50.11"), parse_address("fd00:50::11")]
        assert table.sync(family, own).refused == {}
    return table


def objects_of(table: Table) -> tuple[set[str], set[str]]:
    table.kernel.refresh()
    return table.kernel.chains, table.kernel.sets


def same_as_fresh(table: Table, *items: Object) -> None:
    """The table equals, after tidying, what a first start makes.

    Unused picks and sets for ranges may stay.
    """
    table.tidy()
    with new_namespace() as netns, table_in(netns, *items, chosen=table.settings) as fresh:
        synced(fresh)
        assert unordered(contents(table)) == unordered(contents(fresh))
        assert table.kernel.networks("service_cidrs4", Family.IPv4) == fresh.kernel.networks(
            "service_cidrs4", Family.IPv4
        )
        assert table.kernel.elements("nodeport_ips4") == fresh.kernel.elements("nodeport_ips4")
        chains, sets = objects_of(table)
        assert objects_of(fresh)[0] <= chains
        assert objects_of(fresh)[1] <= sets
        assert all(map(is_pick, chains - objects_of(fresh)[0]))
        assert all(name.startswith("allowed") for name in sets - objects_of(fresh)[1])


@pytest.mark.contract("5.7.7", "5.7.4")
def test_with_nothing_changed_nothing_is_written(netns: str) -> None:
    """Not one transaction, and no counter is set back."""
    items = [*cluster(), service("empty", "10.96.0.99"), endpoint_slice("empty")]
    with table_in(netns, *items, chosen=settings()) as table:
        synced(table)
    with reading(netns) as reader:
        before = generation(reader)
        with table_in(netns, *reversed(items), chosen=settings()) as table:
            for family in Family:
                report = table.sync(
                    family, [parse_address("192.168.50.11"), parse_address("fd00:50::11")]
                )
                assert (report.read_back, report.transactions, report.written) == (True, 0, 0)
            table.tidy()
        assert generation(reader) == before


def test_services_are_compiled_while_the_table_is_read(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes most of the time of reading."""
    objects = cluster()
    with table_in(netns, *objects) as before:
        before.sync(Family.IPv4, [])
    compiled = threading.Event()
    with table_in(netns, *objects) as table:
        packed = table.kernel.packed

        def read(sets: Iterable[str]) -> dict[str, dict[bytes, bytes]]:
            assert compiled.wait(10), "reading ends when a service is compiled, else never"
            return packed(sets)

        def compiling(*arguments: Any) -> Compiled | None:
            compiled.set()
            return compile_service(*arguments)

        monkeypatch.setattr(table.kernel, "packed", read)
        monkeypatch.setattr(compilation, "compile_service", compiling)
        report = table.sync(Family.IPv4, [])
        assert (report.read_back, report.transactions, report.services) == (True, 0, 6)


def test_a_table_that_cannot_be_read_is_tried_again(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compiled meanwhile counts for nothing."""
    objects = cluster()
    with table_in(netns, *objects) as before:
        before.sync(Family.IPv4, [])
        held = contents(before)
    with table_in(netns, *objects[:-2]) as table:

        def fail(_: Iterable[str]) -> dict[str, dict[bytes, bytes]]:
            time.sleep(0.05)
            raise KernelError("no")

        with monkeypatch.context() as broken:
            broken.setattr(table.kernel, "packed", fail)
            with pytest.raises(KernelError, match="no"):
                table.sync(Family.IPv4, [])
        assert contents(table) == held
        deliver(table, *objects[-2:])
        report = table.sync(Family.IPv4, [])
        assert (report.transactions, report.services) == (0, 6)
        assert contents(table) == held


def test_one_change_while_nobody_looked_is_one_change(netns: str) -> None:
    items = cluster()
    with table_in(netns, *items) as table:
        synced(table)
    changed = endpoint_slice(
        "s4",
        [endpoint("10.244.1.42"), endpoint("10.244.2.43"), endpoint("10.244.9.9")],
        protocol="UDP",
    )
    with table_in(netns, *items, changed) as table:
        report = table.sync(Family.IPv4, [parse_address("192.168.50.11")])
        # Two frontends have one slot of three rewritten; the endpoints that went were here and had
        # hairpin entries.
        assert report.written <= 2 * 2 * 3 + 2
        same_as_fresh(table, *items, changed)


LEFTOVERS = {
    "a slot too many": "add element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 3 : 10.244.9.9 . 8080 }",
    "slots of a service that is gone": "add element inet nftproxy endpoints4-udp { 10.96.7.7 . 80 . 0 : 10.244.9.9 . 8080 }",
    "local slots": "add element inet nftproxy local_endpoints4-tcp { 10.96.7.7 . 80 . 0 : 10.244.9.9 . 8080 }",
    "slots of a NodePort": "add element inet nftproxy nodeport_endpoints4-tcp { 31111 . 0 : 10.244.9.9 . 8080 }",
    "a wrong endpoint": """
        delete element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 1 }
        add element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 1 : 10.244.9.9 . 8080 }""",
    "a missing slot": "delete element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 0 }",
    "a frontend of nobody": "add element inet nftproxy services4 { 10.96.7.7 . tcp . 80 : goto pick4-tcp-3 }",
    "a frontend elsewhere": """
        delete element inet nftproxy services4 { 10.96.0.10 . tcp . 80 }
        add element inet nftproxy services4 { 10.96.0.10 . tcp . 80 : goto external4-tcp-3 }""",
    "a missing frontend": "delete element inet nftproxy services4 { 10.96.0.10 . tcp . 80 }",
    "a NodePort of nobody": "add element inet nftproxy nodeport_services4 { tcp . 31111 : goto nodeport-external4-tcp-3 }",
    "a refusal that is none": "add element inet nftproxy no_endpoints4 { 10.96.0.10 . tcp . 80 : drop }",
    "an allowed source": "add element inet nftproxy allowed4-24 { 203.0.113.1 . tcp . 80 . 192.0.2.0 }",
    "a filter that is none": "add element inet nftproxy firewall4 { 203.0.113.2 . tcp . 80 : goto allowed4 }",
    "a ClusterIP of nobody": "add element inet nftproxy cluster_ips4 { 10.96.7.7 }",
    "a hairpin of nobody": "add element inet nftproxy hairpin4 { 10.244.9.9 . 10.244.9.9 . tcp . 8080 }",
    "a service CIDR": "add element inet nftproxy service_cidrs4 { 10.97.0.0/16 }",
    "a NodePort address": "add element inet nftproxy nodeport_ips4 { 192.0.2.1 }",
    "a length of ranges": """
        add set inet nftproxy allowed4-13 { type ipv4_addr . inet_proto . inet_service . ipv4_addr; }
        add element inet nftproxy allowed4-13 { 203.0.113.1 . tcp . 80 . 10.0.0.0 }""",
    "a pick": """
        add chain inet nftproxy pick4-tcp-77
        add rule inet nftproxy pick4-tcp-77 drop""",
    "a chain of another release": """
        add chain inet nftproxy old-step
        add rule inet nftproxy old-step counter""",
    "a ClientIP service": """
        add map inet nftproxy affinity4-default/gone/tcp/-8080 { type ipv4_addr : ipv4_addr; size 65536; flags dynamic,timeout; }
        add element inet nftproxy affinity4-default/gone/tcp/-8080 { 192.0.2.1 timeout 1h : 10.244.9.9 }
        add set inet nftproxy cluster_members4-default/gone/tcp/ { type ipv4_addr . inet_service; }
        add element inet nftproxy cluster_members4-default/gone/tcp/ { 10.244.9.9 . 8080 }
        add chain inet nftproxy sticky-pick4-tcp-1-8080-default/gone/tcp/
        add rule inet nftproxy sticky-pick4-tcp-1-8080-default/gone/tcp/ ip saddr 192.0.2.1 drop
        add element inet nftproxy services4 { 10.96.7.7 . tcp . 80 : goto sticky-pick4-tcp-1-8080-default/gone/tcp/ }
        add element inet nftproxy new_clients4 { 10.96.7.7 . tcp . 80 }""",
    "a map of another release": """
        add map inet nftproxy internal4 { type ipv4_addr . inet_proto . inet_service : verdict; counter; }
        add chain inet nftproxy internal4-tcp-1
        add rule inet nftproxy internal4-tcp-1 drop
        add element inet nftproxy internal4 { 10.96.0.12 . tcp . 80 : jump internal4-tcp-1 }
        insert rule inet nftproxy find-service4 ip daddr . meta l4proto . th dport vmap @internal4
        delete chain inet nftproxy {marker}
        add chain inet nftproxy program-0123456789abcdef""",
    "a member too many": "add element inet nftproxy cluster_members4-default/s3/tcp/http { 10.244.9.9 . 8080 }",
    "another program": """
        delete chain inet nftproxy {marker}
        add chain inet nftproxy program-0123456789abcdef
        add rule inet nftproxy nat-prerouting counter""",
}  # fmt: skip


def declared_by_type(text: str) -> str:
    """Return the text of a program with `type` in place of `typeof` wherever nft has names for the
    types.
    """
    names = {
        "typeof": "type",
        "ip saddr": "ipv4_addr",
        "ip daddr": "ipv4_addr",
        "meta l4proto": "inet_proto",
        "th dport": "inet_service",
    }
    of = re.compile("|".join(names))
    return re.sub(
        r"^    typeof (?!.*numgen).*$",
        lambda line: of.sub(lambda m: names[m[0]], line[0]),
        text,
        flags=re.MULTILINE,
    )


def test_a_table_declared_by_type_is_taken_over(netns: str) -> None:
    """A set keeps the declaration it was made with; what is wanted of it is the same."""
    items = cluster()
    with table_in(netns, *items) as table:
        text = declared_by_type(table.program.text())
        assert "    type ipv4_addr . inet_proto . inet_service : verdict" in text
        old = "chain program-0123456789abcdef {\n}\n"
        table.kernel._run(
            f"table inet nftproxy {{\n{old}{text}\n}}\nadd element inet nftproxy cluster_ips4 {{ 10.96.0.10 }}\n"
        )
    with table_in(netns, *items) as table:
        synced(table)
        same_as_fresh(table, *items)


@pytest.mark.contract("5.7.8", "5.9.5", "5.7.4", "5.7.6")
@pytest.mark.parametrize("rules", LEFTOVERS.values(), ids=LEFTOVERS)
def test_leftovers_disappear(netns: str, rules: str) -> None:
    """Of a killed process, an older version, or a hand that slipped while nobody looked."""
    items = cluster()
    with table_in(netns, *items) as table:
        synced(table)
        text = rules.replace("{marker}", table.program.marker)
        table.kernel.library.run(
            "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"
        )
    with table_in(netns, *items) as table:
        synced(table)
        same_as_fresh(table, *items)
    with table_in(netns, *items) as table:
        assert table.sync(Family.IPv4, [parse_address("192.168.50.11")]).transactions == 0


@pytest.mark.contract("5.7.8")
def test_another_state_of_the_cluster(netns: str) -> None:
    """Everything changed while the proxy was away."""
    with table_in(netns, *cluster(scale=5)) as table:
        synced(table)
    items = [
        *cluster(scale=2)[3:],
        service("new", "10.96.0.10", vips=["203.0.113.2"]),
        endpoint_slice("new", [endpoint("10.244.9.9")]),
    ]
    with table_in(netns, *items) as table:
        synced(table)
        same_as_fresh(table, *items)


@pytest.mark.contract("5.7.8", "2.4.5")
def test_remembered_clients_are_checked(netns: str) -> None:
    """A crash can leave clients of an endpoint that went.

    Those of endpoints that are there stay, in both lists.
    """
    items = cluster()
    name = "default/s2/tcp/http-8080"
    with table_in(netns, *items) as table:
        synced(table)
        here, elsewhere = "10.244.1.22", "10.244.2.23"
        table.kernel.library.run(
            f"add element inet nftproxy affinity4-{name} {{ 192.0.2.1 : {here}, 192.0.2.2 : {elsewhere}, 192.0.2.3 : 10.244.9.9 }}\n"
            f"add element inet nftproxy local_affinity4-{name} {{ 192.0.2.1 : {here}, 192.0.2.2 : {elsewhere} }}\n"
        )
    with table_in(netns, *items) as table:
        synced(table)
        assert table.kernel.elements(f"affinity4-{name}") == {
            ("192.0.2.1",): here,
            ("192.0.2.2",): elsewhere,
        }
        assert table.kernel.elements(f"local_affinity4-{name}") == {("192.0.2.1",): here}


OTHERS: dict[str, dict[str, Any]] = {
    "another detector": {"detector": None},
    "masquerade all": {"masquerade_all": True},
    "some not masqueraded": {"no_masquerade": ["172.16.0.0/12", "fd00:172::/32"]},
    "NodePorts everywhere": {"nodeports": {Family.IPv4: ALL, Family.IPv6: ALL}},
    "IPv4 alone": {"families": [Family.IPv4]},
    "IPv6 first": {"families": [Family.IPv6, Family.IPv4]},
    "a detector without a network": {"detector": Cidr({})},
}


@pytest.mark.contract("5.7.8", "5.7.3", "5.7.6")
@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("back", [False, True], ids=["changed", "changed back"])
def test_other_settings(netns: str, options: dict[str, Any], back: bool) -> None:
    """Node settings that changed with the restart leave nothing of the old ones behind."""
    items = [
        *cluster(),
        service("six", "fd00::10"),
        endpoint_slice("six", [endpoint("fd00:244:1::2")], family="IPv6"),
    ]
    old, new = settings(), settings(**options)
    for chosen in (old, new, old) if back else (old, new):
        with table_in(netns, *items, chosen=chosen) as table:
            synced(table)
            same_as_fresh(table, *items)
            assert not [
                name
                for name in table.kernel.chains
                if name.startswith("program-") and name != table.program.marker
            ]


@pytest.mark.contract("5.7.8")
def test_a_service_cidr_that_went(netns: str) -> None:
    with table_in(netns, *cluster()) as table:
        synced(table)
        assert table.kernel.networks("service_cidrs4", Family.IPv4)
    items = [item for item in cluster() if not isinstance(item, ServiceCIDR)]
    with table_in(netns, *items) as table:
        synced(table)
        assert table.kernel.networks("service_cidrs4", Family.IPv4) == []


# --- with packets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as world:
        route_outside(world)
        yield world


def restart(world: World, *items: Object) -> None:
    """A new process on node1, to which a source delivers `items`."""
    table = world.start("node1")
    deliver(table, *items)
    world.sync()


@pytest.mark.contract("5.7.7", "2.4.5", "2.9.1")
def test_restarts_under_load(world: World) -> None:
    """Clients connect without pause to services of every kind while node1 starts ten times anew.

    None fails, and affinity stays.
    """
    webs: list[tuple[Web, dict[str, Any]]] = [
        (Web(world), spec) for spec in ({}, STICKY, LOCAL, {**STICKY, **LOCAL})
    ]
    items: list[Object] = []
    for web, spec in webs:
        items += [web.service(**spec), *web.slices("pod1-1", "pod1-2", "pod2-1")]
    restart(world, *items)
    sticky = webs[1][0]
    known = {wire: world.ask("pod1-3", *sticky.at("cluster", wire)).name for wire in WIRES}
    stopping = threading.Event()
    failures: list[Any] = []
    made = 0

    def connect() -> None:
        nonlocal made
        while not stopping.is_set():
            for web, _ in webs:
                for kind in KINDS:
                    for wire in WIRES:
                        outcome = world.connect("client", *web.at(kind, wire))
                        made += 1
                        if not isinstance(outcome, Answer):
                            failures.append((web.name, kind, wire, outcome))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        for _ in range(10):
            before = made
            restart(world, *items)
            while made < before + 20:
                stopping.wait(0.005)
    finally:
        stopping.set()
        thread.join()
    assert failures == []
    assert {wire: world.ask("pod1-3", *sticky.at("cluster", wire)).name for wire in WIRES} == known


@pytest.mark.contract("5.7.8", "2.4.5")
@each_wire
def test_an_endpoint_that_went_meanwhile(world: World, wire: Wire) -> None:
    """A client that was on it finds another one, and the others stay where they are."""
    web = Web(world, wire)
    everybody, fewer = web.slices("pod1-1", "pod2-1"), web.slices("pod2-1")
    restart(world, web.service(**STICKY), *everybody)
    where = {
        place: world.ask(place, *web.at("cluster", wire)).name
        for place in ("pod1-2", "pod1-3", "node1", "client")
    }
    restart(world, web.service(**STICKY), *fewer)
    for place in where:
        assert web.answers(place, "cluster", wire, times=8) == {"pod2-1"}


@pytest.mark.contract("1.2.4", "1.2.7")
@each_wire
def test_before_the_first_sync_everything_stays(world: World, wire: Wire) -> None:
    """A new process that knows nothing yet writes nothing: traffic goes as the old one left it."""
    web = Web(world, wire)
    restart(world, web.service(), *web.slices("pod1-1", "pod2-1"))
    world.start("node1")
    assert web.answers("client", "vip", wire) == {"pod1-1", "pod2-1"}
    nft(world, "node1", "list chain inet nftproxy find-service4")
    restart(world, web.service(), *web.slices("pod1-1"))
    assert web.answers("client", "vip", wire) == {"pod1-1"}
