"""The command line's settings: every flag of kube-proxy (contract 8.4) in one table.

`kube_proxy_options` adds all of them to a command. `node_options` adds those that describe the node
to `render` and `diff`. `run_options` adds these and the flags of a serving process to `run`. A flag
that is not given arrives as None or (), so defaults stand in `config` alone. `effective` merges
flags and file.

No import here is slow to load: help and completion must answer at once.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click

from nftproxy.configuration.gotypes import (
    BOOL,
    DURATION,
    INT,
    NUMBER,
    PATTERNS,
    SWITCHES,
    TEXT,
    VERBOSITY,
    WORDS,
    GoType,
)

Command = TypeVar("Command", bound=Callable[..., Any])
Values = Mapping[str, Any]
"""The parameters of a click command.

The flag's name with underscores, and None or () where it was not given.
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name, the field that it sets (if any), its default as text, and its help."""

    name: str
    type: GoType
    field: str
    default: str
    help: str
    alias: str = ""
    metavar: str = ""
    empty_is_unset: bool = False  # given with an empty value, it counts as not given

    @property
    def parameter(self) -> str:
        """The name of the click parameter."""
        return self.name.replace("-", "_")

    @property
    def repeatable(self) -> bool:
        """Lists and maps may be given in several pieces."""
        return self.type in (PATTERNS, SWITCHES, WORDS)

    def option(self) -> Callable[[Command], Command]:
        """Return the click decorator."""
        names = [f"--{name}" for name in (self.alias, self.name) if name]
        if len(self.name) == 1:
            names.insert(0, f"-{self.name}")
        text = f"{self.help} [default: {self.default}]" if self.default else self.help
        boolean: dict[str, Any] = (
            {"is_flag": False, "flag_value": "true"} if self.type is BOOL else {}
        )
        return click.option(
            *names,
            self.parameter,
            type=self.type,
            multiple=self.repeatable,
            metavar=self.metavar or ("[=BOOL]" if self.type is BOOL else None),
            help=text,
            **boolean,
        )

    def given(self, values: Values) -> Any:
        """Return the given value, with the pieces of lists and maps joined, or None."""
        value = values.get(self.parameter)
        if value in (None, ()) or (value == "" and self.empty_is_unset):
            return None
        if self.type is SWITCHES:
            return {name: on for piece in value for name, on in piece.items()}
        return tuple(item for piece in value for item in piece) if self.repeatable else value


_IPVS: Final = "Accepted without effect: it is for the ipvs mode."
_SPLIT: Final = "Accepted without effect: all log lines go to standard error."
_BUFFER: Final = "Accepted without effect: each log line is written at once."
_LIMIT: Final = "Accepted without effect: four streams and a few events need no limit."

# A table: one flag is one to three lines.
# fmt: off
FLAGS: Final = (
    Flag("config", TEXT, "", "",
         "Read the settings from this KubeProxyConfiguration, YAML or JSON. All other flags except "
         "--hostname-override, --master, --cleanup, --init-only, --write-config-to and those for "
         "logging are then ignored.", metavar="FILE"),
    Flag("write-config-to", TEXT, "", "",
         "Write the effective settings to this file and exit.", metavar="FILE"),
    Flag("cleanup", BOOL, "", "false",
         "Remove the rules, ours and those of kube-proxy's modes, and exit."),
    Flag("init-only", BOOL, "", "false",
         "Do what needs full privileges (sysctls, clean-up of other modes), then exit without "
         "writing rules; afterwards CAP_NET_ADMIN is enough."),
    Flag("kubeconfig", TEXT, "clientConnection.kubeconfig", "",
         "Reach the API server as this kubeconfig says. Without it and without --master the pod's "
         "service account is used.", metavar="FILE"),
    Flag("master", TEXT, "", "",
         "URL of the API server; wins over the server in the kubeconfig.", metavar="URL"),
    Flag("kube-api-content-type", TEXT, "clientConnection.contentType",
         "application/vnd.kubernetes.protobuf",
         "How the API server is asked to encode what it sends: this, or application/json, which "
         "takes half as much again. A server without it answers in JSON. Events are written in "
         "JSON."),
    Flag("kube-api-burst", INT, "clientConnection.burst", "10", _LIMIT),
    Flag("kube-api-qps", NUMBER, "clientConnection.qps", "5", _LIMIT),
    Flag("hostname-override", TEXT, "hostnameOverride", "the host name",
         "Name of the Node object that this machine is. It decides which endpoints are local, and "
         "wins over the file.", metavar="NAME", empty_is_unset=True),
    Flag("bind-address", TEXT, "bindAddress", "0.0.0.0",  # noqa: S104
         "The node's primary address; nothing is bound to it. With 0.0.0.0 or :: the Node object "
         "decides.", metavar="IP", empty_is_unset=True),
    Flag("healthz-bind-address", TEXT, "healthzBindAddress", "0.0.0.0:10256",
         "Where /healthz and /livez are served; [::]:10256 if --bind-address is IPv6.",
         metavar="IP[:PORT]", empty_is_unset=True),
    Flag("metrics-bind-address", TEXT, "metricsBindAddress", "127.0.0.1:10249",
         "Where /metrics is served, without authentication; [::1]:10249 if --bind-address is IPv6.",
         metavar="IP[:PORT]", empty_is_unset=True),
    Flag("healthz-port", INT, "", "10256",
         "Deprecated: port for a --healthz-bind-address that has none; 0 switches the server off."),
    Flag("metrics-port", INT, "", "10249",
         "Deprecated: port for a --metrics-bind-address that has none."),
    Flag("bind-address-hard-fail", BOOL, "bindAddressHardFail", "false",
         "Exit if the health or metrics server cannot be bound; otherwise try again every 5s."),
    Flag("profiling", BOOL, "enableProfiling", "false", "Serve /debug/pprof beside the metrics."),
    Flag("show-hidden-metrics-for-version", TEXT, "showHiddenMetricsForVersion", "",
         "Accepted without effect: no metric is hidden. Only the previous minor version is valid."),
    Flag("proxy-mode", TEXT, "mode", "nftables",
         "nftables is the only mode; iptables and ipvs are refused.", empty_is_unset=True),
    Flag("masquerade-all", BOOL, "nftables.masqueradeAll", "false",
         "Masquerade all traffic to ClusterIPs, so that endpoints see the node as its source; "
         "needed only where endpoints cannot route their answers back."),
    Flag("no-masquerade-cidrs", WORDS, "nftables.noMasqueradeCIDRs", "",
         "Do not masquerade traffic to ClusterIPs from these sources, not even with "
         "--masquerade-all; endpoints must route their answers back through this node. NodePorts, "
         "load-balancer addresses and external IPs stay masqueraded. kube-proxy has no such flag.",
         metavar="CIDR,..."),
    Flag("reset-gone-endpoints", BOOL, "nftables.resetGoneEndpoints", "false",
         "Reset connections to endpoints that have left all EndpointSlices, so that clients of a "
         "pod or node that vanished need not wait for minutes. Endpoints that terminate are still "
         "listed and never reset. kube-proxy has no such flag."),
    Flag("iptables-masquerade-bit", INT, "iptables.masqueradeBit", "14",
         "Accepted without effect: it is for the iptables mode; set nftables.masqueradeBit in the "
         "file instead."),
    Flag("iptables-localhost-nodeports", BOOL, "iptables.localhostNodePorts", "true",
         "Accepted without effect: it is for iptables mode. See --nodeport-addresses."),
    Flag("iptables-sync-period", DURATION, "nftables.syncPeriod", "30s",
         "Retry a failed sync after this long at the latest; twice as long without success is "
         "unhealthy."),
    Flag("iptables-min-sync-period", DURATION, "nftables.minSyncPeriod", "50ms",
         "Pause after a sync; the next sync applies all changes since. kube-proxy waits 1s by "
         "default, but a sync of nftproxy takes milliseconds."),
    Flag("ipvs-sync-period", DURATION, "", "30s", _IPVS),
    Flag("ipvs-min-sync-period", DURATION, "", "1s", _IPVS),
    Flag("ipvs-scheduler", TEXT, "ipvs.scheduler", "", _IPVS),
    Flag("ipvs-exclude-cidrs", WORDS, "ipvs.excludeCIDRs", "", _IPVS, metavar="CIDR,..."),
    Flag("ipvs-strict-arp", BOOL, "ipvs.strictARP", "false", _IPVS),
    Flag("ipvs-tcp-timeout", DURATION, "ipvs.tcpTimeout", "0s", _IPVS),
    Flag("ipvs-tcpfin-timeout", DURATION, "ipvs.tcpFinTimeout", "0s", _IPVS),
    Flag("ipvs-udp-timeout", DURATION, "ipvs.udpTimeout", "0s", _IPVS),
    Flag("detect-local-mode", TEXT, "detectLocalMode", "ClusterCIDR",
         "How packets of local pods are recognized: by source address (ClusterCIDR, NodeCIDR) or "
         "by interface (BridgeInterface, InterfaceNamePrefix).",
         metavar="MODE", empty_is_unset=True),
    Flag("pod-bridge-interface", TEXT, "detectLocal.bridgeInterface", "",
         "The bridge of the pods, such as cni0; for --detect-local-mode=BridgeInterface.",
         metavar="NAME"),
    Flag("pod-interface-name-prefix", TEXT, "detectLocal.interfaceNamePrefix", "",
         "How the names of pods' interfaces begin, such as veth or cali; for "
         "--detect-local-mode=InterfaceNamePrefix.", metavar="PREFIX"),
    Flag("cluster-cidr", TEXT, "clusterCIDR", "",
         "The addresses of all pods, one CIDR or one for each family. Traffic to ClusterIPs from "
         "other sources is masqueraded. Without this flag nothing is.", metavar="CIDR[,CIDR]"),
    Flag("nodeport-addresses", WORDS, "nodePortAddresses", "primary",
         "Which of the machine's addresses accept NodePorts: CIDRs, and the words primary (the "
         "node's own addresses), localhost and all, in any combination. On localhost they need "
         "the feature gate KubeProxyNFTablesLocalhostNodePorts.", metavar="CIDR|WORD,..."),
    Flag("oom-score-adj", INT, "oomScoreAdj", "-999",
         "How likely the kernel kills this process when memory runs out, -1000 to 1000."),
    Flag("conntrack-max-per-core", INT, "conntrack.maxPerCore", "32768",
         "Connections that the kernel tracks, per CPU; 0 keeps the kernel's limit."),
    Flag("conntrack-min", INT, "conntrack.min", "131072",
         "Lower limit for the connections that the kernel tracks, however few CPUs there are."),
    Flag("conntrack-tcp-timeout-established", DURATION, "conntrack.tcpEstablishedTimeout",
         "24h0m0s",
         "Forget an idle TCP connection after this long; 0 keeps the kernel's value."),
    Flag("conntrack-tcp-timeout-close-wait", DURATION, "conntrack.tcpCloseWaitTimeout", "1h0m0s",
         "Forget a half-closed TCP connection after this long; 0 keeps the kernel's value."),
    Flag("conntrack-tcp-be-liberal", BOOL, "conntrack.tcpBeLiberal", "false",
         "Accept TCP packets outside the window, against spurious resets; false keeps the kernel's "
         "value."),
    Flag("conntrack-udp-timeout", DURATION, "conntrack.udpTimeout", "0s",
         "Forget an unanswered UDP flow after this long; 0 keeps the kernel's value."),
    Flag("conntrack-udp-timeout-stream", DURATION, "conntrack.udpStreamTimeout", "0s",
         "Forget an idle UDP flow after this long; 0 keeps the kernel's value."),
    Flag("config-sync-period", DURATION, "configSyncPeriod", "15m0s",
         "Accepted without effect: watches keep the state current."),
    Flag("feature-gates", SWITCHES, "featureGates", "",
         "Switch features on and off, as in AllowServiceExternalIPs=false. Gates of other "
         "Kubernetes components are accepted without effect."),
    Flag("v", VERBOSITY, "logging.verbosity", "0",
         "How much to log; 4 and more add lines for debugging."),
    Flag("vmodule", PATTERNS, "logging.vmodule", "",
         "Accepted without effect: all modules have the verbosity of -v."),
    Flag("logging-format", TEXT, "logging.format", "text",
         "text for people or json for collectors.", metavar="FORMAT"),
    Flag("log-flush-frequency", DURATION, "logging.flushFrequency", "5s",
         "Accepted without effect: each log line is written at once."),
    Flag("log-text-split-stream", BOOL, "logging.options.text.splitStream", "false", _SPLIT),
    Flag("log-text-info-buffer-size", TEXT, "logging.options.text.infoBufferSize", "0",
         _BUFFER, metavar="SIZE"),
    Flag("log-json-split-stream", BOOL, "logging.options.json.splitStream", "false", _SPLIT),
    Flag("log-json-info-buffer-size", TEXT, "logging.options.json.infoBufferSize", "0",
         _BUFFER, metavar="SIZE"),
    Flag("boot-id-file", TEXT, "", "", "Accepted without effect.", metavar="FILE"),
    Flag("machine-id-file", TEXT, "", "", "Accepted without effect.", metavar="FILE"),
)
"""kube-proxy's flags, except --version and --help, and those of ours that set a field."""

