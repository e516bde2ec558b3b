from typing import Any

import pytest

from nftproxy.address import Family, parse_network
from nftproxy.configuration import config, featuregates, validation
from nftproxy.errors import ConfigError

IPv4, IPv6 = Family.IPv4, Family.IPv6


def problems(fields: config.Sparse) -> list[str]:
    return validation.problems(config.build(fields))


NO_NETWORK = (
    "is not a CIDR such as 10.0.0.0/8 or fd00::/64, nor one of the words primary, localhost, all"
)
FAULTS: dict[str, tuple[str, config.Sparse, list[str]]] = {
    "unknown gate": (
        "8.3.1",
        {"featureGates": {"Bogus": True}},
        ["featureGates.Bogus: unknown feature gate"],
    ),
    "locked gate": (
        "8.3.1",
        {"featureGates": {"NFTablesProxyMode": False}},
        ["featureGates.NFTablesProxyMode: is locked to true"],
    ),
    "mark bit too high": (
        "8.3.2",
        {"nftables": {"masqueradeBit": 32}},
        ["nftables.masqueradeBit: 32 is not within 0..31"],
    ),
    "mark bit negative": (
        "8.3.2",
        {"nftables": {"masqueradeBit": -1}},
        ["nftables.masqueradeBit: -1 is not within 0..31"],
    ),
    "iptables mark bit, though unused": (
        "8.3.2",
        {"iptables": {"masqueradeBit": 32}},
        ["iptables.masqueradeBit: 32 is not within 0..31"],
    ),
    "oomScoreAdj": (
        "8.3.3",
        {"oomScoreAdj": -1001},
        ["oomScoreAdj: -1001 is not within -1000..1000"],
    ),
    "negative conntrack numbers": (
        "8.3.3",
        {"conntrack": {"maxPerCore": -1, "min": -2}},
        ["conntrack.maxPerCore: -1 is negative", "conntrack.min: -2 is negative"],
    ),
    "negative conntrack timeouts": (
        "8.3.3",
        {
            "conntrack": {
                "tcpEstablishedTimeout": "-1s",
                "tcpCloseWaitTimeout": "-1m",
                "udpTimeout": "-1h",
                "udpStreamTimeout": "-1ms",
            }
        },
        [
            "conntrack.tcpEstablishedTimeout: -1s is negative",
            "conntrack.tcpCloseWaitTimeout: -1m0s is negative",
            "conntrack.udpTimeout: -1h0m0s is negative",
            "conntrack.udpStreamTimeout: -1ms is negative",
        ],
    ),
    "iptables mode": (
        "8.3.4",
        {"mode": "iptables"},
        [
            (
                "mode: iptables is not available, nftproxy has the nftables mode only; set it to "
                "nftables or leave it empty"
            )
        ],
    ),
    "ipvs mode": (
        "8.3.4",
        {"mode": "ipvs"},
        [
            (
                "mode: ipvs is not available, nftproxy has the nftables mode only; set it to "
                "nftables or leave it empty"
            )
        ],
    ),
    "unknown mode": (
        "8.3.4",
        {"mode": "Nftables"},
        ["mode: 'Nftables' is unknown; set it to nftables or leave it empty"],
    ),
    "negative burst": (
        "8.3.4",
        {"clientConnection": {"burst": -1}},
        ["clientConnection.burst: -1 is negative"],
    ),
    "periods not above zero": (
        "8.3.5",
        {"configSyncPeriod": "-1s", "nftables": {"syncPeriod": "-1s", "minSyncPeriod": "-2s"}},
        [
            "configSyncPeriod: -1s is not above 0s",
            "nftables.syncPeriod: -1s is not above 0s",
            "nftables.minSyncPeriod: -2s is negative",
        ],
    ),
    "minSyncPeriod above syncPeriod": (
        "8.3.5",
        {"nftables": {"syncPeriod": "1s", "minSyncPeriod": "2s"}},
        ["nftables.minSyncPeriod: 2s is longer than syncPeriod, 1s"],
    ),
    "bindAddress in brackets": (
        "8.3.6",
        {"bindAddress": "[::]"},
        ["bindAddress: '[::]' is not a bare IP address such as 10.0.0.1 or fd00::1"],
    ),
    "bindAddress with a port": (
        "8.3.6",
        {"bindAddress": "1.2.3.4:5"},
        ["bindAddress: '1.2.3.4:5' is not a bare IP address such as 10.0.0.1 or fd00::1"],
    ),
    "empty metricsBindAddress": (
        "8.3.7",
        {"metricsBindAddress": ""},
        ["metricsBindAddress: '' is not IP:port with a port within 1..65535"],
    ),
    "entries that are no CIDR": (
        "8.3.8",
        {"nodePortAddresses": ["10.0.0.0/8", "10.0.0.1", "x"]},
        [
            f"nodePortAddresses[1]: '10.0.0.1' {NO_NETWORK}",
            f"nodePortAddresses[2]: 'x' {NO_NETWORK}",
        ],
    ),
    "sources that are no CIDR": (
        "8.3.8",
        {"nftables": {"noMasqueradeCIDRs": ["172.16.0.0/12", "x", "fd00::/129"]}},
        [
            "nftables.noMasqueradeCIDRs[1]: 'x' is not a CIDR such as 10.0.0.0/8 or fd00::/64",
            "nftables.noMasqueradeCIDRs[2]: 'fd00::/129' has an impossible prefix length",
        ],
    ),
    "a word in other letters": (
        "8.3.8",
        {"nodePortAddresses": ["primary", "Localhost"]},
        [f"nodePortAddresses[1]: 'Localhost' {NO_NETWORK}"],
    ),
    "unknown detector": (
        "8.3.9",
        {"detectLocalMode": "Guess"},
        [
            (
                "detectLocalMode: 'Guess' is not one of ClusterCIDR, NodeCIDR, BridgeInterface, "
                "InterfaceNamePrefix"
            )
        ],
    ),
    "no bridge": (
        "8.3.9",
        {"detectLocalMode": "BridgeInterface"},
        ["detectLocal.bridgeInterface: must not be empty in this detectLocalMode"],
    ),
    "no prefix": (
        "8.3.9",
        {"detectLocalMode": "InterfaceNamePrefix"},
        ["detectLocal.interfaceNamePrefix: must not be empty in this detectLocalMode"],
    ),
    "a bridge name that means something to nft": (
        "8.3.9",
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": 'x" accept'}},
        [
            (
                "detectLocal.bridgeInterface: 'x\" accept' is no interface name: 1 to 15 letters, "
                "digits, dots, dashes or underscores"
            )
        ],
    ),
    "a prefix of 16 characters": (
        "8.3.9",
        {
            "detectLocalMode": "InterfaceNamePrefix",
            "detectLocal": {"interfaceNamePrefix": "v" * 16},
        },
        [
            (
                "detectLocal.interfaceNamePrefix: 'vvvvvvvvvvvvvvvv' is no interface name: 1 to 15 "
                "letters, digits, dots, dashes or underscores"
            )
        ],
    ),
    "clusterCIDR with a blank": (
        "8.3.9",
        {"clusterCIDR": "10.0.0.0/8, fd00::/64"},
        ["clusterCIDR: ' fd00::/64' is not a CIDR such as 10.0.0.0/8 or fd00::/64"],
    ),
    "clusterCIDR of one family twice": (
        "8.3.9",
        {"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"},
        [
            (
                "clusterCIDR: '10.0.0.0/8,11.0.0.0/8' is neither one CIDR nor a pair of an IPv4 and "  # noqa: E501
                "an IPv6 one"
            )
        ],
    ),
    "three of clusterCIDR": (
        "8.3.9",
        {"clusterCIDR": "10.0.0.0/8,fd00::/64,fd01::/64"},
        [
            (
                "clusterCIDR: '10.0.0.0/8,fd00::/64,fd01::/64' is neither one CIDR nor a pair of an "  # noqa: E501
                "IPv4 and an IPv6 one"
            )
        ],
    ),
    "unknown log format": (
        "8.3.11",
        {"logging": {"format": "xml"}},
        ["logging.format: 'xml' is neither text nor json"],
    ),
    "vmodule with json": (
        "8.3.11",
        {"logging": {"format": "json", "vmodule": [{"filePattern": "a", "verbosity": 1}]}},
        ["logging.vmodule: works with the text format only"],
    ),
    "alpha options without their gate": (
        "8.3.11",
        {
            "logging": {
                "options": {"text": {"splitStream": True}, "json": {"infoBufferSize": "64Ki"}}
            }
        },
        [
            "logging.options.text.splitStream: is alpha and needs featureGates.LoggingAlphaOptions",
            (
                "logging.options.json.infoBufferSize: is alpha and needs "
                "featureGates.LoggingAlphaOptions"
            ),
        ],
    ),
    "a size that is none": (
        "8.3.11",
        {
            "featureGates": {"AllAlpha": True},
            "logging": {"options": {"text": {"infoBufferSize": "much"}}},
        },
        ["logging.options.text.infoBufferSize: 'much' is not a size such as 4096 or 64Ki"],
    ),
    "hidden metrics of another version": (
        "8.2",
        {"showHiddenMetricsForVersion": "1.30"},
        ["showHiddenMetricsForVersion: '1.30' is not 1.36, the only version possible"],
    ),
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(*case[1:], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in FAULTS.items()
    ],
)
def test_is_a_problem(fields: config.Sparse, expected: list[str]) -> None:
    assert problems(fields) == expected


