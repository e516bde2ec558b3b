"""KubeProxyConfiguration v1alpha1: what kube-proxy's config file and flags can say (contract 8.2).

The Structs hold *effective* values: a field that nobody set has its default. Input arrives as
sparse mappings with the names of the wire format, in which a missing key means "not set":
`configfile` makes one from a file, `flags` one from the command line. `build` merges them, later
ones win, and fills in the defaults that depend on other fields.

Two defaults differ from kube-proxy: `nftables.minSyncPeriod` is 50 ms instead of 1 s, because a
sync takes milliseconds, and an empty `mode` means `nftables`, the only one, instead of `iptables`.

`validation` checks whether values make sense together; `settings` derives what they mean for
packets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from nftproxy.address import Address, Family, bracketed, parse_address
from nftproxy.configuration.duration import HOUR, MILLISECOND, MINUTE, SECOND, Duration
from nftproxy.errors import AddressError

API_VERSION: Final = "kubeproxy.config.k8s.io/v1alpha1"
KIND: Final = "KubeProxyConfiguration"

PRIMARY: Final = "primary"
LOCALHOST: Final = "localhost"
EVERYWHERE: Final = "all"
KEYWORDS: Final = (PRIMARY, LOCALHOST, EVERYWHERE)
"""The words in nodePortAddresses.

They stand for the node's own addresses, those of loopback, and all (contract 2.6.1).
"""

DETECT_LOCAL_MODES: Final = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")

HEALTHZ_PORT: Final = 10256
METRICS_PORT: Final = 10249

Sparse = Mapping[str, Any]
"""Fields of the configuration under their wire names, nested like it.

A missing key means "not set".
"""

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
"""Go's int32: a value that does not fit is not decodable (contract 8.1.3)."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a check: problems are fatal, warnings are only logged.

    Each names its field first.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Section(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of all parts: immutable, camelCase on the wire."""


class ClientConnection(Section, frozen=True, kw_only=True):
    """How to connect to the API server."""

    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    qps: float = 5
    burst: Int32 = 10


class VmoduleItem(Section, frozen=True, kw_only=True):
    """Another verbosity for the source files that match a pattern."""

    file_pattern: str = ""
    verbosity: Int32 = 0


class FormatOptions(Section, frozen=True, kw_only=True):
    """Details of one log format; both fields are alpha.

    The buffer size is a quantity: 0, 4096 or 64Ki.
    """

    split_stream: bool = False
    info_buffer_size: int | str = "0"


class LogOptions(Section, frozen=True, kw_only=True):
    """Details of every log format."""

    text: FormatOptions = FormatOptions()
    json: FormatOptions = FormatOptions()


class Logging(Section, frozen=True, kw_only=True):
    """How to log."""

    format: str = "text"
    flush_frequency: Duration = Duration(5 * SECOND)
    verbosity: Int32 = 0
    vmodule: tuple[VmoduleItem, ...] = ()
    options: LogOptions = LogOptions()


class IptablesSection(Section, frozen=True, kw_only=True):
    """The iptables mode's section.

    Read and printed, validated in part, otherwise without effect.
    """

    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Duration = Duration(30 * SECOND)
    min_sync_period: Duration = Duration(SECOND)


class IpvsSection(Section, frozen=True, kw_only=True):
    """The ipvs mode's section: read and printed, otherwise without effect."""

    sync_period: Duration = Duration(30 * SECOND)
    min_sync_period: Duration = Duration(0)
    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="excludeCIDRs")
    strict_arp: bool = msgspec.field(default=False, name="strictARP")
    tcp_timeout: Duration = Duration(0)
    tcp_fin_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class Nftables(Section, frozen=True, kw_only=True):
    """The section of the only mode that nftproxy has."""

    masquerade_bit: Int32 = 14
    masquerade_all: bool = False
    # Ours: kube-proxy has no such field
    no_masquerade_cidrs: tuple[str, ...] = msgspec.field(default=(), name="noMasqueradeCIDRs")
    reset_gone_endpoints: bool = False  # ours, too
    sync_period: Duration = Duration(30 * SECOND)
    min_sync_period: Duration = Duration(50 * MILLISECOND)


class Winkernel(Section, frozen=True, kw_only=True):
    """The Windows mode's section: read and printed, otherwise without effect."""

    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = msgspec.field(default=False, name="enableDSR")
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class DetectLocal(Section, frozen=True, kw_only=True):
    """Names for the two interface modes of detectLocalMode."""

    bridge_interface: str = ""
    interface_name_prefix: str = ""


