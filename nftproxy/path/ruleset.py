"""What the evaluation asks of the machine it is about.

Chains, rules, single elements of sets, addresses, routes, links.

Pure: types alone. `live` reads them from the kernel. A set is never listed: whoever wants to know
asks for one key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

ATTRIBUTES = Mapping[int, bytes]


LEGACY = {"ip": "iptables", "ip6": "ip6tables"}
"""What the families of iptables-legacy are called, by those of nftables."""


class NftTable(NamedTuple):
    """A table, by family and name."""

    family: str
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.name}"

    @property
    def is_legacy(self) -> bool:
        """Whether it is of iptables-legacy, whose families have the names of its programs."""
        return self.family in LEGACY.values()


OURS = NftTable("inet", "nftproxy")


class NftChain(NamedTuple):
    """A chain in its table."""

    table: NftTable
    name: str


@dataclass(frozen=True, slots=True)
class NftBaseChain:
    """A chain that packets meet first."""

    chain: NftChain
    kind: str  # filter, nat or route
    hook: str
    priority: int
    drops: bool = False  # what its policy is
    devices: tuple[str, ...] = ()


class RuleExpression(NamedTuple):
    """One step of a rule: the kernel's name for it, and its attributes."""

    name: str
    data: ATTRIBUTES


@dataclass(frozen=True, slots=True)
class NftRule:
    """A rule; that of iptables-legacy has its number in the chain as its handle."""

    chain: NftChain
    handle: int
    expressions: tuple[RuleExpression, ...] = field(repr=False)

    @property
    def place(self) -> str:
        """Its handle or number, for people."""
        return f"{'number' if self.chain.table.is_legacy else 'handle'} {self.handle}"


@dataclass(frozen=True, slots=True)
class SetElement:
    """An element of a set or map.

    Nothing, a value, a verdict or the name of an object, with the expressions that it has.
    """

    data: bytes = b""
    code: int | None = None
    target: str = ""
    object_name: str = ""
    expressions: tuple[RuleExpression, ...] = ()
    comment: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface."""

    name: str
    index: int
    type: int
    group: int = 0
    kind: str = ""
    master: str = ""
    up: bool = True
    mtu: int = 0


class Ruleset(Protocol):
    """All tables of a network namespace."""

    def base_chains(self) -> Sequence[NftBaseChain]:
        """Return the base chains of all tables that are not dormant."""

    def rules(self, chain: NftChain) -> Sequence[NftRule]:
        """Return the rules of a chain, in order."""

    def key_length(self, table: NftTable, name: str) -> int:
        """Return how long the keys of a set are."""

    def element(self, table: NftTable, name: str, key: bytes) -> SetElement | None:
        """Return an element of a set; None when it is not there."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where the kernel sends packets for an address; `error` says why it has no way."""

    device: str = ""
    gateway: str = ""
    source: str = ""
    local: bool = False
    mtu: int = 0
    error: str = ""


class Surroundings(Protocol):
    """What rules may ask beyond the packet."""

    def link(self, name: str) -> Link | None:
        """Return an interface."""

    def address_type(self, address: bytes, device: str) -> int:
        """Return what the kernel calls an address.

        RTN_UNICAST, RTN_LOCAL and so on, on a device or on all.
        """

    def address_of(self, link: str, size: int) -> bytes | None:
        """Return the first address of an interface, of 4 or 16 bytes."""

    def way(self, address: bytes, mark: int | None) -> str:
        """Return the interface that packets to an address leave by; empty without one."""

    def to(self, address: bytes, *, source: bytes = b"", iif: str = "", mark: int = 0) -> Way:
        """Return the way to an address.

        Of this node's own packets, or of packets that come in from somebody.
        """
