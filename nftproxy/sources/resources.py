"""What is watched in the API.

Four resources, their paths and selectors (contract 1.1), and how much each matters.

Endpoints, Pods, Secrets and ConfigMaps are never read (contract 1.1.8); the only verbs are list and
watch (contract 10.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nftproxy.model import EndpointSlice, Node, Object, Service, ServiceCIDR

SILENCE: Final = 25.0
"""Seconds of silence after which a stream counts as dead; an outage has to be noticed within 30 s.

TCP keep-alive finds dead peers as fast, but only the next machine with TCP answers it: a proxy in
front of several API servers, or the kernel under a frozen one, keeps a dead stream alive. Quiet
streams are resumed at this interval; `retry.watch_seconds` says why that is cheap.
"""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource to list and watch.

    `name` is the plural, as in paths, permissions and logs. An `optional` one may be denied or
    unknown to the server.
    """

    name: str
    kind: type[Object]
    path: str
    selectors: Mapping[str, str] = field(default_factory=dict)
    silence: float = SILENCE
    optional: bool = False


SERVICES: Final = Resource(
    "services",
    Service,
    "/api/v1/services",
    {
        "labelSelector": "!service.kubernetes.io/service-proxy-name",
        "fieldSelector": "spec.clusterIP!=None",
    },
)
ENDPOINT_SLICES: Final = Resource(
    "endpointslices",
    EndpointSlice,
    "/apis/discovery.k8s.io/v1/endpointslices",
    {"labelSelector": "!service.kubernetes.io/headless"},
)
# Permission to see ServiceCIDRs may be missing (contract 10.2.1), and servers before 1.33 have no
# such resource.
SERVICE_CIDRS: Final = Resource(
    "servicecidrs", ServiceCIDR, "/apis/networking.k8s.io/v1/servicecidrs", optional=True
)


def own_node(name: str) -> Resource:
    """Return the one Node that is this machine (contract 1.1.3)."""
    return Resource("nodes", Node, "/api/v1/nodes", {"fieldSelector": f"metadata.name={name}"})
