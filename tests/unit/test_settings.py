from pathlib import Path

import pytest

from nftproxy.address import Address, Family, parse_address, parse_network
from nftproxy.configuration import config
from nftproxy.configuration.settings import (
    ALL,
    BridgeInterface,
    Cidr,
    InterfaceNamePrefix,
    LocalDetector,
    NodeFacts,
    NodePortNetworks,
    NodeSettings,
    OnLocalhost,
    accepted_nodeport_addresses,
    node_name,
    node_settings,
)
from nftproxy.configuration.settings import LOCALHOST_GATE as GATE
from nftproxy.errors import ConfigError
from nftproxy.node import host

IPv4, IPv6 = Family.IPv4, Family.IPv6
BOTH = frozenset(Family)
ONLY4, ONLY6 = frozenset({IPv4}), frozenset({IPv6})

ANY = "0.0.0.0"  # noqa: S104 - says that bindAddress gives no hint
V4 = ("InternalIP", "10.0.0.1")
V6 = ("InternalIP", "fd00::1")


def derive(
    fields: config.Sparse | None = None,
    *addresses: tuple[str, str],
    pod_cidrs: tuple[str, ...] = (),
    supported: frozenset[Family] = BOTH,
    known: bool = True,
) -> tuple[NodeSettings, list[str]]:
    facts = NodeFacts(addresses, pod_cidrs) if known else None
    return node_settings(config.build(fields or {}), facts, hostname="host", supported=supported)


def settings(
    fields: config.Sparse | None = None,
    *addresses: tuple[str, str],
    pod_cidrs: tuple[str, ...] = (),
    supported: frozenset[Family] = BOTH,
) -> NodeSettings:
    return derive(fields, *addresses, pod_cidrs=pod_cidrs, supported=supported)[0]


def networks(*texts: str) -> NodePortNetworks:
    return tuple(parse_network(text) for text in texts)


def test_a_plain_node_in_full() -> None:
    assert derive({"clusterCIDR": "10.244.0.0/16"}, V4) == (
        NodeSettings(
            node_name="host",
            families=(IPv4, IPv6),
            node_ips={IPv4: Address(IPv4, "10.0.0.1"), IPv6: Address(IPv6, "::1")},
            detector=Cidr({IPv4: parse_network("10.244.0.0/16")}),
            masquerade_bit=0x4000,
            masquerade_all=False,
            nodeport_addresses={IPv4: networks("10.0.0.1/32"), IPv6: ALL},
            allow_external_ips=True,
            sync_period=30.0,
            min_sync_period=0.05,
        ),
        [],
    )


@pytest.mark.contract("4.3.1", "4.1.1", "2.2", "8.2")
def test_constants_come_from_the_section_of_the_mode() -> None:
    chosen = settings(
        {
            "nftables": {
                "masqueradeBit": 31,
                "masqueradeAll": True,
                "syncPeriod": "1m",
                "minSyncPeriod": "1s",
            },
            "iptables": {"masqueradeBit": 1},
            "featureGates": {"AllowServiceExternalIPs": False},
        }
    )
    assert chosen.masquerade_bit == 0x80000000
    assert chosen.masquerade_all
    assert not chosen.allow_external_ips
    assert (chosen.sync_period, chosen.min_sync_period) == (60.0, 1.0)


def test_sources_that_are_not_masqueraded_are_joined() -> None:
    """Those of a family that is not served are left out."""
    texts = ["172.16.0.0/12", "172.16.1.1/24", "fd00::1/64", "10.0.0.0/9", "10.128.0.0/9"]
    wanted = {"clusterCIDR": "10.244.0.0/16", "nftables": {"noMasqueradeCIDRs": texts}}
    assert settings(wanted).no_masquerade == {
        IPv4: networks("10.0.0.0/8", "172.16.0.0/12"),
        IPv6: networks("fd00::/64"),
    }
    assert settings(wanted, supported=ONLY4).no_masquerade == {
        IPv4: networks("10.0.0.0/8", "172.16.0.0/12")
    }
    assert settings({"clusterCIDR": "10.244.0.0/16"}).no_masquerade == {}


