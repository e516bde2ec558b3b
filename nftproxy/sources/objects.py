"""Objects of `model` from messages in protobuf.

A message becomes a plain dictionary, spelled as in JSON and without what JSON leaves out, from
which msgspec makes an object: so the same rules count for both. Parts that many objects have in
common are made once and shared.
"""

import contextlib
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec

from nftproxy.model import (
    AffinityConfig,
    Annotations,
    Conditions,
    EndpointSlice,
    Hints,
    Labels,
    Node,
    Object,
    Service,
    ServiceCIDR,
    ServicePort,
    ServiceStatus,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)
from nftproxy.sources.messages import parser

Plain = dict[str, Any]

_LONGEST_SHARED: Final = 256
"""Bytes; longer parts are rarely the same, and hostile ones must not fill the memory."""

_MOST_SHARED: Final = 4096

_service: Final = parser("Service")
_slice: Final = parser("EndpointSlice")
_node: Final = parser("Node")
_service_cidr: Final = parser("ServiceCIDR")


def _read_service(raw: bytes) -> Plain:
    found = _service(raw)
    spec = found.spec
    plain: Plain = {
        "clusterIP": spec.clusterIP or None,
        "clusterIPs": spec.clusterIPs[:] or None,
        "ipFamilies": spec.ipFamilies[:] or None,
        "ports": [_service_port[each] for each in spec.ports[:]] or None,
        "sessionAffinity": spec.sessionAffinity or None,
        "externalTrafficPolicy": spec.externalTrafficPolicy or None,
        "internalTrafficPolicy": spec.internalTrafficPolicy or None,
        "healthCheckNodePort": spec.healthCheckNodePort or None,
    }
    if kind := spec.type:
        plain["type"] = kind
    if addresses := spec.externalIPs:
        plain["externalIPs"] = addresses[:]
    if ranges := spec.loadBalancerSourceRanges:
        plain["loadBalancerSourceRanges"] = ranges[:]
    if spec.HasField("sessionAffinityConfig"):
        plain["sessionAffinityConfig"] = _affinity[spec.sessionAffinityConfig]
    return {
        "metadata": _metadata(found.metadata),
        "spec": plain,
        "status": _service_status[found.status],
    }


def _read_slice(raw: bytes) -> Plain:
    found = _slice(raw)
    endpoints = [
        SliceEndpoint(
            addresses=tuple(each.addresses[:]),
            conditions=_conditions[each.conditions],
            node_name=each.nodeName or None,
            hints=_hints[hints] if (hints := each.hints) else None,
            target_ref=TargetRef(each.targetRef.uid or None)
            if each.HasField("targetRef")
            else None,
        )
        for each in found.endpoints[:]
    ]
    return {
        "metadata": _metadata(found.metadata),
        "addressType": found.addressType,
        "endpoints": endpoints or None,
        "ports": [_slice_port[each] for each in found.ports[:]] or None,
    }


def _read_node(raw: bytes) -> Plain:
    found = _node(raw)
    return {
        "metadata": _metadata(found.metadata),
        "spec": {
            "podCIDRs": found.spec.podCIDRs[:] or None,
            "taints": [{"key": each.key} for each in found.spec.taints] or None,
        },
        "status": {
            "addresses": [
                {"type": each.type, "address": each.address} for each in found.status.addresses
            ]
            or None
        },
    }


def _read_service_cidr(raw: bytes) -> Plain:
    found = _service_cidr(raw)
    return {
        "metadata": _metadata(found.metadata),
        "spec": {"cidrs": found.spec.cidrs[:] or None},
    }


def _metadata(meta: Any) -> Plain:
    plain: Plain = {"name": meta.name, "creationTimestamp": _text(meta.creationTimestamp.seconds)}
    if namespace := meta.namespace:
        plain["namespace"] = namespace
    if labels := meta.labels:
        plain["labels"] = {key: labels[key] for key in _LABELS if key in labels}
    if annotations := meta.annotations:
        plain["annotations"] = {key: annotations[key] for key in _ANNOTATIONS if key in annotations}
    if meta.HasField("deletionTimestamp"):
        plain["deletionTimestamp"] = _text(meta.deletionTimestamp.seconds)
    return plain


_LABELS: Final = tuple(field.encode_name for field in msgspec.structs.fields(Labels))
_ANNOTATIONS: Final = tuple(field.encode_name for field in msgspec.structs.fields(Annotations))


def _text(seconds: int) -> str | None:
    """Return a time as in JSON; 0 stands for none."""
    if not seconds:
        return None
    day, rest = divmod(seconds, 86400)
    minutes, second = divmod(rest, 60)
    return f"{_day(day)}T{minutes // 60:02}:{minutes % 60:02}:{second:02}Z"


@lru_cache(maxsize=1024)
def _day(number: int) -> str:
    return (date(1970, 1, 1) + timedelta(number)).isoformat()


# ---- parts that objects have in common ----


class _Shared(dict[bytes, Any]):
    """A part of objects by its bytes, which is made when it is first asked for.

    A part that breaks the rules stays plain: then the error is found with the whole object, and
    names its place there.
    """

    def __init__(self, kind: type[msgspec.Struct], name: str, read: Callable[[Any], Plain]) -> None:
        super().__init__()
        self._kind = kind
        self._parse = parser(name)
        self._read = read

    def __missing__(self, raw: bytes) -> Any:
        made: Any = self._read(self._parse(raw))
        with contextlib.suppress(msgspec.ValidationError):
            made = msgspec.convert(made, self._kind)
        if len(raw) <= _LONGEST_SHARED:
            if len(self) >= _MOST_SHARED:
                self.clear()
            self[raw] = made
        return made


def _present(*names: str) -> Callable[[Any], Plain]:
    """Return a function that gives the fields of a message that are there, if only as empty."""
    return lambda message: {
        name: getattr(message, name) for name in names if message.HasField(name)
    }


def _read_service_port(port: Any) -> Plain:
    return {
        "name": port.name or None,
        "port": port.port,
        "nodePort": port.nodePort or None,
        "protocol": port.protocol or "TCP",
    }


def _read_affinity(config: Any) -> Plain:
    if not config.HasField("clientIP"):
        return {}
    return {"clientIP": _present("timeoutSeconds")(config.clientIP)}


def _read_status(status: Any) -> Plain:
    ingress = [
        {"ip": each.ip or None, **_present("ipMode")(each)} for each in status.loadBalancer.ingress
    ]
    return {"loadBalancer": {"ingress": ingress or None}}


def _read_hints(hints: Any) -> Plain:
    return {
        name: [{"name": each.name} for each in getattr(hints, name)] or None
        for name in ("forZones", "forNodes")
    }


_service_port: Final = _Shared(ServicePort, "ServicePort", _read_service_port)
_affinity: Final = _Shared(AffinityConfig, "SessionAffinityConfig", _read_affinity)
_service_status: Final = _Shared(ServiceStatus, "ServiceStatus", _read_status)
_slice_port: Final = _Shared(SlicePort, "EndpointPort", _present("name", "protocol", "port"))
_conditions: Final = _Shared(
    Conditions, "EndpointConditions", _present("ready", "serving", "terminating")
)
_hints: Final = _Shared(Hints, "EndpointHints", _read_hints)

KINDS: Final[Mapping[type[Object], tuple[Callable[[bytes], Plain], str]]] = {
    Service: (_read_service, "v1"),
    EndpointSlice: (_read_slice, "discovery.k8s.io/v1"),
    Node: (_read_node, "v1"),
    ServiceCIDR: (_read_service_cidr, "networking.k8s.io/v1"),
}
"""What reads a message of each kind, and the kind's version."""
