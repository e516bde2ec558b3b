"""A real Prometheus that scrapes a running `kube-proxy` under load, as our PodMonitor says."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest
import yaml

from nftproxy.lab.namespace import enter
from tests.support.machine import NODE, Machine, service
from tests.support.paths import ROOT
from tests.support.running import eventually

INTERVAL = "8s"  # that Grafana would put into the queries
_MONITORING = ROOT / "deploy/monitoring"
_BALANCED = "203.0.113.200"


def scraping() -> dict[str, Any]:
    """What Prometheus' operator makes of our PodMonitor for one pod.

    Discovery is a fixed target with the labels it would find.
    """
    (endpoint,) = yaml.safe_load((_MONITORING / "podmonitor.yaml").read_text())["spec"][
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
                for address in ("10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.99", _BALANCED):
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

    def over(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """The series of an expression, for the last so many seconds."""
        now = time.time()
        path = (
            f"/api/v1/query_range?query={quote(expression)}&start={now - seconds}&end={now}&step=1"
        )
        found: list[dict[str, Any]] = json.loads(self._machine.get(9090, path)[2])["data"]["result"]
        return found

    def has_data(self, expression: str) -> bool:
        """Whether it has samples, and numbers in them."""
        return any(sample["value"][1] != "NaN" for sample in self.query(expression))


@contextlib.contextmanager
def scraped(machine: Machine, folder: Path) -> Iterator[Prometheus]:
    """Lend a Prometheus beside a kube-proxy whose Services answer, refuse and change."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is missing; apt-get install prometheus")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(scraping()))
    rules = yaml.safe_load((_MONITORING / "rules.yaml").read_text())["spec"]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    flags = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:9090",
    ]
    with enter(machine.netns), (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)
    try:
        eventually(machine.answers(9090, "/-/ready"))
        _populate(machine)
        machine.start()
        eventually(lambda: "10.96.0.10" in machine.services())
        with Load(machine) as load:
            yield Prometheus(machine)
        assert load.answered
    finally:
        process.kill()
        process.wait()


def _populate(machine: Machine) -> None:
    for network in ("10.96.0.0/16", f"{_BALANCED}/32"):
        argv = ["ip", "-n", machine.netns, "route", "add", network, "dev", "lo"]
        subprocess.run(argv, check=True)
    local = {"internalTrafficPolicy": "Local"}
    closed = service(
        "closed",
        "10.96.0.13",
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]},
    )
    closed["status"] = {"loadBalancer": {"ingress": [{"ip": _BALANCED}]}}
    machine.api.put("services", service("web", "10.96.0.10"))
    machine.api.put("services", service("empty", "10.96.0.11"))
    machine.api.put("services", service("away", "10.96.0.12", local))
    machine.api.put("services", closed)
    for name in ("web", "away", "closed"):
        machine.api.put("endpointslices", endpoints(name, NODE))
    cidrs = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/24"]}}
    machine.api.put("servicecidrs", cidrs)


def dashboard() -> dict[str, Any]:
    """The dashboard that we ship."""
    found: dict[str, Any] = json.loads((_MONITORING / "dashboard.json").read_text())
    return found


def queries(panel: dict[str, Any]) -> dict[str, str]:
    """The queries of a panel by legend, as Grafana would send them."""
    found = {}
    for target in panel.get("targets", ()):
        expression = target["expr"].replace("$__rate_interval", INTERVAL)
        expression = expression.replace("$job", "kube-proxy").replace("$instance", ".*")
        assert "$" not in expression
        found[target["legendFormat"]] = expression
    return found
