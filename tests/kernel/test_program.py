"""The constant program.

Its text, its digest, that it never grows with services, and that it is reloaded under traffic
(contract 5).
"""

import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.configuration.settings import ALL, BridgeInterface, Cidr, InterfaceNamePrefix
from nftproxy.lab.client import Answer, Connection
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from nftproxy.routes import Affinity
from nftproxy.selection import Endpoint
from nftproxy.sync.table import Table
from nftproxy.table import program as program_module
from nftproxy.table.program import Program, blocks, is_pick
from nftproxy.table.schema import PROTOCOLS, Policy
from tests.support.frontends import WIRES, Kind, Web, listing, masked, route_outside
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import (
    bare_table,
    contents,
    deliver,
    generation,
    new_namespace,
    reading,
    table_in,
)
from tests.support.world import CLUSTER, World, settings

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "IPv4 alone": {"families": [Family.IPv4]},
    "IPv6 alone": {"families": [Family.IPv6]},
    "IPv6 first": {"families": [Family.IPv6, Family.IPv4]},
    "no detector": {"detector": None},
    "one CIDR": {"detector": Cidr({Family.IPv4: parse_network("10.244.0.0/16")})},
    "bridge": {"detector": BridgeInterface("cni0")},
    "prefix": {"detector": InterfaceNamePrefix("veth")},
    "long prefix": {"detector": InterfaceNamePrefix("a" * 15)},
    "masquerade all": {"masquerade_all": True},
    "NodePorts everywhere": {"nodeports": dict.fromkeys(Family, ALL)},
    "some not masqueraded": {"no_masquerade": ["172.16.0.0/12", "0.0.0.0/1", "::/0"]},
    "all but some": {"masquerade_all": True, "no_masquerade": ["172.16.0.0/12", "fd00:172::/32"]},
    "all but some IPv6": {"masquerade_all": True, "no_masquerade": ["fd00:172::/32"]},
    "refusals logged": {"log_refusals": True},
    "gone endpoints reset": {"reset_gone": True},
}
each_setting = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


# --- the text -------------------------------------------------------------------------------------


@each_setting
def test_every_setting_loads(options: dict[str, Any]) -> None:
    """With every part that is made on demand."""
    options = {"families": list(Family), **options}
    with bare_table(**options) as table:
        for family in table.settings.families:
            v4 = family is Family.IPv4
            items: list[Object] = []
            for number, protocol in enumerate(("TCP", "UDP", "SCTP")):
                spec: dict[str, Any] = {
                    "protocol": protocol,
                    "node_port": 30080,
                    "vips": [f"203.0.113.{number}" if v4 else f"fd00:beef::{number}"],
                    "sessionAffinity": "ClientIP",
                    "externalTrafficPolicy": "Local",
                    "internalTrafficPolicy": "Local",
                    "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8::/32"],
                }
                name = f"{family.lower()}-{protocol.lower()}"
                items.append(
                    service(
                        name, f"10.96.0.{number + 1}" if v4 else f"fd00:10:96::{number + 1}", **spec
                    )
                )
                pod = "10.244.1.2" if v4 else "fd00:244:1::2"
                items.append(
                    endpoint_slice(name, [endpoint(pod, "node1")], protocol=protocol, family=family)
                )
            deliver(table, *items)
            assert table.sync(family, []).refused == {}
        assert table.program.names() <= table.kernel.chains | table.kernel.sets
        held = {
            name
            for name in table.kernel.chains | table.kernel.sets
            if re.fullmatch(r"[a-z_-]+[46](-.*)?", name)
        }
        assert {re.sub(r"^[a-z_-]+([46]).*", r"\1", name) for name in held} == {
            f.digit for f in options["families"]
        }


@pytest.mark.contract("9.6", "9.7")
@each_setting
def test_the_text_is_a_function_of_the_settings(options: dict[str, Any]) -> None:
    text = Program(settings(**options)).text()
    assert text == Program(settings(**options)).text()
    assert "$" not in text
    assert "None" not in text
    assert not re.search(r"^[^#]*\baccept\b", text, re.MULTILINE), (
        "contract 9.6, 9.7: no rule of ours keeps others from dropping"
    )


