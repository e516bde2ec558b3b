"""`make test-versions`: the tests with libnftables and Python of several Debian releases.

As many releases at a time as this machine has processors. Exit code 1 when a test fails in any of
them. A release that is not released yet may be missing from a mirror: that one is named and left
out.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from nftproxy.errors import NftproxyError
from tests.tools.versions.folder import Folder
from tests.tools.versions.project import install, program_tests

RELEASES = ("bookworm", "trixie", "sid")
_OPTIONAL = ("sid",)
_PRINT_VERSIONS = "import sys; print('Python', sys.version.split()[0])"


def main() -> int:
    """Run the tests in each release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--release", action="append", choices=RELEASES, help="only this one (may be repeated)"
    )
    parser.add_argument(
        "pytest", nargs="*", help="what pytest is given instead of all tests of the program"
    )
    given = parser.parse_args()
    releases = given.release or RELEASES
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        results = list(
            workers.map(lambda release: run(release, given.pytest or program_tests()), releases)
        )
    print(
        "\n".join(
            f"{release:10} {result}" for release, result in zip(releases, results, strict=True)
        )
    )
    return 1 if any(result.startswith("FAILED") for result in results) else 0


def run(release: str, tests: list[str]) -> str:
    """Make a release ready and run tests in it; return one line that says how it went."""
    folder = Folder(release)
    with folder.held():
        if problem := made(folder):
            return f"left out: {problem}"
        return run_in(folder, tests)


def made(folder: Folder) -> str:
    """Make a folder ready, with the project in it.

    Return why that cannot be where a release may be missing, else nothing.
    """
    try:
        folder.make()
    except NftproxyError as error:
        if folder.release in _OPTIONAL:
            return str(error)
        raise
    install(folder)
    return ""


def run_in(folder: Folder, tests: list[str]) -> str:
    """Run tests in a folder that is ready; return one line that says how it went."""
    versions = (
        f"libnftables {library_version(folder)}, "
        f"{folder.ask('python3', '-c', _PRINT_VERSIONS).strip()}"
    )
    print(f"{folder.release}: {versions}", flush=True)
    started = time.monotonic()
    argv = [
        "sh",
        "-c",
        'cd /project && exec python -m pytest -p no:cacheprovider "$@"',
        "sh",
        "-q",
        *tests,
    ]
    code = folder.run(argv, lambda line: print(f"{folder.release:8} | {line}", flush=True))
    return f"{'FAILED' if code else 'passed'}  {versions}, {time.monotonic() - started:.0f} s"


def library_version(folder: Folder) -> str:
    """Return the version of libnftables that is in use there."""
    return folder.ask("dpkg-query", "--show", "--showformat", "${Version}", "libnftables1").strip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NftproxyError as error:
        sys.exit(f"{error}\n{error.hint}".strip())
