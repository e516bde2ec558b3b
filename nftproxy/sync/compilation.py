"""Compiles dirty services into wanted ones, a portion at a time, and logs ignored parts."""

import itertools
from collections.abc import Iterator

from loguru import logger

from nftproxy.address import Family
from nftproxy.configuration.settings import NodeSettings
from nftproxy.largeservice import LargeService, is_large
from nftproxy.model import EndpointSlice, ObjectName, Service
from nftproxy.routes import Choose, Compiled, Context, compile_service
from nftproxy.selection import Locality, lists
from nftproxy.store import Pending, Taken
from nftproxy.sync.report import Report
from nftproxy.table.difference import age

PORTION = 1000  # services looked at together after reading back; the memory of a sync grows with it


class Compilation:
    """Compiles the services of one family, and logs the problems of each once."""

    def __init__(self, family: Family, settings: NodeSettings) -> None:
        self._family = family
        self._settings = settings
        self._notes: dict[ObjectName, list[str]] = {}
        self._large: dict[ObjectName, LargeService] = {}

    def portions(
        self, taken: Taken, report: Report, *, whole: bool
    ) -> Iterator[dict[ObjectName, Compiled | None]]:
        """Yield the wanted state of services: all at once, or in portions."""
        for services in _portions(taken.services, None if whole else PORTION):
            with report.timed("compile"):
                wanted = self._compile(services, taken.zone)
            yield wanted

    def _compile(
        self, services: dict[ObjectName, Pending], zone: str
    ) -> dict[ObjectName, Compiled | None]:
        node_ip = self._settings.node_ips[self._family].text
        here = Locality(self._settings.node_name, zone)
        context = Context(
            self._family,
            here,
            node_ip,
            external_ips=self._settings.allow_external_ips,
            log_refusals=self._settings.log_refusals,
            refused_on_localhost=self._settings.on_localhost[self._family].refused,
        )
        wanted: dict[ObjectName, Compiled | None] = {}
        for name, (service, slices) in services.items():
            notes: list[str] = []
            choose = self._choose(name, service, slices, here)
            wanted[name] = (
                compile_service(service, slices, context, notes, choose)
                if service is not None
                else None
            )
            if notes or self._notes:
                # Every port of a service reads the same slices
                self._log(name, list(dict.fromkeys(notes)))
        return wanted

    def _choose(
        self,
        name: ObjectName,
        service: Service | None,
        slices: tuple[EndpointSlice, ...],
        here: Locality,
    ) -> Choose:
        """Return how lists are chosen; the slices of a large service are remembered."""
        known = self._large.pop(name, None)
        same = known is not None and known.service is service and known.here == here
        if service is None or len(slices) < 2 or not (same or is_large(slices)):
            return lists
        if known is None or not same:
            known = LargeService(service, self._family, here)
        self._large[name] = known
        return known.lists

    def _log(self, name: ObjectName, notes: list[str]) -> None:
        """Log the ignored parts of a service's objects, once until they change."""
        if notes != self._notes.get(name, []):
            for note in notes:
                logger.warning("Service {} {}: {}", name, self._family, note)
            self._notes[name] = notes
        if not notes:
            self._notes.pop(name, None)


def _portions(
    services: dict[ObjectName, Pending], size: int | None
) -> Iterator[dict[ObjectName, Pending]]:
    """Yield services in portions; all at once without a size.

    Only services that exchange a frontend must change together, and after reading back none is
    known to have had one. They are sorted by age: of two that claim a frontend, the younger then
    never has it for a moment. Where age does not decide alone, the rivals are one portion.
    """
    if size is None:
        yield services
        return
    together = _together(services)
    apart = [item for item in services.items() if item[0] not in together]
    rest = iter(sorted(apart, key=_by_age))
    while portion := dict(itertools.islice(rest, size)):
        yield portion
    if together:
        yield {name: services[name] for name in together}


def _together(services: dict[ObjectName, Pending]) -> set[ObjectName]:
    """Return the services with another's ClusterIP as external address, and all their rivals."""
    there = {name: service for name, (service, _) in services.items() if service}
    cluster_ips = {ip: name for name, service in there.items() for ip in _cluster_ips(service)}
    new = {
        name
        for name, service in there.items()
        if any(cluster_ips.get(ip, name) != name for ip in _external(service))
    }
    if not new:  # nearly always, so that a start of many services does not pay for it
        return new
    claims = {name: _claims(service) for name, service in there.items()}
    found: set[ObjectName] = set()
    contested: set[str] = set()
    while new:
        found |= new
        contested.update(*(claims[name] for name in new))
        new = {
            name
            for name, claimed in claims.items()
            if name not in found and not contested.isdisjoint(claimed)
        }
    return found


def _by_age(item: tuple[ObjectName, Pending]) -> tuple[bool, str, ObjectName]:
    name, (service, _) = item
    return age(name, (service and service.metadata.creation_timestamp) or "")


def _claims(service: Service) -> set[str]:
    """Return the addresses and the NodePorts of a service."""
    node_ports = {str(port.node_port) for port in service.spec.ports or () if port.node_port}
    return {*_cluster_ips(service), *_external(service)} | node_ports


def _cluster_ips(service: Service) -> list[str]:
    known = service.spec.cluster_ips or (service.spec.cluster_ip,)
    return [ip for ip in known if ip and ip != "None"]


def _external(service: Service) -> Iterator[str]:
    yield from service.spec.external_ips or ()
    balancer = service.status and service.status.load_balancer
    yield from (each.ip for each in (balancer and balancer.ingress) or () if each.ip)
