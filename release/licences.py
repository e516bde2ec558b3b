"""Write docs/licenses.md, the licence of every Python package in the image: `make licences`.

The packages are those of deploy/requirements.lock, what is said of them is their own metadata, as
installed.
"""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "deploy/requirements.lock"
PAGE = ROOT / "docs/licenses.md"

HEAD = """# Licences

nftproxy is under the Apache License 2.0. It runs with the packages below, not part of it;
the image built by `deploy/Dockerfile` contains them, except those in
[left-out.txt](../deploy/left-out.txt). `make licences` writes this page from the packages' own
metadata.

| package | licence | home |
|---|---|---|
"""
TAIL = """
The image also has, from Debian: Python (PSF-2.0), libnftables (GPL-2.0, parts of it or later),
libnftnl (GPL-2.0-or-later), libmnl (LGPL-2.1), iptables (GPL-2.0), and what these and Debian's base
system need. Each has its licence under `/usr/share/doc`.

Code under GPL-2.0 and code under Apache-2.0 run in one process:
[what that means for whoever ships the image](decisions.md#licences-in-one-process).
"""


def locked(lock: str) -> dict[str, str]:
    """Return the names and versions in a lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.MULTILINE))


def licence(package: str) -> str:
    """Return what an installed package says its licence is."""
    return stated(metadata.metadata(package).json)


def stated(about: Mapping[str, Any]) -> str:
    """Return the licence in a package's metadata.

    An SPDX expression where it has one, else its own words or its classifier.
    """
    if expression := about.get("license_expression"):
        return str(expression)
    classifiers = [
        c.split(" :: ")[-1] for c in about.get("classifier", ()) if c.startswith("License ::")
    ]
    words = str(about.get("license", "")).strip().split("\n")[0]
    return words if words and len(words) < 40 else ", ".join(classifiers)


def home(package: str) -> str:
    """Return the address of a package's project."""
    about = metadata.metadata(package).json
    urls = [entry.split(", ", 1) for entry in about.get("project_url", ())]
    named = {name.lower(): url for name, url in urls}
    known = (
        named[name]
        for name in ("homepage", "home", "repository", "source", "source code")
        if name in named
    )
    return str(about.get("home_page") or next(known, "") or next(iter(named.values()), ""))


def page(lock: str) -> str:
    """Return the text of docs/licenses.md."""
    rows = [f"| {name} | {licence(name)} | {home(name)} |\n" for name in sorted(locked(lock))]
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(LOCK.read_text()))
