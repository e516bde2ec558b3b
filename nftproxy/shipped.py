"""The files that come with the program: the rulesets and the examples.

In a checkout they stand beside the package, where people find them; in an installed package they are inside it.
"""

from pathlib import Path

from nftproxy.errors import UnusableError


def folder(name: str) -> Path:
    """Return the folder `rulesets` or `examples`; UnusableError when this installation lacks it."""
    here = Path(__file__).parent
    for found in (here / name, here.parent / name):
        if found.is_dir():
            return found
    raise UnusableError(f"this installation of nftproxy lacks its folder {name}", hint="install the package again")
