"""Node settings: what the data plane needs to know about its node, derived once at the start.

A pure function of the effective configuration, the facts in the Node object and the families this
machine supports. Everything in `NodeSettings` is checked and may become nft text: addresses and
networks are canonical, interface names hold no special character of nft. Every mapping has exactly
the served families as keys, unless stated otherwise. Errors are one ConfigError with all problems;
doubtful values are warnings, which the caller logs. The configuration must have passed `validation`
before.
"""

import enum
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from nftproxy.address import Address, Family, Network, collapse, parse_address, parse_network
from nftproxy.configuration import featuregates
from nftproxy.configuration.config import (
    DETECT_LOCAL_MODES,
    EVERYWHERE,
    LOCALHOST,
    PRIMARY,
    Findings,
    KubeProxyConfiguration,
)
from nftproxy.configuration.validation import interface_name_problem, startup_warnings
from nftproxy.errors import AddressError, ConfigError

_START_VALUES: Final = {
    Family.IPv4: Address(Family.IPv4, "127.0.0.1"),
    Family.IPv6: Address(Family.IPv6, "::1"),
}
_LOOPBACK: Final = {
    Family.IPv4: Network(Family.IPv4, "127.0.0.0", 8),
    Family.IPv6: Network(Family.IPv6, "::1", 128),
}
_LISTENED: Final = _START_VALUES
"""The loopback addresses on which NodePorts are forwarded."""
LOCALHOST_GATE: Final = "KubeProxyNFTablesLocalhostNodePorts"
_UNSPECIFIED: Final = {Address(Family.IPv4, "0.0.0.0"), Address(Family.IPv6, "::")}  # noqa: S104 - compared, not bound


class NodeFacts(msgspec.Struct, frozen=True):
    """What the Node object says, unparsed.

    `status.addresses` as (type, address) in order, and `spec.podCIDRs`.
    """

    addresses: tuple[tuple[str, str], ...] = ()
    pod_cidrs: tuple[str, ...] = ()


class _Every(enum.Enum):
    ALL = "all"


ALL: Final = _Every.ALL
"""NodePorts are accepted on every local address except loopback (contract 2.6.4)."""

NodePortNetworks = Literal[_Every.ALL] | tuple[Network, ...]


class OnLocalhost(enum.Enum):
    """What becomes of NodePorts on the loopback addresses of a family (contract 2.10)."""

    UNTOUCHED = "untouched"  # they are no NodePorts: a process may listen there
    REFUSED = "refused"
    FORWARDED = "forwarded"  # those for TCP; others are refused

    @property
    def refused(self) -> frozenset[str]:
        """The protocols that are refused, in nft's spelling."""
        match self:
            case OnLocalhost.UNTOUCHED:
                return frozenset()
            case OnLocalhost.REFUSED:
                return frozenset({"tcp", "udp", "sctp"})
            case OnLocalhost.FORWARDED:
                return frozenset({"udp", "sctp"})


@dataclass(frozen=True, slots=True)
class Cidr:
    """Local pods are the sources inside these networks.

    A family without one has no detector (contract 4.2.2).
    """

    networks: Mapping[Family, Network]


@dataclass(frozen=True, slots=True)
class BridgeInterface:
    """Local pods are behind the interface of this name (contract 4.2)."""

    name: str

    @property
    def pattern(self) -> str:
        """The name as nft's iifname takes it."""
        return self.name


@dataclass(frozen=True, slots=True)
class InterfaceNamePrefix:
    """Local pods are behind the interfaces whose names have this prefix (contract 4.2)."""

    prefix: str

    @property
    def pattern(self) -> str:
        """The prefix as nft's iifname takes it.

        One of 15 characters is a whole name, and nft refuses a star after it.
        """
        return f"{self.prefix}*" if len(self.prefix) < 15 else self.prefix


