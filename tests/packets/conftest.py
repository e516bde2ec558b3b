"""What packet tests share: one lab for a whole module, where outsiders know the way to Services."""

from collections.abc import Iterator

import pytest

from tests.support.frontends import route_outside
from tests.support.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Two nodes; a module that needs more overrides this fixture."""
    with World() as world:
        route_outside(world)
        yield world
