"""`make test-clone`: what the README says, done in a fresh clone on bare Debians.

`make demo`, then `make test`.

The clone is of what is committed. make and git, with which somebody gets there, are all that is
installed before.
"""

import argparse
import shutil
import subprocess
import sys

from release.image import ROOT, Bare

RELEASES = ("bookworm", "trixie")


def main() -> int:
    """Do it for each release; the exit code says whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--release", action="append", choices=RELEASES, help="only this one (may be repeated)"
    )
    parser.add_argument(
        "--tests", default="", help="what `make test` is given as TESTS [everything]"
    )
    given = parser.parse_args()
    for release in given.release or RELEASES:
        bare = Bare.copy(release, ROOT / f"build/image/clone-{release}")
        clone = bare.path / "root/nftproxy"
        subprocess.run(
            ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True
        )
        bare.run(
            "apt-get -qq update && apt-get -qq install --yes --no-install-recommends make git "
            "ca-certificates >/dev/null"
        )
        for command in ("make demo", f"make test TESTS='{given.tests}'"):
            print(f"{release}: {command}", flush=True)
            bare.run(f"cd /root/nftproxy && {command}")
        shutil.rmtree(bare.path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit code {error.returncode}: {error.cmd[-1]}")
