"""The plan of a run: sizes and modes, repetitions, and the time for each measure. Pure.

Modes take turns in every round, each time another one first, so that noise hits all alike; ratios
within a run count.
"""

from dataclasses import dataclass
from typing import Final, Literal

from nftproxy.bench.offer import Offer


@dataclass(frozen=True, slots=True)
class Effort:
    """The amount of measurements of one mode in one round."""

    changes: int  # at most, of each kind
    seconds: float  # as long as there is time for, of each kind
    turns: int  # turns of connections and datagrams ...
    connections: int  # ... and their number in a turn, for each place of the list
    datagrams: int
    steady_turns: int  # turns of connections without a pause, and of one that stays ...
    steady: float  # ... and the seconds of a turn


FULL: Final = Effort(
    changes=100, seconds=5.0, turns=20, connections=100, datagrams=50, steady_turns=5, steady=1.0
)
QUICK: Final = Effort(
    changes=20, seconds=0.5, turns=5, connections=60, datagrams=40, steady_turns=1, steady=0.5
)


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """A run."""

    offers: tuple[Offer, ...]
    modes: tuple[str, ...]
    repeat: int
    effort: Effort
    iptables_backend: Literal["legacy", "nft"] = "legacy"
    kube_proxy: str = ""  # the program, for modes that need it

    @property
    def steps(self) -> int:
        """The number of steps: for each mode of a round two of control and two of traffic."""
        return len(self.offers) * self.repeat * len(self.modes) * 4

    def turn(self, number: int) -> tuple[str, ...]:
        """Return the modes in the order of a round or turn, counted from 0."""
        first = number % len(self.modes)
        return self.modes[first:] + self.modes[:first]