def test_sources_that_would_not_be_masqueraded_anyway_are_a_warning() -> None:
    section = {"noMasqueradeCIDRs": ["172.16.0.0/12"]}

    def warned(section: config.Sparse, cidr: str = "") -> list[str]:
        _, warnings = derive({"clusterCIDR": cidr, "nftables": section})
        return [warning for warning in warnings if warning.startswith("nftables.")]

    assert warned(section) == [
        (
            "nftables.noMasqueradeCIDRs: without clusterCIDR no traffic to ClusterIPs is "
            "masqueraded, so this has no effect"
        )
    ]
    assert warned({**section, "masqueradeAll": True}) == []
    assert warned(section, "10.244.0.0/16") == []


@pytest.mark.contract("8.6.1")
@pytest.mark.parametrize(
    ("override", "hostname", "expected"),
    [("", "Host.Example ", "host.example"), (" Node-A\n", "host", "node-a"), ("n", "", "n")],
    ids=["OS host name", "override", "override alone"],
)
def test_node_name_is_trimmed_and_lower_case(override: str, hostname: str, expected: str) -> None:
    assert node_name(config.build({"hostnameOverride": override}), hostname) == expected


@pytest.mark.contract("8.6.1")
@pytest.mark.parametrize(("override", "hostname"), [(" \t", "host"), ("", " "), ("", "")])
def test_a_blank_node_name_is_an_error(override: str, hostname: str) -> None:
    with pytest.raises(ConfigError, match="hostnameOverride: the node name is blank"):
        node_settings(
            config.build({"hostnameOverride": override}), None, hostname=hostname, supported=BOTH
        )


NODE_IPS: dict[str, tuple[str, list[tuple[str, str]], tuple[str, str], Family]] = {
    "no Node": (ANY, [], ("127.0.0.1", "::1"), IPv4),
    "IPv4": (ANY, [V4], ("10.0.0.1", "::1"), IPv4),
    "IPv6": (ANY, [V6], ("127.0.0.1", "fd00::1"), IPv6),
    "both, IPv6 first": (ANY, [V6, V4], ("10.0.0.1", "fd00::1"), IPv6),
    "the first of a family counts": (
        ANY,
        [V4, ("InternalIP", "10.0.0.2"), V6, ("InternalIP", "fd00::2")],
        ("10.0.0.1", "fd00::1"),
        IPv4,
    ),
    "internal before external": (
        ANY,
        [("ExternalIP", "fd00::9"), ("ExternalIP", "1.1.1.1"), V4],
        ("10.0.0.1", "fd00::9"),
        IPv4,
    ),
    "external alone": (ANY, [("ExternalIP", "1.1.1.1")], ("1.1.1.1", "::1"), IPv4),
    "names are skipped": (
        ANY,
        [("InternalIP", "node.example"), V6],
        ("127.0.0.1", "fd00::1"),
        IPv6,
    ),
    "other types are never used": (
        ANY,
        [("Hostname", "10.9.9.9"), ("InternalDNS", "10.9.9.8"), V6],
        ("127.0.0.1", "fd00::1"),
        IPv6,
    ),
    "an unspecified IPv6 bindAddress is no hint": ("::", [V4], ("10.0.0.1", "::1"), IPv4),
    "bindAddress overrides its family": ("10.0.0.9", [V4, V6], ("10.0.0.9", "fd00::1"), IPv4),
    "bindAddress makes its family primary": ("fd00::9", [V4, V6], ("10.0.0.1", "fd00::9"), IPv6),
}


@pytest.mark.contract("8.6.2", "8.6.3")
@pytest.mark.parametrize(("bind", "addresses", "ips", "primary"), NODE_IPS.values(), ids=NODE_IPS)
def test_node_ips(
    bind: str, addresses: list[tuple[str, str]], ips: tuple[str, str], primary: Family
) -> None:
    derived = settings({"bindAddress": bind}, *addresses)
    assert (derived.node_ips[IPv4].text, derived.node_ips[IPv6].text) == ips
    assert derived.families[0] is primary


