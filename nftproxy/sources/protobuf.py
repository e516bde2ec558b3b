"""Lists and watch events in protobuf: what `wire` does for JSON, with the same objects and errors.

An answer is an envelope that names the kind of its content. A stream is a sequence of events, each
with its length before it.
"""

from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError

from nftproxy.errors import brief
from nftproxy.model import Object, ObjectName
from nftproxy.sources.messages import parser
from nftproxy.sources.objects import KINDS
from nftproxy.sources.wire import (
    INITIAL_EVENTS_END,
    LONGEST_MESSAGE,
    Bookmark,
    Broken,
    Changed,
    Event,
    Page,
    Removed,
    Status,
    StatusDetails,
    Version,
    WireError,
)

MAGIC: Final = b"k8s\0"
_LENGTH: Final = 4  # bytes

# A number that is no time is an OverflowError.
_UNDECODABLE: Final = (DecodeError, msgspec.ValidationError, OverflowError)

_unknown: Final = parser("Unknown")
_list: Final = parser("List")
_watch_event: Final = parser("WatchEvent")
_named: Final = parser("Named")
_status: Final = parser("Status")


class ProtobufDecoder:
    """Decodes the lists and events of one kind of object."""

    def __init__(self, kind: type[Object]) -> None:
        self._kind = kind
        self._read, self._version = KINDS[kind]

    def page(self, answer: bytes) -> Page:
        """Decode one page of a list; WireError if that is impossible."""
        what = f"the answer is no list of {self._kind.__name__} objects"
        try:
            found = _list(_opened(answer, self._version, f"{self._kind.__name__}List"))
        except (DecodeError, WireError) as error:
            raise WireError(f"{what}: {brief(str(error))}") from error
        page = Page([], [], found.metadata.resourceVersion, found.metadata.token)
        return page.fill(map(self._decode, found.items))

    def event(self, message: bytes) -> Event:
        """Decode one event of a watch; WireError if that is impossible."""
        try:
            found = _watch_event(message)
            match found.type:
                case "ADDED" | "MODIFIED":
                    item = self._decode(self._object(found))
                    return item if isinstance(item, Broken) else Changed(item)
                case "DELETED":
                    return Removed(_key(_named(self._object(found))))
                case "BOOKMARK":
                    meta = _named(self._object(found)).metadata
                    complete = INITIAL_EVENTS_END in meta.annotations
                    return Bookmark(meta.resourceVersion, complete=complete)
                case "ERROR":
                    return _said(found.object.raw)
                case other:
                    raise WireError(f"the type of a watch event is {other!r:.40}")
        except DecodeError as error:
            raise WireError(
                f"a message of the stream is no watch event: {brief(str(error))}"
            ) from error

    def version(self, message: bytes) -> Version:
        """Return the resource version in an event of a watch, or an empty text."""
        try:
            version: str = _named(self._object(_watch_event(message))).metadata.resourceVersion
        except (DecodeError, WireError):
            return ""
        return version

    @staticmethod
    def split(stream: bytes) -> tuple[list[bytes], bytes]:
        """Return the complete messages at the start of a stream, and the rest."""
        found, at = [], 0
        while (begin := at + _LENGTH) <= len(stream):
            length = int.from_bytes(stream[at:begin], "big")
            if length > LONGEST_MESSAGE:
                raise WireError(
                    f"the stream has a message of more than {LONGEST_MESSAGE >> 20} MiB"
                )
            if begin + length > len(stream):
                break
            at = begin + length
            found.append(stream[begin:at])
        return found, stream[at:]

    def _object(self, event: Any) -> bytes:
        return _opened(event.object.raw, self._version, self._kind.__name__)

    def _decode(self, raw: bytes) -> Object | Broken:
        try:
            return msgspec.convert(self._read(raw), self._kind)
        except _UNDECODABLE as error:
            problem = brief(str(error))
        try:
            return Broken(_key(_named(raw)), problem)
        except DecodeError:
            return Broken(None, problem)


def status(code: int, body: bytes) -> Status:
    """Return the Status in the body of an answer other than 200, or one made from the code."""
    try:
        found = _said(body)
    except (DecodeError, WireError):
        return Status(code=code)
    return msgspec.structs.replace(found, code=code)


def _opened(body: bytes, version: str, kind: str) -> bytes:
    """Return the content of an envelope, which has to be of that kind."""
    if not body.startswith(MAGIC):
        raise WireError(f"the envelope of a {kind} begins with {body[: len(MAGIC)]!r}")
    found = _unknown(body[len(MAGIC) :])
    named = (found.typeMeta.apiVersion, found.typeMeta.kind)
    if named != (version, kind):
        raise WireError(f"{' '.join(named)!r:.100} stands where {version} {kind} has to be")
    if found.contentEncoding:
        raise WireError(f"the content is encoded as {found.contentEncoding!r:.40}")
    raw: bytes = found.raw
    return raw


def _said(body: bytes) -> Status:
    found = _status(_opened(body, "v1", "Status"))
    wait = StatusDetails(retry_after_seconds=found.details.retryAfterSeconds)
    return Status(code=found.code, reason=found.reason, message=found.message, details=wait)


def _key(named: Any) -> ObjectName:
    return ObjectName(named.metadata.namespace or "default", named.metadata.name)
