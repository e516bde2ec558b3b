"""Stale UDP conntrack entries.

Which ones go, on entries put into a real kernel and with real packets.
"""

import errno
import itertools
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from nftproxy.address import Family, pack
from nftproxy.errors import KernelError
from nftproxy.lab import namespace
from nftproxy.lab.client import Answer, Connection, Refused
from nftproxy.model import ObjectName, Service
from nftproxy.node import interfaces
from nftproxy.node.conntrack import ATTEMPTS, Cleaned, Conntrack, Judge
from nftproxy.node.udpflows import Expected, UdpFlows, nodeport_addresses
from nftproxy.routes import Frontend
from nftproxy.selection import Endpoint
from nftproxy.sync.report import Report
from nftproxy.table.delta import Delta
from tests.support.objects import service
from tests.support.world import CLUSTER_IP, VIP, World, unique_name

TCP, UDP, SCTP = 6, 17, 132
NODE = "192.168.50.11"
DNS = Frontend("10.96.0.10", "udp", 53)
NODEPORT = Frontend("", "udp", 30053)
GOOD, BAD = Endpoint("10.244.1.2", 8053), Endpoint("10.244.9.9", 8053)
WITH_ENDPOINT: Expected = {DNS: frozenset({GOOD}), NODEPORT: frozenset({GOOD})}
WITHOUT: Expected = {DNS: frozenset(), NODEPORT: frozenset()}
_DUMP, _ERROR, _DONE = 1 << 8, 2, 3
_numbers = itertools.count(1024)


class Entry(NamedTuple):
    """A conntrack entry: whom the client asked, and who answers."""

    asked: Endpoint
    answers: Endpoint
    protocol: int = UDP
    zone: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def direction(
    kind: int, source: Endpoint, destination: Endpoint, protocol: int, *, shuffled: bool = False
) -> bytes:
    """One tuple as the kernel writes it, or with its parts in another order."""
    first, second = (3, 4) if ":" in source.address else (1, 2)
    addresses = [
        attribute(first, pack(source.address)),
        attribute(second, pack(destination.address)),
    ]
    ports = [
        attribute(1, bytes([protocol])),
        attribute(2, source.port.to_bytes(2)),
        attribute(3, destination.port.to_bytes(2)),
    ]
    if shuffled:
        addresses.reverse()
        ports.reverse()
    parts = [attribute(0x8001, b"".join(addresses)), attribute(0x8002, b"".join(ports))]
    return attribute(0x8000 | kind, b"".join(reversed(parts) if shuffled else parts))


def tuples(entry: Entry, *, shuffled: bool = False) -> bytes:
    client = Endpoint(
        "fd00::77" if ":" in entry.asked.address else "10.9.9.9", next(_numbers) % 60000 + 1024
    )
    original = direction(1, client, entry.asked, entry.protocol, shuffled=shuffled)
    reply = direction(2, entry.answers, client, entry.protocol, shuffled=shuffled)
    return reply + original if shuffled else original + reply


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def family_of(entry: Entry) -> bytes:
    return b"\x0a\0\0\0" if ":" in entry.asked.address else b"\2\0\0\0"


def put(entries: Iterable[Entry]) -> None:
    """Create entries in the conntrack table of this thread's namespace."""
    from nftproxy.node.conntrack import _open

    netlink = _open()
    try:
        for entry in entries:
            extra = attribute(3, (0x0E).to_bytes(4)) + attribute(7, (600).to_bytes(4))
            if entry.zone:
                extra += attribute(18, entry.zone.to_bytes(2))
            if entry.protocol == TCP:
                extra += attribute(0x8004, attribute(0x8001, attribute(1, b"\3")))
            if entry.protocol == SCTP:
                tags = attribute(2, (1).to_bytes(4)) + attribute(3, (1).to_bytes(4))
                extra += attribute(0x8004, attribute(0x8003, attribute(1, b"\4") + tags))
            netlink.send(
                message(
                    _DUMP, 0x1 | 0x4 | 0x200 | 0x400, 1, family_of(entry) + tuples(entry) + extra
                )
            )
            assert not any(netlink.recv(4096)[16:20]), entry
    finally:
        netlink.close()


