"""Golden cases: what objects become in the table, before and after a change, as text.

A case is a folder of tests/cases:

    before.yaml        objects; its first comment says what the case shows
    after.yaml         objects after a change, if there is one
    damage             what somebody else did to the table: elements deleted (-) and added (+)
    before.elements    what the objects become; with `before.yaml` alone, all there is
    transactions       what a sync writes, first and last
    after.elements     what the table then holds

`make golden` writes the last three. All by the pure parts of the program, without a kernel.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nftproxy.address import Family
from nftproxy.configuration.settings import NodeSettings
from nftproxy.model import ObjectName, Service
from nftproxy.routes import Compiled, Context, Key, Value, compile_service
from nftproxy.selection import Locality
from nftproxy.sources.delivery import deliver
from nftproxy.sources.manifests import Manifests
from nftproxy.store import Store
from nftproxy.table.delta import Delta
from nftproxy.table.packing import pack_value, shape
from nftproxy.table.plan import Basis, Empty, InStep, ReadBack, plan
from nftproxy.table.preview import line
from nftproxy.table.remembered import Remembered
from tests.support.paths import ROOT
from tests.support.world import settings

CASES = sorted(path for path in (ROOT / "tests/cases").iterdir() if path.is_dir())
SETTINGS: NodeSettings = settings()
WRITTEN = ("before.elements", "transactions", "after.elements")

Elements = dict[str, dict[Key, Value]]


def objects(manifests: Path) -> Store:
    """The objects of a file as the store of node1 has them."""
    source = Manifests([manifests])
    scan = source.scan()
    assert not scan.problems, scan.problems
    store = Store(SETTINGS.families)
    deliver(store, scan, SETTINGS.node_name)
    return store


def wanted(store: Store, family: Family) -> dict[ObjectName, Compiled | None]:
    """What the Services of a family want of the table."""
    taken = store.take_dirty(family, everything=True)
    context = Context(
        family, Locality(SETTINGS.node_name, taken.zone), SETTINGS.node_ips[family].text
    )
    return {
        name: compile_service(service, slices, context, [])
        for name, (service, slices) in sorted(taken.services.items())
        if isinstance(service, Service)
    }


@dataclass(frozen=True, slots=True)
class Golden:
    """What a case is expected to be, by the names of its files."""

    files: dict[str, str]


def golden(case: Path) -> Golden:
    """Compute the files of a case."""
    files: dict[str, list[str]] = {name: [] for name in WRITTEN}
    before = objects(case / "before.yaml")
    changed = (case / "after.yaml").exists()
    after = objects(case / "after.yaml") if changed else before
    for family in Family:
        remembered, table = Remembered(family), dict[str, dict[Key, Value]]()
        apply(remembered, table, wanted(before, family), Empty())
        files["before.elements"] += listed(table)
        if not changed:
            continue
        basis: Basis = InStep()
        if (case / "damage").exists():
            damage(table, (case / "damage").read_text().splitlines(), family)
            remembered, basis = Remembered(family), ReadBack(packed(table))
        gone = dict.fromkeys(wanted(before, family))
        deltas = list(apply(remembered, table, {**gone, **wanted(after, family)}, basis))
        files["transactions"] += written(deltas, family)
        files["after.elements"] += listed(table)
    if not changed:
        files = {"before.elements": files["before.elements"]}
    return Golden({name: "".join(f"{each}\n" for each in lines) for name, lines in files.items()})


def apply(
    remembered: Remembered,
    table: Elements,
    services: Mapping[ObjectName, Compiled | None],
    basis: Basis,
) -> list[Delta]:
    """Carry out the plan of a sync on elements, and return what it wrote."""
    deltas = []
    for batch in plan(remembered, [services], basis):
        delta = batch.delta
        for where, keys in (*delta.removed.items(), *delta.late.items()):
            for key in keys:
                table.get(where, {}).pop(key, None)
        for where, items in delta.added.items():
            table.setdefault(where, {}).update(items)
        deltas.append(delta)
        remembered.accept(batch.changes, delta)
    return deltas


def damage(table: Elements, lines: Iterable[str], family: Family) -> None:
    """Do to elements what the lines of a file say; those of the other family are left out."""
    for text in lines:
        sign, where, element = text.split(maxsplit=2)
        if f"{family.digit}" not in where:
            continue
        known = {line(key, value): key for key, value in table.get(where, {}).items()}
        if sign == "-":
            del table[where][known[element]]
        else:
            left, _, right = element.partition(" : ")
            address, protocol, port = left.split(" . ")
            from nftproxy.routes import Verdict

            table.setdefault(where, {})[address, protocol, int(port)] = Verdict(right)


def packed(table: Elements) -> dict[str, dict[bytes, bytes]]:
    """Elements as the kernel would be read back."""
    found: dict[str, dict[bytes, bytes]] = {}
    for where, items in table.items():
        held = shape(where)
        assert held
        found[where] = {
            held.key.pack(key): pack_value(value, held.value) for key, value in items.items()
        }
    return found


def listed(table: Mapping[str, Mapping[Key, Value]]) -> Iterator[str]:
    """Yield elements as people read them, sorted."""
    for where in sorted(table):
        yield from (
            f"{where}  {each}" for each in sorted(line(*one) for one in table[where].items())
        )


def written(deltas: list[Delta], family: Family) -> Iterator[str]:
    """Yield what a sync writes: the first transactions, then the late deletions."""
    first: list[str] = []
    last: list[str] = []
    for delta in deltas:
        first += [f"- {each}" for each in listed(delta.removed)]
        first += [f"+ {each}" for each in listed(delta.added)]
        last += [f"- {each}" for each in listed(delta.late)]
    if first:
        yield f"{family}, at once:"
        yield from first
    if last:
        yield f"{family}, when no packet is on its way any more:"
        yield from last
