"""The API source against a real API server and etcd.

Everything else we know of them is recordings and documentation.
"""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.model import Node
from nftproxy.sources import kubesource, wire
from nftproxy.sources.apiserver import ApiAnswer, connect
from nftproxy.sources.encoding import JSON, PROTOBUF, Decoder, Decoders
from nftproxy.sources.kubesource import KubeSource
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICE_CIDRS, SERVICES, own_node
from nftproxy.store import Store
from tests.support.cluster import Cluster, Document, needs_cluster
from tests.support.mirror import contents, impatient, logged

pytestmark = needs_cluster
TIMEOUT = 40.0

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "a"}},
    "spec": {"podCIDRs": ["10.244.1.0/24"]},
}


def service(name: str, **spec: Any) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def endpoint_slice(name: str, of: str, *addresses: str) -> Document:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv6" if ":" in addresses[0] else "IPv4",
        "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in addresses],
        "ports": [{"port": 8080}],
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        cluster.apply(NODE)
        yield cluster


class Counter:
    def __init__(self, condition: threading.Condition) -> None:
        self.codes: list[str] = []
        self.restarted: set[str] = set()
        self._condition = condition

    def requested(self, *, code: str, method: str, host: str, seconds: float) -> None:  # noqa: ARG002
        with self._condition:
            self.codes.append(code)
            self._condition.notify_all()

    def watch_restarted(self, resource: str) -> None:
        with self._condition:
            self.restarted.add(resource)
            self._condition.notify_all()


class Running:
    """A source at work as system:kube-proxy, with the permissions of system:node-proxier alone
    (contract 10.2).
    """

    def __init__(self, cluster: Cluster) -> None:
        self.store = Store(list(Family))
        self.condition = threading.Condition()
        self.counter = Counter(self.condition)
        with cluster.entered():
            connection = connect(
                str(cluster.kubeconfig("system:kube-proxy")),
                "",
                accept=f"{PROTOBUF}, {JSON}",
                observer=self.counter,
            )
            self.source = KubeSource(
                connection, self.store, "node1", changed=self._notify, node_changed=self._notify
            )
            self.source.start()

    def names(self) -> set[str]:
        return {key.name for key in contents(self.store)}

    def until(self, what: Callable[[], object]) -> None:
        with self.condition:
            assert self.condition.wait_for(what, TIMEOUT), (
                f"waited in vain; known are {sorted(self.names())}"
            )

    def _notify(self, _: Node | None = None) -> None:
        with self.condition:
            self.condition.notify_all()


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Running]:
    running = Running(cluster)
    try:
        running.until(lambda: running.store.complete and running.store._cidrs)
        yield running
        assert running.names() == fresh_start(cluster)
    finally:
        running.source.stop()
    assert [each.name for each in threading.enumerate() if each.name.startswith("watch-")] == []
    # The server brings back the Service of its own
    cluster.kubectl("delete", "services", "-l", "!provider")
    cluster.kubectl("delete", "endpointslices", "--all")


def fresh_start(cluster: Cluster) -> set[str]:
    running = Running(cluster)
    try:
        running.until(lambda: running.store.complete and running.store._cidrs)
        return running.names()
    finally:
        running.source.stop()


def first_ones(answer: ApiAnswer, decoder: Decoder) -> list[bytes]:
    """The messages about what there is, and the one that says that these were all."""
    messages: list[bytes] = []
    rest = b""
    for piece in answer.chunks():
        found, rest = decoder.split(rest + piece)
        messages += found
        if messages and b"k8s.io/initial-events-end" in messages[-1]:
            break
    assert rest == b""
    return messages


