"""Rules as nft prints them, by chain and handle.

libnftables prints them in a child process: other programs' tables can crash a library that lists
them, and what crashes then is not this process. Without an answer there is no text, and the handle
has to do.
"""

import re
import subprocess
import sys

from nftproxy.path.ruleset import NftChain

_PATIENCE = 10.0  # seconds
_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9/\\_.-]*")  # what nft takes without quotes
_LINE = re.compile(r"(?P<text>.*) # handle (?P<handle>[0-9]+)")
_CHILD = """\
import ctypes, sys
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
library = ctypes.CDLL("libnftables.so.1")
library.nft_ctx_new.restype = ctypes.c_void_p
library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
context = ctypes.c_void_p(library.nft_ctx_new(0))
library.nft_ctx_output_set_flags(context, 12)
library.nft_ctx_buffer_output(context)
library.nft_ctx_buffer_error(context)
library.nft_run_cmd_from_buffer(context, sys.argv[1].encode())
sys.stdout.buffer.write(library.nft_ctx_get_output_buffer(context))
"""  # 12: handles, and no counters


class Texts:
    """The rules of chains, each listed once."""

    def __init__(self) -> None:
        self._chains: dict[NftChain, dict[int, str]] = {}

    def get(self, chain: NftChain, handle: int) -> str:
        """Return a rule; empty when nobody can say."""
        if chain not in self._chains:
            self._chains[chain] = _listed(chain)
        return self._chains[chain].get(handle, "")


def _listed(chain: NftChain) -> dict[int, str]:
    names = chain.table.name, chain.name
    if not all(_NAME.fullmatch(name) for name in names):
        return {}
    command = f"list chain {chain.table.family} {chain.table.name} {chain.name}"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, command],
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse(done.stdout.decode(errors="replace"))


def parse(listing: str) -> dict[int, str]:
    """Return the rules of a listing, by handle."""
    found = {}
    for line in listing.splitlines():
        if match := _LINE.fullmatch(line.strip()):
            found[int(match["handle"])] = match["text"].strip()
    return found
