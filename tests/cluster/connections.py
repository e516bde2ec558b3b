"""A client that opens connections until its standard input ends, then prints what became of them.

    python3 connections.py NAME=ADDRESS:PORT...

It needs nothing but Python, and runs in any network namespace. Each target gets a connection about
twenty times a second, and one that stays open all the time and asks again and again.
"""

import http.client
import json
import socket
import sys
import threading
import time

_PAUSE = 0.05
_TIMEOUT = 10.0
_RETRANSMITTED = 0.9
"""A connection that takes longer than this has sent its first packet twice."""


class Target:
    """One target, and what its connections met."""

    def __init__(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.name, self._host, self._port = name, host.strip("[]"), int(port)
        self.opened = self.asked = self.retransmitted = self.moved = 0
        self._last = ""
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.longest = 0.0

    def connect_until(self, stopping: threading.Event) -> None:
        """Open one connection after the other."""
        while not stopping.wait(_PAUSE):
            begin = time.monotonic()
            try:
                client = self._client()
                took = time.monotonic() - begin
                name = self._ask(client)
                client.close()
            except OSError as error:
                self.failed.append(_now(error))
                continue
            except http.client.HTTPException as error:
                self.failed.append(_now(error))
                continue
            self.opened += 1
            self.longest = max(self.longest, took)
            self.retransmitted += took > _RETRANSMITTED
            self.moved += self._last not in {"", name}
            self._last = name

    def stay_until(self, stopping: threading.Event) -> None:
        """Keep one connection open; a broken one is noted, and made again."""
        client: http.client.HTTPConnection | None = None
        while not stopping.wait(_PAUSE * 4):
            try:
                client = client or self._client()
                self._ask(client)
                self.asked += 1
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(_now(error))
                client = None

    def report(self) -> dict[str, object]:
        """Return what is printed."""
        return {
            "target": self.name,
            "opened": self.opened,
            "failed": self.failed,
            "retransmitted": self.retransmitted,
            "longest": round(self.longest, 3),
            "asked": self.asked,
            "broken": self.broken,
            "moved": self.moved,
        }

    def _client(self) -> http.client.HTTPConnection:
        client = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
        client.connect()
        assert client.sock
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def _ask(self, client: http.client.HTTPConnection) -> str:
        client.request("GET", "/hostname")
        return client.getresponse().read().decode()


def _now(error: Exception) -> str:
    return f"{time.strftime('%H:%M:%S', time.gmtime())} {type(error).__name__}: {error}"


def main() -> None:
    """Connect to all targets, each from threads of its own."""
    stopping = threading.Event()
    targets = [Target(*each.split("=", 1)) for each in sys.argv[1:]]
    threads = [
        threading.Thread(target=work, args=(stopping,))
        for target in targets
        for work in (target.connect_until, target.stay_until)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()
    print(json.dumps([target.report() for target in targets]))


if __name__ == "__main__":
    main()
