"""What annotations of nftproxy's own say. Pure.

A value that cannot be used never keeps a Service from working: it is named in a note, and the
default applies.
"""

from collections.abc import Iterable

from nftproxy.model import EndpointSlice, Scheduler, Service

SCHEDULER, WEIGHT = "nftproxy.io/scheduler", "nftproxy.io/weight"
FULL = 100  # the greatest weight, and that of slices without the annotation
_SHOWN = 40  # characters of a value in a note


def scheduler(service: Service, notes: list[str]) -> Scheduler:
    """Return how a Service's endpoints are chosen: at random unless it asks for something else."""
    annotations = service.metadata.annotations
    text = annotations.scheduler if annotations else None
    if text is None:
        return Scheduler.RANDOM
    try:
        return Scheduler(text)
    except ValueError:
        notes.append(
            f"annotation {SCHEDULER}: {_short(text)} is unknown, {', '.join(Scheduler)} are "
            "known; endpoints are chosen at random"
        )
        return Scheduler.RANDOM


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


def problems(service: Service, slices: Iterable[EndpointSlice]) -> list[str]:
    """Return a note about each annotation of a Service and its slices that cannot be used."""
    notes: list[str] = []
    scheduler(service, notes)
    for piece in slices:
        weight(piece, notes)
    return notes


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
