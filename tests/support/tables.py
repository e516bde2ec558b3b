"""Our table in a network namespace with nothing else in it, for tests that need no packets.

with bare_table() as table:
    table.store.put(service())
    table.sync(Family.IPv4, [])
    assert contents(table) == ...
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nftproxy.address import Family
from nftproxy.configuration.settings import NodeSettings
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.namespace import enter
from nftproxy.model import Object
from nftproxy.routes import Key, Value
from nftproxy.store import Store
from nftproxy.sync.table import Table
from tests.support.world import settings, unique_name


@contextlib.contextmanager
def new_namespace() -> Iterator[str]:
    """A network namespace, for the length of a block."""
    name = f"{unique_name()}.bare"
    namespace.create(name)
    try:
        yield name
    finally:
        namespace.delete(name)


@contextlib.contextmanager
def table_in(netns: str, *objects: Object, chosen: NodeSettings | None = None) -> Iterator[Table]:
    """A proxy of a namespace with objects delivered, but not yet synced.

    When the block ends, the table stays.
    """
    chosen = chosen or settings(families=[Family.IPv4])
    with enter(netns):
        kernel = Kernel()
    with kernel:
        table = Table(chosen, Store(chosen.families), kernel)
        deliver(table, *objects)
        yield table


@contextlib.contextmanager
def bare_table(*objects: Object, **options: Any) -> Iterator[Table]:
    """A proxy in a namespace of its own; `options` go to `settings`."""
    options = {"families": [Family.IPv4], **options}
    with new_namespace() as netns, table_in(netns, *objects, chosen=settings(**options)) as table:
        yield table


def deliver(table: Table, *objects: Object) -> None:
    """Put objects into the store."""
    for item in objects:
        table.store.put(item)


def contents(table: Table) -> dict[str, dict[Key, Value]]:
    """All elements of services, read from the kernel, by set; empty sets are left out."""
    table.kernel.refresh()
    found = {}
    for name in sorted(table.kernel.sets):
        if not name.startswith(
            ("service_cidrs", "nodeport_ips", "affinity", "local_affinity")
        ) and (elements := table.kernel.elements(name)):
            found[name] = elements
    return found


def unordered(elements: dict[str, dict[Key, Value]]) -> dict[str, Any]:
    """The same where the order of slots counts for nothing; lists must be dense all the same."""
    found: dict[str, Any] = {}
    for name, items in elements.items():
        if "endpoints" not in name or "no_endpoints" in name:
            found[name] = items
            continue
        lists: dict[Any, list[Value]] = {}
        slots: dict[Any, set[int]] = {}
        for (*frontend, slot), value in items.items():
            lists.setdefault(tuple(frontend), []).append(value)
            slots.setdefault(tuple(frontend), set()).add(int(slot))
        assert all(numbers == set(range(len(numbers))) for numbers in slots.values()), (name, slots)
        found[name] = {frontend: sorted(values, key=str) for frontend, values in lists.items()}
    return found


@contextlib.contextmanager
def reading(netns: str) -> Iterator[Reader]:
    """Look into the table of a namespace."""
    with enter(netns):
        reader = Reader()
    try:
        yield reader
    finally:
        reader.close()


def generation(reader: Reader) -> int:
    """How many nftables transactions the namespace has seen.

    Any program's, and also one that changes nothing.
    """
    return reader._channel.generation()


class Watched:
    """A library that shows a function each transaction before it is made.

    What that raises makes the transaction fail.
    """

    def __init__(self, kernel: Kernel, look: Callable[[str], None]) -> None:
        self._library = kernel.library
        self._look = look

    @property
    def ports(self) -> set[int]:
        """The port ids of the library."""
        return self._library.ports

    def run(self, text: str) -> None:
        """Show it, then make it."""
        self._look(text)
        self._library.run(text)

    def close(self) -> None:
        """Close the library."""
        self._library.close()


@contextlib.contextmanager
def watched(kernel: Kernel, look: Callable[[str], None]) -> Iterator[None]:
    """Have a function see each transaction for the length of a block."""
    before = kernel.library
    kernel.library = Watched(kernel, look)
    try:
        yield
    finally:
        kernel.library = before


def names(objects: Iterable[Object]) -> list[str]:
    """The names of objects, for messages."""
    return [f"{type(item).__name__} {item.metadata.key}" for item in objects]
