"""Objects as an API server writes them in protobuf, made from the documents that it writes in JSON.

The messages here are whole, with the fields that nftproxy skips, and know nothing of its own table.
As generated Go code does, a field that is no pointer (marked by `*`) is written also when empty.
"""

import json
from datetime import datetime
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

Document = dict[str, Any]

MAGIC: Final = b"k8s\0"
CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"

# One field a word: number, name, `*` for a pointer, and a type: a scalar (default string), a
# message, `[]` for several, `{}` for a map from texts.
_MESSAGES: Final = {
    "Time": "1seconds:int64 2nanos:int32",
    "Quantity": "1string",
    "IntOrString": "1type:int64 2intVal:int32 3strVal",
    "FieldsV1": "1Raw:bytes",
    "ManagedFieldsEntry": (
        "1manager 2operation 3apiVersion 4time*:Time 6fieldsType 7fieldsV1*:FieldsV1 8subresource"
    ),
    "OwnerReference": "5apiVersion 1kind 3name 4uid 6controller*:bool 7blockOwnerDeletion*:bool",
    "ObjectMeta": (
        "1name 2generateName 3namespace 4selfLink 5uid 6resourceVersion 7generation:int64 "
        "8creationTimestamp:Time 9deletionTimestamp*:Time 10deletionGracePeriodSeconds*:int64 "
        "11labels:{}string 12annotations:{}string 13ownerReferences:[]OwnerReference "
        "14finalizers:[]string 17managedFields:[]ManagedFieldsEntry"
    ),
    "ListMeta": "1selfLink 2resourceVersion 3continue 4remainingItemCount*:int64",
    "Condition": (
        "1type 2status 3observedGeneration:int64 4lastTransitionTime:Time 5reason 6message"
    ),
    "StatusCause": "1reason 2message 3field",
    "StatusDetails": "1name 2group 3kind 6uid 4causes:[]StatusCause 5retryAfterSeconds:int32",
    "Status": "1metadata:ListMeta 2status 3message 4reason 5details*:StatusDetails 6code:int32",
    "RawExtension": "1raw:bytes",
    "WatchEvent": "1type 2object:RawExtension",
    "TypeMeta": "1apiVersion 2kind",
    "Unknown": "1typeMeta:TypeMeta 2raw:bytes 3contentEncoding 4contentType",
    "ServicePort": (
        "1name 2protocol 6appProtocol* 3port:int32 4targetPort:IntOrString 5nodePort:int32"
    ),
    "ClientIPConfig": "1timeoutSeconds*:int32",
    "SessionAffinityConfig": "1clientIP*:ClientIPConfig",
    "ServiceSpec": (
        "1ports:[]ServicePort 2selector:{}string 3clusterIP 18clusterIPs:[]string 4type "
        "5externalIPs:[]string 7sessionAffinity 8loadBalancerIP "
        "9loadBalancerSourceRanges:[]string 10externalName 11externalTrafficPolicy "
        "12healthCheckNodePort:int32 13publishNotReadyAddresses:bool "
        "14sessionAffinityConfig*:SessionAffinityConfig 19ipFamilies:[]string 17ipFamilyPolicy* "
        "20allocateLoadBalancerNodePorts*:bool 21loadBalancerClass* 22internalTrafficPolicy* "
        "23trafficDistribution*"
    ),
    "PortStatus": "1port:int32 2protocol 3error*",
    "LoadBalancerIngress": "1ip 2hostname 3ipMode* 4ports:[]PortStatus",
    "LoadBalancerStatus": "1ingress:[]LoadBalancerIngress",
    "ServiceStatus": "1loadBalancer:LoadBalancerStatus 2conditions:[]Condition",
    "Service": "1metadata:ObjectMeta 2spec:ServiceSpec 3status:ServiceStatus",
    "ObjectReference": "1kind 2namespace 3name 4uid 5apiVersion 6resourceVersion 7fieldPath",
    "EndpointConditions": "1ready*:bool 2serving*:bool 3terminating*:bool",
    "ForZone": "1name",
    "ForNode": "1name",
    "EndpointHints": "1forZones:[]ForZone 2forNodes:[]ForNode",
    "Endpoint": (
        "1addresses:[]string 2conditions:EndpointConditions 3hostname* "
        "4targetRef*:ObjectReference 5deprecatedTopology:{}string 6nodeName* 7zone* "
        "8hints*:EndpointHints"
    ),
    "EndpointPort": "1name* 2protocol* 3port*:int32 4appProtocol*",
    "EndpointSlice": (
        "1metadata:ObjectMeta 4addressType 2endpoints:[]Endpoint 3ports:[]EndpointPort"
    ),
    "Taint": "1key 2value 3effect 4timeAdded*:Time",
    "NodeSpec": (
        "1podCIDR 7podCIDRs:[]string 3providerID 4unschedulable:bool 5taints:[]Taint 2externalID"
    ),
    "NodeCondition": (
        "1type 2status 3lastHeartbeatTime:Time 4lastTransitionTime:Time 5reason 6message"
    ),
    "NodeAddress": "1type 2address",
    "DaemonEndpoint": "1Port:int32",
    "NodeDaemonEndpoints": "1kubeletEndpoint:DaemonEndpoint",
    "NodeSystemInfo": (
        "1machineID 2systemUUID 3bootID 4kernelVersion 5osImage 6containerRuntimeVersion "
        "7kubeletVersion 8kubeProxyVersion 9operatingSystem 10architecture"
    ),
    "ContainerImage": "1names:[]string 2sizeBytes:int64",
    "NodeStatus": (
        "1capacity:{}Quantity 2allocatable:{}Quantity 3phase 4conditions:[]NodeCondition "
        "5addresses:[]NodeAddress 6daemonEndpoints:NodeDaemonEndpoints 7nodeInfo:NodeSystemInfo "
        "8images:[]ContainerImage"
    ),
    "Node": "1metadata:ObjectMeta 2spec:NodeSpec 3status:NodeStatus",
    "ServiceCIDRSpec": "1cidrs:[]string",
    "ServiceCIDRStatus": "1conditions:[]Condition",
    "ServiceCIDR": "1metadata:ObjectMeta 2spec:ServiceCIDRSpec 3status:ServiceCIDRStatus",
    "ServiceList": "1metadata:ListMeta 2items:[]Service",
    "EndpointSliceList": "1metadata:ListMeta 2items:[]EndpointSlice",
    "NodeList": "1metadata:ListMeta 2items:[]Node",
    "ServiceCIDRList": "1metadata:ListMeta 2items:[]ServiceCIDR",
}
VERSIONS: Final = {
    "Service": "v1",
    "Node": "v1",
    "Status": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
_SCALARS: Final = ("string", "bytes", "bool", "int32", "int64")
_EMPTY: Final = {"string": "", "bytes": b"", "bool": False, "int32": 0, "int64": 0}


class _Field:
    """One word of the table."""

    def __init__(self, word: str) -> None:
        left, _, kind = word.partition(":")
        digits = len(left) - len(left.lstrip("0123456789"))
        self.number = int(left[:digits])
        self.name = left[digits:].removesuffix("*")
        self.pointer = left.endswith("*")
        self.several = kind.startswith("[]")
        self.mapped = kind.startswith("{}")
        self.type = kind.removeprefix("[]").removeprefix("{}") or "string"
        self.scalar = self.type in _SCALARS


_FIELDS: Final = {
    name: [_Field(word) for word in words.split()] for name, words in _MESSAGES.items()
}


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="whole.proto", package="whole", syntax="proto2")
    for name, fields in _FIELDS.items():
        made = file.message_type.add(name=name)
        for field in fields:
            kind = field.type
            if field.mapped:
                kind = f"{field.name[0].upper()}{field.name[1:]}Entry"
                entry = made.nested_type.add(name=kind)
                entry.options.map_entry = True
                _declare(entry, 1, "key", "string")
                _declare(entry, 2, "value", field.type)
                kind = f"{name}.{kind}"
            _declare(made, field.number, field.name, kind, several=field.several or field.mapped)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"whole.{name}"))
        for name in _FIELDS
    }


