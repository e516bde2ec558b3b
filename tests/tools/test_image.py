"""The image's packages without what deploy/left-out.txt names, compiled.

They are small, and do what nftproxy asks of them.

`make test-image` tries the whole image; this takes seconds, with the packages of this environment,
which are mostly those of the lock.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from release import lean, sbom
from release.image import _SLIM, Bare, copy, steps
from tests.support.paths import ROOT
from tests.support.pki import Authority
from tests.tools.test_release import licences

LEFT_OUT = ROOT / "deploy/left-out.txt"
LIMIT = 27_000_000
"""The most bytes of site-packages.

What is left of 150 MB beside Debian and Python, whose 3.13 needs 2 MB less than 3.11 for bytecode.
"""


def installed(name: str, into: Path) -> None:
    """Copy a package of this environment, without its bytecode."""
    for file in metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all packages of the lock, made lean, and nftproxy as the wheel has it."""
    site = tmp_path_factory.mktemp("lean")
    for name in licences.locked(licences.LOCK.read_text()):
        installed(name, site)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nftproxy", site / "nftproxy", ignore=ignore)
    for name in ("rulesets", "examples"):
        shutil.copytree(ROOT / name, site / "nftproxy" / name)
    own = site / "nftproxy-0.0.1.dist-info"
    own.mkdir()
    (own / "METADATA").write_text("Metadata-Version: 2.4\nName: nftproxy\nVersion: 0.0.1\n")
    lean.leave_out(site, LEFT_OUT.read_text())
    lean.strip(site)
    lean.compile_all(site)
    return site


def run(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with that folder and its own library alone."""
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(site)}
    argv = [sys.executable, "-S", "-W", "error::ImportWarning", *arguments]
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, check=False, cwd="/"
    )


def test_what_is_left_sends_credentials_of_each_kind(site: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server("server", ["127.0.0.1"])
    authority.client("reader")
    done = run(site, ROOT / "tests/tools/credentials.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("works: ") == 6


def test_what_is_left_runs_every_command(site: Path) -> None:
    for command in ("render", "show", "page", "trace", "doctor", "report", "top", "lab", "bench"):
        done = run(site, "-m", "nftproxy", command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), command
    done = run(site, "-m", "nftproxy", "render", "--manifests", ROOT / "examples", "--node-name=n")
    assert done.returncode == 0, done.stderr
    assert "chain pick4-tcp-3 {" in done.stdout


def test_it_runs_as_installed_here_and_not_from_the_checkout(site: Path) -> None:
    where = run(site, "-c", "import nftproxy, aiohttp; print(nftproxy.__file__, aiohttp)")
    assert where.stdout.count(str(site)) == 2, where


def test_it_is_small_and_all_compiled(site: Path) -> None:
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size <= LIMIT, size
    sources = set(site.rglob("*.py"))
    tag = sys.implementation.cache_tag
    compiled = {path.parent.parent / path.name.replace(f".{tag}.pyc", ".py")
                for path in site.rglob("*.pyc")}  # fmt: skip
    assert sources == compiled


def test_bytecode_is_used_without_looking_at_its_source(site: Path, tmp_path: Path) -> None:
    """A copy may change the times of files.

    Bytecode that compares them would then be made at each start again.
    """
    moved = tmp_path / "moved"
    shutil.copytree(site, moved, copy_function=shutil.copyfile)
    done = run(moved, "-v", "-c", "import nftproxy.daemon")
    assert done.returncode == 0
    assert "nftproxy.daemon" in done.stderr
    assert "bytecode is stale" not in done.stderr
    assert "wrote " not in done.stderr


def test_each_line_has_a_reason_and_matches_something(tmp_path: Path) -> None:
    listed = LEFT_OUT.read_text()
    lines = [line for line in listed.splitlines() if line and not line.startswith("#")]
    bare = [line.split("#")[0].strip() for line in lines if "#" not in line]
    assert [line for line in bare if "dist-info" not in line and "tests" not in line] == []
    with pytest.raises(ValueError, match="pygments matches nothing"):
        lean.leave_out(tmp_path, "pygments  # why\n")


def test_bytecode_comes_along_from_another_stage_but_not_from_this_checkout(tmp_path: Path) -> None:
    stage, target = Bare(tmp_path / "stage"), Bare(tmp_path / "target")
    (stage.path / "opt/__pycache__").mkdir(parents=True)
    (stage.path / "opt/__pycache__/a.pyc").touch()
    target.path.mkdir()
    copy("--from=build /opt /opt", {"build": stage}, target)
    assert (target.path / "opt/__pycache__/a.pyc").exists()
    copy("release /src/release", {}, target)
    assert (target.path / "src/release/lean.py").exists()
    assert not list((target.path / "src").rglob("*.pyc"))


def test_a_slim_base_keeps_licences_but_no_other_documentation(tmp_path: Path) -> None:
    share = tmp_path / "usr/share"
    for name in ("doc/a/copyright", "doc/a/README", "man/man1/a.1", "locale/de/a.mo"):
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).touch()
    (tmp_path / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True)
    Bare(tmp_path).slim()
    left = {str(path.relative_to(share)) for path in share.rglob("*") if path.is_file()}
    assert left == {"doc/a/copyright"}
    assert (tmp_path / "etc/dpkg/dpkg.cfg.d/slim").read_text() == _SLIM


def test_labels_are_those_of_the_open_container_initiative() -> None:
    (labels,) = (
        rest
        for instruction, rest in steps((ROOT / "deploy/Dockerfile").read_text())
        if instruction == "LABEL"
    )
    named = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", labels))
    assert named == {"title", "description", "licenses", "version", "revision", "base.name"}


def test_the_bill_of_materials_lists_what_is_installed_and_is_valid(
    site: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "opt/nftproxy/lib/python3.13/site-packages"
    inside.parent.mkdir(parents=True)
    inside.symlink_to(site)
    for name in ("etc/os-release", "var/lib/dpkg/status"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(Path("/") / name, tmp_path / name)
    text = sbom.bill(tmp_path)
    assert text == sbom.bill(tmp_path)
    listed = json.loads(text)
    assert listed["metadata"]["component"]["name"] == "nftproxy"
    purls = {component["purl"] for component in listed["components"]}
    assert f"pkg:pypi/aiohttp@{metadata.version('aiohttp')}" in purls
    assert any(purl.startswith("pkg:deb/debian/libnftables1@") for purl in purls)
    assert not any(purl.startswith("pkg:pypi/pygments@") for purl in purls), "it was left out"
    assert not any(purl.startswith("pkg:pypi/kubernetes@") for purl in purls), "tests need it"
    (aiohttp,) = (each for each in listed["components"] if each["name"] == "aiohttp")
    assert aiohttp["licenses"]
