"""Making a scenario that shows a fault as small as it goes, by leaving out one thing after the
other.

A scenario is turned into plain documents, of which any key or list item may go, large ones first;
what does not decode any more is skipped. Hypothesis could do the same, but knows nothing of what a
scenario means and takes ten times as long.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import msgspec

from nftproxy.model import EndpointSlice, Service, ServiceCIDR
from tests.support.strategies import Options, Scenario, Step

Path = tuple[str | int, ...]


def minimal(scenario: Scenario, fails: Callable[[Scenario], bool], *, seconds: float) -> Scenario:
    """Return the smallest scenario found in some time for which `fails` still holds."""
    until = time.monotonic() + seconds
    smaller = True
    while smaller and time.monotonic() < until:
        smaller = False
        gone: list[Path] = []
        for path in list(_paths(_document(scenario))):
            if time.monotonic() > until:
                break
            if any(path[: len(above)] == above for above in gone):
                continue
            candidate = _without(scenario, path)
            if candidate is not None and candidate != scenario and fails(candidate):
                scenario, smaller = candidate, True
                gone.append(path)
                if isinstance(path[-1], int):  # the other items of this list have other numbers now
                    break
    return scenario


def _document(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario as plain documents."""
    steps = [
        {field.name: msgspec.to_builtins(getattr(step, field.name)) for field in fields(Step)}
        for step in scenario.steps
    ]
    return {
        "options": {field.name: getattr(scenario.options, field.name) for field in fields(Options)},
        "steps": steps,
    }


def _scenario(document: dict[str, Any], seed: int) -> Scenario:
    """Turn documents back into a scenario; errors of msgspec where that does not go."""
    steps = [
        Step(
            services={
                int(n): msgspec.convert(d, Service | None)
                for n, d in step.get("services", {}).items()
            },
            slices={
                int(n): msgspec.convert(d, tuple[EndpointSlice, ...])
                for n, d in step.get("slices", {}).items()
            },
            cidrs=msgspec.convert(step.get("cidrs"), tuple[ServiceCIDR, ...] | None),
            zones=step.get("zones", {}),
            restart=tuple(step.get("restart", ())),
        )
        for step in document["steps"]
    ]
    return Scenario(Options(**document.get("options", {})), tuple(steps), seed)


def _paths(document: object) -> Iterator[Path]:
    """Yield the places of everything in a document, large things first."""
    level: list[tuple[Path, object]] = [((), document)]
    while level:
        below: list[tuple[Path, object]] = []
        for path, item in level:
            if isinstance(item, dict):
                below += [((*path, key), value) for key, value in item.items() if value is not None]
            elif isinstance(item, list | tuple):
                below += [((*path, index), value) for index, value in enumerate(item)]
        yield from (path for path, _ in below)
        level = below


def _without(scenario: Scenario, path: Path) -> Scenario | None:
    """Return a scenario without what is at a place; None when it is none then."""
    document = msgspec.json.decode(msgspec.json.encode(_document(scenario)))
    place = document
    try:
        for part in path[:-1]:
            place = place[part if isinstance(part, int) and isinstance(place, list) else str(part)]
        last = path[-1]
        del place[last if isinstance(place, list) else str(last)]
        return replace(_scenario(document, scenario.seed))
    except (msgspec.ValidationError, KeyError, IndexError):
        return None
