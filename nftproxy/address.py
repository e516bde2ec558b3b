"""IP addresses and CIDRs as canonical text.

Every address passes through here before libnftables sees it: libnftables would resolve a host name
by DNS and abort the process on `*`. Parsing is lenient: leading zeros are decimal, IPv4-mapped IPv6
is IPv4, host bits are cleared (contract 2.1.5). The result is the one form that compares equal to
what the kernel prints.
"""

import enum
import ipaddress
import socket
from typing import NamedTuple

from nftproxy.errors import AddressError


class Family(enum.StrEnum):
    """An IP family, named as in EndpointSlice's addressType and Service's ipFamilies."""

    IPv4 = "IPv4"
    IPv6 = "IPv6"

    @property
    def digit(self) -> str:
        """The suffix of this family's chains and maps: 4 or 6."""
        return "4" if self is Family.IPv4 else "6"

    @property
    def bits(self) -> int:
        """The length of an address in bits."""
        return 32 if self is Family.IPv4 else 128


class Address(NamedTuple):
    """One IP address: its family and its canonical text."""

    family: Family
    text: str


class Network(NamedTuple):
    """One CIDR: its family, canonical network address without host bits, and prefix length."""

    family: Family
    text: str
    length: int

    def __str__(self) -> str:
        return f"{self.text}/{self.length}"

    def contains(self, address: Address) -> bool:
        """Whether `address` is inside."""
        return address.family is self.family and mask(address, self.length).text == self.text


_AF = {Family.IPv4: socket.AF_INET, Family.IPv6: socket.AF_INET6}
_MAPPED = bytes(10) + b"\xff\xff"


def parse_address(text: str) -> Address:
    """Return the address that `text` spells; AddressError if it is invalid."""
    try:
        if ":" not in text:
            canonical = socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
            # One text in memory, not two
            return Address(Family.IPv4, text if text == canonical else canonical)
        packed = socket.inet_pton(socket.AF_INET6, _without_zeros(text))
    except (OSError, ValueError):
        octets = text.split(".")
        if len(octets) == 4 and all(
            o.isascii() and o.isdigit() and len(o) <= 4 and int(o) <= 255 for o in octets
        ):
            return Address(Family.IPv4, ".".join(str(int(o)) for o in octets))
        raise AddressError(f"{text[:80]!r} is not an IP address") from None
    if packed.startswith(_MAPPED):
        return Address(Family.IPv4, socket.inet_ntop(socket.AF_INET, packed[12:]))
    canonical = _ipv6_text(packed)
    return Address(Family.IPv6, text if text == canonical else canonical)


def parse_network(text: str) -> Network:
    """Return the CIDR that `text` spells, host bits cleared; AddressError if it is invalid."""
    base, slash, length = text.partition("/")
    try:
        address = parse_address(base)
    except AddressError:
        address = None
    digits = length.isascii() and length.isdigit() and len(length) <= 3
    if address is None or not slash or not digits:
        raise AddressError(f"{text[:80]!r} is not a CIDR such as 10.0.0.0/8 or fd00::/64")
    bits = int(length)
    if address.family is Family.IPv4 and ":" in base:  # IPv4-mapped: the prefix counts from bit 96
        bits -= 96
    if not 0 <= bits <= address.family.bits:
        raise AddressError(f"{text[:80]!r} has an impossible prefix length")
    return Network(address.family, mask(address, bits).text, bits)


def mask(address: Address, length: int) -> Address:
    """Return `address` with all bits after the first `length` cleared."""
    family, text = address
    packed = int.from_bytes(socket.inet_pton(_AF[family], text))
    spare = family.bits - length
    cleared = (packed >> spare << spare).to_bytes(family.bits // 8)
    return Address(
        family,
        socket.inet_ntop(_AF[family], cleared) if family is Family.IPv4 else _ipv6_text(cleared),
    )


def pack(text: str) -> bytes:
    """Return the 4 or 16 bytes of an address in any spelling of the kernel's tools.

    OSError if it is invalid.
    """
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def unpack(packed: bytes) -> str:
    """Return the canonical text of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET, packed) if len(packed) == 4 else _ipv6_text(packed)


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def collapse(networks: list[Network]) -> list[Network]:
    """Return the same addresses as sorted networks without overlap, for an interval set."""
    collapsed: list[Network] = []
    for family in Family:
        of_family = [ipaddress.ip_network(str(n)) for n in networks if n.family is family]
        collapsed += [parse_network(str(n)) for n in ipaddress.collapse_addresses(of_family)]  # type: ignore[type-var]
    return collapsed


def between(start: int, end: int, family: Family) -> list[Network]:
    """Return the networks with the addresses from number `start` to the one before `end`."""
    kind = ipaddress.IPv4Address if family is Family.IPv4 else ipaddress.IPv6Address
    return [
        parse_network(str(n)) for n in ipaddress.summarize_address_range(kind(start), kind(end - 1))
    ]


def _ipv6_text(packed: bytes) -> str:
    """Canonical text without an embedded dotted quad.

    inet_ntop prints one for ::1.2.3.4, and libnftables does not read it back.
    """
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return ipaddress.IPv6Address(packed).compressed if "." in text else text


def _without_zeros(text: str) -> str:
    """Drop leading zeros of a dotted quad inside an IPv6 address, which inet_pton refuses."""
    head, colon, tail = text.rpartition(":")
    octets = tail.split(".")
    if len(octets) == 1 or not all(octet.isascii() and octet.isdigit() for octet in octets):
        return text
    return head + colon + ".".join(str(int(octet)) for octet in octets)
