"""What an API server would refuse in an object: addresses and CIDRs that are none, or that no Service or endpoint can have.

Manifests come from people, not through an API server, so they are held to the same rules. Pure; every problem is one line that
begins with the path of the field.
"""

from collections.abc import Iterable, Iterator

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.errors import AddressError
from nftproxy.model import EndpointSlice, Node, Object, Service, ServiceCIDR
from nftproxy.selection import refusal


def problems(item: Object) -> list[str]:
    """Return what is wrong with the addresses in an object; an empty list when nothing is."""
    match item:
        case Service():
            return list(_service(item))
        case EndpointSlice():
            return list(_slice(item))
        case ServiceCIDR():
            return list(_networks("spec.cidrs", item.spec.cidrs))
        case Node():
            return list(_networks("spec.podCIDRs", item.spec.pod_cidrs))


def _service(service: Service) -> Iterator[str]:
    spec = service.spec
    if spec.cluster_ip not in {None, "", "None"} and spec.type != "ExternalName":
        yield from _addresses("spec.clusterIP", [spec.cluster_ip])
        yield from _addresses("spec.clusterIPs", spec.cluster_ips)
    yield from _addresses("spec.externalIPs", spec.external_ips)
    yield from _networks("spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges)
    balancer = service.status and service.status.load_balancer
    for index, ingress in enumerate((balancer and balancer.ingress) or ()):
        if ingress.ip:
            yield from _address(f"status.loadBalancer.ingress[{index}].ip", ingress.ip)


def _slice(piece: EndpointSlice) -> Iterator[str]:
    if piece.address_type == "FQDN":
        return
    for index, endpoint in enumerate(piece.endpoints or ()):
        path = f"endpoints[{index}].addresses"
        if not endpoint.addresses:
            yield f"{path}: an endpoint needs an address"
        for number, text in enumerate(endpoint.addresses):
            yield from _address(f"{path}[{number}]", text, Family(piece.address_type))


def _addresses(path: str, texts: Iterable[str | None] | None) -> Iterator[str]:
    for index, text in enumerate(texts or ()):
        yield from _address(path if path == "spec.clusterIP" else f"{path}[{index}]", text or "")


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
