"""Kubernetes events that this proxy writes, without ever waiting for them (contract 10.1).

`Events.record` puts an event into a bounded queue and returns; a thread writes it to the API
server. An event is dropped if the server is unreachable for long, refuses it, or is too slow. A
repeated event becomes a series on the first one: its count grows at once the first time, then every
half minute at most, so that a failure in each sync costs the API server next to nothing.
"""

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from loguru import logger

from nftproxy.model import ObjectName

if TYPE_CHECKING:
    # Takes 35 MB, and whoever has one has imported it
    from nftproxy.sources.apiserver import ApiConnection

WAITING: Final = 1000  # waiting events; more are dropped
PACE: Final = 30.0  # seconds between two writes about one series
SERIES_ENDS: Final = 360.0  # seconds without a repetition, after which it is a new event
ATTEMPTS: Final = 12
PAUSE: Final = 10.0  # seconds between attempts
_NOTE: Final = 1024  # characters the API server accepts
_NAME: Final = 253 - 17


class EventKind(msgspec.Struct, frozen=True):
    """What happened, in the words that kube-proxy uses where it knows them (contract 10.1)."""

    reason: str
    type: Literal["Normal", "Warning"]
    action: str


STARTING: Final = EventKind("Starting", "Normal", "StartKubeProxy")
HEALTH_SERVER_FAILED: Final = EventKind(
    "FailedToStartProxierHealthcheck", "Warning", "StartKubeProxy"
)
METRICS_SERVER_FAILED: Final = EventKind("FailedToStartMetricServer", "Warning", "StartKubeProxy")
HEALTH_CHECK_PORT_FAILED: Final = EventKind("FailedToStartServiceHealthcheck", "Warning", "Listen")
UNUSABLE_ANNOTATION: Final = EventKind("UnusableAnnotation", "Warning", "SyncService")


class Regarding(msgspec.Struct, frozen=True, omit_defaults=True):
    """The object an event is about."""

    kind: str
    name: str
    namespace: str = ""

    @classmethod
    def node(cls, name: str) -> "Regarding":
        """Return a reference to a Node."""
        return cls("Node", name)

    @classmethod
    def service(cls, name: ObjectName) -> "Regarding":
        """Return a reference to a Service."""
        return cls("Service", name.name, name.namespace)


@dataclass(frozen=True, slots=True)
class Write:
    """One request to the API server."""

    method: Literal["POST", "PATCH"]
    path: str
    body: dict[str, Any]


Sink = Callable[[Write], int]
"""Makes one request and returns the status code of the answer, or raises whatever."""

Subject = tuple[EventKind, Regarding]


@dataclass(slots=True)
class _Series:
    note: str
    first: float
    name: str = ""
    count: int = 1
    last: float = 0
    written: float = 0  # when; the count written at that time is `told`
    told: int = 1


