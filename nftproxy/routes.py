"""From a Service's endpoint lists to its routes.

Pure, apart from the notes it collects. A *route* is everything one frontend does; the elements
follow from it alone. The memory of the table consists of routes: they are small, and all frontends
of a service port share the tuples of endpoints.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from nftproxy.address import Address, Family, Network, bracketed
from nftproxy.model import EndpointSlice, ObjectName, Scheduler, Service, ServicePort
from nftproxy.selection import Endpoint, Lists, Locality, Notes, View, by_port, lists, view
from nftproxy.sharing import Shared, SharedPart, grouped
from nftproxy.table import schema
from nftproxy.table.schema import Policy
from nftproxy.table.shares import scheduled

# Characters of a comment that the kernel keeps: 128 bytes with the end mark (libnftnl's
# NFTNL_UDATA_COMMENT_MAXLEN); and of one that is cut
COMMENT, CUT = 127, 124


class Verdict(NamedTuple):
    """The target of a verdict map's element, and its service port, for whoever lists the map."""

    verb: str  # goto, jump or drop
    target: str = ""
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.target}".rstrip()

    @property
    def drops(self) -> bool:
        """Whether packets are dropped, logged or not."""
        return self.verb == "drop" or self.target == schema.DROP_NEW


Key = tuple[str | int, ...]
# A verdict, an endpoint, the address of an endpoint, or nothing in a set
Value = Verdict | tuple[str | int, ...] | str | None


class Element(NamedTuple):
    """One element: the set or map it is in, its key, and its value in a map."""

    where: str
    key: Key
    value: Value = None


class Frontend(NamedTuple):
    """The place where clients connect: address, protocol (in nft's spelling) and port.

    The address is canonical, or empty for a NodePort.
    """

    address: str
    proto: str
    port: int

    def __str__(self) -> str:
        host = "*" if self.is_node_port else bracketed(self.address)
        return f"{host}:{self.port}/{self.proto}"

    @classmethod
    def node_port(cls, proto: str, port: int) -> "Frontend":
        """Return a NodePort, on all addresses that accept them."""
        return cls("", proto, port)

    @classmethod
    def of_key(cls, key: Key) -> "Frontend":
        """Return the frontend of a key in maps of verdicts."""
        if len(key) == 2:
            return cls.node_port(str(key[0]), int(key[1]))
        return cls(str(key[0]), str(key[1]), int(key[2]))

    @classmethod
    def of_slot(cls, key: Key, proto: str) -> "Frontend":
        """Return the frontend of a key in a map of endpoints."""
        return cls.of_key((*key[:-2], proto, key[-2]))

    @property
    def is_node_port(self) -> bool:
        """Whether it is at every address that accepts NodePorts."""
        return not self.address

    @property
    def key(self) -> Key:
        """Its key in maps of verdicts."""
        return (
            (self.proto, self.port) if self.is_node_port else (self.address, self.proto, self.port)
        )

    def slot(self, number: int) -> Key:
        """Its key in maps of endpoints."""
        return (self.port, number) if self.is_node_port else (self.address, self.port, number)


class Refusal(enum.Enum):
    """The fate of a new connection that no list takes (contract 2.5)."""

    NONE = Verdict("")
    REJECT = Verdict("goto", schema.REJECT_NEW)
    DROP = Verdict("drop")
    LOGGED_DROP = Verdict("goto", schema.DROP_NEW)


