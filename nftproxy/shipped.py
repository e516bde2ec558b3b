"""The files that come with the program: the rulesets and the examples.

In a checkout they are beside the package; an installed package contains them.
"""

from pathlib import Path

from nftproxy.errors import UnusableError


def folder(name: str) -> Path:
    """Return the folder `rulesets` or `examples`; UnusableError if this installation lacks it."""
    here = Path(__file__).parent
    for found in (here / name, here.parent / name):
        if found.is_dir():
            return found
    raise UnusableError(
        f"this installation of nftproxy lacks its folder {name}", hint="install the package again"
    )
