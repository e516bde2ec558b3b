"""`make test-kernels`: the packet tests on the kernels of Debian 12 (6.1) and Debian 13 (6.12).

They run in virtual machines, side by side.

Exit code 1 when a test fails on any of them.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from nftproxy.errors import NftproxyError
from tests.tools.versions.machine import Machine
from tests.tools.versions.project import program_tests

RELEASES = ("bookworm", "trixie")
SLOW = 8  # how much slower Python runs there
LIMIT = 100 * 60  # seconds for the tests, twice what they take; failures until then are printed
TESTS = (
    "packets/", "kernel/test_program", "kernel/test_foreign", "kernel/test_conntrack",
    "kernel/test_takeover",
    "kernel/test_kernel", "kernel/test_faults", "commands/test_bench_modes",
)  # fmt: skip
# For an emulated processor
TOO_MUCH = (
    "packets/test_churn",
    "packets/test_fairness",
    "packets/test_random_packets",
)
# Of tests for each family and protocol: both families and both protocols, not each with each
HALF = "not tcp6 and not udp4"
ONLY_HERE = ("tests/tools/versions/sctp.py", "tests/tools/versions/scale.py")


def main() -> int:
    """Run the tests on each kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--release", action="append", choices=RELEASES, help="only its kernel (may be repeated)"
    )
    parser.add_argument("pytest", nargs="*", help="what pytest is given instead of the usual tests")
    given = parser.parse_args()
    tests = given.pytest or ["-k", HALF, *usual_tests()]
    machines = [Machine(release) for release in given.release or RELEASES]
    pytest = [
        "python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--color=no",
        "--timeout",
        str(180 * SLOW),
        "-q",
        "--durations=10",
        *tests,
    ]
    for machine in machines:
        machine.prepare(
            ["env", f"NFTPROXY_SLOW={SLOW}", "timeout", "--signal=INT", str(LIMIT), *pytest]
        )
    with ThreadPoolExecutor(len(machines)) as workers:
        results = list(workers.map(run, machines))
    print("\n".join(result for _, result in results))
    return 0 if all(passed for passed, _ in results) else 1


def usual_tests() -> list[str]:
    """Return the test files about what a kernel does with packets and rules, those first that only
    run here.
    """
    chosen, left_out = (tuple(f"tests/{name}" for name in names) for names in (TESTS, TOO_MUCH))
    return [
        *ONLY_HERE,
        *(
            path
            for path in program_tests()
            if path.startswith(chosen) and not path.startswith(left_out)
        ),
    ]


def run(machine: Machine) -> tuple[bool, str]:
    """Boot a machine; return whether all went well, and one line that says how it went."""
    version = machine.version
    short = ".".join(version.split(".")[:2])
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{short} {time.monotonic() - started:4.0f} s | {line}", flush=True)

    try:
        code = machine.boot(LIMIT + 120, say)
    except NftproxyError as error:
        return False, f"{machine.release:10} FAILED  kernel {version}: {error}"
    result = "FAILED" if code else "passed"
    return (
        code == 0,
        f"{machine.release:10} {result}  kernel {version}, {time.monotonic() - started:.0f} s",
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NftproxyError as error:
        sys.exit(f"{error}\n{error.hint}".strip())
