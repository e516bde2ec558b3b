"""Services for measurements: any number, all alike or mixed, each with endpoints of its own.

Pure, and a function of the numbers alone: service 17 has the same addresses on every run and in
every mode. Objects are documents of the API server, or decoded from such bytes, so that no two
share a string in the measured memory.

No real node has an endpoint of every service. Here every service has one on the node, so that each
mode writes as much as possible.
"""

import enum
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.configuration.settings import Cidr, NodeSettings
from nftproxy.errors import NftproxyError
from nftproxy.model import EndpointSlice, Service, ServiceCIDR

NODE: Final = "node1"
NODE_IP: Final = "192.168.50.11"
CLUSTER_IPS: Final = "10.96.0.0/12"
PODS: Final = "10.128.0.0/9"
# Those of the services; those that replace one of them
ENDPOINT_RANGES: Final = (
    "10.128.0.0/10",
    "10.192.0.0/11",
)
BALANCERS: Final = "198.18.0.0/15"  # reserved for benchmarks by RFC 2544
SERVICE_PORT: Final = 80
ENDPOINT_PORT: Final = 8080
FIRST_NODEPORT: Final = 30000
_LAST_NODEPORT: Final = 65535
MOST: Final = 150_000  # services: a fifth of them needs a NodePort

_CLUSTER_IPS, _BALANCERS, _ENDPOINTS, _SPARE = (
    int(ipaddress.ip_network(net)[0]) for net in (CLUSTER_IPS, BALANCERS, *ENDPOINT_RANGES)
)
_MOST_ENDPOINTS = ipaddress.ip_network(ENDPOINT_RANGES[0]).num_addresses
_MOST_SPARE = ipaddress.ip_network(ENDPOINT_RANGES[1]).num_addresses


class Mix(enum.StrEnum):
    """The kind of services."""

    PLAIN = "plain"  # ClusterIP, TCP
    # A fifth LoadBalancer with NodePort and external policy Local, one in a hundred with ClientIP
    # affinity
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of services with a number of endpoints each; `protocol` is TCP or UDP."""

    services: int
    endpoints: int = 3
    mix: Mix = Mix.PLAIN
    protocol: str = "TCP"

    def __post_init__(self) -> None:
        if not 1 <= self.services <= MOST:
            raise NftproxyError(f"{self.services} services: only 1 to {MOST} have addresses here")
        if not 1 <= self.endpoints <= 1000 or self.services * self.endpoints > _MOST_ENDPOINTS:
            raise NftproxyError(
                f"{self.services} services with {self.endpoints} endpoints each are too many to "
                "have addresses"
            )

    def name(self, number: int) -> str:
        """Return the name of a service, and of its slice."""
        return f"bench-{number}"

    def cluster_ip(self, number: int) -> str:
        """Return the ClusterIP of a service."""
        # The first is the API server's
        return str(ipaddress.IPv4Address(_CLUSTER_IPS + 2 + number))

    def balancer_ip(self, number: int) -> str | None:
        """Return the load-balancer address of a service that has one."""
        return (
            str(ipaddress.IPv4Address(_BALANCERS + 1 + number))
            if self.is_external(number)
            else None
        )

    def node_port(self, number: int) -> int | None:
        """Return the NodePort of a service that has one."""
        return FIRST_NODEPORT + number // 5 if self.is_external(number) else None

    def is_external(self, number: int) -> bool:
        """Whether a service is a LoadBalancer."""
        return self.mix is Mix.MIXED and number % 5 == 0

    def is_sticky(self, number: int) -> bool:
        """Whether a service has ClientIP affinity."""
        return self.mix is Mix.MIXED and number % 100 == 7

    def addresses(self, number: int, replaced: int = 0) -> list[str]:
        """Return the endpoints of a service, after `replaced` changes of the last one."""
        first = _ENDPOINTS + number * self.endpoints
        found = [first + each for each in range(self.endpoints)]
        if replaced:
            found[-1] = _SPARE + (number * 64 + replaced) % _MOST_SPARE
        return [str(ipaddress.IPv4Address(each)) for each in found]

    def service_document(self, number: int) -> dict[str, Any]:
        """Return a Service as the API server has it."""
        ip = self.cluster_ip(number)
        port: dict[str, Any] = {
            "name": "http",
            "port": SERVICE_PORT,
            "protocol": self.protocol,
            "targetPort": ENDPOINT_PORT,
        }
        spec: dict[str, Any] = {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "ClientIP" if self.is_sticky(number) else "None",
            "ports": [port],
        }
        document = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name(number),
                "namespace": "default",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": spec,
        }
        if self.is_external(number):
            port["nodePort"] = self.node_port(number)
            spec |= {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": _LAST_NODEPORT - number // 5,
            }
            document["status"] = {
                "loadBalancer": {"ingress": [{"ip": self.balancer_ip(number), "ipMode": "VIP"}]}
            }
        return document

    def slice_document(self, number: int, replaced: int = 0) -> dict[str, Any]:
        """Return the EndpointSlice of a service.

        Its first endpoint is on the node, the others elsewhere.
        """
        name = self.name(number)
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": ENDPOINT_PORT, "protocol": self.protocol}],
            "endpoints": [
                {
                    "addresses": [address],
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                    "nodeName": NODE if not place else f"node{2 + (number + place) % 300}",
                }
                for place, address in enumerate(self.addresses(number, replaced))
            ],
        }

    def service(self, number: int) -> Service:
        """Return a Service, decoded from bytes of its own."""
        return decode_service(msgspec.json.encode(self.service_document(number)))

    def slice(self, number: int, replaced: int = 0) -> EndpointSlice:
        """Return an EndpointSlice, decoded from bytes of its own."""
        return decode_slice(msgspec.json.encode(self.slice_document(number, replaced)))

    def all_services(self) -> Iterator[Service]:
        """Yield all Services."""
        return map(self.service, range(self.services))

    def all_slices(self) -> Iterator[EndpointSlice]:
        """Yield all EndpointSlices."""
        return map(self.slice, range(self.services))

    def service_cidr(self) -> ServiceCIDR:
        """Return the range of the ClusterIPs."""
        return msgspec.convert(
            {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [CLUSTER_IPS]}}, ServiceCIDR
        )


def node_settings() -> NodeSettings:
    """Return the settings of the measured node.

    Pods recognized by their CIDR, NodePorts on its own address.
    """
    return NodeSettings(
        node_name=NODE,
        families=(Family.IPv4,),
        node_ips={Family.IPv4: parse_address(NODE_IP)},
        detector=Cidr({Family.IPv4: parse_network(PODS)}),
        masquerade_bit=0x4000,
        masquerade_all=False,
        nodeport_addresses={Family.IPv4: (parse_network(f"{NODE_IP}/32"),)},
        allow_external_ips=True,
        sync_period=30,
        min_sync_period=0.05,
    )


decode_service = msgspec.json.Decoder(Service).decode
decode_slice = msgspec.json.Decoder(EndpointSlice).decode
