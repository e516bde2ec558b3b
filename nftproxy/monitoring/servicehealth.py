"""What load balancers may ask this node about Services (contract 2.8, 3.5, 7.2, 7.4.9).

Pure except `Standing`, which remembers the answers of one family, so that the cost of a sync does
not depend on all Services.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import ALL, NodePortNetworks
from nftproxy.model import EndpointSlice, ObjectName, Proto, Service
from nftproxy.monitoring.response import HEADERS, Response
from nftproxy.selection import Locality, Notes, View, by_port, lists, local_ready, view

Looked = Mapping[ObjectName, tuple[Service | None, tuple[EndpointSlice, ...]]]
"""The services that a sync examined, each with its slices; None for a deleted service."""


class ServiceCheck(NamedTuple):
    """A health check node port.

    Where load balancers ask, and how many endpoints of the Service this node has.
    """

    port: int
    endpoints: int


class Standing:
    """The state of each Service of one family, updated by the syncs.

    Not for two threads at the same time.
    """

    def __init__(self, family: Family, node: str) -> None:
        self._family = family
        self._node = node
        self._checks: dict[ObjectName, ServiceCheck] = {}
        self._nowhere: dict[ObjectName, tuple[int, int]] = {}
        self._node_ports = _Holders()  # owners of NodePorts for TCP
        self._check_ports = _Holders()  # owners of health check node ports
        self._clashes: dict[
            int, frozenset[tuple[ObjectName, ObjectName]]
        ] = {}  # by port: whose check, whose NodePort

    @property
    def checks(self) -> Mapping[ObjectName, ServiceCheck]:
        """All health check node ports."""
        return self._checks

    @property
    def without_local_endpoints(self) -> tuple[int, int]:
        """How many ports no policy Local reaches here: internal, external (contract 7.4.9)."""
        counts = self._nowhere.values()
        return sum(internal for internal, _ in counts), sum(external for _, external in counts)

    def look(self, looked: Looked, notes: Notes) -> dict[ObjectName, ServiceCheck | None]:
        """Apply what a successful sync examined.

        Return the changed health check node ports, None for removed ones.

        `notes` gets a line for each Service without its port, and for each that starts to share it
        with a NodePort.
        """
        changed: dict[ObjectName, ServiceCheck | None] = {}
        touched: set[int] = set()
        for name, (service, slices) in looked.items():
            before, now = self._checks.pop(name, None), None
            self._nowhere.pop(name, None)
            # Without a policy Local the endpoints do not matter.
            if (
                service is not None
                and _is_local(service)
                and (seen := view(service, self._family, []))
            ):
                now = check(service, seen, slices, self._family, self._node, notes)
                nowhere = without_local_endpoints(service, seen, slices, self._family, self._node)
                if any(nowhere):
                    self._nowhere[name] = nowhere
            if now:
                self._checks[name] = now
            if now != before:
                changed[name] = now
            touched |= self._check_ports.put(name, {now.port} if now else set())
            touched |= self._node_ports.put(
                name, _node_ports(service, self._family) if service else set()
            )
        self._look_for_clashes(touched, notes)
        return changed

    def _look_for_clashes(self, ports: Iterable[int], notes: Notes) -> None:
        """Note health check node ports that a NodePort hides, once until that changes."""
        for port in ports:
            before = self._clashes.pop(port, frozenset())
            if now := frozenset(
                (one, other)
                for one in self._check_ports.of(port)
                for other in self._node_ports.of(port)
            ):
                self._clashes[port] = now
            for service, other in sorted(now - before):
                notes.append(
                    f"Service {service}: its health check node port {port} is also a NodePort of "
                    f"Service {other}, which gets all "
                    f"connections to it ({self._family}): load balancers cannot ask for local "
                    "endpoints; "
                    "give one of them another port"
                )


class _Holders:
    """The owners of port numbers."""

    def __init__(self) -> None:
        self._ports: dict[ObjectName, set[int]] = {}
        self._services: dict[int, set[ObjectName]] = {}

    def of(self, port: int) -> Iterable[ObjectName]:
        """Return the owner of a port."""
        return self._services.get(port, ())

    def put(self, name: ObjectName, ports: set[int]) -> set[int]:
        """Note all ports that a Service has; return those that it lost or gained."""
        before = self._ports.pop(name, set())
        if ports:
            self._ports[name] = ports
        for port in before - ports:
            self._services[port].discard(name)
            if not self._services[port]:
                del self._services[port]
        for port in ports - before:
            self._services.setdefault(port, set()).add(name)
        return before ^ ports


def check(
    service: Service,
    seen: View,
    slices: Iterable[EndpointSlice],
    family: Family,
    node: str,
    notes: Notes,
) -> ServiceCheck | None:
    """Return the health check node port of a Service; None without one (contract 2.8.1)."""
    if service.spec.type != "LoadBalancer" or not seen.external_local:
        return None
    port = service.spec.health_check_node_port
    if not port:
        notes.append(
            f"Service {service.metadata.key}: no spec.healthCheckNodePort: load balancers cannot "
            "ask for local endpoints"
        )
        return None
    return ServiceCheck(port, len(local_ready(service, slices, family, node)))


def without_local_endpoints(
    service: Service, seen: View, slices: Iterable[EndpointSlice], family: Family, node: str
) -> tuple[int, int]:
    """Count the ports of policy Local whose endpoints are all elsewhere (contract 7.4.9)."""
    here = Locality(node, zone="")  # hints never decide whether there is an endpoint
    internal = external = 0
    having = by_port(slices, family)
    for port in service.spec.ports or ():
        chosen = lists(seen, port, having(port), family, here, [])
        if chosen.usable_anywhere and not chosen.local:
            internal += seen.internal_local
            external += seen.external_local and seen.externally_accessible(port)
    return internal, external


def answer(service: ObjectName, endpoints: int, *, healthy: bool) -> Response:
    """Return the answer to a load balancer (contract 7.2.3 to 7.2.5)."""
    body = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    }
    headers = {**HEADERS, "X-Load-Balancing-Endpoint-Weight": str(endpoints)}
    return Response(200 if endpoints > 0 and healthy else 503, msgspec.json.encode(body), headers)


def listen_on(
    family: Family, networks: NodePortNetworks, interfaces: Iterable[Address] | None
) -> tuple[str, ...]:
    """Return the addresses of health check node ports (contract 7.2.2).

    `interfaces` is None if they are unknown.
    """
    if networks is ALL or interfaces is None:
        return ("0.0.0.0" if family is Family.IPv4 else "::",)  # noqa: S104 - the contract says so
    # A link-local address needs its interface to be bound, and no load balancer uses one.
    candidates = sorted(
        {a.text for a in interfaces if a.family is family and not a.text.startswith("fe80:")}
    )
    return tuple(
        text
        for text in candidates
        if any(network.contains(Address(family, text)) for network in networks)
    )


def _node_ports(service: Service, family: Family) -> set[int]:
    """Return the NodePorts of a Service where health checks would arrive: TCP."""
    found = {
        port.node_port
        for port in service.spec.ports or ()
        if port.node_port and port.protocol is Proto.TCP
    }
    return found if found and view(service, family, []) else set()


def _is_local(service: Service) -> bool:
    """Whether a policy is Local."""
    return "Local" in {service.spec.internal_traffic_policy, service.spec.external_traffic_policy}
