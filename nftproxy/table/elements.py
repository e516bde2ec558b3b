"""From routes to elements of the sets and maps in `rulesets/`.

Pure. A route's elements follow from it alone; those that several services may have are separate.
"""

from collections.abc import Iterable, Iterator

from nftproxy.address import Family
from nftproxy.chunks import difference
from nftproxy.routes import Affinity, Compiled, Element, Refusal, Route, Verdict
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
    before: list[Element] = []
    after: list[Element] = []
    for declaration, had, has in (
        (schema.CLUSTER_MEMBERS, old and old.cluster, new and new.cluster),
        (schema.LOCAL_MEMBERS, old and old.local, new and new.local),
    ):
        gone, come = difference(had or (), has or ())
        for affinity, endpoints, found in ((old, gone, before), (new, come, after)):
            if affinity and endpoints:
                where = declaration.name(affinity.family, affinity.name)
                found.extend(Element(where, tuple(member)) for member in endpoints)
    return before, after


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
        for affinity, which, found in zip(
            pair, members_between(*pair), (before, after), strict=True
        ):
            if affinity:
                proto = affinity.proto
                found.extend(Element(members, (e.key[0], proto, e.key[1])) for e in which)
    return before, after
