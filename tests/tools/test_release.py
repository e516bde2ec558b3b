"""What is released: version, wheel and sdist, man page, completion, licences, and that all of it is
said where users look.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from importlib import import_module, metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.cli import _COMMANDS
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.tablefigures import TableFigures
from tests.tools.consoles import PROJECT

TREE = (
    "nftproxy",
    "rulesets",
    "examples",
    "release",
    "share",
    "tests",
    "docs",
    "deploy",
    "vagrant",
    ".ci",
)
TOP = (
    "pyproject.toml",
    "Makefile",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)


def program(path: str) -> Any:
    """Import a file that belongs to no package."""
    spec = spec_from_file_location(Path(path).stem, PROJECT / path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


version = program("release/version.py")
licences = program("release/licences.py")
draw = program("docs/pictures/draw.py")


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., None]:
    """A git repository in tmp_path; calling the fixture runs git there."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    git("config", "user.name", "x")
    git("config", "user.email", "x@example.org")
    git("commit", "--allow-empty", "--message=one")
    return git


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("v1.2.3-0-g0123abc", "1.2.3"),
        ("v1.2.3-4-g0123abc", "1.2.4.dev4"),
        ("v0.1.0-12-gfff", "0.1.1.dev12"),
        ("v1.2-0-g0123abc", None),
        ("nonsense", None),
    ],
)
def test_versions_follow_descriptions(described: str, expected: str | None) -> None:
    assert version.from_description(described) == expected


def test_version_of_a_tag_and_after_it(repository: Callable[..., None], tmp_path: Path) -> None:
    assert version.version(tmp_path) == f"{version.NEXT}.dev1"
    repository("tag", "v3.1.4")
    assert version.version(tmp_path) == "3.1.4"
    repository("commit", "--allow-empty", "--message=two")
    assert version.version(tmp_path) == "3.1.5.dev1"


def test_version_of_an_sdist_is_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "PKG-INFO").write_text(
        "Metadata-Version: 2.4\nName: nftproxy\nVersion: 9.8.7\n\nVersion: of the text\n"
    )
    assert version.version(tmp_path) == "9.8.7"