SOUND: dict[str, tuple[str, config.Sparse]] = {
    "the defaults": ("8.3.1", {}),
    "a locked gate at its value": ("8.3.1", {"featureGates": {"MultiCIDRServiceAllocator": True}}),
    "a gate of another component": (
        "8.3.1",
        {"featureGates": {"MemoryQoS": True, "SidecarContainers": True, "EtcdRangeStream": True}},
    ),
    "a stable gate, which no component lists in its help": (
        "8.3.1",
        {"featureGates": {"JobManagedBy": True}},
    ),
    "a deprecated gate": ("8.3.1", {"featureGates": {"GitRepoVolumeDriver": False}}),
    "every gate of ours": (
        "8.3.1",
        {"featureGates": {name: gate.default for name, gate in featuregates.GATES.items()}},
    ),
    "the extreme bits": (
        "8.3.2",
        {"nftables": {"masqueradeBit": 31}, "iptables": {"masqueradeBit": 0}},
    ),
    "the extreme scores": ("8.3.3", {"oomScoreAdj": 1000}),
    "conntrack left alone": (
        "8.3.3",
        {"conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s"}},
    ),
    "nftables by name": ("8.3.4", {"mode": "nftables"}),
    "no pause between syncs": ("8.3.5", {"nftables": {"minSyncPeriod": "0s"}}),
    "equal periods": ("8.3.5", {"nftables": {"minSyncPeriod": "1s", "syncPeriod": "1s"}}),
    "periods of unused sections": (
        "8.3.5",
        {"iptables": {"minSyncPeriod": "1h"}, "ipvs": {"syncPeriod": "-1s"}},
    ),
    "a bare IPv6 address": ("8.3.6", {"bindAddress": "::"}),
    "no health server": ("8.3.7", {"healthzBindAddress": ""}),
    "a zero-length prefix": ("8.3.8", {"nodePortAddresses": ["0.0.0.0/0", "::/0"]}),
    "words and networks together": (
        "8.3.8",
        {"nodePortAddresses": ["primary", "10.0.0.0/8", "localhost", "all", "primary"]},
    ),
    "one network of either family": ("8.3.9", {"clusterCIDR": "fd00::/64"}),
    "one network of each family": ("8.3.9", {"clusterCIDR": "fd00::/64,10.0.0.0/8"}),
    "clusterCIDR is not looked at with NodeCIDR": (
        "8.3.9",
        {"detectLocalMode": "NodeCIDR", "clusterCIDR": "x"},
    ),
    "an interface": (
        "8.3.9",
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "br-a.1_2"}},
    ),
    "a prefix": (
        "8.3.9",
        {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
    ),
    "names of unused detectors": (
        "8.3.9",
        {"detectLocal": {"bridgeInterface": "no such name, surely"}},
    ),
    "the ipvs section is not looked at": (
        "8.3.10",
        {"ipvs": {"tcpTimeout": "-1s", "excludeCIDRs": ["x"]}},
    ),
    "alpha options with their gate": (
        "8.3.11",
        {
            "featureGates": {"LoggingAlphaOptions": True},
            "logging": {"options": {"text": {"splitStream": True, "infoBufferSize": "64Ki"}}},
        },
    ),
    "vmodule with text": (
        "8.3.11",
        {"logging": {"vmodule": [{"filePattern": "a", "verbosity": 1}]}},
    ),
    "hidden metrics of the previous version": ("8.2", {"showHiddenMetricsForVersion": "1.36"}),
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(case[1], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in SOUND.items()
    ],
)
def test_is_no_problem(fields: config.Sparse) -> None:
    assert problems(fields) == []


