"""Whether libnftables and the kernel would take a transaction, without making it.

A child process asks: the Python binding has no dry run, and a library that another program's table
kills takes the child along, not us.
"""

import subprocess
import sys

from nftproxy.errors import KernelError, UnusableError

_PATIENCE = 30.0  # seconds
_MISSING = 3
_CHILD = """\
import ctypes, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
try:
    library = ctypes.CDLL("libnftables.so.1")
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
library.nft_ctx_new.restype = ctypes.c_void_p
library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
context = ctypes.c_void_p(library.nft_ctx_new(0))
library.nft_ctx_buffer_output(context)
library.nft_ctx_buffer_error(context)
library.nft_ctx_set_dry_run(context, True)
failed = library.nft_run_cmd_from_buffer(context, sys.stdin.buffer.read())
print(library.nft_ctx_get_error_buffer(context).decode(), file=sys.stderr)
sys.exit(bool(failed))
"""


def rehearse(text: str) -> None:
    """Raise what would go wrong: UnusableError without the library, KernelError where it or the kernel refuses."""
    argv = [sys.executable, "-I", "-S", "-c", _CHILD]
    try:
        child = subprocess.run(
            argv, input=text, text=True, capture_output=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise KernelError(f"libnftables does not answer within {_PATIENCE:.0f} s") from None
    lines = [line for line in child.stderr.splitlines() if line.strip()]
    if child.returncode == _MISSING:
        raise UnusableError(
            f"libnftables cannot be loaded: {lines[0]}", hint="apt-get install libnftables1"
        )
    if child.returncode < 0:
        raise KernelError(f"libnftables ends its process with signal {-child.returncode}")
    if child.returncode:
        raise KernelError(lines[0] if lines else "libnftables gave no reason")
