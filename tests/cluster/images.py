"""The images of the cluster, in archives that containerd imports.

A Debian with the tools that Kubernetes' tests call in a container is the base of all but two of
them. Nothing is fetched but Debian packages.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from release.image import DOCKERFILE, ROOT, Bare, Image, archive, build, own_architecture
from tests.cluster.names import FOLDER, NFTPROXY, REPOSITORY, program

IMAGES = FOLDER / "images"
_TOOLS = (
    "bind9-dnsutils conntrack curl iperf iproute2 iptables iputils-ping netcat-openbsd nftables "
    "procps socat wget"
)
_TESTS_IMAGES = ("agnhost", "glibc-dns-testing", "busybox", "distroless-iptables")
"""Images of Kubernetes' tests whose place agnhost and the tools take."""
_ATTACK = "regression-issue-74839"
"""A server that sends packets which a proxy must not mistake for those of a connection."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layer:
    """Files of an image: a tar archive, and its SHA-256."""

    path: Path
    digest: str


def make() -> None:
    """Write the archives that are missing."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    if not (IMAGES / "kubernetes.tar").exists():
        _kubernetes(IMAGES / "kubernetes.tar")
    if not (IMAGES / "nftproxy.tar").exists():
        nftproxy(NFTPROXY, IMAGES / "nftproxy.tar")


def nftproxy(name: str, output: Path, folder: Path = ROOT / "build/image") -> None:
    """Build our own image under a name, by the steps of its Dockerfile."""
    made = build(DOCKERFILE.read_text(encoding="utf-8"), folder, {"VERSION": "", "REVISION": ""})
    archive(made, name, output)


def changed(name: str, output: Path, folder: Path = ROOT / "build/image") -> None:
    """Write our image again under another name, with another program in it.

    The program has one chain more, which no packet meets.
    """
    copied = folder / "changed"
    shutil.rmtree(copied, ignore_errors=True)
    subprocess.run(["cp", "--archive", str(folder / "image"), str(copied)], check=True)
    (rules,) = copied.glob("opt/nftproxy/lib/python3*/site-packages/nftproxy/rulesets")
    text = (rules / "hooks.nft").read_text()
    (rules / "hooks.nft").write_text(text + "\nchain of-another-program {\n    counter\n}\n")
    archive(
        Image(Bare(copied), ["/usr/local/bin/kube-proxy"], {}, own_architecture()), name, output
    )


def _kubernetes(output: Path) -> None:
    """Write the archive with Kubernetes' own images, and those of its tests."""
    tools = Bare.copy("bookworm", FOLDER / "tools", slim=True)
    tools.run(
        "apt-get -qq update && apt-get -qq install --yes --no-install-recommends "
        f"{_TOOLS} >/dev/null && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb"
    )
    base = _layer("tools", tools.path)
    dns = _program("coredns", "coredns")
    agnhost_layers = [base, _program("agnhost", "agnhost"), _localhost(), dns]
    images = [
        (agnhost_layers, ["/agnhost"], ["pause"], _wanted_by_tests(*_TESTS_IMAGES)),
        (agnhost_layers, ["/agnhost"], ["netexec", "--http-port=80"], _wanted_by_tests("nginx")),
        (
            [base, _program("kube-proxy", "usr/local/bin/kube-proxy")],
            [],
            ["/usr/local/bin/kube-proxy"],
            _wanted_by_kubeadm("kube-proxy"),
        ),
        (
            [_program("pause", "pause")],
            ["/pause"],
            [],
            [f"{REPOSITORY}/pause:test", *_wanted_by_tests("pause")],
        ),
        ([dns], ["/coredns"], [], _wanted_by_kubeadm("coredns")),
        ([_program(_ATTACK, _ATTACK)], [f"/{_ATTACK}"], [], _wanted_by_tests(_ATTACK)),
    ]
    with tarfile.open(output.with_suffix(".half"), "w") as tar:
        manifest = []
        for layers, entrypoint, command, names in images:
            content = _configuration(layers, entrypoint, command)
            config = f"{hashlib.sha256(content).hexdigest()}.json"
            _add(tar, config, content)
            files = [f"{layer.digest}.tar" for layer in layers]
            manifest.append({"Config": config, "RepoTags": names, "Layers": files})
        _add(tar, "manifest.json", json.dumps(manifest).encode())
        for layer in {layer for layers, *_ in images for layer in layers}:
            tar.add(layer.path, f"{layer.digest}.tar")
            layer.path.unlink()
    output.with_suffix(".half").rename(output)


def agnhost() -> str:
    """Return the name of the image of agnhost."""
    return max(_wanted_by_tests("agnhost"))


def _wanted_by_tests(*parts: str) -> list[str]:
    """Return the full names of images of the tests."""
    argv = [program("e2e.test"), "--list-images"]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if name.rpartition("/")[2].partition(":")[0] in parts]


def _wanted_by_kubeadm(part: str) -> list[str]:
    """Return the name under which kubeadm's manifests have an image."""
    version = subprocess.run(
        [program("kubeadm"), "version", "--output=short"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    argv = [
        *(program("kubeadm"), "config", "images", "list"),
        *("--kubernetes-version", version, "--image-repository", REPOSITORY),
    ]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if name.startswith(f"{REPOSITORY}/{part}:")]


def _program(name: str, path: str) -> Layer:
    """Make a layer of one program."""
    folder = IMAGES / f"{name}.files"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program(name), folder / path)
    made = _layer(name, folder)
    shutil.rmtree(folder)
    return made


def _localhost() -> Layer:
    """Make a layer of the certificate with which agnhost serves TLS."""
    folder = IMAGES / "localhost.files"
    folder.mkdir(exist_ok=True)
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    files = ["-keyout", "localhost.key", "-out", "localhost.crt"]
    subprocess.run([*argv, *files], check=True, capture_output=True, cwd=folder)
    made = _layer("localhost", folder)
    shutil.rmtree(folder)
    return made


def _layer(name: str, folder: Path) -> Layer:
    path = IMAGES / f"{name}.layer"
    outside = [f"--exclude=./{each}/*" for each in ("dev", "proc", "sys", "run")]
    argv = ["tar", "--create", "--numeric-owner", *outside, f"--directory={folder}"]
    subprocess.run([*argv, f"--file={path}", "."], check=True)
    with path.open("rb") as file:
        return Layer(path, hashlib.file_digest(file, "sha256").hexdigest())


def _configuration(
    layers: Iterable[Layer], entrypoint: Sequence[str], command: Sequence[str]
) -> bytes:
    run = {
        "Entrypoint": entrypoint,
        "Cmd": command,
        "Env": [f"PATH={_PATH}"],
        "WorkingDir": "/",
    }
    digests = [f"sha256:{layer.digest}" for layer in layers]
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    return json.dumps(whole).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, BytesIO(content))