def present(protocol: int | None = None) -> dict[int, Entry]:
    """All entries of this thread's namespace by id, as another implementation reads them."""

    def end(part: Any, version: str, which: str) -> Endpoint:
        address = part.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_{version}_{which}")
        return Endpoint(
            address, part.get_attr("CTA_TUPLE_PROTO").get_attr(f"CTA_PROTO_{which}_PORT")
        )

    found = {}
    for number, version in ((2, "V4"), (10, "V6")):
        with NFCTSocket(nfgen_family=number) as other:
            for item in other.dump():
                asked, answers = item.get_attr("CTA_TUPLE_ORIG"), item.get_attr("CTA_TUPLE_REPLY")
                kind = asked.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM")
                if kind in {TCP, UDP, SCTP} and protocol in {None, kind}:
                    zone = item.get_attr("CTA_ZONE") or 0
                    found[item.get_attr("CTA_ID")] = Entry(
                        end(asked, version, "DST"), end(answers, version, "SRC"), kind, zone
                    )
    return found


@pytest.fixture
def empty_namespace() -> Iterator[None]:
    name = unique_name()
    namespace.create(name)
    try:
        with namespace.enter(name):
            yield
    finally:
        namespace.delete(name)


def clean(
    expected: Expected, family: Family = Family.IPv4, here: Iterable[str] = (NODE,)
) -> Cleaned:
    conntrack = Conntrack()
    try:
        return conntrack.clean(family, expected, frozenset(here))
    finally:
        conntrack.close()


AT_DNS = Endpoint(DNS.address, DNS.port)
AT_NODEPORT = Endpoint(NODE, NODEPORT.port)
CASES = [
    # what, entry, gone if the frontend has an endpoint, gone if it has none
    ("leads to an endpoint", Entry(AT_DNS, GOOD), False, True),
    ("leads to another pod", Entry(AT_DNS, BAD), True, True),
    ("leads to another port of the endpoint", Entry(AT_DNS, GOOD._replace(port=8054)), True, True),
    ("was never translated", Entry(AT_DNS, AT_DNS), True, False),
    ("another port of the ClusterIP", Entry(AT_DNS._replace(port=54), BAD), False, False),
    ("another address", Entry(AT_DNS._replace(address="10.96.0.11"), BAD), False, False),
    ("a NodePort, leads to an endpoint", Entry(AT_NODEPORT, GOOD), False, True),
    ("a NodePort, leads to another pod", Entry(AT_NODEPORT, BAD), True, True),
    ("a NodePort, was never translated", Entry(AT_NODEPORT, AT_NODEPORT), True, False),
    (
        "the NodePort's number elsewhere",
        Entry(Endpoint("8.8.8.8", 30053), Endpoint("8.8.8.8", 30053)),
        False,
        False,
    ),
    ("the NodePort of another node", Entry(Endpoint("192.168.50.12", 30053), BAD), False, False),
    ("TCP", Entry(AT_DNS, BAD, TCP), False, False),
    ("TCP to a NodePort", Entry(AT_NODEPORT, BAD, TCP), False, False),
    ("SCTP", Entry(AT_DNS, BAD, SCTP), False, False),
    ("in a zone", Entry(AT_DNS, BAD, UDP, 7), True, True),
    ("healthy, in a zone", Entry(AT_DNS, GOOD, UDP, 7), False, True),
]


