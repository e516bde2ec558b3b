"""Python's memory in a process that holds a whole cluster.

Collect garbage rarely, return free memory.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None)


def collect_seldom() -> None:
    """Look for reference cycles after 50 000 new objects, not 700.

    A first load makes a million objects and hardly a cycle; the frequent search took a fifth of its
    processor time, and half of that of a picture of a large table.
    """
    gc.set_threshold(50_000, 20, 100)


@contextmanager
def uncollected() -> Iterator[None]:
    """Stop the search for reference cycles within a block without cycles.

    It takes a sixth of a first load.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def give_back() -> None:
    """Return free memory to the system, after a large transaction or list."""
    _LIBC.malloc_trim(0)
