"""Where scenarios are played: a World whose every answer, refusal and silence is compared with the oracle.

The oracle speaks for one node; here its verdicts are put together along the way of a packet: from the source to the first node,
perhaps to a second one, to an endpoint, and the way back. Nodes, and a host outside that has all outside addresses,
listen on every port that packets are sent to, so that "untouched" is an answer of its own and no silence.

Two things are remembered from step to step: open connections, which must survive everything (contract 2.9.1), and which endpoint a
client of a ClientIP service used last (2.4), for each of the two lists.
"""

import random
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any, NamedTuple, Self

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.kernel import Kernel
from nftproxy.lab import build
from nftproxy.lab.client import Answer, Connection, Outcome, Refused, Silent, Unreachable
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS, Client, Node, Pod
from nftproxy.model import EndpointSlice, Proto, Service, ServiceCIDR
from nftproxy.proxy import Table
from nftproxy.settings import ALL, BridgeInterface, Cidr, InterfaceNamePrefix, LocalDetector, NodePortNetworks
from nftproxy.store import Store
from tests.objects import node as node_object
from tests.oracle import Cluster, Endpoint, Fate, Host, Link, Oracle, Packet, PortName, Served, Which, oracles
from tests.strategies import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINT_PORTS,
    NODE_PORTS,
    NODES,
    OUTSIDE,
    PODS,
    PORTS,
    PROTOS,
    UNALLOCATED,
    UNDEFINED_NODE_PORT,
    UNDEFINED_PORT,
    Options,
    Scenario,
    Step,
)
from tests.world import CLUSTER, World, settings

PATIENCE = 3.0  # seconds to wait for what must come
SILENCE = 0.03  # seconds to wait for what must not come
PROBES = 70  # packets for each step
KEPT = 6  # connections held open
THOROUGH = 2  # frontends of each step whose endpoints all have to show up


class Source(NamedTuple):
    """Where a connection comes from: a place, and one of its addresses if not the one that the kernel chooses."""

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


class Memory(NamedTuple):
    """What a node may remember a client for."""

    node: str
    owner: PortName
    client: str


class Choice(NamedTuple):
    """The list an endpoint of a ClientIP service was chosen from, and all of its endpoints."""

    memory: Memory
    which: Which
    endpoints: frozenset[Endpoint]


@dataclass(frozen=True)
class Answered:
    """Somebody has to answer: this endpoint (or whoever listens there), having seen one of these sources."""

    endpoint: Endpoint
    sources: frozenset[str]
    choice: Choice | None = None

    def fits(self, outcome: Outcome) -> bool:
        """Whether this is what happened."""
        return isinstance(outcome, Answer) and (outcome.address, outcome.port) == self.endpoint and outcome.source in self.sources


@dataclass(frozen=True)
class Lost:
    """An endpoint is reached whose answer cannot find back; only its own network is to blame."""

    choice: Choice | None = None

    def fits(self, outcome: Outcome) -> bool:
        """Whether this is what happened."""
        return isinstance(outcome, Silent) or outcome == Unreachable("ECONNRESET")


@dataclass(frozen=True)
class Denied:
    """Refused, or nothing at all."""

    fate: Fate

    def fits(self, outcome: Outcome) -> bool:
        """Whether this is what happened."""
        return isinstance(outcome, Refused if self.fate is Fate.REFUSED else Silent)


Expected = Answered | Lost | Denied


class FindingError(AssertionError):
    """Kernel and oracle disagree."""


class _Unsure:
    """What stands in the memory where the contract leaves open what is remembered."""


UNSURE = _Unsure()


@dataclass
class Tally:
    """How much was compared, and which frontends were found wrong: only these are looked at while a finding is made smaller."""

    scenarios: int = 0
    steps: int = 0
    packets: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    suspects: set[Target] = field(default_factory=set)


