"""Who asks: the address of a client, and the interface by which its packets reach this node.

Pure, apart from its questions.
"""

from dataclasses import dataclass
from typing import Final

from nftproxy.address import Family, pack, parse_address
from nftproxy.errors import AddressError, ConfigError
from nftproxy.path.packet import text
from nftproxy.path.view import Near

NODE, POD, OUTSIDE = "node", "pod", "outside"
_EXAMPLES: Final = {Family.IPv4: "198.51.100.9", Family.IPv6: "2001:db8::9"}
"""Addresses for documentation: nobody has them."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A client: `what` is node, pod or outside; without an interface it is this node."""

    address: str
    what: str
    interface: str = ""


def asker(source: str, family: Family, destination: str, near: Near | None) -> Asker:
    """Return the client that `source` means: an address, "node" or "outside".

    ConfigError for anything else.
    """
    if source in {"", NODE}:
        return Asker(_own(destination, near), NODE)
    if source == OUTSIDE:
        return _outsider(family, near)
    try:
        address = parse_address(source)
    except AddressError as error:
        raise ConfigError(
            [f"--from: {source[:80]!r} is neither an address, node nor outside"],
            hint="the address of a Pod: kubectl get pod -o wide",
        ) from error
    if address.family is not family:
        raise ConfigError(
            [f"--from: {address.text} is {address.family}, but {destination} is {family}"],
            hint=f"name an {family} address, or another target",
        )
    if near is None:
        return Asker(address.text, POD)
    way = near.to(pack(address.text))
    if way.local:
        return Asker(address.text, NODE)
    if way.error:
        raise ConfigError(
            [f"--from: this node has no route back to {address.text}"],
            hint=f"ip route get {address.text}",
        )
    return Asker(address.text, _kind(near, way.device, family), way.device)


def _own(destination: str, near: Near | None) -> str:
    """Return the address that this node's own packets to a destination have."""
    if near is None:
        return ""
    return near.to(pack(destination)).source


def _outsider(family: Family, near: Near | None) -> Asker:
    example = _EXAMPLES[family]
    if near is None:
        return Asker(example, OUTSIDE)
    way = near.to(pack(example))
    if not way.error and not way.local:
        return Asker(example, OUTSIDE, way.device)
    size = len(pack(example))
    for link in near.links.values():
        own = near.address_of(link.name, size)
        if link.up and link.name != "lo" and link.kind != "bridge" and own:
            return Asker(text(own[:-1] + bytes([own[-1] ^ 0x40])), OUTSIDE, link.name)
    raise ConfigError(
        [f"--from outside: this node has no interface for {family} to the outside"],
        hint="name an address instead",
    )


def _kind(near: Near, device: str, family: Family) -> str:
    """Return pod or outside.

    Pods are behind a bridge, or behind an interface without an address of its own.
    """
    link = near.link(device)
    own = near.address_of(device, 4 if family is Family.IPv4 else 16)
    if (link and link.kind == "bridge") or own is None or own[:2] == b"\xfe\x80":
        return POD
    return OUTSIDE
