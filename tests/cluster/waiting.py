"""Waiting until something is true."""

import time
from collections.abc import Callable


def wait(true: Callable[[], object], seconds: float = 120, problem: str = "") -> float:
    """Wait until something is true, and return how long that took."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > seconds:
            raise TimeoutError(problem or "waited in vain")
        time.sleep(0.2)
    return time.monotonic() - begin
