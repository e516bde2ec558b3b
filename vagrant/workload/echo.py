"""An endpoint of the workload: answers TCP and UDP on port 8080 with a line of JSON.

The line has its name, and whom it saw.
"""

import json
import os
import socketserver
from contextlib import suppress

PORT = 8080
NAME = os.environ.get("HOSTNAME", "?")


def line(source: str, port: int) -> bytes:
    """Return the answer to a client."""
    return (
        json.dumps(
            {"name": NAME, "source": source.removeprefix("::ffff:"), "source_port": port}
        ).encode()
        + b"\n"
    )


class Connection(socketserver.StreamRequestHandler):
    """Says its line, then sends back what comes."""

    def handle(self) -> None:
        """Serve one connection until the client ends it."""
        with suppress(ConnectionError):
            self.wfile.write(line(*self.client_address[:2]))
            while received := self.request.recv(4096):
                self.wfile.write(received)


class Datagram(socketserver.DatagramRequestHandler):
    """Says its line."""

    def handle(self) -> None:
        """Answer one datagram."""
        self.wfile.write(line(*self.client_address[:2]))


class Server(socketserver.ThreadingTCPServer):
    """A server that bears a load."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    import threading

    datagrams = socketserver.ThreadingUDPServer(("0.0.0.0", PORT), Datagram)  # noqa: S104  a pod has one address
    threading.Thread(target=datagrams.serve_forever, daemon=True).start()
    Server(("0.0.0.0", PORT), Connection).serve_forever()  # noqa: S104
