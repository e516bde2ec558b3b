"""This checkout inside a Debian folder.

A copy at /project, installed into a virtual environment at /venv.

It is copied, so that a run is one consistent state of the project and leaves nothing in the
checkout.
"""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from tests.support.paths import ROOT
from tests.tools.versions.folder import Folder, digest

_NO_PACKETS = ("mypy", "ruff", "build", "types-")  # what the `test` extra has for `make lint` alone
_CLUSTER = re.compile(r"^ *(?:from|import) tests\.support\.cluster\b", re.MULTILINE)
_CHECKOUT = ("tests/docs/", "tests/tools/")


def install(folder: Folder) -> None:
    """Copy the checkout, uncommitted changes too, and install it with what its tests need."""
    copy(folder.path / "project")
    text = (ROOT / "pyproject.toml").read_text()
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["test"]
    needed = [each for each in extra if not each.startswith((*_NO_PACKETS, "nftproxy["))]
    own = [each[each.index("[") + 1 : -1] for each in extra if each.startswith("nftproxy[")]
    stamp = folder.path / "venv/.installed"
    recipe = digest([text, *needed])
    if stamp.exists() and stamp.read_text() == recipe:
        return
    print(f"{folder.release}: installing the project", flush=True)
    folder.ask("python3", "-m", "venv", "--clear", "/venv")
    pip = {
        "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
    }
    folder.ask(
        "/venv/bin/pip",
        "install",
        "--quiet",
        "--editable",
        f"/project[{','.join(own)}]",
        *needed,
        network=True,
        env=pip,
    )
    stamp.write_text(recipe)


def copy(target: Path) -> None:
    """Make `target` a copy of what git knows of the checkout, as it is now."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(target, ignore_errors=True)
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def program_tests() -> list[str]:
    """Return the test files about the program, not about this checkout.

    Other tools look at that, and need to do so once.

    Not those that need more than a folder has without a network: a Kubernetes API server.
    """
    texts = {
        str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("tests/*/test_*.py")
    }
    return sorted(
        path
        for path, text in texts.items()
        if not path.startswith(_CHECKOUT) and not _CLUSTER.search(text)
    )
