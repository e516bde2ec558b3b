"""The services of one round.

Those of a workload, except the last, which is UDP, and one for iperf3.
"""

from typing import Any, Final

import msgspec

from nftproxy.bench.client import BenchTarget
from nftproxy.bench.measures import MeasurePlace
from nftproxy.bench.modes import Load
from nftproxy.bench.workload import (
    ENDPOINT_PORT,
    SERVICE_PORT,
    Mix,
    Workload,
    decode_service,
    decode_slice,
)

FEWEST: Final = 5  # services: three to connect to, one for iperf3, one for datagrams
IPERF_PORT: Final = 5201


class Offer(msgspec.Struct, frozen=True):
    """A number of services with a number of endpoints each."""

    services: int
    endpoints: int = 3
    mix: Mix = Mix.PLAIN

    def workload(self, protocol: str = "TCP") -> Workload:
        """Return the workload behind it."""
        return Workload(self.services, self.endpoints, self.mix, protocol)

    @property
    def datagrams(self) -> int:
        """The UDP service."""
        return self.services - 1

    @property
    def iperf(self) -> int:
        """The service whose endpoints are iperf3."""
        return self.services - 2

    def place(self, place: MeasurePlace) -> int:
        """Return the service at a place of the list."""
        last = self.services - 3
        return {MeasurePlace.START: 0, MeasurePlace.MIDDLE: last // 2, MeasurePlace.END: last}[
            place
        ]

    def spread(self, count: int) -> list[int]:
        """Return `count` services from all over the list, or all if there are fewer."""
        most = self.services - 2
        return list(range(0, most, max(1, most // count)))[:count]

    def documents(self, number: int, replaced: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a service and its slice, after `replaced` changes of an endpoint."""
        workload = self.workload("UDP" if number == self.datagrams else "TCP")
        piece = workload.slice_document(number, replaced)
        if number == self.iperf:
            piece["ports"][0]["port"] = IPERF_PORT
        return workload.service_document(number), piece

    def load(self, number: int, replaced: int = 0) -> Load:
        """Return the same, decoded from bytes of its own."""
        service, piece = map(msgspec.json.encode, self.documents(number, replaced))
        return Load(decode_service(service), (decode_slice(piece),))

    def target(self, number: int, *, proxied: bool) -> BenchTarget:
        """Return the address of a service, or without a proxy of one of its endpoints."""
        if proxied:
            return BenchTarget(self.workload().cluster_ip(number), SERVICE_PORT)
        return BenchTarget(
            self.workload().addresses(number)[0],
            IPERF_PORT if number == self.iperf else ENDPOINT_PORT,
        )
