"""The package: built as a release would be, installed into an environment without this checkout,
and run there.
"""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.process import nftproxy


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which was built from the sdist, so both are
    whole.
    """
    folder = tmp_path_factory.mktemp("package")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            environment,
            "install",
            "--quiet",
            "--no-deps",
            wheel,
        ],
        check=True,
    )
    # The dependencies are those of this environment. A path file inside a folder named so is not
    # read, hence not this checkout.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, cwd="/", env=environment
    )


def test_it_is_the_installed_one_that_runs(installed: Path) -> None:
    where = run(installed / "python", "-c", "import nftproxy; print(nftproxy.__file__)").stdout
    assert Path(where).is_relative_to(installed.parent)
    assert run(installed / "nftproxy", "--version").stdout.startswith("nftproxy ")


def test_rulesets_and_examples_come_along(installed: Path) -> None:
    (examples,) = installed.parent.glob("lib/python*/site-packages/nftproxy/examples")
    here = nftproxy("render", "--manifests", ROOT / "examples", "--node-name", "node1")
    there = run(installed / "nftproxy", "render", "--manifests", examples, "--node-name", "node1")
    assert (there.returncode, there.stdout) == (0, here.stdout)
    assert "chain pick4-tcp-3 {" in there.stdout


def test_the_demo_runs_from_it(installed: Path) -> None:
    name = f"t{os.getpid()}-package"
    done = run(installed / "nftproxy", "lab", "demo", "--name", name)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_import_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = _names(declared["dependencies"])
    extras = _names(
        text
        for extra, texts in declared["optional-dependencies"].items()
        if extra != "test"
        for text in texts
    )
    distributions = packages_distributions()
    imported: dict[str, set[str]] = {}
    for path in (ROOT / "nftproxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            for name in (
                {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"nftproxy"}
            ):
                for distribution in distributions.get(name, [name]):
                    imported.setdefault(distribution.lower().replace("_", "-"), set()).add(
                        path.name
                    )
    assert {name: files for name, files in imported.items() if name not in always | extras} == {}
    assert always - imported.keys() == set(), "declared, but nothing imports it"


def _names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=\[]", text)[0].lower().replace("_", "-") for text in requirements}
