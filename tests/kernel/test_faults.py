"""Transactions that fail, processes that die, neighbours that do strange things.

Traffic goes on, and nothing is lost.

A killed process is played by an exception that nothing catches and a table object that is thrown
away: what is left of it is what the kernel holds, which is all that a new process sees.
"""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from loguru import logger

from nftproxy.address import Family
from nftproxy.configuration.settings import OnLocalhost
from nftproxy.errors import KernelError
from nftproxy.forwarder.process import LocalNodePorts
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.client import Answer, Refused
from nftproxy.lab.namespace import enter
from nftproxy.model import Object, ObjectName, Service
from nftproxy.routes import Key, Value
from nftproxy.store import Store
from nftproxy.sync.table import Table
from nftproxy.table import program as program_module
from nftproxy.table.program import is_pick
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.tables import Watched, bare_table, deliver, table_in, watched
from tests.support.world import World, settings, unique_name


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def table(netns: str, *objects: Object) -> Iterator[Table]:
    """A table in a namespace, with objects delivered but not yet synced."""
    chosen = settings(families=[Family.IPv4])
    with enter(netns):
        kernel = Kernel()
    with kernel:
        found = Table(chosen, Store(chosen.families), kernel)
        for item in objects:
            found.store.put(item)
        yield found


def elements(found: Table) -> dict[str, dict[Key, Value]]:
    found.kernel.refresh()
    return {
        name: found.kernel.elements(name)
        for name in sorted(found.kernel.sets)
        if "cidrs" not in name
    }


def cluster(*counts: int, affinity: str = "None", policy: str = "Cluster") -> list[Object]:
    """Services web0, web1, ... with so many endpoints each.

    The NodePort makes every kind of map take part.
    """
    found: list[Object] = []
    for number, count in enumerate(counts):
        spec: dict[str, Any] = {
            "sessionAffinity": affinity,
            "externalTrafficPolicy": policy,
            "loadBalancerSourceRanges": ["198.51.100.0/24"],
        }
        found.append(
            service(
                f"web{number}",
                f"10.96.0.{10 + number}",
                node_port=30080 + number,
                vips=[f"203.0.113.{number + 1}"],
                **spec,
            )
        )
        members = [
            endpoint(f"10.244.1.{2 + e}", "node1" if e % 2 else "node2") for e in range(count)
        ]
        found.append(endpoint_slice(f"web{number}", members))
    return found


def fail_on(kernel: Kernel, needle: str, error: Callable[[], BaseException]) -> None:
    """Have every transaction that contains a text fail."""

    def failing(text: str) -> None:
        if needle in text:
            raise error()

    kernel.library = Watched(kernel, failing)


@pytest.mark.contract("5.10.1")
def test_a_refused_service_is_set_aside_alone(netns: str) -> None:
    log: list[str] = []
    sink = logger.add(log.append, level="ERROR", format="{message}")
    with table(netns, *cluster(*[2] * 20)) as found:
        library = found.kernel.library
        fail_on(found.kernel, '"10.96.0.17"', lambda: KernelError("no"))
        report = found.sync(Family.IPv4, [])
        assert [str(name) for name in report.refused] == ["default/web7"]
        assert (
            len(
                {key[0] for key in elements(found)["services4"]}
                & {f"10.96.0.{10 + n}" for n in range(20)}
            )
            == 19
        )
        assert len([line for line in log if "default/web7" in line]) == 1
        assert found.sync(Family.IPv4, []).refused == {}  # unchanged: not tried again
        found.kernel.library = library  # the kernel accepts everything again
        found.store.put(cluster(*[2] * 8)[14])
        found.store.put(endpoint_slice("web7", [endpoint("10.244.9.9")]))
        assert found.sync(Family.IPv4, []).refused == {}
        assert elements(found)["endpoints4-tcp"]["10.96.0.17", 80, 0] == ("10.244.9.9", 8080)
    logger.remove(sink)


def of_service(number: int, held: dict[str, dict[Key, Value]]) -> dict[str, dict[Key, Value]]:
    """What a table holds of one of the services of `cluster`, by its frontends and its name."""
    fields = {f"10.96.0.{10 + number}", f"203.0.113.{number + 1}", 30080 + number}
    found = {
        where: items
        if f"/web{number}/" in where
        else {key: value for key, value in items.items() if not fields.isdisjoint(key)}
        for where, items in held.items()
    }
    return {where: items for where, items in found.items() if items}


