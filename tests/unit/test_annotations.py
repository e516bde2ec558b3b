"""What the annotations of Services mean, and what is said about unknown values."""

import pytest

from nftproxy import annotations
from nftproxy.annotations import AFFINITY_SCOPE, AffinityScope, Problems
from tests.support.objects import service

NOTE = "annotation nftproxy.io/affinity-scope: 'Service' is not one of port, service; port applies"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, AffinityScope.PORT),
        ("port", AffinityScope.PORT),
        ("service", AffinityScope.SERVICE),
    ],
)
def test_a_scope(value: str | None, expected: AffinityScope) -> None:
    found: list[str] = []
    marked = service(annotations={AFFINITY_SCOPE: value} if value else {"other": "x"})
    assert annotations.affinity_scope(marked, found) is expected
    assert found == []


@pytest.mark.parametrize("value", ["", "Service", "service ", "x" * 5000, "\n\x1b[2J", "*"])
def test_an_unknown_scope_is_named_and_has_no_effect(value: str) -> None:
    found: list[str] = []
    marked = service(annotations={AFFINITY_SCOPE: value})
    assert annotations.affinity_scope(marked, found) is AffinityScope.PORT
    (note,) = found
    assert note.isprintable()
    assert len(note) < 200


def test_an_event_for_each_value_that_has_no_effect() -> None:
    """Once, though both families look; again after a change."""
    problems = Problems()
    wrong, right = (service(annotations={AFFINITY_SCOPE: v}) for v in ("Service", "service"))
    name = wrong.metadata.key
    assert list(problems.new({name: (wrong, ())})) == [(name, NOTE)]
    assert list(problems.new({name: (wrong, ())})) == []
    assert list(problems.new({name: (right, ())})) == []
    assert list(problems.new({name: (wrong, ())})) == [(name, NOTE)]
    assert list(problems.new({name: (None, ())})) == []
