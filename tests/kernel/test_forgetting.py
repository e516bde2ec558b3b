"""Clients forget an endpoint that is gone, also where a dump of their memory misses some of them
(contract 2.4.5).

The kernel misses elements in two ways. While its worker moves the elements of a set that has grown
or shrunk, it lists some twice and as many not at all; after others expired during a long dump, it
lists as many not. When it does so cannot be chosen, so here the answers to a dump are changed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.errors import KernelError
from nftproxy.kernel import grace
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import EndpointSlice, Object, ObjectName, Service
from nftproxy.routes import Key, Value
from nftproxy.sync.forgetting import Forgetting
from nftproxy.sync.table import Table
from nftproxy.table import netlink, schema
from nftproxy.table.memories import Memory
from nftproxy.table.netlink import Elements, Message
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import bare_table, deliver, new_namespace, table_in, watched

STAYS, GOES = "10.244.1.2", "10.244.1.3"
FEW, MANY = 40, 400  # clients; MANY are listed in one message all the same
MEMORIES = {
    "port": "affinity4-default/web/tcp/http-8080",
    "service": "service_affinity4-default/web",
}

Items = list[bytes]


def web(*addresses: str, scope: str = "port") -> list[Object]:
    return [
        service(sessionAffinity="ClientIP", annotations={"nftproxy.io/affinity-scope": scope}),
        endpoint_slice(endpoints=[endpoint(address) for address in addresses]),
    ]


def sync(table: Table, *items: Object) -> None:
    for item in items:
        table.store.put(item)
    assert table.sync(Family.IPv4, []).refused == {}


def clients(count: int, gone: int) -> dict[Key, Value]:
    """So many clients, of which the last ones are at the endpoint that goes."""
    return {
        (f"192.0.{number // 200}.{number % 200}",): GOES if number >= count - gone else STAYS
        for number in range(count)
    }


class Disturbed:
    """Changes the answers to the first dumps of a memory, and counts all its dumps."""

    def __init__(
        self, kernel: Kernel, where: str, change: Callable[[Items], Items], times: int = 1
    ) -> None:
        self.dumps = 0
        self._name, self._change, self._times = where.encode() + b"\0", change, times
        for channel in (kernel._reader._channel, kernel._second._channel):
            channel._dumps = self._disturbing(channel._dumps)  # type: ignore[method-assign]

    def _disturbing(self, honest: Callable[..., Any]) -> Any:
        def dumps(kind: int, requests: list[bytes], *more: Any) -> list[list[bytes]]:
            answers: list[list[bytes]] = honest(kind, requests, *more)
            for number, request in enumerate(requests):
                if kind == Message.GET_ELEMENTS and self._is_asked_for(request):
                    self.dumps += 1
                    if self.dumps <= self._times:
                        answers[number] = [self._changed(each) for each in answers[number]]
            return answers

        return dumps

    def _is_asked_for(self, request: bytes) -> bool:
        return netlink.parts(request)[Elements.SET] == self._name

    def _changed(self, message: bytes) -> bytes:
        found = netlink.parts(message[4:]).get(Elements.LIST)
        if not found:
            return message
        items = [found[start:end] for _, (start, end) in netlink.attributes(found)]
        packed = [netlink.nested(netlink.LIST_ITEM, item) for item in self._change(items)]
        return message[:4] + netlink.nested(Elements.LIST, b"".join(packed))


def gone(item: bytes) -> bool:
    return bytes(map(int, GOES.split("."))) in item


def moving(items: Items) -> Items:
    """List each client of the endpoint that stays, some twice, and none of the other."""
    stay = [item for item in items if not gone(item)]
    return stay + stay[: len(items) - len(stay)]


def expiring(items: Items) -> Items:
    """Leave out some clients of the endpoint that goes, but not all."""
    left_out = [item for item in items if gone(item)][::2]
    return [item for item in items if item not in left_out]


READERS: dict[str, Callable[[Kernel, str], int]] = {
    "elements": lambda kernel, where: len(kernel.elements(where)),
    "elements_of": lambda kernel, where: len(kernel.elements_of([where])[where]),
    "packed": lambda kernel, where: len(kernel.packed([where])[where]),
    "counted": lambda kernel, where: len(list(kernel._reader.counted(where))),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("times", "dumps"), [(0, 1), (1, 2), (2, 3)])
def test_a_map_whose_elements_move_is_read_again(
    read: Callable[[Kernel, str], int], times: int, dumps: int
) -> None:
    """And no other one is."""
    where = MEMORIES["port"]
    with bare_table(*web(STAYS, GOES)) as table:
        sync(table)
        table.kernel.remember(where, clients(FEW, gone=5), 600)
        disturbed = Disturbed(table.kernel, where, moving, times)
        assert read(table.kernel, where) == FEW
        assert disturbed.dumps == dumps


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_it_is_not_read_for_ever(read: Callable[[Kernel, str], int]) -> None:
    where = MEMORIES["port"]
    with bare_table(*web(STAYS, GOES)) as table:
        sync(table)
        table.kernel.remember(where, clients(FEW, gone=5), 600)
        disturbed = Disturbed(table.kernel, where, moving, times=1000)
        read(table.kernel, where)
        assert disturbed.dumps == 3


@pytest.mark.contract("2.4.5")
@pytest.mark.parametrize("scope", MEMORIES)
@pytest.mark.parametrize(
    ("count", "change", "times", "dumps"),
    [
        pytest.param(FEW, moving, 0, 1, id="few-clients"),
        pytest.param(FEW, moving, 1, 2, id="few-that-move"),
        pytest.param(MANY, expiring, 0, 2, id="many"),
        pytest.param(MANY, expiring, 1, 3, id="many-while-others-expire"),
        pytest.param(MANY, moving, 1, 3, id="many-that-move"),
    ],
)
def test_everyone_forgets_an_endpoint_that_is_gone(
    scope: str, count: int, change: Callable[[Items], Items], times: int, dumps: int
) -> None:
    """Where few are remembered, nobody is missed, and the memory is read once."""
    with bare_table(*web(STAYS, GOES, scope=scope)) as table:
        sync(table)
        (where,) = (name for name in table.kernel.sets if name.startswith(MEMORIES[scope]))
        remembered = clients(count, gone=7)
        table.kernel.remember(where, remembered, 600)
        disturbed = Disturbed(table.kernel, where, change, times)
        sync(table, *web(STAYS, scope=scope))
        assert disturbed.dumps == dumps
        assert table.kernel.elements(where) == {
            client: address for client, address in remembered.items() if address == STAYS
        }


# --- a change step by step ------------------------------------------------------------------------

ONE, TWO = ("192.0.2.1",), ("192.0.2.2",)
PORTS = [
    {"name": "http", "protocol": "TCP", "port": 80},
    {"name": "alt", "protocol": "TCP", "port": 81},
]


def numbered(name: str, address: str, http: int, alt: int = 0) -> Object:
    """A slice with one endpoint, and its port numbers."""
    ports = [{"name": "http", "port": http, "protocol": "TCP"}]
    if alt:
        ports.append({"name": "alt", "port": alt, "protocol": "TCP"})
    return endpoint_slice(name=name, endpoints=[endpoint(address)], ports=ports)


def shared(*groups: tuple[str, str, int, int], ports: int = 2) -> list[Object]:
    """A Service whose ports share what they remember, with slices of one endpoint each."""
    annotations = {"nftproxy.io/affinity-scope": "service"}
    return [
        service(sessionAffinity="ClientIP", annotations=annotations, ports=PORTS[:ports]),
        *(numbered(*group) for group in groups),
    ]


def known(table: Table) -> dict[str, dict[Key, Value]]:
    """What clients remember, by the end of the memory's name."""
    table.kernel.refresh()
    return {
        name.partition("default/web")[2].strip("-"): found
        for name in table.kernel.sets
        if schema.is_memory(name, Family.IPv4) and (found := table.kernel.elements(name))
    }


