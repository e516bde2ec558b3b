"""What readers cost a real API server: its processor time, and the bytes that it sends.

    sudo KUBEBUILDER_ASSETS=/opt/kubebuilder .venv/bin/python -m tests.tools.serving --services 2000

Readers ask as `kube-proxy` does: lists as streams, as pages, and as compressed pages, in JSON and
in protobuf. Then some watch while slices change, one after the other.
"""

import argparse
import contextlib
import gzip
import json
import os
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from nftproxy.sources.apiserver import ApiConnection, connect
from nftproxy.sources.encoding import JSON, PROTOBUF, Decoders
from nftproxy.sources.resources import ENDPOINT_SLICES, SERVICES, Resource
from tests.support.cluster import Cluster, Document
from tests.support.population import endpoint_slice, service

_PATHS = {
    "Service": "/api/v1/namespaces/default/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
}
_END = b"k8s.io/initial-events-end"


def main() -> None:
    """Fill a server, then read from it in each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=2000, help="with 3 endpoints each [2000]")
    parser.add_argument("--starts", type=int, default=10, help="of each way to read [10]")
    parser.add_argument("--watchers", type=int, default=50, help="of slices [50]")
    parser.add_argument("--changes", type=int, default=200, help="of slices [200]")
    given = parser.parse_args()
    with Cluster() as cluster, cluster.entered():
        connection = connect(str(cluster.kubeconfig()), "")
        for number in range(given.services):
            for document in (service(number), endpoint_slice(number)):
                _write(connection, "POST", document)
        for accept in (JSON, f"{PROTOBUF}, {JSON}"):
            for how, read in (
                ("a stream", _stream),
                ("pages", _pages),
                ("compressed pages", _compressed),
            ):
                with _used(cluster) as used:
                    sizes = [
                        read(connection, resource, accept)
                        for _ in range(given.starts)
                        for resource in (SERVICES, ENDPOINT_SLICES)
                    ]
                print(
                    f"{accept.partition(',')[0]}, {how}: {sum(sizes) / given.starts / 1e6:.2f} MB, "
                    f"{1e3 * used[0] / given.starts:.0f} ms of a processor"
                )
            for watchers in (0, given.watchers):
                _watched(cluster, connection, accept, watchers, given.changes)


def _watched(
    cluster: Cluster, connection: ApiConnection, accept: str, watchers: int, changes: int
) -> None:
    """Print what changes cost the server while so many watch."""
    received = [0] * watchers
    stop = threading.Event()

    def watch(number: int) -> None:
        for piece in _streamed(connection, ENDPOINT_SLICES, accept, seconds=60):
            received[number] += len(piece)
            if stop.is_set():
                return

    for number in range(watchers):
        threading.Thread(target=watch, args=(number,), daemon=True).start()
    before = -1
    while before < sum(received):  # until all have their lists
        before = sum(received)
        time.sleep(5)
    with _used(cluster) as used:
        for number in range(changes):
            _write(connection, "PUT", endpoint_slice(number, turn=1 + number + watchers))
        time.sleep(1)
    stop.set()
    sent = (sum(received) - before) / max(1, watchers) / changes
    print(
        f"{accept.partition(',')[0]}, a change with {watchers} watchers: {sent:.0f} bytes each, "
        f"{1e3 * used[0] / changes:.2f} ms of a processor"
    )


@contextlib.contextmanager
def _used(cluster: Cluster) -> Iterator[list[float]]:
    """Measure the processor time of the server, in seconds."""
    process = cluster._processes["kube-apiserver"]

    def now() -> float:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    taken: list[float] = []
    before = now()
    yield taken
    taken.append(now() - before)


def _write(connection: ApiConnection, method: str, document: Document) -> None:
    meta = {**document["metadata"]}
    for key in ("managedFields", "resourceVersion", "uid"):
        del meta[key]
    spec = {
        key: value
        for key, value in document.get("spec", {}).items()
        if key not in {"clusterIP", "clusterIPs", "ipFamilies"}
    }
    body = {**document, "metadata": meta, **({"spec": spec} if spec else {})}
    path = _PATHS[document["kind"]] + (f"/{meta['name']}" if method == "PUT" else "")
    with connection.request(
        method,
        path,
        body=json.dumps(body).encode(),
        headers={"Content-Type": JSON},
    ) as answer:
        said = answer.body()
    assert answer.status in {200, 201}, said


def _streamed(
    connection: ApiConnection, resource: Resource, accept: str, *, seconds: int
) -> Generator[bytes, None, None]:
    query = {
        **resource.selectors,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(seconds),
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    headers = {"Accept": accept}
    with connection.get(resource.path, query, silence=60, headers=headers) as answer:
        yield from answer.chunks()


def _stream(connection: ApiConnection, resource: Resource, accept: str) -> int:
    size, last = 0, b""
    with contextlib.closing(_streamed(connection, resource, accept, seconds=60)) as pieces:
        for piece in pieces:
            size += len(piece)
            last = last[-len(_END) :] + piece
            if _END in last:
                break
    return size


def _pages(
    connection: ApiConnection, resource: Resource, accept: str, encoding: str = "identity"
) -> int:
    size, query = 0, {**resource.selectors, "limit": "500"}
    headers = {"Accept": accept, "Accept-Encoding": encoding}
    while True:
        with connection.get(resource.path, query, silence=60, headers=headers) as answer:
            raw = answer._response.read(decode_content=False)
            packed = answer._response.headers.get("Content-Encoding") == "gzip"
        size += len(raw)
        decoder = Decoders(resource.kind).of(answer.content_type)
        query["continue"] = decoder.page(gzip.decompress(raw) if packed else raw).token
        if not query["continue"]:
            return size


def _compressed(connection: ApiConnection, resource: Resource, accept: str) -> int:
    return _pages(connection, resource, accept, "gzip")


if __name__ == "__main__":
    main()
