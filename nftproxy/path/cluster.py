"""What the cluster's objects say about Services.

The ones meant, the ones that stand in the way, endpoints and why they are left out.

Pure. The objects may be all there are, or those about one Service.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nftproxy.address import Family
from nftproxy.annotations import WEIGHT
from nftproxy.model import EndpointSlice, Node, ObjectName, Service, ServiceCIDR, ServicePort
from nftproxy.path.model import Candidate
from nftproxy.routes import Compiled, Context, Frontend, Route, compile_service
from nftproxy.selection import Backend, Locality, merge, view


@dataclass(frozen=True, slots=True)
class Cluster:
    """Objects. `whole`: there are no other Services than these."""

    services: dict[ObjectName, Service] = field(default_factory=dict)
    slices: dict[ObjectName, tuple[EndpointSlice, ...]] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    cidrs: tuple[ServiceCIDR, ...] = ()
    whole: bool = True

    def zone(self, node: str) -> str:
        """Return the zone of a node; empty when it has none or is not known."""
        return self.nodes[node].zone if node in self.nodes else ""

    def near(self, name: ObjectName) -> list[str]:
        """Return the names of Services that may be meant.

        Of the same name elsewhere, or spelled alike.
        """
        same = [str(key) for key in self.services if key.name == name.name]
        known = [str(key) for key in self.services]
        return list(
            dict.fromkeys([*same, *difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)])
        )

    def compiled(self, name: ObjectName, context: Context) -> Compiled | None:
        """Return what a Service puts into the table.

        None when there is no such Service for the family.
        """
        service = self.services.get(name)
        if service is None or is_others(service):
            return None
        return compile_service(service, self.slices.get(name, ()), context, [])

    def route(self, name: ObjectName, frontend: Frontend, context: Context) -> Route | None:
        """Return what a frontend of a Service does."""
        compiled = self.compiled(name, context)
        return (
            next((route for route in compiled.routes if route.frontend == frontend), None)
            if compiled
            else None
        )

    def claims(self, frontend: Frontend, family: Family) -> list[ObjectName]:
        """Return the Services that want a frontend."""
        context = Context(family, Locality("", ""), "")
        return [name for name in self.services if self.route(name, frontend, context)]

    def at(self, address: str, family: Family) -> Iterator[tuple[ObjectName, ServicePort]]:
        """Yield the ports that an address has, and whose they are."""
        for name, service in self.services.items():
            seen = view(service, family, [])
            if seen and address in {seen.cluster_ip, *seen.external_ips, *seen.vips}:
                yield from ((name, port) for port in service.spec.ports or ())

    def backends(
        self, name: ObjectName, port: ServicePort, family: Family, node: str
    ) -> list[Backend]:
        """Return all endpoints that slices have for a port, used or not."""
        return merge(self.slices.get(name, ()), port, family, node, [])

    def addresses(self) -> set[str]:
        """Return the addresses of all endpoints there are."""
        return {
            a
            for pieces in self.slices.values()
            for piece in pieces
            for e in piece.endpoints or ()
            for a in e.addresses
        }


def is_others(service: Service) -> bool:
    """Whether another proxy serves it."""
    labels = service.metadata.labels
    return labels is not None and labels.proxy_name is not None


def left_out(
    backends: Iterable[Backend], used: set[str], here: Locality, *, local_only: bool
) -> list[Candidate]:
    """Return the endpoints that are not used, and why."""
    found = []
    for backend in backends:
        endpoint = backend.endpoint
        if str(endpoint) in used:
            continue
        if not backend.weight:
            reason = "weight 0"
        elif not backend.ready:
            reason = "terminating" if backend.fallback else "not ready"
        elif local_only and not backend.is_local:
            reason = "on another node; the policy is Local"
        elif backend.nodes and here.node not in backend.nodes:
            reason = f"hints mean it for node {', '.join(backend.nodes)}"
        elif backend.zones and here.zone not in backend.zones:
            reason = (
                f"zone {', '.join(backend.zones)}; this node is in zone {here.zone or '?'} "
                "and hints keep traffic there"
            )
        else:
            reason = "not in the table of this node"
        found.append(Candidate(endpoint.address, endpoint.port, used=False, reason=reason))
    return found


def why_none(
    cluster: Cluster, name: ObjectName, port: ServicePort, family: Family
) -> tuple[str, str]:
    """Return a word and a sentence about why a Service port has no endpoint that can be used."""
    pieces = cluster.slices.get(name, ())
    of_family = [piece for piece in pieces if piece.address_type == family]
    if not pieces:
        return (
            "no-slices",
            (
                f"{name} has no EndpointSlice: no Pod matches its selector, or it has none and "
                "nobody "
                "made a slice"
            ),
        )
    if not of_family:
        if any(piece.address_type == "FQDN" for piece in pieces):
            return (
                "fqdn",
                (
                    f"The EndpointSlices of {name} hold names (addressType FQDN), which no "
                    "proxy can "
                    "send packets to"
                ),
            )
        return "no-slices", f"{name} has no EndpointSlice of addressType {family}"
    if not any(piece.endpoints for piece in of_family):
        return (
            "empty-slices",
            f"The EndpointSlices of {name} hold no endpoint: no Pod matches its selector",
        )
    backends = cluster.backends(name, port, family, "")
    if not backends:
        ports = sorted(
            {
                f"{p.name or 'unnamed'} ({p.port}/{p.protocol or 'TCP'})"
                for piece in of_family
                for p in piece.ports or ()
            }
        )
        wanted = f"{port.name or 'unnamed'}/{port.protocol.value}"
        return (
            "other-ports",
            (
                f"The endpoints of {name} have no port {wanted}; they have "
                f"{', '.join(ports) or 'none'}"
            ),
        )
    every = [each.conditions for piece in of_family for each in piece.endpoints or ()]
    if all(each and each.terminating for each in every):
        return "terminating", f"All endpoints of {name} are terminating"
    if not any(backend.weight for backend in backends):
        return "weight-zero", f"All endpoints of {name} have weight 0 (annotation {WEIGHT})"
    return "not-ready", f"No endpoint of {name} is ready"
