"""What is known of a node, as values; whatever `gathering` could not learn is `Unknown`. Pure."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nftproxy.address import Family, Network
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.doctor.model import Unknown
from nftproxy.kernel.snapshot import Snapshot
from nftproxy.model import Node
from nftproxy.node.leftovers import Leftovers


class Failure(NamedTuple):
    """Why something cannot be done, and the hint that comes with it."""

    reason: str
    hint: str = ""


class Interface(NamedTuple):
    """An interface: its kind, the bridge that it is a port of, its addresses with their lengths."""

    name: str
    kind: str
    master: str
    addresses: tuple[tuple[str, int], ...]


class RouteFact(NamedTuple):
    """A route of the main table."""

    network: Network
    device: str
    gateway: str
    kind: str  # unicast, blackhole, unreachable, prohibit, local

    @property
    def is_default(self) -> bool:
        """Whether it leads everywhere."""
        return self.network.length == 0


class Tracking(NamedTuple):
    """The counters of conntrack, of all processors together."""

    drop: int
    early_drop: int
    insert_failed: int

    @property
    def without_room(self) -> int:
        """The packets dropped for want of room; the kernel counts a collision as a drop, too."""
        return max(0, self.drop - self.insert_failed)


class CountedFact(NamedTuple):
    """The counters at the first look, and a second later."""

    before: Tracking
    after: Tracking


class ConntrackFill(NamedTuple):
    """How full conntrack's table is."""

    held: int
    limit: int


class Barrier(NamedTuple):
    """A chain of somebody else's that stops what Services need, or may do so.

    `owner` is the program that made it, as far as its chains show: firewalld, docker, ufw, or
    empty. `sure` is False where a limit, a random choice or an unknown expression decides, or where
    no packet could be tried, so that only the policy speaks.
    """

    table: str  # with its family, or with iptables or ip6tables, of iptables-legacy
    chain: str
    hook: str
    owner: str
    what: str  # which packets
    why: str  # the policy, or a rule by its handle
    sure: bool
    pods: str = ""  # the interface of pods of this node
    port: str = ""  # of the endpoint, with its protocol, such as 6443/tcp


class Unreached(NamedTuple):
    """An endpoint that this node has no way to; not `sure`: only the next hop is silent."""

    address: str
    why: str
    sure: bool


class Flush(NamedTuple):
    """A file for nft that removes all tables, and the enabled service that reads it, if any."""

    file: str
    service: str


class Firewalld(NamedTuple):
    """Whether firewalld is enabled, and what a reload of it does."""

    enabled: bool
    flushes: bool
    file: str


class Ufw(NamedTuple):
    """Whether ufw is enabled, and what it does with packets that this node forwards."""

    enabled: bool
    forward: str


class Health(NamedTuple):
    """The answer of the health server."""

    code: int
    limited: str
    updated: str
    eligible: bool


class ApiServerFacts(NamedTuple):
    """How the API server answered."""

    seconds: float
    failure: str
    where: str


class FetchedPage(NamedTuple):
    """Who was asked, and why there is no answer; empty where there is one."""

    where: str
    failure: str


class Probed(NamedTuple):
    """A Service asked through its ClusterIP, several times, and at each endpoint."""

    service: str
    through: tuple[FetchedPage, ...]
    direct: tuple[FetchedPage, ...]


class Starter(enum.Enum):
    """Who starts nftproxy here, as far as its configuration and the host's files show."""

    SYSTEMD = "systemd"
    CLUSTER = "cluster"
    HAND = "hand"


@dataclass(frozen=True, slots=True)
class Facts:
    """All that checks may ask about."""

    release: str
    netfilter: int | Unknown | Failure  # the number of the last transaction
    library: Failure | None
    program: Failure | Unknown | None
    sysctls: Mapping[str, str]
    interfaces: tuple[Interface, ...] | Unknown
    routes: tuple[RouteFact, ...] | Unknown
    filtered: int | Unknown  # packets that rp_filter dropped
    fill: ConntrackFill | Unknown
    tracking: CountedFact | Unknown
    leftovers: Leftovers | Unknown
    barriers: tuple[Barrier, ...] | Unknown
    unreached: tuple[Unreached, ...] | Unknown
    deadly: tuple[str, ...] | Unknown
    lister: Failure | Unknown | None  # the nft program on this machine
    flushes: tuple[Flush, ...] | Unknown
    firewalld: Firewalld | Unknown
    ufw: Ufw | Unknown
    snapshot: Snapshot | Unknown | None
    programs: tuple[str, ...] | Unknown  # digests of the programs that the table names
    wanted: frozenset[str] | Unknown  # the digest that it should name, for each order of families
    running: bool | Unknown
    health: Health | Unknown
    metrics: Mapping[str, float] | Unknown
    configuration: KubeProxyConfiguration | Unknown
    config_file: str
    node_name: str
    node: Node | Unknown
    service_cidrs: tuple[Network, ...] | Unknown
    api: ApiServerFacts | Unknown
    probed: tuple[Probed, ...] | Unknown
    started_by: Starter
    now: float

    @property
    def restart(self) -> str:
        """The command that starts nftproxy again here."""
        return {
            Starter.SYSTEMD: "systemctl restart nftproxy",
            Starter.CLUSTER: f"kubectl -n kube-system delete pod {self._pods}",
            Starter.HAND: "nftproxy run --manifests FOLDER",
        }[self.started_by]

    @property
    def log(self) -> str:
        """The command that shows its log; empty where only who started it knows."""
        return {
            Starter.SYSTEMD: "journalctl -u nftproxy -n 200",
            Starter.CLUSTER: "kubectl -n kube-system logs --tail 200 "
            f"$(kubectl -n kube-system get pod {self._pods} -o name)",
            Starter.HAND: "",
        }[self.started_by]

    @property
    def _pods(self) -> str:
        return f"-l k8s-app=nftproxy --field-selector spec.nodeName={self.node_name}"

    @property
    def uses_ipv6(self) -> bool:
        """Whether Services have IPv6 addresses, as far as table, configuration and objects say."""
        six = Family.IPv6
        if isinstance(self.snapshot, Snapshot) and any(
            shown.family is six and shown.address
            for port in self.snapshot.services
            for shown in port.frontends
        ):
            return True
        if isinstance(self.configuration, KubeProxyConfiguration) and (
            ":" in self.configuration.cluster_cidr
        ):
            return True
        return isinstance(self.service_cidrs, tuple) and any(
            network.family is six for network in self.service_cidrs
        )