@pytest.mark.contract("8.3.7")
@pytest.mark.parametrize("field", ["healthzBindAddress", "metricsBindAddress"])
@pytest.mark.parametrize(
    ("address", "sound"),
    [
        ("10.0.0.1:1", True),
        ("[fd00::1]:65535", True),
        ("0.0.0.0:10256", True),
        ("localhost:10256", False),
        ("10.0.0.1:0", False),
        ("10.0.0.1:65536", False),
        ("10.0.0.1:http", False),
        ("10.0.0.1:", False),
        ("10.0.0.1:\u0668", False),
        ("[::]", False),
        ("fd00::1:10256x", False),
        ("[10.0.0.1]:1", False),
        (":10256", False),
        ("10.0.0.1:+1", False),
    ],
)
def test_server_addresses_are_ip_and_port(field: str, address: str, *, sound: bool) -> None:
    assert (problems({field: address}) == []) is sound


@pytest.mark.contract("8.3.1", "8.3.2", "8.3.3", "8.3.8")
def test_everything_is_reported_at_once() -> None:
    fields: dict[str, Any] = {
        "featureGates": {"Bogus": True},
        "mode": "ipvs",
        "nftables": {"masqueradeBit": 99},
        "oomScoreAdj": 5000,
        "bindAddress": "x",
        "nodePortAddresses": ["x"],
        "clusterCIDR": "x",
    }
    with pytest.raises(ConfigError) as caught:
        validation.require_valid(config.build(fields))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "featureGates.Bogus",
        "mode",
        "nftables.masqueradeBit",
        "oomScoreAdj",
        "bindAddress",
        "nodePortAddresses[0]",
        "clusterCIDR",
    ]


