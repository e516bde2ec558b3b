"""What tests of the kernel's tables share: a network namespace of their own."""

from collections.abc import Iterator

import pytest

from nftproxy.kernel.reader import Reader
from tests.support.tables import new_namespace, reading


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of an empty network namespace."""
    with new_namespace() as name:
        yield name


@pytest.fixture
def reader(netns: str) -> Iterator[Reader]:
    """Reads what is in that namespace."""
    with reading(netns) as reader:
        yield reader
