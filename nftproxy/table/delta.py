"""Elements to add and to delete, in an order in which every packet meets a whole table.

Elements that lose their last reference are deleted *late*, in a second transaction: a packet makes
two look-ups and may fall between two states.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

from nftproxy.routes import Element, Key, Value, Verdict
from nftproxy.table import schema

Place = tuple[str, Key]


class Delta:
    """Elements to add and to delete; a rewritten key stands in both `removed` and `added`."""

    __slots__ = ("added", "late", "removed")

    def __init__(self, late: dict[str, dict[Key, None]] | None = None) -> None:
        self.removed: dict[str, dict[Key, None]] = {}
        self.added: dict[str, dict[Key, Value]] = {}
        self.late: dict[str, dict[Key, None]] = late or {}

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.late)

    def __len__(self) -> int:
        going = chain(self.removed.values(), self.late.values())
        return sum(map(len, going)) + sum(map(len, self.added.values()))

    def add(self, element: Element) -> None:
        """Add an element."""
        self.added.setdefault(element.where, {})[element.key] = element.value

    def remove(self, where: str, key: Key) -> None:
        """Delete an element, before the additions of the same transaction."""
        self.removed.setdefault(where, {})[key] = None

    def remove_late(self, where: str, key: Key) -> None:
        """Delete an element when nothing points to it any more."""
        self.late.setdefault(where, {})[key] = None

    def merge(self, other: "Delta") -> None:
        """Merge another delta; its dictionaries may be used up."""
        for mine, theirs in ((self.removed, other.removed), (self.late, other.late)):
            for where, keys in theirs.items():
                mine.setdefault(where, {}).update(keys)
        for where, items in other.added.items():
            self.added.setdefault(where, {}).update(items)

    def take_additions(self, other: "Delta", where: str) -> None:
        """Move the additions of another delta to one set into this one."""
        if where in other.added:
            self.added.setdefault(where, {}).update(other.added.pop(where))

    def source_ranges(self) -> "Delta":
        """Return the additions that say who may use a load-balancer address; empty if none is new.

        They stay in this delta, too.
        """
        ranges = Delta()
        for where, items in self.added.items():
            if schema.declaration(where) in (schema.FIREWALL, schema.ALLOWED):
                ranges.added[where] = dict(items)
        new = any(schema.declaration(where) is schema.FIREWALL for where in ranges.added)
        return ranges if new else Delta()

    def cancel(self, added: Mapping[str, Mapping[Key, Value]]) -> None:
        """Drop late deletions of elements that were added again meanwhile."""
        for where in self.late.keys() & added.keys():
            for key in added[where]:
                self.late[where].pop(key, None)

    def verdict_maps(self) -> list[str]:
        """Return the maps that get new verdicts; all values of a map are of one kind."""
        return [
            where
            for where, items in self.added.items()
            if items and type(next(iter(items.values()))) is Verdict
        ]

    def targets(self) -> set[str]:
        """Return the chains that added verdicts go to."""
        added = (value for where in self.verdict_maps() for value in self.added[where].values())
        return {value.target for value in added if isinstance(value, Verdict) and value.target}

    def compare(self, new: Iterable[Element], old: dict[Place, Value]) -> None:
        """Add the step from `old` to `new`."""
        for element in new:
            where, key, value = element
            if (where, key) not in old:
                self.add(element)
                continue
            if old.pop((where, key)) != value:
                self.remove(where, key)
                self.add(element)
        for where, key in old:
            self.drop(where, key)

    def drop(self, where: str, key: Key) -> None:
        """Delete an element that nothing replaces: verdicts at once, their targets late."""
        if is_late(where):
            self.remove_late(where, key)
        else:
            self.remove(where, key)


def is_late(where: str) -> bool:
    """Whether verdicts point to the elements of this set or map."""
    declaration = schema.declaration(where)
    return declaration is not None and declaration.late
