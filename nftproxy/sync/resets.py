"""Endpoints that are gone: into the table, so that their clients are reset, and out of it again.

What has left all slices is written when it has stayed away for a moment: a controller that rewrites
the slices of a Service may list a live endpoint nowhere between two requests. An address that is
used again is removed before the sync writes anything else, so before its first connection. The base
chains are there only while something is gone; `Table.tidy` removes them as it removes unused picks.
Nothing here exists without --reset-gone-endpoints.
"""

import time
from collections.abc import Callable, Iterable, Mapping

from loguru import logger

from nftproxy.address import Family, bracketed
from nftproxy.departures import Departures, Place
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import ObjectName
from nftproxy.routes import Element
from nftproxy.store import Pending
from nftproxy.table import schema
from nftproxy.table.batch import Packed
from nftproxy.table.delta import Delta
from nftproxy.table.packing import shape
from nftproxy.table.program import Program

SETTLE = 0.03  # seconds that an endpoint is in no slice before it counts as gone
TIMEOUT = 1200.0  # as in rulesets/gone.nft: TCP sends again for 15 minutes
LIMIT = 32_768  # gone endpoints of a family; the set has room for as many that have just expired
_LISTS = (schema.ENDPOINTS, schema.LOCAL_ENDPOINTS)
_NAMED = 3  # endpoints in a log line


class _Gone:
    """The state of one family."""

    def __init__(self, family: Family) -> None:
        self.where = schema.GONE.name(family)
        self.departures = Departures(family)
        self.left: dict[Place, float] = {}  # in no slice, and since when; its sync is under way
        self.leaving: dict[Place, float] = {}  # the same after the sync, and when it is gone
        self.gone: dict[Place, float] = {}  # in the table, and when it has expired there
        self.back: set[Place] = set()  # used again, and still to be removed from the table
        self.held: set[Place] = set()  # endpoints that the table had when this process started
        self.fresh = True  # before the first look


class Resets:
    """The gone endpoints of all families; all methods belong to the thread that syncs."""

    def __init__(
        self,
        kernel: Kernel,
        program: Program,
        families: Iterable[Family],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.due: float | None = None  # when `apply` has something to do; for any thread
        self._kernel = kernel
        self._program = program
        self._clock = clock
        self._until = 0.0  # when everything has expired
        self._found = False  # elements from before, for which the base chains may be missing
        self._sides = {family: _Gone(family) for family in families}

    @property
    def over(self) -> bool:
        """Whether the base chains are there for nothing; for any thread."""
        there = any(name in self._kernel.chains for name in self._program.resets())
        return there and self._clock() > self._until

    def read_back(self, family: Family, elements: Packed) -> None:
        """Read what is gone from the table, and at a start which endpoints it still has."""
        side = self._sides[family]
        expiry = self._clock() + TIMEOUT
        side.gone = {
            (str(address), str(proto), int(port)): expiry
            for address, proto, port in self._kernel.keys(side.where)
        }
        self._found = True
        if side.fresh:
            side.held = set(_places(elements))

    def look(self, family: Family, services: Mapping[ObjectName, Pending], *, read: bool) -> None:
        """Enter what a sync is about to apply; `read`: after reading back.

        Endpoints that are used again leave the table at once.
        """
        side, now = self._sides[family], self._clock()
        listed = side.departures
        moves = listed.saw(services)
        left = moves.left | {
            place for place in side.held if not listed.lists(place) and not listed.knows(place[0])
        }
        side.held, side.fresh = set(), False
        for place in left - side.gone.keys() - side.leaving.keys():
            side.left.setdefault(place, now)
        for places in (side.left, side.leaving):
            for place in [place for place in places if place[0] in moves.came]:
                del places[place]
        side.back |= {place for place in side.gone if place[0] in moves.came}
        if read:
            side.back = {place for place in side.gone if listed.lists(place)}
        if side.back:
            self._kernel.forget(side.where, dict.fromkeys(side.back))
            for place in side.back:
                side.gone.pop(place, None)
            side.back = set()
            self._renew()
        elif read:
            self._renew()
        self._plan()

    def synced(self, family: Family) -> None:
        """Note that a sync is done, and with it the clean-up of its UDP flows.

        So these go on with another endpoint before anything is answered in place of the old one.
        """
        side = self._sides[family]
        for place, since in side.left.items():
            if len(side.leaving) < LIMIT:
                side.leaving[place] = since + SETTLE
        side.left.clear()
        self._plan()

    def apply(self) -> None:
        """Write what is gone by now; KernelError if that fails, then the next look plans it."""
        self.due, now = None, self._clock()
        ready: list[tuple[_Gone, list[Place]]] = []
        delta = Delta()
        for side in self._sides.values():
            side.gone = {place: expiry for place, expiry in side.gone.items() if expiry > now}
            places = [place for place, due in side.leaving.items() if due <= now]
            fitting = places[: LIMIT - len(side.gone)]
            for place in places[len(fitting) :]:
                del side.leaving[place]
            if len(fitting) < len(places):
                logger.warning(
                    "{} endpoints more than {} are gone: connections to them are not reset",
                    len(places) - len(fitting),
                    LIMIT,
                )
            for place in fitting:
                delta.add(Element(side.where, place))
            ready.append((side, fitting))
        if delta or self._found:
            self._kernel.add_missing(self._program.resets())
            self._found = False
        if delta:
            self._kernel.commit(delta)
        for side, places in ready:
            side.gone.update(dict.fromkeys(places, now + TIMEOUT))
            for place in places:
                del side.leaving[place]
        self._renew()
        if delta:
            _say([place for _, places in ready for place in places])
        self._plan()

    def needed(self) -> set[str]:
        """Return the names of the base chains; none once the sets are empty."""
        now = self._clock()
        names = set(self._program.resets())
        if now <= self._until:
            return names
        if any(self._kernel.keys(side.where) for side in self._sides.values()):
            self._until = now + 1  # the kernel's clock is the one that counts
            return names
        return set()

    def _renew(self) -> None:
        """Compute when everything has expired, and whether base chains may be missing."""
        expiries = (max(side.gone.values(), default=0.0) for side in self._sides.values())
        self._until = max(expiries)
        self._found = self._found and bool(self._until)

    def _plan(self) -> None:
        moments = [moment for side in self._sides.values() for moment in side.leaving.values()]
        self.due = min([*moments, *([self._clock()] if self._found else [])], default=None)


def _places(elements: Packed) -> Iterable[Place]:
    """Yield the endpoints in the lists of a table, as read back."""
    for where, items in elements.items():
        place, held = schema.parse(where), shape(where)
        if place and place.declaration in _LISTS and held and held.value:
            for packed in set(items.values()):
                address, port = held.value.unpack(packed)
                yield str(address), place.detail, int(port)


def _say(places: list[Place]) -> None:
    named = [f"{bracketed(address)}:{port}/{proto}" for address, proto, port in places[:_NAMED]]
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    logger.info("gone: {}{}; connections to them are reset", ", ".join(named), more)
