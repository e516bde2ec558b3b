"""No proxy: clients use the endpoints' own addresses.

The cost is the network's share in every other mode.
"""

from collections.abc import Sequence

from nftproxy.bench.modes.mode import Load, Mode, Work


class Nothing(Mode):
    """Writes nothing."""

    name = "none"

    def start(self, load: Sequence[Load]) -> Work:  # noqa: ARG002
        """Do nothing."""
        return Work()

    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:  # noqa: ARG002
        """Do nothing."""
        return Work()

    def restart(self, load: Sequence[Load]) -> Work:  # noqa: ARG002
        """Do nothing."""
        return Work()

    def stop(self) -> None:
        """Leave nothing."""
