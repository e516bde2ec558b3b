"""The changes, service by service: the routes of each frontend before and after.

Pure, from remembered routes and wanted services. Two things hold for every difference:

- Slots are stable: an endpoint that stays keeps its number, and the last one moves into the place
  of a removed one. With a scheduler that goes by the client's address, they follow from the
  endpoints alone, so that a node's history does not matter.
- A frontend that two services claim belongs to the one whose ClusterIP it is, else to the older;
  another gets it when that one gives it up (contract 2.2.3).
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from nftproxy.model import ObjectName, Scheduler
from nftproxy.routes import Compiled, Frontend, Route
from nftproxy.selection import Endpoint
from nftproxy.table.remembered import Change, Remembered
from nftproxy.table.slots import settle

Settle = Callable[[Sequence[Endpoint], Sequence[Endpoint]], Sequence[Endpoint]]


def age(name: ObjectName, created: str) -> tuple[bool, str, ObjectName]:
    """Order services: the older first; without a creation time last; then by name."""
    return not created, created, name


def precedence(
    frontend: Frontend, name: ObjectName, cluster_ip: str, created: str
) -> tuple[bool, bool, str, ObjectName]:
    """Order rivals for a frontend: the one whose ClusterIP it is first, then by age.

    Nobody else chooses a ClusterIP, anybody an external IP.
    """
    return frontend.address != cluster_ip, *age(name, created)


def difference(
    remembered: Remembered, wanted: Mapping[ObjectName, Compiled | None]
) -> list[Change]:
    """Return the changes that lead to `wanted` (None: the service was deleted).

    Services not named stay as they are.
    """
    changed = {name: new for name, new in wanted.items() if remembered.services.get(name) != new}
    touched: dict[
        Frontend, dict[ObjectName, Route | None]
    ] = {}  # the services concerned, and what each newly wants
    for name, new in changed.items():
        old = remembered.services.get(name)
        for route in old.routes if old else ():
            touched.setdefault(route.frontend, {})[name] = None
        for route in new.routes if new else ():
            touched.setdefault(route.frontend, {})[name] = route
    groups, settling = _Groups(changed), _Settling()
    for frontend, wishes in touched.items():
        change = groups.of(list(wishes))
        claimants = [name for name, route in wishes.items() if route is not None]
        owner = remembered.owners.get(frontend)
        standing = remembered.rivals.get(frontend) or ([owner] if owner else [])
        claimants += [name for name in standing if name not in changed]
        if len(claimants) > 1:
            claims = {name: _claimed(name, changed, remembered) for name in claimants}
            claimants.sort(
                key=lambda n: precedence(frontend, n, claims[n].cluster_ip, claims[n].created)
            )
        before, after = remembered.routes.get(frontend), None
        if claimants:
            after = settled(
                wishes.get(claimants[0]) or _wish(remembered.services[claimants[0]], frontend),
                before,
                settling,
            )
        change.routes[frontend] = (before, after)
        change.claimants[frontend] = claimants
    return groups.changes()


class _Groups:
    """Services that must change together, joined through their frontends."""

    def __init__(self, changed: Mapping[ObjectName, Compiled | None]) -> None:
        self._of = {name: Change(services={name: new}) for name, new in changed.items()}

    def of(self, names: list[ObjectName]) -> Change:
        """Return the one change that all of `names` are part of from now on."""
        first = self._of[names[0]]
        for name in names[1:]:
            other = self._of[name]
            if other is not first:
                first.services |= other.services
                first.routes |= other.routes
                first.claimants |= other.claimants
                for member in other.services:
                    self._of[member] = first
        return first

    def changes(self) -> list[Change]:
        """Return every change once."""
        return list({id(change): change for change in self._of.values()}.values())


def _wish(compiled: Compiled, frontend: Frontend) -> Route:
    return next(route for route in compiled.routes if route.frontend == frontend)


def _claimed(
    name: ObjectName, changed: Mapping[ObjectName, Compiled | None], remembered: Remembered
) -> Compiled:
    compiled = changed[name] if name in changed else remembered.services[name]
    assert compiled is not None  # noqa: S101 - only services that exist claim a frontend
    return compiled


def settled(route: Route, before: Route | None, settle: Settle = settle) -> Route:
    """Return `route` with its endpoints in the slots they had."""
    if before is None or route.scheduler is not Scheduler.RANDOM:
        return route
    cluster, local = settle(before.cluster, route.cluster), settle(before.local, route.local)
    if cluster is route.cluster and local is route.local:
        return route
    return msgspec.structs.replace(route, cluster=cluster, local=local)


class _Settling:
    """Settles lists that several frontends share once, so that they still share them."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Sequence[Endpoint]] = {}

    def __call__(
        self, before: Sequence[Endpoint], wanted: Sequence[Endpoint]
    ) -> Sequence[Endpoint]:
        """Return what `settle` does."""
        if not before or before is wanted:
            return wanted
        lists = id(before), id(wanted)  # both live as long as the services that have them
        if lists not in self._found:
            self._found[lists] = settle(before, wanted)
        return self._found[lists]
