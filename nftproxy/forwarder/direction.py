"""One direction of a connection: bytes move from socket to socket without leaving the kernel.

What has arrived is spliced into a pipe, and out of it again. While the receiver is slow, the pipe
stays full and nothing more is read: at most one pipe of bytes waits, and the sender feels the
receiver's pace. An idle direction has no pipe.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable

LARGE = 1 << 20  # bytes; with these, a byte costs half as much as with the usual 64 KiB
MOST_LARGE = 64  # pipes of that size at the same time: slow clients share 64 MiB at most
SPARE = 64  # empty pipes kept
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class PipePool:
    """Pipes for directions with bytes under way."""

    def __init__(self) -> None:
        self._spare: list[tuple[int, int]] = []
        self._large: set[tuple[int, int]] = set()

    def take(self) -> tuple[int, int]:
        """Return the two ends of an empty pipe: where to read, where to write."""
        if self._spare:
            return self._spare.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if len(self._large) < MOST_LARGE:
            # An unprivileged process has a limit for all its pipes
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, LARGE)
                self._large.add(pipe)
        return pipe

    def give_back(self, pipe: tuple[int, int], *, empty: bool) -> None:
        """Keep a pipe for the next direction, unless bytes are left in it."""
        if empty and len(self._spare) < SPARE:
            self._spare.append(pipe)
        else:
            self._large.discard(pipe)
            for end in pipe:
                os.close(end)

    def close(self) -> None:
        """Close all that are not in use."""
        while self._spare:
            self.give_back(self._spare.pop(), empty=False)


class Direction:
    """Moves bytes until the source has no more; then the sink gets no more either.

    `moved` is called for each piece, `ended` once at the end, with the error that broke it.
    """

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        pool: PipePool,
        *,
        moved: Callable[[], None],
        ended: Callable[[OSError | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._pool = pool
        self._moved = moved
        self._ended = ended
        self._pipe: tuple[int, int] | None = None
        self._held = 0  # bytes in the pipe

    def start(self) -> None:
        """Read from now on."""
        self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        """Let go of both sockets."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        self._release()

    def _read(self) -> None:
        try:
            self._pipe = self._pool.take()
            self._held = os.splice(self._source.fileno(), self._pipe[1], LARGE, flags=_FLAGS)
        except BlockingIOError:
            self._release()
        except OSError as error:
            self._end(error)
        else:
            if self._held:
                self._write()
            else:
                self._finish()

    def _write(self) -> None:
        """Empty the pipe; wait for the sink with what it does not take yet."""
        assert self._pipe  # noqa: S101 - bytes are held
        try:
            while self._held:
                self._held -= os.splice(
                    self._pipe[0], self._sink.fileno(), self._held, flags=_FLAGS
                )
        except BlockingIOError:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._resume)
        except OSError as error:
            self._end(error)
        else:
            self._release()
            self._moved()

    def _resume(self) -> None:
        self._loop.remove_writer(self._sink)
        self._moved()  # the sink takes more: neither side is idle
        self._loop.add_reader(self._source, self._read)
        self._write()

    def _finish(self) -> None:
        """Pass on the end of the source's bytes; the other direction goes on."""
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: OSError | None) -> None:
        self.stop()
        self._ended(error)

    def _release(self) -> None:
        if self._pipe is not None:
            self._pool.give_back(self._pipe, empty=not self._held)
            self._pipe, self._held = None, 0
