"""ClusterIPs for Services without one, as an API server assigns them.

Pure; the same Services get the same addresses.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from nftproxy.address import Family
from nftproxy.errors import ConfigError
from nftproxy.model import Service, ServiceCIDR

DEFAULTS: Final = {Family.IPv4: "10.96.0.0/12", Family.IPv6: "fd00:96::/112"}


def assign(
    services: Iterable[Service], cidrs: Iterable[ServiceCIDR], families: Iterable[Family]
) -> list[Service]:
    """Return the Services, with a ClusterIP of each of their families.

    `families` has the default first.
    """
    services = list(services)
    taken = {
        text
        for each in services
        for text in (each.spec.cluster_ip, *(each.spec.cluster_ips or ()))
        if text
    }
    primary = next(iter(families))
    networks = {family: DEFAULTS[family] for family in Family}
    networks |= {_family(text): text for each in cidrs for text in each.spec.cidrs or ()}
    free = {family: _free(network, taken) for family, network in networks.items()}
    chosen = {}
    for service in sorted(
        (each for each in services if each.unassigned), key=lambda each: each.metadata.key
    ):
        wanted = [Family(family) for family in service.spec.ip_families or ()] or [primary]
        addresses = tuple(next(free[family], "") for family in wanted)
        if "" in addresses:
            full = networks[wanted[addresses.index("")]]
            raise ConfigError(
                [f"Service {service.metadata.key}: {full} has no address left for it"]
            )
        spec = msgspec.structs.replace(service.spec, cluster_ip=addresses[0], cluster_ips=addresses)
        chosen[service.metadata.key] = msgspec.structs.replace(service, spec=spec)
    return [chosen.get(each.metadata.key, each) for each in services]


def _family(cidr: str) -> Family:
    return Family.IPv6 if ":" in cidr else Family.IPv4


def _free(cidr: str, taken: set[str]) -> Iterator[str]:
    """Yield the free addresses of a network, without its first and last.

    The first of IPv6 is the routers'.
    """
    network = ip_network(cidr.strip(), strict=False)
    used = {ip_address(text) for text in taken if text != "None"}
    return (str(address) for address in network.hosts() if address not in used)
