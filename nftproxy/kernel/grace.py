"""A wait until every packet has left that met the rules as they were.

A packet passes a hook's rules within one read-side section of the kernel's RCU. So after a grace
period, every packet that read a verdict before a transaction has finished with the target of that
verdict.
"""

import ctypes
import platform
import time
from typing import Final

_GLOBAL: Final = 1  # MEMBARRIER_CMD_GLOBAL; membarrier(2) has no function in libc
_NUMBERS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "loongarch64": 283,
    "armv7l": 389,
    "ppc64le": 365,
    "s390x": 356,
}
_INSTEAD: Final = 0.02  # seconds; a grace period takes 5 to 20 ms

_syscall = ctypes.CDLL(None).syscall


def wait() -> bool:
    """Wait for a grace period.

    False if the kernel cannot (CPUs with nohz_full), and time has passed.
    """
    number = _NUMBERS.get(platform.machine())
    if (
        number is not None
        and _syscall(
            ctypes.c_long(number), ctypes.c_int(_GLOBAL), ctypes.c_uint(0), ctypes.c_int(0)
        )
        == 0
    ):
        return True
    time.sleep(_INSTEAD)
    return False
