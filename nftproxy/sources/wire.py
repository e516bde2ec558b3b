"""Lists and watch events as the API server sends them in JSON: bytes in, objects of `model` out.

A fault in one object affects that object only: it becomes `Broken`, with its name where it has one.
An answer that is no list or no event is a `WireError`. Only this module and `protobuf`, which does
the same for the other encoding, know the parts of an answer that matter to the protocol alone
(resource versions, continue tokens, bookmarks, Status).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Self, TypeVar

import msgspec

from nftproxy.errors import SourceError, brief
from nftproxy.model import Object, ObjectName

T = TypeVar("T")
Version = str
"""A resource version: opaque, only to be sent back."""

# Invalid UTF-8 in a text and absurd nesting have exceptions of their own.
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"

LONGEST_MESSAGE: Final = 16 * 1024 * 1024
"""Ten times what etcd accepts for an object.

A stream whose event does not end must not fill the memory.
"""


class WireError(SourceError):
    """Bytes that are no list or no watch event."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An object that cannot be decoded; without a readable name, `key` is None."""

    key: ObjectName | None
    problem: str

    def __str__(self) -> str:
        name = f"{str(self.key)!r:.200}" if self.key else "an object without a name"
        return f"{name}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `token` asks for the next one and is empty on the last."""

    items: list[Object]
    broken: list[Broken]
    version: Version
    token: str

    def fill(self, decoded: Iterable[Object | Broken]) -> Self:
        """Add objects, each to those of its kind."""
        for item in decoded:
            if isinstance(item, Broken):
                self.broken.append(item)
            else:
                self.items.append(item)
        return self


@dataclass(frozen=True, slots=True)
class Changed:
    """An object is new or different."""

    item: Object


@dataclass(frozen=True, slots=True)
class Removed:
    """An object was deleted, or no longer matches the selectors (contract 1.1.5)."""

    key: ObjectName


@dataclass(frozen=True, slots=True)
class Bookmark:
    """No event up to here.

    `complete` marks the end of the objects that existed at the start of a streaming list.
    """

    version: Version
    complete: bool


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the API, in an answer's body or in a stream."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: "StatusDetails | None" = None

    def __str__(self) -> str:
        return (
            f"{self.code} {self.reason}: {self.message!r:.300}"
            if self.message
            else f"{self.code} {self.reason}"
        )


class StatusDetails(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How long to wait before the next try, in seconds, or 0."""

    retry_after_seconds: int = 0


Event = Changed | Removed | Bookmark | Status | Broken


class _ListMeta(msgspec.Struct, kw_only=True, rename="camel"):
    resource_version: Version = ""
    token: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, Generic[T], kw_only=True):
    metadata: _ListMeta
    items: list[T] | None  # the server prints null for an empty list of some kinds


class _Event(msgspec.Struct, Generic[T], kw_only=True):
    type: Literal["ADDED", "MODIFIED"]
    object: T


class _AnyEvent(msgspec.Struct, kw_only=True):
    type: str
    object: msgspec.Raw


class _NamedMeta(msgspec.Struct, kw_only=True, rename="camel"):
    name: str = ""
    namespace: str = "default"  # as in `model.Meta`, for what has no namespace
    resource_version: Version = ""
    annotations: dict[str, str] | None = None


class _Named(msgspec.Struct, kw_only=True):
    metadata: _NamedMeta


class _Versioned(msgspec.Struct, kw_only=True):
    object: _Named


_raw_list: Final = msgspec.json.Decoder(_List[msgspec.Raw])
_any_event: Final = msgspec.json.Decoder(_AnyEvent)
_named: Final = msgspec.json.Decoder(_Named)
_versioned: Final = msgspec.json.Decoder(_Versioned)
_status: Final = msgspec.json.Decoder(Status)


class JsonDecoder:
    """Decodes the lists and events of one kind of object."""

    def __init__(self, kind: type[Object]) -> None:
        self._kind = kind
        self._object: msgspec.json.Decoder[Object] = msgspec.json.Decoder(kind)
        self._list: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_List[kind])  # type: ignore[valid-type]
        self._event: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Event[kind])  # type: ignore[valid-type]

    def page(self, answer: bytes) -> Page:
        """Decode one page of a list; WireError if that is impossible."""
        try:
            found = self._list.decode(answer)
        except _UNDECODABLE:
            return self._page_piecemeal(answer)
        return Page(found.items or [], [], found.metadata.resource_version, found.metadata.token)

    def event(self, line: bytes) -> Event:
        """Decode one line of a watch; WireError if that is impossible."""
        try:
            return Changed(self._event.decode(line).object)
        except _UNDECODABLE:
            return self._other_event(line)

    @staticmethod
    def version(line: bytes) -> Version:
        """Return the resource version in a line of a watch, or an empty text."""
        try:
            return _versioned.decode(line).object.metadata.resource_version
        except _UNDECODABLE:
            return ""

    @staticmethod
    def split(stream: bytes) -> tuple[list[bytes], bytes]:
        """Return the complete lines at the start of a stream, and the rest."""
        end = stream.rfind(b"\n") + 1
        if len(stream) - end > LONGEST_MESSAGE:
            raise WireError(f"the stream has a line of more than {LONGEST_MESSAGE >> 20} MiB")
        return [line for line in stream[:end].split(b"\n") if line.strip()], stream[end:]

    def _page_piecemeal(self, answer: bytes) -> Page:
        """Decode the objects of a list one by one, because at least one of them is broken."""
        try:
            found = _raw_list.decode(answer)
        except _UNDECODABLE as error:
            raise WireError(
                f"the answer is no list of {self._kind.__name__} objects: {brief(str(error))}"
            ) from error
        page = Page([], [], found.metadata.resource_version, found.metadata.token)
        return page.fill(map(self._decode, found.items or ()))

    def _other_event(self, line: bytes) -> Event:
        """Decode an event that is neither ADDED nor MODIFIED, or broken."""
        try:
            event = _any_event.decode(line)
            match event.type:
                case "DELETED":
                    return Removed(_key(_named.decode(event.object)))
                case "BOOKMARK":
                    meta = _named.decode(event.object).metadata
                    return Bookmark(
                        meta.resource_version,
                        complete=INITIAL_EVENTS_END in (meta.annotations or ()),
                    )
                case "ERROR":
                    return _status.decode(event.object)
                case "ADDED" | "MODIFIED":
                    item = self._decode(event.object)
                    return item if isinstance(item, Broken) else Changed(item)
                case other:
                    raise WireError(f"the type of a watch event is {other!r:.40}")
        except _UNDECODABLE as error:
            raise WireError(
                f"a line of the stream is no watch event: {brief(str(error))}"
            ) from error

    def _decode(self, raw: msgspec.Raw) -> Object | Broken:
        try:
            return self._object.decode(raw)
        except _UNDECODABLE as error:
            problem = brief(str(error))
        try:
            return Broken(_key(_named.decode(raw)), problem)
        except _UNDECODABLE:
            return Broken(None, problem)


def status(code: int, body: bytes) -> Status:
    """Return the Status in the body of an answer other than 200, or one made from the code."""
    try:
        found = _status.decode(body)
    except _UNDECODABLE:
        return Status(code=code)
    return msgspec.structs.replace(found, code=code)


def _key(named: _Named) -> ObjectName:
    return ObjectName(named.metadata.namespace, named.metadata.name)
