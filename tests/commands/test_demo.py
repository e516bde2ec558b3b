"""The demo as users run it.

What it says, that it notices what is wrong, and that nothing is left however it ends.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftproxy.cli import nftproxy as command
from nftproxy.cli import run
from nftproxy.lab import demo, namespace, state
from nftproxy.lab.client import Refused, Silent
from nftproxy.lab.demo import Demo, DemoStep, Expectation
from nftproxy.lab.lab import tear_down
from tests.support.process import NFTPROXY, nftproxy
from tests.support.world import unique_name


@pytest.fixture
def name() -> Iterator[str]:
    chosen = unique_name()
    yield chosen
    tear_down(chosen)


def left_of(name: str) -> list[str]:
    spaces = namespace.names(name)
    return [
        *spaces,
        *(path.name for path in state.DIRECTORY.glob(f"{name}*")),
        *map(str, namespace.processes(spaces)),
    ]


def test_the_walk(name: str, tmp_path: Path) -> None:
    started = time.monotonic()
    done = nftproxy("lab", "demo", "--name", name, env={**os.environ, "TMPDIR": str(tmp_path)})
    print(f"{time.monotonic() - started:.1f} s")
    assert (done.returncode, done.stderr) == (0, "")
    titles = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    for number, word in enumerate(
        (
            "ClusterIP",
            "NodePort",
            "Cluster",
            "Local",
            "node2",
            "affinity",
            "An endpoint is removed",
            "No endpoints",
            "for all ports",
            "scheduler",
        ),
        1,
    ):
        assert titles[number - 1].startswith(f"{number}  ")
        assert word in titles[number - 1]
    assert titles[-1].startswith("25 checks in ")
    assert titles[-1].endswith("every packet went where it should")
    assert "WRONG" not in done.stdout
    assert done.stdout.count("FROM") == 10
    assert ", 0 failed\n" in done.stdout
    assert (left_of(name), list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_in_the_middle_it_leaves_nothing(name: str, tmp_path: Path, number: int) -> None:
    argv = [*NFTPROXY, "lab", "demo", "--name", name]
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("4"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (
        130 if number == signal.SIGINT else 128 + number,
        "",
    )
    assert (left_of(name), list(tmp_path.iterdir())) == ([], [])


def test_a_second_demo_leaves_the_first_alone(name: str) -> None:
    with _quiet_signals(), Demo(name) as first:
        done = nftproxy("lab", "demo", "--name", name)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: there is a lab {name!r} already\nhint: ")
        assert first.check(
            Expectation("pod2-3", "10.96.0.10", 80, {"pod1-1", "pod1-2", "pod2-1"})
        ).right


def test_it_notices_what_is_wrong(name: str) -> None:
    web = {"pod1-1", "pod1-2", "pod2-1"}
    wrong = {
        "one more than expected": Expectation("pod2-3", "10.96.0.10", 80, web - {"pod1-1"}),
        "one less than expected": Expectation("pod2-3", "10.96.0.10", 80, web | {"pod2-2"}),
        "another source": Expectation(
            "client", "203.0.113.30", 443, {"pod1-2", "pod2-2"}, source="node2"
        ),
        "no affinity": Expectation("pod2-3", "10.96.0.10", 80, web, one=True),
        "answered, not refused": Expectation("pod2-3", "10.96.0.10", 80, Refused, times=3),
        "refused, not silent": Expectation("pod2-3", "10.96.0.60", 80, Silent, times=1),
        "refused, not answered": Expectation("pod2-3", "10.96.0.60", 80, web, times=3),
        "silent, but nothing dropped it": Expectation(
            "pod2-3", "10.96.0.99", 80, Silent, times=1, drops="node1"
        ),
    }
    with _quiet_signals(), Demo(name) as walked:
        assert [what for what, check in wrong.items() if walked.check(check).right] == []
        walked.lab.silence("pod1-1")
        some = walked.check(Expectation("pod2-3", "10.96.0.10", 80, web))
        assert not some.right
        assert "refused" in some.row[2]


def test_a_packet_that_does_otherwise_is_exit_code_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = DemoStep(
        "Wrong",
        "Because.",
        (
            Expectation("pod2-3", "10.96.0.10", 80, {"pod1-1"}),
            Expectation("pod2-3", "10.96.0.60", 80, Refused),
        ),
    )
    monkeypatch.setattr(demo, "walk", lambda _: iter([wrong]))
    with _quiet_signals():
        assert run(command, ["lab", "demo", "--name", name]) == 1
    said = capsys.readouterr().out
    assert "WRONG: expected all of pod1-1, seeing its own" in said
    assert said.splitlines()[-1].endswith("1 went wrong")


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """Give this process its signal handlers back, which a demo takes for its end."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
