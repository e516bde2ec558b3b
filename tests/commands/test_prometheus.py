"""A real Prometheus that scrapes a running kube-proxy under load, as our PodMonitor says.

Dashboards have data, alerts are quiet.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import Machine, started
from tests.support.prometheus import INTERVAL, Prometheus, dashboard, queries, scraped
from tests.support.running import eventually

# What the rules and the dashboard "Proxy" of kubernetes-mixin read, with the labels that they
# select by.
ASKED_BY_OTHERS = (
    'up{job="kube-proxy"} == 1',
    'rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job="kube-proxy",instance="node1"}[8s])',
    'rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job="kube-proxy",instance="node1"}[8s])',
    'rate(kubeproxy_network_programming_duration_seconds_count{job="kube-proxy",instance="node1"}[8s])',
    'rate(kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy",instance="node1"}[8s])',
    'rate(rest_client_requests_total{job="kube-proxy",instance="node1",code=~"2.."}[8s])',
    (
        "histogram_quantile(0.99, sum by (verb, le) "
        '(rate(rest_client_request_duration_seconds_bucket{job="kube-proxy",verb="GET"}[8s])))'
    ),
    'rate(rest_client_request_duration_seconds_bucket{job="kube-proxy",instance="node1",verb="POST"}[8s])',
    'process_resident_memory_bytes{job="kube-proxy",instance="node1"}',
    'rate(process_cpu_seconds_total{job="kube-proxy",instance="node1"}[8s])',
    'go_goroutines{job="kube-proxy",instance="node1"}',
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with started(tmp_path) as machine:
        yield machine


@pytest.fixture
def prometheus(machine: Machine, tmp_path: Path) -> Iterator[Prometheus]:
    with scraped(machine, tmp_path) as prometheus:
        yield prometheus


@pytest.mark.contract("7.4.17")
def test_dashboards_have_data_and_alerts_are_quiet(
    machine: Machine, prometheus: Prometheus
) -> None:
    missing = {each: each for each in ASKED_BY_OTHERS}
    for panel in dashboard()["panels"]:
        for legend, query in queries(panel).items():
            missing[f"{panel['title']}: {legend}"] = query

    def answered() -> bool:
        """Ask again for what had no data yet."""
        for name in [name for name, query in missing.items() if prometheus.has_data(query)]:
            del missing[name]
        return not missing

    eventually(answered, why=lambda: f"no data: {missing}")
    reasons = prometheus.query(f"sum by (reason) (rate(nftproxy_refused_total[{INTERVAL}])) > 0")
    assert {sample["metric"]["reason"] for sample in reasons} == {
        "no-endpoints", "policy-local", "source-range", "unknown-port", "unallocated-address"
    }  # fmt: skip
    targets = json.loads(machine.get(9090, "/api/v1/targets")[2])["data"]["activeTargets"]
    assert [target["scrapeUrl"] for target in targets] == ["http://127.0.0.1:10249/metrics"]
    quiet = {sample["metric"]["alertname"] for sample in prometheus.query("ALERTS")}
    assert quiet <= {"NftproxyTableChanged"}, "the load does change the table"
    for firing in (
        'absent(up{job="kube-proxy"})',
        'up{job="kube-proxy"} == 0',
        "kubernetes_build_info",
    ):
        assert prometheus.query(firing) == [], firing