@pytest.mark.contract("5.10.1")
@pytest.mark.parametrize("after", ["changes", "is deleted"])
@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_a_service_that_is_refused_after_reading_back_stays_as_it_was(
    netns: str, affinity: str, after: str
) -> None:
    objects = cluster(3, 3, 3, affinity=affinity, policy="Local")
    with table(netns, *objects) as before:
        before.sync(Family.IPv4, [])
        held = elements(before)
    members = [endpoint("10.244.1.3", "node1"), endpoint("10.244.1.9", "node2")]
    changed: list[Object] = [
        service("web1", "10.96.0.11", node_port=30099, sessionAffinity=affinity),
        endpoint_slice("web1", members),
    ]
    first, fewer = cluster(1, affinity=affinity, policy="Local"), objects[0:2]
    with table(netns, *first, *changed) as found:
        library = found.kernel.library
        fail_on(found.kernel, '"10.96.0.11"', lambda: KernelError("no"))
        report = found.sync(Family.IPv4, [])
        assert [str(name) for name in report.refused] == ["default/web1"]
        now = elements(found)
        assert of_service(1, now) == of_service(1, held)
        assert not of_service(2, now), "others are applied, also the deletion of one"
        assert of_service(0, now)["endpoints4-tcp"].keys() == {
            (address, 80, 0) for address in ("10.96.0.10", "203.0.113.1")
        }

        for item in fewer:  # others change; nothing is read back for that
            found.store.put(item)
        assert found.sync(Family.IPv4, []).read_back is False
        found.tidy()
        assert of_service(1, elements(found)) == of_service(1, held)
        assert of_service(0, elements(found)) == of_service(0, held)

        found.kernel.library = library
        if after == "changes":
            wanted = [*fewer, *changed[:1], endpoint_slice("web1", members[:1])]
            found.store.put(wanted[-1])
        else:
            wanted = fewer
            found.store.remove(Service, changed[0].metadata.key)
        assert found.sync(Family.IPv4, []).refused == {}
        found.tidy()
        assert same_but_for_slots(elements(found), fresh(*wanted))
        chains = found.kernel.chains
        with bare_table(*wanted) as new:
            new.sync(Family.IPv4, [])
            assert {each for each in chains - new.kernel.chains if not is_pick(each)} == set()


@pytest.mark.contract("5.10.1")
def test_a_refused_service_answers_as_before_a_restart() -> None:
    with World(lab={"nodes": 1, "pods": 3, "families": [Family.IPv4]}) as world:
        other = (service("other", "10.96.0.11"), world.endpoints("pod1-1", of="other"))
        world.apply(service(), world.endpoints("pod1-1", "pod1-2"), *other)
        found = world.start("node1")
        library = found.kernel.library
        fail_on(found.kernel, '"10.96.0.10"', lambda: KernelError("no"))
        for item in (service(), world.endpoints("pod1-3"), other[0]):
            found.store.put(item)
        found.store.put(world.endpoints("pod1-2", of="other"))
        assert [str(name) for name in found.sync(Family.IPv4, []).refused] == ["default/web"]
        assert world.answers("client", "10.96.0.10", 80).keys() == {"pod1-1", "pod1-2"}
        assert world.answers("client", "10.96.0.11", 80).keys() == {"pod1-2"}
        found.kernel.library = library
        world.apply(world.endpoints("pod1-3"))
        assert world.answers("client", "10.96.0.10", 80).keys() == {"pod1-1", "pod1-2"}, (
            "unchanged: not tried again"
        )
        world.apply(world.endpoints("pod1-3", "pod1-1"))
        assert world.answers("client", "10.96.0.10", 80).keys() == {"pod1-1", "pod1-3"}


VIP = "203.0.113.7"
RANGES: dict[str, Any] = {"loadBalancerSourceRanges": ["198.51.100.0/24"]}


@contextlib.contextmanager
def refusing(found: Table, field: str | int) -> Iterator[None]:
    """Have the kernel refuse every transaction that has an address or a port in a key."""

    def look(text: str) -> None:
        if re.search(rf"[\[,]{json.dumps(field)}[\],]", text):
            raise KernelError("no")

    with watched(found.kernel, look):
        yield


