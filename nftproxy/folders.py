"""Noticing that files in folders changed: when they are closed, renamed or deleted, not while they are being written."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from watchdog.events import (
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

POLL = 30.0  # seconds after which to look anyway: inotify sees nothing on network file systems
SETTLE = 0.02  # seconds to gather events of one change
WRITING = 0.1  # seconds to wait after a file appeared: it may be a link, which is never closed, or be still empty


class Folders:
    """Watches folders; for use with the running event loop."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._observer = Observer()
        for folder in folders:
            kinds: list[type[FileSystemEvent]] = [FileClosedEvent, FileMovedEvent, FileDeletedEvent, FileCreatedEvent]
            self._observer.schedule(_Handler(self), str(folder), event_filter=kinds)

    def __enter__(self) -> Self:
        self._observer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observer.stop()
        self._observer.join()

    async def changed(self) -> None:
        """Wait until something changed; TimeoutError when it is time to look anyway."""
        await asyncio.wait_for(self._event.wait(), POLL)
        await asyncio.sleep(SETTLE)
        self._event.clear()

    def notice(self, event: FileSystemEvent) -> None:
        """Take in an event, in watchdog's thread."""
        if isinstance(event, FileCreatedEvent):
            self._loop.call_soon_threadsafe(self._loop.call_later, WRITING, self._event.set)
        else:
            self._loop.call_soon_threadsafe(self._event.set)


class _Handler(FileSystemEventHandler):
    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._folders.notice(event)
