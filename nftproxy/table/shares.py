"""Which endpoint has which slots of a list, for each scheduler. Pure.

At random, an endpoint has a slot for each part of its weight; which ones is left to `slots`. By the
client's address, slots follow from endpoints and weights alone, so that all nodes agree.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from nftproxy.annotations import FULL
from nftproxy.model import Scheduler
from nftproxy.selection import Endpoint
from nftproxy.table import maglev

_MOST = 1024  # slots of a list with weights: up to this many, shares are exact
_PARTS = 8  # slots for each endpoint on average, if there must be more


def scheduled(
    endpoints: Sequence[Endpoint], weights: Mapping[Endpoint, int], scheduler: Scheduler
) -> Sequence[Endpoint]:
    """Return the slots of a list; endpoints at random without weights have one each, as they are.

    An endpoint that is not in `weights` has the full weight; none has weight 0.
    """
    if scheduler is Scheduler.RANDOM and not any(each in weights for each in endpoints):
        return endpoints
    weighed = {each: weights.get(each, FULL) for each in sorted(endpoints)}
    if scheduler is Scheduler.MAGLEV:
        return maglev.table(weighed)
    return tuple(_repeated(weighed))


def _repeated(weights: Mapping[Endpoint, int]) -> Iterator[Endpoint]:
    divisor = math.gcd(*weights.values()) or 1
    total, most = sum(weights.values()) // divisor, max(_MOST, _PARTS * len(weights))
    for each, weight in weights.items():
        parts = weight // divisor
        yield from [each] * (parts if total <= most else max(1, parts * most // total))
