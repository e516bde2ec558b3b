"""One sync: what it writes, in which order, and what it does when the kernel says no (contract 1.3,
5.7 to 5.10).
"""

import contextlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loguru import logger
from msgspec import structs

from nftproxy.address import Family, parse_address
from nftproxy.errors import ExistsError, KernelError, MissingError
from nftproxy.kernel import grace
from nftproxy.model import Object, ObjectName, Service
from nftproxy.routes import Key, Value
from nftproxy.sync import compilation, forgetting, preparation
from nftproxy.sync import table as table_module
from nftproxy.sync.table import Table
from nftproxy.table import plan as plan_module
from tests.support.objects import endpoint, endpoint_slice, service, service_cidr
from tests.support.tables import (
    bare_table,
    contents,
    deliver,
    generation,
    new_namespace,
    reading,
    table_in,
    unordered,
    watched,
)

OWN = [parse_address("192.168.50.11"), parse_address("fd00:50::11")]
STICKY = {"sessionAffinity": "ClientIP"}


def web(number: int = 0, pods: int = 2, **spec: Any) -> list[Object]:
    """A Service and its slice."""
    members = [
        endpoint(f"10.244.{number + 1}.{pod + 2}", f"node{pod % 2 + 1}") for pod in range(pods)
    ]
    return [
        service(f"web{number}", f"10.96.0.{10 + number}", **spec),
        endpoint_slice(f"web{number}", members),
    ]


def webs(count: int, pods: int = 2, **spec: Any) -> list[Object]:
    return [item for number in range(count) for item in web(number, pods, **spec)]


@pytest.fixture
def table() -> Iterator[Table]:
    with bare_table() as table:
        yield table


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    yield lines
    logger.remove(sink)


def sync(table: Table, *items: Object) -> Any:
    deliver(table, *items)
    return table.sync(Family.IPv4, OWN)


def same_as_fresh(table: Table, *items: Object) -> bool:
    with bare_table(*items) as fresh:
        while (report := fresh.sync(Family.IPv4, OWN)).postponed:
            assert report.refused == {}
        assert report.refused == {}
        return unordered(contents(table)) == unordered(contents(fresh))


@contextlib.contextmanager
def recorded(table: Table) -> Iterator[list[list[tuple[str, str, int]]]]:
    """The transactions of elements that a block makes.

    In each what is done to which set, with how many elements.
    """
    found: list[list[tuple[str, str, int]]] = []

    def recording(text: str) -> None:
        if text.startswith("{"):
            steps = []
            for command in json.loads(text)["nftables"]:
                ((verb, what),) = command.items()
                ((kind, body),) = what.items()
                steps.append(
                    (
                        verb if kind == "element" else f"{verb} {kind}",
                        body["name"],
                        len(body.get("elem", ())),
                    )
                )
            found.append(steps)

    with watched(table.kernel, recording):
        yield found


# --- what is written, in which order --------------------------------------------------------------


@pytest.mark.contract("5.8.3", "1.1.9", "1.3.7")
def test_nothing_to_do_is_no_transaction() -> None:
    """Also for a Service that went and came back in between, and for one that changed in what is
    not read.
    """
    with (
        new_namespace() as netns,
        reading(netns) as reader,
        table_in(netns, *webs(3), service_cidr("c", "10.96.0.0/16")) as table,
    ):
        sync(table)
        before = generation(reader)
        report = sync(table)
        assert (report.services, report.written, report.transactions, report.read_back) == (
            0,
            0,
            0,
            False,
        )
        table.store.remove(Service, ObjectName("default", "web0"))
        report = sync(
            table, *web(0, healthCheckNodePort=1), service_cidr("c", "10.96.0.0/16"), *web(1)
        )
        assert (report.services, report.written, report.transactions) == (1, 0, 0)
        assert generation(reader) == before


@pytest.mark.contract("5.7.2")
def test_additions_are_one_transaction_and_what_goes_takes_a_second(table: Table) -> None:
    sync(table, *webs(3))
    with recorded(table) as made:
        assert sync(table, *web(3), *web(0, 5)).transactions == 1
        assert sync(table, *web(0, 1), *web(1, 1), *web(4)).transactions == 2
    first, second, third = made
    assert {verb for verb, _, _ in first} == {"delete", "add"}, "verdicts are rewritten"
    assert {verb for verb, _, _ in second} == {"delete", "add"}
    assert third == [("delete", "hairpin4", 2), ("delete", "endpoints4-tcp", 4 + 1)]


