"""Services and EndpointSlices as a cluster of charts and controllers has them.

Each has the labels, the annotations, the owner and the managed fields that tools write: most of
their bytes matter to nobody who forwards packets.
"""

import random
import uuid
from datetime import UTC, datetime
from typing import Any

Document = dict[str, Any]

_BEGIN = 1_790_000_000  # seconds: objects are created one after the other


def service(number: int) -> Document:
    """Return a Service of two ports, as Helm makes it."""
    name, address = (
        f"service-{number}",
        f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
    )
    selector = {"app.kubernetes.io/instance": name, "app.kubernetes.io/name": "web"}
    annotations = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": "shop"}
    port: Document = {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}
    fields = {
        "f:metadata": {
            "f:annotations": {".": {}, **{f"f:{key}": {} for key in annotations}},
            "f:labels": {".": {}, **{f"f:{key}": {} for key in _labels(name)}},
        },
        "f:spec": {
            "f:internalTrafficPolicy": {},
            "f:ports": {
                ".": {},
                'k:{"port":80,"protocol":"TCP"}': port,
                'k:{"port":9090,"protocol":"TCP"}': port,
            },
            "f:selector": {},
            "f:sessionAffinity": {},
            "f:type": {},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            **_metadata(number, name, "helm", "v1", fields),
            "labels": _labels(name),
            "annotations": annotations,
        },
        "spec": {
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"},
                {"name": "metrics", "protocol": "TCP", "port": 9090, "targetPort": 9090},
            ],
            "selector": selector,
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(number: int, endpoints: int = 3, *, turn: int = 0) -> Document:
    """Return the slice of a Service; with another `turn` the last pod is another one."""
    name = f"service-{number}"
    labels = {
        **_labels(name),
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": name,
    }
    trigger = "endpoints.kubernetes.io/last-change-trigger-time"
    owner = _uid(name)
    fields: Document = {
        "f:addressType": {},
        "f:endpoints": {},
        "f:metadata": {
            "f:annotations": {".": {}, f"f:{trigger}": {}},
            "f:generateName": {},
            "f:labels": {".": {}, **{f"f:{key}": {} for key in labels}},
            "f:ownerReferences": {".": {}, f'k:{{"uid":"{owner}"}}': {}},
        },
        "f:ports": {},
    }
    metadata = _metadata(
        number, f"{name}-abcde", "kube-controller-manager", "discovery.k8s.io/v1", fields
    )
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            **metadata,
            "generateName": f"{name}-",
            "generation": 1 + turn,
            "labels": labels,
            "annotations": {trigger: _time(number + turn)},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": name,
                    "uid": owner,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "addressType": "IPv4",
        "endpoints": [
            _endpoint(number, each, turn if each == endpoints - 1 else 0)
            for each in range(endpoints)
        ],
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "metrics", "port": 9090, "protocol": "TCP"},
        ],
    }


def _endpoint(number: int, each: int, turn: int) -> Document:
    pod = f"service-{number}-7c9f7d8b6-{_uid(f'{number}/{each}/{turn}')[:5]}"
    return {
        "addresses": [f"10.{128 + each % 64 + 64 * (turn % 2)}.{number >> 8 & 255}.{number & 255}"],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod, "uid": _uid(pod)},
        "nodeName": f"node-{(number * 3 + each) % 5000}",
        "zone": f"eu-1{'abc'[each % 3]}",
    }


def _labels(name: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/name": "web",
        "app.kubernetes.io/version": "1.2.3",
        "helm.sh/chart": "web-1.2.3",
    }


def _metadata(number: int, name: str, manager: str, version: str, fields: Document) -> Document:
    managed = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": version,
        "time": _time(number),
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {
        "name": name,
        "namespace": "default",
        "uid": _uid(name),
        "resourceVersion": str(100_000 + number),
        "creationTimestamp": _time(number),
        "managedFields": [managed],
    }


def _uid(of: str) -> str:
    return str(uuid.UUID(int=random.Random(of).getrandbits(128), version=4))


def _time(number: int) -> str:
    return datetime.fromtimestamp(_BEGIN + 37 * number, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