class ConntrackSection(Section, frozen=True, kw_only=True):
    """Kernel settings of connection tracking.

    0 means "do not set" and differs from a missing value.
    """

    max_per_core: Int32 = 32768
    min: Int32 = 131072
    tcp_established_timeout: Duration = Duration(24 * HOUR)
    tcp_close_wait_timeout: Duration = Duration(HOUR)
    tcp_be_liberal: bool = False
    udp_timeout: Duration = Duration(0)
    udp_stream_timeout: Duration = Duration(0)


class KubeProxyConfiguration(Section, frozen=True, kw_only=True):
    """The whole configuration, effective values; durations in nanoseconds."""

    feature_gates: Mapping[str, bool] = msgspec.field(default_factory=dict)
    client_connection: ClientConnection = ClientConnection()
    logging: Logging = Logging()
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"  # noqa: S104 - a hint which node IP to use; nothing is bound to it
    healthz_bind_address: str = ""
    metrics_bind_address: str = ""
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: str = "nftables"
    iptables: IptablesSection = IptablesSection()
    ipvs: IpvsSection = IpvsSection()
    nftables: Nftables = Nftables()
    winkernel: Winkernel = Winkernel()
    detect_local_mode: str = "ClusterCIDR"
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: str = msgspec.field(default="", name="clusterCIDR")
    node_port_addresses: tuple[str, ...] = (PRIMARY,)
    oom_score_adj: Int32 = -999
    conntrack: ConntrackSection = ConntrackSection()
    config_sync_period: Duration = Duration(15 * MINUTE)
    port_range: str = ""
    windows_run_as_service: bool = False


def build(*layers: Sparse) -> KubeProxyConfiguration:
    """Return the effective configuration of `layers`; later ones win.

    Raises msgspec.ValidationError if a layer has a value of the wrong type; readers of files and
    flags check theirs before.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _lay_over(merged, layer)
    if not merged.get("nodePortAddresses"):
        # An empty list means `primary` in this mode (contract 2.6.1)
        merged.pop("nodePortAddresses", None)
    host = _host(merged.get("bindAddress", ""))
    ipv6 = host is not None and host.family is Family.IPv6
    merged.setdefault("healthzBindAddress", "::" if ipv6 else "0.0.0.0")  # noqa: S104 - the documented default
    merged.setdefault("metricsBindAddress", "::1" if ipv6 else "127.0.0.1")
    for address, port in (
        ("healthzBindAddress", HEALTHZ_PORT),
        ("metricsBindAddress", METRICS_PORT),
    ):
        merged[address] = with_port(merged[address], port)
    return msgspec.convert(merged, KubeProxyConfiguration, dec_hook=decode)


def dump(config: KubeProxyConfiguration) -> dict[str, Any]:
    """Return the configuration as a v1alpha1 object of plain values, with every field.

    Sync periods and masqueradeAll are shown in the section of the mode in use only (contract
    8.1.5); the others read "not set". A field that kube-proxy does not have is shown if it is set.
    """
    unused = {"masqueradeAll": False, "syncPeriod": "0s", "minSyncPeriod": "0s"}
    # By JSON, which has no tuples
    fields = msgspec.json.decode(msgspec.json.encode(config, enc_hook=str))
    fields["iptables"].update(unused)
    if not config.nftables.no_masquerade_cidrs:
        del fields["nftables"]["noMasqueradeCIDRs"]
    if not config.nftables.reset_gone_endpoints:
        del fields["nftables"]["resetGoneEndpoints"]
    fields["ipvs"].update({name: value for name, value in unused.items() if name in fields["ipvs"]})
    return {"apiVersion": API_VERSION, "kind": KIND, **fields}


def decode(wanted: type, value: object) -> object:
    """Decode durations, for the `dec_hook` of msgspec."""
    if isinstance(value, Duration):
        return value
    if wanted is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise TypeError(f"Expected a duration such as 30s, got {value!r}")


def with_port(address: str, port: int) -> str:
    """Return `address` as IP:port if it is a bare IP, else unchanged.

    Validation reports invalid ones.
    """
    if _host(address) is None:
        return address
    return f"{bracketed(address)}:{port}"


def _host(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None


def _lay_over(merged: dict[str, Any], layer: Sparse) -> None:
    """Write the fields of `layer` into `merged`, section by section.

    FeatureGates, a map, gains keys too.
    """
    for name, value in layer.items():
        if isinstance(value, Mapping):
            _lay_over(merged.setdefault(name, {}), value)
        else:
            merged[name] = value
