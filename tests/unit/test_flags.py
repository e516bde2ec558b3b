import ast
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from loguru import logger

from nftproxy import log
from nftproxy.configuration import config, effective, flags, validation
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.configuration.duration import MILLISECOND, MINUTE, SECOND
from nftproxy.errors import ConfigError
from tests.support.paths import ROOT

FILE = f"""
apiVersion: {config.API_VERSION}
kind: {config.KIND}
clusterCIDR: 10.244.0.0/16
hostnameOverride: from-file
nftables: {{masqueradeAll: true, minSyncPeriod: 2s}}
logging: {{format: json, verbosity: 1, vmodule: [{{filePattern: file, verbosity: 1}}]}}
"""

Options = Callable[[Callable[..., Any]], Callable[..., Any]]


def parse(options: Options, *arguments: str) -> dict[str, Any]:
    """The parameters a command with these options receives."""
    received: dict[str, Any] = {}

    @click.command(context_settings=flags.CONTEXT_SETTINGS)
    @options
    def command(**values: Any) -> None:
        received.update(values)

    command.main(list(arguments), standalone_mode=False)
    return received


def refusal(options: Options, *arguments: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        parse(options, *arguments)
    return caught.value.format_message()


def output(options: Options, *arguments: str) -> str:
    command = click.command(context_settings=flags.CONTEXT_SETTINGS)(options(lambda **_: None))
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0
    return result.output


def kube_proxy(*arguments: str) -> KubeProxyConfiguration:
    """The configuration of `kube-proxy` with these flags and no file."""
    built, warnings = effective.kube_proxy(parse(flags.kube_proxy_options, *arguments))
    assert warnings == []
    return built


def node(*arguments: str) -> KubeProxyConfiguration:
    """The configuration of `run` with these flags."""
    built, warnings = effective.node(parse(flags.node_options, *arguments))
    assert warnings == []
    return built


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "config.conf"
    path.write_text(FILE)
    return f"--config={path}"


# Every flag of contract 8.4 with a value, the field it sets, and that value as the file spells it.
SETS: dict[str, tuple[str, object]] = {
    "--kubeconfig=/k": ("clientConnection.kubeconfig", "/k"),
    "--kube-api-content-type=application/json": (
        "clientConnection.contentType",
        "application/json",
    ),
    "--kube-api-burst=7": ("clientConnection.burst", 7),
    "--kube-api-qps=2.5": ("clientConnection.qps", 2.5),
    "--hostname-override=n": ("hostnameOverride", "n"),
    "--bind-address=10.0.0.1": ("bindAddress", "10.0.0.1"),
    "--healthz-bind-address=10.0.0.1:5": ("healthzBindAddress", "10.0.0.1:5"),
    "--metrics-bind-address=10.0.0.1": ("metricsBindAddress", "10.0.0.1:10249"),
    "--bind-address-hard-fail": ("bindAddressHardFail", True),
    "--profiling": ("enableProfiling", True),
    "--show-hidden-metrics-for-version=1.35": ("showHiddenMetricsForVersion", "1.35"),
    "--proxy-mode=ipvs": ("mode", "ipvs"),
    "--masquerade-all": ("nftables.masqueradeAll", True),
    "--no-masquerade-cidrs=172.16.0.0/12,fd00:172::/32": (
        "nftables.noMasqueradeCIDRs",
        ["172.16.0.0/12", "fd00:172::/32"],
    ),
    "--reset-gone-endpoints": ("nftables.resetGoneEndpoints", True),
    "--iptables-masquerade-bit=3": ("iptables.masqueradeBit", 3),
    "--iptables-localhost-nodeports=false": ("iptables.localhostNodePorts", False),
    "--iptables-sync-period=1m": ("nftables.syncPeriod", "1m0s"),
    "--iptables-min-sync-period=1s": ("nftables.minSyncPeriod", "1s"),
    "--ipvs-scheduler=rr": ("ipvs.scheduler", "rr"),
    "--ipvs-exclude-cidrs=10.0.0.0/8,11.0.0.0/8": (
        "ipvs.excludeCIDRs",
        ["10.0.0.0/8", "11.0.0.0/8"],
    ),
    "--ipvs-strict-arp": ("ipvs.strictARP", True),
    "--ipvs-tcp-timeout=1s": ("ipvs.tcpTimeout", "1s"),
    "--ipvs-tcpfin-timeout=2s": ("ipvs.tcpFinTimeout", "2s"),
    "--ipvs-udp-timeout=3s": ("ipvs.udpTimeout", "3s"),
    "--detect-local-mode=NodeCIDR": ("detectLocalMode", "NodeCIDR"),
    "--pod-bridge-interface=cni0": ("detectLocal.bridgeInterface", "cni0"),
    "--pod-interface-name-prefix=veth": ("detectLocal.interfaceNamePrefix", "veth"),
    "--cluster-cidr=10.0.0.0/8,fd00::/64": ("clusterCIDR", "10.0.0.0/8,fd00::/64"),
    "--nodeport-addresses=10.0.0.0/8,fd00::/64": ("nodePortAddresses", ["10.0.0.0/8", "fd00::/64"]),
    "--oom-score-adj=-5": ("oomScoreAdj", -5),
    "--conntrack-max-per-core=0": ("conntrack.maxPerCore", 0),
    "--conntrack-min=0x10": ("conntrack.min", 16),
    "--conntrack-tcp-timeout-established=0": ("conntrack.tcpEstablishedTimeout", "0s"),
    "--conntrack-tcp-timeout-close-wait=1h30m": ("conntrack.tcpCloseWaitTimeout", "1h30m0s"),
    "--conntrack-tcp-be-liberal": ("conntrack.tcpBeLiberal", True),
    "--conntrack-udp-timeout=1s": ("conntrack.udpTimeout", "1s"),
    "--conntrack-udp-timeout-stream=1s": ("conntrack.udpStreamTimeout", "1s"),
    "--config-sync-period=1m": ("configSyncPeriod", "1m0s"),
    "--feature-gates=AllAlpha=true,AllBeta=false": (
        "featureGates",
        {"AllAlpha": True, "AllBeta": False},
    ),
    "--v=4": ("logging.verbosity", 4),
    "--vmodule=sync=3,a*=4": (
        "logging.vmodule",
        [{"filePattern": "sync", "verbosity": 3}, {"filePattern": "a*", "verbosity": 4}],
    ),
    "--logging-format=json": ("logging.format", "json"),
    "--log-flush-frequency=1s": ("logging.flushFrequency", "1s"),
    "--log-text-split-stream": ("logging.options.text.splitStream", True),
    "--log-text-info-buffer-size=64Ki": ("logging.options.text.infoBufferSize", "64Ki"),
    "--log-json-split-stream": ("logging.options.json.splitStream", True),
    "--log-json-info-buffer-size=1": ("logging.options.json.infoBufferSize", "1"),
}

NO_FIELD = {
    "--config=/c": ("config", "/c"),
    "--write-config-to=/w": ("write_config_to", "/w"),
    "--cleanup": ("cleanup", True),
    "--init-only=true": ("init_only", True),
    "--master=https://a": ("master", "https://a"),
    "--healthz-port=1": ("healthz_port", 1),
    "--metrics-port=2": ("metrics_port", 2),
    "--ipvs-sync-period=1s": ("ipvs_sync_period", SECOND),
    "--ipvs-min-sync-period=1s": ("ipvs_min_sync_period", SECOND),
    "--boot-id-file=/b": ("boot_id_file", "/b"),
    "--machine-id-file=/m": ("machine_id_file", "/m"),
}


def field(built: KubeProxyConfiguration, path: str) -> object:
    value: Any = config.dump(built)
    for name in path.split("."):
        value = value.get(name)  # one of ours that is not set is not shown
    return value


def spelled(value: object) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return str(value) if value not in (None, {}) else ""


@pytest.mark.contract("8.4")
@pytest.mark.parametrize(
    ("argument", "path", "value"), [(a, *case) for a, case in SETS.items()], ids=SETS
)
def test_sets_its_field_and_no_other(argument: str, path: str, value: object) -> None:
    built = kube_proxy(argument)
    assert field(built, path) == value
    assert field(config.build(), path) != value
    top = path.partition(".")[0]
    others = {name: other for name, other in config.dump(built).items() if name != top}
    assert others == {
        name: other for name, other in config.dump(config.build()).items() if name != top
    }


@pytest.mark.contract("8.4")
@pytest.mark.parametrize(
    ("argument", "parameter", "value"), [(a, *case) for a, case in NO_FIELD.items()], ids=NO_FIELD
)
def test_is_handed_to_the_command(argument: str, parameter: str, value: object) -> None:
    assert parse(flags.kube_proxy_options, argument)[parameter] == value


@pytest.mark.contract("8.4")
def test_these_cases_are_all_flags() -> None:
    tested = {argument.removeprefix("--").partition("=")[0] for argument in (*SETS, *NO_FIELD)}
    assert tested == {flag.name for flag in flags.FLAGS}


@pytest.mark.contract("8.4", "8.2")
def test_no_flags_are_the_defaults() -> None:
    assert kube_proxy() == config.build()


@pytest.mark.contract("8.4")
def test_defaults_told_in_help_are_those_of_the_configuration() -> None:
    built = config.build()
    told = {
        flag.name: flag.default
        for flag in flags.FLAGS
        if flag.field and flag.name != "hostname-override"
    }
    told["reset-gone-endpoints"] = ""  # not shown where it is not set
    assert told == {
        flag.name: spelled(field(built, flag.field)) for flag in flags.FLAGS if flag.name in told
    }


CARRIERS = {
    "config",
    "configfile",
    "duration",
    "effective",
    "featuregates",
    "flags",
    "gotypes",
    "validation",
}
"""Modules of `configuration` that read, check and print fields, and do nothing else with them."""
ELSEWHERE = {"proxy-mode": "validation refuses all modes but one, which is its effect"}


@cache
def fields_read() -> set[str]:
    """The names of attributes that the program reads, other than to carry the configuration."""
    return {
        node.attr
        for path in (ROOT / "nftproxy").rglob("*.py")
        if not (path.parent.name == "configuration" and path.stem in CARRIERS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def attribute(path: str) -> str:
    """The name in Python of the field that the configuration file calls by this path."""
    section, names = KubeProxyConfiguration, path.split(".")
    for name in names:
        found = next(each for each in msgspec.structs.fields(section) if each.encode_name == name)
        section = found.type
    return found.name


@pytest.mark.parametrize("flag", [*flags.FLAGS, flags._OURS], ids=lambda flag: flag.name)
def test_a_flag_has_an_effect_or_its_help_denies_it(flag: flags.Flag) -> None:
    if flag.help.startswith("Accepted without effect") or flag.name in ELSEWHERE:
        return
    if flag.field:
        assert attribute(flag.field) in fields_read()
    else:
        source = "".join(
            path.read_text()
            for path in (ROOT / "nftproxy").rglob("*.py")
            if path.name != "flags.py"
        )
        assert f'"{flag.parameter}"' in source


def test_verbosity_does_what_its_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert "; 4 and more add lines for debugging." in next(
        flag.help for flag in flags.FLAGS if flag.name == "v"
    )
    for verbosity, added in ((0, False), (3, False), (4, True), (9, True)):
        log.start(verbosity=verbosity)
        logger.debug("a line for debugging")
        assert ("a line for debugging" in capsys.readouterr().err) is added
    logger.remove()


SPELLINGS: dict[str, tuple[list[str], dict[str, object]]] = {
    "underscores": (
        ["--masquerade_all", "--cluster_cidr=10.0.0.0/8"],
        {"masquerade_all": True, "cluster_cidr": "10.0.0.0/8"},
    ),
    "a value in the next word": (["--cluster-cidr", "10.0.0.0/8"], {"cluster_cidr": "10.0.0.0/8"}),
    "a boolean alone": (
        ["--masquerade-all", "--profiling"],
        {"masquerade_all": True, "profiling": True},
    ),
    "a boolean with a value": (
        ["--cleanup=true", "--masquerade-all=false"],
        {"cleanup": True, "masquerade_all": False},
    ),
    "Go's other booleans": (
        ["--cleanup=1", "--masquerade-all=F"],
        {"cleanup": True, "masquerade_all": False},
    ),
    "the last one counts": (
        ["--masquerade-all", "--masquerade-all=false"],
        {"masquerade_all": False},
    ),
    "-v 2": (["-v", "2"], {"v": 2}),
    "-v=2": (["-v=2"], {"v": 2}),
    "-v2": (["-v2"], {"v": 2}),
    "--v 2": (["--v", "2"], {"v": 2}),
    "a fraction of a duration": (
        ["--config-sync-period=1.5m"],
        {"config_sync_period": 90 * SECOND},
    ),
}


@pytest.mark.contract("8.1.1", "8.4")
@pytest.mark.parametrize(("arguments", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(arguments: list[str], expected: dict[str, object]) -> None:
    received = parse(flags.kube_proxy_options, *arguments)
    assert {name: value for name, value in received.items() if value not in (None, ())} == expected


@pytest.mark.contract("8.4")
def test_lists_and_maps_may_come_in_pieces() -> None:
    built = kube_proxy(
        *("--nodeport-addresses=10.0.0.0/8,11.0.0.0/8", "--nodeport-addresses=fd00::/64"),
        *("--feature-gates=AllAlpha=true", "--feature-gates=AllBeta=false"),
        *("--vmodule=a=1", "--vmodule=b=2"),
    )
    assert built.node_port_addresses == ("10.0.0.0/8", "11.0.0.0/8", "fd00::/64")
    assert built.feature_gates == {"AllAlpha": True, "AllBeta": False}
    assert [item.file_pattern for item in built.logging.vmodule] == ["a", "b"]


REFUSED = {
    "--masquerade-all=maybe": "Invalid value for '--masquerade-all': 'maybe' is neither true "
    "nor false",
    "--config-sync-period=3": "Invalid value for '--config-sync-period': '3' is not a duration "
    "such as 30s, 1h30m or 100ms",
    "--oom-score-adj=low": "Invalid value for '--oom-score-adj': 'low' is not an integer",
    "--oom-score-adj=3000000000": "Invalid value for '--oom-score-adj': 3000000000 does not fit "
    "into 32 bits",
    "--kube-api-qps=x": "Invalid value for '--kube-api-qps': 'x' is not a number",
    "--feature-gates=A": "Invalid value for '--feature-gates': 'A' is not of the form NAME=true "
    "or NAME=false",
    "--feature-gates=A=5": "Invalid value for '--feature-gates': '5' is neither true nor false",
    "--vmodule=a": "Invalid value for '--vmodule': 'a' is not of the form PATTERN=LEVEL",
    "argument": "Got unexpected extra argument (argument)",
}


@pytest.mark.contract("8.4", "8.1.1")
@pytest.mark.parametrize(("argument", "message"), REFUSED.items(), ids=REFUSED)
def test_refuses_with_the_name_of_the_flag(argument: str, message: str) -> None:
    assert refusal(flags.kube_proxy_options, argument) == message


@pytest.mark.contract("8.4")
def test_empty_values_keep_the_defaults() -> None:
    names = (
        "bind-address",
        "healthz-bind-address",
        "metrics-bind-address",
        "hostname-override",
        "proxy-mode",
        "detect-local-mode",
    )
    empty = (
        *(f"--{name}=" for name in names),
        "--nodeport-addresses=",
        "--feature-gates=",
        "--vmodule=",
    )
    assert kube_proxy(*empty) == config.build()


PORTS: dict[str, tuple[list[str], tuple[str, str]]] = {
    "the default addresses have one": (
        ["--healthz-port=1", "--metrics-port=2"],
        ("0.0.0.0:10256", "127.0.0.1:10249"),
    ),
    "an address without": (
        [
            "--healthz-bind-address=10.0.0.1",
            "--healthz-port=1",
            "--metrics-bind-address=fd00::1",
            "--metrics-port=2",
        ],
        ("10.0.0.1:1", "[fd00::1]:2"),
    ),
    "an address with one": (
        ["--healthz-bind-address=10.0.0.1:5", "--healthz-port=1"],
        ("10.0.0.1:5", "127.0.0.1:10249"),
    ),
    "0 switches off": (["--healthz-port=0", "--metrics-port=0"], ("", "")),
    "0 switches off an explicit address": (
        ["--healthz-bind-address=10.0.0.1:5", "--healthz-port=0"],
        ("", "127.0.0.1:10249"),
    ),
    "ignored with --write-config-to": (
        ["--healthz-port=0", "--write-config-to=x"],
        ("0.0.0.0:10256", "127.0.0.1:10249"),
    ),
    "an IPv6 node": (["--bind-address=fd00::1"], ("[::]:10256", "[::1]:10249")),
}


@pytest.mark.contract("8.4", "7.1.1")
@pytest.mark.parametrize(("arguments", "expected"), PORTS.values(), ids=PORTS)
def test_deprecated_ports(arguments: list[str], expected: tuple[str, str]) -> None:
    built = kube_proxy(*arguments)
    assert (built.healthz_bind_address, built.metrics_bind_address) == expected


@pytest.mark.contract("8.3.7", "8.4")
def test_the_metrics_server_cannot_be_switched_off() -> None:
    assert validation.problems(kube_proxy("--healthz-port=0", "--metrics-port=0")) == [
        "metricsBindAddress: '' is not IP:port with a port within 1..65535"
    ]


@pytest.mark.contract("8.2", "8.4")
@pytest.mark.parametrize(
    ("period", "expected"), [("0", 0), ("50ms", 50 * MILLISECOND), ("1m", MINUTE)]
)
def test_an_explicit_pause_between_syncs_is_obeyed(period: str, expected: int) -> None:
    assert kube_proxy(f"--iptables-min-sync-period={period}").nftables.min_sync_period == expected
    assert node(f"--min-sync-period={period}").nftables.min_sync_period == expected


@pytest.mark.contract("8.1.4")
def test_a_file_makes_kube_proxy_ignore_other_flags_and_say_so(file: str) -> None:
    arguments = (
        "--cluster-cidr=10.0.0.0/8",
        "--masquerade-all=false",
        "--healthz-port=0",
        "--master=m",
        "--cleanup",
    )
    built, warnings = effective.kube_proxy(parse(flags.kube_proxy_options, file, *arguments))
    assert built == effective.kube_proxy(parse(flags.kube_proxy_options, file))[0]
    assert (built.cluster_cidr, built.nftables.masquerade_all) == ("10.244.0.0/16", True)
    assert warnings == [
        "--healthz-port: ignored, because --config is given",
        "--masquerade-all: ignored, because --config is given",
        "--cluster-cidr: ignored, because --config is given",
    ]


@pytest.mark.contract("8.1.4", "8.6.1")
def test_host_name_and_logging_flags_win_over_the_file(file: str) -> None:
    plain = kube_proxy(file)
    assert (plain.hostname_override, plain.logging.format, plain.logging.verbosity) == (
        "from-file",
        "json",
        1,
    )
    built = kube_proxy(
        file, "--hostname-override=flag", "-v=5", "--logging-format=text", "--vmodule=flag=9"
    )
    assert (built.hostname_override, built.logging.format, built.logging.verbosity) == (
        "flag",
        "text",
        5,
    )
    assert [item.file_pattern for item in built.logging.vmodule] == ["flag", "file"]
    assert kube_proxy(file, "--hostname-override=").hostname_override == "from-file"


def test_flags_of_run_win_over_the_file(file: str) -> None:
    built = node(
        file,
        "--cluster-cidr=10.0.0.0/8",
        "--masquerade-all=false",
        "--node-name=flag",
        "--masquerade-bit=3",
    )
    assert (built.cluster_cidr, built.nftables.masquerade_all, built.hostname_override) == (
        "10.0.0.0/8",
        False,
        "flag",
    )
    assert (built.nftables.masquerade_bit, built.nftables.min_sync_period) == (3, 2 * SECOND)


def test_run_takes_shorter_names_beside_those_of_kube_proxy() -> None:
    short = node("--node-name=n", "--sync-period=1m", "--min-sync-period=2s")
    assert short == node(
        "--hostname-override=n", "--iptables-sync-period=1m", "--iptables-min-sync-period=2s"
    )
    assert (short.hostname_override, short.nftables.sync_period) == ("n", MINUTE)


def test_run_takes_only_what_says_what_node_this_is() -> None:
    assert set(parse(flags.node_options)) == {
        *(
            "config",
            "hostname_override",
            "bind_address",
            "cluster_cidr",
            "nodeport_addresses",
            "feature_gates",
        ),
        *(
            "detect_local_mode",
            "pod_bridge_interface",
            "pod_interface_name_prefix",
            "masquerade_all",
            "reset_gone_endpoints",
            "masquerade_bit",
            "no_masquerade_cidrs",
        ),
        *("iptables_sync_period", "iptables_min_sync_period"),
    }


def test_other_parameters_of_a_command_do_not_matter() -> None:
    values = {**parse(flags.node_options, "--node-name=n"), "manifests": ("x",), "output": "json"}
    assert effective.node(values)[0].hostname_override == "n"


@pytest.mark.parametrize("merge", [effective.kube_proxy, effective.node])
def test_a_missing_file_is_a_config_error(merge: Callable[[flags.Values], object]) -> None:
    with pytest.raises(ConfigError, match="/nowhere: cannot be read"):
        merge({"config": "/nowhere"})


@pytest.mark.contract("8.1.3")
@pytest.mark.parametrize("merge", [effective.kube_proxy, effective.node])
def test_warnings_of_the_file_are_handed_on(
    merge: Callable[[flags.Values], tuple[KubeProxyConfiguration, list[str]]], tmp_path: Path
) -> None:
    path = tmp_path / "config.conf"
    path.write_text(FILE + "bogus: 1\n")
    assert merge({"config": str(path)})[1] == [f"{path}: bogus: unknown field, ignored"]


@pytest.mark.contract("8.4")
def test_version_and_help_print_and_exit_0() -> None:
    assert output(flags.kube_proxy_options, "--version").startswith("nftproxy ")
    assert "Python" in output(flags.kube_proxy_options, "--version=raw")
    assert output(flags.kube_proxy_options, "-h") == output(flags.kube_proxy_options, "--help")
    assert output(flags.kube_proxy_options, "--version=false") == ""


def test_help_says_which_source_wins() -> None:
    assert "Flags win over the file" in " ".join(output(flags.node_options, "--help").split())
    assert "are then ignored" in " ".join(output(flags.kube_proxy_options, "--help").split())


def test_loads_nothing_slow() -> None:
    code = (
        "import sys, nftproxy.configuration.flags; print([m for m in ('yaml', 'msgspec', "
        "'importlib.metadata') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
