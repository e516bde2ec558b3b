"""Texts without what must not leave this machine: tokens, keys, certificates, passwords. Pure.

What is collected is chosen so that none is in it; this is the second net, for log lines and for
what somebody wrote where it does not belong. It removes too much rather than too little.
"""

import re

REMOVED = "(removed)"
_NAMES = (
    r"[\w.-]*(?:token|passw(?:or)?d|secret|api[_-]?key|private[_-]?key|credential|authorization"
    r"|client-key-data|client-certificate-data|certificate-authority-data)[\w.-]*"
)
_SHAPES = (
    (
        re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL),
        REMOVED,
    ),
    (re.compile(r"\A[A-Za-z0-9+/=\s]*-----END [A-Z0-9 ]+-----"), REMOVED),  # the head was cut off
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]*(?:\.[\w-]*)?"), REMOVED),  # JSON web tokens
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/=-]{4,}"), rf"\1\2{REMOVED}"),
    (re.compile(r"(\w+://)[^\s/@\"']+@"), rf"\1{REMOVED}@"),  # who and the password in a URL
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), REMOVED),  # bootstrap tokens
    (re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}"), REMOVED),  # keys and certificates in Base64
)
"""What secrets look like."""

_NAMED = (
    (
        re.compile(rf"""(?i)(["']?\b{_NAMES}["']?\s*[:=]\s*)(?:"[^"\n]*"|'[^'\n]*'|[^\s,;}}]+)"""),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"(?i)(--?[\w-]*(?:token|password|secret)[\w-]*[ =])\S+"), rf"\1{REMOVED}"),
)
"""What stands behind the name of a secret."""


def scrub(text: str, *, by_name: bool = True) -> str:
    """Return a text without secrets, `(removed)` in their places.

    Without `by_name` only what looks like one: a Service may be called `token`, and what we write
    ourselves has to stay readable for programs.
    """
    for pattern, instead in (*_SHAPES, *(_NAMED if by_name else ())):
        text = pattern.sub(instead, text)
    return text
