"""What is written for a change.

As little as possible, in an order in which no packet falls between (design 1; contract 5.8).
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nftproxy.address import Family
from nftproxy.model import ObjectName
from nftproxy.routes import Compiled, Context, Element, Key, Value, Verdict, compile_service
from nftproxy.selection import Endpoint, Locality
from nftproxy.table.delta import Delta, is_late
from nftproxy.table.plan import InStep, plan
from nftproxy.table.remembered import Change, Remembered
from nftproxy.table.slots import settle
from tests.support.objects import endpoint, endpoint_slice, service

Name = str
Table = dict[str, dict[Key, Value]]
CONTEXT = Context(Family.IPv4, Locality("node1", ""), "192.168.50.11")


def compiled(
    name: Name = "web", pods: int | list[int] = 2, *, cluster_ip: str = "10.96.0.10", **spec: Any
) -> Compiled:
    """A Service with endpoints 10.244.1.<pod>; the even ones are on this node."""
    numbers = list(range(2, 2 + pods)) if isinstance(pods, int) else pods
    members = [
        endpoint(f"10.244.1.{number}", "node2" if number % 2 else "node1") for number in numbers
    ]
    found = compile_service(
        service(name, cluster_ip, **spec), [endpoint_slice(name, members)], CONTEXT, []
    )
    assert found is not None
    return found


def key(name: Name) -> ObjectName:
    return ObjectName("default", name)


class Model:
    """A table as the kernel keeps it: a transaction that does not fit fails."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.remembered = Remembered(Family.IPv4)
        self.written: Delta = Delta()

    def want(self, **wanted: Compiled | None) -> list[Change]:
        """Sync: services to what they should be, None for those that are gone."""
        changes: list[Change] = []
        self.written = Delta()
        for batch in plan(
            self.remembered, [{key(name): new for name, new in wanted.items()}], InStep()
        ):
            self.written.merge(batch.delta)
            self.commit(batch.delta)
            self.remembered.accept(batch.changes, batch.delta)
            changes += batch.changes
        self.late(self.written)
        return changes

    def commit(self, written: Delta) -> None:
        for where, keys in written.removed.items():
            for each in keys:
                del self.table[where][each]  # KeyError: ENOENT
        for where, items in written.added.items():
            for each, value in items.items():
                held = self.table.setdefault(where, {})
                assert held.get(each, value) == value, f"EEXIST: {where} {each}"
                held[each] = value

    def late(self, written: Delta) -> None:
        for where, keys in written.late.items():
            for each in keys:
                del self.table[where][each]

    def __eq__(self, other: object) -> bool:
        """Equal up to the order of slots."""
        assert isinstance(other, Model)
        return comparable(self.table) == comparable(other.table)

    __hash__ = None  # type: ignore[assignment]


def comparable(table: Table) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for where, items in table.items():
        if "endpoints" in where and "no_" not in where:
            lists: dict[Any, list[Any]] = {}
            for (*frontend, _), value in items.items():
                lists.setdefault(tuple(frontend), []).append(value)
            items = {frontend: tuple(sorted(values)) for frontend, values in lists.items()}  # noqa: PLW2901
        if items:
            found[where] = items
    return found


def fresh(**wanted: Compiled | None) -> Model:
    model = Model()
    model.want(**wanted)
    return model


# --- slots ----------------------------------------------------------------------------------------

letters = st.lists(
    st.sampled_from([Endpoint(letter, 1) for letter in "abcdefgh"]), unique=True
).map(tuple)


@given(before=letters, wanted=letters)
def test_slots_are_stable(before: tuple[Endpoint, ...], wanted: tuple[Endpoint, ...]) -> None:
    """Who stays keeps its slot, unless the list ends before it."""
    after = settle(before, wanted)
    assert sorted(after) == sorted(wanted)
    for slot, each in enumerate(before):
        if each in wanted and slot < len(wanted):
            assert after[slot] == each


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ("", "abc", "abc"),
        ("abc", "abc", "abc"),
        ("abc", "ac", "ac"),
        ("abc", "bc", "cb"),
        ("abc", "cab", "abc"),
        ("abc", "abxc", "abcx"),
        ("abc", "xyz", "xyz"),
        ("abc", "", ""),
    ],
)
def test_slots(before: str, wanted: str, after: str) -> None:
    def as_list(text: str) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(letter, 1) for letter in text)

    assert settle(as_list(before), as_list(wanted)) == as_list(after)


