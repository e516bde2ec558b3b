"""An `EchoServer` in a process of its own, from both sides.

`EchoProcess` starts it, `main` is what runs there.

One JSON object per line on its input, the arguments of `EchoServer.listen`; one line of output for
each, "ok" or an error. The process ends with its input, hence also when its parent is killed. With
--keep it becomes a background process and answers until it is killed. It lives in the lab's
underlay namespace, where `down` finds it without its number.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import IO, cast

from nftproxy.errors import NftproxyError
from nftproxy.lab.echo import EchoServer
from nftproxy.lab.namespace import enter


class EchoProcess:
    """The commanding side; same methods as an EchoServer."""

    def __init__(self, underlay: str, *, keep: bool) -> None:
        argv = [sys.executable, "-m", "nftproxy.lab.echo_process", *(["--keep"] if keep else [])]
        with enter(underlay):
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self._orders = cast("IO[str]", self._process.stdin)
        self._replies = cast("IO[str]", self._process.stdout)

    def start(self) -> None:
        """Let it answer: from the start, or with --keep from `stop` on."""

    def listen(
        self,
        namespace: str,
        name: str,
        ports: Iterable[int],
        protocols: Iterable[str],
        families: Iterable[str],
    ) -> None:
        """Answer as `name` on all addresses of a namespace."""
        arguments = {
            "namespace": namespace,
            "name": name,
            "ports": tuple(ports),
            "protocols": tuple(protocols),
            "families": tuple(families),
        }
        try:
            self._orders.write(json.dumps(arguments) + "\n")
            self._orders.flush()
            reply = self._replies.readline().strip() or "it ended"
        except BrokenPipeError:
            reply = "it ended"
        if reply != "ok":
            raise NftproxyError(f"the echo server cannot listen as {name}: {reply}")

    def stop(self) -> None:
        """Send no more commands: it ends, or becomes a background process with --keep."""
        with contextlib.suppress(BrokenPipeError):  # it was killed during a command
            self._orders.close()
        self._replies.close()
        self._process.wait()


def main() -> None:
    """Serve the commands of standard input."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    keep = "--keep" in sys.argv[1:]
    server = EchoServer()
    if not keep:
        server.start()
    for line in sys.stdin:
        try:
            server.listen(**json.loads(line))
        except (OSError, NftproxyError) as error:
            print(error, flush=True)
        else:
            print("ok", flush=True)
    if keep:
        _go_into_background()
        server.start()
        threading.Event().wait()
    server.stop()


def _go_into_background() -> None:
    """Let the parent see this process end while a child continues.

    Only before any thread is started.
    """
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)


if __name__ == "__main__":
    main()
