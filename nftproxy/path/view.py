"""What an explanation asks of a node. Pure: types alone. `reader` fills them from this machine, or from manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nftproxy.address import Family
from nftproxy.configuration.settings import NodeSettings
from nftproxy.path.held import Held
from nftproxy.path.ruleset import Link, Rule, Ruleset, Surroundings
from nftproxy.routes import Frontend


class Entry(NamedTuple):
    """A connection that conntrack knows: who asked whom, who answers, and whether anything came back."""

    source: str
    destination: str
    port: int
    answers_from: str
    answers_port: int
    replied: bool


class Fill(NamedTuple):
    """How full the conntrack table is."""

    count: int
    limit: int

    @property
    def is_full(self) -> bool:
        """Whether new connections find no room."""
        return self.limit > 0 and self.count >= self.limit


class Places(Surroundings, Protocol):
    """Routes and what is near."""

    @property
    def links(self) -> Mapping[str, Link]:
        """The interfaces, by name."""

    def addresses(self, link: str = "") -> list[bytes]:
        """Return the addresses of an interface, or of all."""

    def neighbour(self, address: str, device: str) -> str:
        """Return what the kernel knows of a neighbour."""

    def port_of(self, address: str, bridge: str) -> str:
        """Return the port of a bridge behind which an address is; empty when that is not known."""


class Node(Protocol):
    """A node. Without `rules` and `around` it is one that only manifests speak of."""

    name: str
    held: Held
    rules: Ruleset | None
    around: Places | None
    settings: NodeSettings | None
    lacks: Sequence[str]
    """What could not be looked at, and what it needs."""

    def sysctl(self, path: str) -> str:
        """Return a setting of the kernel; empty when it is not there."""

    def rule_text(self, rule: Rule) -> str:
        """Return a rule as nft prints it; empty when nobody can say."""

    def entries(self, family: Family, protocol: str, address: str, port: int) -> list[Entry]:
        """Return the connections to an address and port."""

    def fill(self) -> Fill | None:
        """Return how full the conntrack table is."""

    def find(self, service: str) -> list[tuple[Family, Frontend]]:
        """Return the frontends whose elements bear the name of a Service, with or without its port."""

    def ports_at(self, address: str) -> list[Frontend]:
        """Return the frontends of an address."""

    def node_port_addresses(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""

    def other_proxies(self) -> list[str]:
        """Return the tables and chains of other proxies on this node."""

    def legacy(self) -> list[str]:
        """Return the tables of iptables-legacy that are in use."""

    def sync_trouble(self) -> str:
        """Return what the proxy process of this node says is wrong with its last sync; empty if nothing, or if it does not answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks: an address, and by which interface its packets come in; none if it is this node."""

    address: str
    what: str  # pod, node, outside
    interface: str = ""
