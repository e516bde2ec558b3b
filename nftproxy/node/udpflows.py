"""Where UDP flows may go: for each UDP frontend of a family, the endpoints its conntrack entries may lead to (contract 6.2).

UDP has no end of a connection: as long as a client keeps sending, conntrack keeps the endpoint that the first datagram got, also when it
is long gone. What is remembered here says which entries have to be deleted so that the next datagram meets the table again:

- a frontend with endpoints: every entry that leads to anything else, also one that was never translated because there was no
  endpoint yet;
- a frontend without endpoints, of a Service that is gone, or that its Service no longer has: every entry that was translated, as
  what it leads to is no endpoint (kube-proxy leaves those, and such clients talk to nobody until they stop for minutes). One that was
  never translated is left, because nothing would become of it but the same again.

Pure. Knows what successful syncs have looked at, nothing of conntrack. A sync that fails is not told here and looks at the same services
again, and what was due stays due until `cleaned`; so nothing that has to be deleted is ever forgotten.
"""

from collections.abc import Container, Iterable, Mapping

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import ALL, NodePortNetworks, accepted_nodeport_addresses, is_loopback
from nftproxy.model import EndpointSlice, ObjectName, Proto, Service
from nftproxy.routes import Frontend
from nftproxy.selection import Endpoint, serving, view
from nftproxy.store import Pending

Expected = Mapping[Frontend, frozenset[Endpoint]]


def udp_frontends(
    service: Service, slices: Iterable[EndpointSlice], family: Family, *, external_ips: bool = True
) -> dict[Frontend, frozenset[Endpoint]]:
    """Return the UDP frontends of a Service, each with the endpoints that its flows may lead to (contract 6.2.2).

    `external_ips`: the feature gate AllowServiceExternalIPs.
    """
    ports = [port for port in service.spec.ports or () if port.protocol is Proto.UDP]
    seen = view(service, family, [], external_ips=external_ips) if ports else None
    found: dict[Frontend, frozenset[Endpoint]] = {}
    if seen is None:
        return found
    for port in ports:
        endpoints = frozenset(serving(slices, port, family))
        for address in (seen.cluster_ip, *seen.external_ips, *seen.vips):
            found[Frontend(address, "udp", port.port)] = endpoints
        if port.node_port:
            found[Frontend("", "udp", port.node_port)] = endpoints
    return found


def nodeport_addresses(family: Family, networks: NodePortNetworks, own: Iterable[Address]) -> frozenset[str]:
    """Return which of this machine's `own` addresses accept NodePorts (contract 2.6.4, 2.6.5)."""
    if networks is ALL:
        return frozenset(address.text for address in own if address.family is family and not is_loopback(address))
    accepted, _ = accepted_nodeport_addresses({family: networks}, own)
    return frozenset(address.text for address in accepted[family])


class UdpFlows:
    """The UDP frontends of one family, kept up to date by what its syncs have looked at; not for two threads at once."""

    def __init__(self, family: Family, *, external_ips: bool = True) -> None:
        self.family = family
        self.due = False  # whether a sync has looked at a Service that has or had a UDP port, and no clean-up came after it
        self._external_ips = external_ips
        self._services: dict[ObjectName, dict[Frontend, frozenset[Endpoint]]] = {}
        self._claims: dict[Frontend, dict[ObjectName, frozenset[Endpoint]]] = {}
        self._gone: set[Frontend] = set()

    def saw(self, services: Mapping[ObjectName, Pending], refused: Container[ObjectName] = ()) -> None:
        """Take in what a successful sync has looked at; Services that the kernel refused are in the table as they were before."""
        for name, (service, slices) in services.items():
            if name in refused:
                continue
            before = self._services.pop(name, {})
            now = udp_frontends(service, slices, self.family, external_ips=self._external_ips) if service else {}
            if not before and not now:
                continue
            self.due = True
            for frontend in before.keys() - now.keys():
                self._release(frontend, name)
            for frontend, endpoints in now.items():
                self._claims.setdefault(frontend, {})[name] = endpoints
                self._gone.discard(frontend)
            if now:
                self._services[name] = now

    def expected(self) -> Expected:
        """Return for each frontend the endpoints that its flows may lead to; none for one that is gone.

        A frontend that two Services claim (contract 2.2.3) may lead to the endpoints of both.
        """
        expected = {frontend: frozenset().union(*claims.values()) for frontend, claims in self._claims.items()}
        return expected | dict.fromkeys(self._gone, frozenset())

    def cleaned(self) -> None:
        """Note that every entry that was not as expected has been deleted."""
        self.due = False
        self._gone.clear()

    def _release(self, frontend: Frontend, name: ObjectName) -> None:
        claims = self._claims[frontend]
        del claims[name]
        if not claims:
            del self._claims[frontend]
            self._gone.add(frontend)