@pytest.mark.contract("8.6.5")
@pytest.mark.parametrize(
    ("addresses", "supported", "families"),
    [
        ([V4], BOTH, (IPv4, IPv6)),
        ([V6], BOTH, (IPv6, IPv4)),
        ([], BOTH, (IPv4, IPv6)),
        ([V4, V6], ONLY4, (IPv4,)),
        ([V6], ONLY6, (IPv6,)),
    ],
    ids=[
        "dual-stack, IPv4 first",
        "dual-stack, IPv6 first",
        "dual-stack, no address",
        "no IPv6",
        "no IPv4",
    ],
)
def test_families(
    addresses: list[tuple[str, str]], supported: frozenset[Family], families: tuple[Family, ...]
) -> None:
    derived = settings({}, *addresses, supported=supported)
    assert derived.families == families
    assert set(derived.node_ips) == set(derived.nodeport_addresses) == set(families)


@pytest.mark.contract("8.6.5")
def test_an_unsupported_primary_family_is_fatal() -> None:
    with pytest.raises(
        ConfigError, match="primary family is IPv6, which this machine does not support"
    ):
        derive({}, V6, V4, supported=ONLY4)


NODEPORTS: dict[
    str, tuple[str, list[str], list[tuple[str, str]], NodePortNetworks, NodePortNetworks]
] = {
    "empty means primary": (
        "2.6.1",
        [],
        [V4, V6],
        networks("10.0.0.1/32"),
        networks("fd00::1/128"),
    ),
    "primary": ("2.6.2", ["primary"], [V4, V6], networks("10.0.0.1/32"), networks("fd00::1/128")),
    "primary leaves the other family open": (
        "2.6.3",
        ["primary"],
        [V4],
        networks("10.0.0.1/32"),
        ALL,
    ),
    "primary without node address": ("2.6.2", ["primary"], [], ALL, ALL),
    "CIDRs of both families": (
        "2.6.3",
        ["10.0.0.0/8", "192.168.1.9/24", "fd00::/64"],
        [],
        networks("10.0.0.0/8", "192.168.1.0/24"),
        networks("fd00::/64"),
    ),
    "no CIDR of a family": ("2.6.3", ["fd00::/64"], [V4], ALL, networks("fd00::/64")),
    "localhost": (
        "2.6.1",
        ["localhost"],
        [V4],
        networks("127.0.0.0/8"),
        networks("::1/128"),
    ),
    "all": ("2.6.1", ["primary", "all"], [V4, V6], ALL, ALL),
    "words and networks": (
        "2.6.1",
        ["192.168.1.0/24", "primary", "localhost"],
        [V4, V6],
        networks("192.168.1.0/24", "10.0.0.1/32", "127.0.0.0/8"),
        networks("fd00::1/128", "::1/128"),
    ),
    "a zero-length prefix": (
        "2.6.3",
        ["10.0.0.0/8", "0.0.0.0/0", "fd00::/64", "::/0"],
        [],
        ALL,
        ALL,
    ),
}


