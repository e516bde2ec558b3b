"""A bare Debian in a folder, as a container image or a new machine has it; made once by debootstrap, then copied.

Packages come from the mirror that this machine's own apt uses. A command in a folder has its own mounts and processes, so nothing is left
mounted or running; it shares this machine's network unless it asks for its own.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.versions.folder import mirror, need_programs

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build/bare"
_INSIDE = ROOT / "tests/bare.sh"
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "TERM")


class Bare:
    """A folder with a Debian in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def copy(cls, release: str, path: Path) -> Self:
        """Make a folder for a release, in the place of one that may be there."""
        master = CACHE / f"{release}.master"
        if not master.exists():
            need_programs({"debootstrap": "debootstrap"})
            half = master.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            half.parent.mkdir(parents=True, exist_ok=True)
            print(f"{release}: debootstrap", flush=True)
            argv = ["debootstrap", "--variant=minbase", release, str(half), mirror()]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            (half / "etc/resolv.conf").touch()  # to mount this machine's on
            half.rename(master)
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(master), str(path)], check=True)
        return cls(path)

    def run(self, command: str, *, env: Mapping[str, str] | None = None, alone: bool = False) -> None:
        """Have its shell run a command; CalledProcessError when it fails. `alone`: with a network of its own."""
        self._run(command, env or {}, alone=alone, capture=False)

    def ask(self, command: str, *, env: Mapping[str, str] | None = None, alone: bool = False) -> str:
        """The same, returning what it prints."""
        return self._run(command, env or {}, alone=alone, capture=True)

    def _run(self, command: str, env: Mapping[str, str], *, alone: bool, capture: bool) -> str:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        everything = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **passed, **env}
        spaces: Sequence[str] = ["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", *(["--net"] if alone else [])]
        done = subprocess.run(
            ["unshare", *spaces, "sh", str(_INSIDE), str(self.path), "sh", "-ec", command],
            env=everything,
            check=True,
            text=True,
            stdout=subprocess.PIPE if capture else None,
        )
        return done.stdout or ""
