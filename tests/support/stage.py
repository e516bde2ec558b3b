"""Where scenarios are played.

The cluster goes through its steps, and every answer, refusal and silence is compared.

Two things are remembered from step to step: open connections, which must survive everything
(contract 2.9.1), and which endpoint a client of a ClientIP service used last (2.4), for each of the
two lists.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import TracebackType
from typing import NamedTuple, Self

from nftproxy.address import Family, parse_address
from nftproxy.lab.client import Answer, Connection, Outcome
from nftproxy.model import EndpointSlice, Proto, Service, ServiceCIDR
from tests.support.ground import Ground
from tests.support.journey import Answered, Denied, Expected, Journey, Lost, Memory
from tests.support.objects import node as node_object
from tests.support.oracle import Cluster, Endpoint, Fate, Oracle, Packet, PortName, oracles
from tests.support.recollection import Recollection
from tests.support.strategies import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINT_PORTS,
    NODES,
    OUTSIDE,
    PODS,
    PROTOS,
    UNALLOCATED,
    UNDEFINED_NODE_PORT,
    UNDEFINED_PORT,
    Options,
    Scenario,
    Slices,
    Step,
)  # fmt: skip
from tests.support.world import SLOW

PATIENCE = 3.0 * SLOW  # seconds to wait for what must come
SILENCE = 0.03 * SLOW  # seconds to wait for what must not come
PROBES = 80  # packets for each step, not counting those of clients that may be remembered
RETURNING = 30  # connections of such clients
KEPT = 6  # connections held open
THOROUGH = 8  # frontends of each step whose endpoints all have to show up


class Source(NamedTuple):
    """Where a connection comes from.

    A place, and one of its addresses if not the one that the kernel chooses.
    """

    place: str
    address: str = ""


class Target(NamedTuple):
    """What to connect to."""

    family: Family
    destination: str
    port: int
    proto: Proto


class Probe(NamedTuple):
    """A connection to make."""

    source: Source
    target: Target


class FindingError(AssertionError):
    """Kernel and oracle disagree."""


@dataclass
class Tally:
    """How much was compared, and which frontends were found wrong.

    Only these are looked at while a finding is made smaller.
    """

    scenarios: int = 0
    steps: int = 0
    packets: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    suspects: set[Target] = field(default_factory=set)


def play(scenario: Scenario, tally: Tally) -> None:
    """Play a scenario on a ground of its own; FindingError when kernel and oracle disagree."""
    tally.scenarios += 1
    with Ground(scenario.options) as ground, Stage(ground, scenario, tally) as stage:
        for step in scenario.steps:
            stage.play(step)


class Stage:
    """The state of a play."""

    def __init__(self, ground: Ground, scenario: Scenario, tally: Tally) -> None:
        self._ground = ground
        self._options: Options = scenario.options
        self._random = random.Random(scenario.seed)
        self._tally = tally
        self._services: dict[int, Service] = {}
        self._slices: dict[int, Slices] = {}
        self._cidrs: tuple[ServiceCIDR, ...] = ()
        self._zones = dict.fromkeys(NODES, "")
        self._oracles: dict[tuple[str, Family], list[Oracle]] = {}
        self._recollection = Recollection()
        self._returning: set[Probe] = set()
        self._open: list[tuple[Probe, Connection]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, connection in self._open:
            connection.close()

    def play(self, step: Step) -> None:
        """Bring the cluster into the next state and compare."""
        self._tally.steps += 1
        self._change(step)
        self._deliver()
        self._judge()
        self._check_open()
        thorough = THOROUGH
        for probe in self._probes():
            if self._compare(probe) and thorough and self._random.random() < 0.5:
                thorough -= 1
                self._see_all(probe)

    # ---- the cluster ----

    def _change(self, step: Step) -> None:
        for number, service in step.services.items():
            if service is None:
                self._services.pop(number, None)
            else:
                self._services[number] = service
        self._slices |= step.slices
        self._cidrs = self._cidrs if step.cidrs is None else step.cidrs
        self._zones |= step.zones
        for node in self._ground.lab.nodes:
            if node.name in step.restart:
                self._ground.restart(node)

    @property
    def _pieces(self) -> tuple[EndpointSlice, ...]:
        return tuple(piece for pieces in self._slices.values() for piece in pieces)

    def _deliver(self) -> None:
        for node in self._ground.lab.nodes:
            table = self._ground.table(node)
            table.store.put(node_object(node.name, node.addresses.values(), self._zones[node.name]))
            table.store.replace(Service, self._services.values())
            table.store.replace(EndpointSlice, self._pieces)
            table.store.replace(ServiceCIDR, self._cidrs)
            own = [parse_address(str(address)) for address in self._ground.host(node, "").own]
            for family in table.settings.families:
                try:
                    report = table.sync(family, own)
                except Exception as error:
                    raise FindingError(
                        f"{node.name} {family}: {type(error).__name__}: {error}"
                    ) from error
                if report.refused:
                    raise FindingError(f"{node.name} {family}: the kernel refuses {report.refused}")

    def _judge(self) -> None:
        """Ask the oracles about the new state, and forget what is no longer to be remembered."""
        cluster = Cluster(tuple(self._services.values()), self._pieces, self._cidrs)
        hosts = {
            node.name: self._ground.host(node, self._zones[node.name])
            for node in self._ground.lab.nodes
        }
        self._oracles = {
            (name, family): oracles(cluster, host, family)
            for name, host in hosts.items()
            for family in Family
        }
        self._journey = Journey(self._ground.lab.plan, hosts, self._oracles)
        self._recollection.renew(self._oracles)

    # ---- packets ----

    def _probes(self) -> list[Probe]:
        """Return the packets of a step: those to suspects, if there are any.

        Else all that make sense, or a random part of them.
        """
        targets = sorted(self._tally.suspects) * 3
        if not targets:
            targets = [target for family in Family for target in sorted(self._targets(family))]
        found = [Probe(source, target) for target in targets for source in _sources(target)]
        if self._tally.suspects:
            return found
        returning = sorted(self._returning)
        self._returning.clear()
        # 2.7.6
        own = [
            Probe(Source("node1"), target)
            for target in targets
            if target.destination == OUTSIDE[target.family][-1]
        ]
        return self._some(returning, RETURNING) + self._some(found, PROBES) + own

    def _some(self, probes: list[Probe], most: int) -> list[Probe]:
        return probes if len(probes) <= most else self._random.sample(probes, most)

    def _targets(self, family: Family) -> Iterator[Target]:
        places = ADDRESSES[family]
        loopback = "127.0.0.1" if family is Family.IPv4 else "::1"
        found = {(UNALLOCATED[family], 80, proto) for proto in PROTOS}
        found.add(
            (places[self._random.choice(PODS)], ENDPOINT_PORTS[0], self._random.choice(PROTOS))
        )
        for number, service in self._services.items():
            for port in service.spec.ports or ():
                for address in (
                    CLUSTER_IPS[family][number],
                    *OUTSIDE[family],
                    places["node1"],
                    places["node2"],
                ):
                    found.add((address, port.port, port.protocol))
                found.add((CLUSTER_IPS[family][number], UNDEFINED_PORT, port.protocol))
                if port.node_port:
                    addresses = (
                        places["node1"],
                        places["node2"],
                        places["gateway1"],
                        loopback,
                        OUTSIDE[family][-1],
                    )
                    found |= {(address, port.node_port, port.protocol) for address in addresses}
                    found.add((places["node1"], UNDEFINED_NODE_PORT, port.protocol))
        return (Target(family, *target) for target in found)

    def _source(self, probe: Probe) -> str:
        return probe.source.address or self._ground.source(
            probe.source.place, probe.target.destination
        )

    def _expected(self, probe: Probe) -> list[Expected]:
        target = probe.target
        packet = Packet(self._source(probe), target.destination, target.port, target.proto)
        return self._journey.expected(
            self._ground.lab.place(probe.source.place), packet, target.family
        )

    def _compare(self, probe: Probe) -> bool:
        """Make a connection and compare.

        Return whether one of several endpoints answers, all equally likely.
        """
        expected = self._expected(probe)
        outcome, connection = self._connect(probe, expected)
        if connection:
            self._keep(probe, connection)
        matches = [each for each in expected if each.fits(outcome)]
        if not matches:
            raise self._finding(probe, _complaint(expected, outcome))
        self._remember(probe, matches, outcome)
        answered = [each for each in expected if isinstance(each, Answered)]
        if any(each.choice for each in answered):
            self._returning.add(probe)
            return False
        return len(answered) == len(expected) and len({each.owner for each in answered}) == 1

    def _connect(
        self, probe: Probe, expected: Iterable[Expected]
    ) -> tuple[Outcome, Connection | None]:
        target = probe.target
        quiet = any(isinstance(each, Lost) or each == Denied(Fate.SILENT) for each in expected)
        found = self._ground.lab.open_connection(
            probe.source.place,
            target.destination,
            target.port,
            target.proto.value,
            timeout=SILENCE if quiet else PATIENCE,
            # Fresh UDP ports are counted by source as named; the unnamed source of a node may be
            # any of its addresses.
            source=self._source(probe) if target.proto is Proto.UDP else probe.source.address,
        )
        outcome = found.answer if isinstance(found, Connection) else found
        self._tally.packets += 1
        self._tally.outcomes[type(outcome).__name__] += 1
        return outcome, found if isinstance(found, Connection) else None

    def _see_all(self, probe: Probe) -> None:
        """Connect until each endpoint of a list had its turn but for a chance of one in 10^9."""
        if any(len(self._oracles[node, probe.target.family]) > 1 for node in NODES):
            return
        expected = self._expected(probe)
        missing = {each.endpoint for each in expected if isinstance(each, Answered)}
        for _ in range(24 * len(missing)):
            outcome, connection = self._connect(probe, expected)
            if connection:
                connection.close()
            if not any(each.fits(outcome) for each in expected):
                raise self._finding(probe, _complaint(expected, outcome))
            assert isinstance(outcome, Answer)
            missing.discard(Endpoint(outcome.address, outcome.port))
            if not missing:
                return
        raise self._finding(probe, f"never answered by {sorted(missing)}")

    def _remember(self, probe: Probe, matches: list[Expected], outcome: Outcome) -> None:
        """Check affinity and note who answered (contract 2.4)."""
        found = {each.choice for each in matches if not isinstance(each, Denied)}
        choices = {choice for choice in found if choice}
        # It may be another service's connection, also of one without affinity
        unsure = len(found) > 1
        if not choices or unsure:
            self._recollection.doubt(self._taken_for_node_port(probe))
        if not isinstance(outcome, Answer) or unsure:
            self._recollection.doubt(choice.memory for choice in choices)
            return
        reached = Endpoint(outcome.address, outcome.port)
        for choice in choices:
            remembered = self._recollection.expected(choice)
            if remembered and reached not in remembered:
                raise self._finding(
                    probe, f"{choice} reached {reached}, but {sorted(remembered)} was remembered"
                )
            self._recollection.note(choice.memory, reached)

    def _taken_for_node_port(self, probe: Probe) -> Iterator[Memory]:
        """Yield what may remember a client that it should not know.

        Where all of a node's addresses accept NodePorts, a load balancer's with the port number of
        a NodePort passes for one of them, if both Services share an endpoint (docs/limits.md).
        """
        target = probe.target
        if self._options.node_ports != "all" or target.destination in CLUSTER_IPS[target.family]:
            return
        for service in self._services.values():
            for port in service.spec.ports or ():
                if port.node_port == target.port and port.protocol == target.proto:
                    owner = PortName(service.metadata.key, port.name or "", port.protocol)
                    yield from (Memory(node, owner, self._source(probe)) for node in NODES)

    def _keep(self, probe: Probe, connection: Connection) -> None:
        """Hold some connections open; drop the others."""
        if probe.target.proto is Proto.UDP or self._random.random() < 0.8:
            connection.close()
            return
        self._open.append((probe, connection))
        if len(self._open) > KEPT:
            self._open.pop(self._random.randrange(KEPT))[1].close()

    def _check_open(self) -> None:
        for probe, connection in self._open:
            outcome = connection.again(PATIENCE)
            if outcome != connection.answer:
                raise self._finding(
                    probe,
                    f"the connection answered by {connection.answer} was cut by this step: "
                    f"{outcome}",
                )

    def _finding(self, probe: Probe, what: str) -> FindingError:
        self._tally.suspects.add(probe.target)
        target = probe.target
        to = f"{target.destination} port {target.port} {target.proto}"
        return FindingError(f"{probe.source.place} ({self._source(probe)}) -> {to}: {what}")


def _complaint(expected: list[Expected], outcome: Outcome) -> str:
    return "\n".join(
        [f"became {outcome}", "  expected one of", *(f"    {each}" for each in expected)]
    )


def _sources(target: Target) -> list[Source]:
    """Return where connections to a target are made from."""
    if ip_address(target.destination).is_loopback:
        return [Source(node) for node in NODES]
    gateway = ADDRESSES[target.family]["gateway1"]
    return [
        *(Source(name) for name in (*PODS, *NODES, "client", "client2")),
        Source("node1", gateway),
    ]
