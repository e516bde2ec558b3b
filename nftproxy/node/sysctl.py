"""Kernel settings at the start.

Conntrack (contract 6.1) and the score of the OOM killer (contract 6.1.7).

The values are a pure function of the configuration and the number of CPUs. A value that is already
right is not written, so a read-only /proc/sys with the right values works. Any other failure is
fatal, because a cluster that asked for these limits would reach the old ones later, under load.
Where the kernel has no conntrack yet, its module is loaded; where that fails, there is a warning,
because nothing has limits then. No other setting is ever changed (contract 6.1.6).
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from loguru import logger

from nftproxy.configuration.config import ConntrackSection
from nftproxy.errors import NftproxyError, UnusableError
from nftproxy.kernel.transactions import Kernel

MAX: Final = "nf_conntrack_max"
_CEILING: Final = 1 << 20
_LEAVE_ALONE: Final = {
    MAX: "conntrack.maxPerCore: 0",
    "nf_conntrack_tcp_timeout_established": "conntrack.tcpEstablishedTimeout: 0s",
    "nf_conntrack_tcp_timeout_close_wait": "conntrack.tcpCloseWaitTimeout: 0s",
    "nf_conntrack_tcp_be_liberal": "conntrack.tcpBeLiberal: false",
    "nf_conntrack_udp_timeout": "conntrack.udpTimeout: 0s",
    "nf_conntrack_udp_timeout_stream": "conntrack.udpStreamTimeout: 0s",
}


class Setting(NamedTuple):
    """A file below /proc/sys/net/netfilter and its wanted number."""

    name: str
    value: int


def wanted(conntrack: ConntrackSection, cpus: int) -> list[Setting]:
    """Return the settings, in order (contract 6.1); durations are whole seconds."""
    table = [
        Setting(MAX, max_entries(conntrack.max_per_core, conntrack.min, cpus)),
        Setting(
            "nf_conntrack_tcp_timeout_established", int(conntrack.tcp_established_timeout.seconds)
        ),
        Setting(
            "nf_conntrack_tcp_timeout_close_wait", int(conntrack.tcp_close_wait_timeout.seconds)
        ),
        Setting("nf_conntrack_tcp_be_liberal", int(conntrack.tcp_be_liberal)),
        Setting("nf_conntrack_udp_timeout", int(conntrack.udp_timeout.seconds)),
        Setting("nf_conntrack_udp_timeout_stream", int(conntrack.udp_stream_timeout.seconds)),
    ]
    return [setting for setting in table if setting.value > 0]


def max_entries(per_core: int, at_least: int, cpus: int) -> int:
    """Return the limit of conntrack entries, 0 to keep it (contract 6.1.1).

    The ceiling does not apply to `at_least`.
    """
    if not per_core:
        return 0
    scaled = per_core * cpus
    if scaled > _CEILING:
        return _CEILING
    return max(scaled, at_least)


def load_conntrack() -> None:
    """Let the kernel load its module nf_conntrack, as our rules do later."""
    with Kernel() as kernel:
        kernel.load_conntrack()


def apply(
    conntrack: ConntrackSection,
    *,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    load: Callable[[], None] = load_conntrack,
) -> list[Setting]:
    """Apply the settings and return the written ones.

    UnusableError names a file that could not be read or written.

    `load` is called where the kernel has no conntrack yet.
    """
    written = []
    settings = wanted(conntrack, cpu_count(sys))
    if settings and not _present(proc / "sys/net/netfilter" / MAX, load):
        return []
    for setting in settings:
        hint = f"needs a writable /proc/sys, or set {_LEAVE_ALONE[setting.name]} to run without"
        if _write(proc / "sys/net/netfilter" / setting.name, setting.value, hint):
            written.append(setting)
        if setting.name == MAX and _grow_table(sys, setting.value // 4, hint):
            written.append(Setting("hashsize", setting.value // 4))
    for name, value in written:
        logger.info("set {} to {}", name, value)
    return written


def _present(path: Path, load: Callable[[], None]) -> bool:
    """Return whether the kernel has conntrack; load it if necessary, and log if that fails."""
    if path.exists():
        return True
    reason = "the kernel accepted a rule that needs nf_conntrack, but did not load it"
    try:
        load()
    except NftproxyError as error:
        reason = str(error)
    if path.exists():
        return True
    logger.warning(
        "{} does not exist, and the module nf_conntrack cannot be loaded: {}. The conntrack "
        "settings of the configuration are not "
        "made; run `modprobe nf_conntrack` and restart nftproxy to make them.",
        path,
        reason,
    )
    return False


def cpu_count(sys: Path = Path("/sys")) -> int:
    """Return the number of CPUs in sysfs, or else of those we may use (contract 6.1.2)."""
    cpus = sys / "devices/system/cpu"
    found = [
        path
        for path in cpus.glob("cpu[0-9]*/topology")
        if re.fullmatch(r"cpu[0-9]+", path.parent.name)
    ]
    return len(found) or len(os.sched_getaffinity(0))


def set_oom_score(adjustment: int, *, proc: Path = Path("/proc")) -> None:
    """Set how likely the kernel kills this process for memory.

    A failure is only logged (contract 6.1.7).
    """
    path = proc / "self/oom_score_adj"
    try:
        path.write_text(str(adjustment))
    except OSError as error:
        logger.warning(
            "{} cannot be set to {}: {}; lowering it needs the capability SYS_RESOURCE",
            path,
            adjustment,
            error.strerror,
        )


def _grow_table(sys: Path, size: int, hint: str) -> bool:
    """Enlarge conntrack's hash table to match the limit; a larger one stays (contract 6.1.4)."""
    path = sys / "module/nf_conntrack/parameters/hashsize"
    return _read(path, hint) < size and _write(path, size, hint)


def _write(path: Path, value: int, hint: str) -> bool:
    """Write a number to a file; return whether it had another one."""
    if _read(path, hint) == value:
        return False
    try:
        path.write_text(str(value))
    except OSError as error:
        raise UnusableError(
            f"{path} cannot be set to {value}: {error.strerror}", hint=hint
        ) from error
    return True


def _read(path: Path, hint: str) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise UnusableError(
            f"{path} cannot be read: {getattr(error, 'strerror', error)}", hint=hint
        ) from error
