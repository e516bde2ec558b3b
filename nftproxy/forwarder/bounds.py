"""How much a forwarder takes, whatever its clients do."""

from dataclasses import dataclass

DESCRIPTORS = 6  # of a connection at most: two sockets, and a pipe for each direction
RESERVE = 512  # descriptors for listeners and spare pipes


@dataclass(frozen=True, slots=True)
class Bounds:
    """Connections and seconds."""

    connections: int = 8192
    of_port: int = 4096
    idle: float = 3600  # without a byte in either direction
    connecting: float = 5
    # A connection of which nothing was seen for this long makes room for a new one at a limit
    stale: float = 10
    retry: float = 5  # between tries to listen on a port that is taken, as for other servers


def bounds(descriptors: int) -> Bounds:
    """Return the bounds of a process whose limit of open files is `descriptors`."""
    room = max((descriptors - RESERVE) // DESCRIPTORS, 1)
    usual = Bounds()
    return Bounds(
        connections=min(usual.connections, room), of_port=min(usual.of_port, max(room // 2, 1))
    )
