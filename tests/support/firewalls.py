"""ufw and firewalld as Debian has them, in a network namespace.

Their files are copies, so the machine's own stay as they are.

with Firewall("ufw", netns) as firewall:
    firewall.run("ufw route allow in on cni0")
"""

import shutil
import subprocess
from types import TracebackType
from typing import Self

import pytest

from nftproxy.lab.namespace import enter

PROGRAMS = {"ufw": ("ufw",), "firewalld": ("firewalld", "firewall-cmd", "dbus-daemon")}
_FOLDERS = "/etc/firewalld /etc/ufw /lib/ufw /etc/default /var/log"
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_COPIES = f"""
mount -t tmpfs tmpfs /run
for folder in {_FOLDERS}; do
    copy=/run/copy$(echo $folder | tr / _)
    [ -d $folder ] && cp -a $folder $copy && mount --bind $copy $folder
done
mkdir -p /run/dbus
"""
_START = {
    "ufw": "ufw --force enable >/dev/null",
    "firewalld": """
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket
dbus-daemon --system --fork --nopidfile
firewalld --nofork --nopid >/run/firewalld.log 2>&1 &
for second in $(seq 300); do firewall-cmd --state >/dev/null 2>&1 && break; sleep 0.1; done
firewall-cmd --state >/dev/null""",
}
_END = "-- end of output --"


def need(kind: str) -> None:
    """Skip a test where a firewall is not installed."""
    missing = [name for name in PROGRAMS[kind] if not shutil.which(name)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: make test installs it")


class Firewall:
    """One of them, running.

    All it started ends with the `with` block, but its rules stay in the namespace.
    """

    def __init__(self, kind: str, netns: str) -> None:
        self._kind = kind
        self._netns = netns

    def __enter__(self) -> Self:
        with enter(self._netns):
            self._shell = subprocess.Popen(
                [*_ALONE, "bash", "--noprofile", "--norc"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.run(_COPIES)
        self.run(_START[self._kind])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shell.kill()
        self._shell.communicate()

    def run(self, command: str) -> str:
        """Run a command where the firewall's files and bus are; it must succeed."""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{command}\necho $? '{_END}'\n")
        self._shell.stdin.flush()
        lines: list[str] = []
        for line in self._shell.stdout:
            if line.endswith(f"{_END}\n"):
                assert line.split()[0] == "0", f"{command}: {''.join(lines)}"
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended at {command}: {''.join(lines)}")
