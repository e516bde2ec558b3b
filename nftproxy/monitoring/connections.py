"""How many connections each frontend and endpoint got, from the counters of map elements.

Pure: a `Ledger` takes readings of the counters and adds them up. The figures and their reasons:

- A nat chain sees the first packet of a connection only, so a hit in one of its maps is a new
  connection (TCP, SCTP) or flow (UDP).
- A frontend is looked up once, in `services`, which counts every connection.
- A client with a remembered endpoint gets it from the map of clients, not from a slot; all others
  pass `new_clients`. The difference between `services` and `new_clients` counts for the frontend
  and for no endpoint. For every service port, therefore: connections of its frontends = connections
  of its endpoints + connections by affinity.
- `no_endpoints` counts refused packets: each retry of a refused client is one. Where the external
  policy is Local and the node has no endpoint, the frontend is in `services` too, and outside
  clients pass it before their refusal: these are subtracted.
- Rewriting an element resets its counter, which shows by its new value or a smaller count. Packets
  between the last reading and the rewrite are lost, never counted twice. Connections by affinity, a
  difference of two counters, are omitted between two readings if one of these was new or reset.
- A figure starts at 0 with the first connection after our start, whatever the kernel counted
  before, as Prometheus expects from a restarted process. Unused frontends are not shown.
"""

from collections import Counter as Totals
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.kernel.reader import Counted
from nftproxy.monitoring.refusals import reason_of
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.schema import Declaration, Reason

STEPS = (schema.NO_ENDPOINTS, schema.NEW_CLIENTS, schema.SERVICES)
"""The maps with frontends, in the order of readings, the reverse of look-ups.

What one counts, those before it count too.
"""

Reading = Iterable[tuple[str, Iterable[Counted]]]
"""Maps by name with their elements."""


class Figure(Enum):
    """The kinds of figures; the value is the name of the metric, without prefix and `_total`."""

    CONNECTIONS = "frontend_connections"
    BY_AFFINITY = "frontend_affinity_connections"
    REFUSED = "frontend_refused_packets"
    ENDPOINT = "endpoint_connections"


class Subject(NamedTuple):
    """The owner of a figure: a frontend or an endpoint of a service port."""

    family: Family
    service_port: str  # namespace/service:port name
    place: Frontend | Endpoint

    def labels(self) -> tuple[str, str, str, str, str]:
        """Return family, namespace, service, port name, and frontend or endpoint."""
        namespace, _, rest = self.service_port.partition("/")
        service, _, port = rest.partition(":")
        return str(self.family), namespace, service, port, str(self.place)


class _Growth(NamedTuple):
    """How much a counter grew since the last reading."""

    packets: int
    anew: bool  # the counter is new, or was reset in between


class Ledger:
    """Figures that only grow; at most `limit`, the first used ones.

    Not for two threads at the same time.
    """

    def __init__(self, limit: int) -> None:
        self.left_out = 0  # figures that the limit kept out of the last reading
        self.refused: Totals[tuple[Family, Reason]] = Totals()  # of all frontends
        self._limit = limit
        self._last: _Standings = {}
        self._exact: dict[tuple[Figure, Subject], int] = {}
        self._shown: dict[tuple[Figure, Subject], int] = {}

    @property
    def figures(self) -> Mapping[tuple[Figure, Subject], int]:
        """All figures that are not 0."""
        return self._shown

    def open(self, reading: Reading) -> None:
        """Take the current counters as the start."""
        self._count_up(reading)

    def enter(self, reading: Reading) -> None:
        """Add the growth of the counters since the last reading.

        Maps of frontends must be in the order of STEPS.
        """
        seen = self._count_up(reading)
        self._forget(seen)
        self.left_out = 0
        for subject, steps in seen.frontends():
            for figure, amount in _amounts(steps):
                self._add(figure, subject, amount)
                if figure is Figure.REFUSED and amount > 0:
                    self.refused[subject.family, seen.reason(subject)] += amount
        for subject, amount in seen.endpoints():
            self._add(Figure.ENDPOINT, subject, amount)

    def lost(self) -> None:
        """Note that the table was deleted: a new one counts from 0."""
        self._last = {}

    def _count_up(self, reading: Reading) -> "_Seen":
        """Compare with the last reading, and make this one the last.

        Fast for 100 000 elements, most of them idle.
        """
        seen = _Seen()
        last: _Standings = {}
        for where, elements in reading:
            before = self._last.get(where, {})
            now = last[where] = {}
            values = seen.values.setdefault(where, {})
            grown = seen.grown.setdefault(where, {})
            for (_, key, value), packets in elements:
                values[key] = value
                if packets:
                    now[key] = (value, packets)
                elif key not in before:
                    continue
                grown[key] = _growth(before.get(key), value, packets)
        for where, key in seen.with_affinity():  # their rewrites matter even at a count of 0
            last[where].setdefault(key, (seen.values[where][key], 0))
        self._last = last
        return seen

    def _add(self, figure: Figure, subject: Subject, amount: int) -> None:
        """Add to a figure.

        Maps are read one after the other, so a difference may shrink a little; the figure does not.
        """
        key = (figure, subject)
        if key not in self._exact:
            if amount <= 0:
                return
            if len(self._exact) >= self._limit:
                self.left_out += 1
                return
        self._exact[key] = exact = self._exact.get(key, 0) + amount
        self._shown[key] = max(exact, self._shown.get(key, 0))

    def _forget(self, seen: "_Seen") -> None:
        """Drop the figures of deleted frontends and endpoints."""
        known = {subject for _, subject in self._exact}
        present = seen.present(known)
        for key in [key for key in self._exact if key[1] not in present]:
            del self._exact[key], self._shown[key]


