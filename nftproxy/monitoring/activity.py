"""Who is asked how often: growth of the counters, read so that idle Services cost next to nothing.

The kernel lists a map in messages. A message that is equal to the one of the reading before has no
counter that moved, so only the others are taken apart: with 10 000 Services, of which a few are
busy, that is a few kilobytes of some megabytes.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nftproxy.address import Family
from nftproxy.errors import MissingError
from nftproxy.kernel.reader import Counted, Reader, counted_in
from nftproxy.monitoring.refusals import Refusals, reason_of, rule_counters
from nftproxy.monitoring.unanswered import Unanswered
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.schema import Reason

_MOST: Final = 64  # endpoints of a frontend


class Growth(NamedTuple):
    """An element and how much its counter grew."""

    counted: Counted
    packets: int


class _Watched:
    """One map, as it was listed last."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._messages: list[bytes] = []
        self._packets: dict[Key, int] = {}

    def read(self, reader: Reader) -> list[Growth]:
        """Return the elements whose counters grew since the reading before; nothing at first."""
        with suppress(MissingError):
            messages = reader.messages(self._name)
            before = self._messages
            known = set(before)
            first = not before
            found: list[Growth] = []
            for number, message in enumerate(messages):
                if number < len(before) and message == before[number]:
                    continue
                if message not in known:
                    found += self._compare(message, first=first)
            self._messages = messages
            return found
        self._messages = []
        return []

    def _compare(self, message: bytes, *, first: bool) -> Iterator[Growth]:
        for counted in counted_in(self._name, message):
            key, packets = counted.element.key, counted.packets
            before = self._packets.get(key, 0)
            if packets:
                self._packets[key] = packets
            if packets != before and not first:
                yield Growth(counted, packets - before if packets > before else packets)


@dataclass(slots=True)
class Busy:
    """What a service port got since the reading before."""

    connections: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)
    frontends: set[tuple[Family, Frontend]] = field(default_factory=set)
    unanswered: Counter[Endpoint] = field(default_factory=Counter)


class Share(NamedTuple):
    """An endpoint and the connections that it got since its element was written."""

    endpoint: Endpoint
    connections: int


class Activity:
    """Readings of the table's counters; for one thread."""

    def __init__(self, reader: Reader, *, unanswered: bool = False) -> None:
        """`unanswered`: read conntrack as well, for connections that wait for an answer."""
        self._reader = reader
        self._unanswered = Unanswered(reader) if unanswered else None
        self._maps = {
            step.name(family, node_port=node_port): _Watched(step.name(family, node_port=node_port))
            for family in Family
            for node_port in (False, True)
            for step in (schema.NO_ENDPOINTS, schema.SERVICES)
        }
        self._refusals = Refusals(rule_counters(reader, Family))

    def read(self) -> tuple[dict[str, Busy], Counter[Reason]]:
        """Return the busy service ports, and refused packets by reason, since the last reading.

        A service port whose clients wait for an answer counts as busy.
        """
        busy: dict[str, Busy] = {}
        reasons: Counter[Reason] = Counter()
        dropped: dict[tuple[Family, Frontend], int] = {}
        for name, watched in self._maps.items():
            place = schema.parse(name)
            assert place  # noqa: S101 - a name of the schema
            for (element, _), packets in watched.read(self._reader):
                _, key, value = element
                if not isinstance(value, Verdict):
                    continue
                where = place.family, Frontend.of_key(key)
                one = busy.setdefault(value.comment, Busy())
                one.frontends.add(where)
                if place.declaration is schema.NO_ENDPOINTS:
                    reason = reason_of(value)
                    one.refused[reason] += packets
                    reasons[reason] += packets
                    dropped[where] = packets
                else:  # those that policy Local drops pass here before
                    one.connections += max(0, packets - dropped.get(where, 0))
        for (_, reason), packets in self._refusals.enter(
            rule_counters(self._reader, Family)
        ).items():
            reasons[reason] += packets
        for name, waiting in (self._unanswered.read() if self._unanswered else {}).items():
            one = busy.setdefault(name, Busy())
            one.unanswered = waiting.endpoints
            one.frontends |= waiting.frontends
        return busy, reasons

    def shares(self, frontends: Iterable[tuple[Family, Frontend]]) -> list[Share]:
        """Return the endpoints of some frontends with their connections, the busiest first."""
        found: Counter[Endpoint] = Counter()
        for family, frontend in frontends:
            maps = schema.maps(family, frontend.proto, frontend.is_node_port)
            for name in (maps.endpoints, maps.local_endpoints):
                seen: set[Value] = set()
                for number in itertools.count():
                    counted = self._reader.element(name, frontend.slot(number))
                    if counted is None or len(seen) >= _MOST:
                        break
                    value = counted.element.value
                    if isinstance(value, tuple) and not isinstance(value, Verdict):
                        seen.add(value)
                        found[Endpoint(str(value[0]), int(value[1]))] += counted.packets
        return [Share(*one) for one in found.most_common()]