def remember(table: Table, group: str, client: Key, address: str) -> None:
    """As if a packet had."""
    table.kernel.remember(f"service_affinity4-default/web-{group}", {client: address}, 3600)


@pytest.mark.contract("2.4.5")
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_what_is_left_of_an_earlier_group_is_forgotten(restarted: bool) -> None:
    """The Service comes back with other port numbers, and gets the former ones again."""
    first = shared(("a", STAYS, 8080, 8081), ("b", GOES, 8080, 8081))
    with new_namespace() as netns:
        with table_in(netns) as table:
            sync(table, *first)
            remember(table, "8080.8081", ONE, STAYS)
            remember(table, "8080.8081", TWO, GOES)
            table.store.remove(Service, ObjectName("default", "web"))
            sync(table)
            sync(table, *shared(("a", STAYS, 9090, 9091), ("b", GOES, 9090, 9091)))
            remember(table, "9090.9091", ONE, GOES)
            if not restarted:
                sync(table, *first)
                assert known(table) == {"8080.8081": {ONE: GOES}}
                return
        with table_in(netns) as table:
            sync(table, *first)
            assert known(table) == {"8080.8081": {ONE: GOES}}


@pytest.mark.contract("2.4.1", "2.4.5")
def test_a_client_known_in_two_groups_keeps_the_endpoint_that_stays() -> None:
    """The first is at a port that the second does not have; it gets there when the second goes."""
    with bare_table() as table:
        sync(table, *shared(("a", STAYS, 8080, 0), ("b", GOES, 8080, 8081)))
        remember(table, "8080.0", ONE, STAYS)
        remember(table, "8080.8081", ONE, GOES)
        table.store.remove(EndpointSlice, ObjectName("default", "b"))
        sync(table, numbered("a", STAYS, 8080, 8081))
        assert known(table) == {"8080.8081": {ONE: STAYS}}