@pytest.mark.contract("5.10.1", "2.2.3")
@pytest.mark.parametrize("ready", [True, False], ids=["ready", "without endpoints"])
def test_a_frontend_that_a_refused_service_has_lost_is_its_new_owners_alone(ready: bool) -> None:
    """It moved to another one meanwhile; nothing of the old owner stays there."""
    with World(lab={"nodes": 1, "pods": 3, "families": [Family.IPv4]}) as world:
        world.lab.route("client", "203.0.113.0/24", "node1")
        old = service("a", "10.96.0.10", vips=[VIP], sessionAffinity="ClientIP", **RANGES)
        world.apply(old, world.endpoints("pod1-1", "pod1-3", of="a"))
        found = world.start("node1")
        moved: list[Object] = [
            service("a", "10.96.0.10", sessionAffinity="ClientIP"),
            world.endpoints("pod1-1", of="a"),
            service("b", "10.96.0.11", vips=[VIP]),
        ]
        deliver(found, *moved, *([world.endpoints("pod1-2", of="b")] if ready else []))
        with refusing(found, "10.96.0.10"):
            assert [str(name) for name in found.sync(Family.IPv4, []).refused] == ["default/a"]
        if ready:
            assert world.answers("client", VIP, 80).keys() == {"pod1-2"}
        else:
            assert isinstance(world.connect("client", VIP, 80), Refused)
        assert world.answers("pod1-2", "10.96.0.10", 80).keys() <= {"pod1-1", "pod1-3"}
        held = elements(found)
        assert not any(VIP in key for where in ("firewall4", "learn4") for key in held[where])


@pytest.mark.contract("5.10.1", "4.4.1")
def test_what_a_refused_service_has_in_common_with_others_stays_when_they_go() -> None:
    """An endpoint that reaches itself needs masquerading, as long as any service has it."""
    with World(lab={"nodes": 1, "pods": 2, "families": [Family.IPv4]}) as world:
        both: list[Object] = [
            item
            for name, address in (("a", "10.96.0.10"), ("c", "10.96.0.11"))
            for item in (
                service(name, address, sessionAffinity="ClientIP"),
                world.endpoints("pod1-1", of=name),
            )
        ]
        world.apply(*both)
        held = elements(world.tables["node1"])
        found = world.start("node1")
        for item in (both[0], world.endpoints("pod1-2", of="a"), *both[2:]):
            found.store.put(item)
        with refusing(found, "10.96.0.10"):
            assert [str(name) for name in found.sync(Family.IPv4, []).refused] == ["default/a"]
        found.store.remove(Service, both[2].metadata.key)
        report = found.sync(Family.IPv4, [])
        assert (report.read_back, report.refused) == (False, {})
        found.tidy()
        now = elements(found)
        assert all(now[where] == held[where] for where in ("hairpin4", "members4"))
        assert ("10.96.0.11",) not in now["cluster_ips4"]
        assert world.ask("pod1-1", "10.96.0.10", 80).name == "pod1-1"
        found.store.remove(Service, both[0].metadata.key)
        assert found.sync(Family.IPv4, []).read_back, "nobody remembers what it has"
        found.tidy()
        assert not any(elements(found).values())


@pytest.mark.contract("5.3.1", "5.10.1")
def test_a_refused_service_whose_name_is_too_long_for_a_comment(netns: str) -> None:
    name, port = "s" * 63, "p" * 15

    def version(**spec: Any) -> list[Object]:
        found = (
            service(name, "10.96.0.10", port_name=port, **spec),
            endpoint_slice(name, [endpoint("10.244.1.2")], port_name=port),
        )
        return [
            msgspec.structs.replace(
                item, metadata=msgspec.structs.replace(item.metadata, namespace="n" * 63)
            )
            for item in found
        ]

    with table(netns, *version(node_port=30080, vips=[VIP])) as found:
        found.sync(Family.IPv4, [])
        held = elements(found)
        assert len(held["services4"]) == 2
    with table(netns, *version(node_port=30081)) as found, refusing(found, 30081):
        assert len(found.sync(Family.IPv4, []).refused) == 1
        assert elements(found) == held