@pytest.mark.usefixtures("empty_namespace")
class TestInTheKernel:
    @pytest.mark.parametrize("has_endpoint", [True, False])
    @pytest.mark.contract("6.2.3", "6.2.4", "6.2.5", "6.2.6")
    def test_exactly_the_stale_ones_go(self, has_endpoint: bool) -> None:
        put(entry for _, entry, _, _ in CASES)
        before = present()
        cleaned = clean(WITH_ENDPOINT if has_endpoint else WITHOUT)
        gone = [
            what
            for what, _, with_endpoint, without in CASES
            if (with_endpoint if has_endpoint else without)
        ]
        after = present()
        assert {what for what, entry, _, _ in CASES if entry not in after.values()} == set(gone)
        assert after.items() <= before.items(), "what stays is the very same entry"
        assert (cleaned.deleted, cleaned.complete) == (len(gone), True)

    def test_ipv6_and_only_that(self) -> None:
        asked, good, bad = (
            Endpoint("fd00:10:96::10", 53),
            Endpoint("fd00:244:1::2", 8053),
            Endpoint("fd00:244:9::9", 8053),
        )
        put([Entry(asked, good), Entry(asked, bad), Entry(asked, bad, TCP), Entry(AT_DNS, BAD)])
        cleaned = clean({Frontend(asked.address, "udp", 53): frozenset({good})}, Family.IPv6)
        assert cleaned.deleted == 1
        assert sorted(present().values()) == sorted(
            [Entry(asked, good), Entry(asked, bad, TCP), Entry(AT_DNS, BAD)]
        )

    @pytest.mark.contract("6.2.6")
    def test_many_at_once(self) -> None:
        put([Entry(AT_DNS, BAD)] * 1234 + [Entry(AT_DNS, GOOD)] * 321)
        assert clean(WITH_ENDPOINT).deleted == 1234
        assert clean(WITH_ENDPOINT).deleted == 0
        assert set(present().values()) == {Entry(AT_DNS, GOOD)}

    @pytest.mark.contract("6.2.6")
    def test_cost_is_entries_plus_services_not_their_product(self) -> None:
        put([Entry(Endpoint("8.8.8.8", 53), Endpoint("8.8.8.8", 53))] * 5000)
        services = {
            Frontend(f"10.96.{n // 250}.{n % 250}", "udp", 53): frozenset({GOOD})
            for n in range(5000)
        }
        start = time.process_time()
        assert clean(services).deleted == 0
        assert time.process_time() - start < 2, "the product would be 25 million comparisons"

    def test_an_entry_that_was_replaced_since_the_dump_stays(self) -> None:
        put([Entry(AT_DNS, BAD)])
        conntrack = Conntrack()
        try:
            judge = Judge(Family.IPv4, WITH_ENDPOINT, ())
            stale, _ = conntrack._stale(judge)
            [(number, entry)] = present().items()
            changed = stale[0].replace(number.to_bytes(4), (number ^ 1).to_bytes(4))
            assert conntrack._delete(judge, [changed]) == 0
            assert present() == {number: entry}
            assert conntrack._delete(judge, stale) == 1
        finally:
            conntrack.close()


FRONTENDS = {
    DNS: AT_DNS,
    Frontend("10.96.0.11", "udp", 53): Endpoint("10.96.0.11", 53),
    NODEPORT: AT_NODEPORT,
}
ASKED = [
    *FRONTENDS.values(),
    Endpoint("192.168.50.12", 30053),
    Endpoint("10.96.0.10", 30053),
    Endpoint("10.96.0.11", 54),
]
ANSWERS = [*ASKED, GOOD, BAD, GOOD._replace(port=53)]


def as_defined(entry: Entry, expected: Expected) -> bool:
    """Whether an entry is stale by the definition in `udpflows`, word by word (contract 6.2.3)."""
    for frontend, endpoints in expected.items():
        meant = entry.asked.port == frontend.port and entry.asked.address == (
            frontend.address or NODE
        )
        if meant and entry.protocol == UDP:
            return entry.answers not in endpoints if endpoints else entry.answers != entry.asked
    return False


@given(
    entry=st.builds(
        Entry, st.sampled_from(ASKED), st.sampled_from(ANSWERS), st.sampled_from([TCP, UDP, SCTP])
    ),
    expected=st.dictionaries(
        st.sampled_from(sorted(FRONTENDS)), st.frozensets(st.sampled_from([GOOD, BAD]))
    ),
    shuffled=st.booleans(),
)
def test_the_bytes_are_read_as_they_are_meant(
    entry: Entry, expected: Expected, shuffled: bool
) -> None:
    before = message(_DUMP, 0, 1, b"\2\0\0\0" + tuples(Entry(AT_DNS, BAD)))
    text = message(_DUMP, 0, 1, b"\2\0\0\0" + tuples(entry, shuffled=shuffled))
    judge = Judge(Family.IPv4, expected, {NODE})
    assert judge.is_stale(before + text, len(before), len(text)) == as_defined(entry, expected)


