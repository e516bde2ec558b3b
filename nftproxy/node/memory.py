"""Python's memory in a process that holds a whole cluster: looking for garbage when that may find some, giving back what is free."""

import ctypes
import gc

_LIBC = ctypes.CDLL(None)


def collect_seldom() -> None:
    """Have Python look for reference cycles after 50 000 new objects, not 700.

    A first load makes a million objects and hardly a cycle; looking for them all the time took a fifth of its processor time.
    """
    gc.set_threshold(50_000, 20, 100)


def give_back() -> None:
    """Return what a large transaction or list needed, and is free again, to the system."""
    _LIBC.malloc_trim(0)