def test_a_refused_service_keeps_its_nodeport_on_localhost(netns: str) -> None:
    """A read-back of a process that forwards it."""
    chosen = settings(families=[Family.IPv4], on_localhost=OnLocalhost.FORWARDED)
    ports = LocalNodePorts(Family.IPv4)
    objects: list[Object] = [
        item
        for number in range(2)
        for item in (
            service(f"s{number}", f"10.96.0.{10 + number}", node_port=30080 + number),
            endpoint_slice(f"s{number}", [endpoint("10.244.1.2")]),
        )
    ]
    with table_in(netns, *objects, chosen=chosen) as found:

        def forwarded() -> dict[int, bool]:
            report = found.sync(Family.IPv4, [])
            changed = ports.changed(
                report.node_ports,
                read_back=report.read_back,
                whole=not report.postponed,
                kept=report.kept,
            )
            return {frontend.port: backends is not None for frontend, backends in changed.items()}

        assert forwarded() == {30080: True, 30081: True}
        found.distrust(program=False)
        deliver(found, endpoint_slice("s0", [endpoint("10.244.1.9")]))
        found.store.remove(Service, objects[2].metadata.key)
        with refusing(found, "10.96.0.10"):
            assert forwarded() == {30081: False}
        assert ("tcp", 30080) in elements(found)["nodeport_services4"]
        found.store.remove(Service, objects[0].metadata.key)
        assert forwarded() == {30080: False}


def test_chains_go_while_a_service_is_left_as_it_was(netns: str) -> None:
    """Those of others, as many as come and go."""
    held: list[Object] = [
        service("a", "10.96.0.10", sessionAffinity="ClientIP", externalTrafficPolicy="Local"),
        endpoint_slice("a", [endpoint("10.244.1.2")]),
    ]
    with table(netns, *held) as found:
        found.sync(Family.IPv4, [])
    changed = endpoint_slice("a", [endpoint("10.244.1.2"), endpoint("10.244.1.3")])
    with table(netns, held[0], changed) as found:
        with refusing(found, "10.96.0.10"):
            assert len(found.sync(Family.IPv4, []).refused) == 1
        found.tidy()
        before = found.kernel.chains, found.kernel.sets
        for number in range(3):
            for item in (
                service(f"b{number}", "10.96.0.11", sessionAffinity="ClientIP"),
                endpoint_slice(f"b{number}", [endpoint("10.244.1.9")]),
            ):
                found.store.put(item)
            assert found.sync(Family.IPv4, []).refused == {}
            found.store.remove(Service, ObjectName("default", f"b{number}"))
            assert found.sync(Family.IPv4, []).refused == {}
            assert found.tidy()
        assert {name for name in found.kernel.chains - before[0] if not is_pick(name)} == set()
        assert found.kernel.sets == before[1]
        assert elements(found)["endpoints4-tcp"] == {("10.96.0.10", 80, 0): ("10.244.1.2", 8080)}


