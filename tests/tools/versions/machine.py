"""A virtual machine with the kernel of a Debian release.

What it boots from, booting it, what it says.

QEMU emulates the processor, so this needs neither /dev/kvm nor a kernel that allows it, and is some
ten times slower than the machine it runs on. The root is an initramfs out of two archives: the
release's folder with the modules that networks need, packed once, and the project, packed for every
run. The machine has no network and no disk; all it says comes over its serial line.
"""

import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nftproxy.errors import NftproxyError
from tests.tools.versions import project
from tests.tools.versions.folder import CACHE, Folder, digest, need_programs

PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "cpio": "cpio"}
MEMORY = 2048  # MB; the kernel needs the packed and the unpacked root at the same time
_EXIT = re.compile(r"exit code (\d+) of the command")
_INIT = Path(__file__).parent / "init.sh"
_LEFT_OUT = re.compile(
    "(boot|kernel|project|var/cache|var/lib/apt|usr/lib/git-core"
    "|usr/share/(doc|i18n|info|locale|man|perl|zoneinfo)"
    "|venv/lib/python[^/]*/site-packages/(fontTools|kubernetes|matplotlib|numpy|pip|PIL)([.-][^/]*)?)(/|$)"
)
_MODULES = (
    "net/",
    "lib/",
    "crypto/",
    "arch/x86/crypto/",
    "drivers/net/veth.",
    "drivers/net/dummy.",
    "drivers/net/vxlan/",
)
_UNPACK = """\
set -e
cd /var/cache/apt/archives
apt-get -qq update
package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: *\\(linux-image-[0-9].*\\)/\\1/p' | tail -n 1)
apt-get -qq -o APT::Sandbox::User=root download "$package"
rm -rf /kernel /usr/lib/modules
dpkg -x "$package"_*.deb /kernel
mkdir -p /usr/lib/modules
mv /kernel/lib/modules/* /usr/lib/modules 2>/dev/null || mv /kernel/usr/lib/modules/* /usr/lib/modules
mv /kernel/boot/vmlinuz-* /kernel/vmlinuz
depmod "$(ls /usr/lib/modules)"
rm "$package"_*.deb
ls /usr/lib/modules >/kernel/version
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of one release."""

    release: str

    @property
    def version(self) -> str:
        """The version of its kernel; only after `prepare`."""
        return (Folder(self.release).path / "kernel/version").read_text().strip()

    def prepare(self, command: Sequence[str]) -> None:
        """Make what it boots from, or take what is there.

        `command` is what it will run in the project.
        """
        need_programs(PROGRAMS)
        folder = Folder(self.release)
        with folder.held():
            self._prepare(folder, command)

    def _prepare(self, folder: Folder, command: Sequence[str]) -> None:
        folder.make()
        project.install(folder)
        if not (folder.path / "kernel/version").exists():
            print(f"{self.release}: fetching its kernel", flush=True)
            folder.ask("sh", "-c", _UNPACK, network=True)
        self._pack_system(folder)
        stage = self._file("stage")
        project.copy(stage / "project")
        shutil.copy2(_INIT, stage / "init")
        (stage / "init").chmod(0o755)
        (stage / "command").write_text(shlex.join(command) + "\n")
        _pack(stage, _all(stage), self._file("project.cpio"))
        with self._file("initramfs").open("wb") as image:
            for part in ("system.cpio", "project.cpio"):
                with self._file(part).open("rb") as archive:
                    shutil.copyfileobj(archive, image)

    def boot(self, limit: float, say: Callable[[str], None]) -> int:
        """Run it to the end, handing on every line it prints.

        Return the exit code of the command, NftproxyError without one.

        It is stopped after `limit` seconds.
        """
        argv = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-m",
            str(MEMORY),
            "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", str(Folder(self.release).path / "kernel/vmlinuz"), "-initrd",
            str(self._file("initramfs")),
            "-append", "console=ttyS0 panic=-1 quiet rdinit=/init mitigations=off",
        ]  # fmt: skip
        code = None
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            alarm = threading.Timer(limit, process.kill)
            alarm.start()
            try:
                for line in process.stdout or ():
                    text = line.decode(errors="replace").rstrip()
                    if found := _EXIT.fullmatch(text):
                        code = int(found[1])
                    else:
                        say(text)
            finally:
                alarm.cancel()
                process.kill()
        if code is None:
            raise NftproxyError(
                f"the machine of {self.release} ended, or was stopped after {limit:.0f} s, "
                "before the tests did"
            )
        return code

    def _file(self, name: str) -> Path:
        return CACHE / f"{self.release}.{name}"

    def _pack_system(self, folder: Folder) -> None:
        """Pack the folder, unless that was done after it was last changed."""
        stamps = (
            folder.path / ".made",
            folder.path / "venv/.installed",
            folder.path / "kernel/version",
        )
        recipe = digest([*(stamp.read_text() for stamp in stamps), _LEFT_OUT.pattern, *_MODULES])
        stamp = self._file("system.packed")
        if stamp.exists() and stamp.read_text() == recipe:
            return
        _pack(folder.path, _wanted(folder.path, self.version), self._file("system.cpio"))
        stamp.write_text(recipe)


def _wanted(root: Path, version: str) -> Iterator[str]:
    """Yield what of a folder goes into a machine.

    No modules but those for networks, nothing that only people read.
    """
    modules = f"usr/lib/modules/{version}/kernel/"
    for name in _all(root):
        module = name.removeprefix(modules) if name.startswith(modules) and ".ko" in name else ""
        if not _LEFT_OUT.match(name) and (not module or module.startswith(_MODULES)):
            yield name


def _all(root: Path) -> Iterator[str]:
    """Yield the names of everything below a folder, folders before what they hold."""
    for place, folders, files in os.walk(root):
        relative = os.path.relpath(place, root)
        yield relative
        for name in (*files, *(n for n in folders if Path(place, n).is_symlink())):
            yield os.path.normpath(Path(relative, name))


def _pack(root: Path, names: Iterator[str], archive: Path) -> None:
    """Write an archive as the kernel unpacks it."""
    with archive.open("wb") as out:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--quiet"],
            cwd=root,
            input="\0".join(names).encode() + b"\0",
            stdout=out,
            check=True,
        )