_OURS: Final = Flag("masquerade-bit", INT, "nftables.masqueradeBit", "14",
    "The bit of the packet mark that means: masquerade this connection. 0 to 31; change it if "
    "another program uses the same one.")
_FILE: Final = (
    "Read settings from this KubeProxyConfiguration, YAML or JSON. Flags win over the file."
)
_NODE_FLAGS: Final = {  # name of kube-proxy's flag -> shorter name of ours
    "config": "", "hostname-override": "node-name", "cluster-cidr": "", "detect-local-mode": "",
    "pod-bridge-interface": "", "pod-interface-name-prefix": "", "nodeport-addresses": "",
    "bind-address": "", "masquerade-all": "", "no-masquerade-cidrs": "",
    "reset-gone-endpoints": "", "masquerade-bit": "",
    "feature-gates": "",
    "iptables-sync-period": "sync-period", "iptables-min-sync-period": "min-sync-period",
}
NODE_FLAGS: Final = tuple(
    replace(flag, alias=_NODE_FLAGS[flag.name], help=_FILE if flag.name == "config" else flag.help)
    for flag in (*FLAGS, _OURS)
    if flag.name in _NODE_FLAGS
)
# fmt: on
"""The flags of `run`, `render` and `diff` that describe the node."""

_WHOSE: Final = {"config", "hostname-override"}
_SERVING: Final = {  # as above
    "healthz-bind-address": "", "metrics-bind-address": "", "healthz-port": "", "metrics-port": "",
    "bind-address-hard-fail": "", "profiling": "", "oom-score-adj": "",
    "logging-format": "log-format", "v": "verbosity",
}  # fmt: skip
RUN_FLAGS: Final = NODE_FLAGS + tuple(
    replace(flag, alias=_SERVING.get(flag.name, ""))
    for flag in FLAGS
    if flag.name in _SERVING or flag.field.startswith("conntrack.")
)
"""The flags of `run`: those, and the ones of a serving process."""


