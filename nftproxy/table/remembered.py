"""The known content of the table for one family, as routes; and the changes to it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nftproxy.address import Family
from nftproxy.model import ObjectName
from nftproxy.routes import Affinity, Compiled, Element, Frontend, Key, Route
from nftproxy.table.delta import Delta
from nftproxy.table.elements import shared, shared_between


@dataclass(slots=True)
class Change:
    """The change of one service, or of several that exchange a frontend.

    Applied whole or not at all.
    """

    services: dict[ObjectName, Compiled | None] = field(default_factory=dict)
    # Before, after
    routes: dict[Frontend, tuple[Route | None, Route | None]] = field(default_factory=dict)
    claimants: dict[Frontend, list[ObjectName]] = field(default_factory=dict)  # the owner first


class Remembered:
    """The known content of the table for one family, as routes.

    It changes only after the kernel accepted a change.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.services: dict[ObjectName, Compiled] = {}
        self.routes: dict[Frontend, Route] = {}
        self.owners: dict[Frontend, ObjectName] = {}
        self.rivals: dict[
            Frontend, list[ObjectName]
        ] = {}  # all rivals for a frontend, the owner first
        self.shared: dict[str, dict[Key, int]] = {}  # by set: how many services have the element
        self.late = Delta()  # due deletions of elements without references
        self.untidy = False  # whether chains or sets may be unused

    @property
    def affinities(self) -> Iterator[Affinity]:
        """The ClientIP service ports of all services."""
        return (affinity for compiled in self.services.values() for affinity in compiled.affinities)

    def accept(self, changes: Iterable[Change], delta: Delta, kept: Iterable[Element] = ()) -> None:
        """Enter changes that the kernel accepted, or will before a first load ends.

        Of the shared elements, `kept` stay in the table whatever services do.
        """
        for change in changes:
            self._accept(change)
        for element in kept:
            counts = self.shared.setdefault(element.where, {})
            counts[element.key] = counts.get(element.key, 0) + 1
        self.late.cancel(delta.added)
        self.late.merge(Delta(late=delta.late))

    def _accept(self, change: Change) -> None:
        for name, new in change.services.items():
            old = self.services.pop(name, None)
            if old and old.affinities and old.affinities != (new.affinities if new else ()):
                self.untidy = True
            if new is not None:
                self.services[name] = new
            for element, count in claims(old, new, self.family):
                counts = self.shared.setdefault(element.where, {})
                counts[element.key] = counts.get(element.key, 0) + count
                if not counts[element.key]:
                    del counts[element.key]
        for frontend, (before, after) in change.routes.items():
            self.untidy |= _restricts(before) and not _restricts(after)
            claimants = change.claimants[frontend]
            if after is None:
                self.routes.pop(frontend, None)
                self.owners.pop(frontend, None)
            else:
                self.routes[frontend] = after
                self.owners[frontend] = claimants[0]
            if len(claimants) > 1:
                self.rivals[frontend] = claimants
            elif self.rivals:
                self.rivals.pop(frontend, None)


def _restricts(route: Route | None) -> bool:
    return route is not None and route.sources is not None


def claims(old: Compiled | None, new: Compiled | None, family: Family) -> list[tuple[Element, int]]:
    """Return the shared elements that a service claims newly (1) or no longer (-1)."""
    if old and new:
        gone, come = shared_between(old, new, family)
        return [(element, 1) for element in come] + [(element, -1) for element in gone]
    one, count = (new, 1) if new else (old, -1)
    return [(element, count) for element in shared(one, family)] if one else []