def test_a_sound_configuration_passes() -> None:
    validation.require_valid(config.build())


@pytest.mark.contract("8.3.1")
@pytest.mark.parametrize(
    ("gates", "name", "on"),
    [
        ({}, "AllowServiceExternalIPs", True),
        ({"AllowServiceExternalIPs": False}, "AllowServiceExternalIPs", False),
        ({"AllAlpha": False, "AllBeta": False}, "AllowServiceExternalIPs", True),
        ({}, "NativeHistograms", True),
        ({"AllBeta": False}, "NativeHistograms", False),
        ({}, "KubeProxyNFTablesLocalhostNodePorts", False),
        ({"AllAlpha": True}, "KubeProxyNFTablesLocalhostNodePorts", True),
        (
            {"AllAlpha": True, "KubeProxyNFTablesLocalhostNodePorts": False},
            "KubeProxyNFTablesLocalhostNodePorts",
            False,
        ),
        ({}, "KubeProxyIPVS", True),
        ({"AllBeta": False}, "NFTablesNetlink", False),
        ({"AllBeta": False}, "ComponentFlagz", False),
        ({"AllBeta": False, "ComponentStatusz": True}, "ComponentStatusz", True),
        ({"AllBeta": False}, "NFTablesProxyMode", True),
    ],
)
def test_gates_are_what_is_set_or_their_default(
    gates: dict[str, bool], name: str, *, on: bool
) -> None:
    assert featuregates.enabled(gates, name) is on


