"""A stand-in for the API server, at the HTTP edge.

Plain sockets, real HTTP/1.1, state like etcd's, and bad manners on request.

It lists (in pages, too), watches and streams lists as a real one does, in JSON, or in protobuf for
clients that ask for it. A *hazard* is a function
that answers one request instead; it is put in a queue per resource, and is used up by the first
request that it is meant for.
"""

import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.paths import RECORDINGS

PATHS = {
    "/api/v1/services": "services",
    "/apis/discovery.k8s.io/v1/endpointslices": "endpointslices",
    "/api/v1/nodes": "nodes",
    "/apis/networking.k8s.io/v1/servicecidrs": "servicecidrs",
}
KINDS = {
    "services": "Service",
    "endpointslices": "EndpointSlice",
    "nodes": "Node",
    "servicecidrs": "ServiceCIDR",
}
JSON = "application/json"
PROTOBUF = "application/vnd.kubernetes.protobuf"
COMPRESSED_FROM = 128 * 1024
TIMEOUT = 10.0

Document = dict[str, Any]


@dataclass
class Request:
    resource: str
    query: dict[str, str]
    token: str
    accept: str = JSON
    gzip: bool = False

    @property
    def verb(self) -> str:
        return "watch" if "watch" in self.query else "list"

    @property
    def streaming(self) -> bool:
        return "sendInitialEvents" in self.query


@dataclass
class Collection:
    """The objects of a resource, and what happened to them since the server cares to remember."""

    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    history: list[tuple[int, str, Document]] = field(default_factory=list)
    forgotten: int = 0  # changes up to this version are not in the history any more
    ended: int = 0  # counts the commands to end all watches
    ended_at: int = 0  # the version at the last of them