class Affinity(msgspec.Struct, frozen=True, gc=False):
    """ClientIP affinity of one service port.

    The endpoints to remember, and for how many seconds.
    """

    name: str  # namespace/service/protocol/port name, bounded; part of chain and map names
    family: Family
    proto: str
    timeout: int
    cluster: Sequence[Endpoint]
    local: Sequence[Endpoint]
    # How its frontends are entered: policy, and whether as a NodePort
    entries: tuple[tuple[Policy, bool], ...]
    part: SharedPart | None = None  # of the memory that the ports of its Service share
    scheduler: Scheduler = Scheduler.RANDOM
    sizes: tuple[int, int] | None = None  # slots of both lists; None: as many as endpoints

    @property
    def ports(self) -> tuple[int, ...]:
        """The port numbers of the endpoints that it has memories for, nearly always one."""
        if self.part:
            return ()
        return tuple(sorted({e.port for each in (self.cluster, self.local) for e in each}))

    @property
    def ports_name(self) -> str:
        """The port numbers as in chain names."""
        if self.part:
            return self.part.lookup
        return schema.ports(self.ports, self.scheduler)

    @property
    def picks(self) -> tuple[str, ...]:
        """Return the names of the chains that choose for a client who is not known yet."""
        cluster, local = self.sizes or (len(self.cluster), len(self.local))
        picks = (
            schema.pick(p, self.family, self.proto, cluster, local, self.scheduler, node_port=n)
            for p, n in self.entries
        )
        return tuple(filter(None, picks))

    def sticky(self, picked: str) -> str:
        """Return the name of the chain that looks the client up before a pick.

        A chain with other content has another name.
        """
        return schema.sticky(picked, self.ports_name, self.name)

    @property
    def learn(self) -> str:
        """Return the name of the chain that remembers clients, for the lists in use."""
        cluster = any(policy.uses_cluster for policy, _ in self.entries)
        local = any(policy.uses_local for policy, _ in self.entries)
        return schema.learn(
            self.family,
            self.timeout,
            self.part.groups if self.part else self.ports_name,
            self.part.service if self.part else self.name,
            cluster=cluster,
            local=local,
            shared=self.part is not None,
        )

    @property
    def chains(self) -> tuple[str, ...]:
        """Return the names of the chains that its frontends go to."""
        return (self.learn, *map(self.sticky, self.picks))

    def memories(self, ports: Iterable[int]) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the names of the maps from client to endpoint address, each with its addresses."""
        for declaration, members in (
            (schema.AFFINITY, self.cluster),
            (schema.LOCAL_AFFINITY, self.local),
        ):
            for port in ports:
                usable = frozenset(member.address for member in members if member.port == port)
                yield declaration.name(self.family, self.name, port), usable


class Route(msgspec.Struct, frozen=True, gc=False):
    """Everything one frontend does."""

    name: str  # of the service port: namespace/service:port, as long as the kernel keeps a comment
    frontend: Frontend
    policy: Policy
    # In the order of slots; an endpoint may have several
    cluster: Sequence[Endpoint]
    local: Sequence[Endpoint]
    refusal: Refusal
    affinity: Affinity | None = None
    sources: tuple[Network, ...] | None = (
        None  # allowed clients of a load-balancer address; None: all
    )
    refused_on_localhost: bool = False  # a NodePort that loopback addresses refuse
    scheduler: Scheduler = Scheduler.RANDOM


class Compiled(msgspec.Struct, frozen=True, gc=False):
    """Everything that one Service puts into the table, for one family."""

    created: str  # creationTimestamp: of two Services with the same frontend, the older one has it
    cluster_ip: str
    routes: tuple[Route, ...]
    affinities: tuple[Affinity, ...]
    # Address, the same address, protocol, port of the endpoints on this node
    hairpins: tuple[Key, ...]
    shared: Shared | None = None  # the memory of the affinities, if it is not one for each port


class Context(NamedTuple):
    """The node's share in every Service.

    Its place, its address of the family, and a feature gate.
    """

    family: Family
    here: Locality
    node_ip: str  # canonical; empty when unknown
    external_ips: bool = True
    log_refusals: bool = False
    refused_on_localhost: frozenset[str] = frozenset()  # protocols of NodePorts


Choose = Callable[[View, ServicePort, tuple[EndpointSlice, ...], Family, Locality, Notes], Lists]
"""Chooses the endpoint lists of a service port."""


def compile_service(
    service: Service,
    slices: Iterable[EndpointSlice],
    context: Context,
    notes: Notes,
    choose: Choose = lists,
) -> Compiled | None:
    """Return what `service` puts into the table; None if it does not exist for this family.

    `notes` collects a line for each part that is ignored.
    """
    seen = view(service, context.family, notes, external_ips=context.external_ips)
    if seen is None:
        return None
    slices = tuple(slices)
    ports = service.spec.ports or ()
    having = by_port(slices, context.family) if choose is lists and len(ports) > 1 else None
    routes: dict[Frontend, Route] = {}
    hairpins: dict[Key, None] = {}
    chosen_lists = [
        choose(
            seen,
            port,
            having(port) if having else slices,
            context.family,
            context.here,
            notes,
        )
        for port in ports
    ]
    slots_lists = [_slots(chosen, seen.scheduler) for chosen in chosen_lists]
    remembering = [
        _affinity(service.metadata.key, port, seen, chosen, slots, context.family)
        for port, chosen, slots in zip(ports, chosen_lists, slots_lists, strict=True)
    ]
    affinities = [affinity for affinity in remembering if affinity]
    shared: Shared | None = None
    if seen.affinity_shared and affinities:
        affinities, shared = _sharing(service.metadata.key, affinities)
    following = iter(affinities)
    for port, chosen, slots, own in zip(ports, chosen_lists, slots_lists, remembering, strict=True):
        proto, affinity = port.protocol.nft, next(following) if own else None
        hairpins.update(dict.fromkeys((e.address, e.address, proto, e.port) for e in chosen.here))
        for route in _routes(service.metadata.key, seen, port, slots, affinity, context):
            routes.setdefault(route.frontend, _logged(route) if context.log_refusals else route)
    return Compiled(
        service.metadata.creation_timestamp or "",
        seen.cluster_ip,
        tuple(routes.values()),
        tuple(affinities),
        tuple(hairpins),
        shared,
    )


def _slots(chosen: Lists, scheduler: Scheduler) -> Lists:
    """Return lists with their endpoints in slots; the same object if each has one."""
    if scheduler is Scheduler.RANDOM and not chosen.weights:
        return chosen
    cluster, local = (
        scheduled(each, chosen.weights, scheduler) for each in (chosen.cluster, chosen.local)
    )
    return msgspec.structs.replace(chosen, cluster=cluster, local=local)


def _routes(
    service: ObjectName,
    seen: View,
    port: ServicePort,
    chosen: Lists,
    affinity: Affinity | None,
    context: Context,
) -> Iterator[Route]:
    """Yield the routes of one service port, by kind of frontend (contract 2.2)."""
    proto = port.protocol.nft
    name = _comment(f"{service}:{port.name}" if port.name else str(service))  # contract 5.3.1
    by = seen.scheduler
    cluster = Frontend(seen.cluster_ip, proto, port.port)
    yield _route(name, cluster, _internal(seen), chosen, affinity, by)
    external = _external(seen)
    sources = _sources(seen, context)
    for (
        address
    ) in seen.vips:  # before external IPs: an address that is both keeps its source ranges
        frontend = Frontend(address, proto, port.port)
        yield _route(name, frontend, external, chosen, affinity, by, sources)
    for address in seen.external_ips:
        yield _route(name, Frontend(address, proto, port.port), external, chosen, affinity, by)
    if port.node_port:
        frontend = Frontend.node_port(proto, port.node_port)
        route = _route(name, frontend, external, chosen, affinity, by)
        if proto in context.refused_on_localhost:
            route = msgspec.structs.replace(route, refused_on_localhost=True)
        yield route


def _internal(seen: View) -> Policy:
    return Policy.LOCAL if seen.internal_local else Policy.CLUSTER


def _external(seen: View) -> Policy:
    return Policy.PRESERVE if seen.external_local else Policy.EXTERNAL


def _route(
    name: str,
    frontend: Frontend,
    policy: Policy,
    chosen: Lists,
    affinity: Affinity | None,
    scheduler: Scheduler,
    sources: tuple[Network, ...] | None = None,
) -> Route:
    """Decide lists and refusal of one frontend (contract 2.5)."""
    cluster = chosen.cluster if policy.uses_cluster else ()
    local = chosen.local if policy.uses_local else ()
    if not chosen.usable_anywhere:
        refusal = Refusal.REJECT
    elif not (local if policy.uses_local else cluster):
        refusal = Refusal.DROP
    else:
        refusal = Refusal.NONE
    return Route(
        name,
        frontend,
        policy,
        cluster,
        local,
        refusal,
        affinity if cluster or local else None,
        sources,
        scheduler=scheduler,
    )


def _logged(route: Route) -> Route:
    """Return a route whose refusals can be logged: the verdict "drop" cannot."""
    drops = route.refusal is Refusal.DROP
    return msgspec.structs.replace(route, refusal=Refusal.LOGGED_DROP) if drops else route


def _affinity(
    service: ObjectName,
    port: ServicePort,
    seen: View,
    chosen: Lists,
    slots: Lists,
    family: Family,
) -> Affinity | None:
    if seen.affinity_seconds is None or not (chosen.cluster or chosen.local):
        return None
    proto = port.protocol.nft
    name = schema.bounded(f"{service}/{proto}/{port.name or ''}")
    entries = [(_internal(seen), False)]
    if seen.vips or seen.external_ips:
        entries.append((_external(seen), False))
    if port.node_port:
        entries.append((_external(seen), True))
    return Affinity(
        name,
        family,
        proto,
        seen.affinity_seconds,
        chosen.cluster,
        chosen.local,
        tuple(entries),
        scheduler=seen.scheduler,
        sizes=None if slots is chosen else (len(slots.cluster), len(slots.local)),
    )


def _sharing(service: ObjectName, own: list[Affinity]) -> tuple[list[Affinity], Shared]:
    """Return the affinities of a Service whose ports share a memory, and that memory."""
    name, first = schema.bounded(str(service)), own[0]
    cluster, of_cluster = grouped(name, [affinity.cluster for affinity in own])
    local, of_local = grouped(name, [affinity.local for affinity in own])
    joined = [
        msgspec.structs.replace(affinity, part=SharedPart.of(name, in_cluster, in_local))
        for affinity, in_cluster, in_local in zip(own, of_cluster, of_local, strict=True)
    ]
    return joined, Shared(first.family, name, first.timeout, cluster, local)


def _sources(seen: View, context: Context) -> tuple[Network, ...] | None:
    """Add the load-balancer addresses to the allowed sources if the node is one (contract 2.7.6).

    Traffic of the node to its own load-balancer address may have that address as its source.
    """
    if seen.ranges is None or not context.node_ip:
        return seen.ranges
    node = Address(context.family, context.node_ip)
    if not any(network.contains(node) for network in seen.ranges):
        return seen.ranges
    own = (Network(context.family, vip, context.family.bits) for vip in seen.vips)
    return tuple(sorted({*seen.ranges, *own}))


def _comment(text: str) -> str:
    """Shorten a comment to what the kernel keeps."""
    return text if len(text) <= COMMENT else f"{text[:CUT]}..."
