"""Random changes of Services with ClientIP affinity, against a model of who stays remembered.

Nobody remembers an endpoint that is gone, and nobody forgets one that stays (contract 2.4.1,
2.4.5): through changes of endpoints, port numbers, ports, policies, scopes and timeouts, deletions
and returns, several in one sync, restarts, reading back and quiet times.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from nftproxy.address import Family
from nftproxy.model import EndpointSlice, ObjectName, Proto, Service, SlicePort
from nftproxy.sync.table import Table
from nftproxy.table import plan as plan_module
from nftproxy.table import schema
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import new_namespace, table_in

PORTS = {"http": ("TCP", 80), "alt": ("TCP", 81), "dns": ("UDP", 80)}
NUMBERS = (8080, 8080, 8080, 8081)
ADDRESSES = [f"10.244.1.{n}" for n in range(2, 8)]
CLIENTS = [f"192.0.2.{n}" for n in range(1, 13)]
SEQUENCES, STEPS = 16, 20

Member = tuple[str, int]
"""The address of an endpoint, and its port number where a memory is for one port number."""
Clients = dict[str, set[Member]]
"""By client: what it is remembered with; one for each memory of a list at most."""


@dataclass
class Wish:
    """A Service as it is wanted."""

    name: str
    dice: random.Random
    there: bool = True
    sticky: bool = True
    scope: str = "port"
    timeout: int = 10800
    ports: set[str] = field(default_factory=lambda: {"http", "alt"})
    policies: dict[str, Any] = field(default_factory=dict)
    # By address: the port number of each port, 0 where it has none
    endpoints: dict[str, dict[str, int]] = field(default_factory=dict)

    def change(self) -> str:
        """Change something, and return what."""
        changes: list[Callable[[], None]] = [
            *[self._some_endpoints] * 3,
            self._one_number,
            self._all_numbers,
            self._policy,
            self._some_ports,
            self._words,
            self._existence,
        ]
        change = self.dice.choice(changes)
        change()
        return f"{self.name}{change.__name__}"

    def _some_endpoints(self) -> None:
        for address in self.dice.sample(ADDRESSES, self.dice.randint(1, 2)):
            if self.endpoints.pop(address, None) is None:
                self.endpoints[address] = self._numbers()

    def _one_number(self) -> None:
        if self.endpoints:
            self.endpoints[self.dice.choice(sorted(self.endpoints))] = self._numbers()

    def _all_numbers(self) -> None:
        self.endpoints = dict.fromkeys(self.endpoints, self._numbers())

    def _policy(self) -> None:
        which = self.dice.choice(["internalTrafficPolicy", "externalTrafficPolicy"])
        self.policies[which] = self.dice.choice(["Cluster", "Local"])

    def _some_ports(self) -> None:
        self.ports = set(self.dice.sample(sorted(PORTS), self.dice.randint(1, 3)))

    def _words(self) -> None:
        if self.dice.random() < 0.5:
            self.scope = "port" if self.scope == "service" else "service"
        else:
            self.timeout = self.dice.choice([10800, 500])

    def _existence(self) -> None:
        if self.dice.random() < 0.5:
            self.there = not self.there
        else:
            self.sticky = not self.sticky

    def _numbers(self) -> dict[str, int]:
        numbers = dict.fromkeys(PORTS, self.dice.choice(NUMBERS))
        if self.dice.random() < 0.25:
            numbers[self.dice.choice(sorted(PORTS))] = self.dice.choice([0, 9090])
        return numbers

    def deliver(self, table: Table) -> None:
        """Bring the store to this."""
        key = ObjectName("default", self.name)
        if self.there:
            table.store.put(self._service())
        else:
            table.store.remove(Service, key)
        for number, address in enumerate(ADDRESSES):
            name = f"{self.name}-{number}"
            if address not in self.endpoints:
                table.store.remove(EndpointSlice, ObjectName("default", name))
                continue
            piece = endpoint_slice(
                self.name, [endpoint(address, f"node{number % 2 + 1}")], name=name
            )
            ports = tuple(
                SlicePort(name=port, port=number, protocol=Proto(PORTS[port][0]))
                for port, number in self.endpoints[address].items()
                if number
            )
            table.store.put(msgspec.structs.replace(piece, ports=ports))

    def _service(self) -> Service:
        ports = [
            {"name": name, "protocol": PORTS[name][0], "port": PORTS[name][1]}
            for name in sorted(self.ports)
        ]
        sticky: dict[str, Any] = {
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": self.timeout}},
            "annotations": {"nftproxy.io/affinity-scope": self.scope},
        }
        number = int(self.name[-1])
        return service(
            self.name,
            f"10.96.0.{10 + number}",
            ports=ports,
            vips=[f"203.0.113.{number + 1}"],
            **self.policies,
            **(sticky if self.sticky else {}),
        )


def lists(table: Table) -> Iterator[tuple[str, dict[Member, str]]]:
    """Yield each list of each memory, by a name that stays: the memory of each member."""
    for name, compiled in table.syncers[Family.IPv4].remembered.services.items():
        if compiled.shared:
            for _, declaration, groups in compiled.shared.lists():
                places = {
                    (address, 0): declaration.name(Family.IPv4, group.name)
                    for group in groups
                    for address in group.addresses
                }
                yield f"{name} {declaration.base}", places
            continue
        for affinity in compiled.affinities:
            for declaration, members in (
                (schema.AFFINITY, affinity.cluster),
                (schema.LOCAL_AFFINITY, affinity.local),
            ):
                yield (
                    f"{affinity.name} {declaration.base}",
                    {
                        (each.address, each.port): declaration.name(
                            Family.IPv4, affinity.name, each.port
                        )
                        for each in members
                    },
                )


class Model:
    """Who is remembered with what, in each list."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._places: dict[str, dict[Member, str]] = {}
        self._known: dict[str, Clients] = {}

    def compare(self) -> None:
        """Hold the kernel's memories against what stays of the last state."""
        places = dict(lists(self.table))
        for key, homes in places.items():
            before = self._places.get(key, {})
            allowed: dict[str, Clients] = {home: {} for home in homes.values()}
            for client, members in self._known.get(key, {}).items():
                for member in members & before.keys() & homes.keys():
                    allowed[homes[member]].setdefault(client, set()).add(member)
            for home, clients in allowed.items():
                found = self._elements(home)
                wanted = {
                    client: {address for address, _ in members}
                    for client, members in clients.items()
                }
                assert found.keys() == wanted.keys(), home
                assert all(found[client] in wanted[client] for client in found), home
        self._places = places
        self._known = {key: self._remembered(homes) for key, homes in places.items() if homes}

    def connect(self, dice: random.Random) -> None:
        """Let some clients connect that a memory does not know yet."""
        for key, homes in self._places.items():
            if homes and dice.random() < 0.7:
                known = self._known[key]
                for client in dice.sample(CLIENTS, 4):
                    member = dice.choice(sorted(homes))
                    if homes[member] not in {homes[each] for each in known.get(client, ())}:
                        self.table.kernel.remember(homes[member], {(client,): member[0]}, 3600)
                        known.setdefault(client, set()).add(member)

    def _remembered(self, homes: Mapping[Member, str]) -> Clients:
        found: Clients = {}
        for member, home in homes.items():
            for client, address in self._elements(home).items():
                if address == member[0]:
                    found.setdefault(client, set()).add(member)
        return found

    def _elements(self, where: str) -> dict[str, str]:
        if where not in self.table.kernel.sets:
            return {}
        return {str(key[0]): str(value) for key, value in self.table.kernel.elements(where).items()}


