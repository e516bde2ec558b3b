"""What a daemon needs of a source of objects, an API server or manifests."""

from collections.abc import Callable
from typing import Protocol

from nftproxy.model import Node
from nftproxy.store import Store


class Source(Protocol):
    """Keeps a store like the objects of a cluster, or of files that stand for one."""

    node_required: bool
    """Whether a missing Node is a fault; a host without a cluster may have none."""

    async def follow(self) -> None:
        """Begin to deliver, and go on until cancelled or stopped; an error ends the process."""

    def wait_for_node(self, timeout: float, usable: Callable[[Node], bool] = ..., /) -> Node | None:
        """Wait for the Node up to `timeout` seconds, as long as it may still come; None if it does not. Called in a thread."""

    def stop(self) -> None:
        """End what goes on, and wake who waits. The store stays as it is."""


class Sourcing(Protocol):
    """Makes a source that delivers into a store."""

    def __call__(self, store: Store, *, changed: Callable[[], None], node_changed: Callable[[Node], None]) -> Source:
        """Return it; nothing is read before `follow`.

        `changed` is called when there may be something to sync, `node_changed` with each version of the Node that differs from the
        one before. Both may be called from any thread.
        """
