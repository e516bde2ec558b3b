"""What an explanation asks of a node, as types alone.

`node` answers from this machine, `planned` from manifests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nftproxy.address import Family
from nftproxy.path.held import Held
from nftproxy.path.ruleset import Link, NftRule, Ruleset, Surroundings
from nftproxy.routes import Frontend


class Entry(NamedTuple):
    """A connection in conntrack: who asked, who answers, and whether an answer was seen."""

    source: str
    answers_from: str
    answers_port: int
    replied: bool


@dataclass(frozen=True, slots=True)
class Fill:
    """How full the conntrack table is."""

    count: int
    limit: int

    @property
    def is_full(self) -> bool:
        """Whether new connections find no room."""
        return 0 < self.limit <= self.count


class Near(Surroundings, Protocol):
    """Routes, interfaces and neighbours of a machine."""

    @property
    def links(self) -> Mapping[str, Link]:
        """The interfaces, by name."""

    def addresses(self, link: str = "") -> list[bytes]:
        """Return the addresses of an interface, or of all."""

    def neighbour(self, address: str, device: str) -> str:
        """Return what the kernel knows of a neighbour; empty if it has not asked yet."""


class Machine(Protocol):
    """The parts of a node that only the node itself knows."""

    @property
    def rules(self) -> Ruleset:
        """All tables."""

    @property
    def near(self) -> Near:
        """Routes, interfaces and neighbours."""

    def sysctl(self, path: str) -> str:
        """Return a setting of the kernel, as in "net/ipv4/ip_forward"; empty if it does not exist."""

    def rule_text(self, rule: NftRule) -> str:
        """Return a rule as nft prints it; empty if nft is not there."""

    def entries(self, family: Family, protocol: str, address: str, port: int) -> list[Entry]:
        """Return the connections to an address and port."""

    def fill(self) -> Fill:
        """Return how full the conntrack table is."""

    def other_proxies(self) -> list[str]:
        """Return the tables of other service proxies on this node."""

    def legacy_tables(self) -> list[str]:
        """Return the tables of iptables-legacy that are loaded: nftables does not show their rules."""

    def trouble(self) -> str:
        """Return what the proxy process of this node reports as unhealthy.

        Empty if nothing or if it does not answer.
        """


class NodeView(Protocol):
    """A node and its table; without a `machine` only manifests describe it."""

    name: str

    @property
    def held(self) -> Held:
        """The elements of the table."""

    @property
    def machine(self) -> Machine | None:
        """What only the node itself knows."""

    @property
    def lacks(self) -> Sequence[str]:
        """What could not be checked, and why."""

    def has_table(self) -> bool:
        """Whether there is a table of ours."""

    def find(self, service: str) -> list[tuple[Family, Frontend]]:
        """Return the frontends of a Service, or of one of its ports, by the name in their elements."""

    def names(self) -> list[str]:
        """Return the names of all service ports in the table."""

    def ports_at(self, address: str) -> list[str]:
        """Return the ports that an address has in the table, as in "80/tcp"."""

    def nodeport_addresses(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""
