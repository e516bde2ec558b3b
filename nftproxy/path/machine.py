"""The registers of nf_tables, with unknown bits, and values that chance decides.

Pure. A comparison therefore has one answer or both; whoever asks goes on with each of them, and
remembers why there are two.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from nftproxy.table.expressions import BitwiseOperation, Operation

_MOST = 4096
"""Values that one register is followed with; above that it is unknown."""


class RegisterValue(NamedTuple):
    """One of `options`, as far as its bits are `known`.

    `why` says what is unknown, or what chooses.
    """

    options: tuple[bytes, ...]
    known: bytes
    why: str = ""

    @property
    def is_known(self) -> bool:
        """Whether all bits are."""
        return all(byte == 0xFF for byte in self.known)

    @property
    def is_exact(self) -> bool:
        """Whether there is only one value that it can be."""
        return self.is_known and len(self.options) == 1


def exact(data: bytes) -> RegisterValue:
    """Return a value that is known."""
    return RegisterValue((data,), b"\xff" * len(data))


def partly(data: bytes, known: bytes, why: str) -> RegisterValue:
    """Return a value of which only some bits are known."""
    return RegisterValue((data,), known, "" if all(byte == 0xFF for byte in known) else why)


def unknown(length: int, why: str) -> RegisterValue:
    """Return a value that nobody knows."""
    return RegisterValue((bytes(length),), bytes(length), why)


def number(value: int, length: int = 4) -> RegisterValue:
    """Return a number in the order of the machine, as most of the kernel's own are."""
    return exact(value.to_bytes(length, sys.byteorder))


def choice(offset: int, modulus: int, why: str) -> RegisterValue:
    """Return a number from a range of which chance takes one."""
    if not 0 < modulus <= _MOST:
        return unknown(4, why)
    return RegisterValue(
        tuple((offset + each).to_bytes(4, sys.byteorder) for each in range(modulus)),
        b"\xff" * 4,
        why,
    )