@pytest.mark.parametrize(
    ("texts", "addresses", "v4", "v6"),
    [
        pytest.param(*case[1:], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in NODEPORTS.items()
    ],
)
def test_nodeport_addresses(
    texts: list[str], addresses: list[tuple[str, str]], v4: NodePortNetworks, v6: NodePortNetworks
) -> None:
    assert settings({"nodePortAddresses": texts}, *addresses).nodeport_addresses == {
        IPv4: v4,
        IPv6: v6,
    }


@pytest.mark.contract("2.6.2")
def test_primary_leaves_out_a_loopback_bind_address() -> None:
    assert settings({"bindAddress": "127.0.0.5"}, V4).nodeport_addresses[IPv4] is ALL


@pytest.mark.contract("2.6.5", "2.6.6", "2.6.7")
def test_accepted_nodeport_addresses() -> None:
    wanted = {
        IPv4: networks("10.0.0.0/24", "127.0.0.0/8", "192.168.0.1/32"),
        IPv6: networks("fd00::/64", "::/1"),
    }
    texts = [
        "10.0.0.7",
        "10.0.0.7",
        "10.0.0.5",
        "10.0.1.1",
        "127.0.0.1",
        "127.1.2.3",
        "::1",
        "fe80::1",
        "fd00::5",
    ]
    assert accepted_nodeport_addresses(wanted, [parse_address(text) for text in texts]) == (
        {
            IPv4: (Address(IPv4, "10.0.0.5"), Address(IPv4, "10.0.0.7")),
            IPv6: (Address(IPv6, "fd00::5"),),
        },
        [
            "nodePortAddresses: 127.0.0.1 is a loopback address; NodePorts do not work there",
            "nodePortAddresses: 127.1.2.3 is a loopback address; NodePorts do not work there",
            "nodePortAddresses: ::1 is a loopback address; NodePorts do not work there",
        ],
    )


@pytest.mark.contract("2.10.2")
def test_loopback_addresses_that_are_forwarded_are_no_error() -> None:
    wanted = {IPv4: networks("127.0.0.0/8"), IPv6: networks("::1/128")}
    own = [parse_address(text) for text in ("127.0.0.1", "::1", "10.0.0.1")]
    _, errors = accepted_nodeport_addresses(wanted, own, [IPv4])
    assert errors == ["nodePortAddresses: ::1 is a loopback address; NodePorts do not work there"]
    assert accepted_nodeport_addresses(wanted, own, BOTH)[0] == {IPv4: (), IPv6: ()}


UNTOUCHED, REFUSED, FORWARDED = OnLocalhost
LOCALHOST: dict[str, tuple[str, dict[str, bool], list[str], OnLocalhost, OnLocalhost]] = {
    "without the gate": ("2.10.1", {}, ["primary", "localhost"], UNTOUCHED, UNTOUCHED),
    "the gate alone": ("2.10.1", {GATE: True}, [], REFUSED, REFUSED),
    "the word": ("2.10.2", {GATE: True}, ["primary", "localhost"], FORWARDED, FORWARDED),
    "the word alone": ("2.10.2", {GATE: True}, ["localhost"], FORWARDED, FORWARDED),
    "all is not asked for": ("2.10.2", {GATE: True}, ["all"], REFUSED, REFUSED),
    "all and the word": ("2.10.2", {GATE: True}, ["all", "localhost"], FORWARDED, FORWARDED),
    "everything by number is not asked for": (
        "2.10.2",
        {GATE: True},
        ["0.0.0.0/0", "::/0", "126.0.0.0/7"],
        REFUSED,
        REFUSED,
    ),
    "one family": ("2.10.2", {GATE: True}, ["primary", "127.0.0.1/32"], FORWARDED, REFUSED),
    "the other family": ("2.10.2", {GATE: True}, ["primary", "::1/128"], REFUSED, FORWARDED),
    "the network": ("2.10.2", {GATE: True}, ["127.0.0.0/8"], FORWARDED, REFUSED),
    "an address that nobody listens on": (
        "2.10.2",
        {GATE: True},
        ["127.0.0.2/32"],
        REFUSED,
        REFUSED,
    ),
    "all alpha gates": ("2.10.1", {"AllAlpha": True}, ["localhost"], FORWARDED, FORWARDED),
}


@pytest.mark.parametrize(
    ("gates", "texts", "v4", "v6"),
    [
        pytest.param(*case[1:], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in LOCALHOST.items()
    ],
)
def test_what_becomes_of_nodeports_on_localhost(
    gates: dict[str, bool], texts: list[str], v4: OnLocalhost, v6: OnLocalhost
) -> None:
    found, warnings = derive(
        {"featureGates": gates, "nodePortAddresses": texts, "clusterCIDR": "10.1.0.0/16"}, V4, V6
    )
    assert found.on_localhost == {IPv4: v4, IPv6: v6}
    doubtful = [line for line in warnings if GATE in line]
    asked = "localhost" in texts
    assert len(doubtful) == (UNTOUCHED in (v4, v6) or not (asked or FORWARDED in (v4, v6)))


@pytest.mark.contract("2.6.4", "2.6.6")
def test_all_addresses_need_no_list_and_an_address_nobody_has_gives_an_empty_one() -> None:
    wanted = {IPv4: networks("198.51.100.1/32"), IPv6: ALL}
    assert accepted_nodeport_addresses(
        wanted, [parse_address("10.0.0.1"), parse_address("fd00::1")]
    ) == ({IPv4: ()}, [])


def cidr(*texts: str) -> Cidr:
    return Cidr({network.family: network for network in map(parse_network, texts)})


DETECTORS: dict[str, tuple[str, config.Sparse, tuple[str, ...], LocalDetector | None]] = {
    "clusterCIDR": ("4.2.2", {"clusterCIDR": "10.244.0.0/16"}, (), cidr("10.244.0.0/16")),
    "clusterCIDR of both families": (
        "4.2.2",
        {"clusterCIDR": "fd01::/64,10.244.7.0/16", "detectLocalMode": "ClusterCIDR"},
        (),
        cidr("fd01::/64", "10.244.0.0/16"),
    ),
    "no clusterCIDR": ("4.2.3", {}, ("10.244.1.0/24",), None),
    "the Node's CIDRs": (
        "4.2.2",
        {"detectLocalMode": "NodeCIDR", "clusterCIDR": "10.244.0.0/16"},
        ("10.244.1.0/24", "fd01::/80", "10.244.2.0/24"),
        cidr("10.244.1.0/24", "fd01::/80"),
    ),
    "a bridge": (
        "4.2.1",
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}},
        (),
        BridgeInterface("cni0"),
    ),
    "a prefix": (
        "4.2.1",
        {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
        (),
        InterfaceNamePrefix("veth"),
    ),
}


@pytest.mark.parametrize(
    ("fields", "pod_cidrs", "detector"),
    [
        pytest.param(*case[1:], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in DETECTORS.items()
    ],
)
def test_local_detector(
    fields: config.Sparse, pod_cidrs: tuple[str, ...], detector: LocalDetector | None
) -> None:
    assert settings(fields, V4, V6, pod_cidrs=pod_cidrs).detector == detector


@pytest.mark.contract("4.2.1")
@pytest.mark.parametrize(
    ("detector", "pattern"),
    [
        (BridgeInterface("cni0"), "cni0"),
        (InterfaceNamePrefix("veth"), "veth*"),
        (InterfaceNamePrefix("a" * 14), "a" * 14 + "*"),
        (InterfaceNamePrefix("a" * 15), "a" * 15),
    ],
    ids=["a name", "a prefix", "the longest prefix", "a prefix that is a whole name"],
)
def test_interface_detectors_as_nft_takes_them(
    detector: BridgeInterface | InterfaceNamePrefix, pattern: str
) -> None:
    assert detector.pattern == pattern


@pytest.mark.contract("4.2.3", "4.2.5")
def test_no_cluster_cidr_is_warned_of() -> None:
    derived, warnings = derive({}, V4)
    assert derived.detector is None
    assert warnings == ["clusterCIDR: not set, so no packet counts as sent by a local pod"]


@pytest.mark.contract("4.2.4", "4.2.2")
def test_cluster_cidr_of_the_other_family_in_dual_stack_is_warned_of() -> None:
    derived, warnings = derive({"clusterCIDR": "fd01::/64"}, V4, V6)
    assert derived.detector == cidr("fd01::/64")
    assert warnings == ["clusterCIDR: has no IPv4 network, the primary family of this node"]


FATAL: dict[str, tuple[str, config.Sparse, tuple[str, ...], frozenset[Family], list[str]]] = {
    "clusterCIDR of a family that is not served": (
        "4.2.4",
        {"clusterCIDR": "fd01::/64"},
        (),
        ONLY4,
        ["clusterCIDR: has no IPv4 network, the only family served"],
    ),
    "podCIDRs of the other family in dual-stack": (
        "4.2.4",
        {"detectLocalMode": "NodeCIDR"},
        ("fd01::/64",),
        BOTH,
        ["detectLocalMode: NodeCIDR needs an IPv4 network in the Node's spec.podCIDRs"],
    ),
    "no podCIDRs": (
        "4.2",
        {"detectLocalMode": "NodeCIDR"},
        (),
        BOTH,
        ["detectLocalMode: NodeCIDR needs an IPv4 network in the Node's spec.podCIDRs"],
    ),
    "a name that means something to nft": (
        "4.2.1",
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "a*"}},
        (),
        BOTH,
        [
            (
                "detectLocal.bridgeInterface: 'a*' is no interface name: 1 to 15 letters, digits, "
                "dots, dashes or underscores"
            )
        ],
    ),
    "everything at once": (
        "8.6.1",
        {"hostnameOverride": " ", "clusterCIDR": "x", "nodePortAddresses": ["y"]},
        (),
        BOTH,
        [
            "hostnameOverride: the node name is blank",
            "clusterCIDR: 'x' is not a CIDR such as 10.0.0.0/8 or fd00::/64",
            "nodePortAddresses[0]: 'y' is not a CIDR such as 10.0.0.0/8 or fd00::/64",
        ],
    ),
}