def test_packets_on_their_way_are_waited_for(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the transactions of a sync, nowhere else, as it takes milliseconds."""
    waited: list[int] = []

    def wait() -> None:
        waited.append(len(made))

    with recorded(table) as made:
        monkeypatch.setattr(grace, "wait", wait)
        sync(table, *web(0, 3), *web(1, 3, **STICKY))
        assert waited == [0], "the part that remembers clients is there before its elements"
        waited.clear()
        sync(table, *web(0, 4))
        assert waited == []
        before = len(made)
        sync(table, *web(0, 2))
        assert (waited, len(made)) == ([before + 1], before + 2)
        waited.clear()
        before = len(made)
        sync(table, *web(1, 2, **STICKY))
        assert (waited, len(made)) == ([before + 1], before + 2)


RANGED: dict[str, Any] = {"vips": ["203.0.113.1"], "loadBalancerSourceRanges": ["198.51.100.0/24"]}


def test_source_ranges_come_before_their_address(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet meets them in two hooks, so there is a grace period in between."""
    waited: list[int] = []
    with recorded(table) as made:
        monkeypatch.setattr(grace, "wait", lambda: waited.append(len(made)))
        sync(table, *web(1, 2))
        waited.clear()
        before = len(made)
        report = sync(table, *web(0, 2, **RANGED))
    first, second = made[before:]
    assert {where for _, where, _ in first} == {"firewall4", "allowed4-24"}
    assert {"services4", "endpoints4-tcp"} <= {where for _, where, _ in second}
    assert before + 1 in waited
    assert report.transactions == 2


def test_nothing_is_left_of_source_ranges_whose_address_is_refused(table: Table) -> None:
    sync(table, *web(1, 2))
    with failing(table, lambda text: "services4" in text):
        assert sync(table, *web(0, 2, **RANGED)).refused
    assert table.kernel.elements("firewall4") == {}
    assert table.kernel.elements("allowed4-24") == {}


def test_waiting_is_for_a_grace_period() -> None:
    """Here and on every kernel of Debian: else only time would pass."""
    assert grace.wait()


def test_without_membarrier_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel with nohz_full, or a machine whose number of the call is not known."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(grace, "_syscall", lambda *_: -1)
    assert not grace.wait()
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert not grace.wait()
    assert slept == [grace._INSTEAD] * 2


def test_one_command_for_each_set(table: Table) -> None:
    """All elements of a set stand in one command.

    A command for each costs twice the time and memory.
    """
    with recorded(table) as made:
        sync(table, *webs(40))
    adds = [where for step in made for verb, where, _ in step if verb == "add"]
    assert len(adds) == len(set(adds))


def test_a_big_change_is_cut_by_service(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "BATCH", 10)
    sync(table)
    with recorded(table) as made:
        report = sync(table, *webs(20, 3))
    assert report.transactions == len(made) > 5
    for step in made:
        slots = sum(count for _, where, count in step if where == "endpoints4-tcp")
        verdicts = sum(count for _, where, count in step if where == "services4")
        assert slots == 3 * verdicts, "a service is never cut in two"
    assert same_as_fresh(table, *webs(20, 3))


def test_at_a_first_start_refusals_come_last(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then another proxy's table may still serve what we do not know yet."""
    monkeypatch.setattr(plan_module, "BATCH", 10)
    with recorded(table) as made:
        sync(table, service_cidr("c", "10.96.0.0/16"), *webs(20, 3))
    there: Counter[str] = Counter()
    for step in made:
        there.update({where: count for _, where, count in step})
        assert there["cluster_ips4"] <= there["services4"] <= there["endpoints4-tcp"] / 3
        if "service_cidrs4" in there:
            assert there["cluster_ips4"] == 20
    assert there["service_cidrs4"] == 1
    assert sum(any(where == "cluster_ips4" for _, where, _ in step) for step in made) > 1


def test_at_a_first_start_verdicts_come_together(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel validates all that there are in each transaction with one."""
    monkeypatch.setattr(plan_module, "BATCH", 5)
    items = webs(40, 3)
    with recorded(table) as made:
        sync(table, *items)
    slots = [
        number
        for number, step in enumerate(made)
        if any(where == "endpoints4-tcp" for _, where, _ in step)
    ]
    verdicts = [
        number
        for number, step in enumerate(made)
        if any(where == "services4" for _, where, _ in step)
    ]
    assert len(verdicts) <= len(slots) / 2
    assert same_as_fresh(table, *items)


def test_at_a_first_start_chains_of_services_come_together(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction with a chain has all verdicts validated, too.

    Elements of a service come after its own sets.
    """
    monkeypatch.setattr(plan_module, "BATCH", 5)
    items = webs(40, 3, **STICKY)
    made: list[str] = []

    def recording(text: str) -> None:
        made.append(
            "slots" if '"endpoints4-tcp"' in text else "chains" if "chain sticky-" in text else ""
        )

    with watched(table.kernel, recording):
        assert sync(table, *items).read_back
    count = Counter(made)
    assert count["slots"] == 40
    assert 1 < count["chains"] <= 40 / 2
    assert same_as_fresh(table, *items)


def test_at_a_first_start_picks_come_before_elements(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel walks along a whole map for each chain that looks into it."""
    monkeypatch.setattr(plan_module, "BATCH", 5)
    items = [item for number in range(12) for item in web(number, number + 1)]
    made: list[str] = []
    with watched(table.kernel, made.append):
        assert sync(table, *items).read_back
    chains = [number for number, text in enumerate(made) if "chain pick4-tcp-" in text]
    elements = [number for number, text in enumerate(made) if '"endpoints4-tcp"' in text]
    assert len(chains) == 1
    assert made[chains[0]].count("chain pick4-tcp-") == 12 + 1, "and where they end"
    assert len(elements) > 5
    assert chains[0] < elements[0]
    assert same_as_fresh(table, *items)


MEMORY = "affinity4-default/web0/tcp/http-8080"


def remember(table: Table, *endpoints: str) -> None:
    """Let clients be remembered with endpoints, as if they had connected."""
    clients: dict[Key, Value] = {
        (f"192.0.2.{number}",): address for number, address in enumerate(endpoints)
    }
    table.kernel.remember(MEMORY, clients, 3600)


@pytest.mark.contract("2.4.5")
def test_clients_forget_right_after_the_change(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the transaction of the change nobody learns the endpoint any more, then who knows it
    forgets it, in portions.
    """
    monkeypatch.setattr(forgetting, "FORGET", 2)
    sync(table, *web(0, 3, **STICKY))
    remember(table, *(f"10.244.1.{2 + number % 3}" for number in range(15)))
    with recorded(table) as made:
        sync(table, *web(0, 2, **STICKY))
    changed = {(verb, where) for verb, where, _ in made[0]}
    assert ("delete", "cluster_members4-default/web0/tcp/http") in changed
    assert ("add", "services4") in changed
    assert made[1:4] == [[("add", MEMORY, 2), ("delete", MEMORY, 2)]] * 2 + [
        [("add", MEMORY, 1), ("delete", MEMORY, 1)]
    ]
    assert len(table.kernel.elements(MEMORY)) == 10


@pytest.mark.contract("2.4.5")
def test_what_was_learnt_meanwhile_is_forgotten_in_quiet_times(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet found its endpoint among the members, and remembers it after all have forgotten."""
    sync(table, *web(0, 3, **STICKY))
    table.tidy()
    assert not table.untidy
    sync(table, *web(0, 2, **STICKY))
    remember(table, "10.244.1.2", "10.244.1.4")
    waited: list[int] = []
    monkeypatch.setattr(grace, "wait", lambda: waited.append(len(table.kernel.elements(MEMORY))))
    assert table.untidy
    table.tidy()
    assert waited[0] == 2
    assert table.kernel.elements(MEMORY) == {("192.0.2.0",): "10.244.1.2"}
    assert not table.untidy
    waited.clear()
    table.tidy()
    assert waited == []


@pytest.mark.contract("2.4.5")
def test_a_change_whose_clients_cannot_forget_is_not_believed(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync reads the table back, and they forget then."""
    sync(table, *web(0, 3, **STICKY), *web(1, 2))
    remember(table, "10.244.1.2", "10.244.1.4")

    def fail(*_: object) -> None:
        raise KernelError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(table.kernel, "forget", fail)
        with pytest.raises(KernelError, match="no memory"):
            sync(table, *web(0, 2, **STICKY), *web(1, 3))
    report = sync(table)
    assert (report.refused, report.read_back) == ({}, True)
    assert table.kernel.elements(MEMORY) == {("192.0.2.0",): "10.244.1.2"}
    assert same_as_fresh(table, *web(0, 2, **STICKY), *web(1, 3))


@pytest.mark.contract("2.4.5")
def test_an_entry_that_expires_while_it_is_forgotten(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting what is not there any more would fail the whole transaction."""
    sync(table, *web(0, 3, **STICKY))
    expired = {MEMORY: {("192.0.2.1",): "10.244.1.4"}}
    monkeypatch.setattr(table.kernel, "elements_of", lambda _: expired)
    report = sync(table, *web(0, 2, **STICKY))
    assert (report.refused, report.read_back) == ({}, False)


# --- the table is not as it was left --------------------------------------------------------------

HANDS = {
    "a missing slot": "delete element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 2 }",
    "a missing verdict": "delete element inet nftproxy services4 { 10.96.0.10 . tcp . 80 }",
    "a slot in the way": "add element inet nftproxy endpoints4-tcp { 10.96.0.10 . 80 . 3 : "
    "192.0.2.1 . 1 }",
    "a verdict in the way": "add element inet nftproxy no_endpoints4 { 10.96.0.11 . tcp . 80 : "
    "drop }",
    "an empty map": "flush map inet nftproxy endpoints4-tcp",
    "no table": "delete table inet nftproxy",
}
CHANGES = {"fewer": web(0, 2), "more": web(0, 4), "none": web(1, 0)}
MEETS = {
    "fewer": {"a missing slot", "a missing verdict", "an empty map", "no table"},
    "more": {"a missing verdict", "a slot in the way", "no table"},
    "none": {"a verdict in the way", "an empty map", "no table"},
}
"""What each change fails on, because it deletes what is missing or adds what is there with another
value.
"""


@pytest.mark.contract("5.10.3", "5.7.4", "5.8.4")
@pytest.mark.parametrize(
    ("change", "hand"), [(change, hand) for change in MEETS for hand in sorted(MEETS[change])]
)
def test_what_others_did_is_read_back_and_repaired(
    table: Table, warnings: list[str], change: str, hand: str
) -> None:  # fmt: skip
    """When a transaction fails because of it; then everything is put right, with one line."""
    items = [*webs(2, 3), service_cidr("c", "10.96.0.0/16")]
    sync(table, *items)
    table.kernel.library.run(f"{HANDS[hand]}\n")
    report = sync(table, *CHANGES[change])
    assert (report.refused, report.read_back) == ({}, True)
    assert len(warnings) == 1
    assert "reading it back" in warnings[0]
    assert same_as_fresh(table, *items, *CHANGES[change])
    assert table.kernel.networks("service_cidrs4", Family.IPv4)
    assert table.kernel.elements("nodeport_ips4")


@pytest.mark.contract("5.7.4")
@pytest.mark.parametrize(
    ("change", "hand"),
    [(change, hand) for change in MEETS for hand in sorted(HANDS.keys() - MEETS[change])],
)
def test_what_others_did_elsewhere_is_repaired_when_it_is_read_back(
    table: Table, warnings: list[str], change: str, hand: str
) -> None:  # fmt: skip
    """A change that has nothing to do with it succeeds, and nothing is said."""
    items = [*webs(2, 3), service_cidr("c", "10.96.0.0/16")]
    sync(table, *items)
    table.kernel.library.run(f"{HANDS[hand]}\n")
    report = sync(table, *CHANGES[change])
    assert (report.refused, report.read_back, warnings) == ({}, False, [])
    table.distrust(program=False)
    sync(table)
    assert same_as_fresh(table, *items, *CHANGES[change])


@pytest.mark.contract("2.6.5", "5.10.3")
def test_nodeport_addresses_when_the_table_is_gone(table: Table) -> None:
    """A failed sync says so, and the next one puts everything right."""
    sync(table, *webs(2))
    table.kernel.library.run("delete table inet nftproxy\n")
    with pytest.raises(MissingError):
        table.sync(Family.IPv4, [])  # as if the node had lost its address
    sync(table)
    assert same_as_fresh(table, *webs(2))
    assert set(table.kernel.elements("nodeport_ips4")) == {("192.168.50.11",)}


def test_nodeport_addresses_that_could_not_be_written_are_written_later(table: Table) -> None:
    sync(table, *webs(2))
    table.distrust(program=False)
    table.kernel.library.run("flush set inet nftproxy nodeport_ips4\n")
    with failing(table, lambda text: "nodeport_ips4" in text), pytest.raises(KernelError):
        sync(table)
    sync(table)
    assert set(table.kernel.elements("nodeport_ips4")) == {("192.168.50.11",)}


# --- the kernel refuses ---------------------------------------------------------------------------


@contextlib.contextmanager
def failing(
    table: Table, when: Callable[[str], bool], error: type[KernelError] = KernelError
) -> Iterator[list[str]]:
    """Have transactions fail; yields those that did."""
    failed: list[str] = []

    def maybe(text: str) -> None:
        if when(text):
            failed.append(text)
            raise error("no")

    with watched(table.kernel, maybe):
        yield failed


@pytest.mark.contract("5.10.1", "5.10.2")
def test_a_failed_second_transaction_is_made_up_for(table: Table) -> None:
    sync(table, *web(0, 3))
    with (
        failing(table, lambda text: '"delete"' in text and '"add"' not in text),
        pytest.raises(KernelError),
    ):
        sync(table, *web(0, 1))
    assert ("10.96.0.10", 80, 2) in table.kernel.elements("endpoints4-tcp"), (
        "nothing points to it, and it is still there"
    )
    sync(table)
    assert same_as_fresh(table, *web(0, 1))


@pytest.mark.contract("5.10.1")
def test_a_failed_second_transaction_does_not_delete_what_came_back(table: Table) -> None:
    sync(table, *web(0, 3))
    with (
        failing(table, lambda text: '"delete"' in text and '"add"' not in text),
        pytest.raises(KernelError),
    ):
        sync(table, *web(0, 1))
    report = sync(table, *web(0, 3))
    assert report.refused == {}
    assert same_as_fresh(table, *web(0, 3))
    assert sync(table).transactions == 0


@pytest.mark.contract("5.10.1")
@pytest.mark.parametrize(
    "needle",
    ["10.96.0.13", "cluster_ips4", "pick4-tcp-2", "service_cidrs4", "nodeport_ips4", "table inet"],
)
def test_whatever_fails_at_a_first_start_is_tried_again(table: Table, needle: str) -> None:
    items = [*webs(6), service_cidr("c", "10.96.0.0/16")]
    deliver(table, *items)
    with (
        failing(table, lambda text: needle in text or text.startswith("add table")),
        pytest.raises(KernelError),
    ):
        table.sync(Family.IPv4, OWN)
    assert sync(table).refused == {}
    assert same_as_fresh(table, *items)
    assert table.kernel.networks("service_cidrs4", Family.IPv4)
    assert table.kernel.elements("nodeport_ips4")


@pytest.mark.contract("5.10.1")
def test_of_many_only_the_refused_ones_are_set_aside(table: Table, warnings: list[str]) -> None:
    sync(table, *webs(30))
    bad = {"10.96.0.13", "10.96.0.14", "10.96.0.39"}
    changed = webs(30, 3)
    with failing(table, lambda text: any(f'"{ip}"' in text for ip in bad)) as failed:
        report = sync(table, *changed)
    assert {name.name for name in report.refused} == {"web3", "web4", "web29"}
    assert len(failed) < 3 * 6, "found by halving"
    assert len(warnings) == 3
    held = contents(table)["services4"]
    counts = {str(key[0]): str(verdict) for key, verdict in held.items()}
    assert {ip for ip, verdict in counts.items() if verdict == "goto pick4-tcp-2"} == bad, (
        "they stay as they were"
    )
    assert sync(table).services == 0, "not tried again until they change"
    assert (
        sync(
            table,
            *[
                item
                for item in webs(30, 4)
                if item.metadata.name.startswith(("web3", "web4", "web29"))
            ],
        ).refused
        == {}
    )


@pytest.mark.contract("5.10.1")
@pytest.mark.parametrize("where", ["services4", "endpoints4-tcp", "cluster_ips4"])
def test_at_a_first_start_only_the_refused_one_is_set_aside(table: Table, where: str) -> None:
    """Also when what the kernel refuses was held back to be written with that of others."""
    with failing(table, lambda text: '"10.96.0.13"' in text and f'"{where}"' in text):
        report = sync(table, *webs(6))
    assert {name.name for name in report.refused} == {"web3"}
    assert sync(table, *web(3, 3)).refused == {}
    assert same_as_fresh(table, *webs(6), *web(3, 3))


@pytest.mark.contract("5.10.1")
def test_services_that_exchange_a_frontend_are_set_aside_together(table: Table) -> None:
    one: dict[str, Any] = {"vips": ["203.0.113.1"]}
    two: dict[str, Any] = {"vips": ["203.0.113.2"]}
    sync(table, *web(0, **one), *web(1, **two), *web(2))
    with failing(table, lambda text: '"203.0.113.1"' in text):
        report = sync(table, *web(0, **two), *web(1, **one), *web(2, 3))
    assert {name.name for name in report.refused} == {"web0", "web1"}
    assert same_as_fresh(table, *web(0, **one), *web(1, **two), *web(2, 3))


@pytest.mark.parametrize("error", [MissingError, ExistsError])
def test_an_error_that_reading_back_does_not_mend_is_a_refusal(
    table: Table, error: type[KernelError]
) -> None:
    """It cannot go on for ever."""
    sync(table, *webs(3))
    with failing(table, lambda text: '"10.96.0.11"' in text, error):
        report = sync(table, *web(1, 4), *web(2, 4))
        assert report.read_back
        assert {name.name for name in report.refused} == {"web1"}
    sync(table, *web(1, 5))
    assert same_as_fresh(table, *web(0), *web(1, 5), *web(2, 4))


@pytest.mark.contract("1.3.10")
def test_one_family_does_not_stop_the_other() -> None:
    dual = service("dual", ["10.96.0.10", "fd00::10"])
    slices: list[Object] = [
        endpoint_slice("dual", [endpoint("10.244.1.2")]),
        endpoint_slice("dual", [endpoint("fd00:244::2")], family="IPv6"),
    ]
    with bare_table(dual, *slices, families=list(Family)) as table:
        with failing(
            table, lambda text: '"fd00::10"' in text or text == "add table inet nftproxy\n"
        ):
            assert table.sync(Family.IPv4, OWN).refused == {}
            with pytest.raises(KernelError):
                table.sync(Family.IPv6, OWN)
            assert not table.store.pending(Family.IPv4)
            assert table.store.pending(Family.IPv6)
        assert "services4" in contents(table)
        assert "services6" not in contents(table)
        assert table.sync(Family.IPv6, OWN).refused == {}
        assert "services6" in contents(table)


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.contract("2.7.1", "3.1.5")
def test_what_is_ignored_is_said_once_until_it_changes(table: Table, warnings: list[str]) -> None:
    bad = service(
        externalIPs=["nonsense"], ports=[{"name": "a", "port": 1}, {"name": "b", "port": 2}]
    )
    sync(table, bad)
    assert len(warnings) == 1
    sync(table, bad, endpoint_slice(endpoints=[endpoint("10.244.1.2")], port_name="a"))
    assert len(warnings) == 1
    sync(
        table,
        endpoint_slice(
            endpoints=[endpoint("127.0.0.1")],
            ports=[{"name": "a", "port": 1}, {"name": "b", "port": 2}],
        ),
    )
    assert [line for line in warnings[1:] if "127.0.0.1" in line] == warnings[2:] != []
    assert len(set(warnings[1:])) == len(warnings[1:]), (
        "each of them once, whatever the number of ports"
    )
    del warnings[:]
    sync(table, service(), endpoint_slice())
    assert warnings == []
    sync(table, bad)
    assert len(warnings) == 1


@pytest.mark.contract("2.2.3")
def test_rivals_are_named_once(table: Table, warnings: list[str]) -> None:
    claim: dict[str, Any] = {"vips": ["203.0.113.1", "203.0.113.2"]}
    sync(
        table,
        *web(0, created="2026-01-01T00:00:00Z", **claim),
        *web(1, created="2026-01-02T00:00:00Z", **claim),
    )
    assert warnings == [
        (
            "Service default/web0 has 203.0.113.1:80/tcp and 1 more, as the oldest of those who "
            "claim it; without it: default/web1\n"
        )
    ]
    sync(table, *web(0, 3, created="2026-01-01T00:00:00Z", **claim))
    assert len(warnings) == 1


@pytest.mark.contract("2.2.3")
def test_a_restart_never_gives_a_cluster_ip_to_the_intruder(
    table: Table, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "PORTION", 1)
    victim = web(1, created="2026-01-02T00:00:00Z")
    sync(table, *web(0, created="2026-01-01T00:00:00Z", externalIPs=["10.96.0.11"]), *victim)
    assert [line.partition(",")[2] for line in warnings] == [
        " as its ClusterIP; without it: default/web0\n"
    ]
    table.distrust(program=False)
    report = sync(table)
    assert (report.read_back, report.written) == (True, 0)


# --- a Service with very many chains --------------------------------------------------------------


def many_ports(count: int, pods: int = 2, scope: str = "port") -> list[Object]:
    """A Service with so many UDP ports and affinity, and its slice."""
    ports = [{"name": f"p{n}", "port": 1000 + n, "protocol": "UDP"} for n in range(count)]
    members = [endpoint(f"10.244.9.{pod + 2}") for pod in range(pods)]
    targets = [{"name": port["name"], "port": 8053, "protocol": "UDP"} for port in ports]
    return [
        service(
            "large",
            "10.96.9.9",
            ports=ports,
            sessionAffinity="ClientIP",
            annotations={"nftproxy.io/affinity-scope": scope},
        ),
        endpoint_slice("large", members, ports=targets),
    ]


def test_what_needs_very_many_chains_lets_others_go_first(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LAST", "PREPARED"):
        monkeypatch.setattr(preparation, limit, 4)
    sync(table, *web(0))
    report = sync(table, *many_ports(10), *web(0, 3))
    assert [name.name for name in report.postponed] == ["large"]
    assert [name.name for name in report.looked_at] == ["web0"]
    assert len(contents(table)["endpoints4-tcp"]) == 3, "the other one is in place"
    assert "endpoints4-udp" not in contents(table)
    assert table.store.pending(Family.IPv4)
    report = sync(table, *web(1))
    assert (list(report.postponed), list(report.looked_at)) == (
        [ObjectName("default", "large")],
        [ObjectName("default", "web1")],
    )
    assert ("10.96.0.11", "tcp", 80) in contents(table)["services4"]
    assert sync(table).postponed
    report = sync(table)
    assert (report.postponed, report.services) == ({}, 1)
    assert len(contents(table)["endpoints4-udp"]) == 20
    assert not table.store.pending(Family.IPv4)
    assert same_as_fresh(table, *many_ports(10), *web(0, 3), *web(1))
    assert sync(table, *many_ports(10, pods=3)).postponed, (
        "another number of endpoints needs other chains"
    )
    assert not sync(table, *many_ports(10)).postponed, "the old ones are still there"


def test_ports_that_share_a_memory_let_others_go_first_too(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LAST", "PREPARED"):
        monkeypatch.setattr(preparation, limit, 4)
    sync(table, *web(0))
    report = sync(table, *many_ports(10, scope="service"), *web(0, 3))
    assert [name.name for name in report.postponed] == ["large"]
    assert len(contents(table)["endpoints4-tcp"]) == 3
    while sync(table).postponed:
        pass
    assert len(contents(table)["endpoints4-udp"]) == 20
    assert same_as_fresh(table, *many_ports(10, scope="service"), *web(0, 3))
    while sync(table, *many_ports(10)).postponed:
        pass
    assert same_as_fresh(table, *many_ports(10), *web(0, 3))


def test_a_first_load_leaves_it_out_so_that_all_others_are_served(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the oldest; none of its chains is made before others answer."""
    monkeypatch.setattr(preparation, "LAST", 4)
    monkeypatch.setattr(compilation, "PORTION", 1)
    with watched(table.kernel, (made := list[str]()).append):
        report = sync(table, *many_ports(10), *webs(3, created="2026-01-02T00:00:00Z"))
    assert [name.name for name in report.postponed] == ["large"]
    assert len(contents(table)["services4"]) == 3
    assert not any("default/large" in text for text in made)
    while sync(table).postponed:
        pass
    assert len(contents(table)["endpoints4-udp"]) == 20
    assert same_as_fresh(table, *many_ports(10), *webs(3))


def test_chains_that_the_kernel_refuses_set_their_service_aside(
    table: Table, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LAST", "PREPARED"):
        monkeypatch.setattr(preparation, limit, 4)
    sync(table, *web(0))
    with failing(table, lambda text: "default/large" in text):
        report = sync(table, *many_ports(10), *web(0, 3))
    assert ([name.name for name in report.refused], report.postponed) == (["large"], {})
    assert len(contents(table)["endpoints4-tcp"]) == 3
    assert any("Service default/large IPv4: the kernel refuses it" in line for line in warnings)


def test_reading_back_does_it_all_at_once_but_last(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the table holds of it must not be taken for something that nobody wants."""
    for limit in ("LAST", "PREPARED"):
        monkeypatch.setattr(preparation, limit, 4)
    sync(table, *web(0))
    assert sync(table, *many_ports(10), *web(2)).postponed
    table.distrust(program=False)
    with recorded(table) as made:
        report = sync(table, *web(1))
    assert (report.read_back, report.postponed) == (True, {})
    first, *rest = [{where for _, where, _ in steps} for steps in made]
    assert "endpoints4-tcp" in first
    assert "endpoints4-udp" not in first
    assert any("endpoints4-udp" in places for places in rest)
    assert same_as_fresh(table, *webs(3), *many_ports(10))


def test_tidying_makes_way_for_a_sync(table: Table) -> None:
    sync(table, *web(0, 3, **STICKY))
    sync(table, *web(0, 2, **STICKY))
    chains = set(table.kernel.chains)
    assert table.tidy(busy=lambda: True)
    assert table.untidy
    assert table.kernel.chains == chains
    assert table.tidy()
    assert table.kernel.chains < chains
    assert not table.untidy


# --- tidying --------------------------------------------------------------------------------------


@pytest.mark.contract("5.9.1", "5.9.3", "5.9.5")
def test_tidying_keeps_what_is_used_and_some_spare_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "SPARE_PICKS", 6)
    with new_namespace() as netns, reading(netns) as reader, table_in(netns) as table:
        sync(table, *web(0, 3, **STICKY, node_port=30080))
        for pods in (1, 2):
            sync(table, *web(0, pods, **STICKY, node_port=30080))
            table.tidy()
        assert "pick4-tcp-3" in reader.chains(), "few enough to stay"
        sync(table, *web(0, 5, node_port=30080))
        table.tidy()
        chains, sets = reader.chains(), reader.sets()
        assert {name for name in chains if "-tcp-" in name} == {
            "pick4-tcp-5",
            "pick4-tcp-first",
            "nodeport-pick4-tcp-5",
            "nodeport-pick4-tcp-first",
            "nodeport-external4-tcp-5",
        }
        assert not [name for name in {*chains, *sets} if "default/" in name]
        before = generation(reader)
        table.tidy()
        assert generation(reader) == before
        sync(table, *web(0, 3, **STICKY, node_port=30080))
        assert "pick4-tcp-3" in reader.chains(), "made again"


@pytest.mark.contract("5.9.4")
def test_what_cannot_be_deleted_yet_is_tried_again(table: Table) -> None:
    sync(table, *web(0, 3, **STICKY))
    sync(table, *web(0, 3))
    assert table.untidy
    with failing(table, lambda text: "delete" in text):
        assert not table.tidy()
    assert table.untidy
    assert table.tidy()
    assert not table.untidy
    assert not [name for name in table.kernel.chains if "default/" in name]


@pytest.mark.contract("3.1.2")
def test_a_slice_of_names_is_logged_once_per_family() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    names = structs.replace(endpoint_slice(endpoints=[endpoint("db.example")]), address_type="FQDN")
    try:
        ports = [{"name": name, "port": port} for name, port in (("http", 80), ("alt", 81))]
        with bare_table(
            service(cluster_ip=["10.96.0.10", "fd00::10"], ports=ports), families=Family
        ) as table:
            for family in Family:
                table.sync(family, [])
            assert lines == []
            deliver(table, names)
            for family in Family:
                assert table.sync(family, []).services == 1
                assert table.sync(family, []).services == 0
    finally:
        logger.remove(sink)
    assert [line for line in lines if "FQDN" in line] == [
        f"Service default/web {family}: EndpointSlice web-ipv4: addressType FQDN; ignored\n"
        for family in Family
    ]