@pytest.mark.contract("8.3.1")
def test_no_gate_is_in_both_tables() -> None:
    assert not featuregates.ELSEWHERE & featuregates.GATES.keys()


WARNED: dict[str, tuple[config.Sparse, tuple[Family, ...], list[str], list[str], list[str]]] = {
    "nothing doubtful": (
        {"clusterCIDR": "10.1.0.0/16"},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        ["10.1.1.0/24"],
        [],
    ),
    "gates of other components": (
        {"featureGates": {"JobManagedBy": True, "AllAlpha": False, "KMSv1": True}},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        [],
        ["featureGates: JobManagedBy, KMSv1: for other components; without effect here"],
    ),
    "no node address known": (
        {},
        (IPv4, IPv6),
        [],
        [],
        ["nodePortAddresses: empty, so NodePorts are accepted on all addresses of this machine"],
    ),
    "NodePorts of one family in a dual-stack cluster": (
        {"clusterCIDR": "10.1.0.0/16,fd01::/64"},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        [],
        ["nodePortAddresses: has no IPv6 network although the cluster is dual-stack"],
    ),
    "NodePorts of one family on a dual-stack node": (
        {"clusterCIDR": "fd01::/64"},
        (IPv6, IPv4),
        ["fd00::1/128"],
        ["10.1.1.0/24", "fd01::/80"],
        ["nodePortAddresses: has no IPv4 network although the cluster is dual-stack"],
    ),
    "NodePorts of the other family": (
        {"clusterCIDR": "10.1.0.0/16"},
        (IPv4, IPv6),
        ["fd00::/64"],
        [],
        ["nodePortAddresses: has no IPv4 network, so NodePorts are accepted on all IPv4 addresses"],
    ),
    "clusterCIDR of the other family": (
        {"clusterCIDR": "fd01::/64"},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        [],
        ["clusterCIDR: has no IPv4 network, the primary family of this node"],
    ),
    "clusterCIDR is not looked at in other modes": (
        {"clusterCIDR": "fd01::/64", "detectLocalMode": "NodeCIDR"},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        [],
        [],
    ),
    "podCIDRs of the other family": (
        {},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        ["fd01::/64"],
        ["podCIDRs: the Node's has no IPv4 network, the primary family of this node"],
    ),
    "servers of the family that is not served": (
        {"healthzBindAddress": "[fd00::1]:1", "metricsBindAddress": "[::1]:2"},
        (IPv4,),
        ["10.0.0.1/32"],
        [],
        [
            "healthzBindAddress: [fd00::1]:1 is an IPv6 address, but only IPv4 is served",
            "metricsBindAddress: [::1]:2 is an IPv6 address, but only IPv4 is served",
        ],
    ),
    "unspecified addresses serve both": (
        {"healthzBindAddress": "0.0.0.0:1", "metricsBindAddress": "0.0.0.0:2"},
        (IPv6,),
        ["fd00::1/128"],
        [],
        [],
    ),
    "both families are served": (
        {"healthzBindAddress": "[fd00::1]:1"},
        (IPv4, IPv6),
        ["10.0.0.1/32"],
        [],
        [],
    ),
}


@pytest.mark.contract("8.3.12")
@pytest.mark.parametrize(
    ("fields", "families", "nodeports", "pods", "expected"), WARNED.values(), ids=WARNED
)
def test_is_doubtful(
    fields: config.Sparse,
    families: tuple[Family, ...],
    nodeports: list[str],
    pods: list[str],
    expected: list[str],
) -> None:
    networks = [parse_network(text) for text in nodeports]
    built = config.build(fields)
    assert (
        validation.startup_warnings(
            built, families=families, nodeport_networks=networks, pod_cidrs=pods
        )
        == expected
    )
