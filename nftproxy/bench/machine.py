"""The machine of the figures."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


def describe(programs: Iterable[str] = ("nft", "iptables", "ipvsadm", "iperf3")) -> dict[str, str]:
    """Return the facts for a comparison with another machine."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    found = {
        "nftproxy": version("nftproxy"),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 1e6:.1f} GB" if memory else "unknown",
        "python": platform.python_version(),
        "load before": " ".join(f"{each:.2f}" for each in os.getloadavg()),
    }
    return found | {program: _version(program) for program in programs}


def _processor() -> str:
    names = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[1] if names else "unknown"


def _version(program: str) -> str:
    if not shutil.which(program):
        return "not installed"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    return (
        lines[0].strip() if lines and not done.returncode else "installed, but does not say which"
    )
