"""What the proxy and its forwarder say to each other: lines of JSON.

Pure. An order has only what changed; the first one to a new forwarder has everything. A report has
totals since the forwarder's start.
"""

from typing import NamedTuple

import msgspec

from nftproxy.address import Family


class LocalFrontend(NamedTuple):
    """A NodePort on the loopback address of a family."""

    family: Family
    port: int

    def __str__(self) -> str:
        return f"{'127.0.0.1' if self.family is Family.IPv4 else '[::1]'}:{self.port}"


class Backends(msgspec.Struct, frozen=True, gc=False):
    """Where the connections to a NodePort end.

    `affinity` are the seconds for which its clients, all of them local, keep one endpoint.
    """

    name: str  # of the service port, for log lines
    endpoints: tuple[tuple[str, int], ...]
    affinity: int | None = None


class Instruction(msgspec.Struct, frozen=True):
    """Changed NodePorts; without backends a NodePort is no longer served."""

    ports: list[tuple[LocalFrontend, Backends | None]]


class Bulletin(msgspec.Struct, frozen=True):
    """The state of a forwarder, and what an operator should know."""

    listeners: dict[Family, int] = {}
    failures: dict[Family, int] = {}
    warning: str = ""
    info: str = ""


def encode(message: Instruction | Bulletin) -> bytes:
    """Return a line."""
    return msgspec.json.encode(message) + b"\n"


to_instruction = msgspec.json.Decoder(Instruction).decode
to_bulletin = msgspec.json.Decoder(Bulletin).decode
