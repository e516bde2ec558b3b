"""What this machine is: its name and the IP families it can serve. Reads /proc and asks the kernel; decides nothing."""

import socket
from pathlib import Path

from nftproxy.address import Family


def supported_families(proc: Path = Path("/proc")) -> frozenset[Family]:
    """Return the families this machine supports: IPv4 always, IPv6 unless left out or disabled everywhere (contract 8.6.5)."""
    try:
        disabled = (proc / "sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "1"
    except OSError:  # a machine that hides the switch has not turned it off
        disabled = False
    if disabled or not (proc / "net/if_inet6").exists():
        return frozenset({Family.IPv4})
    return frozenset(Family)


def hostname() -> str:
    """Return the OS host name, which names the Node where nothing else does (contract 8.6.1)."""
    return socket.gethostname()