def play(dice: random.Random, log: list[str]) -> None:
    """Play one sequence."""
    wishes = [Wish(f"web{number}", dice) for number in range(dice.randint(1, 3))]
    with new_namespace() as netns, ExitStack() as stack:
        table = stack.enter_context(table_in(netns))
        model = Model(table)
        for _ in range(STEPS):
            log += [dice.choice(wishes).change() for _ in range(dice.choice([1, 1, 1, 2, 3]))]
            event = dice.choice(["", "", "", "", "", "", "quiet", "quiet", "restart", "distrust"])
            log.append(f"{event or 'sync'};")
            if event == "restart":
                stack.close()
                model.table = table = stack.enter_context(table_in(netns))
            elif event == "distrust":
                table.distrust(program=dice.random() < 0.5)
            elif event == "quiet":
                table.tidy()
            for wish in wishes:
                wish.deliver(table)
            assert table.sync(Family.IPv4, []).refused == {}
            model.compare()
            model.connect(dice)


@pytest.mark.contract("2.4.1", "2.4.5")
@pytest.mark.parametrize("batch", [10_000, 5], ids=["together", "in small batches"])
def test_who_stays_remembered(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "BATCH", batch)
    seed = random.randrange(2**32)
    for number in range(seed, seed + SEQUENCES):
        log: list[str] = []
        try:
            play(random.Random(number), log)
        except AssertionError as error:
            raise AssertionError(f"seed {number}: {' '.join(log)}: {error}") from error
