"""Build and remove the namespaces of a lab; `ip` and `bridge` in batch mode fill them.

A batch costs one process of about 2 ms for a whole namespace, and its commands can be read, pasted
and repeated by hand. Nothing is created outside the lab's namespaces, so deleting them removes
everything.
"""

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from nftproxy.errors import NftproxyError, UnusableError
from nftproxy.lab import namespace, topology
from nftproxy.lab.plan import LabPlan

_FAILED = re.compile(r"Command failed -:(\d+)")
_SIOCGIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x1, 0x40
_UNSUPPORTED = ("Unknown device type", "Operation not supported", "not supported")


def check_machine() -> None:
    """Raise if this process cannot make namespaces."""
    if os.geteuid() != 0:
        raise UnusableError(
            "a lab is made of network namespaces, which needs root",
            hint="run the command with sudo",
        )
    if not shutil.which("ip"):
        raise UnusableError("the program `ip` is missing", hint="apt install iproute2")


def has_bridge_netfilter() -> bool:
    """Whether the kernel passes bridged packets to netfilter (module br_netfilter)."""
    return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()


def create_namespaces(plan: LabPlan) -> None:
    """Make the namespaces, empty except for their sysctls; then sockets may be opened in them."""
    for commands in topology.commands(plan):
        try:
            namespace.create(commands.namespace)
        except PermissionError as error:
            raise UnusableError(
                f"this process may not make network namespaces ({error})",
                hint="a container has to be a privileged one",
            ) from error
        with namespace.enter(commands.namespace):
            for path, value in commands.sysctls.items():
                _write_sysctl(path, value)


def connect(plan: LabPlan) -> None:
    """Fill the namespaces with links, addresses and routes."""
    batch("ip", None, topology.cables(plan))
    commands = topology.commands(plan)
    batches([("ip", c.namespace, c.ip) for c in commands])
    batches([("bridge", c.namespace, c.bridge) for c in commands if c.bridge])
    idle = set() if plan.shape.pods else {"cni0"}  # a bridge without ports never gets a carrier
    for c in commands:
        _wait_for_links(c.namespace, idle)


def remove(names: Sequence[str]) -> None:
    """Delete namespaces with everything in them, processes too."""
    namespace.kill(namespace.processes(names))
    for name in names:
        namespace.delete(name)


def batch(program: str, where: str | None, lines: Sequence[str]) -> None:
    """Run commands of `ip` or `bridge` in a namespace (None.

    The host's); an error names the command that failed.
    """
    batches([(program, where, lines)])


def batches(work: Iterable[tuple[str, str | None, Sequence[str]]]) -> None:
    """Run several batches side by side: (program, namespace, commands)."""
    running = []
    for program, where, lines in work:
        argv = [program, *(("-n", where) if where else ()), "-batch", "-"]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append((process, where, lines))
    problems = []
    for process, where, lines in running:
        _, errors = process.communicate("\n".join(lines) + "\n")
        if process.returncode:
            problems.append(_problem(str(process.args[0]), where, lines, errors))  # type: ignore[index]
    if problems:
        raise problems[0]


def _problem(program: str, where: str | None, lines: Sequence[str], errors: str) -> NftproxyError:
    failed = _FAILED.search(errors)
    command = lines[int(failed[1]) - 1] if failed else "; ".join(lines)
    reason = _FAILED.sub("", errors).strip().replace("\n", "; ")
    text = f"`{program} {f'-n {where} ' if where else ''}{command}` failed: {reason}"
    if any(words in errors for words in _UNSUPPORTED):
        return UnusableError(text, hint="the kernel lacks a module: modprobe -a veth bridge vxlan")
    return NftproxyError(text)


def _wait_for_links(where: str, idle: set[str], timeout: float = 10.0) -> None:
    """Wait until every link that is up works, except `idle`.

    The kernel needs a moment and loses packets until then.
    """
    deadline = time.monotonic() + timeout
    with namespace.enter(where):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with sock:
        while waiting := [
            name
            for name in _links(where) - idle
            if _flags(sock, name) & (_IFF_UP | _IFF_RUNNING) == _IFF_UP
        ]:
            if time.monotonic() > deadline:
                raise NftproxyError(
                    f"{', '.join(waiting)} of {where} stays without a carrier",
                    hint="the other end was deleted",
                )
            time.sleep(0.001)


def _links(where: str) -> set[str]:
    with namespace.enter(where):
        return {name for _, name in socket.if_nameindex()}


def _flags(sock: socket.socket, name: str) -> int:
    """Return the flags of an interface in the namespace of a socket (netdevice(7))."""
    request = struct.pack("16sh14x", name.encode(), 0)
    return int(struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1])


def _write_sysctl(path: str, value: str) -> None:
    """Set a sysctl of this thread's namespace; kernels without IPv6 or br_netfilter lack some."""
    file = Path("/proc/sys", path)
    if file.exists():
        file.write_text(value)
