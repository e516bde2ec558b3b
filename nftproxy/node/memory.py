"""Python's memory in a process that holds a whole cluster: looking for garbage when that may find some, giving back what is free."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None)


def collect_seldom() -> None:
    """Have Python look for reference cycles after 50 000 new objects, not 700.

    A first load makes a million objects and hardly a cycle; looking for them all the time took a fifth of its processor time.
    """
    gc.set_threshold(50_000, 20, 100)


@contextmanager
def uncollected() -> Iterator[None]:
    """Do not look for reference cycles at all while a block makes very many objects and no cycles; a sixth of a first load's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def give_back() -> None:
    """Return what a large transaction or list needed, and is free again, to the system."""
    _LIBC.malloc_trim(0)