class Journal:
    """Turns events into requests. Pure; times are seconds since the epoch."""

    def __init__(self, reporter: str) -> None:
        self._reporter = reporter
        self._series: dict[Subject, _Series] = {}

    def observe(self, subject: Subject, note: str, now: float) -> Write | None:
        """Return the request for an event; None if it can wait until `due`."""
        known = self._series.get(subject)
        if known is None or now - known.last > SERIES_ENDS:
            self._series[subject] = _Series(note[:_NOTE], first=now, last=now, written=now)
            return self._create(subject)
        known.count += 1
        known.last = now
        return self._patch(subject, now) if known.told == 1 or now - known.written >= PACE else None

    def due(self, now: float) -> Iterator[Write]:
        """Yield the requests for repetitions that waited long enough, and forget ended series."""
        for subject, each in list(self._series.items()):
            if each.count > each.told and now - each.written >= PACE:
                yield self._patch(subject, now)
            elif now - each.last > SERIES_ENDS:
                del self._series[subject]

    @property
    def next_due(self) -> float | None:
        """When `due` has a request; None: not before the next event."""
        return min(
            (each.written + PACE for each in self._series.values() if each.count > each.told),
            default=None,
        )

    def again(self, path: str) -> Write | None:
        """Return a request that creates again an event that the API server has deleted."""
        name = path.rpartition("/")[2]
        subject = next(
            (subject for subject, each in self._series.items() if each.name == name), None
        )
        return self._create(subject) if subject else None

    def _create(self, subject: Subject) -> Write:
        kind, regarding = subject
        series = self._series[subject]
        series.name = f"{regarding.name[:_NAME]}.{secrets.token_hex(8)}"
        namespace = regarding.namespace or "default"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "eventTime": _text(series.first),
            "reportingController": "kube-proxy",
            "reportingInstance": self._reporter,
            "regarding": {"apiVersion": "v1", **msgspec.to_builtins(regarding)},
            "note": series.note,
            **msgspec.to_builtins(kind),
        }
        if series.count > 1:
            body["series"] = _counted(series)
        return Write("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)

    def _patch(self, subject: Subject, now: float) -> Write:
        series = self._series[subject]
        series.written, series.told = now, series.count
        namespace = subject[1].namespace or "default"
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events/{series.name}"
        return Write("PATCH", path, {"series": _counted(series)})


class Events:
    """Writes events in a thread of its own, which ends with the process.

    Every method may be called from any thread.
    """

    def __init__(
        self,
        sink: Sink,
        hostname: str,
        *,
        clock: Callable[[], float] = time.time,
        pause: float = PAUSE,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._pause = pause
        self._journal = Journal(f"kube-proxy-{hostname}"[:128])
        self._queue: queue.Queue[tuple[Subject, str] | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    def record(self, kind: EventKind, regarding: Regarding, note: str) -> None:
        """Queue an event; return at once and never fail."""
        try:
            self._queue.put_nowait(((kind, regarding), note))
        except queue.Full:
            logger.debug(
                "event {} about {} dropped: the queue is full", kind.reason, regarding.name
            )

    def close(self, timeout: float) -> None:
        """Write the waiting events, one attempt each, for at most `timeout` seconds."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread is awake
            self._queue.put_nowait(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            due = self._journal.next_due
            try:
                item = self._queue.get(
                    timeout=None if due is None else max(0.0, due - self._clock())
                )
            except queue.Empty:
                for repeated in self._journal.due(self._clock()):
                    self._write(repeated)
                continue
            if item is None:
                return
            if write := self._journal.observe(*item, self._clock()):
                self._write(write)
            if self._closing.is_set() and self._queue.empty():
                return

    def _write(self, write: Write) -> None:
        """Write until it succeeds, is refused, or has failed often enough."""
        for _ in range(ATTEMPTS):
            try:
                status = self._sink(write)
            except Exception as error:  # noqa: BLE001 - contract 10.1.1: whatever goes wrong here, nothing else is affected
                problem = str(error)
            else:
                if status < 300:
                    return
                if (
                    status == 404
                    and write.method == "PATCH"
                    and (anew := self._journal.again(write.path))
                ):
                    self._write(anew)
                    return
                problem = f"HTTP status {status}"
                if status < 500 and status not in {401, 429}:
                    break
            if self._closing.wait(self._pause):
                break
        logger.debug("event not written: {} {}: {}", write.method, write.path, problem)


class ApiSink:
    """Writes events to the API server of a connection."""

    def __init__(self, connection: "ApiConnection", *, timeout: float = 10) -> None:
        self._connection = connection
        self._timeout = timeout

    def __call__(self, write: Write) -> int:
        """Make one request; TransportError when no answer comes."""
        kind = "application/merge-patch+json" if write.method == "PATCH" else "application/json"
        body = msgspec.json.encode(write.body)
        with self._connection.request(
            write.method,
            write.path,
            body=body,
            headers={"Content-Type": kind},
            silence=self._timeout,
        ) as answer:
            answer.body()
        if answer.status == 401:
            self._connection.renew()
        return answer.status


def _counted(series: _Series) -> dict[str, object]:
    return {"count": series.count, "lastObservedTime": _text(series.last)}


def _text(seconds: float) -> str:
    """Return a MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