# --- what one change writes -----------------------------------------------------------------------


@pytest.mark.contract("5.8.3")
def test_a_new_service_is_a_few_additions() -> None:
    """A ClusterIP with one endpoint on this node: frontend, slot, ClusterIP, hairpin."""
    model = Model()
    model.want(web=compiled(pods=[2]))
    assert not model.written.removed
    assert not model.written.late
    assert len(model.written) == 4


def test_from_three_to_two() -> None:
    """The last slot moves into the place of the one that went.

    The slot behind the end goes late.
    """
    model = fresh(web=compiled(pods=[3, 5, 7]))
    model.want(web=compiled(pods=[5, 7]))
    verdict = ("10.96.0.10", "tcp", 80)
    assert model.written.removed == {
        "services4": {verdict: None},
        "endpoints4-tcp": {("10.96.0.10", 80, 0): None},
    }
    assert model.written.added == {
        "services4": {verdict: Verdict("goto", "pick4-tcp-2", "default/web:http")},
        "endpoints4-tcp": {("10.96.0.10", 80, 0): ("10.244.1.7", 8080)},
    }
    assert model.written.late == {"endpoints4-tcp": {("10.96.0.10", 80, 2): None}}


def test_one_endpoint_of_many_is_one_slot_per_address_and_list() -> None:
    """5 000 endpoints and seven lists.

    A change of one of them writes seven slots, and a hairpin entry.
    """
    spec: dict[str, Any] = {
        "vips": ["203.0.113.1", "203.0.113.2"],
        "node_port": 30080,
        "externalTrafficPolicy": "Local",
    }
    before = list(range(2, 252, 2))
    model = fresh(web=compiled(pods=before, **spec))
    model.want(web=compiled(pods=[*before[:-1], 254], **spec))
    assert len(model.written) == 2 * 7 + 2  # deleted and added; the hairpin entries of both
    assert "services4" not in model.written.added


@pytest.mark.contract("5.8.3", "1.1.9")
def test_the_same_again_is_nothing() -> None:
    model = fresh(web=compiled(pods=3), other=compiled("other", 0, cluster_ip="10.96.0.11"))
    assert model.want(web=compiled(pods=3)) == []
    assert not model.written


def test_what_verdicts_point_to_goes_late() -> None:
    """And nothing else does: the rest could send packets where they must not go any more."""
    everything = compiled(
        pods=3,
        vips=["203.0.113.1"],
        node_port=30080,
        externalTrafficPolicy="Local",
        sessionAffinity="ClientIP",
        loadBalancerSourceRanges=["10.0.0.0/8"],
    )
    model = fresh(web=everything)
    held = {where for where, items in model.table.items() if items}
    model.want(web=None)
    assert model.written.added == {}
    assert set(model.written.late) == {where for where in held if is_late(where)} | {
        "cluster_ips4",
        "hairpin4",
    }
    assert set(model.written.removed) == held - set(model.written.late)
    assert not any(model.table.values())


@pytest.mark.parametrize(
    ("where", "late"),
    [
        ("endpoints4-tcp", True),
        ("local_endpoints6-udp", True),
        ("nodeport_endpoints4-sctp", True),
        ("nodeport_local_endpoints4-tcp", True),
        ("allowed4-24", True),
        ("services4", False),
        ("nodeport_services6", False),
        ("no_endpoints4", False),
        ("nodeport_no_endpoints4", False),
        ("new_clients4", False),
        ("learn4", False),
        ("firewall4", False),
        ("cluster_members4-default/web/tcp/http-64", False),
        ("affinity6-default/endpoints4/tcp/x-80", False),
    ],
)
def test_is_late(where: str, late: bool) -> None:
    assert is_late(where) == late


