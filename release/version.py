"""The version of this tree, for the build: from the sdist, from git's tags, or else the one below.

    v1.2.0 is checked out                    1.2.0
    three commits after it                   1.2.1.dev3
    no tag is known, 45 commits              0.1.0.dev45
    an sdist                                 what it says itself
    no git, no sdist (such as in a container) 0.1.0.dev0, or what NFTPROXY_VERSION says

Hatchling calls `version()`; nothing else of the project is imported.
"""

import os
import re
import subprocess
from pathlib import Path

NEXT = "0.1.0"
"""The release that is being worked on, until the first tag."""

_DESCRIBED = re.compile(r"v(\d+)\.(\d+)\.(\d+)-(\d+)-g[0-9a-f]+")
_ROOT = Path(__file__).parents[1]


def version(root: Path = _ROOT) -> str:
    """Return the version of the tree at `root`."""
    return os.environ.get("NFTPROXY_VERSION") or _of_sdist(root) or _of_git(root) or f"{NEXT}.dev0"


def from_description(described: str) -> str | None:
    """Turn what `git describe --tags --long` printed into a version.

    None if it names no release.
    """
    found = _DESCRIBED.fullmatch(described)
    if not found:
        return None
    major, minor, patch, commits = map(int, found.groups())
    return (
        f"{major}.{minor}.{patch}" if commits == 0 else f"{major}.{minor}.{patch + 1}.dev{commits}"
    )


def _of_sdist(root: Path) -> str | None:
    try:
        found = re.search(
            r"^Version: (\S+)$", (root / "PKG-INFO").read_text(encoding="utf-8"), re.MULTILINE
        )
    except FileNotFoundError:
        return None
    return found[1] if found else None


def _of_git(root: Path) -> str | None:
    if not (
        root / ".git"
    ).exists():  # a tree inside of somebody else's repository has a version of its own
        return None
    described = _git(root, "describe", "--tags", "--long", "--match", "v[0-9]*")
    if described and (found := from_description(described)):
        return found
    commits = _git(root, "rev-list", "--count", "HEAD")
    return f"{NEXT}.dev{commits}" if commits else None


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints.

    None if it cannot, as where it is not installed or does not trust the owner of the tree.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
