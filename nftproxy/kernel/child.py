"""libnftables in a child process: a rehearsed transaction, and our table as text.

The Python binding has no dry run, and a library that another program's table kills takes the child
along, not us. The child lives in the network namespace of the calling thread.
"""

import subprocess
import sys

from nftproxy.errors import KernelError, UnusableError

_PATIENCE = 60.0  # seconds
_MISSING = 3
_TERSE = 1 << 11  # NFT_CTX_OUTPUT_TERSE
_CHILD = """\
import ctypes, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
try:
    library = ctypes.CDLL("libnftables.so.1")
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
library.nft_ctx_new.restype = ctypes.c_void_p
library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
context = ctypes.c_void_p(library.nft_ctx_new(0))
library.nft_ctx_buffer_output(context)
library.nft_ctx_buffer_error(context)
library.nft_ctx_set_dry_run(context, sys.argv[1] == "rehearse")
library.nft_ctx_output_set_flags(context, int(sys.argv[2]))
failed = library.nft_run_cmd_from_buffer(context, sys.stdin.buffer.read())
sys.stdout.buffer.write(library.nft_ctx_get_output_buffer(context))
sys.stderr.buffer.write(library.nft_ctx_get_error_buffer(context))
sys.exit(bool(failed))
"""


def rehearse(text: str) -> None:
    """Raise the error that a load would.

    UnusableError without the library, KernelError on a refusal.
    """
    _run("rehearse", text, 0)


def listing(*, terse: bool = False) -> str:
    """Return our table as nft prints it, `terse` without elements; errors as for `rehearse`."""
    return _run("list", "list table inet nftproxy", _TERSE if terse else 0)


def _run(what: str, text: str, flags: int) -> str:
    argv = [sys.executable, "-I", "-S", "-c", _CHILD, what, str(flags)]
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
    return child.stdout
