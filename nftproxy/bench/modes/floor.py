"""The least that a proxy in nftables can cost: one chain with one rule, which translates.

Every TCP connection to a ClusterIP goes to one endpoint. There is no choice, no refusal and no
masquerading, and nothing ever changes. What a mode costs above routing is compared with this.
"""

from collections.abc import Sequence
from typing import Final

from nftproxy.bench.modes.mode import Load, Mode, ModePlace, Work
from nftproxy.bench.modes.programs import Programs
from nftproxy.bench.modes.served import served
from nftproxy.bench.workload import CLUSTER_IPS, ENDPOINT_PORT, SERVICE_PORT

_TABLE: Final = "ip bench-floor"


class Floor(Mode):
    """One `dnat to` rule."""

    name = "floor"

    def __init__(self, place: ModePlace) -> None:
        super().__init__(place)
        self._programs = Programs(place.namespace)

    def start(self, load: Sequence[Load]) -> Work:
        """Write the rule, for the first endpoint of the first service."""
        address = served(load[0], self.place.settings)[0].cluster[0].address
        text = (
            f"table {_TABLE} {{\n"
            "chain nat-prerouting {\n"
            "type nat hook prerouting priority -100\n"
            f"ip daddr {CLUSTER_IPS} tcp dport {SERVICE_PORT} dnat to {address}:{ENDPOINT_PORT}\n"
            "}\n}\n"
        )
        return self._programs.measured(lambda: self._nft(text))

    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:  # noqa: ARG002
        """Do nothing."""
        return Work()

    def restart(self, load: Sequence[Load]) -> Work:  # noqa: ARG002
        """Do nothing."""
        return Work()

    def stop(self) -> None:
        """Remove the table."""
        self._nft(f"add table {_TABLE}\ndelete table {_TABLE}\n")

    def _nft(self, text: str) -> None:
        self._programs.run("nft", "-f", "-", given=text)
