"""Copies of chains with other numbers, while libnftables must not be called.

Pure. A chain that chooses among 3 endpoints differs from one for 2 in numbers and in the chains it
goes to, and in nothing else. So a copy consists of the rules that the kernel lists of one, with the
numbers and targets from the text of the other. Both must look up the same sets, and have the same
counters and jumps.
"""

import re
from collections.abc import Iterable, Iterator

from nftproxy.table import netlink
from nftproxy.table.netlink import (
    Data,
    ExpressionAttribute,
    HashAttribute,
    ImmediateAttribute,
    LookupAttribute,
    NumgenAttribute,
    VerdictAttribute,
    attributes,
)

_SHAPE = re.compile(
    r"((?:sticky-)?(?:nodeport-)?(?:hash-|maglev-)?(?:pick|external|local|(?P<two>preserve))[46]-(?:tcp|udp|sctp)-)"
    r"[0-9]+(?(two)(-[0-9]+)?)((?:-[0-9.]+-.+)?)",
    re.DOTALL,
)
_MODULUS = re.compile(r"\b(?:numgen random|jhash \S+ saddr) mod ([0-9]+)")
_TARGET = re.compile(r"\bgoto (\S+)")
_SET = re.compile(r"@(\S+)")


class ShapeError(Exception):
    """Two chains differ in more than numbers and targets."""


def model(name: str, chains: Iterable[str]) -> str | None:
    """Return a chain that differs from the named one in numbers of endpoints alone."""
    wanted = _shape(name)
    return next((other for other in sorted(chains) if wanted and _shape(other) == wanted), None)


def adapted(rules: Iterable[bytes], text: str) -> list[bytes]:
    """Return the listed expressions of each rule, with numbers and targets of a chain's text."""
    filling = _Filling(text)
    found = [b"".join(filling.expression(each) for each in _items(rule)) for rule in rules]
    if filling.left or len(found) != sum(1 for line in text.splitlines()[1:-1] if line.strip()):
        raise ShapeError
    return found


class _Filling:
    """The values in the text of a chain, one after the other."""

    def __init__(self, text: str) -> None:
        self._moduli = _MODULUS.findall(text)
        self._targets = _TARGET.findall(text)
        self._sets = _SET.findall(text)

    @property
    def left(self) -> bool:
        """Whether the text has more than the rules."""
        return bool(self._moduli or self._targets or self._sets)

    def expression(self, packed: bytes) -> bytes:
        """Return an expression with its values replaced."""
        parts = netlink.parts(packed)
        name, data = (
            netlink.text(parts[ExpressionAttribute.NAME]),
            netlink.parts(parts.get(ExpressionAttribute.DATA, b"")),
        )
        if name == "numgen":
            data[NumgenAttribute.MODULUS] = int(_next(self._moduli)).to_bytes(4)
        elif name == "hash":
            data[HashAttribute.MODULUS] = int(_next(self._moduli)).to_bytes(4)
        elif name == "lookup":
            if netlink.text(data[LookupAttribute.SET]) != _next(self._sets):
                raise ShapeError
        elif name == "immediate" and VerdictAttribute.CHAIN in (verdict := _verdict(data)):
            verdict[VerdictAttribute.CHAIN] = _next(self._targets).encode() + b"\0"
            data[ImmediateAttribute.DATA] = netlink.nested(Data.VERDICT, _joined(verdict))
        else:
            return netlink.nested(netlink.LIST_ITEM, packed)
        return netlink.nested(
            netlink.LIST_ITEM,
            netlink.named(ExpressionAttribute.NAME, name)
            + netlink.nested(ExpressionAttribute.DATA, _joined(data)),
        )


def _shape(name: str) -> tuple[str, bool, str] | None:
    matched = _SHAPE.fullmatch(name)
    return (matched[1], matched[3] is not None, matched[4]) if matched else None


def _items(rule: bytes) -> Iterator[bytes]:
    return (rule[start:end] for _, (start, end) in attributes(rule))


def _verdict(data: dict[int, bytes]) -> dict[int, bytes]:
    return netlink.parts(netlink.parts(data[ImmediateAttribute.DATA]).get(Data.VERDICT, b""))


def _joined(parts: dict[int, bytes]) -> bytes:
    return b"".join(netlink.attribute(kind, value) for kind, value in parts.items())


def _next(values: list[str]) -> str:
    if not values:
        raise ShapeError
    return values.pop(0)
