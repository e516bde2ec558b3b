"""Results of Kubernetes' tests, and the page made of them, without a cluster."""

import re
from pathlib import Path

import pytest

from tests.cluster import load, names, page, results
from tests.cluster.e2e import FOCUS, LEFT_OUT
from tests.cluster.results import Result, Verdict
from tests.docs.test_prose import avoided, prose

REPORT = """\
<testsuites><testsuite>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"/>
<testcase name="[It] [sig-network] Services should serve a basic endpoint [Conformance]"
    status="passed" time="12.5"/>
<testcase name="[It] [sig-network] Services should fail [LinuxOnly]" status="failed" time="60">
    <failure message="">[FAILED] timed out after 60s: got | nothing
In [It] at: services.go:1</failure></testcase>
<testcase name="[It] [sig-network] DNS should resolve" status="timedout" time="60"/>
<testcase name="[It] [sig-network] Topology should spread" status="skipped" time="0.1">
    <skipped message="skipped - requires 3 zones&#10;in file.go"/></testcase>
<testcase name="[It] [sig-network] Others, which nobody chose" status="skipped" time="0">
    <skipped message="skipped"/></testcase>
<testcase name="[It] [sig-node] Pods should run" status="passed" time="1"/>
</testsuite></testsuites>
"""
GOOD = Result(Verdict.PASSED, 1)
BAD = Result(Verdict.FAILED, 1, "no answer")
ABOUT = {"kubernetes": "v1.36.2", "date": "2026-11-27"}


def test_a_report_is_read_without_what_was_not_chosen() -> None:
    assert results.read(REPORT) == {
        "Services should serve a basic endpoint [Conformance]": Result(Verdict.PASSED, 12.5),
        "Services should fail [LinuxOnly]": Result(
            Verdict.FAILED, 60, "timed out after 60s: got | nothing"
        ),
        "DNS should resolve": Result(Verdict.FAILED, 60, "timedout"),
        "Topology should spread": Result(Verdict.SKIPPED, 0.1, "requires 3 zones"),
    }


def test_what_passes_alone_says_so() -> None:
    first = {"a": BAD, "b": BAD, "c": GOOD}
    assert results.again(first, {"a": GOOD, "b": BAD}) == {
        "a": Result(Verdict.AGAIN, 1),
        "b": BAD,
        "c": GOOD,
    }


@pytest.mark.parametrize(
    ("ours", "control", "worse"),
    [(GOOD, BAD, []), (BAD, BAD, []), (BAD, GOOD, ["a"]), (BAD, None, [])],
    ids=["better", "both", "worse", "no control"],
)
def test_only_what_passes_with_the_control_counts_as_worse(
    ours: Result, control: Result | None, worse: list[str]
) -> None:
    assert results.worse({"a": ours}, {"a": control} if control else {}) == worse


def test_tests_are_chosen_again_by_their_names() -> None:
    chosen = re.compile(results.focus(["serve a [basic] endpoint (v4)", "other"]))
    assert chosen.search(
        "[sig-network] Services should serve a [basic] endpoint (v4) [Conformance]"
    )
    assert not chosen.search("[sig-network] Services should serve a b endpoint v4")


def test_what_is_left_out_is_chosen_by_valid_expressions() -> None:
    skip = re.compile("|".join(LEFT_OUT))
    assert re.search(FOCUS, "[sig-network] Services should")
    assert skip.search("[sig-network] Netpol NetworkPolicy between server and client")
    assert not skip.search("[sig-network] Services should have session affinity work")


def test_the_page_has_each_test_with_the_control_beside_it() -> None:
    ours = page.Run("nftproxy", {"a | b": BAD, "c": GOOD}, ABOUT)
    control = page.Run("kube-proxy, nftables", {"a | b": GOOD, "c": GOOD}, ABOUT)
    outcome = load.Outcome(opened=10, failed=["web4: reset"])
    trials = {"swap-nftables": {**vars(outcome), "seconds": 90}}
    written = page.page(ours, control, trials, {"nftproxy": {"start, s": 2.5}})
    assert "| `a / b` | failed: `no answer` | passed, 1 s |" in written
    assert "| passed | 1 | 2 |" in written
    assert "These tests fail with nftproxy and pass with kube-proxy:\n\n- `a | b`" in written
    assert "| 10 | 1 | 0 |" in written
    assert "| nftproxy | 2.5 |" in written
    assert avoided("\n".join(prose(written))) == []
    assert max(map(len, (text for text in prose(written) if not text.startswith("|")))) <= 100


def test_the_readmes_line_has_results_and_date() -> None:
    run = page.Run("nftproxy", {"a": GOOD, "b": BAD}, ABOUT)
    text = " ".join(page.line(run, run).split())
    assert "1 of 2 of Kubernetes' `[sig-network]` tests pass on v1.36.2" in text
    assert text.endswith("1 of 2 (2026-11-27).")


def test_moved_connections_of_affinity_are_counted() -> None:
    report = {"opened": 5, "asked": 1, "retransmitted": 0, "longest": 0.1, "failed": ["reset"]}
    rest: dict[str, object] = {"broken": []}
    outcome = load.Outcome()
    load.collect(
        outcome,
        [
            {"target": "sticky4", "moved": 1, **report, **rest},
            {"target": "web4", "moved": 3, **report, **rest},
        ],
    )
    assert (outcome.moved, outcome.opened) == (1, 10)
    assert outcome.failed == ["sticky4: reset", "web4: reset"]


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    assert names.missing("").startswith("KUBERNETES_BINARIES is not set")
    for name in names.PROGRAMS[1:]:
        (tmp_path / name).touch()
    assert names.missing(str(tmp_path)) == f"{tmp_path} has no etcd"
    (tmp_path / "etcd").touch()
    assert names.missing(str(tmp_path)) == ""
