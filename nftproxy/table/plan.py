"""The plan of a sync: which elements are written, in which batches, given what is remembered, wanted and in the table.

Pure: a plan changes nothing that it is given. It is made piece by piece: whoever applies a batch lets `Remembered` accept its
changes before taking the next one. `run`, `diff` and `render` share it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nftproxy.address import Address, Family, Network
from nftproxy.model import ObjectName
from nftproxy.routes import Compiled, Key
from nftproxy.table import schema
from nftproxy.table.batch import Batch, Comparison, Packed
from nftproxy.table.delta import Delta
from nftproxy.table.difference import difference
from nftproxy.table.remembered import Change, Remembered

BATCH = 10_000  # elements in one transaction of a big change; libnftables takes 40 MB for them

Wanted = Mapping[ObjectName, Compiled | None]  # None: the service is gone


@dataclass(frozen=True, slots=True)
class InStep:
    """The table holds what is remembered."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No service has anything in the table, and nothing is remembered."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Nothing is remembered; the table holds these elements."""

    elements: Packed


Basis = InStep | Empty | ReadBack


def plan(
    remembered: Remembered,
    wanted: Iterable[Wanted],
    basis: Basis,
    *,
    alone: Sequence[Callable[[Change], bool]] = (),
) -> Iterator[Batch]:
    """Yield what makes `wanted` true, a portion of services at a time; services not named stay as they are.

    What one of `alone` applies to, because it can take seconds, comes last in its portion, each in a batch of its own. After
    reading back, a last batch without changes deletes what no service has.
    """
    read = basis.elements if isinstance(basis, ReadBack) else {}
    comparison = Comparison(
        remembered, {where: dict(items) for where, items in read.items()}, any(read.values())
    )
    for portion in wanted:
        apart: list[Change] = []
        changes: list[Change] = []
        parts: list[Delta] = []
        size = 0
        for wish in difference(remembered, portion):
            if any(applies(wish) for applies in alone):
                apart.append(wish)
                continue
            change = comparison.settled(wish)
            changes.append(change)
            parts.append(comparison.delta(change))
            size += len(parts[-1])
            if size >= BATCH:
                yield comparison.batch(changes, parts)
                changes, parts, size = [], [], 0
        if changes:
            yield comparison.batch(changes, parts)
        for change in map(comparison.settled, apart):
            yield comparison.batch([change], [comparison.delta(change)])
    if isinstance(basis, ReadBack):
        yield comparison.batch([], [comparison.rest()])


def node_elements(
    family: Family, accepted: Iterable[Address] | None, networks: Iterable[Network] | None
) -> dict[str, list[Key]]:
    """Return the sets that say something about the node, each with all its keys; what is None is not known and left out.

    `accepted` are the addresses that accept NodePorts, none if all do; `networks` the service CIDRs.
    """
    found: dict[str, list[Key]] = {}
    if accepted is not None:
        found[schema.NODEPORT_IPS.name(family)] = [(address.text,) for address in accepted]
    if networks is not None:
        found[schema.SERVICE_CIDRS.name(family)] = [(str(network),) for network in networks]
    return found
