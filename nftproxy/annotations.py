"""The annotations of Services that change what their packets meet.

Pure. An unknown value never keeps a Service from working: it is named in `notes`, and the default
applies.
"""

import enum
from collections.abc import Iterable

from nftproxy.model import Service

AFFINITY_SCOPE = "nftproxy.io/affinity-scope"

_SHOWN = 80  # characters of a value in a note


class AffinityScope(enum.StrEnum):
    """What a client keeps its endpoint for, with sessionAffinity ClientIP."""

    PORT = "port"
    SERVICE = "service"


def affinity_scope(service: Service, notes: list[str]) -> AffinityScope:
    """Return the scope of a Service's affinity: a port, unless the annotation says otherwise."""
    annotations = service.metadata.annotations
    value = annotations.affinity_scope if annotations else None
    if value is None:
        return AffinityScope.PORT
    try:
        return AffinityScope(value)
    except ValueError:
        notes.append(_unknown(AFFINITY_SCOPE, value, AffinityScope))
        return AffinityScope.PORT


def problems(service: Service) -> list[str]:
    """Return a note for each annotation with an unknown value."""
    notes: list[str] = []
    affinity_scope(service, notes)
    return notes


def _unknown(annotation: str, value: str, known: Iterable[str]) -> str:
    first, *others = known
    return (
        f"annotation {annotation}: {value[:_SHOWN]!r} is not one of "
        f"{', '.join((first, *others))}; {first} applies"
    )
