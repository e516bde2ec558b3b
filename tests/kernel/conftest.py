"""What tests of the kernel's tables share: a network namespace of their own."""

from collections.abc import Iterator

import pytest

from tests.support.tables import new_namespace


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of an empty network namespace."""
    with new_namespace() as name:
        yield name