LocalDetector = Cidr | BridgeInterface | InterfaceNamePrefix
"""How a packet from a local pod is recognized (contract 4.2)."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything node-wide that rules and elements depend on.

    `families` has the primary one first. `node_ips` are loopback addresses where no other is known
    (contract 8.6.3). `detector` None means that no packet counts as sent by a local pod (contract
    4.2.5). `masquerade_bit` is the mask, not the number of the bit. Periods are seconds.
    `log_refusals` comes from the command line alone: kube-proxy's configuration has no such field.
    `no_masquerade` are networks whose traffic to ClusterIPs keeps its source, without overlap, of
    families that have some.
    `reset_gone`: whether clients of endpoints that have left all slices are reset.
    """

    node_name: str
    families: tuple[Family, ...]
    node_ips: Mapping[Family, Address]
    detector: LocalDetector | None
    masquerade_bit: int
    masquerade_all: bool
    nodeport_addresses: Mapping[Family, NodePortNetworks]
    allow_external_ips: bool
    sync_period: float
    min_sync_period: float
    log_refusals: bool = False
    no_masquerade: Mapping[Family, tuple[Network, ...]] = field(default_factory=dict)
    reset_gone: bool = False
    on_localhost: Mapping[Family, OnLocalhost] = field(
        default_factory=lambda: dict.fromkeys(Family, OnLocalhost.UNTOUCHED)
    )

    @property
    def serves_localhost(self) -> bool:
        """Whether loopback addresses have NodePorts, forwarded or refused."""
        return any(each is not OnLocalhost.UNTOUCHED for each in self.on_localhost.values())

    @property
    def forwarded(self) -> frozenset[Family]:
        """The families whose NodePorts are forwarded on a loopback address."""
        return frozenset(
            family for family, each in self.on_localhost.items() if each is OnLocalhost.FORWARDED
        )


def node_name(config: KubeProxyConfiguration, hostname: str) -> str:
    """Return the name of this node's Node object.

    The override or the OS host name (contract 8.6.1); ConfigError if blank.
    """
    name = (config.hostname_override or hostname).strip().lower()
    if not name:
        raise ConfigError(
            ["hostnameOverride: the node name is blank"],
            hint="set --hostname-override to the name of the Node object",
        )
    return name


def node_settings(
    config: KubeProxyConfiguration,
    facts: NodeFacts | None,
    *,
    hostname: str,
    supported: frozenset[Family],
) -> tuple[NodeSettings, list[str]]:
    """Return the settings of a node and the warnings about them.

    `facts` None means that the Node is unknown; `hostname` is the OS host name, `supported` the
    families this machine can serve (contract 8.6.5; see `host`). ConfigError names every problem
    with its field.
    """
    found = Findings()
    node_ips, primary = _node_ips(config.bind_address, facts)
    families = _families(primary, supported)
    try:
        name = node_name(config, hostname)
    except ConfigError as error:
        found.problems.extend(error.problems)
    detector = _detector(config, facts, families, found)
    networks = _nodeport_networks(config.node_port_addresses, node_ips, found)
    no_masquerade = _no_masquerade(config, detector, found)
    if found.problems:
        raise ConfigError(found.problems)
    settings = NodeSettings(
        node_name=name,
        families=families,
        node_ips={family: node_ips[family] for family in families},
        detector=detector,
        masquerade_bit=1 << config.nftables.masquerade_bit,
        masquerade_all=config.nftables.masquerade_all,
        nodeport_addresses={family: _of_family(networks, family) for family in families},
        allow_external_ips=featuregates.enabled(config.feature_gates, "AllowServiceExternalIPs"),
        sync_period=config.nftables.sync_period.seconds,
        min_sync_period=config.nftables.min_sync_period.seconds,
        no_masquerade={
            family: own
            for family in families
            if (own := tuple(network for network in no_masquerade if network.family is family))
        },
        reset_gone=config.nftables.reset_gone_endpoints,
        on_localhost=_on_localhost(config, families, networks, found.warnings),
    )
    pod_cidrs = facts.pod_cidrs if facts else ()
    doubts = startup_warnings(
        config, families=families, nodeport_networks=networks, pod_cidrs=pod_cidrs
    )
    return settings, [*found.warnings, *doubts]


def accepted_nodeport_addresses(
    wanted: Mapping[Family, NodePortNetworks],
    interfaces: Iterable[Address],
    forwarded: Collection[Family] = (),
) -> tuple[dict[Family, tuple[Address, ...]], list[str]]:
    """Return the interface addresses that accept NodePorts, and an error for each loopback one.

    A family whose NodePorts are on ALL addresses needs no list and is left out (contract 2.6.5).
    Loopback addresses of families that are `forwarded` are no error, as they were asked for.
    """
    accepted: dict[Family, tuple[Address, ...]] = {}
    errors: list[str] = []
    addresses = sorted(set(interfaces))
    for family, networks in wanted.items():
        if networks is ALL:
            continue
        matches = [
            address
            for address in addresses
            if any(network.contains(address) for network in networks)
        ]
        errors += [
            f"nodePortAddresses: {address.text} is a loopback address; NodePorts do not work there"
            for address in matches
            if is_loopback(address) and family not in forwarded
        ]
        accepted[family] = tuple(address for address in matches if not is_loopback(address))
    return accepted, errors


