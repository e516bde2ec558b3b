"""Bytes of the API server to objects, without a server."""

import json
from typing import Any

import pytest

from nftproxy.model import EndpointSlice, Node, Object, ObjectName, Service, ServiceCIDR
from nftproxy.sources.wire import (
    Bookmark,
    Broken,
    Changed,
    Event,
    JsonDecoder,
    Removed,
    Status,
    WireError,
    status,
)
from tests.support.paths import RECORDINGS

WEB = {"name": "web", "namespace": "demo", "resourceVersion": "7"}


def line(kind: str, thing: Any) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode()


@pytest.mark.parametrize(
    ("recording", "kind"),
    [
        ("services-list.json", Service),
        ("endpointslices-list.json", EndpointSlice),
        ("nodes-list.json", Node),
        ("servicecidrs-list.json", ServiceCIDR),
    ],
)
def test_recorded_list(recording: str, kind: type[Object]) -> None:
    recorded = json.loads((RECORDINGS / recording).read_bytes())
    page = JsonDecoder(kind).page((RECORDINGS / recording).read_bytes())
    assert page.broken == []
    assert page.token == ""
    assert page.version == recorded["metadata"]["resourceVersion"]
    assert [item.metadata.name for item in page.items] == [
        each["metadata"]["name"] for each in recorded["items"]
    ]
    assert all(isinstance(item, kind) for item in page.items)


def test_recorded_pages_are_the_beginning_of_the_recorded_list() -> None:
    decoder = JsonDecoder(Service)
    pages = [
        decoder.page((RECORDINGS / f"services-page{number}.json").read_bytes()) for number in (1, 2)
    ]
    whole = decoder.page((RECORDINGS / "services-list.json").read_bytes())
    assert [item for page in pages for item in page.items] == whole.items[:4]
    assert all(page.token and page.version == pages[0].version for page in pages)


def test_recorded_streaming_list() -> None:
    *objects, last = (RECORDINGS / "services-watchlist.jsonl").read_bytes().splitlines()
    decoder = JsonDecoder(Service)
    assert all(isinstance(decoder.event(each), Changed) for each in objects)
    assert decoder.event(last) == Bookmark("265", complete=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (line("DELETED", {"metadata": WEB, "spec": 5}), Removed(ObjectName("demo", "web"))),
        (line("DELETED", {"metadata": {"name": "web"}}), Removed(ObjectName("default", "web"))),
        (line("BOOKMARK", {"metadata": {"resourceVersion": "9"}}), Bookmark("9", complete=False)),
        (
            line("ERROR", {"metadata": {}, "code": 410, "reason": "Expired"}),
            Status(code=410, reason="Expired"),
        ),
        (
            line("MODIFIED", {"metadata": WEB, "spec": {"type": "Magic"}}),
            Broken(ObjectName("demo", "web"), "Invalid enum value 'Magic' - at `$.spec.type`"),
        ),
        (
            line("ADDED", {"metadata": {"name": 5}}),
            Broken(None, "Expected `str`, got `int` - at `$.metadata.name`"),
        ),
    ],
    ids=["deleted", "deleted_without_namespace", "bookmark", "error", "broken", "nameless"],
)
def test_event(given: bytes, expected: Event) -> None:
    assert JsonDecoder(Service).event(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"null",
        b"{",
        b'{"type":"ADDED"}',
        line("WHAT", {}),
        line("DELETED", {}),
        line("BOOKMARK", 5),
        b'"\xff"',
        b"[" * 99_999,
    ],
    ids=[
        "empty",
        "null",
        "cut",
        "no_object",
        "type",
        "deleted_what",
        "bookmark_where",
        "no_utf8",
        "deep",
    ],
)
def test_no_event(given: bytes) -> None:
    with pytest.raises(WireError):
        JsonDecoder(Service).event(given)


def test_one_broken_object_costs_no_other() -> None:
    items = [
        {"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}}
        for name, port in (("a", 80), ("b", 0), ("c", 90))
    ]
    page = JsonDecoder(Service).page(
        json.dumps(
            {"metadata": {"resourceVersion": "5", "continue": "more"}, "items": items}
        ).encode()
    )
    assert [item.metadata.name for item in page.items] == ["a", "c"]
    assert [str(each) for each in page.broken] == [
        "'default/b': Expected `int` >= 1 - at `$.spec.ports[0].port`"
    ]
    assert (page.version, page.token) == ("5", "more")


def test_items_null() -> None:
    assert (
        JsonDecoder(Service).page(b'{"metadata":{"resourceVersion":"5"},"items":null}').items == []
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (line("MODIFIED", {"metadata": WEB, "spec": 5}), "7"),
        (line("BOOKMARK", {"metadata": {}}), ""),
        (b"garbage", ""),
    ],
    ids=["broken_object", "none", "garbage"],
)
def test_version_of(given: bytes, expected: str) -> None:
    assert JsonDecoder.version(given) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<html>", "502 "),
        (b'{"code":502,"reason":"Odd","message":"two\\nlines"}', "502 Odd: 'two\\nlines'"),
        (b'{"code":7,"message":"' + b"x" * 1000 + b'"}', "502 : '" + "x" * 299),
    ],
    ids=["html", "status", "long"],
)
def test_status(body: bytes, expected: str) -> None:
    assert str(status(502, body)) == expected


def test_a_name_cannot_break_the_log() -> None:
    event = JsonDecoder(Service).event(line("ADDED", {"metadata": {"name": "a\nb" * 1000}}))
    assert len(str(event)) < 400
    assert "\n" not in str(event)