def test_both_encodings_tell_the_same(cluster: Cluster, running: Running) -> None:
    """In pages, compressed or not, and in streams; protobuf takes fewer bytes."""
    ports = [{"name": f"p{each}", "port": each, "nodePort": 30000 + each} for each in range(80, 99)]
    cluster.apply(
        *(service(f"many{each}", ports=[{"port": 80}]) for each in range(250)),
        service("web", type="NodePort", ports=ports, externalIPs=["192.0.2.1"]),
        service(
            "balanced",
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
            loadBalancerSourceRanges=["10.0.0.0/8"],
        ),
        endpoint_slice("web-4", "web", "192.0.2.1", "192.0.2.2"),
    )
    running.until(lambda: {"web", "balanced", "web-4"} <= running.names())
    streaming = {
        "watch": "true",
        "timeoutSeconds": "60",
        "allowWatchBookmarks": "true",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    with (
        cluster.entered(),
        contextlib.closing(connect(str(cluster.kubeconfig()), "")) as connection,
    ):
        for each in (SERVICES, ENDPOINT_SLICES, SERVICE_CIDRS, own_node("node1")):
            listed, streamed, compressed, lengths = [], [], [], []
            for accept in (JSON, f"{PROTOBUF}, {JSON}"):
                for headers in ({}, {"Accept-Encoding": "gzip"}):
                    headers["Accept"] = accept
                    with connection.get(each.path, {}, silence=10, headers=headers) as answer:
                        assert accept.startswith(answer.content_type)
                        compressed.append(answer._response.headers.get("Content-Encoding"))
                        body, decoder = answer.body(), Decoders(each.kind).of(answer.content_type)
                        listed.append(decoder.page(body))
                        lengths.append(len(body))
                with connection.get(
                    each.path, streaming, silence=10, headers={"Accept": accept}
                ) as answer:
                    decoder = Decoders(each.kind).of(answer.content_type)
                    streamed.append([decoder.event(one) for one in first_ones(answer, decoder)])
            assert all(page == listed[0] for page in listed)
            assert all(len(events) > 1 for events in streamed)
            assert sorted(map(str, streamed[0][:-1])) == sorted(map(str, streamed[1][:-1]))
            assert lengths[2] < lengths[0]
            big = "gzip" if each is SERVICES else None
            assert compressed == [None, big, None, big]


@pytest.mark.contract("10.2.1", "1.1.4")
def test_created_changed_deleted(cluster: Cluster, running: Running) -> None:
    node = running.source.wait_for_node(TIMEOUT)
    assert node
    assert (node.zone, node.spec.pod_cidrs) == ("a", ("10.244.1.0/24",))
    (cidrs,) = (each.spec.cidrs for each in running.store._cidrs.values())
    assert cidrs == ("10.96.0.0/16", "fd00:10:96::/112")

    cluster.apply(
        service("web", ipFamilyPolicy="RequireDualStack"),
        service("headless", clusterIP="None"),
        endpoint_slice("web-4", "web", "192.0.2.1", "192.0.2.2"),
        endpoint_slice("web-6", "web", "2001:db8::1"),
    )
    running.until(lambda: {"web", "web-4", "web-6"} <= running.names())
    assert "headless" not in running.names()
    cluster.apply(endpoint_slice("web-4", "web", "192.0.2.3"))
    running.until(lambda: "192.0.2.3" in str(contents(running.store)))
    cluster.kubectl("delete", "service", "web")
    cluster.kubectl("delete", "endpointslice", "web-6")
    running.until(lambda: not {"web", "web-6"} & running.names())


@pytest.mark.contract("1.1.5", "1.1.7")
def test_a_label_hides_a_service(cluster: Cluster, running: Running) -> None:
    cluster.apply(service("hidden"))
    running.until(lambda: "hidden" in running.names())
    cluster.kubectl("label", "service", "hidden", "service.kubernetes.io/service-proxy-name=")
    running.until(lambda: "hidden" not in running.names())
    cluster.kubectl("label", "service", "hidden", "service.kubernetes.io/service-proxy-name-")
    running.until(lambda: "hidden" in running.names())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["in_good_order", "killed"])
def test_the_server_restarts(cluster: Cluster, running: Running, how: signal.Signals) -> None:
    cluster.apply(service("stays"), service("goes"))
    running.until(lambda: {"stays", "goes"} <= running.names())
    cluster.stop_apiserver(how)
    assert {"stays", "goes"} <= running.names()
    cluster.start_apiserver()
    cluster.kubectl("delete", "service", "goes")
    cluster.apply(service("comes"))
    running.until(lambda: "comes" in running.names() and "goes" not in running.names())


def test_the_server_freezes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, it acknowledges what the kernel asks: only the silence tells, of every stream.

    Then it goes on, with all that was missed.
    """
    for name in ("SERVICES", "ENDPOINT_SLICES", "SERVICE_CIDRS"):
        monkeypatch.setattr(kubesource, name, impatient(getattr(kubesource, name), 3))
    monkeypatch.setattr(kubesource, "own_node", lambda name: impatient(own_node(name), 3))
    running = Running(cluster)
    try:
        cluster.apply(service("before"))
        running.until(lambda: "before" in running.names())
        with logged(condition=running.condition) as lines:
            cluster.pause_apiserver()
            running.counter.restarted.clear()
            running.until(
                lambda: (
                    {"services", "endpointslices", "nodes", "servicecidrs"}
                    <= running.counter.restarted
                )
            )
            running.until(
                lambda: any("services: the API server is silent" in line for line in lines)
            )
            assert "before" in running.names()
            cluster.resume_apiserver()
        cluster.apply(service("after"))
        running.until(lambda: "after" in running.names())
    finally:
        running.source.stop()
        cluster.kubectl("delete", "service", "before", "after")


@pytest.mark.contract("10.2.1")
def test_a_permission_is_revoked(cluster: Cluster, running: Running) -> None:
    cluster.apply(service("before"))
    running.until(lambda: "before" in running.names())
    binding = json.loads(
        cluster.kubectl("get", "clusterrolebinding", "system:node-proxier", "-o", "json")
    )
    binding["metadata"] = {"name": "system:node-proxier"}
    cluster.kubectl("delete", "clusterrolebinding", "system:node-proxier")
    while cluster.kubectl(
        "auth", "can-i", "list", "services", "--as", "system:kube-proxy", check=False
    ).startswith("yes"):
        pass  # the server needs a moment to know it
    standing = running.source._reflectors[1]._answer
    assert standing
    standing.abort()  # the server lets watches go on that it would not accept any more
    running.until(lambda: "403" in running.counter.codes)
    cluster.apply(service("meanwhile"))
    assert "before" in running.names()
    cluster.kubectl("create", "-f", "-", documents=binding)
    running.until(lambda: "meanwhile" in running.names())


def test_the_server_offers_streaming_lists_and_bookmarks(
    cluster: Cluster, running: Running
) -> None:
    """What the short watches of quiet resources rest on.

    If there is news, the server sends a bookmark before it ends a watch.
    """
    nodes, services, *_ = running.source._reflectors
    assert services._state.streaming
    with cluster.entered():
        connection = connect(str(cluster.kubeconfig()), "")
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "5",
            "resourceVersion": str(nodes._state.version),
        }
        with connection.get(
            nodes.resource.path, {**nodes.resource.selectors, **query}, silence=10
        ) as answer:
            cluster.apply(NODE | {"metadata": {"name": "another"}})
            received = [
                wire.JsonDecoder(Node).event(line)
                for line in b"".join(answer.chunks()).splitlines()
            ]
        connection.close()
    assert {type(each) for each in received} == {wire.Bookmark}
