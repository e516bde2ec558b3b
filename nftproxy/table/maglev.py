"""A look-up table from the hash of a client's address to an endpoint, the same on every node.

Pure, after Google's Maglev: the slots of a table of fixed size are shared out among the endpoints,
each of which prefers some. The endpoints take turns, as often as their weights say, and each turn
claims a slot that follows from the endpoint alone. A slot belongs to the first that claims it,
until an endpoint has a tenth more than its share. So a slot hardly ever changes its owner because
of what other endpoints do; Maglev's own filling, where everybody always gets a free slot, moves
more than twice as many clients at 100 endpoints.

Nothing but endpoints and weights matters: no history, no order, no node. What is computed here must
never change, or nodes of two releases would disagree.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping

from nftproxy.selection import Endpoint

# Most endpoints of a table, and its slots: at least 64 for each, up to 1 024 endpoints. Few sizes,
# because another size moves nearly all clients.
_SIZES = ((32, 2048), (256, 16384))
_LARGEST = 65536
_SPARE = 10  # a tenth
_BATCH = 256  # claims made at a time


def table(weights: Mapping[Endpoint, int]) -> tuple[Endpoint, ...]:
    """Return the endpoint of each slot; empty without endpoints. Weights are positive."""
    if not weights:
        return ()
    size = next((slots for most, slots in _SIZES if len(weights) <= most), _LARGEST)
    total, greatest = sum(weights.values()), max(weights.values())
    names = identities(weights)
    order = sorted(weights, key=lambda each: hashlib.sha256(names[each].encode()).digest())
    room = {
        each: size * weight * (_SPARE + 1) // (_SPARE * total) + 1
        for each, weight in weights.items()
    }
    claims = {each: _claims(names[each], size).__next__ for each in order}
    owners: list[Endpoint | None] = [None] * size
    left = size
    turns = [(each, claims[each], weights[each]) for each in order]
    number = 0
    while left:
        number += 1
        full = False
        for each, claim, weight in turns:
            # Those of the greatest weight have all turns
            if weight < greatest and number * weight % greatest >= weight:
                continue
            slot = claim()
            if owners[slot] is None and left:
                owners[slot] = each
                left -= 1
                room[each] -= 1
                full = full or not room[each]
        if full:
            turns = [turn for turn in turns if room[turn[0]]]
    return tuple(filter(None, owners))


def identities(endpoints: Mapping[Endpoint, int]) -> dict[Endpoint, str]:
    """Return what an endpoint is known by: its address, so that all ports of a Service agree.

    Of several with one address, the one with the smallest port number comes first.
    """
    seen: Counter[str] = Counter()
    found: dict[Endpoint, str] = {}
    for each in sorted(endpoints):
        seen[each.address] += 1
        found[each] = f"{each.address} {seen[each.address]}"
    return found


def _claims(name: str, size: int) -> Iterator[int]:
    """Yield the slots that an endpoint claims, one after the other and without end."""
    made = 0
    wanted = _BATCH
    while True:
        stream = hashlib.shake_128(name.encode()).digest(4 * wanted)
        for (number,) in struct.iter_unpack("<I", stream[4 * made :]):
            yield number * size >> 32
        made, wanted = wanted, 4 * wanted