class _Seen:
    """One reading: values and growth of elements, by map and key.

    Counters that stayed at 0 have no growth.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[Key, Value]] = {}
        self.grown: dict[str, dict[Key, _Growth]] = {}

    def frontends(self) -> Iterator[tuple[Subject, dict[Declaration, _Growth]]]:
        """Yield the frontends in use with the growth of their elements by step."""
        for family, node_port in _SIDES:
            maps = {
                step: self.grown.get(step.name(family, node_port=node_port), {}) for step in STEPS
            }
            for key in dict.fromkeys(key for grown in maps.values() for key in grown):
                if subject := self._frontend(family, Frontend.of_key(key)):
                    yield (
                        subject,
                        {step: grown[key] for step, grown in maps.items() if key in grown},
                    )

    def reason(self, subject: Subject) -> Reason:
        """Return why packets to a frontend are refused."""
        frontend = subject.place
        assert isinstance(frontend, Frontend)  # noqa: S101 - endpoints refuse nobody in the table
        name = schema.NO_ENDPOINTS.name(subject.family, node_port=frontend.is_node_port)
        return reason_of(self.values.get(name, {}).get(frontend.key))

    def endpoints(self) -> Iterator[tuple[Subject, int]]:
        """Yield the growth of slots in use by endpoint, which may come up more than once."""
        for where, grown in self.grown.items():
            for key, growth in grown.items():
                if subject := self._endpoint(where, key):
                    yield subject, growth.packets

    def present(self, known: set[Subject]) -> set[Subject]:
        """Return those of the known ones that the reading has."""
        places = {subject.place for subject in known}
        found = {
            s
            for s in known
            if isinstance(s.place, Frontend) and s == self._frontend(s.family, s.place)
        }
        for where, values in self.values.items():
            if schema.declaration(where) in _SLOTS:
                found.update(
                    s
                    for key, value in values.items()
                    if value in places and (s := self._endpoint(where, key))
                )
        return found

    def with_affinity(self) -> Iterator[tuple[str, Key]]:
        """Yield the elements of frontends with affinity."""
        for family, node_port in _SIDES:
            for key in self.values.get(schema.NEW_CLIENTS.name(family, node_port=node_port), ()):
                for step in STEPS[1:]:
                    if key in self.values.get(where := step.name(family, node_port=node_port), ()):
                        yield where, key

    def _frontend(self, family: Family, frontend: Frontend) -> Subject | None:
        """Return the owner of a frontend; None if no element names it."""
        for step in STEPS:
            value = self.values.get(step.name(family, node_port=frontend.is_node_port), {}).get(
                frontend.key
            )
            if isinstance(value, Verdict) and value.comment:
                return Subject(family, value.comment, frontend)
        return None

    def _endpoint(self, where: str, key: Key) -> Subject | None:
        """Return the endpoint in a slot; None for other maps, and for slots of no frontend."""
        place = schema.parse(where)
        value = self.values[where][key]
        if (
            place is None
            or place.declaration not in _SLOTS
            or not isinstance(value, tuple)
            or isinstance(value, Verdict)
        ):
            return None
        owner = self._frontend(place.family, Frontend.of_slot(key, place.detail))
        return owner and Subject(
            place.family, owner.service_port, Endpoint(str(value[0]), int(value[1]))
        )


def _growth(before: tuple[Value, int] | None, value: Value, packets: int) -> _Growth:
    if before is None or before[0] != value or packets < before[1]:
        return _Growth(packets, anew=True)
    return _Growth(packets - before[1], anew=False)


def _amounts(steps: Mapping[Declaration, _Growth]) -> Iterator[tuple[Figure, int]]:
    """Turn the growth of a frontend's counters into that of its figures."""
    services, new, refused = map(
        steps.get, (schema.SERVICES, schema.NEW_CLIENTS, schema.NO_ENDPOINTS)
    )
    if services:
        yield Figure.CONNECTIONS, services.packets - (refused.packets if refused else 0)
    if services and new and not (services.anew or new.anew):
        yield Figure.BY_AFFINITY, services.packets - new.packets
    if refused:
        yield Figure.REFUSED, refused.packets


_SIDES = tuple((family, node_port) for family in Family for node_port in (False, True))
_SLOTS = (schema.ENDPOINTS, schema.LOCAL_ENDPOINTS)
# By map; the counters, without most of those at 0
_Standings = dict[str, dict[Key, tuple[Value, int]]]
