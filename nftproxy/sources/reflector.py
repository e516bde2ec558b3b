"""One resource of the API, reflected in the store: list, watch, repeat.

What always holds: only the server's answers change the store, so an outage leaves it unchanged. A
list replaces a kind as a whole, which removes objects deleted meanwhile. A watch continues exactly
where the last one ended, so nothing is lost or repeated. An object that cannot be decoded is
skipped with one line in the log, and its last version stays in use until it is corrected or
deleted. `retry` decides what follows an end, `encoding` knows what decodes bytes.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from loguru import logger

from nftproxy.model import Object, ObjectName
from nftproxy.sources import retry
from nftproxy.sources.apiserver import ApiAnswer, ApiConnection, SilentError, TransportError
from nftproxy.sources.encoding import Decoder, Decoders, status
from nftproxy.sources.resources import Resource
from nftproxy.sources.retry import FailureCause, RetryOutcome, RetryState
from nftproxy.sources.wire import (
    Bookmark,
    Broken,
    Changed,
    Removed,
    Status,
    Version,
    WireError,
)

PAGE_SIZE: Final = 500
"""Objects per page of a list.

About 1 MB of JSON, decoded in 5 ms, during which nothing else in this process runs.
"""

LIST_SILENCE: Final = 30.0

# The server compresses lists of more than 128 kB, to a tenth, and no streams.
_COMPRESSED: Final = {"Accept-Encoding": "gzip"}


class Sink(Protocol):
    """Where objects are delivered: the store, or something in front of it.

    Each method returns whether anything changed.
    """

    def put(self, item: Object, /) -> bool:
        """Put a new or changed object."""

    def remove(self, kind: type[Object], key: ObjectName, /) -> bool:
        """Forget an object."""

    def replace(
        self, kind: type[Object], items: Iterable[Object], /, *, keep: Collection[ObjectName]
    ) -> bool:
        """Replace all objects of a kind by `items` and those known under the names in `keep`."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Time and randomness, which tests replace.

    `pause` returns early when the reflector is stopped.
    """

    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    pause: Callable[[threading.Event, float], object] = threading.Event.wait


@dataclass(frozen=True, slots=True)
class _Complaint:
    """The last logged problem; `standing` if the server had accepted the watch."""

    cause: FailureCause
    code: int
    standing: bool


class Reflector:
    """Keeps one kind in the store in step with the API server.

    `run` has a thread of its own, `stop` is for any other.
    """

    def __init__(
        self,
        resource: Resource,
        connection: ApiConnection,
        sink: Sink,
        changed: Callable[[], None],
        environment: Environment,
    ) -> None:
        """Deliver to `sink`; call `changed` after each list, and after events with a change."""
        self.resource = resource
        self._connection = connection
        self._sink = sink
        self._changed = changed
        self._environment = environment
        self._decoders = Decoders(resource.kind)
        self._state = RetryState()
        self._stopping = threading.Event()
        self._answer: ApiAnswer | None = None
        self._complaint: _Complaint | None = None
        self._begun = 0.0
        self._asked = 0  # seconds that the server was asked to keep the watch
        self._events = 0

    def run(self) -> None:
        """List and watch until stopped."""
        while not self._stopping.is_set():
            self._begun = self._events = 0
            outcome = self._attempt()
            if self._stopping.is_set():
                break
            if self._begun:
                lasted = self._environment.clock() - self._begun
                outcome = replace(outcome, lasted=lasted, events=self._events)
            step = retry.after(
                self._state, outcome, self.resource, chance=self._environment.chance()
            )
            self._report(outcome, step)
            self._state = step.state
            if step.renew:
                self._connection.renew()
            if step.pause:
                self._connection.observer.watch_restarted(self.resource.name)
                self._environment.pause(self._stopping, step.pause)

    def stop(self) -> None:
        """Make `run` return soon, whatever it waits for."""
        self._stopping.set()
        if answer := self._answer:
            answer.abort()

    def _attempt(self) -> RetryOutcome:
        """List if that is due, then watch; return why that ended."""
        try:
            if self._state.version is None and not self._state.streaming:
                trouble = self._list()
                if trouble:
                    return trouble
            return self._watch()
        except SilentError as error:
            return RetryOutcome(FailureCause.SILENT, str(error))
        except TransportError as error:
            return RetryOutcome(FailureCause.BROKEN, error.with_hint)
        except WireError as error:
            return RetryOutcome(FailureCause.FAILED, str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the watch for good
            logger.exception("{}: unexpected", self.resource.name)
            return RetryOutcome(FailureCause.FAILED, str(error))

    def _list(self) -> RetryOutcome | None:
        """List page by page and put the whole into the store.

        Return the outcome if something prevented it.
        """
        items: list[Object] = []
        broken: list[Broken] = []
        query = {**self.resource.selectors, "limit": str(PAGE_SIZE)}
        while True:
            with self._ask(query, LIST_SILENCE, **_COMPRESSED) as answer:
                if (
                    answer.status != 200
                ):  # also 410, when the token of the next page has expired: start again
                    return _refusal(answer)
                page = self._decoders.of(answer.content_type).page(answer.body())
            items += page.items
            broken += page.broken
            if not page.token:
                break
            query["continue"] = page.token
        self._replace(items, broken, page.version)
        return None

    def _watch(self) -> RetryOutcome:
        """Watch until the stream ends. Without a known version, the stream starts with a list."""
        query = self._watch_query()
        with self._ask(query, self.resource.silence) as answer:
            if answer.status != 200:
                return _refusal(answer)
            decoder = self._decoders.of(answer.content_type)
            messages = _messages(answer, decoder)
            if self._state.version is None:
                trouble = self._initial_events(decoder, messages)
                if trouble:
                    return trouble
            elif self._complaint and not self._complaint.standing:
                self._recovered()
            self._begun = self._environment.clock()
            for batch in messages:
                trouble = self._apply_events(decoder, batch)
                if trouble:
                    return trouble
        return RetryOutcome(FailureCause.ENDED, "the API server ends each watch at once")

    def _watch_query(self) -> dict[str, str]:
        self._asked = retry.watch_seconds(
            self._state, self.resource, chance=self._environment.chance()
        )
        query = {
            **self.resource.selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._asked),
        }
        if self._state.version is None:
            # No resourceVersion: at least as new as now, never the past of a server that lags
            # behind.
            return query | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        return query | {"resourceVersion": self._state.version}

    def _initial_events(
        self, decoder: Decoder, messages: Iterator[list[bytes]]
    ) -> RetryOutcome | None:
        """Gather a streaming list; put it into the store when complete, with the batch's rest."""
        items: dict[ObjectName, Object] = {}
        broken: dict[ObjectName | None, Broken] = {}
        for batch in messages:
            for number, message in enumerate(batch):
                match decoder.event(message):
                    case Changed(item):
                        items[item.metadata.key] = item
                        broken.pop(item.metadata.key, None)
                    case Broken() as event:
                        broken[event.key] = event
                    case Removed(key):
                        items.pop(key, None)
                        broken.pop(key, None)
                    case Bookmark(version, complete=True):
                        self._replace(list(items.values()), broken.values(), version)
                        return self._apply_events(decoder, batch[number + 1 :])
                    case Status() as event:
                        return _failure(event)
        return RetryOutcome(FailureCause.ENDED, "the stream ended before its list was complete")

    def _replace(self, items: list[Object], broken: Collection[Broken], version: Version) -> None:
        """Put a complete list into the store."""
        if not version:
            raise WireError("the list has no resourceVersion")
        for each in broken:
            self._warn_of(each)
        self._sink.replace(
            self.resource.kind, items, keep={each.key for each in broken if each.key}
        )
        self._state = replace(self._state, version=version)
        self._recovered()
        self._changed()

    def _apply_events(self, decoder: Decoder, batch: list[bytes]) -> RetryOutcome | None:
        """Apply the events of a batch; return the first error among them, if any."""
        changed = False
        try:
            for message in batch:
                match decoder.event(message):
                    case Changed(item):
                        changed |= self._sink.put(item)
                    case Removed(key):
                        changed |= self._sink.remove(self.resource.kind, key)
                    case Broken() as event:
                        self._warn_of(event)
                    case Status() as event:
                        return _failure(event)
                    case Bookmark():
                        continue
                self._events += 1
        finally:
            if changed:
                self._changed()
        # Only now: the server has to repeat events that were not applied.
        if batch and (version := decoder.version(batch[-1])):
            self._state = replace(self._state, version=version)
        return None

    @contextlib.contextmanager
    def _ask(self, query: dict[str, str], silence: float, **headers: str) -> Iterator[ApiAnswer]:
        """Send a request and hold its answer where `stop` finds it."""
        headers["Accept"] = self._connection.accept
        with self._connection.get(
            self.resource.path, query, silence=silence, headers=headers
        ) as answer:
            self._answer = answer
            try:
                if self._stopping.is_set():  # `stop` came before there was an answer
                    answer.abort()
                yield answer
            finally:
                self._answer = None

    def _report(self, outcome: RetryOutcome, step: retry.RetryStep) -> None:
        """Log a problem once, not at each try; normal ends are for debugging only."""
        name = self.resource.name
        silent = outcome.cause is FailureCause.SILENT
        # It did not end the watch in time: it is dead or frozen
        overdue = silent and outcome.lasted > self._asked
        if outcome.lasted >= retry.STEADY and not overdue:
            self._recovered()
        # A quiet stream is silent; and a server that shuts down in good order ends a watch or two
        # just after their start.
        quiet = silent and outcome.lasted >= retry.STEADY and not overdue
        normal = outcome.cause is FailureCause.ENDED and step.state.failures < 3
        if quiet or normal or not step.pause:
            logger.debug("{}: watch {} after {:.0f} s", name, outcome.cause.value, outcome.lasted)
            return
        if outcome.code == 410:
            logger.info(
                "{}: the API server no longer has this resource version; listing everything again",
                name,
            )
            return
        complaint = _Complaint(outcome.cause, outcome.code, standing=bool(self._begun))
        if complaint != self._complaint:
            logger.warning(
                "{}: {}; traffic goes on as before, trying again until it works", name, outcome.text
            )
            self._complaint = complaint

    def _recovered(self) -> None:
        """Log that a problem is solved."""
        if self._complaint:
            logger.info("{}: the API server answers again", self.resource.name)
            self._complaint = None

    def _warn_of(self, broken: Broken) -> None:
        logger.warning(
            "{}: an object is skipped, its version known before stays in use: {}",
            self.resource.name,
            broken,
        )


def _messages(answer: ApiAnswer, decoder: Decoder) -> Iterator[list[bytes]]:
    """Yield the complete messages of a stream, as many at a time as have arrived.

    An unfinished last one is dropped.
    """
    rest = b""
    for piece in answer.chunks():
        messages, rest = decoder.split(rest + piece)
        yield messages


def _refusal(answer: ApiAnswer) -> RetryOutcome:
    """Return the outcome of an answer with another status than 200."""
    said = status(answer.status, answer.content_type, answer.body())
    return RetryOutcome(
        FailureCause.REFUSED,
        f"the API server answers {said}",
        code=answer.status,
        retry_after=answer.retry_after,
    )


def _failure(said: Status) -> RetryOutcome:
    """Return the outcome of an error within a stream.

    410 means the same as at the start of a watch.
    """
    wait = said.details.retry_after_seconds if said.details else 0
    return RetryOutcome(
        FailureCause.FAILED,
        f"the API server ended the watch: {said}",
        code=said.code,
        retry_after=wait,
    )
