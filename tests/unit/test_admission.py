"""What no Service, slice or ServiceCIDR may say.

Each case is one field of a sound object made wrong.
"""

from typing import Any

import msgspec
import pytest

from nftproxy.model import EndpointSlice, Node, Object, Service, ServiceCIDR
from nftproxy.sources.admission import problems
from tests.support.objects import endpoint, endpoint_slice, node, service, service_cidr

DUAL = ("10.96.0.10", "fd00:10:96::10")


def ports(*pairs: tuple[str, int], protocol: str = "TCP") -> list[dict[str, Any]]:
    return [{"name": name, "port": port, "protocol": protocol} for name, port in pairs]


SOUND: dict[str, Object] = {
    "service": service(cluster_ip=DUAL, vips=["203.0.113.1"], externalIPs=["198.51.100.1"]),
    "leading zeros": service(cluster_ip="010.096.000.010"),
    "headless": service(clusterIP="None", clusterIPs=["None"]),
    "external name": service(type="ExternalName", clusterIP=""),
    "blank entries": service(externalIPs=["", " "], loadBalancerSourceRanges=["", " 10.0.0.0/8 "]),
    "same port, two protocols": service(
        ports=[*ports(("dns", 53)), *ports(("dns-udp", 53), protocol="UDP")]
    ),
    "hostname of a load balancer": msgspec.convert(
        {
            "metadata": {"name": "x"},
            "status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}},
        },
        Service,
    ),
    "slice": endpoint_slice(endpoints=[endpoint("10.244.1.2", "node1")]),
    "names are not looked up": msgspec.convert(
        {
            "metadata": {"name": "x"},
            "addressType": "FQDN",
            "endpoints": [{"addresses": ["a.example"]}],
        },
        EndpointSlice,
    ),
    "service CIDR": service_cidr("kubernetes", "10.96.0.0/12", "fd00:10:96::/112"),
    "node": node(pod_cidrs=["10.244.1.0/24"]),
}

WRONG: dict[str, tuple[Object, list[str]]] = {
    "ClusterIP is a name": (
        service(clusterIP="db.example", clusterIPs=[]),
        ["spec.clusterIP: 'db.example' is not an IP address"],
    ),
    "ClusterIP is a star": (
        service(clusterIP="*", clusterIPs=[]),
        ["spec.clusterIP: '*' is not an IP address"],
    ),
    "second ClusterIP": (
        service(cluster_ip=["10.96.0.10", "fd00::g"], ipFamilies=["IPv4", "IPv6"]),
        ["spec.clusterIPs[1]: 'fd00::g' is not an IP address"],
    ),
    "ClusterIP of the other family": (
        service(cluster_ip="10.96.0.10", ipFamilies=["IPv6"]),
        ["spec.clusterIPs[0]: 10.96.0.10 is no IPv6 address"],
    ),
    "external IP out of range": (
        service(externalIPs=["198.51.100.1", "198.51.100.256"]),
        ["spec.externalIPs[1]: '198.51.100.256' is not an IP address"],
    ),
    "loopback": (
        service(externalIPs=["127.0.0.1"]),
        ["spec.externalIPs[0]: 127.0.0.1 is a loopback address"],
    ),
    "multicast": (
        service(vips=["ff02::1"]),
        ["status.loadBalancer.ingress[0].ip: ff02::1 is multicast"],
    ),
    "source range without length": (
        service(loadBalancerSourceRanges=["10.0.0.0/8", "10.0.0.1"]),
        [
            (
                "spec.loadBalancerSourceRanges[1]: '10.0.0.1' is not a CIDR such as 10.0.0.0/8 or "
                "fd00::/64"
            )
        ],
    ),
    "impossible length": (
        service(loadBalancerSourceRanges=["10.0.0.0/33"]),
        ["spec.loadBalancerSourceRanges[0]: '10.0.0.0/33' has an impossible prefix length"],
    ),
    "port twice": (
        service(ports=ports(("a", 80), ("b", 80))),
        ["spec.ports[1].port: TCP 80 is already spec.ports[0]"],
    ),
    "name twice": (
        service(ports=ports(("a", 80), ("a", 81))),
        ["spec.ports[1].name: 'a' is already the name of spec.ports[0]"],
    ),
    "no names": (
        service(ports=ports(("", 80), ("", 81))),
        ["spec.ports[1].name: is missing, as it is in spec.ports[0]"],
    ),
    "several at once": (
        service(clusterIP="x", clusterIPs=[], externalIPs=["y"]),
        [
            "spec.clusterIP: 'x' is not an IP address",
            "spec.externalIPs[0]: 'y' is not an IP address",
        ],
    ),
    "endpoint is a name": (
        endpoint_slice(endpoints=[endpoint("10.244.1.2"), endpoint("pod-1")]),
        ["endpoints[1].addresses[0]: 'pod-1' is not an IP address"],
    ),
    "endpoint of the other family": (
        endpoint_slice(endpoints=[endpoint("fd00::1")]),
        ["endpoints[0].addresses[0]: fd00::1 is no IPv4 address"],
    ),
    "endpoint without an address": (
        endpoint_slice(endpoints=[{"addresses": []}]),
        ["endpoints[0].addresses: an endpoint needs an address"],
    ),
    "endpoint is this machine": (
        endpoint_slice(endpoints=[endpoint("127.0.0.1")]),
        ["endpoints[0].addresses[0]: 127.0.0.1 is a loopback address"],
    ),
    "service CIDR": (
        service_cidr("x", "10.96.0.0/12", "10.96.0.0"),
        ["spec.cidrs[1]: '10.96.0.0' is not a CIDR such as 10.0.0.0/8 or fd00::/64"],
    ),
    "everything is a service": (
        service_cidr("x", "0.0.0.0/0"),
        ["spec.cidrs[0]: 0.0.0.0/0 has all addresses"],
    ),
    "pod CIDR": (
        node(pod_cidrs=["10.244.1/24"]),
        ["spec.podCIDRs[0]: '10.244.1/24' is not a CIDR such as 10.0.0.0/8 or fd00::/64"],
    ),
}


@pytest.mark.parametrize("item", SOUND.values(), ids=SOUND)
def test_sound_objects_pass(item: Object) -> None:
    assert problems(item) == []


@pytest.mark.parametrize(("item", "expected"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_field(item: Object, expected: list[str]) -> None:
    assert problems(item) == expected


def test_every_kind_is_looked_at() -> None:
    assert {type(item) for item, _ in WRONG.values()} == {Service, EndpointSlice, ServiceCIDR, Node}