@pytest.mark.parametrize(
    ("fields", "pod_cidrs", "supported", "problems"),
    [
        pytest.param(*case[1:], id=name, marks=pytest.mark.contract(case[0]))
        for name, case in FATAL.items()
    ],
)
def test_is_fatal(
    fields: config.Sparse,
    pod_cidrs: tuple[str, ...],
    supported: frozenset[Family],
    problems: list[str],
) -> None:
    with pytest.raises(ConfigError) as caught:
        derive(fields, V4, pod_cidrs=pod_cidrs, supported=supported)
    assert caught.value.problems == problems


@pytest.mark.contract("4.2", "1.2.3")
def test_node_cidr_without_a_node_says_so() -> None:
    with pytest.raises(ConfigError, match="NodeCIDR needs the Node object, which does not exist"):
        derive({"detectLocalMode": "NodeCIDR"}, known=False)


def test_a_broken_pod_cidr_is_skipped_with_a_warning() -> None:
    derived, warnings = derive(
        {"detectLocalMode": "NodeCIDR"}, V4, pod_cidrs=("junk", "10.244.1.0/24")
    )
    assert derived.detector == cidr("10.244.1.0/24")
    assert warnings == ["podCIDRs: 'junk' is not a CIDR such as 10.0.0.0/8 or fd00::/64"]


