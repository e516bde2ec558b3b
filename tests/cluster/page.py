"""docs/conformance.md, and the README's line about it: made of reports, never by hand.

Pure: what was measured arrives as values.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.cluster import results
from tests.cluster.e2e import LEFT_OUT
from tests.cluster.results import Results, Verdict

TRIALS = {
    "swap-nftables": "kube-proxy in nftables mode to nftproxy and back",
    "swap-iptables": "kube-proxy in iptables mode to nftproxy and back",
    "upgrade": "our image to one with another program in it, and back",
    "kubeadm-upgrade": "what `kubeadm upgrade` does to the addon, and our image set again",
    "crash-loop": "the process of a node killed every second for a minute",
    "drained-node": "a node drained, stopped without warning, started with an empty kernel",
    "server-away": "the control plane away for five minutes while pods get other addresses",
    "own-address": "the API server's address is a Service's, and the API server restarts",
    "own-manifests": "`deploy/` takes over from kube-proxy, and back, by docs/operations.md",
}
"""The trials in the order of the page, and what happens in each."""
_OUTCOME = {
    "opened",
    "asked",
    "retransmitted",
    "longest",
    "failed",
    "broken",
    "moved",
    "seconds",
}
LINE = "[Conformance](docs/conformance.md):"
"""How the README's paragraph begins."""
_HEAD = """\
# Conformance

Kubernetes' own end-to-end tests, in a cluster whose Services nftproxy serves, and the same tests
with the real kube-proxy in the same cluster; then what happens to connections while proxies are
swapped, killed and cut off. `make test-cluster` runs all of it and writes this page; nobody edits
it.

The cluster has three nodes on one machine, each a zone: kubelet, containerd and runc in namespaces,
dual stack, with CoreDNS. Both proxies run in the DaemonSet that kubeadm makes; the image is all
that differs. Kubernetes' programs are not part of this project: `KUBERNETES_BINARIES` names a
folder with them.

```sh
KUBERNETES_BINARIES=/usr/local/lib/kubernetes make test-cluster
```
"""
_LOAD = """\
A pod and a node ask the ClusterIPs of both families, and a client outside the NodePorts of all
nodes, each about twenty times a second; as many connections stay open and ask again and again.
*New* counts the connections made, *lost* new ones that failed and open ones that broke, and *moved*
how often a client of a Service with affinity got another endpoint. kube-proxy and nftproxy do not
read each other's memory of clients, so a swap may move them. `python -m tests.cluster trial` with a
name runs one.
"""
_MEASURED = """\
The proxies' processes in this cluster after the tests, a median of the three nodes (`python -m
tests.cluster measure`). Memory is what is resident, and the part of it that no other process
shares. The start is the time from the process to its sync of the last family; on a busy machine the
processor time in it says more.
"""


@dataclass(frozen=True)
class Run:
    """The tests with one proxy: their results, and when and with what they ran."""

    proxy: str
    results: Results
    about: Mapping[str, str]


def line(ours: Run, control: Run) -> str:
    """Return the README's paragraph."""
    passed, ran = results.passed(ours.results), results.ran(ours.results)
    beside = f"{results.passed(control.results)} of {results.ran(control.results)}"
    text = (
        f"{LINE} {passed} of {ran} of Kubernetes' `[sig-network]` tests pass on "
        f"{ours.about['kubernetes']}, with kube-proxy in the same cluster {beside} "
        f"({ours.about['date']})."
    )
    return "\n".join(textwrap.wrap(text, 100, break_on_hyphens=False))


def page(
    ours: Run,
    control: Run,
    trials: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the whole page."""
    return "\n".join(
        [
            _HEAD,
            *_summary(ours, control),
            *(_trials(trials) if trials else ()),
            *(_measured(measured) if measured else ()),
            *_left_out(),
            *_each(ours, control),
        ]
    )


def _summary(ours: Run, control: Run) -> Iterator[str]:
    runs = (ours, control)
    yield "## Result\n"
    yield f"| | {' | '.join(run.proxy for run in runs)} |"
    yield "|---|---|---|"
    for text, verdicts in {
        "passed": [Verdict.PASSED],
        "passed when run again alone": [Verdict.AGAIN],
        "failed": [Verdict.FAILED],
        "cannot run in this cluster": [Verdict.SKIPPED],
    }.items():
        numbers = (str(len(results.names(run.results, *verdicts))) for run in runs)
        yield f"| {text} | {' | '.join(numbers)} |"
    for key in ours.about:
        yield f"| {key} | {' | '.join(run.about.get(key, '') for run in runs)} |"
    worse = results.worse(ours.results, control.results)
    yield ""
    if worse:
        yield "These tests fail with nftproxy and pass with kube-proxy:\n"
        yield from (f"- `{name}`" for name in worse)
    else:
        yield "No test fails with nftproxy that passes with kube-proxy."
    yield ""


def _trials(trials: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Swaps and faults under load\n"
    yield _LOAD
    heads = ("trial", "new", "lost", "moved", "requests on open ones", "longest connect", "also")
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, text in TRIALS.items():
        if figures := trials.get(name):
            lost = len(figures["failed"]) + len(figures["broken"])
            also = ", ".join(f"{k}: {v}" for k, v in figures.items() if k not in _OUTCOME)
            cells = (
                text,
                figures["opened"],
                lost,
                figures["moved"],
                figures["asked"],
                f"{figures['longest']:.2f} s",
                also,
            )
            yield f"| {' | '.join(str(cell) for cell in cells)} |"
    yield ""


def _measured(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for figures in measured.values() for key in figures))
    yield "## Memory and start\n"
    yield _MEASURED
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, figures in measured.items():
        yield f"| {name} | {' | '.join(str(figures.get(key, '')) for key in columns)} |"
    yield ""


def _left_out() -> Iterator[str]:
    yield "## Left out\n"
    yield "| tests | reason |"
    yield "|---|---|"
    for pattern, reason in LEFT_OUT.items():
        shown = pattern.replace("\\", "").replace("|", ", ")
        yield f"| `{shown}` | {reason} |"
    yield ""


def _each(ours: Run, control: Run) -> Iterator[str]:
    yield "## Test by test\n"
    yield f"| test | {ours.proxy} | {control.proxy} |"
    yield "|---|---|---|"
    for name in sorted({*ours.results, *control.results}):
        cells = (_cell(run.results, name) for run in (ours, control))
        yield f"| `{name.replace('|', '/')}` | {' | '.join(cells)} |"
    yield ""


def _cell(found: Results, name: str) -> str:
    if name not in found:
        return "not run"
    result = found[name]
    if result.verdict in {Verdict.SKIPPED, Verdict.FAILED}:
        reason = result.reason.replace("|", "/").replace("`", "'")
        return f"{result.verdict}: `{reason[:120]}`"
    return f"{result.verdict}, {result.seconds:.0f} s"
