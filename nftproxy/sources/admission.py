"""What an API server would refuse in an object.

Addresses and CIDRs that are invalid, or that no Service or endpoint can have.

Manifests do not pass through an API server, so the same rules are checked here. Pure; every problem
is one line that starts with the path of the field.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.errors import AddressError
from nftproxy.model import EndpointSlice, Node, Object, Proto, Service, ServiceCIDR, ServicePort
from nftproxy.selection import refusal


def problems(item: Object) -> list[str]:
    """Return the problems with the addresses in an object."""
    match item:
        case Service():
            return list(_service(item))
        case EndpointSlice():
            return list(_slice(item))
        case ServiceCIDR():
            return [*_networks("spec.cidrs", item.spec.cidrs), *_whole_families(item.spec.cidrs)]
        case Node():
            return list(_networks("spec.podCIDRs", item.spec.pod_cidrs))


def _service(service: Service) -> Iterator[str]:
    spec = service.spec
    if spec.cluster_ip not in {None, "", "None"} and spec.type != "ExternalName":
        yield from _address("spec.clusterIP", spec.cluster_ip or "")
        yield from _addresses("spec.clusterIPs", spec.cluster_ips, spec.ip_families)
    yield from _ports(spec.ports or ())
    # The API server accepts blank entries in these two; they have no effect (contract 2.2, 2.7.1).
    yield from _addresses(
        "spec.externalIPs", [text for text in spec.external_ips or () if text.strip()]
    )
    yield from _networks(
        "spec.loadBalancerSourceRanges",
        [t for t in spec.load_balancer_source_ranges or () if t.strip()],
    )
    balancer = service.status and service.status.load_balancer
    for index, ingress in enumerate((balancer and balancer.ingress) or ()):
        if ingress.ip:
            yield from _address(f"status.loadBalancer.ingress[{index}].ip", ingress.ip)


def _ports(ports: Iterable[ServicePort]) -> Iterator[str]:
    """Refuse two ports of a Service with equal numbers or equal names."""
    numbers: dict[tuple[Proto, int], int] = {}
    names: dict[str, int] = {}
    for index, port in enumerate(ports):
        first = numbers.setdefault((port.protocol, port.port), index)
        if first != index:
            yield (
                f"spec.ports[{index}].port: {port.protocol} {port.port} is already "
                f"spec.ports[{first}]"
            )
        first = names.setdefault(port.name or "", index)
        if first != index:
            called = (
                f"{port.name!r} is already the name of" if port.name else "is missing, as it is in"
            )
            yield f"spec.ports[{index}].name: {called} spec.ports[{first}]"


def _slice(piece: EndpointSlice) -> Iterator[str]:
    if piece.address_type == "FQDN":
        return
    for index, endpoint in enumerate(piece.endpoints or ()):
        path = f"endpoints[{index}].addresses"
        if not endpoint.addresses:
            yield f"{path}: an endpoint needs an address"
        for number, text in enumerate(endpoint.addresses):
            yield from _address(f"{path}[{number}]", text, Family(piece.address_type))


def _addresses(
    path: str, texts: Iterable[str] | None, families: Iterable[str] | None = None
) -> Iterator[str]:
    """Check a list of addresses; `families` are the required ones, in the same order."""
    for index, (text, family) in enumerate(
        zip(texts or (), chain(families or (), repeat(None)), strict=False)
    ):
        yield from _address(f"{path}[{index}]", text, Family(family) if family else None)


def _address(path: str, text: str, family: Family | None = None) -> Iterator[str]:
    try:
        address = parse_address(text)
    except AddressError as error:
        yield f"{path}: {error}"
        return
    if reason := refusal(address):
        yield f"{path}: {text} {reason}"
    elif family and address.family is not family:
        yield f"{path}: {text} is no {family} address"


def _networks(path: str, texts: Iterable[str] | None) -> Iterator[str]:
    for index, text in enumerate(texts or ()):
        try:
            parse_network(text.strip())
        except AddressError as error:
            yield f"{path}[{index}]: {error}"


def _whole_families(texts: Iterable[str] | None) -> Iterator[str]:
    """Refuse a range that would drop every connection of the node (contract 2.5.7)."""
    for index, text in enumerate(texts or ()):
        if text.strip().endswith("/0"):
            yield f"spec.cidrs[{index}]: {text} has all addresses"
