"""What must hold in a configuration before anything is done with it (contract 8.3).

Pure functions from an effective configuration to sentences. Each starts with its field's path, and
all violations are found at once, so that a user corrects a file in one go. `problems` needs the
configuration alone, and each of them is fatal; `startup_warnings` also needs facts about the node
and is never fatal.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from nftproxy.address import Address, Family, Network, parse_address, parse_network
from nftproxy.configuration import featuregates
from nftproxy.configuration.config import (
    DETECT_LOCAL_MODES,
    KEYWORDS,
    KubeProxyConfiguration,
    Logging,
)
from nftproxy.configuration.duration import Duration
from nftproxy.errors import AddressError, ConfigError

_MODES: Final = ("iptables", "ipvs", "nftables")
_HIDDEN_METRICS_VERSION: Final = "1.36"  # the minor version before that of our metrics
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ allows 15 characters
_QUANTITY: Final = re.compile(r"\+?[0-9]+(\.[0-9]*)?([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?")


def require_valid(config: KubeProxyConfiguration) -> None:
    """Raise ConfigError with all problems, if there are any."""
    if found := problems(config):
        raise ConfigError(found)


def problems(config: KubeProxyConfiguration) -> list[str]:
    """Return all violations (contract 8.3.1 to 8.3.11).

    The rules of ipvs mode (contract 8.3.10) are left out: that mode is refused already (contract
    8.3.4).
    """
    return [
        *featuregates.problems(config.feature_gates),
        *_mode(config),
        *_numbers(config),
        *_periods(config),
        *_addresses(config),
        *_nodeport_addresses(config.node_port_addresses),
        *(
            problem
            for index, text in enumerate(config.nftables.no_masquerade_cidrs)
            for problem in _cidr(f"nftables.noMasqueradeCIDRs[{index}]", text)
        ),
        *_detect_local(config),
        *_logging(
            config.logging, alpha=featuregates.enabled(config.feature_gates, "LoggingAlphaOptions")
        ),
    ]


def startup_warnings(
    config: KubeProxyConfiguration,
    *,
    families: Sequence[Family],
    nodeport_networks: Iterable[Network],
    pod_cidrs: Iterable[str],
) -> list[str]:
    """Return warnings for a node that serves `families`, the primary first (contract 8.3.12).

    `nodeport_networks` is nodePortAddresses with networks in place of words, `pod_cidrs` is
    the Node's.
    """
    primary = families[0]
    nodeports = {network.family for network in nodeport_networks}
    clusters = {network.family for network in _parsable(config.cluster_cidr.split(","))}
    pods = {network.family for network in _parsable(pod_cidrs)}
    found = featuregates.warnings(config.feature_gates)
    if not nodeports:
        found.append(
            "nodePortAddresses: empty, so NodePorts are accepted on all addresses of this machine"
        )
    elif primary not in nodeports:
        found.append(
            f"nodePortAddresses: has no {primary} network, so NodePorts are accepted on all "
            f"{primary} addresses"
        )
    elif len(nodeports) == 1 and 2 in (len(clusters), len(pods)):
        (other,) = set(Family) - nodeports
        found.append(
            f"nodePortAddresses: has no {other} network although the cluster is dual-stack"
        )
    if config.detect_local_mode == "ClusterCIDR" and clusters and primary not in clusters:
        found.append(f"clusterCIDR: has no {primary} network, the primary family of this node")
    if pods and primary not in pods:
        found.append(
            f"podCIDRs: the Node's has no {primary} network, the primary family of this node"
        )
    if len(families) == 1:
        for path, text in (
            ("healthzBindAddress", config.healthz_bind_address),
            ("metricsBindAddress", config.metrics_bind_address),
        ):
            address = _host(text)
            if address and address.family is not primary and address.text not in ("0.0.0.0", "::"):  # noqa: S104
                found.append(
                    f"{path}: {text} is an {address.family} address, but only {primary} is served"
                )
    return found


def interface_name_problem(path: str, name: str) -> list[str]:
    """Return why `name` cannot be an interface's name or prefix; it becomes nft text."""
    if not name:
        return [f"{path}: must not be empty in this detectLocalMode"]
    if not _INTERFACE.fullmatch(name):
        return [
            (
                f"{path}: {name!r:.80} is no interface name: 1 to 15 letters, digits, dots, dashes "
                "or "
                "underscores"
            )
        ]
    return []


def _mode(config: KubeProxyConfiguration) -> list[str]:
    if config.mode in ("", "nftables"):
        return []
    if config.mode in _MODES:
        return [
            (
                f"mode: {config.mode} is not available, nftproxy has the nftables mode only; set "
                "it to "
                "nftables or leave it empty"
            )
        ]
    return [f"mode: {config.mode!r:.80} is unknown; set it to nftables or leave it empty"]


def _numbers(config: KubeProxyConfiguration) -> list[str]:
    """Check the ranges of numbers (contract 8.3.2 to 8.3.4)."""
    conntrack = config.conntrack
    ranges: list[tuple[str, int, int, int | None]] = [
        ("iptables.masqueradeBit", config.iptables.masquerade_bit, 0, 31),
        ("nftables.masqueradeBit", config.nftables.masquerade_bit, 0, 31),
        ("oomScoreAdj", config.oom_score_adj, -1000, 1000),
        ("conntrack.maxPerCore", conntrack.max_per_core, 0, None),
        ("conntrack.min", conntrack.min, 0, None),
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout, 0, None),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout, 0, None),
        ("conntrack.udpTimeout", conntrack.udp_timeout, 0, None),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout, 0, None),
        ("clientConnection.burst", config.client_connection.burst, 0, None),
    ]
    found = []
    for path, value, least, most in ranges:
        if most is not None and not least <= value <= most:
            found.append(f"{path}: {value} is not within {least}..{most}")
        elif value < least:
            found.append(f"{path}: {value} is negative")
    if config.show_hidden_metrics_for_version not in ("", _HIDDEN_METRICS_VERSION):
        version = config.show_hidden_metrics_for_version
        found.append(
            f"showHiddenMetricsForVersion: {version!r:.80} is not {_HIDDEN_METRICS_VERSION}, the "
            "only version possible"
        )
    return found


