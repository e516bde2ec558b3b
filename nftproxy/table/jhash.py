"""The hash by which the kernel finds a client's slot: `jhash`, in the order of this machine. Pure.

So that `explain` can say which endpoint a client gets.
"""

import struct

from nftproxy.address import pack
from nftproxy.table.schema import SEED

_START = 0xDEADBEEF
_WORD = 0xFFFFFFFF


def slot(client: str, slots: int) -> int:
    """Return the slot that the rules of a pick look up for a client's address."""
    return jhash(pack(client), SEED) * slots >> 32


def jhash(key: bytes, seed: int) -> int:
    """Return Bob Jenkins' hash of some bytes, as in the kernel's include/linux/jhash.h."""
    a = b = c = (_START + len(key) + seed) & _WORD
    while len(key) > 12:
        a, b, c = (x + y & _WORD for x, y in zip((a, b, c), _words(key), strict=True))
        a, b, c = _mixed(a, b, c)
        key = key[12:]
    if not key:
        return c
    a, b, c = (x + y & _WORD for x, y in zip((a, b, c), _words(key), strict=True))
    return _final(a, b, c)


def _words(key: bytes) -> tuple[int, ...]:
    """Return the first three words, of which the last may be cut off."""
    return struct.unpack("=3I", key[:12].ljust(12, b"\0"))


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _WORD


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in (4, 6, 8, 16, 19, 4):  # each step does to a what the next does to b
        a = (a - c & _WORD) ^ _rotated(c, bits)
        c = c + b & _WORD
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for bits in (14, 11, 25, 16, 4, 14, 24):  # each step does to c what the next does to a
        c = (c ^ b) - _rotated(b, bits) & _WORD
        a, b, c = b, c, a
    return b
