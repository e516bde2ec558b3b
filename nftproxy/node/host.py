"""The name of this machine and the IP families that it can serve.

Reads /proc and asks the kernel; decides nothing.
"""

import socket
from pathlib import Path

from nftproxy.address import Family

OLDEST_KERNEL = (5, 13)


def supported_families(proc: Path = Path("/proc")) -> frozenset[Family]:
    """Return the families of this machine.

    IPv4, and IPv6 unless missing or disabled everywhere (contract 8.6.5).
    """
    try:
        disabled = (proc / "sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "1"
    except OSError:  # a machine that hides the switch has not turned it off
        disabled = False
    if disabled or not (proc / "net/if_inet6").exists():
        return frozenset({Family.IPv4})
    return frozenset(Family)


def hostname() -> str:
    """Return the OS host name, the default name of the Node (contract 8.6.1)."""
    return socket.gethostname()
