"""Objects that nobody should send.

Documents with anything in any field, and the two ways in which they come.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from nftproxy.model import KINDS, Object
from nftproxy.sources.manifests import Manifests
from nftproxy.sources.wire import JsonDecoder

Document = dict[str, Any]
Place = tuple[str, tuple[str | int, ...]]
"""A kind, and where in its document."""

BAD: dict[str, Document] = {
    "Service": {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "bad",
            "namespace": "default",
            "labels": {"a": "b"},
            "annotations": {"a": "b"},
            "creationTimestamp": "2026-02-01T00:00:00Z",
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.66",
            "clusterIPs": ["10.96.0.66", "fd00:10:96::66"],
            "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["203.0.113.66", "fd00:beef::66"],
            "ports": [
                {"port": 80, "name": "http", "protocol": "TCP", "nodePort": 30066},
                {"port": 53, "name": "dns", "protocol": "UDP"},
            ],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "externalTrafficPolicy": "Local",
            "internalTrafficPolicy": "Cluster",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "healthCheckNodePort": 31066,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.67", "ipMode": "VIP"}]}},
    },
    "EndpointSlice": {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "bad-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "bad"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.1.3"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": "node1",
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]},
            }
        ],
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "dns", "port": 8080, "protocol": "UDP"},
        ],
    },
    "Node": {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "a"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.11"}]},
    },
    "ServiceCIDR": {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "bad"},
        "spec": {"cidrs": ["10.97.0.0/16", "fd00:10:97::/112"]},
    },
}


@dataclass(frozen=True, slots=True)
class Many:
    """Something so many times over: what would be too much to print when a test fails."""

    what: Any
    times: int


_ADDRESSES = [
    "0.0.0.0", "127.0.0.1", "127.1", "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.168.50.11", "10.244.1.1",  # noqa: S104
    "010.001.002.003", "1.2.3.4.5", "1.2.3", "256.1.1.1", "0x7f000001", "::", "::1", "fe80::1",
    "fe80::1%eth0", "ff02::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::127.0.0.1", "fd00:50::11", "::1.2.3.\u0664",
    "\u0661.2.3.4", "10.96.0.66", "203.0.113.67",
    "10.0.0.0/8", "10.1.2.3/8", "0.0.0.0/0", "::/0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/8/8",
    "/", "localhost", "default.svc",
]  # fmt: skip
_TEXTS = [
    "", " ", "0", "*", "\n", "web\n", "a b", "a;b", "}", "a{", '"', "\\", "$", "@", "\0", "\u202e",
    "\u00e9", "a/b", "..", "-",
    "TCP", "tcp", "SCTP", "ICMP", "Local", "local", "None", "ClientIP", "IPv4", "IPv6", "FQDN",
    "x" * 64, Many("x", 300),
    Many("x", 100_000),
]  # fmt: skip
_OTHERS: list[Any] = [
    None, True, False, 0, -1, 70000, 65536, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, [], {}, [None], [[]], [{}], [1, "a"], {"a": 1},
    {"name": None}, {"port": 1}, ["10.0.0.1"] * 3, [""], {"": ""}, Many(["1.2.3.4"], 2000),
]  # fmt: skip
junk = (
    st.sampled_from(_ADDRESSES + _TEXTS + _OTHERS)
    | st.text(max_size=8)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.ip_addresses().map(str)
)
"""What may stand in a field instead of what belongs there."""


def places(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document, the document itself excepted."""
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield (*path, key)
            yield from places(value, (*path, key))


PLACES: list[Place] = [
    (kind, place) for kind, document in BAD.items() for place in places(document)
]


def spoilt(changes: list[tuple[Place, Any]]) -> list[Document]:
    """The bad documents with other things in some places."""
    documents = copy.deepcopy(BAD)
    for (kind, path), value in changes:
        inner: Any = documents[kind]
        try:
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = copy.deepcopy(
                value.what * value.times if isinstance(value, Many) else value
            )
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return list(documents.values())


def from_the_api(documents: list[Document]) -> list[Object]:
    """What a list answer of the API server makes of documents.

    What cannot be decoded is left out by name.
    """
    found: list[Object] = []
    for kind, document in zip(BAD, documents, strict=True):
        page = JsonDecoder(KINDS[kind]).page(
            json.dumps({"metadata": {}, "items": [document]}).encode()
        )
        assert len(page.items) + len(page.broken) == 1
        assert all(len(str(broken)) < 1000 for broken in page.broken)
        found += page.items
    return found


def from_files(documents: list[Document], path: Path) -> list[Object]:
    """What the manifest source makes of documents, in YAML."""
    path.write_text(yaml.safe_dump_all(documents, allow_unicode=True))
    scan = Manifests([path]).scan()
    assert all("\n" not in problem and len(problem) < 1000 for problem in scan.problems), (
        scan.problems
    )
    return [item for items in scan.objects.values() for item in items]