def node_ips(facts: NodeFacts | None) -> tuple[Address, ...]:
    """Return the Node's first address, and its first one of the other family (contract 8.6.2)."""
    found: dict[Family, Address] = {}
    for address in _raw_node_ips(facts) if facts else ():
        found.setdefault(address.family, address)
    return tuple(found.values())


def node_addresses(bind_address: str, facts: NodeFacts | None) -> dict[Family, Address]:
    """Return the node's address in each family that has one (contract 8.6.2, 8.6.3)."""
    return {
        family: address
        for family, address in _node_ips(bind_address, facts)[0].items()
        if not is_loopback(address)
    }


def is_loopback(address: Address) -> bool:
    """Whether `address` is in 127.0.0.0/8 or ::1."""
    return _LOOPBACK[address.family].contains(address)


def _node_ips(bind_address: str, facts: NodeFacts | None) -> tuple[dict[Family, Address], Family]:
    """Return the node's address in each family, and the primary family (contract 8.6.2, 8.6.3)."""
    node_ips = dict(_START_VALUES)
    primary = Family.IPv4
    raw = _raw_node_ips(facts) if facts else []
    for address in reversed(raw):  # the first of a family wins, the first of all is the primary
        node_ips[address.family] = address
        primary = address.family
    try:
        hint = parse_address(bind_address)
    except AddressError as error:
        raise ConfigError([f"bindAddress: {error}"]) from error
    if hint not in _UNSPECIFIED:
        node_ips[hint.family] = hint
        primary = hint.family
    return node_ips, primary


def _raw_node_ips(facts: NodeFacts) -> list[Address]:
    """Return all usable addresses.

    Internal ones in order, then external ones; DNS names are skipped (contract 8.6.2).
    """
    addresses = []
    for wanted in ("InternalIP", "ExternalIP"):
        for kind, text in facts.addresses:
            if kind == wanted:
                with suppress(AddressError):
                    addresses.append(parse_address(text))
    return addresses


def _families(primary: Family, supported: frozenset[Family]) -> tuple[Family, ...]:
    """Return the families to serve, the primary one first (contract 8.6.5)."""
    if primary not in supported:
        raise ConfigError(
            [f"the node's primary family is {primary}, which this machine does not support"],
            hint=f"enable {primary} on this machine, or name an address of another family with "
            "--bind-address",
        )
    return (
        primary,
        *(family for family in Family if family in supported and family is not primary),
    )


def _detector(
    config: KubeProxyConfiguration,
    facts: NodeFacts | None,
    families: tuple[Family, ...],
    found: Findings,
) -> LocalDetector | None:
    """Return how to recognize packets of local pods (contract 4.2)."""
    names = config.detect_local
    match config.detect_local_mode:
        case "BridgeInterface":
            found.problems.extend(
                interface_name_problem("detectLocal.bridgeInterface", names.bridge_interface)
            )
            return BridgeInterface(names.bridge_interface)
        case "InterfaceNamePrefix":
            found.problems.extend(
                interface_name_problem(
                    "detectLocal.interfaceNamePrefix", names.interface_name_prefix
                )
            )
            return InterfaceNamePrefix(names.interface_name_prefix)
        case "NodeCIDR":
            networks = _first_networks(
                "podCIDRs", facts.pod_cidrs if facts else (), families, found.warnings
            )
            if facts is None:
                found.problems.append(
                    "detectLocalMode: NodeCIDR needs the Node object, which does not exist"
                )
            elif (
                families[0] not in networks
            ):  # fatal also if the other family has one (contract 4.2.4)
                found.problems.append(
                    f"detectLocalMode: NodeCIDR needs an {families[0]} network in the Node's "
                    "spec.podCIDRs"
                )
        case "" | "ClusterCIDR":
            cidrs = config.cluster_cidr.split(",") if config.cluster_cidr else []
            networks = _first_networks("clusterCIDR", cidrs, families, found.problems)
            if not cidrs:
                found.warnings.append(
                    "clusterCIDR: not set, so no packet counts as sent by a local pod"
                )
            elif families[0] not in networks and len(families) == 1:
                found.problems.append(
                    f"clusterCIDR: has no {families[0]} network, the only family served"
                )
        case mode:
            raise ConfigError(
                [f"detectLocalMode: {mode!r:.80} is not one of {', '.join(DETECT_LOCAL_MODES)}"]
            )
    return Cidr(networks) if networks else None