def _declare(made: Any, number: int, name: str, kind: str, *, several: bool = False) -> None:
    field = made.field.add(number=number, name=name, label=3 if several else 1)
    if kind in _SCALARS:
        field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".whole.{kind}"


CLASSES: Final[dict[str, Any]] = _classes()


def encode(kind: str, document: Document) -> bytes:
    """Return the bytes of a message alone."""
    message = CLASSES[kind]()
    _fill(message, kind, document)
    encoded: bytes = message.SerializeToString()
    return encoded


def enveloped(kind: str, document: Document) -> bytes:
    """Return an object or a list as the body of an answer."""
    return envelope(encode(kind, document), kind)


def envelope(raw: bytes, kind: str) -> bytes:
    """Put the bytes of a message into the envelope that names its kind."""
    version = VERSIONS[kind.removesuffix("List")]
    unknown = CLASSES["Unknown"](raw=raw, contentEncoding="", contentType="")
    unknown.typeMeta.apiVersion, unknown.typeMeta.kind = version, kind
    encoded: bytes = unknown.SerializeToString()
    return MAGIC + encoded


def event(type_: str, kind: str, document: Document) -> bytes:
    """Return an event of a watch, with its length before it."""
    return framed(encode("WatchEvent", {"type": type_, "object": enveloped(kind, document)}))


def framed(event: bytes) -> bytes:
    """Put the length before the bytes of an event."""
    return len(event).to_bytes(4, "big") + event


def _fill(message: Any, kind: str, document: Any) -> None:
    document = _special(kind, document) or {}
    fields = _FIELDS[kind]
    unknown = document.keys() - {field.name for field in fields} - {"kind", "apiVersion"}
    assert not unknown, f"{kind} has no {unknown}"
    for field in fields:
        value = document.get(field.name)
        if field.mapped:
            for key, each in (value or {}).items():
                if field.scalar:
                    getattr(message, field.name)[key] = each
                else:
                    _fill(getattr(message, field.name)[key], field.type, each)
        elif field.several:
            for each in value or ():
                if field.scalar:
                    getattr(message, field.name).append(each)
                else:
                    _fill(getattr(message, field.name).add(), field.type, each)
        elif value is None and field.pointer:
            continue
        elif field.scalar:
            setattr(message, field.name, _EMPTY[field.type] if value is None else value)
        else:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, field.type, value)


def _special(kind: str, value: Any) -> Any:
    """Return the fields of a type whose JSON is no object of its fields."""
    match kind:
        case "Time":
            # Written without fields where it is zero
            return {"seconds": int(datetime.fromisoformat(value).timestamp())} if value else {}
        case "Quantity":
            return {"string": value}
        case "IntOrString" if isinstance(value, str):
            return {"type": 1, "strVal": value}
        case "IntOrString":
            return {"type": 0, "intVal": value or 0}
        case "FieldsV1":
            return {"Raw": json.dumps(value, separators=(",", ":")).encode()}
        case "RawExtension":
            return {"raw": value or b""}
    return value