def test_a_late_deletion_of_what_came_back_is_dropped() -> None:
    later = Delta()
    later.remove_late("endpoints4-tcp", ("10.96.0.10", 80, 0))
    later.remove_late("endpoints4-tcp", ("10.96.0.10", 80, 1))
    later.cancel({"endpoints4-tcp": {("10.96.0.10", 80, 0): ("10.244.1.2", 80)}})
    assert later.late == {"endpoints4-tcp": {("10.96.0.10", 80, 1): None}}


def test_targets_are_the_chains_that_verdicts_need() -> None:
    found = Delta()
    found.add(Element("services4", ("10.96.0.10", "tcp", 80), Verdict("goto", "pick4-tcp-2")))
    found.add(Element("no_endpoints4", ("10.96.0.11", "tcp", 80), Verdict("drop")))
    found.add(Element("endpoints4-tcp", ("10.96.0.10", 80, 0), ("10.244.1.2", 80)))
    assert found.targets() == {"pick4-tcp-2"}


# --- shared elements ------------------------------------------------------------------------------


@pytest.mark.contract("4.4.1", "2.5.6")
def test_shared_elements_stay_until_the_last_claim_goes() -> None:
    model = fresh(a=compiled("a", [2]), b=compiled("b", [2], cluster_ip="10.96.0.11"))
    hairpin = ("10.244.1.2", "10.244.1.2", "tcp", 8080)
    assert list(model.table["hairpin4"]) == [hairpin]
    model.want(a=None)
    assert list(model.table["hairpin4"]) == [hairpin]
    model.want(b=compiled("b", [3], cluster_ip="10.96.0.11"))
    assert model.table["hairpin4"] == {}
    model.want(b=None, a=compiled("a", [2], cluster_ip="10.96.0.11"))
    assert list(model.table["cluster_ips4"]) == [("10.96.0.11",)]


# --- rivals ---------------------------------------------------------------------------------------

VIPS: dict[str, Any] = {"vips": ["203.0.113.1"]}
OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def owner(model: Model) -> str:
    found = model.table["services4"]["203.0.113.1", "tcp", 80]
    assert isinstance(found, Verdict)
    return found.comment


def rival(name: Name, created: str = OLD, **spec: Any) -> Compiled:
    return compiled(name, cluster_ip=f"10.96.0.{ord(name)}", created=created, **{**VIPS, **spec})


@pytest.mark.contract("2.2.3")
def test_the_older_has_it_whoever_comes_first() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        model = fresh(**{first: rival(first, NEW if first == "a" else OLD)})
        model.want(**{second: rival(second, NEW if second == "a" else OLD)})
        assert owner(model) == "default/b:http"


@pytest.mark.contract("2.2.3")
def test_the_younger_gets_it_when_the_older_lets_go() -> None:
    model = fresh(a=rival("a"), b=rival("b", NEW), c=rival("c", NEW))
    assert owner(model) == "default/a:http"
    model.want(a=rival("a", vips=[]))
    assert owner(model) == "default/b:http"
    model.want(b=None)
    assert owner(model) == "default/c:http"
    model.want(a=rival("a"))
    assert owner(model) == "default/a:http"
    model.want(a=None, c=None)
    assert ("203.0.113.1", "tcp", 80) not in model.table["services4"]


@pytest.mark.contract("2.2.3")
def test_without_a_creation_time_a_service_is_the_youngest() -> None:
    assert owner(fresh(a=rival("a", ""), b=rival("b", NEW))) == "default/b:http"
    assert owner(fresh(a=rival("a", ""), b=rival("b", ""))) == "default/a:http", (
        "then the name decides"
    )


@pytest.mark.contract("2.2.3")
def test_a_cluster_ip_wins_over_an_external_address_whoever_is_older() -> None:
    intruder, victim = rival("a"), compiled("b", cluster_ip="203.0.113.1", created=NEW)
    for order in ("ab", "ba"):
        model = Model()
        for name in order:
            model.want(**{name: intruder if name == "a" else victim})
        assert owner(model) == "default/b:http", order
    assert owner(fresh(a=intruder, b=victim)) == "default/b:http"
    model.want(b=None)
    assert owner(model) == "default/a:http"


