"""Build the image without a container engine.

The steps of deploy/Dockerfile, done in folders made by debootstrap.

    python3 release/image.py --folder build/image --name nftproxy:0.1.0 --output nftproxy.tar
    python3 release/image.py --arch arm64 --output nftproxy-arm64.tar

What comes out is an archive that `docker load` and `ctr images import` take. Needs root and
debootstrap, and nothing but Python's own library, so that it runs on any Debian. What a step means
is what the Dockerfile reference says of the few instructions used there; any other is an error.
Packages come from the mirror that this machine's own apt uses.

Programs of another architecture than this machine's run in QEMU: qemu-user-static, registered with
the kernel for use in other roots.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy/Dockerfile"
_INSIDE = ROOT / "release/inside.sh"
_PASSED_ON = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "TERM",
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LEFT_OUT = (
    "./dev/*",
    "./proc/*",
    "./sys/*",
    "./run/*",
    "./tmp/*",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
)
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""What images are made for, as Debian spells it, and the kernel's name of each."""

# What Debian's slim images are without: documentation, but for the licences, and translations. dpkg
# leaves it out of what is installed later, too.
_SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""


class Bare:
    """A bare Debian in a folder.

    Commands in it have mounts and processes of their own, so nothing is left mounted or running.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def copy(cls, release: str, path: Path, *, arch: str = "", slim: bool = False) -> Self:
        """Make a folder for a release, in the place of one that may be there.

        Debootstrap's work is kept beside it and copied.

        `arch` is this machine's architecture if empty; `slim`: without what Debian's slim images
        are without.
        """
        arch = arch or own_architecture()
        master = path.with_name(f"{release}-{arch}.master")
        if not master.exists():
            half = master.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            half.parent.mkdir(parents=True, exist_ok=True)
            print(f"{release} for {arch}: debootstrap", flush=True)
            argv = [
                "debootstrap",
                "--variant=minbase",
                f"--arch={arch}",
                release,
                str(half),
                mirror(),
            ]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            (half / "etc/resolv.conf").touch()  # to mount this machine's on
            half.rename(master)
        shutil.rmtree(path, ignore_errors=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(master), str(path)], check=True)
        bare = cls(path)
        if slim:
            bare.slim()
        return bare

    def slim(self) -> None:
        """Remove what Debian's slim images are without, and keep it out."""
        (self.path / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
        share = self.path / "usr/share"
        for name in ("info", "lintian", "locale", "man"):
            for each in (share / name).glob("*"):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        for each in (share / "doc").rglob("*"):
            if each.name != "copyright" and not each.is_dir():
                each.unlink()

    def run(
        self, command: str, *, env: Mapping[str, str] | None = None, alone: bool = False
    ) -> None:
        """Have its shell run a command; CalledProcessError when it fails.

        `alone`: with a network of its own.
        """
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        everything = {
            "PATH": _PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **passed,
            **(env or {}),
        }
        spaces: Sequence[str] = [
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--ipc",
            "--uts",
            *(["--net"] if alone else []),
        ]
        argv = ["unshare", *spaces, "sh", str(_INSIDE), str(self.path), "sh", "-ec", command]
        subprocess.run(argv, env=everything, check=True)


class Step(NamedTuple):
    """An instruction of a Dockerfile and what follows it."""

    instruction: str
    rest: str


class Image(NamedTuple):
    """The last stage of a build, and what it runs."""

    bare: Bare
    entrypoint: list[str]
    labels: dict[str, str]
    arch: str


def own_architecture() -> str:
    """Return this machine's architecture, in Debian's spelling."""
    argv = ["dpkg", "--print-architecture"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def require_emulation(arch: str) -> None:
    """SystemExit unless this machine runs programs of an architecture, by itself or in QEMU."""
    if arch == own_architecture():
        return
    handler = Path(f"/proc/sys/fs/binfmt_misc/qemu-{ARCHITECTURES[arch]}")
    # F: the kernel holds QEMU open, so that it is found in other roots.
    if not handler.exists() or not re.search(r"^flags: .*F", handler.read_text(), re.MULTILINE):
        raise SystemExit(
            f"programs for {arch} do not run here; apt-get install qemu-user-static, and have "
            "it registered"
        )


def mirror() -> str:
    """Return the Debian mirror of this machine's apt."""
    argv = [
        "apt-get",
        "indextargets",
        "--format",
        "$(LABEL)|$(COMPONENT)|$(REPO_URI)",
        "Created-By: Packages",
    ]
    for line in subprocess.run(
        argv, check=True, capture_output=True, text=True
    ).stdout.splitlines():
        label, component, address = line.split("|")
        if (label, component) == ("Debian", "main"):
            return address
    raise SystemExit("apt on this machine knows no Debian mirror; apt-get update, on Debian")


def steps(dockerfile: str) -> Iterator[Step]:
    """Yield the instructions of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        yield Step(instruction, rest.strip())


def base(rest: str) -> tuple[str, str]:
    """Return the release and the name of the stage that a FROM begins.

    ValueError for a base that this cannot make.
    """
    found = re.fullmatch(r"debian:(\w+)-slim(?: AS (\w+))?", rest)
    if not found:
        raise ValueError(f"not a base this can make: {rest}")
    return found[1], found[2] or "image"


def copy(rest: str, stages: Mapping[str, Bare], into: Bare) -> None:
    """Do a COPY: a file or folder to a path, or several files into a folder.

    Bytecode of this checkout stays behind.
    """
    words = shlex.split(rest)
    source, left_behind = ROOT, ["__pycache__"]
    if words[0].startswith("--from="):
        source, left_behind = stages[words.pop(0).removeprefix("--from=")].path, []
    *names, target = words
    for name in names:
        origin, destination = source / name.lstrip("/"), into.path / target.lstrip("/")
        if origin.is_dir():
            shutil.copytree(
                origin,
                destination,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(*left_behind),
            )
        else:
            if target.endswith("/"):
                destination /= origin.name
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, destination)


def build(dockerfile: str, folder: Path, arguments: Mapping[str, str], *, arch: str = "") -> Image:
    """Do all steps, each stage in a folder of its own below `folder`.

    `arguments` are those of ARG.
    """
    arch = arch or own_architecture()
    stages: dict[str, Bare] = {}
    environment: dict[str, str] = {}
    entrypoint: list[str] = []
    labels: dict[str, str] = {}
    current: Bare | None = None
    for number, (instruction, rest) in enumerate(steps(dockerfile), 1):
        print(f"{number}: {instruction} {rest}", flush=True)
        if instruction == "FROM":
            release, name = base(rest)
            current = stages[name] = Bare.copy(release, folder / name, arch=arch, slim=True)
            environment, labels = {}, {}
        elif current is None:
            raise ValueError(f"{instruction} before FROM")
        elif instruction == "RUN":
            current.run(rest, env=environment)
        elif instruction == "COPY":
            copy(rest, stages, current)
        elif instruction == "ARG":
            argument, _, value = rest.partition("=")
            environment[argument] = arguments.get(argument, value)
        elif instruction == "LABEL":
            words = (word.partition("=") for word in shlex.split(rest))
            labels |= {key: Template(value).substitute(environment) for key, _, value in words}
        elif instruction == "ENTRYPOINT":
            entrypoint = json.loads(rest)
        else:
            raise ValueError(f"unknown instruction {instruction}")
    if current is None:
        raise ValueError("an empty Dockerfile")
    return Image(current, entrypoint, labels, arch)


def archive(image: Image, name: str, output: Path) -> None:
    """Write an image as `docker save` does.

    One layer, its configuration, and a manifest that names both.
    """
    layer = output.with_suffix(".layer")
    excluded = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    argv = [
        "tar",
        "--create",
        "--sort=name",
        "--numeric-owner",
        *excluded,
        f"--directory={image.bare.path}",
        f"--file={layer}",
        ".",
    ]
    subprocess.run(argv, check=True)
    configuration = describe(image, _sha256(layer))
    digest = hashlib.sha256(configuration).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(output, "w") as tar:
        tar.add(layer, "layer.tar")
        for member, content in (
            (f"{digest}.json", configuration),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    layer.unlink()


def describe(image: Image, layer: str) -> bytes:
    """Return the configuration of an image with one layer of that SHA-256."""
    configuration: dict[str, Any] = {
        "architecture": image.arch,
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Env": [f"PATH={_PATH}"],
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }
    return json.dumps(configuration).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Build, and write the archive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build/image", help="where it is built [build/image]"
    )
    parser.add_argument("--name", default="nftproxy:0.1.0", help="name and tag [nftproxy:0.1.0]")
    parser.add_argument("--version", default="", help="the version of the package [0.1.0.dev0]")
    parser.add_argument("--revision", default="", help="the commit that the labels name [none]")
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, help="the architecture [that of this machine]"
    )
    parser.add_argument("--output", type=Path, help="the archive; none without")
    given = parser.parse_args()
    if not shutil.which("debootstrap"):
        sys.exit("debootstrap is missing; apt-get install debootstrap")
    arch = given.arch or own_architecture()
    require_emulation(arch)
    image = build(
        DOCKERFILE.read_text(encoding="utf-8"),
        given.folder.absolute(),
        {"VERSION": given.version, "REVISION": given.revision},
        arch=arch,
    )
    if given.output:
        archive(image, given.name, given.output)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit code {error.returncode}: {error.cmd[-1]}")
