"""The cluster as last delivered by a source, and the dirty services, which a sync has to examine.

Objects are immutable; a change replaces one. Every family has its own set of dirty services, so
that a failure of one family never delays the other (contract 1.3.10). An unchanged object changes
nothing (contract 1.1.9). All methods may be called from any thread.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from nftproxy.address import Family, Network, collapse, pack, parse_network
from nftproxy.errors import AddressError
from nftproxy.model import EndpointSlice, Node, Object, ObjectName, Service, ServiceCIDR

Pending = tuple[Service | None, tuple[EndpointSlice, ...]]


@dataclass(slots=True)
class Taken:
    """The services that one sync of a family has to examine; a deleted one maps to None."""

    services: dict[ObjectName, Pending] = field(default_factory=dict)
    zone: str = ""
    networks: list[Network] | None = None  # service CIDRs of the family, when they changed


class Watcher(Protocol):
    """Notified of every change before a sync can apply it.

    Called with the store locked, so it must be quick.
    """

    def service_changed(self, name: ObjectName, /) -> None:
        """Note that a Service is new, different or deleted."""

    def slice_changed(self, piece: EndpointSlice, /) -> None:
        """Note that an EndpointSlice is new or different."""

    def slice_deleted(self, piece: EndpointSlice, /) -> None:
        """Note that an EndpointSlice was deleted."""


class Unwatched:
    """A watcher that does nothing."""

    def service_changed(self, name: ObjectName, /) -> None:
        """Do nothing."""

    def slice_changed(self, piece: EndpointSlice, /) -> None:
        """Do nothing."""

    def slice_deleted(self, piece: EndpointSlice, /) -> None:
        """Do nothing."""


class Store:
    """All objects of the cluster that matter to this node."""

    def __init__(
        self,
        families: Iterable[Family],
        watcher: Watcher | None = None,
        *,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start empty; `note` gets a line about each object without effect, once."""
        self._note = note
        self._noted: dict[type[Object], set[ObjectName]] = {Service: set(), EndpointSlice: set()}
        self._watcher: Watcher = watcher or Unwatched()
        self._lock = threading.Lock()
        self._services: dict[ObjectName, Service] = {}
        self._slices: dict[
            ObjectName, dict[str, EndpointSlice]
        ] = {}  # by service, then by slice name
        self._owners: dict[ObjectName, ObjectName] = {}  # slice -> service
        self._cidrs: dict[str, ServiceCIDR] = {}
        self._node: Node | None = None
        self._zone = ""
        self._dirty: dict[Family, set[ObjectName]] = {family: set() for family in families}
        self._cidrs_dirty: set[Family] = set(self._dirty)
        self._delivered: set[type[Object]] = set()

    @property
    def complete(self) -> bool:
        """Whether all Services and all EndpointSlices were delivered once (contract 1.2.4)."""
        return {Service, EndpointSlice} <= self._delivered

    @property
    def node(self) -> Node | None:
        """The last known Node object; its deletion does not remove it (contract 1.4.4)."""
        return self._node

    def owner(self, cluster_ip: str) -> ObjectName | None:
        """Return the Service that has a ClusterIP.

        Looks at each, which takes 2 ms for 10 000.
        """
        packed = pack(cluster_ip)
        with self._lock:
            for name, service in self._services.items():
                spec = service.spec
                for text in (spec.cluster_ip, *(spec.cluster_ips or ())):
                    if text and (text == cluster_ip or (":" in text and _is(text, packed))):
                        return name
        return None

    def delivered(self, kind: type[Object]) -> None:
        """Note that the source has delivered all objects of a kind."""
        self._delivered.add(kind)

    def put(self, item: Object) -> bool:
        """Put a new or changed object; return whether it changes anything for any family."""
        with self._lock:
            match item:
                case Service():
                    return self._put_service(item)
                case EndpointSlice():
                    return self._put_slice(item)
                case ServiceCIDR():
                    changed = self._cidrs.get(item.metadata.name) != item
                    self._cidrs[item.metadata.name] = item
                    return self._mark_cidrs(changed=changed)
                case Node():
                    return self._put_node(item)

    def remove(self, kind: type[Object], key: ObjectName) -> bool:
        """Forget an object; return whether that changes anything.

        An unknown one is no error (contract 1.3.8).
        """
        with self._lock:
            if kind is Service:
                self._noted[Service].discard(key)
                return self._services.pop(key, None) is not None and self._mark_service(key)
            if kind is EndpointSlice:
                self._noted[EndpointSlice].discard(key)
                return self._drop_slice(key)
            if kind is ServiceCIDR:
                return self._mark_cidrs(changed=self._cidrs.pop(key.name, None) is not None)
            return False

    def replace(
        self, kind: type[Object], items: Iterable[Object], *, keep: Collection[ObjectName] = ()
    ) -> bool:
        """Replace all objects of a kind by `items`, after a list.

        Return whether that changes anything.

        Known objects in `keep` stay: they are in the list, but their new version is unusable.
        """
        items = list(items)
        with self._lock:
            known = {
                Service: list(self._services),
                EndpointSlice: [*self._owners, *self._noted[EndpointSlice]],
            }.get(kind)
            if known is None:
                known = (
                    [c.metadata.key for c in self._cidrs.values()] if kind is ServiceCIDR else []
                )
        present = {item.metadata.key for item in items}
        changed = [
            self.remove(kind, key) for key in known if key not in present and key not in keep
        ]
        changed += [self.put(item) for item in items]
        self.delivered(kind)
        return any(changed)

    def take_dirty(self, family: Family, *, everything: bool = False) -> Taken:
        """Return the dirty services of `family`, all with `everything`; count them as done."""
        with self._lock:
            names = set(self._dirty[family])
            self._dirty[family].clear()
            if everything:
                names |= self._services.keys()
            taken = Taken(zone=self._zone)
            for name in names:
                taken.services[name] = (
                    self._services.get(name),
                    tuple(self._slices.get(name, {}).values()),
                )
            if everything or family in self._cidrs_dirty:
                self._cidrs_dirty.discard(family)
                taken.networks = collapse(
                    [n for n in _networks(self._cidrs.values()) if n.family is family]
                )
            return taken

    def give_back(self, family: Family, taken: Taken) -> None:
        """Mark the services of a failed sync dirty again."""
        with self._lock:
            self._dirty[family].update(taken.services)
            if taken.networks is not None:
                self._cidrs_dirty.add(family)

    def pending(self, family: Family) -> bool:
        """Whether a sync of `family` has anything to do."""
        return bool(self._dirty[family]) or family in self._cidrs_dirty

    def _put_service(self, service: Service) -> bool:
        key = service.metadata.key
        labels = service.metadata.labels
        if (
            labels is not None and labels.proxy_name is not None
        ):  # it now belongs to another proxy (contract 1.1.5, 1.1.7)
            return self._services.pop(key, None) is not None and self._mark_service(key)
        if self._services.get(key) == service:
            return False
        self._services[key] = service
        if service.unassigned:
            self._note_once(
                Service,
                key,
                f"Service {key} is left out: it has no spec.clusterIP, which an API server would "
                "assign; set one, or try it with "
                "nftproxy render --assign-cluster-ips",
            )
        else:
            self._noted[Service].discard(key)
        return self._mark_service(key)

    def _put_slice(self, piece: EndpointSlice) -> bool:
        key, owner = piece.metadata.key, piece.service
        labels = piece.metadata.labels
        if labels is not None and labels.headless is not None:  # contract 1.1.6
            return self._drop_slice(key)
        if owner is None:  # 3.1.1
            self._note_once(
                EndpointSlice,
                key,
                f"EndpointSlice {key} has no label kubernetes.io/service-name, so no Service uses "
                "its endpoints; "
                "set the label to the name of the Service",
            )
            return self._drop_slice(key)
        self._noted[EndpointSlice].discard(key)
        before = self._owners.get(key)
        if before is not None and (
            before != owner or self._slices[before][key.name].address_type != piece.address_type
        ):
            # The label was changed in place (contract 3.2.5); or the slice was deleted and created
            # again unseen.
            self._drop_slice(key)
        slices = self._slices.setdefault(owner, {})
        if slices.get(key.name) == piece:
            return False
        slices[key.name] = piece
        self._owners[key] = owner
        self._watcher.slice_changed(piece)
        return self._mark(owner, self._families_of(piece))

    def _note_once(self, kind: type[Object], key: ObjectName, text: str) -> None:
        if key not in self._noted[kind]:
            self._noted[kind].add(key)
            self._note(text)

    def _drop_slice(self, key: ObjectName) -> bool:
        owner = self._owners.pop(key, None)
        if owner is None:
            return False
        piece = self._slices[owner].pop(key.name)
        if not self._slices[owner]:
            del self._slices[owner]
        self._watcher.slice_deleted(piece)
        return self._mark(owner, self._families_of(piece))

    def _put_node(self, node: Node) -> bool:
        self._node = node
        if node.zone == self._zone:
            return False
        self._zone = node.zone
        for dirty in self._dirty.values():  # hints may have another meaning now (contract 1.4.1)
            dirty.update(self._services)
        return True

    def _families_of(self, piece: EndpointSlice) -> list[Family]:
        """Return the families that use a slice.

        All of them have to report that they ignore one with names.
        """
        return [family for family in self._dirty if piece.address_type in {family, "FQDN"}]

    def _mark_service(self, name: ObjectName) -> bool:
        self._watcher.service_changed(name)
        return self._mark(name, self._dirty)

    def _mark(self, name: ObjectName, families: Iterable[Family]) -> bool:
        for family in families:
            self._dirty[family].add(name)
        return bool(families)

    def _mark_cidrs(self, *, changed: bool) -> bool:
        if changed:
            self._cidrs_dirty.update(self._dirty)
        return changed


def _is(text: str, packed: bytes) -> bool:
    """Whether a text is another spelling of an address."""
    try:
        return pack(text) == packed
    except OSError:
        return False


def _networks(cidrs: Iterable[ServiceCIDR]) -> Iterable[Network]:
    """Yield the networks of all ServiceCIDRs (contract 1.5.1, 1.5.3); invalid ones are skipped."""
    for each in cidrs:
        for text in each.spec.cidrs or ():
            try:
                yield parse_network(text)
            except AddressError:
                continue
