"""Elements written straight through netlink are, byte for byte, what libnftables leaves in the
kernel for the same change.
"""

import contextlib
import string
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nftproxy.address import Family, Network, parse_network
from nftproxy.errors import ExistsError, MissingError
from nftproxy.kernel import transactions
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.routes import Key, Value, Verdict
from nftproxy.store import Store
from nftproxy.sync.table import Table
from nftproxy.table import netlink, schema
from nftproxy.table.delta import Delta
from nftproxy.table.netlink import ElementAttribute, Elements, Message
from tests.kernel.test_packing import everything
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.running import eventually
from tests.support.tables import deliver, new_namespace, table_in, watched
from tests.support.world import settings as node_settings

PROTOCOLS = ("tcp", "udp", "sctp")
# Of a map's kind: a chain's begin
TARGETS = {
    "firewall": "allowed",
    "services": "pick",
    "no_endpoints": "reject-new",
    "learn": "learn",
}
Pair = tuple[Table, Table]
NUMBERS: dict[str, st.SearchStrategy[str | int]] = {
    "p": st.sampled_from(PROTOCOLS),
    "s": st.integers(1, 65535),
    "n": st.integers(0, 70000),
}


@contextlib.contextmanager
def filled(family: Family, *, by_netlink: bool) -> Iterator[Table]:
    """A table that holds every kind of element, written in one of the two ways."""
    chosen = node_settings(families=[family])
    with new_namespace() as netns:
        with enter(netns):
            kernel = Kernel(by_netlink=by_netlink)
        with kernel:
            table = Table(chosen, Store(chosen.families), kernel)
            deliver(table, *everything(family))
            table.sync(family, [])
            yield table


@pytest.fixture(scope="module", params=Family)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with (
        filled(request.param, by_netlink=False) as one,
        filled(request.param, by_netlink=True) as other,
    ):
        yield one, other


def raw(table: Table) -> dict[str, dict[tuple[bytes, bytes], dict[int, bytes]]]:
    """All elements as the kernel lists them.

    One that moves in a set that grows may be listed twice.
    """
    table.kernel.refresh()
    found: dict[str, dict[tuple[bytes, bytes], dict[int, bytes]]] = {}
    for name in sorted(table.kernel.sets):
        wanted = netlink.named(Elements.TABLE, "nftproxy") + netlink.named(Elements.SET, name)
        found[name] = {}
        for message in table.kernel._channel.dump(Message.GET_ELEMENTS, wanted):
            for _, place in netlink.attributes(netlink.parts(message).get(Elements.LIST, b"")):
                element = netlink.parts(netlink.parts(message)[Elements.LIST], place)
                found[name][
                    element[ElementAttribute.KEY], element.get(ElementAttribute.FLAGS, b"")
                ] = element
    return found


def test_every_kind_of_service(pair: Pair) -> None:
    one, other = map(raw, pair)
    assert sum(map(bool, one.values())) > 20
    assert other == one


@st.composite
def deltas(draw: st.DrawFn, table: Table, family: Family) -> Delta:
    """Anything to add, to any set."""
    base = "10.9.0.{}" if family is Family.IPv4 else "fd00:9::{:x}"

    def fields(letters: str) -> Key:
        return tuple(
            base.format(draw(st.integers(1, 40))) if each == "a" else draw(NUMBERS[each])
            for each in letters
        )

    wheres = [
        w for w in sorted(table.kernel.sets) if schema.is_compared(w, family) or "affinity" in w
    ]
    found = Delta()
    for where in draw(st.lists(st.sampled_from(wheres), min_size=1, max_size=5, unique=True)):
        place = schema.parse(where)
        assert place
        for _ in range(draw(st.integers(1, 4))):
            value: Value = None
            if place.declaration.value not in {"", schema.VERDICT}:
                endpoint = fields(place.declaration.value)
                value = endpoint if len(endpoint) > 1 else str(endpoint[0])
            elif begin := TARGETS.get(place.declaration.base):
                chains = [name for name in sorted(table.kernel.chains) if name.startswith(begin)]
                words = st.text(string.ascii_letters + string.digits + "/:-.", max_size=127)
                verdicts = [
                    Verdict("drop"),
                    *(
                        Verdict("goto", name)
                        for name in chains
                        if name not in {"remember4", "remember6"}
                    ),
                ]
                value = draw(st.sampled_from(verdicts))._replace(comment=draw(words))
            found.added.setdefault(where, {})[fields(place.key)] = value
    return found


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_elements(pair: Pair, data: st.DataObject) -> None:
    """Added, rewritten, forgotten and deleted."""
    family = pair[0].settings.families[0]
    delta = data.draw(deltas(pair[0], family))
    late = Delta(late={where: dict.fromkeys(items) for where, items in delta.added.items()})
    for table in pair:
        table.kernel.commit(delta)
    assert raw(pair[1]) == raw(pair[0])
    again = Delta()
    again.added = delta.added
    again.removed = {where: dict.fromkeys(items) for where, items in delta.added.items()}
    for table in pair:
        table.kernel.commit(again)
    assert raw(pair[1]) == raw(pair[0])
    for table in pair:
        for where in [where for where in delta.added if "affinity" in where]:
            table.kernel.forget(where, delta.added[where])
            late.late.pop(where, None)
        table.kernel.commit_late(late)
    assert raw(pair[1]) == raw(pair[0])


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_networks_and_addresses(pair: Pair, data: st.DataObject) -> None:
    family = pair[0].settings.families[0]
    v = family.digit
    texts = (
        [
            "0.0.0.0/2",
            "64.0.0.0/2",
            "10.96.0.0/16",
            "10.97.0.0/16",
            "9.0.0.0/8",
            "198.51.100.7/32",
            "255.255.255.0/24",
        ]
        if family is Family.IPv4
        else ["::/16", "fd00:10:96::/112", "fd00:10:97::/64", "2001:db8::1/128", "ff00::/8"]
    )
    chosen = data.draw(st.sets(st.sampled_from(texts)))
    if "0.0.0.0/2" in chosen:
        chosen -= {"10.96.0.0/16", "10.97.0.0/16", "9.0.0.0/8"}
    networks: list[Network] = sorted(map(parse_network, chosen))
    for table in pair:
        table.kernel.replace(f"service_cidrs{v}", [(str(network),) for network in networks])
        table.kernel.replace(f"nodeport_ips{v}", [(network.text,) for network in networks])
    assert raw(pair[1]) == raw(pair[0])


