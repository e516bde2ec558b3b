"""Make an environment as small and as quick to start as an image wants it.

    python3 release/lean.py /opt/nftproxy deploy/left-out.txt

After everything is installed it removes what the list names from site-packages, and debugging
symbols from libraries, and compiles what is left: a root that is read-only cannot keep bytecode,
so without this every start compiles everything. Needs nothing but Python's own library, and
`strip`.
"""

import compileall
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode


def patterns(text: str) -> Iterator[str]:
    """Yield the patterns of a list: one a line; what follows a `#` is the reason."""
    for line in text.splitlines():
        if pattern := line.partition("#")[0].strip():
            yield pattern


def leave_out(site: Path, listed: str) -> None:
    """Remove what the patterns of a list match in a folder.

    ValueError for one that matches nothing, as the list then is out of date.
    """
    for pattern in patterns(listed):
        found = list(site.glob(pattern))
        if not found:
            raise ValueError(f"{pattern} matches nothing in {site}")
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def strip(site: Path) -> None:
    """Remove from all libraries what only a debugger reads."""
    libraries = sorted(site.rglob("*.so"))
    if libraries:
        subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def compile_all(site: Path) -> None:
    """Compile all modules, and nothing else.

    Bytecode that is never compared to its source, whose time a copy may lose.
    """
    for cache in list(site.rglob("__pycache__")):
        shutil.rmtree(cache)
    compileall.compile_dir(
        site, quiet=1, workers=0, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH
    )


def main() -> None:
    """Do all of it for the environment and the list named."""
    environment, listed = map(Path, sys.argv[1:])
    (site,) = environment.glob("lib/python3*/site-packages")
    leave_out(site, listed.read_text(encoding="utf-8"))
    strip(site)
    compile_all(site)


if __name__ == "__main__":
    main()