@pytest.mark.contract("2.4.1", "5.10.1")
@pytest.mark.parametrize(
    ("change", "where"), [("goes", "services4"), ("numbers", "endpoints4-tcp")]
)
def test_a_refused_change_makes_nobody_forget(change: str, where: str) -> None:
    whole = shared(("a", STAYS, 8080, 8081), ("b", GOES, 8080, 8081))
    with bare_table() as table:
        sync(table, *whole)
        remember(table, "8080.8081", ONE, STAYS)
        remember(table, "8080.8081", TWO, GOES)
        members = table.kernel.elements("service_members4-default/web-8080.8081")

        def refuse(text: str) -> None:
            if f'"{where}"' in text:
                raise KernelError("no")

        with watched(table.kernel, refuse):
            deliver(table, *(whole[:2] if change == "goes" else shared(("a", STAYS, 9090, 9091))))
            table.store.remove(EndpointSlice, ObjectName("default", "b"))
            assert table.sync(Family.IPv4, []).refused
        assert table.kernel.elements("service_members4-default/web-8080.8081") == members
        assert known(table)["8080.8081"] == {ONE: STAYS, TWO: GOES}


@pytest.mark.contract("2.4.1")
def test_clients_that_move_are_known_all_the_time() -> None:
    """A Service gets a port: its endpoints get into a new group."""
    endpoints = ("a", STAYS, 8080, 8081), ("b", GOES, 8080, 8081)
    moments: list[dict[str, dict[Key, Value]]] = []
    with bare_table() as table:
        sync(table, *shared(*endpoints, ports=1))
        remember(table, "8080", ONE, STAYS)
        remember(table, "8080", TWO, GOES)

        def look(text: str) -> None:
            if '"services4"' in text:
                moments.append(known(table))

        with watched(table.kernel, look):
            sync(table, *shared(*endpoints))
        both: dict[Key, Value] = {ONE: STAYS, TWO: GOES}
        assert moments == [{"8080": both, "8080.8081": both}]
        assert known(table) == {"8080.8081": both}


@pytest.mark.contract("2.4.5")
@pytest.mark.parametrize("scope", MEMORIES)
def test_packets_on_their_way_when_the_table_is_read_back(scope: str) -> None:
    """As after any other change, quiet times look again."""
    with bare_table(*web(STAYS, GOES, scope=scope)) as table:
        sync(table)
        table.tidy()
        table.distrust(program=False)
        sync(table, *web(STAYS, scope=scope))
        (where,) = (name for name in table.kernel.sets if name.startswith(MEMORIES[scope]))
        table.kernel.remember(where, {ONE: GOES, TWO: STAYS}, 3600)
        assert table.untidy
        table.tidy()
        assert table.kernel.elements(where) == {TWO: STAYS}


@pytest.mark.contract("2.4.1", "2.4.5")
def test_clients_of_a_new_endpoint_stay_while_the_table_is_read_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, forget = MEMORIES["port"], Forgetting.forget
    with bare_table(*web(STAYS, GOES)) as table:
        sync(table)
        table.distrust(program=False)

        def connecting(self: Forgetting, memories: Iterable[Memory]) -> None:
            if table.syncers[Family.IPv4].remembered.services:  # it is in the table
                table.kernel.remember(where, {ONE: "10.244.1.9"}, 3600)
            forget(self, memories)

        monkeypatch.setattr(Forgetting, "forget", connecting)
        sync(table, *web(STAYS, "10.244.1.9"))
        assert table.kernel.elements(where) == {ONE: "10.244.1.9"}


@pytest.mark.contract("2.4.5")
def test_forgetting_that_fails_in_quiet_times_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = MEMORIES["port"]
    with bare_table(*web(STAYS, GOES)) as table:
        sync(table)
        sync(table, *web(STAYS))
        table.kernel.remember(where, {ONE: GOES}, 3600)

        def fail(*_: object) -> None:
            raise KernelError("no buffer")

        with monkeypatch.context() as patch:
            patch.setattr(table.kernel, "forget", fail)
            with pytest.raises(KernelError, match="no buffer"):
                table.tidy()
        assert table.untidy
        assert table.tidy()
        assert table.kernel.elements(where) == {}


def test_quiet_times_wait_for_nothing_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with bare_table(*web(STAYS, GOES)) as table:
        sync(table)
        sync(table, *web(STAYS))
        waited: list[None] = []
        monkeypatch.setattr(grace, "wait", lambda: waited.append(None))
        assert table.tidy(lambda: True)
        assert (waited, table.untidy) == ([], True)
        table.tidy()
        assert waited == [None]
