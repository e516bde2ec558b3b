"""The table, turned back into Services: frontends, endpoints and refusals.

From elements and their counters to values, without the cluster's objects; so this is what packets
meet, not what somebody wished for. Counters start with the last write of their element. They count
connections, because nat chains see the first packet of each alone. Only `take_snapshot` reads; all
else is pure.
"""

import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from nftproxy.address import Family, pack
from nftproxy.errors import MissingError
from nftproxy.kernel.reader import Counted, Reader
from nftproxy.model import Scheduler
from nftproxy.routes import Frontend, Key, Verdict
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.schema import Declaration, Policy


class AddressKind(enum.StrEnum):
    """The kind of an address.

    External IPs and load-balancer addresses look alike in the table unless sources are limited.
    """

    CLUSTER_IP = "ClusterIP"
    EXTERNAL = "External"
    LOAD_BALANCER = "LoadBalancer"
    NODE_PORT = "NodePort"


class ShownValue(msgspec.Struct, frozen=True, rename="camel"):
    """The base of what `show --output json` prints."""


class Listed(ShownValue, frozen=True):
    """An endpoint in one of a frontend's lists, and how often it was picked.

    `slots` is how many it has of the list's: its share.
    """

    address: str
    port: int
    connections: int
    slots: int = 1

    @property
    def endpoint(self) -> Endpoint:
        """Where it is."""
        return Endpoint(self.address, self.port)


class ShownRefusal(ShownValue, frozen=True):
    """The fate of connections that no list takes; every packet of a new one counts."""

    verdict: str  # reject or drop
    reason: str
    packets: int


class ShownAffinity(ShownValue, frozen=True):
    """ClientIP affinity of a service port in one family.

    `clients` counts those remembered, by endpoint; `shared` means by all ports of the Service.
    """

    timeout_seconds: int
    clients: dict[str, int]
    shared: bool = False


class Shown(ShownValue, frozen=True):
    """One frontend.

    An empty address means: on the addresses that accept NodePorts. Sources None means: everybody.
    """

    family: Family
    kind: AddressKind
    address: str
    protocol: str
    port: int
    policy: Policy | None  # None: there is no endpoint to choose
    connections: int
    cluster: tuple[Listed, ...]
    local: tuple[Listed, ...]
    refused: ShownRefusal | None
    affinity: ShownAffinity | None
    sources: tuple[str, ...] | None
    scheduler: Scheduler = Scheduler.RANDOM

    @property
    def frontend(self) -> Frontend:
        """The place where clients connect."""
        return Frontend(self.address, self.protocol, self.port)


class ShownServicePort(ShownValue, frozen=True):
    """A service port by the name in its elements, namespace/service:port."""

    name: str
    frontends: tuple[Shown, ...]

    def is_called(self, name: str) -> bool:
        """Whether `name` means this port, or its service with all ports."""
        return name in {self.name, self.name.partition(":")[0]}


