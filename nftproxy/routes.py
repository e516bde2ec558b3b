"""From a service's endpoint lists to its routes, and from routes to elements of the maps in `rulesets/`.

Pure. A *route* is everything one frontend does; the elements follow from it alone. Routes are what is remembered of the table: they
are small, and share the tuples of endpoints among all frontends of a service port.
"""

import enum
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from nftproxy.address import Address, Family, Network
from nftproxy.model import EndpointSlice, ObjectName, Service, ServicePort
from nftproxy.selection import Endpoint, Lists, Locality, Notes, View, lists, view

NODE_PORT = "nodeport-"
"""What names of chains begin with that NodePorts go to."""

MEMBERS = ("cluster_members", "local_members")
"""What names of sets begin with that hold the endpoints of one ClientIP service port: of the cluster list, of the local list."""


class Verdict(NamedTuple):
    """Where an element of a verdict map sends a packet, and the service port it belongs to, for people who list the map."""

    verb: str  # goto, jump or drop
    target: str = ""
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.target}".rstrip()


Key = tuple[str | int, ...]
Value = Verdict | tuple[str | int, ...] | str | None  # a verdict, an endpoint, an address a client is sent to, nothing in a set


class Element(NamedTuple):
    """One element: the set or map it is in, its key, and its value in a map."""

    where: str
    key: Key
    value: Value = None


class Frontend(NamedTuple):
    """Where clients connect: a canonical address, or an empty one for a NodePort, with protocol (in nft's spelling) and port."""

    address: str
    proto: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address or "*"
        return f"{host}:{self.port}/{self.proto}"

    @property
    def key(self) -> Key:
        """Its key in maps of verdicts."""
        return (self.address, self.proto, self.port) if self.address else (self.proto, self.port)

    def slot(self, number: int) -> Key:
        """Its key in maps of endpoints."""
        return (self.address, self.port, number) if self.address else (self.port, number)


class Policy(enum.Enum):
    """Who gets which list at a frontend (contract 2.3.5 to 2.3.7)."""

    CLUSTER = "cluster"  # a ClusterIP: everybody, the cluster list
    LOCAL = "local"  # a ClusterIP with internal policy Local: everybody, the local list
    EXTERNAL = "external"  # everybody, the cluster list, masqueraded
    PRESERVE = "preserve"  # external policy Local: pods and this node the cluster list, others the local list

    @property
    def uses_cluster(self) -> bool:
        """Whether anybody gets the cluster list."""
        return self is not Policy.LOCAL

    @property
    def uses_local(self) -> bool:
        """Whether anybody gets the local list."""
        return self is Policy.LOCAL or self is Policy.PRESERVE


class Refusal(enum.Enum):
    """What happens to a new connection that no list takes (contract 2.5)."""

    NONE = Verdict("")
    REJECT = Verdict("goto", "reject-new")
    DROP = Verdict("drop")


# libnftables aborts the process on names of more than 255 characters. The longest begins with this, then come ports and name.
PORTS_LIMIT = 40
NAME_LIMIT = 255 - len("sticky-nodeport-preserve4-sctp-65536-65536-") - PORTS_LIMIT - 1


class Affinity(msgspec.Struct, frozen=True, gc=False):
    """ClientIP affinity of one service port: what may be remembered, and for how many seconds."""

    name: str  # namespace/service/protocol/port name, within NAME_LIMIT; part of chain and map names
    family: Family
    proto: str
    timeout: int
    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]
    entries: tuple[tuple[Policy, str], ...]  # how its frontends are entered: policy, and "nodeport-" or ""

    @property
    def ports(self) -> tuple[int, ...]:
        """The port numbers that the endpoints have, nearly always one."""
        return tuple(sorted({e.port for e in (*self.cluster, *self.local)}))

    @property
    def ports_name(self) -> str:
        """The port numbers as they stand in chain names."""
        return _bounded(".".join(map(str, self.ports)), PORTS_LIMIT)

    @property
    def picks(self) -> tuple[str, ...]:
        """Return the names of the chains that choose for a client who is not known yet."""
        kind = f"{self.family.digit}-{self.proto}"
        return tuple(
            filter(None, (pick(policy, side, kind, len(self.cluster), len(self.local)) for policy, side in self.entries))
        )

    def sticky(self, picked: str) -> str:
        """Return the name of the chain that looks the client up before a pick; a chain with other content has another name."""
        return f"sticky-{picked}-{self.ports_name}-{self.name}"

    @property
    def learn(self) -> str:
        """Return the name of the chain that remembers clients, for the lists that are used."""
        cluster = any(policy.uses_cluster for policy, _ in self.entries)
        local = any(policy.uses_local for policy, _ in self.entries)
        step = "learn_both" if cluster and local else "learn_local" if local else "learn"
        return f"{step}{self.family.digit}-{self.timeout}-{self.ports_name}-{self.name}"

    @property
    def chains(self) -> tuple[str, ...]:
        """Return the names of the chains that its frontends go to."""
        return (self.learn, *map(self.sticky, self.picks))

    def memory(self, which: str, port: int) -> str:
        """Return the name of the map client -> endpoint address; `which` is `affinity` or `local_affinity`."""
        return f"{which}{self.family.digit}-{self.name}-{port}"

    def elements(self) -> Iterator[Element]:
        """Yield the members: what the kernel may remember."""
        for which, members in zip(MEMBERS, (self.cluster, self.local), strict=True):
            where = f"{which}{self.family.digit}-{self.name}"
            for member in members:
                yield Element(where, tuple(member))


