"""Annotations of Services that have no effect because of their values, for events."""

from collections.abc import Iterator, Mapping

from nftproxy import annotations
from nftproxy.model import ObjectName
from nftproxy.store import Pending


class Ignored:
    """What was said about the annotations of Services; each thing is said once.

    Both families see the same Services.
    """

    def __init__(self) -> None:
        self._said: dict[ObjectName, list[str]] = {}

    def look(self, services: Mapping[ObjectName, Pending]) -> Iterator[tuple[ObjectName, str]]:
        """Yield what has to be said now about Services that a sync looked at."""
        for name, (service, _) in services.items():
            notes = annotations.problems(service) if service else []
            before = self._said.pop(name, [])
            if notes:
                self._said[name] = notes
                yield from ((name, note) for note in notes if note not in before)