def _periods(config: KubeProxyConfiguration) -> list[str]:
    """Check the periods (contract 8.3.5)."""
    section = config.nftables
    found = [
        f"{path}: {period} is not above 0s"
        for path, period in (
            ("configSyncPeriod", config.config_sync_period),
            ("nftables.syncPeriod", section.sync_period),
        )
        if period <= 0
    ]
    if section.min_sync_period < Duration(0):
        found.append(f"nftables.minSyncPeriod: {section.min_sync_period} is negative")
    if section.min_sync_period > section.sync_period:
        found.append(
            f"nftables.minSyncPeriod: {section.min_sync_period} is longer than syncPeriod, "
            f"{section.sync_period}"
        )
    return found


def _addresses(config: KubeProxyConfiguration) -> list[str]:
    """Check the bind addresses (contract 8.3.6, 8.3.7)."""
    found = []
    try:
        parse_address(config.bind_address)
    except AddressError:
        found.append(
            f"bindAddress: {config.bind_address!r:.80} is not a bare IP address such as 10.0.0.1 "
            "or fd00::1"
        )
    healthz, metrics = config.healthz_bind_address, config.metrics_bind_address
    if healthz and _host(healthz) is None:
        found.append(
            f"healthzBindAddress: {healthz!r:.80} is not IP:port with a port within 1..65535"
        )
    if _host(metrics) is None:
        found.append(
            f"metricsBindAddress: {metrics!r:.80} is not IP:port with a port within 1..65535"
        )
    return found


def _nodeport_addresses(texts: Sequence[str]) -> list[str]:
    """Check for CIDRs and keywords, in any combination (contract 8.3.8)."""
    return [
        f"{problem}, nor one of the words {', '.join(KEYWORDS)}"
        for index, text in enumerate(texts)
        if text not in KEYWORDS
        for problem in _cidr(f"nodePortAddresses[{index}]", text)
    ]


def _detect_local(config: KubeProxyConfiguration) -> list[str]:
    """Check the fields that the detectLocalMode needs (contract 8.3.9)."""
    names = config.detect_local
    match config.detect_local_mode:
        case "BridgeInterface":
            return interface_name_problem("detectLocal.bridgeInterface", names.bridge_interface)
        case "InterfaceNamePrefix":
            return interface_name_problem(
                "detectLocal.interfaceNamePrefix", names.interface_name_prefix
            )
        case "ClusterCIDR" if config.cluster_cidr:
            texts = config.cluster_cidr.split(",")
            found = [problem for text in texts for problem in _cidr("clusterCIDR", text)]
            families = [network.family for network in _parsable(texts)]
            if not found and len(texts) > 1 and (len(texts) > 2 or families[0] is families[1]):
                found.append(
                    f"clusterCIDR: {config.cluster_cidr!r:.80} is neither one CIDR nor a pair of "
                    "an IPv4 and an IPv6 one"
                )
            return found
        case "ClusterCIDR" | "NodeCIDR":
            return []
        case mode:
            return [f"detectLocalMode: {mode!r:.80} is not one of {', '.join(DETECT_LOCAL_MODES)}"]


def _logging(logging: Logging, *, alpha: bool) -> list[str]:
    """Check formats and alpha options (contract 8.3.11)."""
    found = []
    if logging.format not in ("text", "json"):
        found.append(f"logging.format: {logging.format!r:.80} is neither text nor json")
    if logging.vmodule and logging.format != "text":
        found.append("logging.vmodule: works with the text format only")
    for name, options in (("text", logging.options.text), ("json", logging.options.json)):
        path = f"logging.options.{name}"
        size = str(options.info_buffer_size)
        if not _QUANTITY.fullmatch(size):
            found.append(f"{path}.infoBufferSize: {size!r:.80} is not a size such as 4096 or 64Ki")
        if not alpha and options.split_stream:
            found.append(f"{path}.splitStream: is alpha and needs featureGates.LoggingAlphaOptions")
        if not alpha and size.strip("+0.") != "":
            found.append(
                f"{path}.infoBufferSize: is alpha and needs featureGates.LoggingAlphaOptions"
            )
    return found


def _cidr(path: str, text: str) -> list[str]:
    try:
        parse_network(text)
    except AddressError as error:
        return [f"{path}: {error}"]
    return []


def _parsable(texts: Iterable[str]) -> list[Network]:
    return [parse_network(text) for text in texts if not _cidr("", text)]


def _host(text: str) -> Address | None:
    """Return the address in IP:port or [IP]:port, None for anything else."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or bracketed is not (":" in host)
        or not (port.isascii() and port.isdigit() and len(port) <= 5)
    ):
        return None
    if not 1 <= int(port) <= 65535:
        return None
    try:
        return parse_address(host[1:-1] if bracketed else host)
    except AddressError:
        return None
