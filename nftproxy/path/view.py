"""What an explanation asks of a node.

Pure: types alone. `node` fills them from this machine, or from manifests.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from nftproxy.address import Family, bracketed
from nftproxy.configuration.settings import OnLocalhost
from nftproxy.path.held import Held
from nftproxy.path.ruleset import Link, NftRule, Ruleset, Surroundings
from nftproxy.routes import Frontend


class Entry(NamedTuple):
    """A connection that conntrack knows: who asked, who answers, and whether anything came back."""

    source: str
    answers_from: str
    answers_port: int
    replied: bool

    @property
    def answerer(self) -> str:
        """The endpoint, as people write it."""
        return f"{bracketed(self.answers_from)}:{self.answers_port}"


class Fill(NamedTuple):
    """How full the conntrack table is."""

    held: int
    limit: int

    @property
    def is_full(self) -> bool:
        """Whether new connections find no room."""
        return 0 < self.limit <= self.held


class Places(Surroundings, Protocol):
    """Routes and what is near."""

    @property
    def links(self) -> Mapping[str, Link]:
        """The interfaces, by name."""

    def addresses(self, link: str = "") -> list[bytes]:
        """Return the addresses of an interface, or of all."""

    def neighbour(self, address: str, device: str) -> str:
        """Return what the kernel knows of a neighbour."""

    def belongs_to(self, address: str) -> str:
        """Return the interface whose own network holds an address, whether it is up or not."""

    def port_of(self, address: str, bridge: str) -> str:
        """Return the port of a bridge behind which an address is; empty when that is not known."""

    def isolated(self, port: str) -> bool:
        """Whether a port of a bridge reaches no other isolated port of it."""


class NodeView(Protocol):
    """A node. Without `rules` and `around` it is one that only manifests describe."""

    @property
    def name(self) -> str:
        """The name of its Node object."""

    @property
    def held(self) -> Held:
        """What our table holds."""

    @property
    def rules(self) -> Ruleset | None:
        """All tables."""

    @property
    def around(self) -> Places | None:
        """Routes and links."""

    @property
    def has_table(self) -> bool:
        """Whether our table is there."""

    @property
    def lacks(self) -> Sequence[str]:
        """What cannot be looked at, and what that needs."""

    def sysctl(self, path: str) -> str:
        """Return a setting of the kernel; empty when it is not there."""

    def rule_text(self, rule: NftRule) -> str:
        """Return a rule as nft prints it; empty when nft is not there."""

    def entries(self, protocol: str, address: str, port: int) -> list[Entry]:
        """Return the connections to an address and port."""

    def fill(self) -> Fill | None:
        """Return how full the conntrack table is."""

    def frontends(self) -> Iterator[tuple[Family, Frontend, str]]:
        """Yield every frontend with the name of its service port.

        A pass over whole maps, for names without objects.
        """

    def accepted(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""

    def on_localhost(self, family: Family, frontend: Frontend) -> OnLocalhost:
        """Return what becomes of a NodePort on loopback addresses."""

    def other_proxies(self) -> list[str]:
        """Return the tables and chains of other proxies on this node."""

    def legacy(self) -> list[str]:
        """Return the tables of iptables-legacy that could not be read."""

    def trouble(self) -> str:
        """Return why the proxy of this node is behind; empty if it is not."""