@dataclass
class Exchange:
    """One request and the connection it came on."""

    server: "FakeApiServer"
    request: Request
    connection: socket.socket
    ended: int  # commands to end all watches before this one

    @property
    def collection(self) -> Collection:
        return self.server.collections[self.request.resource]

    @property
    def kind(self) -> str:
        return KINDS[self.request.resource]

    @property
    def protobuf(self) -> bool:
        """Whether the answer is in protobuf."""
        return self.server.protobuf and self.request.accept.startswith(PROTOBUF)

    def answer_with(self, status: int, kind: str, document: Document, **headers: str) -> None:
        """Answer with an object or a list, encoded and compressed as a real server does it."""
        headers["Content_Type"] = PROTOBUF if self.protobuf else JSON
        body = self.encoded(kind, document)
        if self.request.gzip and len(body) > COMPRESSED_FROM:
            headers["Content_Encoding"] = "gzip"
            body = gzip.compress(body, 1)
        self.answer(status, body, **headers)

    def encoded(self, kind: str, document: Document) -> bytes:
        if not self.protobuf:
            return _compact({"kind": kind, **document})
        from tests.support import protobuf

        return protobuf.enveloped(kind, document)

    def event(self, type_: str, document: Document) -> bytes:
        if not self.protobuf:
            return _compact({"type": type_, "object": document}) + b"\n"
        from tests.support import protobuf

        return protobuf.event(type_, "Status" if type_ == "ERROR" else self.kind, document)

    def initial_events_end(self, version: int) -> bytes:
        annotations = {"k8s.io/initial-events-end": "true"}
        meta = {"resourceVersion": str(version), "annotations": annotations}
        return self.event("BOOKMARK", {"kind": self.kind, "metadata": meta})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        lines = [
            f"HTTP/1.1 {status} x",
            f"Content-Length: {len(body)}",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        self.server.sent += len(body)
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def begin(self) -> None:
        kind = f"{PROTOBUF};stream=watch" if self.protobuf else JSON
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.connection.sendall(head.encode())

    def chunk(self, content: bytes) -> None:
        self.server.sent += len(content)
        self.connection.sendall(b"%x\r\n%s\r\n" % (len(content), content))

    def end(self) -> None:
        self.connection.sendall(b"0\r\n\r\n")

    def cut(self) -> None:
        """Break the connection."""
        self.connection.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Say nothing more until the client or the server goes."""
        self.connection.recv(1)
        self.cut()

    def begin_and_hold(self) -> None:
        self.begin()
        self.hold()

    def events(self, since: int | None = None) -> Iterator[bytes]:
        """Yield what happens after a version (that of the request, unless told otherwise) until
        watches are ended.
        """
        collection = self.collection
        at = int(self.request.query["resourceVersion"]) if since is None else since
        while True:
            with self.server.condition:
                ended = collection.ended != self.ended
                new = [
                    each
                    for each in collection.history
                    if each[0] > at and not (ended and each[0] > collection.ended_at)
                ]
                if self.server.stopped:
                    raise ConnectionAbortedError
                if not new and ended:
                    return
                if not new:
                    self.server.condition.wait(TIMEOUT)
            for version, type_, document in new:
                at = version  # where the next round begins
                yield self.event(type_, document)


Hazard = Callable[[Exchange], None]


class FakeApiServer:
    """Listens on a loopback port from `with` on.

    `condition` is notified of requests and changes.
    """

    def __init__(
        self,
        *,
        streams_lists: bool = True,
        protobuf: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.condition = threading.Condition()
        self.collections = {name: Collection() for name in PATHS.values()}
        self.requests: list[Request] = []
        self.written: list[Document] = []
        self.version = 100
        self.sent = 0  # bytes, without the heads of answers
        self.streams_lists = streams_lists
        self.protobuf = protobuf
        self.token: str | None = None  # what Authorization has to be, if anything
        self.stopped = False
        self._hazards: list[tuple[str, str, Hazard, list[int]]] = []
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._tls = tls
        self.port = 0

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    # State

    def load(self, resource: str, recording: str) -> None:
        """Take over a recorded list."""
        found = json.loads((RECORDINGS / recording).read_bytes())
        with self.condition:
            self.version = max(self.version, int(found["metadata"]["resourceVersion"]))
            for each in found["items"]:
                self.collections[resource].objects[_key(each)] = each
            self.collections[resource].forgotten = self.version

    def begin_with(self, resource: str, *documents: Document) -> None:
        """Have objects from the beginning: nothing happens, and no version is used up."""
        self.collections[resource].objects.update(
            {_key(document): document for document in documents}
        )

    def replay(self, resource: str, recording: str) -> None:
        """Let happen what a recorded watch told."""
        for line in (RECORDINGS / recording).read_bytes().splitlines():
            event = json.loads(line)
            self._happen(
                resource,
                event["type"],
                event["object"],
                int(event["object"]["metadata"]["resourceVersion"]),
            )

    def put(self, resource: str, document: Document) -> None:
        """Create or change an object."""
        known = _key(document) in self.collections[resource].objects
        self._happen(resource, "MODIFIED" if known else "ADDED", document, self.version + 1)

    def delete(self, resource: str, name: str, namespace: str = "default") -> None:
        self._happen(
            resource,
            "DELETED",
            self.collections[resource].objects[namespace, name],
            self.version + 1,
        )

    def bookmark(self, resource: str) -> None:
        """Send a bookmark, as often as the world moves on without anything happening to the
        resource.
        """
        self._happen(resource, "BOOKMARK", {"metadata": {}}, self.version + 1)

    def forget(self, resource: str) -> None:
        """Lose the history for those who ask from now on, as etcd does when it compacts."""
        with self.condition:
            self.collections[resource].forgotten = self.version

    def end_watches(self, resource: str) -> None:
        """End all watches in good order."""
        with self.condition:
            self.collections[resource].ended += 1
            self.collections[resource].ended_at = self.version
            self.condition.notify_all()

    # Bad manners

    def expect(self, resource: str, hazard: Hazard, *, verb: str = "", times: int = 1) -> None:
        """Have the next requests of a verb (`list`, `watch`, "" for both) answered by `hazard`."""
        with self.condition:
            self._hazards.append((resource, verb, hazard, [times]))

    def behave(self) -> None:
        """Forget the hazards that nobody met."""
        with self.condition:
            self._hazards.clear()

    def asked(self, resource: str, verb: str = "") -> list[Request]:
        """Return the requests so far."""
        return [
            each for each in self.requests if each.resource == resource and verb in {"", each.verb}
        ]

    def listen(self) -> None:
        """Accept connections, at the same port as before if there was one."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self.stopped = False
        self._start(self._accept, self._listener)

    def shut(self) -> None:
        """Go away as a machine that reboots does; the state stays."""
        assert self._listener
        with self.condition:
            self.stopped = True
            open_ones = [self._listener, *self._connections]
        for each in open_ones:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        with self.condition:
            self.condition.notify_all()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._threads.clear()

    # Service

    def _start(self, target: Callable[[socket.socket], None], on: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(on,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self.condition:
                if self.stopped:
                    connection.close()
                    return
                self._connections.add(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError, ValueError))
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            stack.enter_context(connection)
            reader = stack.enter_context(connection.makefile("rb"))
            while line := reader.readline():
                headers = {}
                while (header := reader.readline().strip().decode()) != "":
                    name, _, value = header.partition(": ")
                    headers[name.lower()] = value
                url = urlsplit(line.split()[1].decode())
                if url.path not in PATHS:  # an event is written
                    self.written.append(
                        json.loads(reader.read(int(headers.get("content-length", 0))) or b"{}")
                    )
                    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                request = Request(
                    PATHS[url.path],
                    dict(parse_qsl(url.query)),
                    headers.get("authorization", ""),
                    headers.get("accept", JSON),
                    "gzip" in headers.get("accept-encoding", ""),
                )
                self._handle(request, connection)
        self._connections.discard(connection)

    def _handle(self, request: Request, connection: socket.socket) -> None:
        with self.condition:
            exchange = Exchange(self, request, connection, self.collections[request.resource].ended)
            self.requests.append(request)
            self.condition.notify_all()
            hazard = self._hazard(request)
        if self.token is not None and request.token != f"Bearer {self.token}":
            hazard = recorded("list-unauthorized.http")
        elif request.streaming and not self.streams_lists:
            hazard = hazard or recorded("watch-invalid.http")
        if hazard:
            hazard(exchange)
        elif request.verb == "list":
            list_objects(exchange)
        elif request.streaming:
            stream_list(exchange)
        else:
            watch(exchange)

    def _hazard(self, request: Request) -> Hazard | None:
        for each in self._hazards:
            resource, verb, hazard, left = each
            if resource == request.resource and verb in {"", request.verb}:
                left[0] -= 1
                if not left[0]:
                    self._hazards.remove(each)
                return hazard
        return None

    def _happen(self, resource: str, kind: str, document: Document, version: int) -> None:
        with self.condition:
            collection = self.collections[resource]
            self.version = max(self.version, version)
            document = {
                **document,
                "metadata": {**document["metadata"], "resourceVersion": str(version)},
            }
            if kind == "DELETED":
                del collection.objects[_key(document)]
            elif kind != "BOOKMARK":
                collection.objects[_key(document)] = document
            collection.history.append((version, kind, document))
            self.condition.notify_all()


def list_objects(exchange: Exchange) -> None:
    """Answer a list; the token of the next page is the number of objects that were listed and the
    version of the whole.
    """
    collection, query, server = exchange.collection, exchange.request.query, exchange.server
    with server.condition:
        begin, _, version = query.get("continue", f"0/{server.version}").partition("/")
        documents = [document for _, document in sorted(collection.objects.items())]
    if int(version) < collection.forgotten:
        refused(410, reason="Expired")(exchange)
        return
    end = int(begin) + int(query["limit"])
    meta = {
        "resourceVersion": version,
        **({"continue": f"{end}/{version}"} if end < len(documents) else {}),
    }
    items = documents[int(begin) : end]
    exchange.answer_with(200, f"{exchange.kind}List", {"metadata": meta, "items": items})


def stream_list(exchange: Exchange) -> None:
    """Answer a streaming list, then go on as a watch."""
    server = exchange.server
    with server.condition:
        version = server.version
        documents = list(exchange.collection.objects.values())
    exchange.begin()
    for document in documents:
        exchange.chunk(exchange.event("ADDED", document))
    exchange.chunk(exchange.initial_events_end(version))
    for line in exchange.events(version):
        exchange.chunk(line)
    exchange.end()


def watch(exchange: Exchange) -> None:
    """Answer a watch."""
    if int(exchange.request.query["resourceVersion"]) < exchange.collection.forgotten:
        refused(410, reason="Expired", message="too old resource version")(exchange)
        return
    exchange.begin()
    for line in exchange.events():
        exchange.chunk(line)
    exchange.end()


def refused(code: int, *, reason: str = "", message: str = "", **headers: str) -> Hazard:
    """Return a hazard that answers with an error."""
    status = {"status": "Failure", "code": code, "reason": reason, "message": message}
    return lambda exchange: exchange.answer_with(code, "Status", status, **headers)


def recorded(name: str) -> Hazard:
    """Return a hazard that answers as a real server did."""
    head, _, body = (RECORDINGS / name).read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    code = int(head.split()[1])
    return lambda exchange: exchange.answer(code, body, Content_Type="application/json")


def _compact(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _key(document: Document) -> tuple[str, str]:
    meta = document["metadata"]
    return meta.get("namespace", "default"), meta["name"]
