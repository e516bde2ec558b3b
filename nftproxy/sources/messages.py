"""The messages of the API in protobuf, with only the fields that are read; others are skipped.

The numbers are those of the `generated.proto` files of `k8s.io/api` and `k8s.io/apimachinery`,
which never change; on the wire there are no names. Parts that many objects have in common (ports,
conditions) are declared as bytes, which have the same form there: see `protobuf`.

Import this module only when a server answers in protobuf: it takes 3 MB and 20 ms.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# A field is its number, its name and its type, `string` if none is given; `[]` for several.
_FIELDS: Final = {
    "Unknown": "1typeMeta:TypeMeta 2raw:bytes 3contentEncoding",
    "TypeMeta": "1apiVersion 2kind",
    "List": "1metadata:ListMeta 2items:[]bytes",
    "ListMeta": "2resourceVersion 3token",
    "WatchEvent": "1type 2object:RawExtension",
    "RawExtension": "1raw:bytes",
    "Status": "3message 4reason 5details:StatusDetails 6code:int32",
    "StatusDetails": "5retryAfterSeconds:int32",
    "Named": "1metadata:NamedMeta",
    "NamedMeta": "1name 3namespace 6resourceVersion 12annotations:map",
    "Meta": (
        "1name 3namespace 8creationTimestamp:Time 9deletionTimestamp:Time 11labels:map "
        "12annotations:map"
    ),
    "Time": "1seconds:int64",
    "Service": "1metadata:Meta 2spec:ServiceSpec 3status:bytes",
    "ServiceSpec": (
        "1ports:[]bytes 3clusterIP 18clusterIPs:[]string 4type 5externalIPs:[]string "
        "7sessionAffinity 9loadBalancerSourceRanges:[]string 11externalTrafficPolicy "
        "12healthCheckNodePort:int32 14sessionAffinityConfig:bytes 19ipFamilies:[]string "
        "22internalTrafficPolicy"
    ),
    "ServicePort": "1name 2protocol 3port:int32 5nodePort:int32",
    "SessionAffinityConfig": "1clientIP:ClientIPConfig",
    "ClientIPConfig": "1timeoutSeconds:int32",
    "ServiceStatus": "1loadBalancer:LoadBalancerStatus",
    "LoadBalancerStatus": "1ingress:[]LoadBalancerIngress",
    "LoadBalancerIngress": "1ip 3ipMode",
    "EndpointSlice": "1metadata:Meta 4addressType 2endpoints:[]Endpoint 3ports:[]bytes",
    "Endpoint": (
        "1addresses:[]string 2conditions:bytes 4targetRef:ObjectReference 6nodeName 8hints:bytes"
    ),
    "ObjectReference": "4uid",
    "EndpointConditions": "1ready:bool 2serving:bool 3terminating:bool",
    "EndpointHints": "1forZones:[]Hint 2forNodes:[]Hint",
    "Hint": "1name",
    "EndpointPort": "1name 2protocol 3port:int32",
    "Node": "1metadata:Meta 2spec:NodeSpec 3status:NodeStatus",
    "NodeSpec": "7podCIDRs:[]string 5taints:[]Taint",
    "Taint": "1key",
    "NodeStatus": "5addresses:[]NodeAddress",
    "NodeAddress": "1type 2address",
    "ServiceCIDR": "1metadata:Meta 2spec:ServiceCIDRSpec",
    "ServiceCIDRSpec": "1cidrs:[]string",
}
_SCALARS: Final = {"string": 9, "bytes": 12, "bool": 8, "int32": 5, "int64": 3}
_MESSAGE: Final = 11
_OPTIONAL: Final = 1
_REPEATED: Final = 3
_PACKAGE: Final = "nftproxy"


def _declare(message: Any, word: str) -> None:
    """Add a field to the description of a message."""
    left, _, kind = word.partition(":")
    name = left.lstrip("0123456789")
    label = _REPEATED if kind == "map" or kind.startswith("[]") else _OPTIONAL
    kind = kind.removeprefix("[]") or "string"
    if kind == "map":  # of texts to texts: on the wire it is a list of pairs
        pair = message.nested_type.add(name=f"{name.capitalize()}Entry")
        pair.options.map_entry = True
        _declare(pair, "1key")
        _declare(pair, "2value")
        kind = f"{message.name}.{pair.name}"
    field = message.field.add(number=int(left.removesuffix(name)), name=name, label=label)
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _MESSAGE, f".{_PACKAGE}.{kind}"


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="nftproxy.proto",
        package=_PACKAGE,
        # An absent field differs from an empty one, and a text has to be UTF-8.
        syntax="editions",
        edition=descriptor_pb2.EDITION_2023,
    )
    for name, words in _FIELDS.items():
        message = file.message_type.add(name=name)
        for word in words.split():
            _declare(message, word)
    pool = descriptor_pool.DescriptorPool()  # one of our own: names of others do not matter
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _FIELDS
    }


_made: Final = _classes()


def parser(name: str) -> Any:
    """Return the function that makes a message of that name from bytes."""
    return _made[name].FromString
