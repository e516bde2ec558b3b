"""First packets of connections, as fast as one processor makes them.

Usage: python -m tests.support.flood ADDRESS PORT PROTOCOL [SOURCE].

Sends the same first packet again and again until its standard input ends, then prints how many it
sent. Something on the way must drop them all before conntrack keeps the connection, so that each is
a first packet again.
"""

import errno
import select
import socket
import struct
import sys
import time

_BATCH = 200


def _open(address: str, port: int, protocol: str, source: str) -> tuple[socket.socket, bytes]:
    """A connected socket, and what to send: a datagram, or a TCP segment with SYN."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if protocol == "UDP":
        sock = socket.socket(family, socket.SOCK_DGRAM)
        packet = b"first"
    else:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        packet = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 64240, 0, 0)
    if source:
        sock.bind((source, 0))
    sock.connect((address, port if protocol == "UDP" else 0))
    if protocol == "TCP":
        ends = (socket.inet_pton(family, sock.getsockname()[0]), socket.inet_pton(family, address))
        packet = packet[:16] + _checksum(packet, *ends) + packet[18:]
    return sock, packet


def _checksum(segment: bytes, source: bytes, destination: bytes) -> bytes:
    text = source + destination + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", 0xFFFF - total)


def main() -> None:
    """Send until told to stop."""
    address, port, protocol, *rest = sys.argv[1:]
    sock, packet = _open(address, int(port), protocol, rest[0] if rest else "")
    print("ready", flush=True)
    sent = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(_BATCH):
            try:
                sock.send(packet)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                time.sleep(0.001)  # not sent: a slow machine still has what was sent before
            else:
                sent += 1
    print(sent, flush=True)


if __name__ == "__main__":
    main()