def test_services_that_exchange_a_frontend_change_together() -> None:
    model = fresh(
        a=rival("a"), b=rival("b", vips=["203.0.113.2"]), c=rival("c", vips=["203.0.113.3"])
    )
    changes = model.want(
        a=rival("a", vips=["203.0.113.2"]),
        b=rival("b", vips=["203.0.113.1"]),
        c=rival("c", vips=["203.0.113.4"]),
    )
    assert sorted(sorted(name.name for name in change.services) for change in changes) == [
        ["a", "b"],
        ["c"],
    ]
    assert model == fresh(
        a=rival("a", vips=["203.0.113.2"]),
        b=rival("b", vips=["203.0.113.1"]),
        c=rival("c", vips=["203.0.113.4"]),
    )


# --- any sequence ---------------------------------------------------------------------------------

specs = st.fixed_dictionaries(
    {
        "pods": st.lists(st.integers(2, 9), unique=True, max_size=5),
        "cluster_ip": st.sampled_from(["10.96.0.10", "10.96.0.11", "203.0.113.1"]),
        "vips": st.lists(st.sampled_from(["203.0.113.1", "203.0.113.2"]), max_size=2),
        "node_port": st.sampled_from([0, 30080, 30081]),
        "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "internalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "sessionAffinity": st.sampled_from(["None", "ClientIP"]),
        "loadBalancerSourceRanges": st.sampled_from(
            [[], ["10.0.0.0/8"], ["10.0.0.0/8", "192.0.2.0/24"]]
        ),
        "created": st.sampled_from([OLD, NEW, ""]),
    }
)
steps = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.none() | specs, min_size=1), min_size=1, max_size=8
)


@pytest.mark.contract("5.8.2", "2.2.3")
@settings(max_examples=150)
@given(steps)
def test_any_sequence_ends_as_a_fresh_start(
    sequence: list[dict[str, dict[str, Any] | None]],
) -> None:
    """And no transaction on the way deletes what is not there or adds what is there with another
    value.
    """
    model = Model()
    now: dict[str, Compiled | None] = {}
    for wanted in sequence:
        step = {
            name: None if spec is None else compiled(name, **spec) for name, spec in wanted.items()
        }
        now |= step
        model.want(**step)
        assert model == fresh(**now)
        assert model.remembered.routes.keys() == fresh(**now).remembered.routes.keys()


@pytest.mark.contract("5.7.2")
@settings(max_examples=100)
@given(before=specs, after=specs)
def test_between_the_transactions_every_verdict_finds_its_list(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Old verdict or new, before the first transaction, between the two or behind.

    Slot 0 is there, and all sources are.
    """
    fixed = {"cluster_ip": "10.96.0.10", "vips": ["203.0.113.1"], "node_port": 30080}
    old, new = compiled(**{**before, **fixed}), compiled(**{**after, **fixed})
    model = fresh(web=old)
    held = {where: dict(items) for where, items in model.table.items()}
    for batch in plan(model.remembered, [{key("web"): new}], InStep()):
        model.commit(batch.delta)
    for table in (held, fresh(web=new).table):
        for where, each, value in verdicts(table):
            assert points_somewhere(model.table, where, each, value)


def verdicts(table: Table) -> list[tuple[str, Key, Verdict]]:
    return [
        (where, each, value)
        for where, items in table.items()
        for each, value in items.items()
        if isinstance(value, Verdict)
    ]


def points_somewhere(table: Table, where: str, frontend: Key, verdict: Verdict) -> bool:
    """Whether a packet that has read a verdict finds slot 0 of the list that it is sent to."""
    if "-tcp-" not in verdict.target:
        return True
    lists = ("local_" if "local4" in verdict.target else "") + "endpoints4-tcp"
    if where.startswith("nodeport"):
        return (frontend[1], 0) in table.get(f"nodeport_{lists}", {})
    return (frontend[0], frontend[2], 0) in table.get(lists, {})