@dataclass
class Script:
    """A netlink socket: each dump shows `entries` and ends with the next of `codes`.

    Every deletion succeeds.
    """

    codes: list[int]
    flags: int = 0
    entries: tuple[Entry, ...] = (Entry(AT_DNS, BAD),)
    dumps: int = 0
    deletions: int = 0
    pending: list[bytes] = field(default_factory=list)

    def send(self, data: bytes) -> int:
        kind, _, sequence = struct.unpack_from("=HHI", data, 4)
        if kind & 0xFF == 2:
            self.deletions += 1
            self.pending.append(message(_ERROR, 0, sequence, bytes(20)))
            return len(data)
        self.dumps += 1
        stray = message(_DUMP, 0, sequence - 1, b"\2\0\0\0" + tuples(Entry(AT_DNS, BAD)))
        shown = [
            message(_DUMP, self.flags, sequence, b"\2\0\0\0" + tuples(entry))
            for entry in self.entries
        ]
        self.pending.append(stray + b"".join(shown))
        self.pending.append(message(_DONE, 0, sequence, struct.pack("=i", -self.codes.pop(0))))
        return len(data)

    def recv(self, _: int) -> bytes:
        return self.pending.pop(0)

    def close(self) -> None:
        pass


def due() -> UdpFlows:
    flows = UdpFlows(Family.IPv4)
    flows.saw({ObjectName("default", "dns"): (service(name="dns", protocol="UDP", port=53), ())})
    return flows


@pytest.mark.contract("6.2.6")
class TestInterrupted:
    def test_a_dump_that_was_interrupted_is_tried_again(self) -> None:
        script = Script([errno.EINTR, errno.EINTR, 0])
        flows = due()
        cleaned = Conntrack(script).reconcile(flows)
        assert cleaned is not None
        assert (cleaned.deleted, cleaned.complete, script.dumps, script.deletions) == (
            1,
            True,
            3,
            1,
        )
        assert not flows.due

    @pytest.mark.parametrize(
        "script", [Script([errno.EINTR] * 9), Script([0] * 9, flags=0x10)], ids=["error", "flag"]
    )
    def test_after_five_times_the_partial_result_is_used_and_the_rest_stays_due(
        self, script: Script
    ) -> None:
        flows = due()
        cleaned = Conntrack(script).reconcile(flows)
        assert cleaned is not None
        assert (cleaned.deleted, cleaned.complete, script.dumps, script.deletions) == (
            1,
            False,
            ATTEMPTS,
            1,
        )
        assert flows.due

    def test_any_other_failure_skips_the_clean_up_and_leaves_it_due(self) -> None:
        script = Script([errno.EPERM, 0])
        flows, conntrack = due(), Conntrack(script)
        with pytest.raises(KernelError, match="not permitted"):
            conntrack.clean(Family.IPv4, flows.expected(), ())
        script.codes = [errno.ENOMEM, 0]
        assert conntrack.reconcile(flows) is None
        assert (script.deletions, flows.due) == (0, True)
        cleaned = conntrack.reconcile(flows)
        assert cleaned is not None
        assert (cleaned.deleted, flows.due) == (1, False)

    def test_nothing_due_is_nothing_done(self) -> None:
        script = Script([])
        assert Conntrack(script).reconcile(UdpFlows(Family.IPv4)) is None
        assert script.dumps == 0


