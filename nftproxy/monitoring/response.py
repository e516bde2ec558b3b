"""What an HTTP request is answered with, whoever serves it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

HEADERS: Mapping[str, str] = {
    "Content-Type": "application/json",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer: status code, body, headers."""

    code: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)


NOT_FOUND = Response(
    404,
    b"404 page not found\n",
    {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"},
)
