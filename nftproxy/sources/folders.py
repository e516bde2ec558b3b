"""Notice changed files in folders.

Closed, renamed or deleted ones, not those that are being written.

inotify by system calls, on the event loop, reports a change within a millisecond and needs no
thread. It cannot report a missing folder, a network file system, or a link with another target; a
regular look finds those.
"""

import asyncio
import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from loguru import logger

POLL: Final = 30.0  # seconds between regular looks
BLIND: Final = 1.0  # the same while a folder cannot be watched
SETTLE: Final = 0.02  # seconds to gather the events of one change
# Seconds to wait after a file appeared: it may be a link, which nobody closes, or still be empty
APPEARED: Final = 0.1
STALLED: Final = 5.0  # seconds without a write after which a file that stays open counts as written

# linux/inotify.h
_MODIFY, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _IGNORED, _ONLYDIR = 0x400, 0x800, 0x8000, 0x1000000
_WANTED = (
    _MODIFY
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLYDIR
)
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


class Folders:
    """Watches folders for the running event loop.

    All methods except `unfinished` are for its thread.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = sorted(folders)
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._inotify = -1
        self._watched: dict[int, set[Path]] = {}  # by watch: two names of one folder share it
        self._lock = threading.Lock()  # reading events, and its result
        self._writing: dict[Path, float] = {}  # when it was last written to
        self._trouble = ""

    def __enter__(self) -> Self:
        try:
            self._inotify = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._complain(error)
        else:
            self._loop.add_reader(self._inotify, self._read)
        self._watch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._inotify >= 0:
                self._loop.remove_reader(self._inotify)
                os.close(self._inotify)
                self._inotify = -1

    async def changed(self) -> None:
        """Wait for a change or the next regular look."""
        blind = set(self._folders) - set().union(*self._watched.values())
        with suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it loses a cancellation that arrives with an event.
            async with asyncio.timeout(BLIND if blind else POLL):
                await self._event.wait()
            await asyncio.sleep(SETTLE)
        self._event.clear()
        self._watch()

    def unfinished(self) -> frozenset[Path]:
        """Return the files that are being written, whose content is incomplete. For any thread."""
        with self._lock:
            self._take_in()
            now = time.monotonic()
            self._writing = {
                path: since for path, since in self._writing.items() if now - since < STALLED
            }
            return frozenset(self._writing)

    def _watch(self) -> None:
        """Watch the folders that now have these names: each may be new, deleted or replaced."""
        if self._inotify < 0:
            return
        watched: dict[int, set[Path]] = {}
        for folder in self._folders:
            try:
                watch = _call("inotify_add_watch", self._inotify, os.fsencode(folder), _WANTED)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # reading it says so
            except OSError as error:
                self._complain(error)
                continue
            watched.setdefault(watch, set()).add(folder)
        for watch in self._watched.keys() - watched.keys():
            with suppress(OSError):  # the kernel dropped it with its folder
                _call("inotify_rm_watch", self._inotify, watch)
        self._watched = watched

    def _read(self) -> None:
        with self._lock:
            self._take_in()

    def _take_in(self) -> None:
        """Read the pending events."""
        while self._inotify >= 0:
            try:
                data = os.read(self._inotify, 1 << 16)
            except BlockingIOError:
                return
            for watch, mask, name in _events(data):
                paths = [folder / name for folder in self._watched.get(watch, ())]
                if mask & _MODIFY:
                    self._writing |= dict.fromkeys(paths, time.monotonic())
                elif mask & _CREATE:
                    self._loop.call_soon_threadsafe(
                        self._loop.call_later, APPEARED, self._event.set
                    )
                elif not mask & _IGNORED:
                    for path in paths:
                        self._writing.pop(path, None)
                    self._loop.call_soon_threadsafe(self._event.set)

    def _complain(self, error: OSError) -> None:
        reason = os.strerror(error.errno or 0)
        if reason != self._trouble:
            self._trouble = reason
            logger.warning(
                "inotify: {}; folders are read every {:g} s instead (sysctl fs.inotify shows the "
                "limits)",
                reason,
                BLIND,
            )


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield watch, mask and file name of each event.

    An overrun of the queue is an event without a watch.
    """
    position = 0
    while position < len(data):
        watch, mask, _, length = _EVENT.unpack_from(data, position)
        position += _EVENT.size + length
        yield watch, mask, os.fsdecode(data[position - length : position].rstrip(b"\0"))


def _call(function: str, *arguments: int | bytes) -> int:
    result: int = _libc[function](*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