class Registers:
    """The registers while a rule is run: words of four bytes.

    Never changed: `store` returns new ones.
    """

    def __init__(self, words: Mapping[int, RegisterValue] | None = None) -> None:
        self._words = words or {}

    def store(self, register: int, value: RegisterValue) -> "Registers":
        """Return registers that hold a value, filled up with zeros to whole words."""
        first, length = _word(register), len(value.known)
        spare = bytes(-length % 4)
        words = dict(self._words)
        options = value.options
        if length > 4 and len(options) > 1:  # words of one value belong together
            return self.store(register, unknown(length, value.why))
        known = value.known + b"\xff" * len(spare)
        for index in range(0, length, 4):
            whole = tuple((option + spare)[index : index + 4] for option in options)
            words[first + index // 4] = RegisterValue(whole, known[index : index + 4], value.why)
        return Registers(words)

    def load(self, register: int, length: int) -> RegisterValue:
        """Return what is in a register and those after it."""
        first = _word(register)
        words = [
            self._words.get(first + index, unknown(4, "a register that no rule filled"))
            for index in range((length + 3) // 4)
        ]
        count = 1
        for word in words:
            count *= len(word.options)
        why = next((word.why for word in words if word.why), "")
        if count > _MOST:
            return unknown(length, why)
        options = tuple(
            b"".join(parts)[:length]
            for parts in itertools.product(*(word.options for word in words))
        )
        return RegisterValue(options, b"".join(word.known for word in words)[:length], why)


def _word(register: int) -> int:
    return (register - 1) * 4 if register < 8 else register - 8


def compare(value: RegisterValue, operation: int, data: bytes) -> set[bool]:
    """Return the answers that a comparison can have."""
    return set().union(
        *(_compare(option, value.known, operation, data) for option in value.options)
    )


def _compare(option: bytes, known: bytes, operation: int, data: bytes) -> set[bool]:
    if operation in {Operation.EQUAL, Operation.UNEQUAL}:
        differs = any(
            (one ^ other) & mask for one, other, mask in zip(option, data, known, strict=False)
        )
        if not differs and any(mask != 0xFF for mask in known):
            return {True, False}
        return {differs is (operation == Operation.UNEQUAL)}
    # Between the lowest and the highest value that the unknown bits allow, the answer may be the
    # same all the same.
    lowest = bytes(byte & mask for byte, mask in zip(option, known, strict=True))
    highest = bytes(byte | (~mask & 0xFF) for byte, mask in zip(lowest, known, strict=True))
    test = _ORDER[operation]
    return {test(lowest, data), test(highest, data)}


_ORDER: dict[int, Callable[[bytes, bytes], bool]] = {
    Operation.LESS: lambda one, other: one < other,
    Operation.AT_MOST: lambda one, other: one <= other,
    Operation.MORE: lambda one, other: one > other,
    Operation.AT_LEAST: lambda one, other: one >= other,
}


def within(value: RegisterValue, lowest: bytes, highest: bytes) -> set[bool]:
    """Return whether a value lies in a range; both where it is not known."""
    above = compare(value, Operation.AT_LEAST, lowest)
    below = compare(value, Operation.AT_MOST, highest)
    if len(value.options) == 1:
        return {one and other for one in above for other in below}
    return set().union(
        *(
            within(RegisterValue((option,), value.known), lowest, highest)
            for option in value.options
        )
    )


def bitwise(value: RegisterValue, operation: int, mask: bytes, xor: bytes) -> RegisterValue:
    """Return a value with its bits changed.

    `mask` is the one argument of operations that have one.
    """
    if operation == BitwiseOperation.MASK_XOR:
        return _each(
            value,
            lambda data: bytes((a & m) ^ x for a, m, x in zip(data, mask, xor, strict=True)),
            _also(value, mask, 0),
        )
    if operation == BitwiseOperation.AND:
        return _each(
            value,
            lambda data: bytes(a & b for a, b in zip(data, mask, strict=True)),
            _also(value, mask, 0),
        )
    if operation == BitwiseOperation.OR:
        return _each(
            value,
            lambda data: bytes(a | b for a, b in zip(data, mask, strict=True)),
            _also(value, mask, 0xFF),
        )
    if operation == BitwiseOperation.XOR:
        return _each(
            value, lambda data: bytes(a ^ b for a, b in zip(data, mask, strict=True)), value.known
        )
    return unknown(len(value.known), "an operation on bits that is not known")


def _also(value: RegisterValue, mask: bytes, decided: int) -> bytes:
    """Return which bits are known where a mask decides some of them: its zeros, or its ones."""
    return bytes(
        known | (~bits & 0xFF if decided == 0 else bits)
        for known, bits in zip(value.known, mask, strict=True)
    )


def shift(value: RegisterValue, operation: int, bits: int) -> RegisterValue:
    """Return a value shifted.

    Word by word from the last, each as the machine reads it, the rest going over to the next.
    """
    left = operation == BitwiseOperation.LEFT

    def shifted(data: bytes) -> bytes:
        words = [
            int.from_bytes(data[index : index + 4], sys.byteorder)
            for index in range(0, len(data), 4)
        ]
        carry = 0
        for index in reversed(range(len(words))) if left else range(len(words)):
            word = words[index]
            if left:
                words[index], carry = (word << bits | carry) & 0xFFFFFFFF, word >> (32 - bits)
            else:
                words[index], carry = word >> bits | carry, word << (32 - bits) & 0xFFFFFFFF
        return b"".join(word.to_bytes(4, sys.byteorder) for word in words)

    lost = (1 << bits) - 1  # bits that come in are zero, and known
    zeros = [0] * (len(value.known) // 4)
    if zeros:
        zeros[-1 if left else 0] = lost if left else lost << (32 - bits) & 0xFFFFFFFF
    filled = b"".join(word.to_bytes(4, sys.byteorder) for word in zeros)
    known = bytes(one | other for one, other in zip(shifted(value.known), filled, strict=True))
    return _each(value, shifted, known)


def byteorder(value: RegisterValue, size: int) -> RegisterValue:
    """Return a value whose pieces of 2, 4 or 8 bytes change between network and host order."""
    if sys.byteorder == "big":
        return value

    def swapped(data: bytes) -> bytes:
        return b"".join(data[index : index + size][::-1] for index in range(0, len(data), size))

    return _each(value, swapped, swapped(value.known))


def _each(value: RegisterValue, change: Callable[[bytes], bytes], known: bytes) -> RegisterValue:
    options = tuple(dict.fromkeys(change(option) for option in value.options))
    return RegisterValue(
        options, known, value.why if len(options) > 1 or any(byte != 0xFF for byte in known) else ""
    )


def each_exact(value: RegisterValue) -> Iterator[bytes]:
    """Yield what a value can be, given that all its bits are known."""
    yield from value.options
