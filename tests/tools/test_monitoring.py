"""deploy/monitoring: alerts tested by promtool, and files that agree with each other.

The queries run in test_prometheus.py.
"""

import json
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftproxy.address import Family
from nftproxy.monitoring.metrics import Metrics
from nftproxy.monitoring.tablefigures import TableFigures
from tests.support.paths import ROOT

MONITORING = ROOT / "deploy/monitoring"
OF_PROMETHEUS = {"up", "ALERTS"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    """The names of everything that a scrape may return."""
    described = [*Metrics(Family, {}).registry.collect()]
    with closing(TableFigures(())) as figures:
        described += figures.describe()
    names: set[str] = set()
    for family in described:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("promtool"):
        pytest.skip("promtool is missing; apt-get install prometheus")
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_promtool_accepts_and_tests_the_rules(tmp_path: Path) -> None:
    spec = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec))
    shutil.copy(MONITORING / "rules-test.yaml", tmp_path)
    for arguments in (("check", "rules", "rules.yml"), ("test", "rules", "rules-test.yaml")):
        done = promtool(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_in_a_test() -> None:
    tested = (MONITORING / "rules-test.yaml").read_text()
    names = {rule["alert"] for rule in rules()}
    firing = set(re.findall(r'labels: ALERTS\{alertname="(\w+)"', tested))
    firing |= set(re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts", tested))
    assert firing == names


def test_rules_and_dashboard_read_metrics_that_exist(metrics: set[str]) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    expressions = [rule["expr"] for rule in rules()]
    expressions += [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    read = {
        name
        for expression in expressions
        for name in re.findall(r"\b([a-z_]+)(?=[\[{ ]|$)", re.sub(r"\{.*?\}", "{", expression))
        if name.startswith(("kubeproxy_", "nftproxy_", "rest_", "process_", "up"))
    }
    assert len(read) > 25
    assert read - metrics - OF_PROMETHEUS == set()


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_the_pod_monitor_selects_our_pods_and_those_whose_image_was_swapped() -> None:
    spec = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())["spec"]
    ours = yaml.safe_load((ROOT / "deploy/base/daemonset.yaml").read_text())["spec"]["template"]
    (expression,) = spec["selector"]["matchExpressions"]
    assert set(expression["values"]) == {ours["metadata"]["labels"]["k8s-app"], "kube-proxy"}
    assert expression["key"] == "k8s-app"