class Route(msgspec.Struct, frozen=True, gc=False):
    """Everything one frontend does."""

    name: str  # of the service port: namespace/service:port, as long as the kernel keeps a comment
    frontend: Frontend
    policy: Policy
    cluster: tuple[Endpoint, ...]  # in the order of slots
    local: tuple[Endpoint, ...]
    refusal: Refusal
    affinity: Affinity | None = None
    sources: tuple[Network, ...] | None = None  # allowed clients of a load-balancer address; None: all


class Compiled(msgspec.Struct, frozen=True, gc=False):
    """All that one service puts into the table, for one family."""

    created: str  # creationTimestamp: of two services with the same frontend the older one has it
    cluster_ip: str
    routes: tuple[Route, ...]
    affinities: tuple[Affinity, ...]
    hairpins: tuple[Key, ...]  # address, the same address, protocol, port of the endpoints on this node

    def shared(self, family: Family) -> Iterator[Element]:
        """Yield the elements that other services may have as well."""
        yield Element(f"cluster_ips{family.digit}", (self.cluster_ip,))
        for key in self.hairpins:
            yield Element(f"hairpin{family.digit}", key)
        for affinity in self.affinities:
            for address, port in (*affinity.cluster, *affinity.local):
                yield Element(f"members{family.digit}", (address, affinity.proto, port))


class Context(NamedTuple):
    """What a node adds to every service: its place, its address of the family, and a feature gate."""

    family: Family
    here: Locality
    node_ip: str  # canonical; empty when unknown
    external_ips: bool = True


def compile_service(service: Service, slices: Iterable[EndpointSlice], context: Context, notes: Notes) -> Compiled | None:
    """Return what `service` puts into the table; None when it does not exist for this family.

    `notes` collects, one line each, what had to be ignored.
    """
    seen = view(service, context.family, notes, external_ips=context.external_ips)
    if seen is None:
        return None
    slices = tuple(slices)
    routes: dict[Frontend, Route] = {}
    affinities: list[Affinity] = []
    hairpins: dict[Key, None] = {}
    for port in service.spec.ports or ():
        chosen = lists(seen, port, slices, context.family, context.here, notes)
        proto = port.protocol.nft
        affinity = _affinity(service.metadata.key, port, seen, chosen, context.family)
        if affinity:
            affinities.append(affinity)
        hairpins.update(dict.fromkeys((e.address, e.address, proto, e.port) for e in chosen.here))
        for route in _routes(service.metadata.key, seen, port, chosen, affinity, context):
            routes.setdefault(route.frontend, route)
    return Compiled(
        service.metadata.creation_timestamp or "", seen.cluster_ip, tuple(routes.values()), tuple(affinities), tuple(hairpins)
    )


def _routes(
    service: ObjectName, seen: View, port: ServicePort, chosen: Lists, affinity: Affinity | None, context: Context
) -> Iterator[Route]:
    """Yield the routes of one service port: ClusterIP, external IPs, load-balancer addresses, NodePort (contract 2.2)."""
    proto = port.protocol.nft
    name = _comment(f"{service}:{port.name}" if port.name else str(service))  # contract 5.3.1
    yield _route(name, Frontend(seen.cluster_ip, proto, port.port), _internal(seen), chosen, affinity)
    external = _external(seen)
    sources = _sources(seen, context)
    for address in seen.vips:  # before external IPs: an address that is both keeps its source ranges
        yield _route(name, Frontend(address, proto, port.port), external, chosen, affinity, sources)
    for address in seen.external_ips:
        yield _route(name, Frontend(address, proto, port.port), external, chosen, affinity)
    if port.node_port:
        yield _route(name, Frontend("", proto, port.node_port), external, chosen, affinity)


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
    return Route(name, frontend, policy, cluster, local, refusal, affinity if cluster or local else None, sources)


