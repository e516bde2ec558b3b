"""The result of a sync."""

import itertools
import time

import pytest

from nftproxy.address import Family
from nftproxy.sync.report import Report


def test_a_stage_does_not_count_the_stages_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    report = Report(Family.IPv4)
    with report.timed("difference"):
        for _ in range(2):
            with report.timed("compile"):
                pass
        with report.timed("kernel"), report.timed("compile"):
            pass
    assert report.stages == {"compile": 3, "kernel": 2, "difference": 4}
    assert sum(report.stages.values()) == 9, "all that passed"
