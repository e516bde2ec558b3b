"""How long changes of endpoints take to reach the table.

The trigger times of one family (contract 7.4.16).

The endpoint slice controller writes the time of the causing change into a slice. The time is
recorded when the slice arrives, before a sync can apply the change, and becomes a sample when a
sync of its service succeeds; after a failed one it waits for the next. Methods may be called from
any thread.
"""

import threading
from collections.abc import Iterable
from datetime import datetime

from nftproxy.model import EndpointSlice, ObjectName


class TriggerTimes:
    """Times of changes that are not in the table yet, by service, in seconds since the epoch."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._lock = threading.Lock()
        self._recorded: dict[ObjectName, list[float]] = {}

    def changed(self, piece: EndpointSlice) -> None:
        """Record a slice that is new or different; changes before our start do not count."""
        annotations, service = piece.metadata.annotations, piece.service
        time = (
            _seconds(annotations.trigger_time) if annotations and annotations.trigger_time else None
        )
        if service is not None and time is not None and time > self._started:
            with self._lock:
                self._recorded.setdefault(service, []).append(time)

    def deleted(self, service: ObjectName) -> None:
        """Discard the times of a service, because a slice of it was deleted."""
        with self._lock:
            self._recorded.pop(service, None)

    def take_times(self, services: Iterable[ObjectName]) -> list[float]:
        """Return the times of the services that a successful sync examined."""
        with self._lock:
            if not self._recorded:
                return []
            return [time for service in services for time in self._recorded.pop(service, ())]


def _seconds(text: str) -> float | None:
    """Return an RFC 3339 time as seconds; None if it is invalid or has no time zone."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant.timestamp() if instant.tzinfo else None
