"""Protobuf of the API server to objects: the same as from JSON, and nothing from garbage."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.model import EndpointSlice, Node, Object, ObjectName, Service, ServiceCIDR
from nftproxy.sources import encoding, protobuf, wire
from nftproxy.sources.protobuf import ProtobufDecoder
from nftproxy.sources.wire import Bookmark, Broken, Changed, Removed, Status, WireError
from tests.support import protobuf as encoder
from tests.support.paths import RECORDINGS
from tests.support.protobuf import Document

LISTS: dict[str, type[Object]] = {
    "services-list.json": Service,
    "services-page1.json": Service,
    "services-page2.json": Service,
    "endpointslices-list.json": EndpointSlice,
    "nodes-list.json": Node,
    "servicecidrs-list.json": ServiceCIDR,
}
KINDS: dict[str, type[Object]] = {
    kind.__name__: kind for kind in (Service, EndpointSlice, Node, ServiceCIDR)
}
WEB = {"name": "web", "namespace": "demo", "resourceVersion": "7"}


@pytest.mark.parametrize("recording", LISTS)
def test_recorded_list(recording: str) -> None:
    kind, recorded = LISTS[recording], (RECORDINGS / recording).read_bytes()
    answer = encoder.enveloped(f"{kind.__name__}List", json.loads(recorded))
    page = ProtobufDecoder(kind).page(answer)
    assert page == wire.JsonDecoder(kind).page(recorded)
    assert page.items
    assert len(answer) < len(recorded)


@pytest.mark.parametrize(
    ("recording", "kind"),
    [
        ("services-watch.jsonl", Service),
        ("services-watchlist.jsonl", Service),
        ("endpointslices-watch.jsonl", EndpointSlice),
    ],
)
def test_recorded_watch(recording: str, kind: type[Object]) -> None:
    """Nor does it matter where the stream is cut."""
    lines = (RECORDINGS / recording).read_bytes().splitlines()
    stream = b"".join(
        encoder.event(each["type"], kind.__name__, each["object"])
        for each in map(json.loads, lines)
    )
    told, decoder = wire.JsonDecoder(kind), ProtobufDecoder(kind)
    for step in (1, 7, 1000, len(stream)):
        messages, rest = [], b""
        for begin in range(0, len(stream), step):
            found, rest = decoder.split(rest + stream[begin : begin + step])
            messages += found
        assert rest == b""
        assert [decoder.event(each) for each in messages] == [told.event(each) for each in lines]
        assert [decoder.version(each) for each in messages] == [told.version(e) for e in lines]


# ---- any object ----

_names = st.from_regex(r"\A[a-z][a-z0-9]{0,5}\Z")
_texts = st.text(max_size=5)
_ports = st.integers(1, 65535)
_addresses = st.ip_addresses().map(str)


def _moment(value: datetime) -> str:
    return value.strftime("%04Y-%m-%dT%H:%M:%SZ")


_times = st.integers(1, 253402300799).map(lambda at: _moment(datetime.fromtimestamp(at, UTC)))


_asked: set[str] = set()  # every key that documents here can have


def _fields(optional: dict[str, Any], **required: Any) -> st.SearchStrategy[Document]:
    _asked.update(optional, required)
    return st.fixed_dictionaries(required, optional=optional)


def _some(each: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(each, min_size=1, max_size=3)


def _known(kind: str) -> st.SearchStrategy[dict[str, str]]:
    """Labels or annotations, also those that `model` reads, whichever these are."""
    from nftproxy import model

    read = [field.encode_name for field in msgspec.structs.fields(getattr(model, kind))]
    _asked.update(read)
    return st.dictionaries(st.sampled_from(read) | _names, _texts, min_size=1, max_size=4)


_meta = _fields(
    {
        "namespace": _names,
        "uid": _texts,
        "labels": _known("Labels"),
        "annotations": _known("Annotations"),
        "creationTimestamp": _times,
        "deletionTimestamp": _times,
        "ownerReferences": _some(_fields({}, kind=_texts, controller=st.booleans())),
        "managedFields": _some(
            _fields({}, manager=_texts, time=_times, fieldsV1=st.just({"f": {}}))
        ),
    },
    name=_names,
)
_protocols = st.sampled_from(["TCP", "UDP", "SCTP"])
_policies = st.sampled_from(["Cluster", "Local"])
_families = st.sampled_from(["IPv4", "IPv6"])
_service_port = _fields(
    {
        "name": _names,
        "protocol": _protocols,
        "nodePort": _ports,
        "targetPort": _ports | _names,
        "appProtocol": _texts,
    },
    port=_ports,
)
_spec = _fields(
    {
        "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
        "clusterIP": _addresses,
        "clusterIPs": _some(_addresses),
        "ipFamilies": _some(_families),
        "ipFamilyPolicy": _texts,
        "externalIPs": _some(_addresses),
        "ports": _some(_service_port),
        "selector": st.dictionaries(_names, _texts, max_size=2),
        "sessionAffinity": st.sampled_from(["None", "ClientIP"]),
        "sessionAffinityConfig": _fields(
            {"clientIP": _fields({"timeoutSeconds": st.integers(1, 86400)})}
        ),
        "externalTrafficPolicy": _policies,
        "internalTrafficPolicy": _policies,
        "loadBalancerSourceRanges": _some(_texts.filter(bool)),
        "healthCheckNodePort": _ports,
        "publishNotReadyAddresses": st.booleans(),
    }
)
_ingress = _fields(
    {"ip": _addresses, "ipMode": st.sampled_from(["VIP", "Proxy"]), "hostname": _names}
)
_hints = _fields(
    {"forZones": _some(_fields({}, name=_names)), "forNodes": _some(_fields({}, name=_names))}
).filter(bool)
_endpoint = _fields(
    {
        "nodeName": _names,
        "zone": _names,
        "hints": _hints,
        "targetRef": _fields({}, name=_names, uid=_names),
    },
    addresses=_some(_addresses),
    conditions=_fields(dict.fromkeys(("ready", "serving", "terminating"), st.booleans())),
)
DOCUMENTS = {
    "Service": _fields(
        {},
        metadata=_meta,
        spec=_spec,
        status=_fields({}, loadBalancer=_fields({"ingress": _some(_ingress)})),
    ),
    "EndpointSlice": _fields(
        {
            "endpoints": _some(_endpoint),
            "ports": _some(
                _fields(
                    {
                        "name": st.just("") | _names,
                        "protocol": _protocols,
                        "port": st.just(0) | _ports,
                        "appProtocol": _texts,
                    }
                )
            ),
        },
        metadata=_meta,
        addressType=st.sampled_from(["IPv4", "IPv6", "FQDN"]),
    ),
    "Node": _fields(
        {},
        metadata=_meta,
        spec=_fields(
            {
                "podCIDRs": _some(_texts),
                "taints": _some(_fields({}, key=_names, effect=_texts)),
                "unschedulable": st.booleans(),
            }
        ),
        status=_fields(
            {
                "addresses": _some(_fields({}, type=_names, address=_addresses)),
                "capacity": st.just({"cpu": "4"}),
            }
        ),
    ),
    "ServiceCIDR": _fields({}, metadata=_meta, spec=_fields({"cidrs": _some(_texts)})),
}
_objects = st.sampled_from(list(DOCUMENTS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(DOCUMENTS[kind], max_size=3))
)


@given(_objects)
def test_any_object_is_the_same_in_both_encodings(given: tuple[str, list[Document]]) -> None:
    name, documents = given
    kind = KINDS[name]
    listed = {"metadata": {"resourceVersion": "7", "continue": "next"}, "items": documents}
    told = wire.JsonDecoder(kind).page(json.dumps(listed).encode())
    assert told.broken == []
    assert ProtobufDecoder(kind).page(encoder.enveloped(f"{name}List", listed)) == told


def test_every_field_of_the_model_is_asked_for_above() -> None:
    """A field that `model` learns to read has to be read from protobuf, too."""

    def names(struct: Any) -> set[str]:
        found = set()
        for field in msgspec.structs.fields(struct):
            found.add(field.encode_name)
            for each in _structs(field.type):
                found |= names(each)
        return found

    for name, kind in KINDS.items():
        assert names(kind) <= _asked, f"{name}: {names(kind) - _asked}"


def _structs(type_: Any) -> list[Any]:
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return [type_]
    return [found for each in getattr(type_, "__args__", ()) for found in _structs(each)]


# ---- faults ----


def _listed(*items: bytes) -> bytes:
    whole: bytes = encoder.CLASSES["ListMeta"](resourceVersion="7").SerializeToString()
    parts = [b"\n" + _length(whole) + whole, *(b"\x12" + _length(item) + item for item in items)]
    return encoder.envelope(b"".join(parts), "ServiceList")


def _length(raw: bytes) -> bytes:
    return bytes([len(raw) & 127 | 128, len(raw) >> 7])


def test_one_broken_object_costs_no_other() -> None:
    good = encoder.encode("Service", {"metadata": WEB, "spec": {"ports": [{"port": 80}]}})
    port = encoder.encode("Service", {"metadata": WEB, "spec": {"ports": [{"port": 0}]}})
    kind = encoder.encode("Service", {"metadata": WEB, "spec": {"type": "Magic"}})
    text = encoder.encode("Service", {"metadata": WEB, "spec": {"clusterIP": "xxxx"}})
    late = encoder.CLASSES["Service"].FromString(good)
    late.metadata.creationTimestamp.seconds = 2**62
    page = ProtobufDecoder(Service).page(
        _listed(
            good,
            port,
            kind,
            text.replace(b"xxxx", b"\xff\xfe\xfd\xfc"),
            late.SerializeToString(),
            b"\xff\xff",
            good,
        )
    )
    assert [item.metadata.name for item in page.items] == ["web", "web"]
    web = ObjectName("demo", "web")
    assert page.broken[:2] == [
        Broken(web, "Expected `int` >= 1 - at `$.spec.ports[0].port`"),
        Broken(web, "Invalid enum value 'Magic' - at `$.spec.type`"),
    ]
    assert [each.key for each in page.broken[2:]] == [web, web, None]
    assert all("Error parsing message" in each.problem for each in page.broken[2::2])


def test_what_is_shared_has_an_end() -> None:
    """Hostile parts, or many different ones, do not stay in memory."""
    from nftproxy.sources import objects

    for number in range(1, 60000, 13):
        ports = [{"name": f"p{number}", "port": number}, {"name": "x" * 60, "port": 1}]
        spec = {"ports": [*ports, {"name": "long", "port": 1, "appProtocol": "x" * 300}]}
        ProtobufDecoder(Service).page(
            _listed(encoder.encode("Service", {"metadata": WEB, "spec": spec}))
        )
    shared = objects._service_port
    assert 0 < len(shared) <= objects._MOST_SHARED
    assert max(map(len, shared)) <= objects._LONGEST_SHARED


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "begins with b''"),
        (b'{"kind": "ServiceList"}', "begins with b'{\"ki'"),
        (b"k8s\x01", "begins with b'k8s\\x01'"),
        (b"k8s\0\xff\xff\xff", "Error parsing message"),
        (b"k8s\0", "' ' stands where v1 ServiceList has to be"),
        (encoder.envelope(b"", "NodeList"), "'v1 NodeList' stands where"),
        (encoder.envelope(b"\x12\xff\xff\xff\xff\x07", "ServiceList"), "Error parsing message"),
    ],
)
def test_no_list(answer: bytes, problem: str) -> None:
    with pytest.raises(WireError, match="the answer is no list of Service objects") as found:
        ProtobufDecoder(Service).page(answer)
    assert problem in str(found.value)


def test_a_kind_of_another_group_is_refused() -> None:
    answer = encoder.envelope(b"", "EndpointSliceList").replace(b"discovery", b"discoverx")
    with pytest.raises(WireError, match=r"'discoverx\.k8s\.io/v1 EndpointSliceList' stands where"):
        ProtobufDecoder(EndpointSlice).page(answer)


def _event(type_: str, object_: bytes) -> bytes:
    return encoder.encode("WatchEvent", {"type": type_, "object": object_})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            _event("DELETED", encoder.enveloped("Service", {"metadata": WEB})),
            Removed(ObjectName("demo", "web")),
        ),
        (
            _event(
                "BOOKMARK", encoder.enveloped("Service", {"metadata": {"resourceVersion": "9"}})
            ),
            Bookmark("9", complete=False),
        ),
        (
            _event("MODIFIED", encoder.enveloped("Service", {"metadata": {"name": "A"}})),
            Broken(
                ObjectName("default", "A"),
                wire.JsonDecoder(Service)
                .event(b'{"type":"ADDED","object":{"metadata":{"name":"A"}}}')
                .problem,  # type: ignore[union-attr]
            ),
        ),
    ],
)
def test_event(message: bytes, expected: wire.Event) -> None:
    assert ProtobufDecoder(Service).event(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        b"",
        _event("SURPRISE", b""),
        _event("ADDED", b""),
        _event("ADDED", encoder.enveloped("Node", {"metadata": WEB})),
        _event("DELETED", b"k8s\0\xff\xff"),
        _event("ERROR", b"hello"),
    ],
)
def test_no_event(message: bytes) -> None:
    with pytest.raises(WireError):
        ProtobufDecoder(Service).event(message)
    assert ProtobufDecoder(Service).version(message) == ""


def test_a_length_that_is_too_long_is_refused_at_once() -> None:
    decoder = ProtobufDecoder(Service)
    assert decoder.split(b"\x00\x00") == ([], b"\x00\x00")
    assert decoder.split(b"\x01\x00\x00\x00ab") == ([], b"\x01\x00\x00\x00ab")
    with pytest.raises(WireError, match="more than 16 MiB"):
        decoder.split(b"\x01\x00\x00\x01")


@given(st.data())
def test_garbage_is_an_error_and_never_a_crash(data: st.DataObject) -> None:
    """Real bytes, with some of them replaced, cut or repeated."""
    page = encoder.enveloped(
        "ServiceList", json.loads((RECORDINGS / "services-page1.json").read_bytes())
    )
    bad = bytearray(page)
    for at in data.draw(st.lists(st.integers(4, len(page) - 1), max_size=5)):
        bad[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(page)))
    for answer in (bytes(bad), page[:end], bytes(bad) + page[:end]):
        try:
            found = ProtobufDecoder(Service).page(answer)
        except WireError:
            continue
        assert all(isinstance(item, Service) for item in found.items)
        msgspec.json.encode(found.items)  # has no text that is none
    for message in (data.draw(st.binary(max_size=50)), _event("ADDED", bytes(bad))):
        with pytest.raises(WireError):
            ProtobufDecoder(Service).event(message)


# ---- what an answer is ----


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            encoder.enveloped("Status", {"code": 410, "reason": "Expired", "message": "too old"}),
            "503 Expired: 'too old'",
        ),
        (b"k8s\0\xff", "503 "),
        (b"hello", "503 "),
        (encoder.enveloped("Service", {"metadata": WEB}), "503 "),
    ],
)
def test_status(body: bytes, expected: str) -> None:
    assert str(protobuf.status(503, body)) == expected


def test_an_error_in_a_stream_says_how_long_to_wait() -> None:
    said = {"code": 429, "reason": "TooManyRequests", "details": {"retryAfterSeconds": 7}}
    found = ProtobufDecoder(Service).event(_event("ERROR", encoder.enveloped("Status", said)))
    assert isinstance(found, Status)
    assert (found.code, found.details and found.details.retry_after_seconds) == (429, 7)


def test_the_content_type_says_which_decoder() -> None:
    decoders = encoding.Decoders(Service)
    assert isinstance(
        decoders.of("application/vnd.kubernetes.protobuf;stream=watch"), ProtobufDecoder
    )
    assert isinstance(decoders.of("application/vnd.kubernetes.protobuf"), ProtobufDecoder)
    for other in ("application/json", "application/json;charset=utf-8", "text/plain", ""):
        assert isinstance(decoders.of(other), wire.JsonDecoder)


@pytest.mark.parametrize(
    ("asked", "accept"),
    [
        (
            "application/vnd.kubernetes.protobuf",
            "application/vnd.kubernetes.protobuf, application/json",
        ),
        ("application/json", "application/json"),
        ("", "application/json"),
        ("application/cbor\r\nX: y", "application/json"),
        (
            "application/json, application/vnd.kubernetes.protobuf;q=0.5",
            "application/json, application/vnd.kubernetes.protobuf",
        ),
    ],
)
def test_accepted(asked: str, accept: str) -> None:
    assert encoding.accepted(asked) == accept


def test_without_its_c_core_protobuf_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "find_spec", lambda _: None)
    assert encoding.accepted(encoding.PROTOBUF) == encoding.JSON


def test_events_are_changes() -> None:
    message = _event("ADDED", encoder.enveloped("Service", {"metadata": WEB}))
    event = ProtobufDecoder(Service).event(message)
    assert isinstance(event, Changed)
    assert ProtobufDecoder(Service).version(message) == "7"