def test_what_the_kernel_refuses(pair: Pair) -> None:
    """The same errors, by type, and nothing of the transaction is left."""
    family = pair[0].settings.families[0]
    address = "10.9.9.9" if family is Family.IPv4 else "fd00:9:9::9"
    missing, there = Delta(), Delta()
    missing.removed = {f"cluster_ips{family.digit}": {(address,): None}}
    missing.added = {f"nodeport_ips{family.digit}": {(address,): None}}
    there.added = {
        f"nodeport_services{family.digit}": {("tcp", 99): Verdict("goto", "no-such-chain")}
    }
    before = raw(pair[1])
    for table in pair:
        for delta in (missing, there):
            with pytest.raises(MissingError):
                table.kernel.commit(delta)
    twice = Delta()
    port = ("tcp", 30001)
    twice.added = {f"no_endpoints{family.digit}": {(address, *port): Verdict("drop")}}
    other = Delta()
    other.added = {f"no_endpoints{family.digit}": {(address, *port): Verdict("goto", "reject-new")}}
    errors = []
    for table in pair:
        table.kernel.commit(twice)
        with pytest.raises(Exception, match=r".") as caught:
            table.kernel.commit(other)
        errors.append(caught.type)
        table.kernel.commit_late(
            Delta(late={where: dict.fromkeys(items) for where, items in twice.added.items()})
        )
    assert errors == [ExistsError, ExistsError]
    assert raw(pair[1]) == before


def test_a_transaction_of_many(pair: Pair) -> None:
    """More than one message holds, and more than a socket takes at first."""
    family = pair[0].settings.families[0]
    base = "10.9.{}.{}" if family is Family.IPv4 else "fd00:9::{:x}:{:x}"
    many = Delta()
    many.added = {
        f"endpoints{family.digit}-tcp": {
            (base.format(number // 200 + 1, number % 200 + 1), 80, 0): (
                "10.244.1.2" if family is Family.IPv4 else "fd00:244::2",
                80,
            )
            for number in range(20_000)
        }
    }
    for table in pair:
        table.kernel.commit(many)
    # While the kernel moves the elements of a map that has grown, a dump lists some twice, some
    # not.
    eventually(lambda: raw(pair[0]) == raw(pair[1]))
    for table in pair:
        table.kernel.commit_late(
            Delta(late={where: dict.fromkeys(items) for where, items in many.added.items()})
        )


def test_clients_that_are_remembered_are_forgotten_in_time(pair: Pair) -> None:
    """By either way the same, and those that are known stay as they are."""
    family = pair[0].settings.families[0]
    four = family is Family.IPv4
    clients = [("192.0.2.1" if four else "2001:db8::1"), ("192.0.2.2" if four else "2001:db8::2")]
    one, other = ("10.244.1.80", "10.244.1.81") if four else ("fd00:244:1::80", "fd00:244:1::81")
    where = f"service_affinity{family.digit}-default/web8-8080"
    for table in pair:
        table.kernel.remember(where, {(clients[0],): one}, 600)
        table.kernel.remember(where, {(clients[0],): other, (clients[1],): other}, 600)
        assert table.kernel.elements(where) == {(clients[0],): one}
        (element,) = raw(table)[where].values()
        assert int.from_bytes(element[ElementAttribute.TIMEOUT]) == 600_000
        table.kernel.forget(where, {(clients[0],): one})


@pytest.mark.parametrize("crowded", [False, True])
def test_the_library_is_spared_where_it_would_read_very_many_chains_and_sets(
    netns: str, monkeypatch: pytest.MonkeyPatch, crowded: bool
) -> None:
    """It makes chains and sets all the same; elements are netlink messages from then on."""
    objects = [
        item
        for number in range(3)
        for item in (
            service(f"s{number}", f"10.96.0.{10 + number}", sessionAffinity="ClientIP"),
            endpoint_slice(f"s{number}", [endpoint(f"10.244.{number}.2")]),
        )
    ]
    sent: list[str] = []
    with table_in(netns, *objects) as table, watched(table.kernel, sent.append):
        table.kernel.load(table.program)
        objects_there = len(table.kernel.chains | table.kernel.sets)
        # the library is called for the second time when the chains of these services are there
        monkeypatch.setattr(transactions, "CROWDED", objects_there + 10 if crowded else 10_000)
        assert table.sync(Family.IPv4, []).refused == {}
        assert any("sticky-pick4-tcp-1" in text and "chain" in text for text in sent)
        assert ('"learn4"' in "".join(sent)) is not crowded
        sent.clear()
        deliver(table, endpoint_slice("s1", [endpoint("10.244.1.9")]))
        assert table.sync(Family.IPv4, []).refused == {}
        assert bool(sent) is not crowded
        assert table.kernel.elements("endpoints4-tcp")["10.96.0.11", 80, 0] == ("10.244.1.9", 8080)
        assert ("10.244.1.9", "tcp", 8080) in table.kernel.elements("members4")
