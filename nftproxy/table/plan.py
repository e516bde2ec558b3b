"""The plan of a sync: the elements to write, in batches.

Pure: a plan changes none of its arguments. It depends on the memory, the wanted services and the
basis, and is made piece by piece: the caller applies a batch and lets `Remembered` accept its
changes before it takes the next. `run`, `diff` and `render` share it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
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

Wanted = Mapping[ObjectName, Compiled | None]  # None: the service was deleted


@dataclass(frozen=True, slots=True)
class InStep:
    """The table matches the memory."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No service has anything in the table, and the memory is empty."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """The memory is empty; the table holds these elements."""

    elements: Packed


Basis = InStep | Empty | ReadBack


def plan(
    remembered: Remembered,
    wanted: Iterable[Wanted],
    basis: Basis,
    *,
    alone: Callable[[Change], bool] = lambda _: False,
) -> Iterator[Batch]:
    """Yield the batches that lead to `wanted`, a portion of services at a time.

    Services not named stay as they are. Those that are to be `alone`, which can take seconds, are
    last in their portion, each in a batch of its own. After reading back, a last batch without
    changes deletes the elements of no service.
    """
    read = basis.elements if isinstance(basis, ReadBack) else {}
    unclaimed = {where: dict(items) for where, items in read.items()}
    comparison = Comparison(remembered, unclaimed, read, any(read.values()))
    for portion in wanted:
        apart: list[Change] = []
        changes: list[Change] = []
        parts: list[Delta] = []
        size = 0
        for wish in difference(remembered, portion):
            if alone(wish):
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
        yield comparison.rest()


def node_elements(
    family: Family, accepted: Iterable[Address] | None, networks: Iterable[Network] | None
) -> dict[str, list[Key]]:
    """Return the node's own sets, each with all its keys; unknown ones are left out.

    `accepted` are the addresses that accept NodePorts, none if all do; `networks` the service
    CIDRs.
    """
    found: dict[str, list[Key]] = {}
    if accepted is not None:
        found[schema.NODEPORT_IPS.name(family)] = [(address.text,) for address in accepted]
    if networks is not None:
        found[schema.SERVICE_CIDRS.name(family)] = [(str(network),) for network in networks]
    return found
