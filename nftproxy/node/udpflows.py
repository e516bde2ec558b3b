"""Where UDP flows may go.

For each UDP frontend of a family, the endpoints its conntrack entries may lead to (contract 6.2).

UDP has no end of a connection: as long as a client keeps sending, conntrack keeps the endpoint that
the first datagram got, also when it is long gone. What is remembered here says which entries have
to be deleted so that the next datagram meets the table again:

- a frontend with endpoints: every entry that leads to anything else, also one that was never
  translated because there was no endpoint yet;
- a frontend without endpoints, of a Service that is gone, or that its Service no longer has: every
  entry that was translated, as what it leads to is no endpoint (kube-proxy leaves those, and such
  clients talk to nobody until they stop for minutes). One that was never translated is left,
  because nothing would become of it but the same again.

Whatever makes a frontend appear, vanish or pass to another Service makes a clean-up due: Services
and endpoints, addresses that this machine gains or loses (each is a frontend of every NodePort), a
Service that the kernel accepts at last. ServiceCIDRs make no frontend: what they drop has no entry.

Pure. Knows what successful syncs have looked at, nothing of conntrack. A failed sync never
gets here and looks at the same services again, and a due clean-up stays due until `cleaned`; so
nothing that has to be deleted is ever forgotten.
"""

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import (
    ALL,
    NodePortNetworks,
    accepted_nodeport_addresses,
    is_loopback,
)
from nftproxy.model import EndpointSlice, ObjectName, Proto, Service
from nftproxy.routes import Frontend
from nftproxy.selection import Endpoint, by_port, serving, view
from nftproxy.store import Pending
from nftproxy.table.difference import precedence

Expected = Mapping[Frontend, frozenset[Endpoint]]


def udp_frontends(
    service: Service, slices: Iterable[EndpointSlice], family: Family, *, external_ips: bool = True
) -> dict[Frontend, frozenset[Endpoint]]:
    """Return a Service's UDP frontends with the endpoints of their flows (contract 6.2.2).

    `external_ips`: the feature gate AllowServiceExternalIPs.
    """
    ports = [port for port in service.spec.ports or () if port.protocol is Proto.UDP]
    seen = view(service, family, [], external_ips=external_ips) if ports else None
    found: dict[Frontend, frozenset[Endpoint]] = {}
    if seen is None:
        return found
    having = by_port(slices, family)
    for port in ports:
        endpoints = frozenset(serving(having(port), port, family))
        for address in (seen.cluster_ip, *seen.external_ips, *seen.vips):
            found[Frontend(address, "udp", port.port)] = endpoints
        if port.node_port:
            found[Frontend.node_port("udp", port.node_port)] = endpoints
    return found


def nodeport_addresses(
    family: Family, networks: NodePortNetworks, own: Iterable[Address]
) -> frozenset[str]:
    """Return the addresses among `own` that accept NodePorts (contract 2.6.4, 2.6.5)."""
    if networks is ALL:
        return frozenset(
            address.text for address in own if address.family is family and not is_loopback(address)
        )
    accepted, _ = accepted_nodeport_addresses({family: networks}, own)
    return frozenset(address.text for address in accepted[family])


class _Claim(NamedTuple):
    """The claim of one Service to a frontend; the smallest one has it."""

    precedence: tuple[bool, bool, str, ObjectName]
    endpoints: frozenset[Endpoint]


class UdpFlows:
    """The UDP frontends of one family, updated by its syncs.

    Not for two threads at the same time.
    """

    def __init__(self, family: Family, *, external_ips: bool = True) -> None:
        self.family = family
        self.due = False  # whether a frontend may have changed without a clean-up since
        # The addresses of this machine that accept NodePorts
        self.here: frozenset[str] = frozenset()
        self._external_ips = external_ips
        self._services: dict[ObjectName, dict[Frontend, frozenset[Endpoint]]] = {}
        self._claims: dict[Frontend, dict[ObjectName, _Claim]] = {}
        self._gone: set[Frontend] = set()
        self._left: set[str] = set()  # addresses that accepted NodePorts and have left this machine

    def accept_nodeports_on(self, addresses: Iterable[str]) -> None:
        """Set the addresses of this machine that accept NodePorts now."""
        before, self.here = self.here, frozenset(addresses)
        self._left = (self._left | before) - self.here
        if before != self.here and any(frontend.is_node_port for frontend in self._claims):
            self.due = True

    def saw(
        self,
        services: Mapping[ObjectName, Pending],
        refused: Container[ObjectName] = (),
        *,
        everything: bool = False,
    ) -> None:
        """Enter the Services of a successful sync; refused ones are in the table as before.

        `everything`: there are no others, as after reading back.
        """
        gone = self._services.keys() - services.keys() if everything else ()
        for name, (service, slices) in (*services.items(), *((name, (None, ())) for name in gone)):
            if name in refused:
                continue
            before = self._services.pop(name, {})
            now = (
                udp_frontends(service, slices, self.family, external_ips=self._external_ips)
                if service
                else {}
            )
            if not before and not now:
                continue
            self.due = True
            for frontend in before.keys() - now.keys():
                self._release(frontend, name)
            if service and now:
                own = next(iter(now)).address  # the ClusterIP comes first
                created = service.metadata.creation_timestamp or ""
                for frontend, endpoints in now.items():
                    claim = _Claim(precedence(frontend, name, own, created), endpoints)
                    self._claims.setdefault(frontend, {})[name] = claim
                    self._gone.discard(frontend)
                self._services[name] = now

    def expected(self) -> Expected:
        """Return for each frontend the endpoints that its flows may lead to.

        None after its removal.

        A frontend that two Services claim leads to the endpoints of its owner (contract 2.2.3).
        """
        expected = {
            frontend: min(claims.values()).endpoints for frontend, claims in self._claims.items()
        }
        ports = {
            frontend.port for frontend in (*self._claims, *self._gone) if frontend.is_node_port
        }
        left = (Frontend(address, "udp", port) for address in self._left for port in ports)
        return dict.fromkeys([*left, *self._gone], frozenset[Endpoint]()) | expected

    def cleaned(self) -> None:
        """Note that every unexpected entry has been deleted."""
        self.due = False
        self._gone.clear()
        self._left.clear()

    def _release(self, frontend: Frontend, name: ObjectName) -> None:
        claims = self._claims[frontend]
        del claims[name]
        if not claims:
            del self._claims[frontend]
            self._gone.add(frontend)
