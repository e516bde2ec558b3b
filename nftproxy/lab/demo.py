"""`nftproxy lab demo`.

A walk through the behaviour of a service proxy, with real processes and real packets.

Builds a lab, runs `nftproxy run` on both nodes with a copy of the examples, connects, and compares
the answers with those of `walk`. However it ends, nothing is left.
"""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import yaml

from nftproxy import kubeyaml, shipped
from nftproxy.address import bracketed
from nftproxy.errors import NftproxyError
from nftproxy.kernel import snapshot
from nftproxy.kernel.reader import Reader
from nftproxy.lab.client import Answer, Outcome, Refused, Silent
from nftproxy.lab.lab import Lab
from nftproxy.lab.plan import CLUSTER_CIDRS, LabNode, LabPlace

START = 20.0  # seconds until the table must exist
STEP = 5.0  # seconds until the table must have a change
OWN = "its own"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Connections of one kind and their expected outcome.

    All of `by` must answer, or one of them with `one`. `also` are other ports, asked in turn.
    """

    origin: str
    address: str
    port: int
    by: Collection[str] | type[Refused] | type[Silent]
    source: str = OWN  # the source that servers see: OWN, or the node that masquerades
    protocol: str = "TCP"
    one: bool = False
    times: int = 60  # three endpoints: a round misses one of them once in 10^10 times
    also: tuple[tuple[int, str], ...] = ()
    drops: str = ""  # the node whose counter must prove that silence is a drop

    def expected(self) -> str:
        """Describe the expected outcome."""
        if isinstance(self.by, type):
            return _OUTCOMES[self.by]
        return (
            f"{'one' if self.one else 'all'} of {', '.join(sorted(self.by))}, seeing {self.source}"
        )


@dataclass(frozen=True, slots=True)
class DemoStep:
    """A step: its title, its reason, and a change before the connections."""

    title: str
    why: str
    checks: tuple[Expectation, ...]
    before: Callable[["Demo"], str] | None = None  # returns a line about it


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The result of a check: from, to, answered by, source seen; and whether that is right."""

    row: tuple[str, str, str, str]
    right: bool


def walk(demo: "Demo") -> Iterator[DemoStep]:
    """Yield the steps; the addresses are those of the examples."""
    node1, node2 = demo.address("node1"), demo.address("node2")
    web = {"pod1-1", "pod1-2", "pod2-1"}
    yield DemoStep(
        "ClusterIP: clusterip.yaml",
        "Each new connection goes to one of the ready endpoints, all equally likely; they see the "
        "pod's own address.",
        (
            Expectation("pod2-3", "10.96.0.10", 80, web),
            Expectation("pod2-3", "fd00:10:96::10", 80, web),
            Expectation("pod2-3", "10.96.0.10", 514, web, protocol="UDP"),
        ),
    )
    yield DemoStep(
        "NodePort: nodeport.yaml",
        "Every node accepts the port, wherever the endpoints are, and hides the client so that "
        "answers return through it.",
        (
            Expectation("client", node1, 30080, {"pod1-1", "pod2-1"}, "node1"),
            Expectation("client", node2, 30080, {"pod1-1", "pod2-1"}, "node2"),
        ),
    )
    yield DemoStep(
        "LoadBalancer, externalTrafficPolicy Cluster: loadbalancer-cluster.yaml",
        "As with a NodePort; but pods are not in loadBalancerSourceRanges, so their packets are "
        "dropped.",
        (
            Expectation("client", "203.0.113.30", 443, {"pod1-2", "pod2-2"}, "node1"),
            Expectation("pod2-3", "203.0.113.30", 443, Silent, times=2),
        ),
    )
    yield DemoStep(
        "LoadBalancer, externalTrafficPolicy Local: loadbalancer-local.yaml",
        "Outside clients reach only endpoints of the node that they use, which see the client's "
        "address; pods reach all endpoints.",
        (
            Expectation("client", "203.0.113.40", 25, {"pod1-1", "pod1-2"}),
            Expectation("pod2-3", "203.0.113.40", 25, {"pod1-1", "pod1-2"}),
        ),
    )
    yield DemoStep(
        "The same through node2, which has no endpoint",
        "A node without an endpoint drops the packets, and counts them; load balancers ask the "
        "health check port and avoid it.",
        (Expectation("client", "203.0.113.40", 25, Silent, times=2, drops="node2"),),
        before=lambda demo: demo.lead_to("203.0.113.40/32", "node2"),
    )
    yield DemoStep(
        "Session affinity ClientIP: affinity.yaml",
        "A client that returns within 600 seconds gets the same endpoint again; another client may "
        "have another one.",
        (
            Expectation("pod2-3", "10.96.0.50", 80, {"pod1-1", "pod2-1", "pod2-2"}, one=True),
            Expectation("pod1-3", "10.96.0.50", 80, {"pod1-1", "pod2-1", "pod2-2"}, one=True),
        ),
    )
    yield DemoStep(
        "An endpoint is removed: pod1-2, from clusterip.yaml",
        "New connections use the remaining endpoints; none fails while the table changes.",
        (Expectation("pod2-3", "10.96.0.10", 80, web - {"pod1-2"}),),
        before=Demo.scale_down,
    )
    yield DemoStep(
        "No endpoints: no-endpoints.yaml, and nodeport.yaml after the removal of all endpoints",
        "Clients are refused at once, without a timeout.",
        (
            Expectation("pod2-3", "10.96.0.60", 80, Refused, times=2),
            Expectation("client", node1, 30080, Refused, times=2),
        ),
        before=Demo.empty,
    )
    meeting = {"pod1-2", "pod2-1", "pod2-2"}
    both = ((5004, "UDP"),)
    yield DemoStep(
        "Session affinity for all ports of a Service: affinity-service.yaml",
        "With the annotation nftproxy.io/affinity-scope: service, a client has one endpoint for "
        "TCP and UDP.",
        (
            Expectation("pod2-3", "10.96.0.70", 443, meeting, one=True, also=both),
            Expectation("pod1-3", "10.96.0.70", 443, meeting, one=True, also=both),
        ),
    )
    yield DemoStep(
        "A scheduler and weights: schedulers.yaml",
        "With maglev, a client's address decides, so both pods always get the endpoint they had; "
        "an endpoint of weight 50 gets half as much as another.",
        (
            Expectation("pod2-3", "10.96.0.80", 80, {"pod1-1", "pod2-1", "pod2-2"}, one=True),
            Expectation("pod1-3", "10.96.0.80", 80, {"pod1-1", "pod2-1", "pod2-2"}, one=True),
            Expectation("pod2-3", "10.96.0.81", 80, {"pod1-1", "pod2-1"}),
        ),
    )