def test_an_element_that_libnftables_itself_refuses(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nftproxy.kernel import transactions as kernel_module

    honest = kernel_module._json

    def bad(key: Key, value: Value) -> object:
        return honest(
            (("no.such.address.invalid"), *key[1:]) if key[0] == "10.96.0.12" else key, value
        )

    with table(netns, *cluster(2, 2, 2, 2)) as found:
        monkeypatch.setattr(kernel_module, "_json", bad)
        report = found.sync(Family.IPv4, [])
        assert [str(name) for name in report.refused] == ["default/web2"]
        assert {
            key[0] for key in elements(found)["services4"] if str(key[0]).startswith("10.")
        } == {
            "10.96.0.10",
            "10.96.0.11",
            "10.96.0.13",
        }


@pytest.mark.contract("5.10.1", "1.2.6", "5.10.2")
def test_a_kernel_that_refuses_everything_loses_nothing(netns: str) -> None:
    with table(netns, *cluster(2, 3)) as found:
        found.sync(Family.IPv4, [])
        before = elements(found)
        library = found.kernel.library
        fail_on(found.kernel, "", lambda: KernelError("out of memory"))
        for item in cluster(3, 1):
            found.store.put(item)
        with pytest.raises(KernelError, match="out of memory"):
            found.sync(Family.IPv4, [])
        assert elements(found) == before
        found.kernel.library = library
        report = found.sync(Family.IPv4, [])
        assert report.services == 2, "what the failed sync had taken is still due"
        assert elements(found) == fresh(*cluster(3, 1))


def fresh(*objects: Object) -> dict[str, dict[Key, Value]]:
    """What a first start makes of a cluster, in a namespace of its own."""
    name = f"{unique_name()}.fresh"
    namespace.create(name)
    try:
        with table(name, *objects) as found:
            found.sync(Family.IPv4, [])
            return elements(found)
    finally:
        namespace.delete(name)


def same_but_for_slots(
    left: dict[str, dict[Key, Value]], right: dict[str, dict[Key, Value]]
) -> bool:
    """Whether two tables are equal up to the order of slots (design: "equal to a fresh start")."""

    def comparable(where: str, items: dict[Key, Value]) -> Any:
        if "endpoints" not in where or "no_endpoints" in where:
            return items
        return sorted((key[:-1], value) for key, value in items.items()), sorted(items)

    names = {name for name in {*left, *right} if left.get(name) or right.get(name)}
    return all(
        comparable(name, left.get(name, {})) == comparable(name, right.get(name, {}))
        for name in names
    )


STATES = {
    "first start": ([], cluster(3, 2, 0)),
    "scale down": (cluster(5, 3), cluster(3, 2)),
    "scale to zero": (cluster(3), cluster(0)),
    "policy": (cluster(3, 3), cluster(3, 3, policy="Local")),
    "affinity on": (cluster(3), cluster(3, affinity="ClientIP")),
    "affinity shrinks": (cluster(5, affinity="ClientIP"), cluster(2, affinity="ClientIP")),
    "affinity off": (cluster(3, affinity="ClientIP"), cluster(3)),
}


@pytest.mark.contract("5.7.8")
@pytest.mark.parametrize(("before", "after"), STATES.values(), ids=STATES)
def test_killed_at_every_stage(before: list[Object], after: list[Object]) -> None:
    wanted = fresh(*after)
    stage = 0
    while True:
        netns = f"{unique_name()}.killed"
        namespace.create(netns)
        try:
            killed = _killed_at(netns, stage, before, after)
            with table(netns, *after) as found:
                assert found.sync(Family.IPv4, []).refused == {}
                assert same_but_for_slots(elements(found), wanted), f"killed at stage {stage}"
        finally:
            namespace.delete(netns)
        if not killed:
            break
        stage += 1
    assert stage >= 1, "a sync has at least one stage at which it can be killed"


def _killed_at(netns: str, stage: int, before: list[Object], after: list[Object]) -> bool:
    """Sync `before`, then die in front of transaction number `stage` of the sync of `after`.

    Whether it came to that.
    """
    with table(netns, *before) as found:
        found.sync(Family.IPv4, [])
        for item in after:
            found.store.put(item)
        count = 0

        def dying(_: str) -> None:
            nonlocal count
            if count == stage:
                raise Killed
            count += 1

        try:
            with watched(found.kernel, dying):
                found.sync(Family.IPv4, [])
        except Killed:
            return True
        return False


def test_rules_of_others_that_this_library_may_not_understand(netns: str) -> None:
    with enter(netns):
        for match in (
            ["-m", "comment", "--comment", "x"],
            ["-m", "statistic", "--mode", "random", "--probability", "0.5"],
            ["-m", "conntrack", "--ctstate", "NEW"],
        ):
            subprocess.run(["iptables-nft", "-A", "INPUT", *match, "-j", "ACCEPT"], check=True)
        held = subprocess.run(
            ["iptables-nft-save"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    with table(netns, *cluster(3, 2)) as found:
        assert found.sync(Family.IPv4, []).refused == {}
        assert same_but_for_slots(elements(found), fresh(*cluster(3, 2)))
    with enter(netns):
        after = subprocess.run(
            ["iptables-nft-save"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    assert [line for line in held if line.startswith("-A")] == [
        line for line in after if line.startswith("-A")
    ]


def test_two_releases_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    read = program_module._read
    with World(lab={"nodes": 2, "pods": 2}) as world:
        objects = (
            service(),
            world.endpoints("pod1-1", "pod2-1", "pod2-2"),
            service("sticky", "10.96.0.11", sessionAffinity="ClientIP"),
            world.endpoints("pod1-1", "pod2-1", of="sticky"),
        )
        world.apply(*objects)
        kept = world.ask("pod1-2", "10.96.0.11", 80).name
        for release in range(6):
            extra = "" if release % 2 else "\nchain of-another-release {\n    counter\n}\n"
            monkeypatch.setattr(
                program_module,
                "_read",
                lambda name, extra=extra: read(name) + (extra if name == "hooks.nft" else ""),
            )
            world.start("node1")
            report = world.apply(*objects)[0]
            assert report.read_back
            assert report.written == 0, "a reload touches no element"
            assert all(
                isinstance(world.connect("pod1-2", "10.96.0.10", 80), Answer) for _ in range(20)
            )
            assert world.answers("pod1-2", "10.96.0.11", 80, times=5) == {kept: 5}
            found = world.tables["node1"]
            found.tidy()
            assert ("of-another-release" in found.kernel.chains) == (not release % 2)