class Stage:
    """A World for one scenario; `play` goes through its steps and raises FindingError."""

    def __init__(self, options: Options, seed: int, tally: Tally) -> None:
        self._options = options
        self._random = random.Random(seed)
        self._tally = tally
        self._cleanup = ExitStack()
        self._services: dict[int, Service] = {}
        self._slices: dict[int, EndpointSlice] = {}
        self._cidrs: tuple[ServiceCIDR, ...] = ()
        self._zones = dict.fromkeys(NODES, "")
        self._oracles: dict[tuple[str, Family], list[Oracle]] = {}
        self._memory: dict[Memory, dict[Which, Endpoint | _Unsure]] = {}
        self._open: list[tuple[Probe, Connection]] = []
        self._sources: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        with self._cleanup as cleanup:
            lab = {"pods": 2, "clients": 2, "wiring": self._options.wiring}
            self._world = cleanup.enter_context(World(lab=lab))
            self._wire()
            for node in self._world.lab.nodes:
                self._restart(node.name)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _, connection in self._open:
            connection.close()
        self._cleanup.close()

    def play(self, step: Step) -> None:
        """Bring the cluster into the next state and compare."""
        self._change(step)
        for node in step.restart:
            self._restart(node)
        self._deliver()
        self._tally.steps += 1
        self._judge()
        self._check_open()
        thorough = THOROUGH
        for probe in self._probes():
            served = self._compare(probe)
            if served and thorough and self._random.random() < 0.2:
                thorough -= 1
                self._see_all(probe)

    # ---- the cluster ----

    def _change(self, step: Step) -> None:
        for number, service in step.services.items():
            _set(self._services, number, service)
        for number, piece in step.slices.items():
            _set(self._slices, number, piece)
        self._cidrs = self._cidrs if step.cidrs is None else step.cidrs
        self._zones |= step.zones

    def _restart(self, node: str) -> None:
        """Start a node's proxy with an empty memory; its table stays."""
        place, options = self._node(node), self._options
        self._world.tables[node].kernel.close()
        chosen = settings(
            node,
            place.addresses,
            detector=self._detector(place),
            masquerade_all=options.masquerade_all,
            nodeports=self._node_ports(),
        )
        with self._lab.enter(place):
            kernel = Kernel()
        chosen = replace(chosen, allow_external_ips=options.external_ips)
        self._world.tables[node] = Table(chosen, Store(chosen.families), kernel)

    def _deliver(self) -> None:
        for node in self._world.lab.nodes:
            table = self._world.tables[node.name]
            table.store.put(node_object(node.name, node.addresses.values(), self._zones[node.name]))
            table.store.replace(Service, self._services.values())
            table.store.replace(EndpointSlice, self._slices.values())
            table.store.replace(ServiceCIDR, self._cidrs)
            own = [parse_address(str(address)) for address in self._host(node).own]
            for family in table.settings.families:
                report = table.sync(family, own)
                if report.refused:
                    raise FindingError(f"{node.name} {family}: the kernel refuses {report.refused}")

    def _judge(self) -> None:
        """Ask the oracles about the new state, and forget what is no longer to be remembered."""
        cluster = Cluster(tuple(self._services.values()), tuple(self._slices.values()), self._cidrs)
        for node in self._world.lab.nodes:
            for family in Family:
                self._oracles[node.name, family] = oracles(cluster, self._host(node), family)
        for memory in list(self._memory):
            lists = self._memory[memory]
            for which, endpoint in list(lists.items()):
                known = self._known(memory, which, endpoint)
                if known is None:
                    del lists[which]
                else:
                    lists[which] = known
            if not lists:
                del self._memory[memory]

    def _known(self, memory: Memory, which: Which, endpoint: Endpoint | _Unsure) -> Endpoint | _Unsure | None:
        """Return what is remembered of an endpoint: it, nothing, or nobody knows, as readings differ."""
        family = Family.IPv6 if ":" in memory.client else Family.IPv4
        members = [oracle.members().get(memory.owner) for oracle in self._oracles[memory.node, family]]
        if isinstance(endpoint, _Unsure):
            return UNSURE if any(members) else None
        inside = [found is not None and endpoint in found[which] for found in members]
        return endpoint if all(inside) else UNSURE if any(inside) else None

    # ---- the lab ----

    @property
    def _lab(self) -> Lab:
        return self._world.lab

    def _wire(self) -> None:
        """Have everybody listen, and all ways back lead through the node that a packet came by."""
        lab, underlay = self._lab, self._lab.plan.underlay
        ports = {*PORTS, *NODE_PORTS, UNDEFINED_PORT, UNDEFINED_NODE_PORT}
        for node in lab.nodes:
            lab.listen(node, (*ports, *ENDPOINT_PORTS))
        assert lab._server is not None
        lab._server.listen(underlay, "outside", sorted(ports), ("TCP", "UDP"), lab.families)
        lines = []
        for family in Family:
            everywhere = {*OUTSIDE[family], *CLUSTER_IPS[family], UNALLOCATED[family]}
            lines += [f"addr add {a}/{family.bits} dev lo{' nodad' if family is Family.IPv6 else ''}" for a in everywhere]
            lines += [f"route add {node.pod_cidrs[family]} via {node.addresses[family]}" for node in lab.nodes]
            for client, node, other in zip(lab.clients, lab.nodes, reversed(lab.nodes), strict=True):
                mine, way = client.addresses[family], node.addresses[family]
                lines.append(f"route add {mine}/{family.bits} via {way}")
                lab.ip(other, f"route add {mine}/{family.bits} via {way}")
                targets = (SERVICE_CIDRS[family], *(f"{address}/{family.bits}" for address in OUTSIDE[family]))
                lab.ip(client, *(f"route replace {target} via {way}" for target in targets))
            lab.ip("node1", f"addr add {OUTSIDE[family][-1]}/{family.bits} dev lo")
        build.batch("ip", underlay, lines)

    def _detector(self, node: Node) -> LocalDetector | None:
        bridged = self._options.wiring == "bridge"
        match self._options.detector:
            case "cluster":
                return CLUSTER
            case "ipv4-only":
                return Cidr({Family.IPv4: parse_network(CLUSTER_CIDRS[Family.IPv4])})
            case "node":
                return Cidr({family: parse_network(text) for family, text in node.pod_cidrs.items()})
            case "bridge":
                return BridgeInterface("cni0" if bridged else "veth1")
            case "prefix":
                return InterfaceNamePrefix("cn" if bridged else "veth")
            case _:
                return None

    def _node_ports(self) -> Mapping[Family, NodePortNetworks] | None:
        match self._options.node_ports:
            case "all":
                return dict.fromkeys(Family, ALL)
            case "pods":
                return {family: (parse_network(text),) for family, text in CLUSTER_CIDRS.items()}
            case _:
                return None

    def _host(self, node: Node) -> Host:
        """A node as the oracle wants it."""
        links = []
        for family in Family:
            network = ip_network(f"{node.addresses[family]}/{24 if family is Family.IPv4 else 64}", strict=False)
            links += [Link(str(network), node.addresses[family]), Link(node.pod_cidrs[family], node.gateways[family])]
        more = tuple(addresses[-1] for addresses in OUTSIDE.values()) if node.name == "node1" else ()
        return Host(self._world.tables[node.name].settings, self._zones[node.name], tuple(links), ("127.0.0.1", "::1", *more))

    # ---- what must happen ----

    def _expected(self, probe: Probe) -> list[Expected]:
        """Return everything that may become of a connection; one thing of each kind that is expected, in all readings."""
        place = self._lab.place(probe.source.place)
        source = self._source_address(probe)
        if isinstance(place, Client):
            at = next((n for n in self._lab.nodes if n.addresses[probe.target.family] == probe.target.destination), None)
            node, interface = at or self._lab.nodes[place.number - 1], "eth0"
        elif isinstance(place, Pod):
            node, interface = self._node(place.node), self._interface(place)
        else:
            assert isinstance(place, Node)
            node, interface = place, ""
        packet = Packet(source, probe.target.destination, probe.target.port, probe.target.proto, interface)
        return list(dict.fromkeys(self._arrive(node, packet, probe.target.family)))

    def _arrive(self, node: Node, packet: Packet, family: Family) -> Iterator[Expected]:
        """Yield what may become of a packet that comes to a node."""
        for verdict in {verdict for oracle in self._oracles[node.name, family] for verdict in oracle.judge(packet)}:
            if isinstance(verdict, Served):
                yield from self._served(node, packet, family, verdict)
            elif verdict is Fate.UNTOUCHED:
                yield from self._go_on(node, packet, family)
            else:
                yield Denied(verdict)

    def _served(self, node: Node, packet: Packet, family: Family, verdict: Served) -> Iterator[Expected]:
        memory = Memory(node.name, verdict.owner, packet.source)
        choice = Choice(memory, verdict.which, verdict.endpoints) if verdict.sticky else None
        for reached in verdict.reached:
            for source in reached.sources:
                if not self._comes_back(node, source, reached.endpoint.address, family, masqueraded=reached.masqueraded):
                    yield Lost(choice)
                    continue
                onward = Packet(source, reached.endpoint.address, reached.endpoint.port, packet.proto, packet.interface)
                for expected in self._go_on(node, onward, family):
                    if isinstance(expected, Answered):
                        yield Answered(expected.endpoint, expected.sources, choice)
                    else:
                        yield expected

    def _go_on(self, node: Node, packet: Packet, family: Family) -> Iterator[Expected]:
        """Yield what may become of a packet that leaves the proxy of a node."""
        to = packet.destination
        there = self._home(to, family)
        if ip_address(to) in self._host(node).own or there is None or there is node:
            yield Answered(Endpoint(to, packet.port), frozenset({packet.source}))
            return
        yield from self._arrive(there, Packet(packet.source, to, packet.port, packet.proto, "eth0"), family)

    def _comes_back(self, node: Node, source: str, endpoint: str, family: Family, *, masqueraded: bool) -> bool:
        """Whether the endpoint's answer passes the node that translated the connection."""
        if masqueraded:
            return True
        if source == endpoint and self._home(endpoint, family) is not None and ip_address(source) not in self._host(node).own:
            return False  # a pod does not take a packet from its own address
        home = self._home(endpoint, family)
        if home is node:
            return True
        for client, way in zip(self._lab.clients, self._lab.nodes, strict=True):
            if source == client.addresses[family]:
                return way is node
        return self._home(source, family) is node or ip_address(source) in self._host(node).own

    def _home(self, address: str, family: Family) -> Node | None:
        """The node that has an address or the pod with that address; None for what is outside."""
        for node in self._lab.nodes:
            if address in {node.addresses[family], node.gateways[family]} or any(
                pod.addresses[family] == address for pod in node.pods
            ):
                return node
        return None

    def _node(self, name: str) -> Node:
        place = self._lab.place(name)
        assert isinstance(place, Node)
        return place

    def _interface(self, pod: Pod) -> str:
        return "cni0" if self._options.wiring == "bridge" else pod.veth

    def _source_address(self, probe: Probe) -> str:
        if probe.source.address:
            return probe.source.address
        key = probe.source.place, probe.target.destination
        if key not in self._sources:
            self._sources[key] = _chosen_source(self._lab, *key)
        return self._sources[key]

    # ---- packets ----

    def _probes(self) -> list[Probe]:
        """Return the packets of a step: all that make sense, or a random part of them; those to suspects, if there are any."""
        targets = [Target(*target) for target in sorted(self._tally.suspects)] * 2
        if not targets:
            targets = [target for family in Family for target in sorted(self._targets(family))]
        found = [Probe(source, target) for target in targets for source in _sources(target)]
        return found if self._tally.suspects or len(found) <= PROBES else self._random.sample(found, PROBES)

    def _targets(self, family: Family) -> Iterator[Target]:
        places = ADDRESSES[family]
        loopback = "127.0.0.1" if family is Family.IPv4 else "::1"
        found = {(UNALLOCATED[family], 80, proto) for proto in PROTOS}
        found.add((places[self._random.choice(PODS)], ENDPOINT_PORTS[0], self._random.choice(PROTOS)))
        for number, service in self._services.items():
            for port in service.spec.ports or ():
                for address in (CLUSTER_IPS[family][number], *OUTSIDE[family], places["node1"], places["node2"]):
                    found.add((address, port.port, port.protocol))
                found.add((CLUSTER_IPS[family][number], UNDEFINED_PORT, port.protocol))
                if port.node_port:
                    addresses = (places["node1"], places["node2"], places["gateway1"], loopback, OUTSIDE[family][-1])
                    found |= {(address, port.node_port, port.protocol) for address in addresses}
                    found.add((places["node1"], UNDEFINED_NODE_PORT, port.protocol))
        return (Target(family, *target) for target in found)

    def _compare(self, probe: Probe) -> list[Answered]:
        """Make a connection and compare; return the endpoints that could have answered, unless affinity decides."""
        expected = self._expected(probe)
        outcome, connection = self._connect(probe, expected)
        matches = [each for each in expected if each.fits(outcome)]
        if not matches:
            raise self._finding(probe, self._complaint(expected, outcome))
        self._remember(probe, matches, outcome)
        if connection:
            self._keep(probe, connection)
        answered = [each for each in expected if isinstance(each, Answered)]
        sticky = any(each.choice for each in answered)
        return [] if sticky or len(answered) != len(expected) else answered

    def _connect(self, probe: Probe, expected: Iterable[Expected]) -> tuple[Outcome, Connection | None]:
        self._tally.packets += 1
        quiet = any(isinstance(each, Lost) or each == Denied(Fate.SILENT) for each in expected)
        found = self._lab.open_connection(
            probe.source.place,
            probe.target.destination,
            probe.target.port,
            probe.target.proto.value,
            timeout=SILENCE if quiet else PATIENCE,
            source=probe.source.address,
        )
        outcome = found.answer if isinstance(found, Connection) else found
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
                raise self._finding(probe, self._complaint(expected, outcome))
            assert isinstance(outcome, Answer)
            missing.discard(Endpoint(outcome.address, outcome.port))
            if not missing:
                return
        raise self._finding(probe, f"never answered by {sorted(missing)}")

    def _remember(self, probe: Probe, matches: list[Expected], outcome: Outcome) -> None:
        """Check affinity and note who answered (contract 2.4)."""
        choices = [each.choice for each in matches if not isinstance(each, Denied) and each.choice]
        if not choices:
            return
        memory, which = choices[0].memory, choices[0].which
        lists = self._memory.setdefault(memory, {})
        if isinstance(outcome, Answer) and all((c.memory, c.which) == (memory, which) for c in choices):
            endpoint = Endpoint(outcome.address, outcome.port)
            known = lists.get(which)
            if isinstance(known, Endpoint) and endpoint != known:
                raise self._finding(probe, f"{which} list: {known} was remembered for {memory}, but {endpoint} reached")
            for each in ("cluster", "local"):
                if each not in lists and (learnt := self._known(memory, each, endpoint)) is not None:
                    lists[each] = learnt
        else:
            lists |= {"cluster": UNSURE, "local": UNSURE}

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
                raise self._finding(probe, f"the connection answered by {connection.answer} was cut by this step: {outcome}")

    def _complaint(self, expected: list[Expected], outcome: Outcome) -> str:
        return "\n".join([f"became {outcome}", "  expected one of", *(f"    {each}" for each in expected)])

    def _finding(self, probe: Probe, what: str) -> FindingError:
        self._tally.suspects.add(probe.target)
        source, target = self._source_address(probe), probe.target
        to = f"{target.destination} port {target.port} {target.proto}"
        return FindingError(f"{probe.source.place} ({source}) -> {to}: {what}")


def play(scenario: Scenario, tally: Tally) -> None:
    """Play a scenario on a World of its own; FindingError when kernel and oracle disagree."""
    tally.scenarios += 1
    with Stage(scenario.options, scenario.seed, tally) as stage:
        for step in scenario.steps:
            stage.play(step)


def _set(where: dict[int, Any], number: int, value: object | None) -> None:
    if value is None:
        where.pop(number, None)
    else:
        where[number] = value


def _sources(target: Target) -> list[Source]:
    """Return where connections to a target are made from."""
    if ip_address(target.destination).is_loopback:
        return [Source(node) for node in NODES]
    gateway = ADDRESSES[target.family]["gateway1"]
    return [*(Source(name) for name in (*PODS, *NODES, "client", "client2")), Source("node1", gateway)]


def _chosen_source(lab: Lab, place: str, destination: str) -> str:
    """Ask the kernel of a place which of its addresses it uses towards a destination."""
    with lab.enter(place), socket.socket(socket.AF_INET6 if ":" in destination else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((destination, 9))
        return str(sock.getsockname()[0])
