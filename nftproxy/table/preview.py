"""What a sync would do, without a kernel to do it to: the elements that `render` prints and `diff` compares.

Pure. The same compile and difference as in a sync, from an empty memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nftproxy.address import Family, Network
from nftproxy.configuration.settings import NodeSettings
from nftproxy.routes import Affinity, Context, Key, Value, Verdict, compile_service
from nftproxy.selection import Locality
from nftproxy.store import Store
from nftproxy.table.difference import Actual, Delta, Remembered, delta, difference, shared_delta, unpacked
from nftproxy.table.program import Program, table


@dataclass(frozen=True, slots=True)
class Preview:
    """What one family would have in the table."""

    family: Family
    delta: Delta
    affinities: tuple[Affinity, ...]
    networks: tuple[Network, ...]  # service CIDRs
    notes: tuple[str, ...]  # what in the objects is ignored, and why


def preview(settings: NodeSettings, store: Store, family: Family, actual: Actual | None = None) -> Preview:
    """Return what a first sync of a family would write; `actual`, used up, is what the table holds already."""
    taken = store.take(family, everything=True)
    context = Context(
        family,
        Locality(settings.node_name, taken.zone),
        settings.node_ips[family].text,
        external_ips=settings.allow_external_ips,
    )
    notes: list[str] = []
    wanted = {}
    for name, (service, slices) in sorted(taken.services.items()):
        found: list[str] = []
        wanted[name] = compile_service(service, slices, context, found) if service else None
        notes += [f"Service {name}: {note}" for note in found]
    remembered = Remembered(family)
    changes = difference(remembered, wanted)
    whole = shared_delta(changes, remembered, actual)
    for change in changes:
        whole.merge(delta(change, remembered, actual))
    for where, keys in (actual or {}).items():
        for key in unpacked(where, keys):
            whole.drop(where, key)
    affinities = tuple(a for compiled in wanted.values() if compiled for a in compiled.affinities)
    return Preview(family, whole, affinities, tuple(taken.networks or ()), tuple(notes))


def text(program: Program, previews: Iterable[Preview], nodeport_ips: dict[Family, list[str]]) -> str:
    """Return the whole table as nft syntax, which replaces one that is there."""
    previews = list(previews)
    parts: dict[str, str] = {}
    lengths: dict[Family, set[int]] = {}
    for each in previews:
        for target in sorted(each.delta.targets()):
            parts |= program.pick(target)
        for affinity in each.affinities:
            parts |= program.affinity(affinity)
        prefix = f"allowed{each.family.digit}-"
        lengths[each.family] = {int(w.removeprefix(prefix)) for w in each.delta.added if w.startswith(prefix)}
    body = program.text(lengths)
    parts = {name: part for name, part in parts.items() if name not in body}
    elements = [command for each in previews for command in _commands(each, nodeport_ips)]
    head = "# Made by nftproxy render. This replaces the table: nft -f applies it whole or not at all.\n"
    reset = "add table inet nftproxy\ndelete table inet nftproxy\n\n"
    return head + reset + table([f"chain {program.marker} {{\n}}", body, *parts.values()]) + "\n".join(["", *elements, ""])


def line(key: Key, value: Value = None) -> str:
    """Return an element as nft syntax."""
    left = " . ".join(map(str, key))
    if value is None:
        return left
    if isinstance(value, Verdict):
        comment = f' comment "{value.comment}"' if value.comment else ""
        return f"{left}{comment} : {value}"
    return f"{left} : {value if isinstance(value, str) else ' . '.join(map(str, value))}"


def _commands(each: Preview, nodeport_ips: dict[Family, list[str]]) -> Iterator[str]:
    v = each.family.digit
    sets: dict[str, list[str]] = {where: [line(*item) for item in items.items()] for where, items in each.delta.added.items()}
    sets[f"nodeport_ips{v}"] = nodeport_ips.get(each.family, [])
    sets[f"service_cidrs{v}"] = [str(network) for network in each.networks]
    for where in sorted(sets):
        if sets[where]:
            rows = ",\n    ".join(sorted(sets[where]))
            yield f"add element inet nftproxy {where} {{\n    {rows}\n}}"
