"""How long changes of endpoints take to reach the table: the trigger times of one family (contract 7.4.16).

The endpoint slice controller writes into a slice when the change happened that made it write. Such a time is recorded when the slice
arrives, before the change can be taken up by a sync, and becomes a sample when a sync that looked at its service has
succeeded; after one that failed it waits for the next. Methods may be called from any thread.
"""

import threading
from collections.abc import Iterable
from datetime import datetime

from nftproxy.model import EndpointSlice, ObjectName


class TriggerTimes:
    """Times, in seconds since the epoch, of changes on their way to the table, by service."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._lock = threading.Lock()
        self._recorded: dict[ObjectName, list[float]] = {}

    def changed(self, piece: EndpointSlice) -> None:
        """Record a slice that is new or different; what happened before our start was not for us to bring about."""
        annotations, service = piece.metadata.annotations, piece.service
        time = _seconds(annotations.trigger_time) if annotations and annotations.trigger_time else None
        if service is not None and time is not None and time > self._started:
            with self._lock:
                self._recorded.setdefault(service, []).append(time)

    def deleted(self, service: ObjectName) -> None:
        """Discard what was recorded for a service: a slice of it is gone."""
        with self._lock:
            self._recorded.pop(service, None)

    def take(self, services: Iterable[ObjectName]) -> list[float]:
        """Return the times recorded for services that a sync looked at, now that it has succeeded."""
        with self._lock:
            if not self._recorded:
                return []
            return [time for service in services for time in self._recorded.pop(service, ())]


def _seconds(text: str) -> float | None:
    """Return an RFC 3339 time as seconds; None when it is none, or lacks its time zone."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant.timestamp() if instant.tzinfo else None
