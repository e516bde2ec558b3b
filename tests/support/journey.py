"""The whole way of a connection, where the oracle speaks for one node only.

From the source to the first node, perhaps to a second one, to an endpoint, and the way back: a
`Journey` puts the verdicts along it together and says what the client may see. Nodes, and a host
outside that has all outside addresses, listen on every port that connections are made to, so that
"untouched" is an answer of its own and no silence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Outcome, Refused, Silent, Unreachable
from nftproxy.lab.plan import LabClient, LabNode, LabPlace, LabPlan, Pod
from tests.support.oracle import Endpoint, Fate, Host, Oracle, Packet, PortName, Served, Which


class Memory(NamedTuple):
    """What a node may remember a client for."""

    node: str
    owner: PortName
    client: str


class Choice(NamedTuple):
    """From which list an endpoint of a ClientIP service was chosen, and for whom."""

    memory: Memory
    which: Which


@dataclass(frozen=True)
class Answered:
    """Somebody has to answer.

    This endpoint (or whoever listens there), having seen one of these sources.
    """

    endpoint: Endpoint
    sources: frozenset[str]
    choice: Choice | None = None
    owner: PortName | None = None  # whose list it is one of

    def fits(self, outcome: Outcome) -> bool:
        """Whether this is what happened."""
        return (
            isinstance(outcome, Answer)
            and (outcome.address, outcome.port) == self.endpoint
            and outcome.source in self.sources
        )


@dataclass(frozen=True)
class Lost:
    """An endpoint is reached whose answer does not find back.

    Only the network of the lab is to blame.
    """

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


class Journey:
    """One state of a cluster in a lab: an oracle for each reading of it by each node.

    What a client of the lab sends to the cluster goes through the node of the same number, and so
    does what is sent to it.
    """

    def __init__(
        self,
        plan: LabPlan,
        hosts: Mapping[str, Host],
        oracles: Mapping[tuple[str, Family], list[Oracle]],
    ) -> None:
        self._plan = plan
        self._hosts = hosts
        self._oracles = oracles

    def expected(self, place: LabPlace, packet: Packet, family: Family) -> list[Expected]:
        """Return everything that may become of a connection, in all readings.

        `packet` without its interface.
        """
        if isinstance(place, LabClient):
            direct = next(
                (n for n in self._plan.nodes if n.addresses[family] == packet.destination), None
            )
            node, interface = direct or self._way(place), "eth0"
        elif isinstance(place, Pod):
            node = next(n for n in self._plan.nodes if n.name == place.node)
            interface = place.veth if self._plan.shape.wiring == "routed" else "cni0"
        else:
            node, interface = next(n for n in self._plan.nodes if n is place), ""
        return list(dict.fromkeys(self._arrive(node, replace(packet, interface=interface), family)))

    def _arrive(self, node: LabNode, packet: Packet, family: Family) -> Iterator[Expected]:
        """Yield what may become of a packet that comes to a node."""
        for verdict in {
            verdict
            for oracle in self._oracles[node.name, family]
            for verdict in oracle.judge(packet)
        }:
            if isinstance(verdict, Served):
                yield from self._served(node, packet, family, verdict)
            elif verdict is Fate.UNTOUCHED:
                yield from self._go_on(node, packet, family)
            else:
                yield Denied(verdict)

    def _served(
        self, node: LabNode, packet: Packet, family: Family, verdict: Served
    ) -> Iterator[Expected]:
        choice = (
            Choice(Memory(node.name, verdict.owner, packet.source), verdict.which)
            if verdict.sticky
            else None
        )
        for reached in verdict.reached:
            address, port = reached.endpoint
            for source in reached.sources:
                if not reached.masqueraded and not self._comes_back(node, source, address, family):
                    yield Lost(choice)
                    continue
                for expected in self._go_on(
                    node, replace(packet, source=source, destination=address, port=port), family
                ):
                    yield (
                        replace(expected, choice=choice, owner=verdict.owner)
                        if isinstance(expected, Answered)
                        else expected
                    )

    def _go_on(self, node: LabNode, packet: Packet, family: Family) -> Iterator[Expected]:
        """Yield what may become of a packet that the proxy of a node has let go."""
        home = self._home(packet.destination, family)
        if self._has(node, packet.destination) or home is None or home is node:
            yield Answered(Endpoint(packet.destination, packet.port), frozenset({packet.source}))
        else:
            yield from self._arrive(home, replace(packet, interface="eth0"), family)

    def _comes_back(self, node: LabNode, source: str, endpoint: str, family: Family) -> bool:
        """Whether an endpoint's answer to an address passes the node that translated the
        connection.
        """
        home = self._home(endpoint, family)
        if source == endpoint and not self._has(node, source):
            return False  # a pod takes no packet from its own address
        if home is node or self._has(node, source):
            return True
        for client in self._plan.clients:
            if source == client.addresses[family]:
                return self._way(client) is node
        return self._home(source, family) is node

    def _way(self, client: LabClient) -> LabNode:
        return self._plan.nodes[client.number - 1]

    def _has(self, node: LabNode, address: str) -> bool:
        return ip_address(address) in self._hosts[node.name].own

    def _home(self, address: str, family: Family) -> LabNode | None:
        """Return the node that has an address, or the pod with that address.

        None for what is outside.
        """
        for node in self._plan.nodes:
            own = {
                node.addresses[family],
                node.gateways[family],
                *(pod.addresses[family] for pod in node.pods),
            }
            if address in own:
                return node
        return None
