"""`doctor`, the deciding parts: what is not known is not guessed, how much is looked at."""

from dataclasses import fields, replace
from ipaddress import IPv4Address

import pytest
from click import unstyle

from nftproxy.address import parse_network
from nftproxy.commands.doctor import lines
from nftproxy.doctor.barriers import owner_of
from nftproxy.doctor.checks import CHECKS
from nftproxy.doctor.clusterchecks import probe
from nftproxy.doctor.endpoints import EndpointPlace, sample
from nftproxy.doctor.facts import Facts, Failure, FetchedPage, Interface, Probed, RouteFact, Starter
from nftproxy.doctor.judgement import Check, judge
from nftproxy.doctor.kernelchecks import kernel, nf_tables
from nftproxy.doctor.machine import inside, overlap
from nftproxy.doctor.model import CheckState, Unknown

NOTHING = Facts(
    **{
        "release": "6.1.0",
        "library": None,
        "sysctls": {},
        "config_file": "",
        "node_name": "node1",
        "started_by": Starter.HAND,
        "now": 0.0,
        **{
            field.name: Unknown(f"no {field.name}")
            for field in fields(Facts)
            if field.name
            not in {
                "release", "library", "sysctls", "config_file", "node_name", "started_by", "now",
            }
        },
    }  # type: ignore[arg-type]
)  # fmt: skip


def test_what_is_not_known_is_not_guessed() -> None:
    """Only what is read from /proc is judged: there is nothing."""
    states = {result.check: result.state for result in judge(CHECKS, NOTHING)}
    known = {"version": CheckState.OK, "nf_conntrack": CheckState.BAD, "libnftables": CheckState.OK}
    known |= {"IPv6 forwarding": CheckState.OK}
    assert states == {check.name: known.get(check.name, CheckState.UNCHECKED) for check in CHECKS}


def test_the_reason_stands_where_the_finding_would() -> None:
    (result,) = judge([Check("kernel", "nf_tables", nf_tables)], NOTHING)
    assert result.found == "no netfilter"


def test_a_kernel_without_nf_tables() -> None:
    facts = replace(NOTHING, netfilter=Failure("no netfilter netlink", "modprobe nf_tables"))
    assert nf_tables(facts).state is CheckState.BAD
    assert nf_tables(facts).cures == ("modprobe nf_tables",)


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("5.13.0", CheckState.OK),
        ("5.12.19-generic", CheckState.BAD),
        ("10.0", CheckState.OK),
        ("4.19", CheckState.BAD),
        ("what", CheckState.BAD),
    ],
)
def test_versions_of_the_kernel(release: str, state: CheckState) -> None:
    assert kernel(replace(NOTHING, release=release)).state is state


def test_names_do_no_harm_to_a_terminal() -> None:
    harm = "inet \x1b[2J\nchain"
    (result,) = judge([Check("kernel", "version", kernel)], replace(NOTHING, release=harm))
    shown = "\n".join(map(unstyle, lines([result], 100)))
    assert "\x1b" not in shown
    assert r"inet \x1b[2J\nchain" in shown


def test_names_of_checks_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def found(through: str, *direct: str) -> CheckState:
    one = Probed(
        "default/kubernetes:https (IPv4, tcp)",
        (FetchedPage("10.96.0.1:443", through),),
        tuple(
            FetchedPage(f"10.0.0.{number}:6443", failure) for number, failure in enumerate(direct)
        ),
    )
    return probe(replace(NOTHING, probed=(one,))).state


def test_the_proxys_fault_differs_from_the_endpoints() -> None:
    assert found("") is CheckState.BAD  # no endpoint at all
    assert found("", "") is CheckState.OK
    assert found("silent", "") is CheckState.BAD
    assert found("silent", "silent") is CheckState.BAD
    assert found("", "", "refused") is CheckState.WARNING
    assert found("refused", "", "refused") is CheckState.WARNING


ROUTES = (
    RouteFact(parse_network("0.0.0.0/0"), "eth0", "192.168.0.1", "unicast"),
    RouteFact(parse_network("10.1.0.0/24"), "cni0", "", "unicast"),
    RouteFact(parse_network("10.7.0.7/32"), "cali1", "", "unicast"),
    RouteFact(parse_network("10.8.0.0/16"), "eth0", "192.168.0.2", "unicast"),
)
INTERFACES = (Interface("eth0", "", "", (("192.168.0.9", 24),)),)


def many(count: int) -> list[EndpointPlace]:
    return [
        EndpointPlace(str(IPv4Address("10.8.0.0") + number), 80, "tcp", outside=False)
        for number in range(count)
    ]


def test_few_endpoints_are_all_looked_at() -> None:
    assert sample(many(10), ROUTES, INTERFACES, 20) == many(10)
    assert sample([], ROUTES, INTERFACES, 20) == []


@pytest.mark.parametrize("count", [21, 40, 41, 100, 12_345])
def test_of_many_endpoints_some_from_everywhere(count: int) -> None:
    chosen = sample(many(count), ROUTES, INTERFACES, 20)
    assert 10 <= len(chosen) <= 20
    assert chosen[0] == many(1)[0]
    assert many(count).index(chosen[-1]) >= count // 2 - 1


def test_those_that_are_near_come_first() -> None:
    near = [
        EndpointPlace(text, 80, "tcp", outside=False)
        for text in ("10.1.0.4", "10.7.0.7", "192.168.0.9")
    ]
    chosen = sample([*many(5_000), *near], ROUTES, INTERFACES, 20)
    assert chosen[:3] == near
    assert 10 <= len(chosen) <= 20


@pytest.mark.parametrize(
    ("chains", "table", "owner"),
    [
        (["FORWARD", "DOCKER-USER"], "ip filter", "docker"),
        (["ufw-before-input"], "ip filter", "ufw"),
        (["ufw6-before-input"], "ip6 filter", "ufw"),
        (["x"], "inet firewalld", "firewalld"),
        (["DOCKERS", "ufwx"], "ip filter", ""),
    ],
)
def test_whose_a_table_is(chains: list[str], table: str, owner: str) -> None:
    assert owner_of(chains, table) == owner


@pytest.mark.parametrize(
    ("one", "other", "overlaps", "is_inside"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True, False),
        ("10.1.0.0/16", "10.0.0.0/8", True, True),
        ("10.1.0.0/16", "10.2.0.0/16", False, False),
        ("10.1.0.0/16", "::/0", False, False),
        ("fd00::/64", "::/0", True, True),
        ("10.1.0.0/16", "10.1.0.0/16", True, True),
    ],
)
def test_networks(one: str, other: str, *, overlaps: bool, is_inside: bool) -> None:
    assert overlap(parse_network(one), parse_network(other)) is overlaps
    assert inside(parse_network(one), parse_network(other)) is is_inside
