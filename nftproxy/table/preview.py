"""The result of a sync without a kernel: the elements that `render` prints and `diff` compares.

Pure. The compilation and the difference are those of a sync, from an empty memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import NodeSettings
from nftproxy.routes import Affinity, Context, Key, Value, Verdict, compile_service
from nftproxy.selection import Locality
from nftproxy.store import Store
from nftproxy.table import schema
from nftproxy.table.delta import Delta
from nftproxy.table.plan import Basis, Empty, node_elements, plan
from nftproxy.table.program import Program, table
from nftproxy.table.remembered import Remembered


@dataclass(frozen=True, slots=True)
class Preview:
    """The elements that one family would have in the table."""

    family: Family
    delta: Delta
    affinities: tuple[Affinity, ...]
    node: dict[str, list[Key]]  # the node's own sets, whole
    notes: tuple[str, ...]  # the ignored parts of objects, and why

    @property
    def added(self) -> dict[str, dict[Key, Value]]:
        """All elements that are added to an empty table, by set."""
        whole = {where: dict.fromkeys(keys) for where, keys in self.node.items() if keys}
        return {**self.delta.added, **whole}


def preview(
    settings: NodeSettings,
    store: Store,
    family: Family,
    accepted: Iterable[Address] | None = None,
    basis: Basis = Empty(),  # noqa: B008 - immutable
) -> Preview:
    """Return what a first sync of a family makes of an empty table or one that was read back.

    `accepted` are the addresses that accept NodePorts; None if all do, or if that is unknown.
    """
    taken = store.take_dirty(family, everything=True)
    context = Context(
        family,
        Locality(settings.node_name, taken.zone),
        settings.node_ips[family].text,
        external_ips=settings.allow_external_ips,
        log_refusals=settings.log_refusals,
        refused_on_localhost=settings.on_localhost[family].refused,
    )
    notes: list[str] = []
    wanted = {}
    for name, (service, slices) in sorted(taken.services.items()):
        found: list[str] = []
        wanted[name] = compile_service(service, slices, context, found) if service else None
        notes += [f"Service {name}: {note}" for note in found]
    whole = Delta()
    remembered = Remembered(family)
    for batch in plan(remembered, [wanted], basis):
        whole.merge(batch.delta)
        remembered.accept(batch.changes, batch.delta)
    affinities = tuple(a for compiled in wanted.values() if compiled for a in compiled.affinities)
    return Preview(
        family, whole, affinities, node_elements(family, accepted, taken.networks), tuple(notes)
    )


def text(program: Program, previews: Iterable[Preview]) -> str:
    """Return the whole table as nft syntax, which replaces one that is there."""
    previews = list(previews)
    parts: dict[str, str] = {}
    lengths: dict[Family, set[int]] = {}
    optional: set[str] = set()
    for each in previews:
        optional |= {name for where in each.delta.added for name in schema.needed_by(where)}
        for target in sorted(each.delta.targets()):
            parts |= program.pick(target)
        for affinity in each.affinities:
            parts |= program.affinity(affinity)
        lengths[each.family] = schema.lengths(each.delta.added, each.family)
    body = program.text(lengths, optional)
    parts = {name: part for name, part in parts.items() if name not in body}
    elements = [command for each in previews for command in _commands(each)]
    head = (
        "# Made by nftproxy render. This replaces the table: nft -f applies it whole or not "
        "at all.\n"
    )
    reset = "add table inet nftproxy\ndelete table inet nftproxy\n\n"
    return (
        head
        + reset
        + table([f"chain {program.marker} {{\n}}", body, *parts.values()])
        + "\n".join(["", *elements, ""])
    )


def line(key: Key, value: Value = None) -> str:
    """Return an element as nft syntax."""
    left = " . ".join(map(str, key))
    if value is None:
        return left
    if isinstance(value, Verdict):
        comment = f' comment "{value.comment}"' if value.comment else ""
        return f"{left}{comment} : {value}"
    return f"{left} : {value if isinstance(value, str) else ' . '.join(map(str, value))}"


def _commands(each: Preview) -> Iterator[str]:
    sets = {where: [line(*item) for item in items.items()] for where, items in each.added.items()}
    for where in sorted(sets):
        rows = ",\n    ".join(sorted(sets[where]))
        yield f"add element inet nftproxy {where} {{\n    {rows}\n}}"