class Demo:
    """A lab with a proxy on each node, removed at the end of its `with` block."""

    def __init__(self, name: str) -> None:
        self.lab = Lab(name, nodes=2, pods=3)
        self.failures = 0
        self.folder = Path()
        self._proxies: dict[str, subprocess.Popen[Any]] = {}
        self._owners = {
            a: place.name for place in self.lab.plan.places for a in place.addresses.values()
        }
        self._owners |= {a: node.name for node in self.lab.nodes for a in node.gateways.values()}
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="nftproxy-demo-")))
            for example in shipped.folder("examples").glob("*.yaml"):
                shutil.copy(example, self.folder)
            stack.enter_context(self.lab)
            stack.callback(self._stop)
            self.lead_to("203.0.113.0/24", "node1")
            for node in self.lab.nodes:
                self._start(node)
            for node in self.lab.nodes:
                self._wait(
                    node,
                    lambda seen: len(seen.services) >= 9 and all(seen.nodeport_addresses.values()),
                    START,
                )
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _stop(self) -> None:
        """End the proxies. The rest must not be interrupted."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in self._proxies.values():
            process.terminate()
        for process in self._proxies.values():
            try:
                process.wait(STEP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def address(self, place: str) -> str:
        """Return the IPv4 address of a node, pod or client."""
        return next(iter(self.lab.place(place).addresses.values()))

    def lead_to(self, cidr: str, node: str) -> str:
        """Route addresses from the outside client to a node, as a load balancer would."""
        self.lab.route("client", cidr, node)
        return f"ip route replace {cidr} via {self.address(node)}, on the client"

    def scale_down(self) -> str:
        """Remove an endpoint while connections are made without pause."""
        gone = self.address("pod1-2")
        outcomes: Counter[type[Outcome]] = Counter()
        with self._connecting("pod2-3", "10.96.0.10", 80, outcomes):
            seconds = self._edit(
                "clusterip.yaml",
                lambda endpoint: endpoint["addresses"] != [gone],
                lambda seen: not any(e.address == gone for e in _endpoints(seen, "default/web")),
            )
        failed = outcomes.total() - outcomes[Answer]
        self.failures += bool(failed)
        return (
            f"both tables were changed {seconds * 1000:.0f} ms after the file; "
            f"{outcomes.total()} connections meanwhile, {failed} failed"
        )

    def patch(self, namespace: str, service: str, change: dict[str, Any]) -> None:
        """Change the spec of a Service in the manifests, as kubectl patch would."""
        for path in self.folder.glob("*.yaml"):
            documents = kubeyaml.documents(path.read_text())
            for document in documents:
                meta = document["metadata"]
                whose = meta.get("namespace", "default"), meta.get("name")
                if document["kind"] == "Service" and whose == (namespace, service):
                    document["spec"] |= change
                    draft = self.folder / f".{path.name}"
                    draft.write_text(yaml.safe_dump_all(documents))
                    draft.replace(path)
                    return

    def empty(self) -> str:
        """Remove all endpoints of a service."""
        seconds = self._edit(
            "nodeport.yaml",
            lambda _: False,
            lambda seen: not list(_endpoints(seen, "default/shop")),
        )
        return f"both tables were changed {seconds * 1000:.0f} ms after the file"

    def check(self, check: Expectation) -> DemoResult:
        """Connect, and compare with the expected outcome."""
        dropped = self._dropped(check.drops) if check.drops else 0
        timeout = 0.3 if check.by is Silent else 1.0
        ports = [(check.port, check.protocol), *check.also]
        outcomes = [
            self.lab.connect(check.origin, check.address, *ports[n % len(ports)], timeout=timeout)
            for n in range(check.times)
        ]
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        shares = Counter(answer.name for answer in answers)
        others = Counter(type(outcome) for outcome in outcomes if not isinstance(outcome, Answer))
        sources: dict[str, set[str]] = {}
        for answer in answers:
            whose = (
                OWN
                if answer.source == answer.client
                else self._owners.get(answer.source, "nobody's")
            )
            sources.setdefault(whose, set()).add(answer.source)
        host = bracketed(check.address)
        answered = [f"{name} {share / len(outcomes):.0%}" for name, share in sorted(shares.items())]
        answered += [
            f"{_OUTCOMES.get(kind, kind.__name__)} {number / len(outcomes):.0%}"
            for kind, number in others.items()
        ]
        row = (
            check.origin,
            f"{host}:{', '.join(f'{port}/{protocol.lower()}' for port, protocol in ports)}",
            ", ".join(answered),
            ", ".join(
                f"{', '.join(sorted(addresses))} ({whose})" for whose, addresses in sources.items()
            )
            or "-",
        )
        if isinstance(check.by, type):
            proved = not check.drops or self._dropped(check.drops) >= dropped + check.times
            return DemoResult(row, set(others) == {check.by} and not answers and proved)
        whom = set(shares) <= set(check.by) and len(shares) == (1 if check.one else len(check.by))
        return DemoResult(row, not others and whom and set(sources) == {check.source})

    def _dropped(self, node: str) -> int:
        """Return how many packets a node's table has refused."""
        seen = self._look(self.lab.place(node))
        frontends = [shown for port in seen.services for shown in port.frontends] if seen else []
        return sum(shown.refused.packets for shown in frontends if shown.refused)

    def _look(self, node: LabPlace) -> snapshot.Snapshot | None:
        with self.lab.enter(node):
            reader = Reader()
        try:
            return snapshot.take_snapshot(reader)
        finally:
            reader.close()

    def _start(self, node: LabNode) -> None:
        argv = [
            sys.executable,
            "-m",
            "nftproxy",
            "run",
            "--manifests",
            str(self.folder),
            "--node-name",
            node.name,
        ]
        argv += ["--cluster-cidr", ",".join(CLUSTER_CIDRS.values())]
        # Both belong to the machine, which the lab does not change
        argv += [
            "--conntrack-max-per-core",
            "0",
            "--oom-score-adj",
            "0",
        ]
        with self._log(node).open("wb") as log:
            self._proxies[node.name] = self.lab.popen(
                node, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _log(self, node: LabNode) -> Path:
        return self.folder / f"{node.name}.log"

    def _wait(
        self, node: LabNode, true: Callable[[snapshot.Snapshot], bool], seconds: float
    ) -> None:
        """Wait for a condition of a node's table."""
        deadline = time.monotonic() + seconds
        while (seen := self._look(node)) is None or not true(seen):
            if time.monotonic() > deadline or self._proxies[node.name].poll() is not None:
                lines = self._log(node).read_text().strip().splitlines()
                raise NftproxyError(
                    f"the proxy of {node.name} does not serve; its last lines: "
                    f"{' | '.join(lines[-3:])}"
                )
            time.sleep(0.002)

    def _edit(
        self, name: str, keep: Callable[[Any], bool], true: Callable[[snapshot.Snapshot], bool]
    ) -> float:
        """Leave only some endpoints in a file, and return the seconds until both tables agree."""
        documents = kubeyaml.documents((self.folder / name).read_text())
        for document in documents:
            if document["kind"] == "EndpointSlice":
                document["endpoints"] = [
                    endpoint for endpoint in document["endpoints"] if keep(endpoint)
                ]
        draft = self.folder / f".{name}"
        draft.write_text(yaml.safe_dump_all(documents))
        started = time.monotonic()
        draft.replace(self.folder / name)
        for node in self.lab.nodes:
            self._wait(node, true, STEP)
        return time.monotonic() - started

    @contextmanager
    def _connecting(
        self, origin: str, address: str, port: int, outcomes: Counter[type[Outcome]]
    ) -> Iterator[None]:
        """Make connections without pause in the meantime."""
        stop = threading.Event()

        def connect() -> None:
            while not stop.is_set():
                outcomes[type(self.lab.connect(origin, address, port))] += 1

        thread = threading.Thread(target=connect)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


_OUTCOMES: dict[type, str] = {Refused: "refused", Silent: "no answer"}


def _endpoints(seen: snapshot.Snapshot, service: str) -> Iterator[snapshot.Listed]:
    for port in seen.services:
        if port.is_called(service):
            for frontend in port.frontends:
                yield from frontend.cluster
