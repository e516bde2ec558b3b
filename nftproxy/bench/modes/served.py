"""The service ports of a baseline, with their addresses, policies and endpoints.

The choice of endpoints is ours (`selection`): all modes send connections to the same ones, so only
the path is compared. Features that no baseline renders are refused, not silently omitted: a mode
must not look fast by doing less.
"""

from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.bench.modes.mode import Load
from nftproxy.configuration.settings import ALL, Cidr, NodeSettings
from nftproxy.errors import NftproxyError
from nftproxy.model import ObjectName
from nftproxy.selection import Endpoint, Locality, lists, view

FAMILY = Family.IPv4


class ServedPort(NamedTuple):
    """One port of a service, as this node sees it; `proto` in lower case, `node_port` may be 0.

    `cluster` and `local` are its two endpoint lists, `anywhere` says whether any endpoint in the
    cluster is usable, and `here` are those on this node (contract 3.4, 3.4.6, 3.4.8).
    """

    service: ObjectName
    port_name: str
    proto: str
    port: int
    node_port: int
    cluster_ip: str
    external_ips: tuple[str, ...]
    vips: tuple[str, ...]
    internal_local: bool
    external_local: bool
    affinity_seconds: int | None
    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]
    here: tuple[Endpoint, ...]
    anywhere: bool

    @property
    def internal(self) -> tuple[Endpoint, ...]:
        """The endpoints of the ClusterIP (contract 2.3.5)."""
        return self.local if self.internal_local else self.cluster

    @property
    def external(self) -> tuple[Endpoint, ...]:
        """The endpoints for outside clients."""
        return self.local if self.external_local else self.cluster

    @property
    def outside(self) -> tuple[str, ...]:
        """The addresses outside the cluster: external IPs, then VIPs."""
        return (*self.external_ips, *self.vips)

    @property
    def is_external(self) -> bool:
        """Whether outside clients can reach it (contract 2.2.1)."""
        return bool(self.node_port or self.external_ips or self.vips)

    @property
    def reachable(self) -> tuple[Endpoint, ...]:
        """Both lists together, each endpoint once (contract 3.4.8), sorted."""
        return tuple(sorted({*self.cluster, *self.local}, key=str))


def served(load: Load, settings: NodeSettings) -> tuple[ServedPort, ...]:
    """Return the ports of a service that a proxy serves (contract 2.1.1 to 2.1.3)."""
    name = load.name
    seen = view(load.service, FAMILY, [], external_ips=settings.allow_external_ips)
    if seen is None:
        return ()
    if seen.ranges:
        raise NftproxyError(
            f"service {name} has source ranges, which the modes to compare with do not render"
        )
    here = Locality(settings.node_name, "")
    found = []
    for port in load.service.spec.ports or ():
        chosen = lists(seen, port, load.slices, FAMILY, here, [])
        found.append(
            ServedPort(
                service=name,
                port_name=port.name or "",
                proto=port.protocol.nft,
                port=port.port,
                node_port=port.node_port or 0,
                cluster_ip=seen.cluster_ip,
                external_ips=seen.external_ips,
                vips=seen.vips,
                internal_local=seen.internal_local,
                external_local=seen.external_local,
                affinity_seconds=seen.affinity_seconds,
                cluster=tuple(chosen.cluster),
                local=tuple(chosen.local),
                here=chosen.here,
                anywhere=chosen.usable_anywhere,
            )
        )
    return tuple(found)


def pod_network(settings: NodeSettings) -> str:
    """Return the network of the local pods as text."""
    if (
        settings.masquerade_all
        or not isinstance(settings.detector, Cidr)
        or FAMILY not in settings.detector.networks
    ):
        raise NftproxyError(
            "the modes to compare with know local pods by their CIDR, and do not masquerade "
            "everything"
        )
    return str(settings.detector.networks[FAMILY])


def node_addresses(settings: NodeSettings) -> tuple[str, ...]:
    """Return the addresses that accept NodePorts; single ones, as the workload has them."""
    networks = settings.nodeport_addresses[FAMILY]
    if networks is ALL or any(network.length != FAMILY.bits for network in networks):
        raise NftproxyError("the modes to compare with accept NodePorts on single addresses")
    return tuple(network.text for network in networks)
