"""Which endpoint a new connection to a NodePort gets.

Pure, except that chance decides: any endpoint with the same probability, as the rules do. With
affinity all clients are one, as all have the same address: each connection goes where the last one
went, and renews the time (contract 2.10.5).
"""

import random

from nftproxy.forwarder.messages import Backends


class Choosing:
    """The endpoints of a NodePort, and the one that its clients keep."""

    def __init__(self, backends: Backends) -> None:
        self.backends = backends
        self._kept: tuple[str, int] | None = None
        self._until = 0.0

    def endpoint(self, now: float) -> tuple[str, int]:
        """Return the endpoint of a connection that is made now."""
        endpoints, seconds = self.backends.endpoints, self.backends.affinity
        chosen = self._kept
        if chosen is None or seconds is None or now >= self._until or chosen not in endpoints:
            chosen = random.choice(endpoints)  # noqa: S311 - a balance, no secret
        if seconds is not None:
            self._kept, self._until = chosen, now + seconds
        return chosen