@pytest.mark.contract("8.3.12", "8.6.3")
def test_an_unknown_node_is_served_with_start_values() -> None:
    derived, warnings = derive({"clusterCIDR": "10.244.0.0/16"}, known=False)
    assert derived.node_ips == {IPv4: Address(IPv4, "127.0.0.1"), IPv6: Address(IPv6, "::1")}
    assert warnings == [
        "nodePortAddresses: empty, so NodePorts are accepted on all addresses of this machine"
    ]


@pytest.mark.contract("8.6.5")
@pytest.mark.parametrize(
    ("if_inet6", "disable_ipv6", "expected"),
    [
        (True, "0\n", BOTH),
        (True, None, BOTH),
        (True, "1\n", ONLY4),
        (False, "0\n", ONLY4),
        (False, None, ONLY4),
    ],
    ids=["enabled", "no switch", "disabled", "no addresses file", "left out of the kernel"],
)
def test_supported_families(
    tmp_path: Path, if_inet6: bool, disable_ipv6: str | None, expected: frozenset[Family]
) -> None:
    (tmp_path / "net").mkdir()
    if if_inet6:
        (tmp_path / "net/if_inet6").touch()
    if disable_ipv6 is not None:
        switch = tmp_path / "sys/net/ipv6/conf/all/disable_ipv6"
        switch.parent.mkdir(parents=True)
        switch.write_text(disable_ipv6)
    assert host.supported_families(tmp_path) == expected


def test_this_machine_has_a_name_and_a_family() -> None:
    assert host.hostname()
    assert IPv4 in host.supported_families()
