"""How fast counters grow: rates from two readings, and the last of them. Pure."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nftproxy.kernel.snapshot import ShownServicePort
from nftproxy.selection import Endpoint

KEPT: Final = 60  # rates of a service port


class Totals(NamedTuple):
    """The counters of a service port, over all its frontends."""

    connections: int
    refused: int
    endpoints: dict[Endpoint, int]


class Rate(NamedTuple):
    """New connections and refused packets a second."""

    connections: float
    refused: float


class RefusalEntry(NamedTuple):
    """Refused packets between two readings; `at` is wall time, in seconds since 1970."""

    at: float
    service: str
    reason: str
    packets: int


@dataclass(slots=True)
class History:
    """The last totals of a service port, and its last rates, the newest last."""

    totals: Totals
    rates: deque[Rate] = field(default_factory=lambda: deque(maxlen=KEPT))


def totals(port: ShownServicePort) -> Totals:
    """Add up the counters of a service port."""
    endpoints: dict[Endpoint, int] = {}
    for shown in port.frontends:
        for listed in (*shown.cluster, *shown.local):
            endpoints[listed.endpoint] = endpoints.get(listed.endpoint, 0) + listed.connections
    return Totals(
        sum(shown.connections for shown in port.frontends),
        sum(shown.refused.packets for shown in port.frontends if shown.refused),
        endpoints,
    )


class Rates:
    """Histories by the name of the service port."""

    def __init__(self) -> None:
        self.histories: dict[str, History] = {}
        self.refusals: deque[RefusalEntry] = deque(maxlen=KEPT)

    def enter(self, ports: Iterable[ShownServicePort], seconds: float, now: float) -> None:
        """Add a reading, `seconds` after the one before.

        A counter that is smaller than before has started again: its element was written meanwhile.
        """
        histories: dict[str, History] = {}
        for port in ports:
            new = totals(port)
            history = self.histories.get(port.name)
            if history is None:
                history = History(new)
            else:
                old = history.totals
                refused = _grown(old.refused, new.refused)
                grown = _grown(old.connections, new.connections)
                history.rates.append(Rate(grown / seconds, refused / seconds))
                history.totals = new
                if refused:
                    reasons = dict.fromkeys(
                        shown.refused.reason
                        for shown in port.frontends
                        if shown.refused and shown.refused.packets
                    )
                    self.refusals.appendleft(
                        RefusalEntry(now, port.name, "; ".join(reasons), refused)
                    )
            histories[port.name] = history
        self.histories = histories

    def rate(self, name: str) -> Rate:
        """Return the last rate of a service port; zero before the second reading."""
        history = self.histories.get(name)
        return history.rates[-1] if history and history.rates else Rate(0, 0)

    def line(self, name: str) -> list[float]:
        """Return the last rates of connections, the newest last."""
        history = self.histories.get(name)
        return [rate.connections for rate in history.rates] if history else []


def _grown(old: int, new: int) -> int:
    return new - old if new >= old else new
