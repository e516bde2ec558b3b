"""Named network namespaces.

Make, enter for a moment, and delete them; the processes that live in one.

`enter` moves the calling *thread* only. A socket stays in the namespace in which it was made, a
child process and a new thread inherit it; so threads, event loops and `await` do not belong inside
a `with enter(...)`. Namespaces are never held open longer than that: an open file would keep one
alive after it was deleted.

They are made by system calls of this process rather than by `ip netns`: if it is killed, nothing
continues to make them.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from nftproxy.errors import NftproxyError

DIRECTORY = Path("/run/netns")
"""The folder of named namespaces, as of `ip netns`."""

# linux/sched.h, sys/mount.h
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def enter(namespace: str) -> Iterator[None]:
    """Move the calling thread into a named namespace until the end of the block."""
    try:
        there = os.open(DIRECTORY / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NftproxyError(
            f"there is no network namespace {namespace!r}", hint="see `ip netns list`"
        ) from None
    try:
        with _home_again():
            _call("setns", there, _CLONE_NEWNET)
            yield
    finally:
        os.close(there)


def create(name: str) -> None:
    """Make a namespace as `ip netns add` does; FileExistsError if it exists."""
    path = DIRECTORY / name
    _share_directory()
    path.touch(mode=0o444, exist_ok=False)
    try:
        with _home_again():
            _call("unshare", _CLONE_NEWNET)
            _call("mount", b"/proc/thread-self/ns/net", os.fsencode(path), b"none", _MS_BIND, None)
    except BaseException:
        delete(name)
        raise


def delete(name: str) -> None:
    """Delete a namespace, or a half-made one.

    The kernel dissolves it after its last process and socket.
    """
    path = DIRECTORY / name
    try:
        _call("umount2", os.fsencode(path), _MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file on which nothing is mounted
            raise
    path.unlink()


def names(lab: str) -> list[str]:
    """Return the namespaces that belong to a lab, whether it is complete or not."""
    return sorted(path.name for path in DIRECTORY.glob(f"{lab}.*"))


def processes(namespaces: Iterable[str]) -> list[int]:
    """Return the processes that live in one of the namespaces, except this one."""
    inodes = set()
    for name in namespaces:
        with contextlib.suppress(FileNotFoundError):
            inodes.add((DIRECTORY / name).stat().st_ino)
    found = []
    for process in Path("/proc").glob("[1-9]*"):
        if int(process.name) != os.getpid():
            # Ended meanwhile, or unreadable: then it was not started in a lab by this user.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if (process / "ns/net").stat().st_ino in inodes:
                    found.append(int(process.name))
    return found


def kill(pids: Iterable[int], timeout: float = 5.0) -> None:
    """End processes with SIGKILL and wait for them; raise an error if one does not end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                if not select.select([process], [], [], timeout)[0]:
                    raise NftproxyError(
                        f"process {pid} does not end",
                        hint="it waits inside the kernel; see `ps -l`",
                    )
            finally:
                os.close(process)


@contextlib.contextmanager
def _home_again() -> Iterator[None]:
    """Bring the thread back into the namespace in which it is now."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield
        finally:
            _call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


def _share_directory() -> None:
    """Make it a shared mount, as `ip netns` does.

    A deletion then reaches processes that have mounts of their own.
    """
    DIRECTORY.mkdir(exist_ok=True)
    path = os.fsencode(DIRECTORY)
    try:
        _call("mount", b"none", path, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # no mount point yet
            raise
        _call("mount", path, path, b"none", _MS_BIND | _MS_REC, None)
        _call("mount", b"none", path, b"none", _MS_SHARED | _MS_REC, None)


def _call(function: str, *arguments: int | bytes | None) -> None:
    if _libc[function](*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
