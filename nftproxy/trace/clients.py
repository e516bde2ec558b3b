"""Whose connections are traced.

Everybody's, one address's, or those of pods, of this node or of outside. Pure.

Which packets are pods' is what our table says: the first rule of `find-service` distinguishes pods
from others, and its expressions are used as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nftproxy.address import Address, Family, pack
from nftproxy.path.ruleset import RuleExpression
from nftproxy.table import expressions as nft
from nftproxy.table import netlink
from nftproxy.table.expressions import Base, MetaKey, Operation

POD, NODE, OUTSIDE = "pod", "node", "outside"
_SOURCE = {Family.IPv4: (12, 4), Family.IPv6: (8, 16)}  # place and length in the header


@dataclass(frozen=True, slots=True)
class Pods:
    """How a rule of our table recognizes packets that are not from pods."""

    expressions: tuple[RuleExpression, ...]

    def has(self, family: Family, source: bytes, iif: str) -> bool:
        """Whether a packet is from a pod."""
        held = b""
        for name, data in self.expressions:
            if name == "payload":
                start, length = (
                    _integer(data, nft.Payload.OFFSET),
                    _integer(data, nft.Payload.LENGTH),
                )
                start -= _SOURCE[family][0]
                held = source[start : start + length]
            elif name == "meta":
                held = iif.encode().ljust(16, b"\0")
            elif name == "bitwise":
                mask = netlink.parts(data[nft.Bitwise.MASK])[netlink.Data.VALUE]
                held = bytes(one & other for one, other in zip(held, mask, strict=False))
            elif name == "cmp":
                wanted = netlink.parts(data[nft.Compare.DATA])[netlink.Data.VALUE]
                return held[: len(wanted)] == wanted
        return False


def pods_of(expressions: Sequence[RuleExpression]) -> Pods | None:
    """Return how the first rule of a chain `find-service` recognizes pods.

    None where it does not.
    """
    found: list[RuleExpression] = []
    for one in expressions:
        if not found and not _reads_source(one):
            continue
        found.append(one)
        if one.name == "cmp":
            unequal = _integer(one.data, nft.Compare.OPERATION) == Operation.UNEQUAL
            return Pods(tuple(found)) if unequal else None
    return None


def _reads_source(one: RuleExpression) -> bool:
    if one.name == "meta":
        return _integer(one.data, nft.MetaExpression.KEY) == MetaKey.IIF_NAME
    if one.name != "payload" or _integer(one.data, nft.Payload.BASE) != Base.NETWORK:
        return False
    return _integer(one.data, nft.Payload.OFFSET) < 16  # the destination of IPv4 is behind it


def _integer(data: Mapping[int, bytes], key: int) -> int:
    return int.from_bytes(data[key])


@dataclass(frozen=True, slots=True)
class Clients:
    """Whose connections: without a word or an address, everybody's."""

    what: str = ""
    address: Address | None = None
    pods: Mapping[Family, Pods] = field(default_factory=dict)

    def kind(self, family: Family, source: bytes, iif: str) -> str:
        """Return what a client is."""
        if not iif:
            return NODE
        pods = self.pods.get(family)
        return POD if pods and pods.has(family, source, iif) else OUTSIDE

    def match(self, family: Family) -> bytes | None:
        """Return the expressions of a rule that match; None if nobody of the family is meant."""
        if self.address:
            if self.address.family is not family:
                return None
            start, length = _SOURCE[family]
            return load(Base.NETWORK, start, length, 1) + compare(1, pack(self.address.text))
        if self.what not in {POD, OUTSIDE}:
            return b""
        pods = self.pods.get(family)
        if pods is None:
            return None if self.what == POD else b""
        return b"".join(
            _reversed(one) if one.name == "cmp" and self.what == POD else _packed(one, one.data)
            for one in pods.expressions
        )

    @property
    def arriving(self) -> bool:
        """Whether packets that come in are meant."""
        return self.what != NODE

    @property
    def created(self) -> bool:
        """Whether packets of this node are meant."""
        return self.what not in {POD, OUTSIDE}


def expression(name: str, attributes: bytes = b"") -> bytes:
    """Return one expression of a rule."""
    content = netlink.named(netlink.ExpressionAttribute.NAME, name)
    return netlink.nested(
        netlink.LIST_ITEM, content + netlink.nested(netlink.ExpressionAttribute.DATA, attributes)
    )


def number(kind: int, value: int) -> bytes:
    """Return an attribute that holds a number."""
    return netlink.attribute(kind, value.to_bytes(4))


def load(base: int, start: int, length: int, register: int) -> bytes:
    """Return the expression that reads a piece of a header."""
    return expression(
        "payload",
        number(nft.Payload.TO, register)
        + number(nft.Payload.BASE, base)
        + number(nft.Payload.OFFSET, start)
        + number(nft.Payload.LENGTH, length),
    )


def compare(register: int, data: bytes, operation: int = Operation.EQUAL) -> bytes:
    """Return the expression that compares."""
    return expression(
        "cmp",
        number(nft.Compare.FROM, register)
        + number(nft.Compare.OPERATION, operation)
        + netlink.nested(nft.Compare.DATA, netlink.attribute(netlink.Data.VALUE, data)),
    )


def _packed(one: RuleExpression, data: Mapping[int, bytes]) -> bytes:
    return expression(
        one.name, b"".join(netlink.attribute(kind, value) for kind, value in data.items())
    )


def _reversed(one: RuleExpression) -> bytes:
    return _packed(one, {**one.data, nft.Compare.OPERATION: int(Operation.EQUAL).to_bytes(4)})
