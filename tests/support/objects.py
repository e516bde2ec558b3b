"""Services and EndpointSlices for tests, built as the API server prints them and decoded as users'
objects are.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from nftproxy.model import Annotations, EndpointSlice, Node, Service, ServiceCIDR

Annotated = TypeVar("Annotated", Service, EndpointSlice)


def service(
    name: str = "web", cluster_ip: str | Iterable[str] = "10.96.0.10", port: int = 80, **spec: Any
) -> Service:
    """A Service in namespace `default`; `spec` is in the API's spelling.

    Special names in `spec`: `protocol`, `node_port` and `port_name` for the port, `vips` for
    load-balancer addresses, `created` for the creation time, `annotations`. `ports` replaces the
    one port.
    """
    ips = [cluster_ip] if isinstance(cluster_ip, str) else list(cluster_ip)
    one = {
        "port": port,
        "name": spec.pop("port_name", "http"),
        "protocol": spec.pop("protocol", "TCP"),
    }
    if node_port := spec.pop("node_port", 0):
        one["nodePort"] = node_port
    vips = spec.pop("vips", ())
    created = spec.pop("created", "2026-01-01T00:00:00Z")
    annotations = spec.pop("annotations", {})
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "creationTimestamp": created,
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "type": "LoadBalancer" if vips else "NodePort" if node_port else "ClusterIP",
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": ["IPv6" if ":" in ip else "IPv4" for ip in ips],
            "ports": [one],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"} for ip in vips]}},
    }
    return msgspec.convert(document, Service)


def endpoint(address: str, node: str = "", **more: Any) -> dict[str, Any]:
    """An endpoint of a slice.

    `ready`, `serving`, `terminating` are its conditions, `zones` and `nodes` its hints, `pod` the
    uid of its pod.
    """
    conditions = {key: more[key] for key in ("ready", "serving", "terminating") if key in more}
    hints = {
        wire: [{"name": name} for name in more[key]]
        for key, wire in (("zones", "forZones"), ("nodes", "forNodes"))
        if key in more
    }
    return {
        "addresses": [address],
        "conditions": conditions or {"ready": True},
        **({"nodeName": node} if node else {}),
        **({"hints": hints} if hints else {}),
        **({"targetRef": {"kind": "Pod", "uid": more["pod"]}} if "pod" in more else {}),
    }


def endpoint_slice(
    of: str = "web",
    endpoints: Iterable[Mapping[str, Any]] = (),
    *,
    name: str = "",
    port: int = 8080,
    port_name: str = "http",
    protocol: str = "TCP",
    ports: list[dict[str, Any]] | None = None,
    family: str = "IPv4",
    labels: Mapping[str, str] | None = None,
) -> EndpointSlice:
    """A slice of the Service `of`."""
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{of}-{family.lower()}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": of, **(labels or {})},
        },
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": port_name, "port": port, "protocol": protocol}]
        if ports is None
        else ports,
    }
    return msgspec.convert(document, EndpointSlice)


def annotated(item: Annotated, **values: str | None) -> Annotated:
    """A Service or a slice with other values of these annotations: `scheduler`, `weight`."""
    annotations = msgspec.structs.replace(item.metadata.annotations or Annotations(), **values)
    metadata = msgspec.structs.replace(item.metadata, annotations=annotations)
    return msgspec.structs.replace(item, metadata=metadata)


def node(
    name: str = "node1",
    addresses: Iterable[str] = (),
    zone: str = "",
    pod_cidrs: Iterable[str] = (),
) -> Node:
    """A Node."""
    document = {
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        "spec": {"podCIDRs": list(pod_cidrs)},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address} for address in addresses]
        },
    }
    return msgspec.convert(document, Node)


def service_cidr(name: str, *cidrs: str) -> ServiceCIDR:
    """A ServiceCIDR."""
    return msgspec.convert(
        {"metadata": {"name": name}, "spec": {"cidrs": list(cidrs)}}, ServiceCIDR
    )
