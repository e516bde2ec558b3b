"""Refused packets by reason, from the counters of the table.

Elements of `no_endpoints` count for their frontend; three rules of each family count the rest: a
source that is not allowed, a port that a ClusterIP lacks, an address that no Service has. Nothing
is counted twice. A counter that is smaller than before has started again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, Generic, TypeVar

from nftproxy.address import Family
from nftproxy.errors import MissingError
from nftproxy.kernel.reader import Reader
from nftproxy.routes import Value, Verdict
from nftproxy.table import schema
from nftproxy.table.schema import Reason

MEANINGS: Final = {
    Reason.NO_ENDPOINTS: "no usable endpoint",
    Reason.POLICY_LOCAL: "policy Local, and no endpoint on this node",
    Reason.SOURCE_RANGE: "the client is not in loadBalancerSourceRanges",
    Reason.UNKNOWN_PORT: "the ClusterIP has no such port",
    Reason.UNALLOCATED: "no Service has this address",
}
"""The reasons in words."""

Subject = tuple[Family, Reason]
Label = TypeVar("Label")


def reason_of(value: Value) -> Reason:
    """Return why the packets of an element of `no_endpoints` are refused."""
    drops = isinstance(value, Verdict) and value.drops
    return Reason.POLICY_LOCAL if drops else Reason.NO_ENDPOINTS


def rule_counters(reader: Reader, families: Iterable[Family]) -> dict[Subject, int]:
    """Read the counters of the rules that refuse; a chain that does not exist counts nothing."""
    found: dict[Subject, int] = {}
    for family in families:
        for chain, reasons in (
            (schema.allowed(family), (Reason.SOURCE_RANGE,)),
            (schema.refuse_unknown(family), (Reason.UNKNOWN_PORT, Reason.UNALLOCATED)),
        ):
            with suppress(MissingError):
                counters = reader.rule_counters(chain)
                found |= {
                    (family, reason): packets
                    for reason, packets in zip(reasons, counters, strict=False)
                }
    return found


def reset_counters(reader: Reader, families: Iterable[Family]) -> dict[tuple[Family, str], int]:
    """Read the counters of the rules that answer packets to endpoints that are gone, by protocol.

    Nothing without --reset-gone-endpoints.
    """
    found: dict[tuple[Family, str], int] = {}
    for family in families:
        with suppress(MissingError):
            counters = reader.rule_counters(schema.reset_gone(family))
            found |= {
                (family, proto): packets
                for proto, packets in zip(schema.PROTOCOLS, counters, strict=False)
            }
    return found


def unlogged(reader: Reader) -> Counter[Reason]:
    """Read how many refusals were too many to be logged; nothing where none is logged."""
    found: Counter[Reason] = Counter()
    for reason in Reason:
        with suppress(MissingError):
            found[reason] = sum(reader.rule_counters(schema.log(reason)))
    return found


class Refusals(Generic[Label]):
    """Totals that only grow, from counters that may start again."""

    def __init__(self, start: Mapping[Label, int]) -> None:
        self.totals: Counter[Label] = Counter()
        self._last = dict(start)

    def enter(self, counters: Mapping[Label, int]) -> Counter[Label]:
        """Add the growth of rule counters since the last reading, and return it."""
        grown: Counter[Label] = Counter()
        for subject, packets in counters.items():
            before = self._last.get(subject, 0)
            if step := packets - before if packets >= before else packets:
                grown[subject] = step
        self._last = dict(counters)
        self.totals += grown
        return grown

    def add(self, subject: Label, packets: int) -> None:
        """Add packets that elements counted."""
        if packets:
            self.totals[subject] += packets
