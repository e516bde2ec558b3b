"""A real Prometheus that scrapes a running kube-proxy under load, as our PodMonitor says.

Dashboards have data, alerts are quiet.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest
import yaml

from nftproxy.lab.namespace import enter
from tests.commands.test_daemon import Machine, machine, service
from tests.support.paths import ROOT
from tests.support.running import eventually

__all__ = ["machine"]  # a fixture

MONITORING = ROOT / "deploy/monitoring"
NODE = "192.0.2.10"  # of the fixture: on loopback
BALANCED = "203.0.113.200"
INTERVAL = "8s"

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


def scraping() -> dict[str, Any]:
    """What Prometheus' operator makes of our PodMonitor for one pod.

    Discovery is a fixed target with the labels it would find.
    """
    (endpoint,) = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())["spec"][
        "podMetricsEndpoints"
    ]
    pod = {
        "__meta_kubernetes_pod_ip": "127.0.0.1",
        "__meta_kubernetes_pod_node_name": "node1",
        "__meta_kubernetes_pod_container_init": "false",
    }

    def rules(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), k): v
                for k, v in each.items()
            }
            for each in found
        ]

    prepare = {**pod, "__meta_kubernetes_pod_container_init": "true"}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "podMonitor/monitoring/nftproxy/0",
                "metrics_path": endpoint["path"],
                "static_configs": [
                    {"targets": ["replaced"], "labels": pod},
                    {"targets": ["dropped"], "labels": prepare},
                ],
                "relabel_configs": rules(endpoint["relabelings"]),
                "metric_relabel_configs": rules(endpoint["metricRelabelings"]),
            }
        ],
    }


def endpoints(name: str, *addresses: str) -> dict[str, Any]:
    """A slice whose change is timed, as the controller's are."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [each], "conditions": {"ready": True}, "nodeName": "elsewhere"}
            for each in addresses
        ],
    }


class Load:
    """Connections that are answered and refused, and changes of endpoints and of the table, until
    stopped.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        with enter(machine.netns):
            self._server = socket.create_server((NODE, 8080), backlog=64)
        self.answered = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        api, round_ = self._machine.api, 0
        with enter(self._machine.netns):
            while not self._stopping.wait(0.1):
                round_ += 1
                for address in ("10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.99", BALANCED):
                    with contextlib.suppress(OSError):
                        socket.create_connection((address, 80), timeout=0.05).close()
                        self._server.accept()[0].close()
                        self.answered += 1
                with contextlib.suppress(OSError):
                    socket.create_connection(("10.96.0.10", 81), timeout=0.05).close()
                ports = [{"name": "http", "port": 80 + round_ % 2, "protocol": "TCP"}]
                api.put("services", service("more", "10.96.0.20", {"ports": ports}))
                api.put("endpointslices", endpoints("more", NODE, f"10.244.1.{round_ % 200 + 2}"))
                if round_ % 10 == 5:
                    api.end_watches("services")  # the next is a request
                    self._empty_a_map()

    def _empty_a_map(self) -> None:
        """Do what another program might, so that there are repairs."""
        subprocess.run(
            ["nft", "flush", "map", "inet", "nftproxy", "endpoints4-tcp"],
            check=True,
            capture_output=True,
        )


class Prometheus:
    """A server in the namespace of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        path = f"/api/v1/query?query={quote(expression)}"
        status, _, body = self._machine.get(9090, path)
        found = json.loads(body)
        assert status == 200, found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def has_data(self, expression: str) -> bool:
        """Whether it has samples, and numbers in them."""
        return any(sample["value"][1] != "NaN" for sample in self.query(expression))


@pytest.fixture
def prometheus(machine: Machine, tmp_path: Path) -> Iterator[Prometheus]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is missing; apt-get install prometheus")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scraping()))
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    flags = [
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        "--web.listen-address=127.0.0.1:9090",
    ]
    with enter(machine.netns), (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)
    try:
        eventually(machine.answers(9090, "/-/ready"))
        yield Prometheus(machine)
    finally:
        process.kill()
        process.wait()


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """The queries of all panels, by panel and legend, as Grafana would send them."""
    found = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", INTERVAL)
            expression = expression.replace("$job", "kube-proxy").replace("$instance", ".*")
            assert "$" not in expression
            found[f"{panel['title']}: {target['legendFormat']}"] = expression
    return found


@pytest.mark.contract("7.4.17")
def test_dashboards_have_data_and_alerts_are_quiet(
    machine: Machine, prometheus: Prometheus
) -> None:
    for network in ("10.96.0.0/16", f"{BALANCED}/32"):
        argv = ["ip", "-n", machine.netns, "route", "add", network, "dev", "lo"]
        subprocess.run(argv, check=True)
    local = {"internalTrafficPolicy": "Local"}
    closed = service(
        "closed",
        "10.96.0.13",
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]},
    )
    closed["status"] = {"loadBalancer": {"ingress": [{"ip": BALANCED}]}}
    machine.api.put("services", service("web", "10.96.0.10"))
    machine.api.put("services", service("empty", "10.96.0.11"))
    machine.api.put("services", service("away", "10.96.0.12", local))
    machine.api.put("services", closed)
    for name in ("web", "away", "closed"):
        machine.api.put("endpointslices", endpoints(name, NODE))
    cidrs = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/24"]}}
    machine.api.put("servicecidrs", cidrs)
    machine.start()
    eventually(lambda: "10.96.0.10" in machine.services())
    wanted = {**queries(dashboard()), **{each: each for each in ASKED_BY_OTHERS}}
    with Load(machine) as load:
        missing = dict(wanted)

        def answered() -> bool:
            """Ask again for what had no data yet."""
            for name in [name for name, query in missing.items() if prometheus.has_data(query)]:
                del missing[name]
            return not missing

        eventually(answered, 30, why=lambda: f"no data: {missing}")
        assert load.answered
        reasons = prometheus.query(
            f"sum by (reason) (rate(nftproxy_refused_total[{INTERVAL}])) > 0"
        )
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
