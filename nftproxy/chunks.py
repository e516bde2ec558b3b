"""Long sequences made of chunks, of which a change replaces few.

Pure. Two long lists of endpoints that differ in one share all chunks but one. What is the same
object is equal, so comparing them costs as much as the chunks that differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, TypeVar, overload

LONG = 64  # items; a sequence with fewer stays a tuple

Item = TypeVar("Item")


class Chunks(Sequence[Item]):
    """An immutable sequence in chunks of any lengths."""

    __slots__ = ("_length", "chunks")

    def __init__(self, chunks: Iterable[tuple[Item, ...]]) -> None:
        self.chunks = tuple(chunks)
        self._length = sum(map(len, self.chunks))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self.chunks)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chunks):
            return NotImplemented
        if list(map(len, self.chunks)) == list(map(len, other.chunks)):
            return self.chunks == other.chunks
        return len(self) == len(other) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.chunks!r})"

    @classmethod
    def of(cls, items: Iterable[Item], size: int) -> Self:
        """Cut items into chunks of one size."""
        whole = tuple(items)
        return cls(whole[start : start + size] for start in range(0, len(whole), size))


def compact(chunks: Iterable[tuple[Item, ...]], length: int) -> Sequence[Item]:
    """Return chunks of that many items as one sequence: a tuple if it is short."""
    return Chunks(chunks) if length > LONG else tuple(chain.from_iterable(chunks))


def difference(old: Sequence[Item], new: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the items that only `old` has, and those that only `new` has.

    Chunks that both have are not looked at. No item stands twice in a sequence.
    """
    if isinstance(old, Chunks) and isinstance(new, Chunks):
        left, right = _other(old.chunks, new.chunks)
        old, new = _other([*chain(*left)], [*chain(*right)])
    had, has = set(old), set(new)
    return [item for item in old if item not in has], [item for item in new if item not in had]


def _other(old: Sequence[Any], new: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Leave out objects that are in both sequences, mostly at the same places."""
    if len(old) == len(new):
        pairs = [(was, now) for was, now in zip(old, new, strict=True) if was is not now]
        return [was for was, _ in pairs], [now for _, now in pairs]
    same = set(map(id, old)).intersection(map(id, new))
    return [one for one in old if id(one) not in same], [one for one in new if id(one) not in same]
