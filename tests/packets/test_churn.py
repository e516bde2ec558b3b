"""Connections while everything changes: none refused, none lost, none led astray, open ones go on.

`make soak` does more of it.
"""

import random

import pytest
from loguru import logger

from tests.support.churn import churn


@pytest.mark.contract("2.9.1", "3.2.2", "3.4.9", "5.7.2", "5.7.7")
def test_nothing_is_refused_or_lost_while_services_change() -> None:
    seed = random.randrange(2**32)
    logger.disable("nftproxy")
    try:
        outcome = churn(8, 100, seed, least=25)
    finally:
        logger.enable("nftproxy")
    assert not outcome.problems, "\n".join(
        [f"seed {seed}, {len(outcome.problems)} problems", *outcome.problems[:20]]
    )
    assert outcome.connections > 200
    assert outcome.continued > 20
    assert outcome.changes.total() > 20
