"""Whether this proxy keeps up, and whether this node may get traffic (contract 7.1).

No sockets here, and only the two clocks that it is given: monotonic time measures how long an
update has been due, answers show wall time. A family is unhealthy when an update has been due for
twice the sync period. Without a due update it is healthy, however long ago its last sync was.
Methods may be called from any thread.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from nftproxy.address import Family
from nftproxy.model import Node
from nftproxy.monitoring.response import Response

AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"
_NEVER = datetime(1, 1, 1, tzinfo=UTC)  # the original shows this for "no update yet"


class ProxyHealth:
    """Per family: since when an update is due, and when the last one succeeded."""

    def __init__(
        self,
        sync_period: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._patience = 2 * sync_period
        self._clock = clock
        self._wall = wall
        self.limited = ""  # why not every change can be written; shown in answers
        self._lock = threading.Lock()
        self._due: dict[Family, float] = {}
        self._updated: dict[Family, float] = {}  # wall time; a family that has started is in here

    def started(self, family: Family) -> None:
        """Note that a family's runner has started, which counts as an update (contract 7.1.3)."""
        self.updated(family)

    def queued(self, family: Family) -> None:
        """Note that an update is due; a repetition does not restart the wait (contract 7.1.5)."""
        with self._lock:
            self._due.setdefault(family, self._clock())

    def updated(self, family: Family) -> None:
        """Note that a sync succeeded."""
        with self._lock:
            self._due.pop(family, None)
            self._updated[family] = self._wall()

    @property
    def healthy(self) -> bool:
        """Whether no family is unhealthy (contract 7.1.4)."""
        return all(self._families().values())

    def livez(self) -> Response:
        """Answer for this process alone."""
        return self._answer()

    def healthz(self, node: Node | None) -> Response:
        """Answer for the process and its Node object; None if that is unknown."""
        return self._answer(node_eligible=eligible(node))

    def _families(self) -> dict[Family, bool]:
        """Return the families that have started, and whether each is healthy."""
        with self._lock:
            now = self._clock()
            return {
                family: now - self._due.get(family, now) < self._patience
                for family in Family
                if family in self._updated
            }

    def _answer(self, *, node_eligible: bool | None = None) -> Response:
        """Return status and JSON body.

        `node_eligible` None leaves the node out of both (contract 7.1.6 to 7.1.8).
        """
        families = self._families()
        healthy = all(families.values())
        code = 200 if healthy and node_eligible is not False else 503
        now = _instant(self._wall())
        updated = {family: _instant(self._updated[family]) for family in families}
        last = now if code == 200 else max(updated.values(), default=_NEVER)
        body: dict[str, object] = {"lastUpdated": _text(last), "currentTime": _text(now)}
        if node_eligible is not None:
            body["nodeEligible"] = node_eligible
        body["healthy"] = healthy
        if self.limited:
            body["limited"] = self.limited
        if families:
            body["status"] = {
                f: {"lastUpdated": _text(updated[f]), "healthy": good}
                for f, good in families.items()
            }
        return Response(code, msgspec.json.encode(body))


def eligible(node: Node | None) -> bool:
    """Whether load balancers may use a node (contract 7.1.9)."""
    if node is None or node.metadata.deletion_timestamp is not None:
        return False
    return all(taint.key != AUTOSCALER_TAINT for taint in node.spec.taints or ())


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _text(instant: datetime) -> str:
    """RFC 3339 with fractions."""
    return f"{instant.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