@dataclass(slots=True)
class _Found:
    """The content of the maps about one frontend."""

    steps: dict[Declaration, tuple[Verdict, int]] = field(default_factory=dict)
    # By "is the local list"
    slots: dict[bool, dict[int, Listed]] = field(default_factory=lambda: {False: {}, True: {}})
    sources: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The service port, from any verdict except those of affinity and source ranges."""
        return next((verdict.comment for verdict, _ in self.steps.values() if verdict.comment), "?")


class Snapshot(ShownValue, frozen=True):
    """The whole table.

    Services, the addresses that accept NodePorts ("all": every one but loopback), service CIDRs,
    and the endpoints that are gone, each with its protocol, where their clients are reset.
    """

    services: tuple[ShownServicePort, ...]
    nodeport_addresses: dict[Family, tuple[str, ...] | Literal["all"]]
    service_cidrs: tuple[str, ...]
    gone_endpoints: tuple[str, ...] | None = None


def take_snapshot(reader: Reader) -> Snapshot | None:
    """Read the table; None if it does not exist.

    Changes meanwhile may be seen half.
    """
    if not reader.table_exists():
        return None
    names = reader.sets()
    nodeports: dict[Family, tuple[str, ...] | Literal["all"]] = {}
    cidrs: list[str] = []
    gone: list[str] | None = None
    for family in (f for f in Family if schema.NODEPORT_IPS.name(f) in names):
        where = schema.NODEPORT_IPS.name(family)
        nodeports[family] = (
            tuple(sorted(str(key[0]) for key in reader.elements(where)))
            if reader.looks_up(where)
            else "all"
        )
        cidrs += [
            str(network) for network in reader.networks(schema.SERVICE_CIDRS.name(family), family)
        ]
        if (where := schema.GONE.name(family)) in names:
            found = [Frontend.of_key(item.element.key) for item in _counted(reader, where)]
            gone = [*(gone or ()), *sorted(map(str, found))]
    return Snapshot(
        services({where: list(_counted(reader, where)) for where in names}),
        nodeports,
        tuple(cidrs),
        None if gone is None else tuple(gone),
    )


def counted_again(reader: Reader, port: ShownServicePort) -> ShownServicePort:
    """Read the counters of one service port again, element by element; those that are gone stay."""
    return msgspec.structs.replace(
        port, frontends=tuple(_counted_again(reader, shown) for shown in port.frontends)
    )


def _counted_again(reader: Reader, shown: Shown) -> Shown:
    maps = schema.maps(shown.family, shown.protocol, shown.frontend.is_node_port)

    def packets(where: str, key: Key, before: int) -> int:
        counted = reader.element(where, key)
        return counted.packets if counted else before

    def slots(where: str, listed: tuple[Listed, ...]) -> tuple[Listed, ...]:
        seen: Counter[Endpoint] = Counter()
        for number in range(sum(one.slots for one in listed)):
            counted = reader.element(where, shown.frontend.slot(number))
            if counted and isinstance(value := counted.element.value, tuple):
                seen[Endpoint(str(value[0]), int(value[1]))] += counted.packets
        return tuple(
            msgspec.structs.replace(one, connections=seen.get(one.endpoint, one.connections))
            for one in listed
        )

    key, refused = shown.frontend.key, shown.refused
    return msgspec.structs.replace(
        shown,
        connections=packets(maps.services, key, shown.connections),
        cluster=slots(maps.endpoints, shown.cluster),
        local=slots(maps.local_endpoints, shown.local),
        refused=refused
        and msgspec.structs.replace(
            refused, packets=packets(maps.no_endpoints, key, refused.packets)
        ),
    )


def _counted(reader: Reader, where: str) -> Iterator[Counted]:
    with suppress(MissingError):  # a map of a ClientIP service that was deleted meanwhile
        yield from reader.counted(where)


def services(elements: Mapping[str, Iterable[Counted]]) -> tuple[ShownServicePort, ...]:
    """Return the service ports in the elements of all sets and maps, by name."""
    found: defaultdict[tuple[Family, Frontend], _Found] = defaultdict(_Found)
    cluster_ips: set[str] = set()
    # By family and name of the affinity
    clients: defaultdict[tuple[Family, str], Counter[str]] = defaultdict(Counter)
    for where, items in elements.items():
        if not (place := schema.parse(where)):
            continue
        if place.declaration is schema.CLUSTER_IPS:
            cluster_ips.update(str(item.element.key[0]) for item in items)
        elif place.declaration.learnt and place.declaration.per is schema.Per.GROUP:
            clients[place.family, place.service] += Counter(
                str(item.element.value) for item in items
            )
        elif place.declaration.learnt:
            name, port = place.memory
            clients[place.family, name] += Counter(
                str(Endpoint(str(item.element.value), port)) for item in items
            )
        else:
            _sort_in(place, items, found)
    ports: defaultdict[str, list[Shown]] = defaultdict(list)
    for (family, frontend), one in sorted(
        found.items(), key=lambda item: _order(item[0], cluster_ips)
    ):
        if any(
            verdict.comment for verdict, _ in one.steps.values()
        ):  # the rest of a frontend between two transactions
            ports[one.name].append(_shown(family, frontend, one, cluster_ips, clients))
    return tuple(
        ShownServicePort(name, tuple(frontends)) for name, frontends in sorted(ports.items())
    )


def _sort_in(
    place: schema.ParsedName,
    items: Iterable[Counted],
    found: defaultdict[tuple[Family, Frontend], _Found],
) -> None:
    """Add the elements of one map to their frontends."""
    declaration, family = place.declaration, place.family
    if declaration.value == schema.VERDICT:
        for (_, key, value), packets in items:
            if isinstance(value, Verdict):
                found[family, Frontend.of_key(key)].steps[declaration] = value, packets
    elif declaration in {schema.ENDPOINTS, schema.LOCAL_ENDPOINTS}:
        for (_, key, value), packets in items:
            if isinstance(value, tuple):
                one = found[family, Frontend.of_slot(key, place.detail)]
                listed = Listed(str(value[0]), int(value[1]), packets)
                one.slots[declaration is schema.LOCAL_ENDPOINTS][int(key[-1])] = listed
    elif declaration is schema.ALLOWED:
        for (_, (*start, network), _), _ in items:
            found[family, Frontend.of_key(tuple(start))].sources.append(f"{network}/{place.detail}")


def _order(
    place: tuple[Family, Frontend], cluster_ips: set[str]
) -> tuple[Family, int, bytes, str, int]:
    """Sort ClusterIPs first, NodePorts last, addresses by number."""
    family, frontend = place
    rank = 2 if frontend.is_node_port else frontend.address not in cluster_ips
    return (
        family,
        rank,
        b"" if frontend.is_node_port else pack(frontend.address),
        frontend.proto,
        frontend.port,
    )


def _shown(
    family: Family,
    frontend: Frontend,
    one: _Found,
    cluster_ips: set[str],
    clients: Mapping[tuple[Family, str], Counter[str]],
) -> Shown:
    if frontend.is_node_port:
        kind = AddressKind.NODE_PORT
    elif frontend.address in cluster_ips:
        kind = AddressKind.CLUSTER_IP
    else:
        kind = AddressKind.LOAD_BALANCER if schema.FIREWALL in one.steps else AddressKind.EXTERNAL
    return Shown(
        family=family,
        kind=kind,
        address=frontend.address,
        protocol=frontend.proto,
        port=frontend.port,
        policy=_policy(one, kind),
        scheduler=_scheduler(one),
        connections=one.steps[schema.SERVICES][1] if schema.SERVICES in one.steps else 0,
        cluster=_listed(one.slots[False]),
        local=_listed(one.slots[True]),
        refused=_refused(one),
        affinity=_affinity(family, one, clients),
        sources=tuple(sorted(one.sources)) if schema.FIREWALL in one.steps else None,
    )


def _listed(slots: Mapping[int, Listed]) -> tuple[Listed, ...]:
    """Return the endpoints of a list in the order of their first slots, each once."""
    found: dict[Endpoint, Listed] = {}
    for _, one in sorted(slots.items()):
        before = found.get(one.endpoint)
        if before:
            connections, number = before.connections + one.connections, before.slots + 1
            one = msgspec.structs.replace(one, connections=connections, slots=number)  # noqa: PLW2901
        found[one.endpoint] = one
    return tuple(found.values())


def _policy(one: _Found, kind: AddressKind) -> Policy | None:
    """Return the policy, from the chains that the verdicts go to."""
    local = Policy.LOCAL if kind is AddressKind.CLUSTER_IP else Policy.PRESERVE
    if schema.SERVICES in one.steps:
        verdict, _ = one.steps[schema.SERVICES]
        policy = schema.policy(verdict.target)
        return policy if policy and policy.uses_cluster else local
    return local if one.steps.get(schema.NO_ENDPOINTS, (Verdict(""), 0))[0].drops else None


def _scheduler(one: _Found) -> Scheduler:
    verdict, _ = one.steps.get(schema.SERVICES, (Verdict(""), 0))
    return schema.scheduler(verdict.target)


def _refused(one: _Found) -> ShownRefusal | None:
    if schema.NO_ENDPOINTS not in one.steps:
        return None
    verdict, packets = one.steps[schema.NO_ENDPOINTS]
    if verdict.drops:
        return ShownRefusal("drop", "no endpoint on this node (policy Local)", packets)
    return ShownRefusal("reject", "no endpoint in the cluster", packets)


def _affinity(
    family: Family, one: _Found, clients: Mapping[tuple[Family, str], Counter[str]]
) -> ShownAffinity | None:
    verdict, _ = one.steps.get(schema.LEARN, (Verdict(""), 0))
    if not (learn := schema.parse_learn(verdict.target)):
        return None
    known: Mapping[str, int] = clients.get((family, learn.owner), {})
    if learn.shared:  # by address; the lowest port number is the one that clients get
        endpoints = {
            listed.address: str(listed.endpoint)
            for slots in one.slots.values()
            for listed in sorted(slots.values(), key=lambda each: each.port, reverse=True)
        }
        known = {endpoints[each]: count for each, count in known.items() if each in endpoints}
    return ShownAffinity(learn.timeout, dict(sorted(known.items())), learn.shared)
