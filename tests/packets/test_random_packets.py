"""Random clusters, real packets, and an oracle that knows only the contract: they have to agree.

`make soak` runs the same for as long as told.
"""

import random

import pytest

from tests.support.search import Search


@pytest.mark.timeout(400)  # a finding is made small first
@pytest.mark.contract(
    "1.1.5", "1.1.6", "2.1.1", "2.1.2", "2.1.3", "2.1.4", "2.1.5", "2.2.1", "2.2.2", "2.2.3",
    "2.3.1", "2.3.2", "2.3.3", "2.3.4", "2.3.5",
    "2.3.6", "2.3.7", "2.3.8", "2.3.9", "2.4.1", "2.4.2", "2.4.4", "2.4.5", "2.5.1", "2.5.2",
    "2.5.3", "2.5.4", "2.5.5", "2.5.6", "2.5.7",
    "2.5.8", "2.6.3", "2.6.4", "2.6.5", "2.6.7", "2.6.8", "2.6.9", "2.7.1", "2.7.2", "2.7.3",
    "2.7.4", "2.7.5", "2.7.6", "2.7.7", "2.7.9",
    "2.9.1", "3.1.1", "3.1.2", "3.1.3", "3.1.4", "3.1.6", "3.1.7", "3.1.8", "3.2.1", "3.2.2",
    "3.2.3", "3.2.5", "3.3.1", "3.3.2", "3.3.3",
    "3.3.4", "3.3.5", "3.3.6", "3.4.1", "3.4.2", "3.4.3", "3.4.4", "3.4.5", "3.4.6", "3.4.7",
    "3.4.8", "3.4.9", "4.1.6", "4.1.7", "4.1.8",
    "4.2.1", "4.2.2", "4.2.5", "4.4.1", "4.4.2",
)  # fmt: skip
def test_kernel_and_oracle_agree() -> None:
    search = Search(random.randrange(2**32))
    search.run(45)
    assert search.tally.packets > 500
    assert {"Answer", "Refused", "Silent"} <= search.tally.outcomes.keys()
