"""Listening sockets: their addresses, and retries until these are free."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

from loguru import logger

from nftproxy.address import Family
from nftproxy.errors import UnusableError
from nftproxy.monitoring.http.server import Server

RETRY = 5.0  # seconds (contract 7.1.11)
BACKLOG = 512
_UNSPECIFIED = {"0.0.0.0", "::"}  # noqa: S104 - compared
_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_AF = {Family.IPv4: socket.AF_INET, Family.IPv6: socket.AF_INET6}


def listen(address: str) -> socket.socket:
    """Return a socket that listens on `IP:port`.

    An unspecified IP means both families (contract 7.1.1).
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if host not in _UNSPECIFIED:
        return _listen(host, int(port))
    try:
        return _listen("::", int(port))
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
        return _listen("0.0.0.0", int(port))  # noqa: S104 - what was asked for, on a machine without IPv6


def listen_only(family: Family, host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; for `::` on IPv6 alone (contract 7.2.1)."""
    return _listen(host, port, only=family)


async def serve(
    server: Server,
    what: str,
    address: str,
    *,
    hard_fail: bool = False,
    failed: Callable[[str], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Let `server` listen on `address` until cancelled.

    While the address is taken, try again every 5 s; with `hard_fail`, call `failed` with the reason
    and raise UnusableError (contract 7.1.11). `what` names the server in messages.
    """
    complained = False
    while True:
        try:
            listening = listen(address)
            break
        except OSError as error:
            reason = f"{what} cannot listen on {address}: {error.strerror or error}"
            if hard_fail:
                if failed:
                    failed(reason)
                raise UnusableError(
                    reason, hint="free the address, name another one, or unset bindAddressHardFail"
                ) from error
            if not complained:
                logger.error("{}; trying again every {:g} s", reason, RETRY)
                complained = True
        await sleep(RETRY)
    if complained:
        logger.info("{} now listens on {}", what, address)
    listener = await server.listen(listening)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        listener.close()


def _listen(host: str, port: int, *, only: Family | None = None) -> socket.socket:
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )
    family, kind, proto, _, place = next(
        entry for entry in found if only is None or entry[0] == _AF[only]
    )
    listening = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only is not None)
        listening.bind(place)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