@pytest.mark.contract("8.6.4")
def test_the_address_of_the_node_is_not_part_of_the_program() -> None:
    """It matters to source ranges and to which NodePort addresses are accepted, and those are
    elements.
    """
    other = {Family.IPv4: "192.0.2.77", Family.IPv6: "2001:db8::77"}
    assert Program(settings(addresses=other)).text() == Program(settings()).text()


def test_every_setting_has_a_digest_of_its_own() -> None:
    found = {name: Program(settings(**options)).digest for name, options in SETTINGS.items()}
    assert len(set(found.values())) == len(found)
    assert Program(settings(node="another")).digest == found["plain"], (
        "the name of the node is not part of it"
    )


@pytest.mark.parametrize("file", ["pick.nft", "affinity.nft", "gone-hooks.nft"])
def test_every_chain_made_on_demand_is_part_of_the_digest(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a release that changes only this one would leave it as it stands in the table."""
    before, read = Program(settings(reset_gone=True)).digest, program_module._read
    for name in [name for name, block in blocks(read(file)).items() if block.startswith("chain")]:

        def changed(other: str, name: str = name) -> str:
            return (
                read(other).replace(f"chain {name} {{", f"chain {name} {{\n    counter")
                if other == file
                else read(other)
            )

        with monkeypatch.context() as patched:
            patched.setattr(program_module, "_read", changed)
            assert Program(settings(reset_gone=True)).digest != before, name


@pytest.mark.contract("5.5.6")
def test_only_chains_of_services_have_a_slash_in_their_names() -> None:
    assert not [name for name in Program(settings()).names() if "/" in name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pick4-tcp-3", ["pick4-tcp-first", "pick4-tcp-3"]),
        ("hash-pick4-tcp-3", ["pick4-tcp-first", "hash-pick4-tcp-3"]),
        ("external4-udp-1", ["pick4-udp-first", "pick4-udp-1", "external4-udp-1"]),
        (
            "preserve6-sctp-2",
            ["pick6-sctp-first", "pick6-sctp-2", "external6-sctp-2", "preserve6-sctp-2"],
        ),
        (
            "preserve4-udp-3-2",
            [
                "pick4-udp-first",
                "pick4-udp-3",
                "external4-udp-3",
                "local4-udp-first",
                "local4-udp-2",
                "preserve4-udp-3-2",
            ],
        ),
        (
            "nodeport-preserve4-tcp-2-1",
            [
                "nodeport-pick4-tcp-first",
                "nodeport-pick4-tcp-2",
                "nodeport-external4-tcp-2",
                "nodeport-local4-tcp-first",
                "nodeport-local4-tcp-1",
                "nodeport-preserve4-tcp-2-1",
            ],
        ),
        ("nodeport-local6-tcp-5000", ["nodeport-local6-tcp-first", "nodeport-local6-tcp-5000"]),
        ("pick4-tcp-first", ["pick4-tcp-first"]),
        ("external4-tcp-first", []),
        ("pick4-tcp-0", []),
        ("pick4-tcp-2-1", []),
        ("preserve4-tcp-2-0", []),
        ("pick4-icmp-1", []),
        ("pick5-tcp-1", []),
        ("sticky-pick4-tcp-1-8080-default/web/tcp/", []),
        ("allowed4", []),
        ("", []),
    ],
)
def test_picks_are_made_from_their_names(name: str, expected: list[str]) -> None:
    """With what they go to, which has to be declared first."""
    made = Program(settings()).pick(name)
    assert sorted(made) == sorted(expected)
    assert list(made)[-1:] == expected[-1:]
    assert all(is_pick(chain) for chain in made)
    for chain, text in made.items():
        assert text.startswith(f"chain {chain} {{")


def test_a_family_that_is_not_served_has_no_picks() -> None:
    assert Program(settings(families=[Family.IPv4])).pick("pick6-tcp-1") == {}


def affinity(
    cluster: Iterable[int] = (8080,), local: Iterable[int] = (), timeout: int = 100
) -> Affinity:
    """One that needs everything that there is."""
    lists = [tuple(Endpoint("10.244.1.2", port) for port in ports) for ports in (cluster, local)]
    entries = ((Policy.CLUSTER, False), (Policy.PRESERVE, False), (Policy.PRESERVE, True))
    return Affinity(
        "default/web/tcp/http", Family.IPv4, "tcp", timeout, lists[0], lists[1], entries
    )


@pytest.mark.contract("2.4.6")
def test_a_chain_of_affinity_is_told_by_its_name() -> None:
    """Whatever changes its text changes its name, so that none is ever rewritten under a packet."""
    program = Program(settings())
    seen: dict[str, str] = {}
    lists = ((8080,), (9376,), (8080, 9376), tuple(range(20000, 20040)))
    for ports, own, timeout in itertools.product(lists, (0, 1), (1, 100, 86400)):
        made = program.affinity(affinity(ports, ports[:own], timeout=timeout))
        for name, text in made.items():
            assert seen.setdefault(name, text) == text
            assert len(name) <= 255
        own_chains = [name for name in made if name.endswith("default/web/tcp/http")]
        assert len(own_chains) == 2 + 7, (
            "members; three chains for addresses, three for NodePorts, one to learn"
        )
        assert sum(name not in own_chains for name in made) == (8 + 4 * own) + 2 * len(ports), (
            "picks, and memories"
        )


def test_blocks_are_found_by_name() -> None:
    text = "set a {\n    type ipv4_addr\n}\n\n# chain no {\nchain b {\n    jump c\n}\n"
    assert blocks(text) == {"a": "set a {\n    type ipv4_addr\n}", "b": "chain b {\n    jump c\n}"}


# --- it never grows -------------------------------------------------------------------------------


def shape_of(table: Table, netns: str) -> dict[str, int]:
    """How many tables, chains, rules, sets and maps there are."""
    table.tidy()
    with reading(netns) as reader:
        chains, sets = reader.chains(), reader.sets()
        return {"chains": len(chains), "rules": reader.rules(), "sets and maps": len(sets)}


SPREAD: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (2, {"externalTrafficPolicy": "Local"}),
    (3, {"internalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["198.51.100.0/24"]}),
    (3, {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
    (0, {"loadBalancerSourceRanges": ["198.51.100.7/32"]}),
)


def spread(count: int) -> list[Object]:
    """Services of five kinds in turn, each with every kind of frontend."""
    found: list[Object] = []
    for number in range(count):
        high, low = divmod(number, 200)
        endpoints, spec = SPREAD[number % len(SPREAD)]
        frontends: dict[str, Any] = {
            "node_port": 10000 + number,
            "vips": [f"203.0.{high}.{low + 1}"],
            "externalIPs": [f"198.18.{high}.{low + 1}"],
        }
        members = [
            endpoint(f"10.{10 + pod}.{high}.{low + 1}", f"node{pod % 2 + 1}")
            for pod in range(endpoints)
        ]
        found.append(service(f"s{number}", f"10.96.{high}.{low + 1}", **frontends, **spec))
        found.append(endpoint_slice(f"s{number}", members))
    return found


@pytest.mark.contract("9.14", "5.5.1")
def test_services_are_data() -> None:
    """With the same spread of endpoint counts, 2 000 services have the same chains, rules, sets and
    maps as 10.
    """
    shapes, elements = [], []
    for count in (10, 2000):
        with new_namespace() as netns, table_in(netns, *spread(count)) as table:
            report = table.sync(Family.IPv4, [])
            assert report.refused == {}
            shapes.append(shape_of(table, netns))
            elements.append(sum(map(len, contents(table).values())))
    assert shapes[0] == shapes[1]
    assert elements[1] > 150 * elements[0], "it was all of them"


@pytest.mark.contract("5.5.2", "5.5.3")
@pytest.mark.parametrize(
    ("policy", "chains", "sets"), [("Cluster", 3, 2), ("Local", 5, 4)], ids=["Cluster", "Local"]
)
def test_a_client_ip_service_is_a_constant_few_objects(policy: str, chains: int, sets: int) -> None:
    """With 3 or with 500 endpoints; and ten cost ten times as much as one."""

    def extra(services: int, endpoints: int) -> dict[str, int]:
        counts = []
        for affinity in ("None", "ClientIP"):
            members = [
                endpoint(f"10.244.{number // 250}.{number % 250 + 1}", "node1")
                for number in range(endpoints)
            ]
            # With the first such service comes the part of the program for all of them
            items: list[Object] = [
                service("first", "10.96.1.1", sessionAffinity="ClientIP"),
                endpoint_slice("first", members[:1]),
            ]
            for number in range(services):
                spec: dict[str, Any] = {
                    "sessionAffinity": affinity,
                    "externalTrafficPolicy": policy,
                    "node_port": 30000 + number,
                }
                items += [
                    service(f"s{number}", f"10.96.0.{number + 1}", **spec),
                    endpoint_slice(f"s{number}", members),
                ]
            with new_namespace() as netns, table_in(netns, *items) as table:
                assert table.sync(Family.IPv4, []).refused == {}
                counts.append(Counter(shape_of(table, netns)))
        counts[1].subtract(counts[0])
        return dict(counts[1])

    few = extra(1, 3)
    assert few == {"chains": chains, "rules": few["rules"], "sets and maps": sets}
    assert extra(1, 500) == few
    assert extra(10, 3) == {kind: 10 * number for kind, number in few.items()}


# --- reloading ------------------------------------------------------------------------------------


@pytest.mark.contract("5.7.7")
def test_a_known_digest_is_no_reload() -> None:
    """A restart with the same settings is no transaction.

    With others it is one for the program, whatever there is to reload.
    """
    with new_namespace() as netns, reading(netns) as reader:
        items = spread(12)
        with table_in(netns, *items) as table:
            table.sync(Family.IPv4, [])
            assert table.program.marker in reader.chains()
        before = generation(reader)
        with table_in(netns, *items) as table:
            report = table.sync(Family.IPv4, [])
            assert (report.read_back, report.transactions) == (True, 0)
        assert generation(reader) == before
        with table_in(
            netns, *items, chosen=settings(families=[Family.IPv4], detector=None)
        ) as table:
            report = table.sync(Family.IPv4, [])
            assert (report.read_back, report.written) == (True, 0)
            assert [name for name in reader.chains() if name.startswith("program-")] == [
                table.program.marker
            ]
        assert generation(reader) == before + 1


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        route_outside(world)
        world.lab.listen("node1", [8080])
        yield world


def start_with(world: World, **options: Any) -> None:
    """Start node1 anew, with other settings and the same objects."""
    store = world.tables["node1"].store
    table = world.start("node1", **options)
    table.store = store
    for syncer in table.syncers.values():
        syncer._store = store


PLACES = ("pod1-1", "pod1-2", "pod1-3", "pod2-1", "pod2-2", "pod2-3", "node1")


@pytest.mark.contract("5.7.2", "5.7.7", "5.7.5", "2.9.1")
def test_reloading_under_traffic(world: World) -> None:
    """Services of one to nine endpoints, with affinity and without, both policies.

    No connection fails, no element changes.
    """
    webs = []
    for count in range(1, 10):
        for spec in (
            {},
            {"sessionAffinity": "ClientIP"},
            {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"},
        ):
            web = Web(world)
            pods = [*PLACES, *PLACES][:count]
            objects = (
                [*web.slices(*pods[:7]), *web.slices(*pods[7:], port=9376, suffix="-more")]
                if count > 7
                else web.slices(*pods)
            )
            world.apply(web.service(**spec), *objects)
            webs.append(web)
    table = world.tables["node1"]
    held = contents(table)
    sources: list[str] = ["client", "pod1-3"]
    known = {
        (web.name, wire, where): world.ask(where, *web.at("vip", wire)).name
        for web in webs[1::3]
        for wire in WIRES
        for where in sources
    }
    with enter(
        world.lab.place("node1").namespace
    ):  # on a slow machine this takes longer than an idle UDP flow lives
        Path("/proc/sys/net/netfilter/nf_conntrack_udp_timeout").write_text("600")
    opened = [
        world.lab.open_connection("client", *web.at("nodeport", wire))
        for web in webs[::5]
        for wire in WIRES
    ]
    chains = set(table.kernel.chains)
    stopping = threading.Event()
    reloads = 0

    def reload() -> None:
        nonlocal reloads
        while not stopping.is_set():
            table.kernel.load(table.program)
            reloads += 1

    thread = threading.Thread(target=reload)
    thread.start()
    failures = []
    try:
        kinds: Iterator[Kind] = itertools.cycle(("cluster", "vip", "nodeport", "external"))
        while reloads < 30:
            for web, wire, where in itertools.product(webs, WIRES, sources):
                outcome = world.connect(where, *web.at(next(kinds), wire))
                if not isinstance(outcome, Answer):
                    failures.append((web.name, wire, where, outcome))
    finally:
        stopping.set()
        thread.join()
    assert failures == []
    assert contents(table) == held
    assert set(table.kernel.chains) == chains
    for (name, wire, where), answered in known.items():
        web = next(web for web in webs if web.name == name)
        assert world.ask(where, *web.at("vip", wire)).name == answered, "affinity is kept"
    for connection in opened:
        assert isinstance(connection, Connection)
        assert connection.again() == connection.answer
        connection.close()


@pytest.mark.contract("4.1.7", "4.2.5", "2.4.1", "2.3.7")
def test_other_settings_reach_every_chain(world: World) -> None:
    """Also the chains made on demand: those of picks and of ClientIP services know the detector."""
    plain, sticky = Web(world), Web(world)
    for web, affinity in ((plain, "None"), (sticky, "ClientIP")):
        web.apply("pod1-1", "pod2-1", externalTrafficPolicy="Local", sessionAffinity=affinity)
    far: list[Web] = []
    for affinity in ("None", "ClientIP"):
        web = Web(world)
        web.apply("pod2-1", externalTrafficPolicy="Local", sessionAffinity=affinity)
        far.append(web)
    kinds: tuple[Kind, ...] = ("vip", "nodeport")
    for detector in (CLUSTER, None, BridgeInterface("cni0"), None, CLUSTER):
        start_with(world, detector=detector)
        world.sync()
        for wire, web, kind in itertools.product(WIRES, far, kinds):
            if detector is None:
                web.assert_dropped("pod1-2", kind, wire)
            else:
                answer = world.ask("pod1-2", *web.at(kind, wire))
                assert (answer.name, answer.source) == (
                    "pod2-1",
                    world.address("pod1-2", wire.family),
                )
    start_with(world, masquerade_all=True)
    world.sync()
    for wire in WIRES:
        assert world.ask("pod1-2", *far[1].at("cluster", wire)).source == masked(
            world, "node1", "pod2-1", wire.family
        )


@pytest.mark.contract("5.1.3")
def test_only_our_own_table_is_touched(world: World) -> None:
    # Even one of the same name in another family
    world.lab.run("node1", ["nft", "add", "table", "ip", "nftproxy"])
    world.lab.run("node1", ["nft", "add", "table", "inet", "others"])
    handles = {
        item["table"]["handle"]
        for item in listing(world, "node1", "tables")
        if item["table"]["name"] == "others"
    }
    web = Web(world)
    web.apply("pod1-1")
    table = world.tables["node1"]
    table.kernel.load(table.program)
    table.tidy()
    table.kernel.delete_table()
    left = {
        (item["table"]["family"], item["table"]["name"]): item["table"]["handle"]
        for item in listing(world, "node1", "tables")
    }
    assert left.keys() == {("ip", "nftproxy"), ("inet", "others")}
    assert {left["inet", "others"]} == handles


def test_every_protocol_is_known() -> None:
    text = Program(settings()).text()
    for family, protocol in itertools.product(Family, PROTOCOLS):
        assert f"map endpoints{family.digit}-{protocol} {{" in text
