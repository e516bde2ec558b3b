"""What annotations of nftproxy's own say. Pure, but it remembers problems.

A value that cannot be used never keeps a Service from working: it is named in a note, and the
default applies.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from nftproxy.model import EndpointSlice, ObjectName, Scheduler, Service

AFFINITY_SCOPE = "nftproxy.io/affinity-scope"
SCHEDULER, WEIGHT = "nftproxy.io/scheduler", "nftproxy.io/weight"
FULL = 100  # the greatest weight, and that of slices without the annotation
_SHOWN = 40  # characters of a value in a note

Choice = TypeVar("Choice", bound=enum.StrEnum)


class AffinityScope(enum.StrEnum):
    """What a client keeps its endpoint for, with sessionAffinity ClientIP."""

    PORT = "port"
    SERVICE = "service"


def affinity_scope(service: Service, notes: list[str]) -> AffinityScope:
    """Return the scope of a Service's affinity: a port, unless the annotation says otherwise."""
    annotations = service.metadata.annotations
    text = annotations.affinity_scope if annotations else None
    return _choice(AFFINITY_SCOPE, text, AffinityScope.PORT, notes)


def scheduler(service: Service, notes: list[str]) -> Scheduler:
    """Return how a Service's endpoints are chosen: at random unless it asks for something else."""
    annotations = service.metadata.annotations
    text = annotations.scheduler if annotations else None
    return _choice(SCHEDULER, text, Scheduler.RANDOM, notes)


def weight(piece: EndpointSlice, notes: list[str]) -> int:
    """Return the weight of each endpoint of a slice, 0 to 100."""
    annotations = piece.metadata.annotations
    text = annotations.weight if annotations else None
    if text is None:
        return FULL
    if text.isascii() and text.isdigit() and len(text) <= len(str(FULL)) and int(text) <= FULL:
        return int(text)
    notes.append(
        f"EndpointSlice {piece.metadata.name}, annotation {WEIGHT}: {_short(text)} is no number "
        f"from 0 to {FULL}; its endpoints count as without it"
    )
    return FULL


class Problems:
    """The annotations that cannot be used, each reported once until it changes."""

    def __init__(self) -> None:
        self._known: dict[ObjectName, list[str]] = {}

    def new(
        self, looked_at: Mapping[ObjectName, tuple[Service | None, Iterable[EndpointSlice]]]
    ) -> Iterator[tuple[ObjectName, str]]:
        """Yield the Services with other problems than before, and these."""
        for name, (service, slices) in looked_at.items():
            notes: list[str] = []
            if service:
                affinity_scope(service, notes)
                scheduler(service, notes)
                for piece in slices:
                    weight(piece, notes)
            before = self._known.pop(name, None)
            if notes:
                self._known[name] = notes
                if notes != before:
                    yield name, "; ".join(notes)


def _choice(annotation: str, text: str | None, default: Choice, notes: list[str]) -> Choice:
    if text is None:
        return default
    try:
        return type(default)(text)
    except ValueError:
        notes.append(
            f"annotation {annotation}: {_short(text)} is not one of {', '.join(type(default))}; "
            f"{default} applies"
        )
        return default


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
