"""How the API server encodes its answers: JSON, or protobuf where it offers that.

A request says what it accepts, an answer what it is. A server that knows no protobuf answers in
JSON.
"""

from importlib.util import find_spec
from typing import Final, Protocol

from nftproxy.model import Object
from nftproxy.sources import wire
from nftproxy.sources.wire import Event, Page, Status, Version

JSON: Final = "application/json"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"


class Decoder(Protocol):
    """Decodes the lists and events of one kind of object; `wire` says what its methods do."""

    def page(self, answer: bytes, /) -> Page:
        """Decode one page of a list; WireError if that is impossible."""

    def event(self, message: bytes, /) -> Event:
        """Decode one event of a watch; WireError if that is impossible."""

    def version(self, message: bytes, /) -> Version:
        """Return the resource version in an event of a watch, or an empty text."""

    def split(self, stream: bytes, /) -> tuple[list[bytes], bytes]:
        """Return the complete messages at the start of a stream, and the rest."""


class Decoders:
    """The decoders of one kind of object."""

    def __init__(self, kind: type[Object]) -> None:
        self._kind = kind
        self._json = wire.JsonDecoder(kind)
        self._protobuf: Decoder | None = None

    def of(self, content_type: str) -> Decoder:
        """Return the decoder for an answer with this Content-Type."""
        if not _is_protobuf(content_type):
            return self._json
        if self._protobuf is None:
            from nftproxy.sources import protobuf

            self._protobuf = protobuf.ProtobufDecoder(self._kind)
        return self._protobuf


def status(code: int, content_type: str, body: bytes) -> Status:
    """Return the Status in the body of an answer other than 200, or one made from the code."""
    if not _is_protobuf(content_type):
        return wire.status(code, body)
    from nftproxy.sources import protobuf

    return protobuf.status(code, body)


def accepted(asked: str) -> str:
    """Return the header Accept for the content types that the configuration asks for.

    The order is kept; JSON is accepted in any case, and other types are not.
    """
    types = [each.partition(";")[0].strip() for each in asked.split(",")]
    known = [each for each in types if each == JSON or (each == PROTOBUF and _is_fast())]
    return ", ".join(dict.fromkeys([*known, JSON]))


def _is_protobuf(content_type: str) -> bool:
    return content_type.partition(";")[0].strip() == PROTOBUF


def _is_fast() -> bool:
    """Whether protobuf has its C core here; without it, JSON is fifty times faster."""
    return find_spec("google._upb._message") is not None
