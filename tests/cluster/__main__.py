"""`make test-cluster`: a real cluster, Kubernetes' own tests, and what happens to it in operation.

    python -m tests.cluster                       everything, and docs/conformance.md
    python -m tests.cluster up                    the cluster, with kubeadm's kube-proxy
    python -m tests.cluster kubectl get pods -A
    python -m tests.cluster tests nftproxy        Kubernetes' tests, with nftproxy or kube-proxy
    python -m tests.cluster trial swap-iptables   one trial
    python -m tests.cluster measure nftproxy      memory, and how long a start takes
    python -m tests.cluster page                  docs/conformance.md, from what is there
    python -m tests.cluster down

`KUBERNETES_BINARIES` names a folder with Kubernetes' programs. Without it, nothing is done.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from tests.cluster import (
    cluster,
    e2e,
    load,
    measure,
    names,
    observed,
    page,
    proxies,
    results,
    trials,
)
from tests.support.paths import ROOT

_PAGE, _README = ROOT / "docs/conformance.md", ROOT / "README.md"
_PROXIES = {"nftproxy": lambda: names.NFTPROXY, "kube-proxy": proxies.original}


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="everything",
        choices=["everything", "up", "down", "kubectl", "tests", "trial", "measure", "page"],
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    names_of = {"tests": [*_PROXIES], "measure": [*_PROXIES], "trial": [*trials.ALL]}
    known = names_of.get(given.command)
    if known and (len(given.arguments) != 1 or given.arguments[0] not in known):
        parser.error(f"{given.command} needs one of {', '.join(known)}")
    if reason := names.missing(os.environ.get("KUBERNETES_BINARIES", "")):
        print(f"skipped: {reason}")
        return 0
    return 0 if _do(given.command, given.arguments) else 1


def _do(command: str, arguments: list[str]) -> bool:
    """Do one command, and say whether all is well."""
    good = True
    if command == "everything":
        good = _everything()
    elif command == "up":
        _up()
    elif command == "down":
        cluster.down()
    elif command == "kubectl":
        print(cluster.kubectl(*arguments), end="")
    elif command == "tests":
        _use(*arguments)
        e2e.run(*arguments)
    elif command == "trial":
        load.deploy()
        good = trials.keep(*arguments)
    elif command == "measure":
        _measure(*arguments)
    else:
        good = _write()
    return good


def _everything() -> bool:
    try:
        _up()
        for proxy in _PROXIES:
            _use(proxy)
            e2e.run(proxy)
            _measure(proxy)
        load.deploy()
        outcomes = [trials.keep(name) for name in trials.ALL]
    finally:
        cluster.down()
    return _write() and all(outcomes)


def _up() -> None:
    cluster.up()
    proxies.addons()
    proxies.rollout(proxies.DAEMONSET)
    proxies.rollout("deployment/coredns")


def _use(proxy: str) -> None:
    """Let a proxy serve, in kubeadm's DaemonSet; our table never stays beside kube-proxy's."""
    proxies.set_mode("nftables")
    proxies.set_image(_PROXIES[proxy]())
    observed.until_synced()
    if proxy == "kube-proxy":
        trials.cleanup()


def _measure(proxy: str) -> None:
    measure.memory(proxy)
    measure.starts(proxy)


def _write() -> bool:
    """Write the page and the README's line; say whether nothing is worse than the control."""
    ours, control = (page.Run(name, e2e.read(name), e2e.about(name)) for name in _PROXIES)
    written = page.page(ours, control, _kept(trials.RESULTS), _kept(measure.MEASURED))
    _PAGE.write_text(written, encoding="utf-8")
    text = _README.read_text(encoding="utf-8")
    paragraph = re.compile(rf"^{re.escape(page.LINE)}(?:.+\n)+", re.MULTILINE)
    _README.write_text(paragraph.sub(page.line(ours, control) + "\n", text), encoding="utf-8")
    return not results.worse(ours.results, control.results)


def _kept(path: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}
    return found


if __name__ == "__main__":
    sys.exit(main())