class Node:
    """What the run loop does after a sync, on one node of a world."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        with world.lab.enter(name):
            self.conntrack = Conntrack()
            self.own = interfaces.addresses()
        self.flows = {family: UdpFlows(family) for family in world.lab.families}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.conntrack.close()

    def after(self, reports: Iterable[Report]) -> int:
        """Clean up what syncs left; how many entries went."""
        deleted = 0
        for report in reports:
            flows = self.flows[report.family]
            flows.saw(report.looked_at, report.refused, everything=report.read_back)
            networks = self.world.tables[self.name].settings.nodeport_addresses[flows.family]
            flows.accept_nodeports_on(nodeport_addresses(flows.family, networks, self.own))
            cleaned = self.conntrack.reconcile(flows)
            deleted += cleaned.deleted if cleaned else 0
        return deleted

    def entries(self, protocol: int | None = None) -> dict[int, Entry]:
        with self.world.lab.enter(self.name):
            return present(protocol)


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with World(lab={"nodes": 1, "pods": 3}) as world:
        world.sync()  # the node tracks connections from its first table on
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    yield shared_world
    table = shared_world.tables["node1"]
    for name in list(table.store.take_dirty(Family.IPv4, everything=True).services):
        table.store.remove(Service, name)
    shared_world.start("node1")
    shared_world.sync()
    with shared_world.lab.enter("node1"), NFCTSocket() as netlink:
        netlink.flush()


@pytest.fixture
def node(world: World) -> Iterator[Node]:
    with Node(world, "node1") as node:
        yield node


def dns(family: Family, **spec: Any) -> Service:
    return service(
        **{
            "name": "dns",
            "cluster_ip": CLUSTER_IP[family],
            "port": 53,
            "protocol": "UDP",
            "node_port": 30053,
            **spec,
        },
        vips=[VIP[family]],
    )


def endpoints(world: World, family: Family, *pods: str) -> Any:
    return world.endpoints(*pods, family=family, of="dns", protocol="UDP")


def talk(world: World, where: str, address: str, port: int, **options: Any) -> Connection:
    opened = world.lab.open_connection(where, address, port, "UDP", **options)
    assert isinstance(opened, Connection), opened
    return opened


def target(world: World, family: Family, kind: str) -> tuple[str, int]:
    return {
        "ClusterIP": (CLUSTER_IP[family], 53),
        "VIP": (VIP[family], 53),
        "NodePort": (world.address("node1", family), 30053),
    }[kind]


PATHS = [
    pytest.param("pod1-2", "ClusterIP", {}, id="ClusterIP from a pod"),
    pytest.param("node1", "ClusterIP", {}, id="ClusterIP from the host"),
    pytest.param(
        "pod1-2", "ClusterIP", {"internalTrafficPolicy": "Local"}, id="iTP Local from a pod"
    ),
    pytest.param(
        "node1", "ClusterIP", {"internalTrafficPolicy": "Local"}, id="iTP Local from the host"
    ),
    pytest.param("client", "NodePort", {}, id="NodePort from outside"),
    pytest.param("pod1-2", "NodePort", {}, id="NodePort from a pod"),
    pytest.param("node1", "NodePort", {}, id="NodePort from the host"),
    pytest.param(
        "client", "NodePort", {"externalTrafficPolicy": "Local"}, id="NodePort, eTP Local"
    ),
    pytest.param("client", "VIP", {}, id="VIP from outside"),
    pytest.param("pod1-2", "VIP", {}, id="VIP from a pod"),
    pytest.param("client", "VIP", {"sessionAffinity": "ClientIP"}, id="VIP with affinity"),
]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("where", "kind", "spec"), PATHS)
@pytest.mark.contract("6.2.7", "2.9.1")
def test_an_open_socket_reaches_the_replacement(
    world: World, node: Node, family: Family, where: str, kind: str, spec: dict[str, Any]
) -> None:
    node.after(world.apply(dns(family, **spec), endpoints(world, family, "pod1-1")))
    with talk(world, where, *target(world, family, kind)) as client:
        assert client.answer.name == "pod1-1"
        reports = world.apply(endpoints(world, family, "pod1-3"))
        still = client.again()
        assert isinstance(still, Answer)
        assert still.name == "pod1-1", "without a clean-up the client would stay with the old pod"
        assert node.after(reports) == 1
        now = client.again()
        assert isinstance(now, Answer)
        assert now.name == "pod1-3"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(
    ("where", "kind"), [("client", "NodePort"), ("pod1-2", "NodePort"), ("node1", "NodePort")]
)
@pytest.mark.contract("6.2.7", "6.2.4")
def test_the_first_backend_is_reached_by_who_sent_before(
    world: World, node: Node, family: Family, where: str, kind: str
) -> None:
    address, port = target(world, family, kind)
    source_port = 50000 + next(_numbers) % 10000
    # No Service yet: the datagram reaches the node itself, and conntrack notes "not translated" for
    # this client.
    assert isinstance(world.connect(where, address, port, "UDP", source_port=source_port), Refused)
    node.after(world.apply(dns(family)))
    reports = world.apply(endpoints(world, family, "pod1-1"))
    assert isinstance(
        world.connect(where, address, port, "UDP", source_port=source_port), Refused
    ), "not yet cleaned"
    assert node.after(reports) == 1
    assert world.ask(where, address, port, "UDP", source_port=source_port).name == "pod1-1"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("kind", ["ClusterIP", "VIP", "NodePort"])
def test_scaled_to_zero_and_back(world: World, node: Node, family: Family, kind: str) -> None:
    node.after(world.apply(dns(family), endpoints(world, family, "pod1-1")))
    with talk(world, "pod1-2", *target(world, family, kind)) as client:
        assert node.after(world.apply(endpoints(world, family))) == 1
        assert client.again() == Refused(), (
            "the client is told, instead of talking to a pod that is gone"
        )
        node.after(world.apply(endpoints(world, family, "pod1-3")))
        answer = client.again()
        assert isinstance(answer, Answer)
        assert answer.name == "pod1-3"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("kind", ["ClusterIP", "VIP", "NodePort"])
def test_deleted_and_created_again(world: World, node: Node, family: Family, kind: str) -> None:
    one, other = dns(family), endpoints(world, family, "pod1-1")
    node.after(world.apply(one, other))
    with talk(world, "pod1-2", *target(world, family, kind)) as client:
        assert node.after(world.delete(one, other)) == 1
        assert not isinstance(client.again(timeout=0.1), Answer)
        node.after(world.apply(one, endpoints(world, family, "pod1-3")))
        answer = client.again()
        assert isinstance(answer, Answer)
        assert answer.name == "pod1-3"


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.contract("6.2.7", "2.9.1")
def test_healthy_flows_are_never_touched(world: World, node: Node, family: Family) -> None:
    web = service(name="web", cluster_ip=CLUSTER_IP[family].replace("10", "77"), protocol="TCP")
    node.after(world.apply(dns(family), endpoints(world, family, "pod1-1", "pod1-3"), web))
    world.apply(world.endpoints("pod1-3", family=family, of="web"))
    clients = [talk(world, "pod1-2", *target(world, family, "ClusterIP")) for _ in range(30)]
    direct = talk(world, "pod1-2", world.address("pod1-1", family), 8080)
    tcp = world.lab.open_connection("pod1-2", web.spec.cluster_ip or "", 80)
    assert isinstance(tcp, Connection)
    try:
        names = [client.answer.name for client in clients]
        assert set(names) == {"pod1-1", "pod1-3"}
        before = node.entries()
        assert node.after(world.apply(endpoints(world, family, "pod1-1"))) == names.count("pod1-3")
        after = node.entries()
        assert after.items() <= before.items()
        assert sorted(before.keys() - after.keys()) == sorted(
            number
            for number, entry in before.items()
            if entry.asked.port == 53 and entry.answers.address == world.address("pod1-3", family)
        )

        for syncer in world.tables["node1"].syncers.values():
            syncer.distrust()
        with Node(world, "node1") as restarted:
            assert restarted.after(world.sync()) == 0, "a restart finds nothing stale"
        assert node.entries().items() >= after.items()
        assert [c.again() for c in clients if c.answer.name == "pod1-1"] == [
            c.answer for c in clients if c.answer.name == "pod1-1"
        ]
        assert tcp.again() == tcp.answer
    finally:
        for connection in (*clients, direct, tcp):
            connection.close()


def test_what_became_stale_while_nobody_ran_goes_at_the_start(world: World, node: Node) -> None:
    node.after(world.apply(dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-1")))
    with talk(world, "pod1-2", CLUSTER_IP[Family.IPv4], 53) as client:
        table = world.start("node1")
        for item in (dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-3")):
            table.store.put(item)
        with Node(world, "node1") as restarted:
            assert restarted.after(world.sync()) == 1
        answer = client.again()
        assert isinstance(answer, Answer)
        assert answer.name == "pod1-3"


def test_a_failed_sync_keeps_the_clean_up_due(
    world: World, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.after(world.apply(dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-1")))
    with talk(world, "pod1-2", CLUSTER_IP[Family.IPv4], 53) as client:
        kernel = world.tables["node1"].kernel

        def refuse(*_: object) -> None:
            raise KernelError("no transactions today")

        with monkeypatch.context() as patch:
            patch.setattr(kernel, "commit", refuse)
            patch.setattr(kernel, "probe", refuse)
            with pytest.raises(KernelError, match="today"):
                world.apply(endpoints(world, Family.IPv4, "pod1-3"))
        assert node.after(world.sync()) == 1
        answer = client.again()
        assert isinstance(answer, Answer)
        assert answer.name == "pod1-3"


def test_what_the_kernel_takes_at_last_gets_its_clean_up(world: World, node: Node) -> None:
    """A Service is refused, a client sends into the void meanwhile, and reading back has it
    accepted.
    """
    table = world.tables["node1"]
    for item in (dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-1")):
        table.store.put(item)
    commit = table.kernel.commit

    def refuse(delta: Delta) -> int:
        if delta.added:
            raise KernelError("not this one")
        return commit(delta)

    table.kernel.commit = refuse  # type: ignore[method-assign]
    try:
        report = table.sync(Family.IPv4, node.own)
    finally:
        table.kernel.commit = commit  # type: ignore[method-assign]
    assert [name.name for name in report.refused] == ["dns"]
    node.after([report])
    address, source_port = world.address("node1"), 50000 + next(_numbers) % 10000
    assert isinstance(
        world.connect("client", address, 30053, "UDP", source_port=source_port), Refused
    )
    table.distrust(program=False)
    assert node.after(world.sync()) == 1
    assert world.ask("client", address, 30053, "UDP", source_port=source_port).name == "pod1-1"


def test_a_refused_service_that_is_deleted_takes_its_flows_along(world: World, node: Node) -> None:
    """Its deletion was refused, and reading back finds only elements that nobody wants."""
    one, other = dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-1")
    node.after(world.apply(one, other))
    table = world.tables["node1"]
    with talk(world, "pod1-2", CLUSTER_IP[Family.IPv4], 53) as client:
        commit = table.kernel.commit

        def refuse(delta: Delta) -> int:  # noqa: ARG001
            raise KernelError("not this one")

        table.store.remove(Service, one.metadata.key)
        table.kernel.commit = refuse  # type: ignore[method-assign]
        try:
            report = table.sync(Family.IPv4, node.own)
        finally:
            table.kernel.commit = commit  # type: ignore[method-assign]
        assert list(report.refused) == [one.metadata.key]
        assert node.after([report]) == 0
        table.distrust(program=False)
        assert node.after(world.sync()) == 1
        assert not isinstance(client.again(timeout=0.1), Answer)


def test_a_pods_own_flows_to_the_number_of_a_nodeport_stay(world: World, node: Node) -> None:
    world.lab.listen("pod1-1", [30053], ["UDP"])
    node.after(world.apply(dns(Family.IPv4), endpoints(world, Family.IPv4, "pod1-1")))
    with talk(world, "node1", world.address("pod1-1"), 30053) as direct:
        number = next(
            n
            for n, e in node.entries(UDP).items()
            if e.asked == Endpoint(world.address("pod1-1"), 30053)
        )
        node.after(world.apply(endpoints(world, Family.IPv4, "pod1-3")))
        assert number in node.entries(UDP)
        assert direct.again() == direct.answer
