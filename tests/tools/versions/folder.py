"""A Debian release in a folder.

Made once by debootstrap, kept under build/versions, entered for a command.

Packages come from the mirror that this machine's own apt uses. Nothing is left mounted or running
on this machine: a command in a folder has its own mounts, processes and, unless it asks for the
network, its own network.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nftproxy.errors import NftproxyError
from tests.support.paths import ROOT

CACHE = ROOT / "build/versions"
PACKAGES = (
    # What the project needs: see PACKAGES and TEST_PACKAGES in the Makefile.
    "python3", "python3-venv", "libnftables1", "iproute2", "procps", "nftables", "iptables",
    "openssl", "git", "ipset", "ipvsadm", "conntrack", "iperf3", "iputils-ping",
    # What this package needs: certificates for pip, modprobe in a virtual machine.
    "ca-certificates", "kmod",
)  # fmt: skip
_INSTALLING = threading.Lock()  # apt is not for two at a time
_SCRIPT = ROOT / "release/inside.sh"
_PATH = "/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED_ON = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "TERM",
)


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one release, whether it is there or not."""

    release: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return CACHE / self.release

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of it until the end of the block.

        They would exchange the project under this one's feet.
        """
        CACHE.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.release}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def make(self) -> None:
        """Make it unless it is there with the packages wanted; NftproxyError when that fails."""
        recipe = digest(PACKAGES)
        stamp = self.path / ".made"
        if stamp.exists() and stamp.read_text() == recipe:
            return
        need_programs({"debootstrap": "debootstrap"})
        print(f"{self.release}: making {self.path}", flush=True)
        half = self.path.with_name(f"{self.release}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.parent.mkdir(parents=True, exist_ok=True)
        argv = [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            self.release,
            str(half),
            mirror(),
        ]
        done = subprocess.run(
            argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            last = done.stdout.strip().splitlines()[-1:] or ["no output"]
            raise NftproxyError(
                f"debootstrap cannot make {self.release}: {last[0]}",
                hint=f"see {half}/debootstrap/debootstrap.log",
            )
        (half / "etc/resolv.conf").touch()  # to mount this machine's on
        for package in half.glob("var/cache/apt/archives/*.deb"):
            package.unlink()
        shutil.rmtree(self.path, ignore_errors=True)
        (half / ".made").write_text(recipe)
        half.rename(self.path)

    def run(
        self,
        argv: Sequence[str],
        say: Callable[[str], None],
        *,
        network: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command in it, handing on every line it prints; return its exit code.

        Without `network` only a loopback interface is there.
        """
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        command = list(argv)
        if not network:
            spaces.append("--net")
            command = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *argv]
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        everything = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **passed, **(env or {})}
        with subprocess.Popen(
            ["unshare", *spaces, "sh", str(_SCRIPT), str(self.path), *command],
            env=everything,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                for line in process.stdout or ():
                    say(line.rstrip())
            except BaseException:
                process.kill()
                raise
        return process.returncode

    def ask(self, *argv: str, network: bool = False, env: Mapping[str, str] | None = None) -> str:
        """Run a command in it and return what it prints; NftproxyError when it fails."""
        lines: list[str] = []
        code = self.run(argv, lines.append, network=network, env=env)
        said = "\n".join(lines)
        if code:
            raise NftproxyError(f"{self.release}: `{' '.join(argv)}` exited with {code}:\n{said}")
        return said


def mirror() -> str:
    """Return the Debian mirror of this machine's apt; NftproxyError when it has none."""
    wanted = "$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    )
    for line in listed.stdout.splitlines():
        label, component, address = line.split("|")
        if (label, component) == ("Debian", "main"):
            return address
    raise NftproxyError(
        "apt on this machine knows no Debian mirror", hint="apt-get update; this runs on Debian"
    )


def need_programs(packages: Mapping[str, str]) -> None:
    """Install the packages (by program) whose programs are missing."""
    with _INSTALLING:
        missing = [package for program, package in packages.items() if not shutil.which(program)]
        if missing:
            print(f"installing {' '.join(missing)}", flush=True)
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "-qq", "update"], check=True, env=quiet)
            argv = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
            subprocess.run(argv, check=True, env=quiet, stdout=subprocess.DEVNULL)


def digest(parts: Iterable[str]) -> str:
    """Return a short name for a list of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