def _first_networks(
    path: str, cidrs: Iterable[str], families: tuple[Family, ...], complaints: list[str]
) -> dict[Family, Network]:
    """Return the first network of each family served; report invalid CIDRs to `complaints`."""
    networks: dict[Family, Network] = {}
    for text in cidrs:
        try:
            network = parse_network(text)
        except AddressError as error:
            complaints.append(f"{path}: {error}")
            continue
        if network.family in families:
            networks.setdefault(network.family, network)
    return networks


def _nodeport_networks(
    texts: Iterable[str], node_ips: Mapping[Family, Address], found: Findings
) -> list[Network]:
    """Return nodePortAddresses as networks, with those that words stand for (contract 2.6.2)."""
    networks: list[Network] = []
    for index, text in enumerate(texts):
        if text == PRIMARY:
            addresses = (address for address in node_ips.values() if not is_loopback(address))
            networks += [
                Network(address.family, address.text, address.family.bits) for address in addresses
            ]
        elif text == LOCALHOST:
            networks += _LOOPBACK.values()
        elif text == EVERYWHERE:
            networks += [Network(address.family, address.text, 0) for address in _UNSPECIFIED]
        else:
            try:
                networks.append(parse_network(text))
            except AddressError as error:
                found.problems.append(f"nodePortAddresses[{index}]: {error}")
    return networks


def _no_masquerade(
    config: KubeProxyConfiguration, detector: LocalDetector | None, found: Findings
) -> list[Network]:
    """Return the sources whose traffic to ClusterIPs is not masqueraded, without overlap."""
    path = "nftables.noMasqueradeCIDRs"
    networks: list[Network] = []
    for index, text in enumerate(config.nftables.no_masquerade_cidrs):
        try:
            networks.append(parse_network(text))
        except AddressError as error:
            found.problems.append(f"{path}[{index}]: {error}")
    if networks and detector is None and not config.nftables.masquerade_all:
        found.warnings.append(
            f"{path}: without clusterCIDR no traffic to ClusterIPs is masqueraded, so this has no "
            "effect"
        )
    return collapse(networks)


def _on_localhost(
    config: KubeProxyConfiguration,
    families: Iterable[Family],
    networks: Iterable[Network],
    warnings: list[str],
) -> dict[Family, OnLocalhost]:
    """Return what becomes of NodePorts on loopback addresses: the gate, and whether asked for.

    Asked for is a network of loopback addresses alone, with the one that is listened on. All
    addresses are not: these are where kernel rules work (contract 2.10.1, 2.10.2).
    """
    asked = {
        network.family
        for network in networks
        if is_loopback(Address(network.family, network.text))
        and network.contains(_LISTENED[network.family])
    }
    gate = featuregates.enabled(config.feature_gates, LOCALHOST_GATE)
    if asked and not gate:
        warnings.append(
            "nodePortAddresses: NodePorts on loopback addresses need the feature gate "
            f"{LOCALHOST_GATE}; nothing is accepted there"
        )
    if gate and not asked:
        warnings.append(
            f"featureGates.{LOCALHOST_GATE}: on, but nodePortAddresses names no loopback address; "
            "NodePorts are refused there"
        )
    if not gate:
        return dict.fromkeys(families, OnLocalhost.UNTOUCHED)
    return {
        family: OnLocalhost.FORWARDED if family in asked else OnLocalhost.REFUSED
        for family in families
    }


def _of_family(networks: Iterable[Network], family: Family) -> NodePortNetworks:
    """Return the networks of one family.

    ALL without any, or if one is the whole family (contract 2.6.3).
    """
    own = tuple(network for network in networks if network.family is family)
    return own if own and all(network.length for network in own) else ALL
