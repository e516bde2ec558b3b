"""What a daemon needs from a source of objects, an API server or manifests."""

from collections.abc import Callable
from typing import Protocol

from nftproxy.model import Node
from nftproxy.store import Store


class Source(Protocol):
    """Keeps a store in step with a cluster, or with files."""

    node_required: bool
    """Whether a missing Node is a fault; a host without a cluster needs no Node."""

    async def follow(self) -> None:
        """Deliver until cancelled or stopped; an error ends the process."""

    def wait_for_node(self, timeout: float, usable: Callable[[Node], bool] = ..., /) -> Node | None:
        """Wait up to `timeout` seconds for the Node; None without one. Called in a thread."""

    def stop(self) -> None:
        """End all work, and wake the waiting threads. The store stays unchanged."""


class Sourcing(Protocol):
    """Makes a source that delivers into a store."""

    def __call__(
        self,
        store: Store,
        *,
        changed: Callable[[], None],
        node_changed: Callable[[Node | None], None],
    ) -> Source:
        """Return it; nothing is read before `follow`.

        `changed` is called when there may be something to sync, `node_changed` with each version of
        the Node that differs from the one before, and None when it was deleted. Both may be called
        from any thread.
        """
