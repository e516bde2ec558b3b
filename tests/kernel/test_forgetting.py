"""Clients forget an endpoint that is gone, also where a dump of their memory misses some of them
(contract 2.4.5).

The kernel misses elements in two ways. While its worker moves the elements of a set that has grown
or shrunk, it lists some twice and as many not at all; after others expired during a long dump, it
lists as many not. When it does so cannot be chosen, so here the answers to a dump are changed.
"""

from collections.abc import Callable
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import Object
from nftproxy.routes import Key, Value
from nftproxy.sync.table import Table
from nftproxy.table import netlink
from nftproxy.table.netlink import Elements, Message
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import bare_table

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
