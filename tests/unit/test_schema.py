"""The schema against `rulesets/`, and names there and back."""

import re

import pytest

from nftproxy import shipped
from nftproxy.address import Family
from nftproxy.model import Scheduler
from nftproxy.table import schema
from nftproxy.table.schema import DECLARATIONS, VERDICT, Declaration, Per, Policy

FIELDS = {
    "$ip daddr": "a",
    "$ip saddr": "a",
    "meta l4proto": "p",
    "th dport": "s",
    "$proto dport": "s",
    "numgen random mod 65536": "n",
}


def letters(text: str) -> str:
    return "".join(FIELDS[field.strip()] for field in text.split(" . "))


def declared(block: str) -> tuple[str, str, str, bool, bool, bool]:
    """Kind, key, value of a declaration in `rulesets/`.

    Whether it counts, the kernel fills it, it holds intervals.
    """
    found = re.search(r"typeof (.+)", block)
    assert found, block
    key, _, value = found[1].partition(" : ")
    flags = re.search(r"flags (.+)", block)
    return (
        block.split(maxsplit=1)[0],
        letters(key),
        value if value in {"", VERDICT} else letters(value),
        "\n    counter\n" in block,
        bool(flags and "dynamic" in flags[1]),
        bool(flags and "interval" in flags[1]),
    )


def expected(each: Declaration, *, node_port: bool) -> tuple[str, str, str, bool, bool, bool]:
    key = each.key.removeprefix("a") if node_port else each.key
    return (
        "map" if each.value else "set",
        key,
        each.value,
        each.counter,
        each.learnt,
        each.interval,
    )


def test_the_rulesets_declare_what_the_schema_says() -> None:
    found = {}
    for path in shipped.folder("rulesets").glob("*.nft"):
        for block in re.findall(
            r"^(?:\[\w+\] )?((?:set|map) .+?^})", path.read_text(), re.MULTILINE | re.DOTALL
        ):
            found[block.split()[1]] = declared(block)
    wanted = {
        f"{'nodeport_' if node_port else ''}{each.base}$v{each.per.value}": expected(
            each, node_port=node_port
        )
        for each in DECLARATIONS.values()
        for node_port in (False, True)[: 1 + each.twin]
    }
    assert found == wanted


DETAILS: dict[Per, tuple[tuple[str | int, ...], ...]] = {
    Per.FAMILY: ((),),
    Per.PROTOCOL: (("tcp",), ("sctp",)),
    Per.LENGTH: ((24,), (128,)),
    Per.SERVICE_PORT: (("default/web/tcp/http",), ("default/endpoints4/tcp/",)),
    Per.ENDPOINT_PORT: (("default/web-1/tcp/http", 8080), ("default/affinity6-1/tcp/", 1)),
    Per.GROUP: (("default/web-1", "8080"), ("default/affinity6-1", "8080.0.9376")),
}


@pytest.mark.parametrize("each", DECLARATIONS.values(), ids=DECLARATIONS)
@pytest.mark.parametrize("family", Family)
def test_a_name_is_parsed_as_it_was_made(each: Declaration, family: Family) -> None:
    for details in DETAILS[each.per]:
        for node_port in (False, True)[: 1 + each.twin]:
            place = schema.parse(each.name(family, *details, node_port=node_port))
            assert place == (each, family, node_port, "-".join(map(str, details)))
            if place and each.per is Per.ENDPOINT_PORT:
                assert place.memory == details
            if place and each.per is Per.GROUP:
                assert place.service == details[0]


@pytest.mark.parametrize(
    "name",
    [
        "services", "services5", "services4-tcp", "endpoints4", "endpoints4-icmp", "allowed4",
        "allowed4-x", "nodeport_hairpin4",
        "affinity4-default/web/tcp/http", "cluster_members4-", "mine4", "__map4",
    ],
)  # fmt: skip
def test_other_names_are_not_ours(name: str) -> None:
    assert schema.parse(name) is None
    assert schema.declaration(name) is None
    assert not schema.is_compared(name, Family.IPv4)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("scheduler", Scheduler)
@pytest.mark.parametrize("node_port", [False, True])
@pytest.mark.parametrize(("cluster", "local"), [(0, 0), (3, 0), (3, 2), (0, 2)])
def test_a_pick_is_parsed_as_it_was_made(
    policy: Policy, cluster: int, local: int, scheduler: Scheduler, *, node_port: bool
) -> None:
    name = schema.pick(policy, Family.IPv6, "udp", cluster, local, scheduler, node_port=node_port)
    if not name:
        assert not (cluster and policy.uses_cluster)
        assert not (local and policy.uses_local)
        return
    found = schema.parse_pick(name)
    assert found
    assert (found.family, found.proto, found.node_port) == (Family.IPv6, "udp", node_port)
    assert found.scheduler is schema.scheduler(name) is scheduler
    assert schema.scheduler(schema.sticky(name, "8080", "default/web/udp/dns")) is scheduler
    assert found.policy is (Policy.LOCAL if policy is Policy.PRESERVE and not cluster else policy)
    assert (
        schema.policy(name)
        is schema.policy(schema.sticky(name, "8080", "default/web/udp/dns"))
        is found.policy
    )
    assert schema.parse_pick(schema.sticky(name, "8080", "default/web/udp/dns")) is None


def test_the_chain_that_takes_the_first_slot_is_a_pick_of_none() -> None:
    found = schema.parse_pick("nodeport-local6-udp-first")
    assert found == (Policy.LOCAL, Family.IPv6, "udp", 0, 0, True, Scheduler.RANDOM)


@pytest.mark.parametrize(
    "name",
    [
        "pick4-tcp-0",
        "pick4-tcp-first-1",
        "hash-pick4-tcp-first",
        "external4-tcp-first",
        "preserve4-tcp-first-1",
        "pick4-tcp-3-1",
        "local4-tcp-3-1",
        "preserve4-tcp-3-0",
        "pick4-tcp",
        "services4",
    ],
)
def test_other_chains_are_no_picks(name: str) -> None:
    assert schema.parse_pick(name) is None


def test_chains_of_programs_and_of_those_who_learn() -> None:
    for cluster, local in ((True, False), (False, True), (True, True)):
        name = schema.learn(
            Family.IPv4, 10800, "80.81", "default/web-1/tcp/http", cluster=cluster, local=local
        )
        assert schema.parse_learn(name) == (10800, "default/web-1/tcp/http", False)
        name = schema.learn(
            Family.IPv4, 60, "80", "default/web-1", cluster=cluster, local=local, shared=True
        )
        assert schema.parse_learn(name) == (60, "default/web-1", True)
    assert schema.parse_learn("learn4") is None
    assert schema.parse_program(schema.program("0123")) == "0123"
    assert schema.parse_program("pick4-tcp-1") == ""


@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_longest_name_fits(scheduler: Scheduler) -> None:
    picked = schema.pick(
        Policy.PRESERVE, Family.IPv4, "sctp", 65536, 65536, scheduler, node_port=True
    )
    ports = schema.ports(range(1, 65536), scheduler)
    name = schema.sticky(picked, ports, schema.bounded("x" * 1000))
    assert len(name) == 255