def _affinity(service: ObjectName, port: ServicePort, seen: View, chosen: Lists, family: Family) -> Affinity | None:
    if seen.affinity_seconds is None or not (chosen.cluster or chosen.local):
        return None
    proto = port.protocol.nft
    name = _bounded(f"{service}/{proto}/{port.name or ''}", NAME_LIMIT)
    entries = [(_internal(seen), "")]
    if seen.vips or seen.external_ips:
        entries.append((_external(seen), ""))
    if port.node_port:
        entries.append((_external(seen), NODE_PORT))
    return Affinity(name, family, proto, seen.affinity_seconds, chosen.cluster, chosen.local, tuple(entries))


def _bounded(text: str, limit: int) -> str:
    """Shorten a part of a name; what is cut off is told apart by a digest (contract 5.6.3)."""
    if len(text) <= limit:
        return text
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return f"{text[: limit - 21]}.{digest:020}"


def _sources(seen: View, context: Context) -> tuple[Network, ...] | None:
    """Contract 2.7.6: a node that is allowed may carry a load-balancer address of its own as source."""
    if seen.ranges is None or not context.node_ip:
        return seen.ranges
    node = Address(context.family, context.node_ip)
    if not any(network.contains(node) for network in seen.ranges):
        return seen.ranges
    own = (Network(context.family, vip, context.family.bits) for vip in seen.vips)
    return tuple(sorted({*seen.ranges, *own}))


def _comment(text: str) -> str:
    """Shorten a comment to what the kernel keeps: 128 bytes with the end mark (libnftnl's NFTNL_UDATA_COMMENT_MAXLEN)."""
    return text if len(text) < 128 else f"{text[:124]}..."


def elements(route: Route, family: Family) -> Iterator[Element]:
    """Yield all elements of a route; what they mean stands in `rulesets/family.nft` and `rulesets/protocol.nft`."""
    frontend, v = route.frontend, family.digit
    maps, side = ("", "") if frontend.address else ("nodeport_", NODE_PORT)
    kind = f"{v}-{frontend.proto}"
    if picked := pick(route.policy, side, kind, len(route.cluster), len(route.local)):
        target = route.affinity.sticky(picked) if route.affinity else picked
        yield Element(f"{maps}services{v}", frontend.key, Verdict("goto", target, route.name))
    for slot, endpoint in enumerate(route.cluster):
        yield Element(f"{maps}endpoints{kind}", frontend.slot(slot), endpoint)
    for slot, endpoint in enumerate(route.local):
        yield Element(f"{maps}local_endpoints{kind}", frontend.slot(slot), endpoint)
    if route.refusal is not Refusal.NONE:
        yield Element(f"{maps}no_endpoints{v}", frontend.key, route.refusal.value._replace(comment=route.name))
    if route.affinity:
        yield Element(f"{maps}new_clients{v}", frontend.key)
        yield Element(f"{maps}learn{v}", frontend.key, Verdict("goto", route.affinity.learn))
    if route.sources is not None:
        yield Element(f"firewall{v}", frontend.key, Verdict("goto", f"allowed{v}"))
        for network in route.sources:
            yield Element(f"allowed{v}-{network.length}", (*frontend.key, network.text))


def pick(policy: Policy, side: str, kind: str, cluster: int, local: int) -> str:
    """Return the name of the chain that chooses from lists of so many endpoints; empty if there is nothing to choose from.

    `side` is NODE_PORT or nothing, `kind` family and protocol: `4-tcp`.
    """
    if policy is Policy.LOCAL or (policy is Policy.PRESERVE and not cluster):
        return f"{side}local{kind}-{local}" if local else ""
    own = f"-{local}" if policy is Policy.PRESERVE and local else ""
    return f"{side}{PICKS[policy]}{kind}-{cluster}{own}" if cluster else ""


PICKS = {Policy.CLUSTER: "pick", Policy.EXTERNAL: "external", Policy.PRESERVE: "preserve"}
"""What names of chains begin with that choose from the cluster list."""


def targets(route: Route, family: Family) -> Iterator[str]:
    """Yield the names of the chains that the verdicts of a route go to."""
    for element in elements(route, family):
        if type(element.value) is Verdict and element.value.target:
            yield element.value.target