def test_version_without_git(
    tmp_path: Path, repository: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("tag", "v3.1.4")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.version(tmp_path) == f"{version.NEXT}.dev0"
    monkeypatch.setenv("NFTPROXY_VERSION", "1.0.0")
    assert version.version(tmp_path) == "1.0.0"


def test_version_inside_of_another_repository(
    tmp_path: Path, repository: Callable[..., None]
) -> None:
    repository("tag", "v3.1.4")
    (tmp_path / "copy").mkdir()
    assert version.version(tmp_path / "copy") == f"{version.NEXT}.dev0"


def build(tree: Path, out: Path) -> dict[str, Path]:
    """Build sdist, and the wheel from it, and return both by their suffix."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(tree)],
        check=True,
        capture_output=True,
        env={**os.environ, "NFTPROXY_VERSION": "4.5.6"},
    )
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    """The tree, copied and built twice: at different paths, files with different times."""
    first, second = (
        tmp_path_factory.mktemp("first") / "tree",
        tmp_path_factory.mktemp("second") / "tree",
    )
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(
        argv, cwd=PROJECT, capture_output=True, check=True, text=True
    ).stdout.split("\0"):
        if (PROJECT / name).is_file():
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, first / name)
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    for path in second.rglob("*"):
        path.chmod((first / path.relative_to(second)).stat().st_mode & 0o777)
        os.utime(path, (10**9, 10**9))
    return [build(tree, tree.with_name("dist")) for tree in (first, second)]


def test_built_twice_gives_the_same_bytes(built: list[dict[str, Path]]) -> None:
    first, second = (
        {suffix: hashlib.sha256(path.read_bytes()).hexdigest() for suffix, path in each.items()}
        for each in built
    )
    assert first.keys() == {".whl", ".gz"}
    assert first == second


def test_the_wheel_has_everything_a_user_needs(built: list[dict[str, Path]]) -> None:
    with zipfile.ZipFile(built[0][".whl"]) as wheel:
        names = set(wheel.namelist())
    for folder in ("rulesets", "examples"):
        assert {f"nftproxy/{folder}/{path.name}" for path in (PROJECT / folder).iterdir()} <= names
    shared = {
        str(path.relative_to(PROJECT)) for path in (PROJECT / "share").rglob("*") if path.is_file()
    }
    assert {f"nftproxy-4.5.6.data/data/{name}" for name in shared} <= names
    assert "nftproxy/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "release/"))]


def test_the_sdist_has_the_whole_tree(built: list[dict[str, Path]]) -> None:
    with tarfile.open(built[0][".gz"]) as sdist:
        names = {name.removeprefix("nftproxy-4.5.6/") for name in sdist.getnames()}
    assert set(TOP) <= names
    for folder in TREE:
        assert any(name.startswith(f"{folder}/") for name in names), folder


def test_the_man_page_names_every_command() -> None:
    page = (PROJECT / "share/man/man1/nftproxy.1").read_text().replace("\\-", "-")
    documented = set(
        re.findall(
            r"^\.B ([a-z-]+)$",
            page[page.index(".SH COMMANDS") : page.index(".SH EXIT STATUS")],
            re.MULTILINE,
        )
    )
    assert set(_COMMANDS) <= documented


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", "share/bash-completion/completions/nftproxy"),
        ("zsh", "share/zsh/site-functions/_nftproxy"),
        ("fish", "share/fish/vendor_completions.d/nftproxy.fish"),
    ],
)
def test_completion_files_call_what_the_program_answers(shell: str, path: str) -> None:
    assert f"_NFTPROXY_COMPLETE={shell}_source nftproxy" in (PROJECT / path).read_text()


def test_bash_completion_completes() -> None:
    script = "share/bash-completion/completions/nftproxy"
    ask = (
        f"source {script}; COMP_WORDS=(nftproxy la); COMP_CWORD=1; _nftproxy_completion "
        f"nftproxy; echo ${{COMPREPLY[@]}}"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", ask],
        cwd=PROJECT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["lab"]


def test_the_list_of_licences_is_that_of_the_lock() -> None:
    page = licences.PAGE.read_text()
    rows = {
        row[0]: row[1]
        for row in re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|", page, re.MULTILINE)
        if row[0] != "package"
    }
    locked = licences.locked(licences.LOCK.read_text())
    assert rows.keys() == locked.keys()
    same = {name for name in locked if metadata.version(name) == locked[name]}
    assert same
    assert {name: rows[name] for name in same} == {name: licences.licence(name) for name in same}


def test_the_lock_is_for_the_dependencies_that_are_declared() -> None:
    declared = {
        re.match(r"[A-Za-z0-9-]+", each)
        for each in metadata.requires("nftproxy") or ()
        if "extra ==" not in each
    }
    assert {found[0].lower() for found in declared if found} <= licences.locked(
        licences.LOCK.read_text()
    ).keys()


@pytest.mark.parametrize("name", draw.PICTURES)
def test_pictures_are_what_their_source_draws(name: str) -> None:
    assert (PROJECT / f"docs/pictures/{name}.svg").read_text() == draw.svg(name)


def test_operations_explains_every_metric() -> None:
    page = (PROJECT / "docs/operations.md").read_text()
    described = [*Metrics(Family, {}).registry.collect()]
    with closing(TableFigures(())) as figures:
        described += figures.describe()
    names = {family.name + ("_total" if family.type == "counter" else "") for family in described}
    assert {name for name in names if name not in page and not name.startswith("process_")} == set()


@functools.cache
def texts() -> str:
    """All texts of the program, each whole: the source may have it in pieces, one on each line."""
    found = []
    for path in (PROJECT / "nftproxy").rglob("*.py"):
        joined = re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        found.append(joined)
    return "\n".join(found)


def test_operations_quotes_log_lines_that_exist() -> None:
    page = (PROJECT / "docs/operations.md").read_text()
    table = page[page.index("### Log lines") :]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert quoted
    assert [line for line in quoted if line not in texts()] == []


def test_troubleshooting_quotes_errors_that_exist() -> None:
    page = (PROJECT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(
        r"^\| `([^`]+)` \|", page[page.index("## It does not start") :], re.MULTILINE
    )
    assert quoted
    assert [line for line in quoted if line not in texts()] == []


def test_every_console_script_can_be_imported() -> None:
    for script in metadata.distribution("nftproxy").entry_points:
        module, _, attribute = script.value.partition(":")
        assert callable(getattr(import_module(module), attribute))
