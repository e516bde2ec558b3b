"""How fast counters grow, and how fast they grew before. Pure.

Only service ports that are or were busy have a history; the others cost nothing.
"""

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from nftproxy.kernel.snapshot import ShownServicePort
from nftproxy.monitoring.activity import Busy
from nftproxy.monitoring.refusals import MEANINGS
from nftproxy.selection import Endpoint
from nftproxy.table.schema import Reason

KEPT: Final = 60  # rates of a service port


class Rate(NamedTuple):
    """New connections and refused packets a second."""

    connections: float
    refused: float


IDLE: Final = Rate(0, 0)


class RefusalEntry(NamedTuple):
    """Refused packets between two readings; `at` is wall time, in seconds since 1970.

    The service port is empty where none counts them.
    """

    at: float
    service: str
    reason: str
    packets: int


def counts(port: ShownServicePort) -> dict[Endpoint, int]:
    """Add up the connections of a service port's endpoints, over all its frontends."""
    found: dict[Endpoint, int] = {}
    for shown in port.frontends:
        for listed in (*shown.cluster, *shown.local):
            found[listed.endpoint] = found.get(listed.endpoint, 0) + listed.connections
    return found


class Rates:
    """The last rates of service ports, by name, the newest last; and the last refusals."""

    def __init__(self) -> None:
        self.histories: dict[str, deque[Rate]] = {}
        self.refusals: deque[RefusalEntry] = deque(maxlen=KEPT)
        self._readings = 0  # that have a rate, at most KEPT

    def enter(
        self,
        busy: Mapping[str, Busy],
        refused: Counter[Reason],
        known: Collection[str],
        seconds: float,
        now: float,
    ) -> None:
        """Add a reading, `seconds` after the one before; `known` are all service ports."""
        for name in [name for name in self.histories if name not in known]:
            del self.histories[name]
        for name in busy.keys() - self.histories.keys():
            if name in known:
                self.histories[name] = deque([IDLE] * self._readings, maxlen=KEPT)
        for name, history in list(self.histories.items()):
            if one := busy.get(name):
                history.append(Rate(one.connections / seconds, one.refused.total() / seconds))
                continue
            history.append(IDLE)
            if all(rate == IDLE for rate in history):
                del self.histories[name]
        others = Counter(refused)
        for name, one in busy.items():
            others -= one.refused
            self._refuse(now, name, one.refused)
        self._refuse(now, "", others)
        self._readings = min(self._readings + 1, KEPT)

    def rate(self, name: str) -> Rate:
        """Return the last rate of a service port."""
        history = self.histories.get(name)
        return history[-1] if history else IDLE

    def line(self, name: str) -> list[float]:
        """Return the last rates of connections, the newest last."""
        history = self.histories.get(name)
        return [rate.connections for rate in history] if history else [0.0] * self._readings

    def _refuse(self, now: float, service: str, reasons: Counter[Reason]) -> None:
        for reason, packets in reasons.items():
            if packets:
                entry = RefusalEntry(now, service, MEANINGS[reason], packets)
                self.refusals.appendleft(entry)
