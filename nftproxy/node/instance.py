"""One nftproxy per node: two would undo each other's work.

The lock is an abstract unix socket. It belongs to the network namespace, as the table does, so it
works across containers, which see different files. It ends with the process.
"""

import errno
import socket

from nftproxy.errors import NftproxyError

_NAME = "\0nftproxy"
SHOWN_NAME = "@nftproxy"
"""How /proc/net/unix and ss write it."""


def claim() -> socket.socket:
    """Return the lock, held until the socket is closed.

    NftproxyError when another instance holds it.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_NAME)
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise NftproxyError(
            "another nftproxy already keeps this node's table",
            hint="ss -xlp | grep nftproxy shows it; stop that one first",
        ) from None
    lock.listen(0)  # so that ss lists it
    return lock
