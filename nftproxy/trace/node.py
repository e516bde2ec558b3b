"""The questions about the node that the path of a connection raises.

Pure: types alone; `here` answers for this machine.
"""

from collections.abc import Mapping
from typing import Protocol

from nftproxy.kernel.headers import PacketHeader
from nftproxy.path.model import Cause
from nftproxy.path.packet import place
from nftproxy.path.ruleset import NftBaseChain, Way
from nftproxy.trace.clients import Clients
from nftproxy.trace.events import TraceEvent


class TracedNode(Protocol):
    """What has to be known of the node beyond the reports."""

    name: str
    clients: Clients
    services: Mapping[tuple[str, int, int], tuple[str, str]]
    """Service and kind of a frontend, by address, protocol and port."""

    def base(self, event: TraceEvent) -> NftBaseChain | None:
        """Return the base chain that a report names."""

    def text(self, event: TraceEvent) -> str:
        """Return the rule of a report as nft prints it; empty when nobody can say."""

    def rejects(self, event: TraceEvent) -> bool:
        """Whether the rule of a report rejects."""

    def link(self, index: int) -> str:
        """Return the name of an interface."""

    def way(self, header: PacketHeader, iif: str) -> Way:
        """Return how a packet goes on, or why it does not."""

    def forwards(self, header: PacketHeader) -> str:
        """Return the setting that allows forwarding, `0` if it does not."""

    def neighbour(self, header: PacketHeader, oif: str) -> str:
        """Return what the kernel knows of the next machine on the way."""

    def tracking(self) -> tuple[int, int]:
        """Return how many connections the kernel tracks, and how many it can."""


def unreachable(node: TracedNode, header: PacketHeader, device: str) -> Cause | None:
    """Return the cause if nobody answers for the next address on the way of a packet."""
    state = node.neighbour(header, device)
    if state not in {"failed", "incomplete"}:
        return None
    return Cause(
        "neighbour",
        f"The packet for {place(*header.destination)} goes to {device}, but nobody there answers "
        f"for the next address: neighbour {state}.",
        (f"ip neigh show dev {device}",),
    )
