"""Which endpoint has which slot of a list, before and after a change.

Pure. Slots are stable: an endpoint that stays keeps its number, and the last one moves into the
place of a removed one. For long lists that costs as much as the change.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Self

from nftproxy.chunks import Chunks, difference
from nftproxy.selection import Endpoint

_SIZE = 128  # slots in a chunk
_BUCKETS = 64  # of the index; one change copies one


class Slots(Chunks[Endpoint]):
    """The endpoints of a long list in the order of slots, in chunks of one size.

    `wanted` is the list that they are made from, and says what the next one changes.
    """

    __slots__ = ("_index", "wanted")

    def __init__(
        self,
        chunks: Iterable[tuple[Endpoint, ...]],
        wanted: Sequence[Endpoint],
        index: tuple[dict[Endpoint, int], ...],
    ) -> None:
        super().__init__(chunks)
        self.wanted = wanted
        self._index = index

    @classmethod
    def given(cls, order: Iterable[Endpoint], wanted: Sequence[Endpoint]) -> Self:
        """Return slots in an order that is known as a whole."""
        index: tuple[dict[Endpoint, int], ...] = tuple({} for _ in range(_BUCKETS))
        whole = tuple(order)
        for slot, endpoint in enumerate(whole):
            index[hash(endpoint) % _BUCKETS][endpoint] = slot
        return cls(Chunks.of(whole, _SIZE).chunks, wanted, index)

    def settled(self, wanted: Sequence[Endpoint]) -> Self:
        """Return slots for another list, with as few endpoints as possible out of theirs."""
        gone, come = difference(self.wanted, wanted)
        before, after = len(self), len(wanted)
        left = set(gone)
        moved = {slot: end for slot, end in self._from(after) if end not in left}
        free = [*sorted(filter(lambda slot: slot < after, map(self._slot, gone)))]
        free += range(before, after)
        placed = dict(zip(free, [*moved.values(), *come], strict=True))
        return type(self)(self._with(placed, after), wanted, self._indexed(left, placed))

    def _from(self, start: int) -> Iterator[tuple[int, Endpoint]]:
        """Yield the slots from a number on."""
        first = start // _SIZE
        items = (item for chunk in self.chunks[first:] for item in chunk)
        yield from islice(enumerate(items, first * _SIZE), start - first * _SIZE, None)

    def _slot(self, endpoint: Endpoint) -> int:
        return self._index[hash(endpoint) % _BUCKETS][endpoint]

    def _with(self, placed: dict[int, Endpoint], length: int) -> list[tuple[Endpoint, ...]]:
        """Return the chunks of that many slots, some of which have other endpoints."""
        changed: dict[int, list[Endpoint]] = {}
        for slot, endpoint in placed.items():
            number, place = divmod(slot, _SIZE)
            if number not in changed:
                changed[number] = list(self.chunks[number]) if number < len(self.chunks) else []
            changed[number][place : place + 1] = [endpoint]
        last = (length - 1) // _SIZE
        chunks = [*self.chunks[: last + 1]]
        chunks += [()] * (last + 1 - len(chunks))
        for number in changed.keys() - range(last + 1, len(self.chunks)):
            chunks[number] = tuple(changed[number])
        chunks[last] = chunks[last][: length - last * _SIZE]
        return chunks

    def _indexed(
        self, gone: Iterable[Endpoint], placed: dict[int, Endpoint]
    ) -> tuple[dict[Endpoint, int], ...]:
        index = list(self._index)
        copied: set[int] = set()

        def bucket(endpoint: Endpoint) -> dict[Endpoint, int]:
            number = hash(endpoint) % _BUCKETS
            if number not in copied:
                copied.add(number)
                index[number] = dict(index[number])
            return index[number]

        for endpoint in gone:
            del bucket(endpoint)[endpoint]
        for slot, endpoint in placed.items():
            bucket(endpoint)[endpoint] = slot
        return tuple(index)


def settle(before: Sequence[Endpoint], wanted: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Return the endpoints of `wanted` with as few as possible out of their slots in `before`."""
    if not before or before is wanted:
        return wanted
    if isinstance(wanted, Chunks) and isinstance(before, Chunks):
        slots = before if isinstance(before, Slots) else Slots.given(before, before)
        return slots.settled(wanted)
    if before == wanted:
        return wanted
    remaining = Counter(wanted)  # by weight, an endpoint may have several slots
    slots_of: list[Endpoint | None] = [None] * len(wanted)
    for slot, endpoint in enumerate(islice(before, len(wanted))):
        if remaining[endpoint]:
            slots_of[slot] = endpoint
            remaining[endpoint] -= 1
    movers = remaining.elements()
    order = tuple(endpoint if endpoint is not None else next(movers) for endpoint in slots_of)
    return Slots.given(order, wanted) if isinstance(wanted, Chunks) else order


def changed(
    old: Sequence[Endpoint], new: Sequence[Endpoint]
) -> Iterator[tuple[int, Endpoint | None, Endpoint | None]]:
    """Yield the slots that differ: number, endpoint before and after; None: no such slot."""
    if isinstance(old, Slots) and isinstance(new, Slots):
        for number, (was, becomes) in enumerate(zip_longest(old.chunks, new.chunks, fillvalue=())):
            if was is not becomes:
                yield from _changed(was, becomes, number * _SIZE)
    elif old is not new:
        yield from _changed(old, new, 0)


def _changed(
    old: Iterable[Endpoint], new: Iterable[Endpoint], first: int
) -> Iterator[tuple[int, Endpoint | None, Endpoint | None]]:
    for slot, (was, becomes) in enumerate(zip_longest(old, new), first):
        if was != becomes:
            yield slot, was, becomes
