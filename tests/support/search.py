"""Searching for a scenario on which kernel and oracle disagree.

Random ones until time is up, and the first finding made small.
"""

import time
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from loguru import logger

from tests.support.minimal import minimal
from tests.support.oracle import ReadingsError
from tests.support.stage import FindingError, Tally, play
from tests.support.strategies import Scenario, scenarios

BATCH = 40  # scenarios with one seed of hypothesis; the first ones of a batch are simple
SHRINKING = 120.0  # seconds to make a finding smaller


@dataclass
class Search:
    """Random scenarios; `seed` makes the same ones again."""

    seed: int
    tally: Tally = field(default_factory=Tally)

    def run(self, seconds: float) -> None:
        """Play scenarios for some time.

        FindingError with the smallest case and how to have it again.
        """
        until = time.monotonic() + seconds
        logger.disable("nftproxy")  # scenarios are full of what has to be logged
        try:
            while time.monotonic() < until:
                self._batch(until)
                self.seed += 1
        finally:
            logger.enable("nftproxy")

    def _batch(self, until: float) -> None:
        failed: list[tuple[Scenario, FindingError]] = []

        @seed(self.seed)
        @settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            derandomize=False,
            print_blob=True,
            phases=[Phase.generate],
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
                HealthCheck.large_base_example,
            ],
        )
        @given(scenarios())
        def case(scenario: Scenario) -> None:
            if failed and scenario == failed[0][0]:
                raise failed[0][1]  # hypothesis tries it once more, to print how to have it again
            if time.monotonic() < until and not failed:
                try:
                    play(scenario, self.tally)
                except FindingError as error:
                    failed.append((scenario, error))
                    raise
                except ReadingsError:
                    reject()  # rare, and another scenario serves as well

        try:
            case()
        except FindingError as error:
            raise FindingError(
                f"{error}\nseed {self.seed}\n{self._smallest(failed[0][0])}"
            ) from error

    def _smallest(self, scenario: Scenario) -> str:
        """Return the smallest case that still fails, and how."""
        errors = []

        def fails(candidate: Scenario) -> bool:
            try:
                play(candidate, self.tally)
            except FindingError as error:
                errors.append(error)
                return True
            return False

        if not fails(scenario) and not fails(scenario):
            return f"not seen again in {scenario}"
        small = minimal(scenario, fails, seconds=SHRINKING)
        return f"smallest case: {small}\n{errors[-1]}"
