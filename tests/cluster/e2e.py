"""Kubernetes' own end-to-end tests: which of them, and how they run.

What is left out has its reason in `LEFT_OUT`.
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster import network, pki, results
from tests.cluster.names import CONTROL, FOLDER, NODES, program
from tests.cluster.results import Result, Verdict
from tests.support.paths import ROOT

REPORTS = FOLDER / "reports"
FOCUS = r"\[sig-network\]"
LEFT_OUT = {
    r"Netpol|NetworkPolic": "the CNI's part; the plugin used here has none",
    r"Ingress|Provider:GCE|Internet": "needs a cloud, or the Internet",
    r"sctp|SCTP": "needs the kernel module sctp",
    r"LoadBalancers \[|LoadBalancers ExternalTraffic": "needs a cloud's load balancer",
    r"Performance|iperf": "measures, and decides by a figure that other machines have",
    r"\[Serial\]|\[Disruptive\]": "wants the cluster for itself",
}
"""What is left out, and why."""
LONG = "affinity timeout"
"""Tests that wait for minutes until affinity ends: they run beside the others."""
_GROUPS = {"waiting": 2, "others": 4}


def run(name: str, focus: str = FOCUS) -> None:
    """Run the tests, then those that failed once more, alone.

    Reports are in `REPORTS / name`.
    """
    folder = REPORTS / name
    shutil.rmtree(folder, ignore_errors=True)
    left_out = "|".join(LEFT_OUT)
    begin = time.monotonic()
    running = [
        _ginkgo(folder / "waiting", f"{focus}.*{LONG}", left_out, processes=_GROUPS["waiting"]),
        _ginkgo(folder / "others", focus, f"{left_out}|{LONG}", processes=_GROUPS["others"]),
    ]
    for process in running:
        process.wait()
    if failed := results.names(read(name), Verdict.FAILED):
        _ginkgo(folder / "again", results.focus(failed), left_out, processes=1).wait()
    about = {
        "kubernetes": version(),
        "kernel": os.uname().release.split("-")[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "minutes": str(round((time.monotonic() - begin) / 60)),
    }
    (folder / "about.json").write_text(json.dumps(about))


def read(name: str) -> dict[str, Result]:
    """Return the results of a run."""
    parts: list[dict[str, Result]] = []
    for part in ("waiting", "others", "again"):
        found: dict[str, Result] = {}
        for path in sorted((REPORTS / name / part).glob("junit*.xml")):
            found |= results.read(path.read_text(encoding="utf-8"))
        parts.append(found)
    waiting, others, again = parts
    return results.again({**waiting, **others}, again)


def about(name: str) -> dict[str, str]:
    """Return when a run was, and with what."""
    found: dict[str, str] = json.loads((REPORTS / name / "about.json").read_text())
    return found


def version() -> str:
    """Return the version of Kubernetes."""
    argv = [program("kubeadm"), "version", "--output=short"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()


def _ginkgo(folder: Path, focus: str, skip: str, *, processes: int) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True)
    argv = [
        *(program("ginkgo"), f"--procs={processes}", "--timeout=2h", "--no-color"),
        *("--poll-progress-after=0", f"--focus={focus}", f"--skip={skip}", program("e2e.test")),
        "--",
        f"--kubeconfig={pki.kubeconfig('admin')}",
        f"--kubectl-path={program('kubectl')}",
        "--provider=skeleton",
        f"--num-nodes={len(NODES)}",
        f"--report-dir={folder}",
        "--disable-log-dump=true",
        "--minStartupPods=0",
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            network.inside(CONTROL, *argv), stdout=log, stderr=log, cwd=folder, env=os.environ
        )
