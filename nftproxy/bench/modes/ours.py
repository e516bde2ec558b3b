"""nftproxy itself.

A table written by the code of `nftproxy run`, without the API server and without pauses between
syncs.
"""

import time
from collections.abc import Sequence
from typing import ClassVar

from msgspec.structs import replace

from nftproxy.bench.modes.mode import Load, Mode, ModePlace, Work
from nftproxy.errors import NftproxyError
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.namespace import enter
from nftproxy.model import Annotations, EndpointSlice, Scheduler, Service
from nftproxy.node import interfaces
from nftproxy.store import Store
from nftproxy.sync.table import Table


class Ours(Mode):
    """Our table; `own` is the time from decoded objects to the commit."""

    name = "nftproxy"
    by_netlink: ClassVar[bool] = False

    def __init__(self, place: ModePlace) -> None:
        super().__init__(place)
        self._table: Table | None = None

    def start(self, load: Sequence[Load]) -> Work:
        """Deliver everything and sync, which reads an existing table back."""
        load = self._adapted(load)
        self._close()
        with enter(self.place.namespace):
            kernel = Kernel(by_netlink=self.by_netlink)
            self._addresses = interfaces.addresses()
        began = time.perf_counter()
        table = Table(self.place.settings, Store(self.place.settings.families), kernel)
        self._table = table
        table.store.put(self.place.service_cidr)
        _put(table.store, load)
        self._sync(table)
        return Work(own=time.perf_counter() - began)

    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:
        """Deliver changes as a watch does, and sync."""
        if self._table is None:
            raise NftproxyError("this mode was not started")
        put = self._adapted(put)
        began = time.perf_counter()
        _put(self._table.store, put)
        for each in deleted:
            self._table.store.remove(Service, each.name)
            for piece in each.slices:
                self._table.store.remove(EndpointSlice, piece.metadata.key)
        self._sync(self._table)
        return Work(own=time.perf_counter() - began)

    def restart(self, load: Sequence[Load]) -> Work:
        """Start again, with an empty memory."""
        return self.start(load)

    def stop(self) -> None:
        """Remove the table."""
        self._close()
        with enter(self.place.namespace):
            kernel = Kernel()
        with kernel:
            kernel.delete_table()

    def adapt(self, service: Service) -> Service:
        """Return a Service as this mode serves it."""
        return service

    def _adapted(self, load: Sequence[Load]) -> Sequence[Load]:
        return [each._replace(service=self.adapt(each.service)) for each in load]

    def _sync(self, table: Table) -> None:
        for family in table.settings.families:
            refused = table.sync(family, self._addresses).refused
            if refused:
                name, reason = next(iter(refused.items()))
                raise NftproxyError(f"service {name} was refused: {reason}")

    def _close(self) -> None:
        if self._table is not None:
            self._table.kernel.close()
            self._table = None


class OursByNetlink(Ours):
    """The same, with elements written through netlink.

    The difference is the cost of JSON through libnftables.
    """

    name = "nftproxy-netlink"
    by_netlink = True


class OursBySourceHash(Ours):
    """The same, with an endpoint by the client's address."""

    name = "nftproxy-source-hash"

    def adapt(self, service: Service) -> Service:
        """Return the Service with the annotation."""
        return _scheduled(service, Scheduler.SOURCE_HASH)


class OursByMaglev(Ours):
    """The same, with a table of endpoints that changes little when they do."""

    name = "nftproxy-maglev"

    def adapt(self, service: Service) -> Service:
        """Return the Service with the annotation."""
        return _scheduled(service, Scheduler.MAGLEV)


class OursByAffinity(Ours):
    """The same, with an endpoint that each client keeps for three hours."""

    name = "nftproxy-affinity"

    def adapt(self, service: Service) -> Service:
        """Return the Service with ClientIP affinity."""
        return replace(service, spec=replace(service.spec, session_affinity="ClientIP"))


def _scheduled(service: Service, scheduler: Scheduler) -> Service:
    annotations = Annotations(scheduler=scheduler.value)
    return replace(service, metadata=replace(service.metadata, annotations=annotations))


def _put(store: Store, load: Sequence[Load]) -> None:
    for each in load:
        store.put(each.service)
        for piece in each.slices:
            store.put(piece)
