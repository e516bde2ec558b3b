import json
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.configuration import config, configfile
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.configuration.duration import MILLISECOND, SECOND, Duration
from nftproxy.errors import ConfigError

HEAD = f"apiVersion: {config.API_VERSION}\nkind: {config.KIND}\n"

# As kubeadm writes it for an IPv4 control plane with a pod subnet.
KUBEADM = (
    HEAD
    + """
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""
)

# The whole of contract 8.2 for this mode, as plain values.
DEFAULTS = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "featureGates": {},
    "clientConnection": {
        "kubeconfig": "",
        "acceptContentTypes": "",
        "contentType": "application/vnd.kubernetes.protobuf",
        "qps": 5,
        "burst": 10,
    },
    "logging": {
        "format": "text",
        "flushFrequency": "5s",
        "verbosity": 0,
        "vmodule": [],
        "options": {
            "text": {"splitStream": False, "infoBufferSize": "0"},
            "json": {"splitStream": False, "infoBufferSize": "0"},
        },
    },
    "hostnameOverride": "",
    "bindAddress": "0.0.0.0",  # noqa: S104
    "healthzBindAddress": "0.0.0.0:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    "bindAddressHardFail": False,
    "enableProfiling": False,
    "showHiddenMetricsForVersion": "",
    "mode": "nftables",
    "iptables": {
        "masqueradeBit": 14,
        "masqueradeAll": False,
        "localhostNodePorts": True,
        "syncPeriod": "0s",
        "minSyncPeriod": "0s",
    },
    "ipvs": {
        "syncPeriod": "0s",
        "minSyncPeriod": "0s",
        "scheduler": "",
        "excludeCIDRs": None,
        "strictARP": False,
        "tcpTimeout": "0s",
        "tcpFinTimeout": "0s",
        "udpTimeout": "0s",
    },
    "nftables": {
        "masqueradeBit": 14,
        "masqueradeAll": False,
        "syncPeriod": "30s",
        "minSyncPeriod": "50ms",
    },
    "winkernel": {
        "networkName": "",
        "sourceVip": "",
        "enableDSR": False,
        "rootHnsEndpointName": "",
        "forwardHealthCheckVip": False,
    },
    "detectLocalMode": "ClusterCIDR",
    "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""},
    "clusterCIDR": "",
    "nodePortAddresses": ["primary"],
    "oomScoreAdj": -999,
    "conntrack": {
        "maxPerCore": 32768,
        "min": 131072,
        "tcpEstablishedTimeout": "24h0m0s",
        "tcpCloseWaitTimeout": "1h0m0s",
        "tcpBeLiberal": False,
        "udpTimeout": "0s",
        "udpStreamTimeout": "0s",
    },
    "configSyncPeriod": "15m0s",
    "portRange": "",
    "windowsRunAsService": False,
}


def load(fields: str) -> KubeProxyConfiguration:
    """The effective configuration of a file with these fields, which must give no warning."""
    loaded, warnings = configfile.load(HEAD + fields, "test.yaml")
    assert warnings == []
    return loaded


def warnings_of(fields: str) -> list[str]:
    return configfile.load(HEAD + fields, "test.yaml")[1]


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configfile.load(text, "test.yaml")
    return caught.value.problems


@pytest.mark.contract("8.2", "8.1.5")
def test_defaults_of_every_field() -> None:
    assert config.dump(config.build()) == DEFAULTS


@pytest.mark.contract("10.3.5")
def test_a_kubeadm_file_sets_only_what_it_means_to_set() -> None:
    assert config.dump(load(KUBEADM.removeprefix(HEAD))) == {
        **DEFAULTS,
        "clientConnection": {
            **DEFAULTS["clientConnection"],  # type: ignore[dict-item]
            "kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf",
        },
        "clusterCIDR": "10.244.0.0/16",
    }


@pytest.mark.contract("8.1.3")
@pytest.mark.parametrize("indent", [None, 2, "\t"], ids=["one line", "pretty", "tabs"])
def test_json_is_read_like_yaml(indent: int | str | None) -> None:
    text = json.dumps(yaml.safe_load(KUBEADM), indent=indent)
    assert configfile.load(text, "test.json") == configfile.load(KUBEADM, "test.yaml")


@pytest.mark.contract("8.1.3")
def test_yaml_flow_style_may_begin_with_a_brace() -> None:
    text = f"{{apiVersion: {config.API_VERSION}, kind: {config.KIND}, clusterCIDR: 10.0.0.0/8}}"
    assert configfile.load(text, "test.yaml")[0].cluster_cidr == "10.0.0.0/8"


KEPT_OR_NOT = {
    "masqueradeBit 0 is a bit": (
        "nftables: {masqueradeBit: 0}",
        lambda c: c.nftables.masquerade_bit == 0,
    ),
    "oomScoreAdj 0 is a score": ("oomScoreAdj: 0", lambda c: c.oom_score_adj == 0),
    "conntrack maxPerCore 0 is kept": (
        "conntrack: {maxPerCore: 0}",
        lambda c: c.conntrack.max_per_core == 0,
    ),
    "conntrack min 0 is kept": ("conntrack: {min: 0}", lambda c: c.conntrack.min == 0),
    "conntrack timeout 0s is kept": (
        "conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}",
        lambda c: c.conntrack.tcp_established_timeout == c.conntrack.tcp_close_wait_timeout == 0,
    ),
    "conntrack null is the default": (
        "conntrack: {maxPerCore: null}",
        lambda c: c.conntrack.max_per_core == 32768,
    ),
    "localhostNodePorts false is kept": (
        "iptables: {localhostNodePorts: false}",
        lambda c: not c.iptables.localhost_node_ports,
    ),
    "syncPeriod 0s is the default": (
        "nftables: {syncPeriod: 0s}",
        lambda c: c.nftables.sync_period == 30 * SECOND,
    ),
    "minSyncPeriod 0s is our default": (
        "nftables: {minSyncPeriod: 0s}",
        lambda c: c.nftables.min_sync_period == 50 * MILLISECOND,
    ),
    "minSyncPeriod 1s is obeyed": (
        "nftables: {minSyncPeriod: 1s}",
        lambda c: c.nftables.min_sync_period == SECOND,
    ),
    "minSyncPeriod 1ns is obeyed": (
        "nftables: {minSyncPeriod: 1ns}",
        lambda c: c.nftables.min_sync_period == 1,
    ),
    "qps and burst 0 are the defaults": (
        "clientConnection: {qps: 0, burst: 0}",
        lambda c: (c.client_connection.qps, c.client_connection.burst) == (5, 10),
    ),
    "an empty list of addresses is primary": (
        "nodePortAddresses: []",
        lambda c: c.node_port_addresses == ("primary",),
    ),
    "a null section is no section": (
        "conntrack: null\nlogging: null",
        lambda c: c == config.build(),
    ),
    "flushFrequency counts nanoseconds": (
        "logging: {flushFrequency: 2000000000}",
        lambda c: c.logging.flush_frequency == 2 * SECOND,
    ),
    "flushFrequency as text": (
        "logging: {flushFrequency: 1m}",
        lambda c: c.logging.flush_frequency == 60 * SECOND,
    ),
    "an empty mode is ours": ('mode: ""', lambda c: c.mode == "nftables"),
}


@pytest.mark.contract("1.1.10", "8.2", "9.1", "9.16", "10.3.5")
@pytest.mark.parametrize(("fields", "holds"), KEPT_OR_NOT.values(), ids=KEPT_OR_NOT)
def test_zero_values_count_as_not_set_unless_they_mean_something(
    fields: str, holds: object
) -> None:
    assert callable(holds)
    assert holds(load(fields))


ADDRESSES = {
    "IPv4 by default": ("", "0.0.0.0:10256", "127.0.0.1:10249"),
    "IPv6 with an IPv6 bindAddress": ("bindAddress: 'fd00::1'", "[::]:10256", "[::1]:10249"),
    "IPv6 as kubeadm writes it": ("bindAddress: '::'", "[::]:10256", "[::1]:10249"),
    "explicit ones do not follow bindAddress": (
        "bindAddress: '::'\nhealthzBindAddress: 0.0.0.0:10256\nmetricsBindAddress: 0.0.0.0:1",
        "0.0.0.0:10256",
        "0.0.0.0:1",
    ),
    "missing ports are appended": (
        "healthzBindAddress: 10.0.0.1\nmetricsBindAddress: 'fd00::1'",
        "10.0.0.1:10256",
        "[fd00::1]:10249",
    ),
    "nonsense is left for validation": (
        "healthzBindAddress: localhost\nmetricsBindAddress: '[::]'",
        "localhost",
        "[::]",
    ),
}


@pytest.mark.contract("8.2", "7.1.1", "7.3.1")
@pytest.mark.parametrize(("fields", "healthz", "metrics"), ADDRESSES.values(), ids=ADDRESSES)
def test_server_addresses(fields: str, healthz: str, metrics: str) -> None:
    loaded = load(fields)
    assert (loaded.healthz_bind_address, loaded.metrics_bind_address) == (healthz, metrics)


def test_an_unquoted_ipv6_address_is_no_sexagesimal_number() -> None:
    assert load("bindAddress: 2001:10:20:30:40:50:1:1").bind_address == "2001:10:20:30:40:50:1:1"
    assert load("oomScoreAdj: -12").oom_score_adj == -12
    assert load("clientConnection: {qps: 2.5}").client_connection.qps == 2.5


WARNED = {
    "unknown field": ("bogus: 1", ["test.yaml: bogus: unknown field, ignored"]),
    "unknown field in a section": (
        "nftables: {colour: red}",
        ["test.yaml: nftables.colour: unknown field, ignored"],
    ),
    "wrong case is unknown": (
        "clusterCidr: 10.0.0.0/8",
        ["test.yaml: clusterCidr: unknown field, ignored"],
    ),
    "a field that is no text": ("1: 2", ["test.yaml: 1: unknown field, ignored"]),
    "duplicate field": (
        "oomScoreAdj: 1\noomScoreAdj: 2",
        ["test.yaml: line 4: duplicate field 'oomScoreAdj', the last one counts"],
    ),
    "duplicate in a section": (
        "nftables:\n  masqueradeBit: 1\n  masqueradeBit: 2",
        ["test.yaml: line 5: duplicate field 'masqueradeBit', the last one counts"],
    ),
    "second document": (
        "---\nkind: Service",
        ["test.yaml: only the first of several documents is used"],
    ),
    "setting of another mode": (
        "iptables: {masqueradeAll: true, masqueradeBit: 0}",
        [
            (
                "test.yaml: iptables.masqueradeBit: has no effect in nftables mode; set "
                "nftables.masqueradeBit"
            ),
            (
                "test.yaml: iptables.masqueradeAll: has no effect in nftables mode; set "
                "nftables.masqueradeAll"
            ),
        ],
    ),
}


@pytest.mark.contract("8.1.3")
@pytest.mark.parametrize(("fields", "expected"), WARNED.values(), ids=WARNED)
def test_is_ignored_with_a_warning(fields: str, expected: list[str]) -> None:
    assert warnings_of(fields) == expected


@pytest.mark.contract("8.1.3")
def test_of_duplicates_the_last_counts() -> None:
    assert configfile.load(HEAD + "oomScoreAdj: 1\noomScoreAdj: 2", "f")[0].oom_score_adj == 2
    text = f'{{"apiVersion": "{config.API_VERSION}", "kind": "{config.KIND}", "oomScoreAdj": 1, "oomScoreAdj": 2}}'  # noqa: E501
    loaded, warnings = configfile.load(text, "f")
    assert loaded.oom_score_adj == 2
    assert warnings == ["f: duplicate field 'oomScoreAdj', the last one counts"]


MALFORMED = {
    "empty": "",
    "a list": "- a",
    "a word": "hello",
    "not YAML": "a: [",
    "a control character": "a: \0",
    "an object of Python": HEAD + "bindAddress: !!python/object:os.system {}",
    "a key that is a map": HEAD + "? {a: b}\n: c",
    "an alias that is not there": HEAD + "x: *nowhere",
    "deep lists": HEAD + "x: " + "[" * 100_000,
    "deep JSON": "{" * 100_000,
    "a number of 5000 digits": HEAD + "oomScoreAdj: " + "1" * 5000,
    "another kind": f"apiVersion: {config.API_VERSION}\nkind: KubeletConfiguration",
    "another version": f"apiVersion: kubeproxy.config.k8s.io/v1beta9\nkind: {config.KIND}",
    "no kind": f"apiVersion: {config.API_VERSION}",
}


@pytest.mark.contract("8.1.3")
@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_configuration_is_one_clear_error(text: str) -> None:
    for problem in problems_of(text):
        assert problem.startswith("test.yaml: ")
        assert "\n" not in problem
        assert len(problem) < 250


@pytest.mark.contract("8.1.3")
def test_wrong_types_are_found_all_at_once_with_their_paths() -> None:
    fields = """
oomScoreAdj: low
clusterCIDR: 10
nftables: 3
enableProfiling: "true"
ipvs: {syncPeriod: 5, excludeCIDRs: [1]}
featureGates: {AllAlpha: 3}
conntrack: {min: 99999999999}
logging: {vmodule: [{verbosity: a}]}
configSyncPeriod: 5x
"""
    assert [problem.split(": ", 2)[1:] for problem in problems_of(HEAD + fields)] == [
        ["oomScoreAdj", "expected `int`, got `str`"],
        ["clusterCIDR", "expected `str`, got `int`"],
        ["nftables", "expected a section of fields, got 3"],
        ["enableProfiling", "expected `bool`, got `str`"],
        ["ipvs.syncPeriod", "expected a duration such as 30s, got 5"],
        ["ipvs.excludeCIDRs[0]", "expected `str`, got `int`"],
        ["featureGates[...]", "expected `bool`, got `int`"],
        ["conntrack.min", "expected `int` <= 2147483647"],
        ["logging.vmodule[0].verbosity", "expected `int`, got `str`"],
        ["configSyncPeriod", "'5x' is not a duration such as 30s, 1h30m or 100ms"],
    ]


@pytest.mark.contract("8.1.3")
@pytest.mark.parametrize(
    "content", [None, b"\xff\xfe\x00", b"kind: x"], ids=["missing", "not text", "wrong kind"]
)
def test_an_unusable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.conf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        configfile.read_file(path)
    assert caught.value.hint


@pytest.mark.contract("8.1.5")
def test_only_the_section_of_the_mode_shows_periods_and_masquerade_all() -> None:
    loaded, _ = configfile.load(
        HEAD + "iptables: {masqueradeAll: true, syncPeriod: 1h}\nipvs: {minSyncPeriod: 1h}", "f"
    )
    dumped = config.dump(loaded)
    for section in ("iptables", "ipvs"):
        assert dumped[section]["syncPeriod"] == dumped[section]["minSyncPeriod"] == "0s"
    assert dumped["iptables"]["masqueradeAll"] is False
    assert "masqueradeAll" not in dumped["ipvs"]
    assert dumped["nftables"]["syncPeriod"] == "30s"


@pytest.mark.contract("8.1.5")
def test_the_dump_is_plain_values_that_json_can_carry() -> None:
    assert json.loads(json.dumps(config.dump(config.build()))) == DEFAULTS


def test_the_dump_shows_fields_of_ours_that_are_set() -> None:
    loaded, warnings = configfile.load(HEAD + "nftables: {noMasqueradeCIDRs: [172.16.0.0/12]}", "f")
    assert warnings == []
    assert config.dump(loaded)["nftables"]["noMasqueradeCIDRs"] == ["172.16.0.0/12"]
    assert "noMasqueradeCIDRs" not in config.dump(config.build())["nftables"]


def test_later_layers_win_field_by_field() -> None:
    built = config.build(
        {
            "nftables": {"masqueradeAll": True, "masqueradeBit": 3},
            "featureGates": {"AllAlpha": True},
        },
        {"nftables": {"masqueradeBit": 4}, "featureGates": {"AllBeta": False}},
    )
    assert (built.nftables.masquerade_all, built.nftables.masquerade_bit) == (True, 4)
    assert built.feature_gates == {"AllAlpha": True, "AllBeta": False}


def test_building_leaves_the_layers_alone() -> None:
    file = {"nftables": {"masqueradeBit": 3}, "nodePortAddresses": []}
    config.build(file, {"nftables": {"masqueradeBit": 4}})
    assert file == {"nftables": {"masqueradeBit": 3}, "nodePortAddresses": []}


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
words = texts.filter(bool)
int32 = st.integers(-(2**31), 2**31 - 1)
periods = st.integers(1, 2**62).map(Duration)
durations = st.integers(-(2**62), 2**62).map(Duration)
sections = st.builds(
    KubeProxyConfiguration,
    feature_gates=st.dictionaries(words, st.booleans(), max_size=3),
    client_connection=st.builds(
        config.ClientConnection,
        kubeconfig=texts,
        content_type=words,
        qps=st.floats(0.5, 100),
        burst=int32.filter(bool),
    ),
    logging=st.builds(
        config.Logging,
        format=words,
        flush_frequency=periods,
        verbosity=int32,
        vmodule=st.lists(
            st.builds(config.VmoduleItem, file_pattern=texts, verbosity=int32), max_size=2
        ).map(tuple),
    ),
    hostname_override=texts,
    bind_address=words,
    healthz_bind_address=st.just("[fd00::1]:1"),
    metrics_bind_address=st.just("10.0.0.1:1"),
    mode=words,
    iptables=st.builds(
        config.IptablesSection, masquerade_bit=int32, localhost_node_ports=st.booleans()
    ),
    ipvs=st.builds(
        config.IpvsSection,
        scheduler=texts,
        exclude_cidrs=st.just(("10.0.0.0/8",)),
        tcp_timeout=durations,
    ),
    nftables=st.builds(
        config.Nftables,
        masquerade_bit=int32,
        masquerade_all=st.booleans(),
        reset_gone_endpoints=st.booleans(),
        sync_period=periods,
        min_sync_period=periods,
    ),
    detect_local=st.builds(config.DetectLocal, bridge_interface=texts, interface_name_prefix=texts),
    cluster_cidr=texts,
    node_port_addresses=st.lists(texts, min_size=1, max_size=3).map(tuple),
    oom_score_adj=int32,
    conntrack=st.builds(
        config.ConntrackSection,
        max_per_core=int32,
        min=int32,
        tcp_established_timeout=durations,
        udp_timeout=durations,
    ),
    config_sync_period=periods,
)


@pytest.mark.contract("8.1.5", "8.1.3")
@given(sections)
def test_what_is_written_reads_back_the_same(written: KubeProxyConfiguration) -> None:
    assert configfile.load(configfile.to_yaml(written), "f")[0] == written
    assert configfile.load(json.dumps(config.dump(written)), "f")[0] == written


@given(st.binary().map(lambda junk: junk.decode("utf-8", "replace")) | st.text())
def test_junk_is_a_config_error(junk: str) -> None:
    with pytest.raises(ConfigError):
        configfile.load(junk, "f")
    problems: list[str] = []
    try:
        configfile.load(HEAD + junk, "f")
    except ConfigError as error:
        problems = error.problems
    assert all("\n" not in problem for problem in problems)


def test_structs_are_immutable() -> None:
    with pytest.raises(AttributeError):
        config.build().mode = "ipvs"  # type: ignore[misc]
    assert msgspec.structs.replace(config.build(), mode="x").mode == "x"
