"""From routes to elements of the sets and maps in `rulesets/`.

Pure. A route's elements follow from it alone; those that several services may have are separate.
"""

from collections.abc import Iterable, Iterator, Sequence

from nftproxy.address import Family
from nftproxy.chunks import difference
from nftproxy.routes import Affinity, Compiled, Element, Refusal, Route, Verdict
from nftproxy.selection import Endpoint
from nftproxy.sharing import Shared
from nftproxy.table import schema
from nftproxy.table.slots import changed


def elements(route: Route, family: Family) -> Iterator[Element]:
    """Yield all elements of a route.

    `rulesets/family.nft` and `rulesets/protocol.nft` explain them.
    """
    yield from heads(route, family)
    maps = schema.maps(family, route.frontend.proto, route.frontend.is_node_port)
    for slot, endpoint in enumerate(route.cluster):
        yield Element(maps.endpoints, route.frontend.slot(slot), endpoint)
    for slot, endpoint in enumerate(route.local):
        yield Element(maps.local_endpoints, route.frontend.slot(slot), endpoint)


def heads(route: Route, family: Family) -> list[Element]:
    """Return the elements of a route except its lists of endpoints."""
    found: list[Element] = []
    frontend, affinity = route.frontend, route.affinity
    maps = schema.maps(family, frontend.proto, frontend.is_node_port)
    if target := pick(route, family):
        if affinity:
            target = affinity.sticky(target)
        found.append(Element(maps.services, frontend.key, Verdict("goto", target, route.name)))
    if route.refusal is not Refusal.NONE:
        found.append(
            Element(
                maps.no_endpoints, frontend.key, route.refusal.value._replace(comment=route.name)
            )
        )
    if affinity:
        found.append(Element(maps.new_clients, frontend.key))
        found.append(Element(maps.learn, frontend.key, Verdict("goto", affinity.learn)))
    if route.refused_on_localhost:
        found.append(Element(schema.LOCALHOST_NODEPORTS.name(family), frontend.key))
    if route.sources is not None:
        found.append(
            Element(
                schema.FIREWALL.name(family), frontend.key, Verdict("goto", schema.allowed(family))
            )
        )
        found += (
            Element(schema.ALLOWED.name(family, network.length), (*frontend.key, network.text))
            for network in route.sources
        )
    return found


def between(old: Route, new: Route, family: Family) -> tuple[list[Element], list[Element]]:
    """Return the elements of two routes of one frontend, without slots that both have alike."""
    maps = schema.maps(family, new.frontend.proto, new.frontend.is_node_port)
    before, after = heads(old, family), heads(new, family)
    for where, was, becomes in (
        (maps.endpoints, old.cluster, new.cluster),
        (maps.local_endpoints, old.local, new.local),
    ):
        for slot, left, came in changed(was, becomes):
            if left is not None:
                before.append(Element(where, new.frontend.slot(slot), left))
            if came is not None:
                after.append(Element(where, new.frontend.slot(slot), came))
    return before, after


def pick(route: Route, family: Family) -> str:
    """Return the name of the chain that chooses an endpoint; empty without endpoints."""
    cluster, local, frontend = len(route.cluster), len(route.local), route.frontend
    return schema.pick(
        route.policy,
        family,
        frontend.proto,
        cluster,
        local,
        route.scheduler,
        node_port=frontend.is_node_port,
    )


def targets(route: Route, family: Family) -> Iterator[str]:
    """Yield the names of the chains that the verdicts of a route go to."""
    for element in elements(route, family):
        if type(element.value) is Verdict and element.value.target:
            yield element.value.target


def members(affinity: Affinity) -> list[Element]:
    """Return the members: the endpoints that the kernel may remember."""
    return members_between(None, affinity)[1]


def members_between(
    old: Affinity | None, new: Affinity | None
) -> tuple[list[Element], list[Element]]:
    """Return the members that only one of two states of a service port has."""
    old, new = (each if each and not each.part else None for each in (old, new))
    before: list[Element] = []
    after: list[Element] = []
    for declaration, (gone, come) in zip(
        (schema.CLUSTER_MEMBERS, schema.LOCAL_MEMBERS), _endpoints_between(old, new), strict=True
    ):
        for affinity, endpoints, found in ((old, gone, before), (new, come, after)):
            if affinity and endpoints:
                where = declaration.name(affinity.family, affinity.name)
                found.extend(Element(where, tuple(member)) for member in endpoints)
    return before, after


def _endpoints_between(
    old: Affinity | None, new: Affinity | None
) -> Iterator[tuple[Sequence[Endpoint], Sequence[Endpoint]]]:
    """Yield for each list the endpoints that only one of two states of a service port has."""
    yield difference((old and old.cluster) or (), (new and new.cluster) or ())
    yield difference((old and old.local) or (), (new and new.local) or ())


def memory_members(shared: Shared) -> Iterator[Element]:
    """Yield the members of a memory that the ports of a Service share."""
    for declaration, _, groups in shared.lists():
        for group in groups:
            where = declaration.name(shared.family, group.name)
            yield from (Element(where, (address,)) for address in group.addresses)


def paired(
    old: Iterable[Affinity], new: Iterable[Affinity]
) -> Iterator[tuple[Affinity | None, Affinity | None]]:
    """Yield the states of each service port before and after, where they differ."""
    before = {affinity.name: affinity for affinity in old}
    for affinity in new:
        was = before.pop(affinity.name, None)
        if was != affinity:
            yield was, affinity
    yield from ((affinity, None) for affinity in before.values())


def shared(compiled: Compiled, family: Family) -> Iterator[Element]:
    """Yield the elements that other services may have as well; a member once for each list."""
    yield Element(schema.CLUSTER_IPS.name(family), (compiled.cluster_ip,))
    hairpin = schema.HAIRPIN.name(family)
    for key in compiled.hairpins:
        yield Element(hairpin, key)
    members = schema.MEMBERS.name(family)
    for affinity in compiled.affinities:
        for address, port in (*affinity.cluster, *affinity.local):
            yield Element(members, (address, affinity.proto, port))


def shared_between(
    old: Compiled, new: Compiled, family: Family
) -> tuple[list[Element], list[Element]]:
    """Return such elements that only one of two states of a service has."""
    before: list[Element] = []
    after: list[Element] = []
    if old.cluster_ip != new.cluster_ip:
        ips = schema.CLUSTER_IPS.name(family)
        before.append(Element(ips, (old.cluster_ip,)))
        after.append(Element(ips, (new.cluster_ip,)))
    hairpin, members = schema.HAIRPIN.name(family), schema.MEMBERS.name(family)
    for keys, found in zip(difference(old.hairpins, new.hairpins), (before, after), strict=True):
        found.extend(Element(hairpin, key) for key in keys)
    for pair in paired(old.affinities, new.affinities):
        for lists in _endpoints_between(*pair):
            for affinity, which, found in zip(pair, lists, (before, after), strict=True):
                if affinity:
                    found.extend(Element(members, (e[0], affinity.proto, e[1])) for e in which)
    return before, after