def normalize(token: str) -> str:
    """Accept `_` for `-` in the names of flags (contract 8.1.1)."""
    return token.replace("_", "-")


CONTEXT_SETTINGS: Final = {"token_normalize_func": normalize, "help_option_names": ["-h", "--help"]}
"""For `click.command(context_settings=...)` of every command that takes these flags."""


def kube_proxy_options(command: Command) -> Command:
    """Add all flags of kube-proxy to a click command.

    A flag that is not given arrives as None or ().
    """
    version = click.option(
        "--version",
        is_flag=False,
        flag_value="true",
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        metavar="[=raw]",
        help="Print the version and exit; raw adds those of Python and Linux.",
    )
    return _apply(FLAGS, version(command))


def node_options(command: Command) -> Command:
    """Add the flags that describe the node to a click command, as `kube_proxy_options` does."""
    return _apply(NODE_FLAGS, command)


def whose_options(command: Command) -> Command:
    """Add the flags that name the configuration and the node to a click command.

    For looking at one that runs.
    """
    return _apply((flag for flag in NODE_FLAGS if flag.name in _WHOSE), command)


def run_options(command: Command) -> Command:
    """Add the flags of `run` to a click command, as `kube_proxy_options` does."""
    return _apply(RUN_FLAGS, command)


def layer(flags: Iterable[Flag], values: Values) -> dict[str, Any]:
    """Return the fields of the configuration that `flags` set, nested as in the file."""
    fields: dict[str, Any] = {}
    for flag in flags:
        value = flag.given(values)
        if value is None or not flag.field:
            continue
        *sections, last = flag.field.split(".")
        section = fields
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return fields


def _print_version(ctx: click.Context, _: click.Parameter, wanted: str | None) -> None:
    if wanted not in ("true", "raw") or ctx.resilient_parsing:
        return
    from importlib import metadata  # here, because it takes 30 ms and only this option needs it

    text = f"nftproxy {metadata.version('nftproxy')}"
    click.echo(
        f"{text}, Python {sys.version.split()[0]}, Linux {os.uname().release}"
        if wanted == "raw"
        else text
    )
    ctx.exit()


def _apply(flags: Iterable[Flag], command: Command) -> Command:
    for flag in reversed(tuple(flags)):  # click lists the last one added first
        command = flag.option()(command)
    return command
