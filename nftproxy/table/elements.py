"""From routes to elements of the sets and maps in `rulesets/`.

Pure. A route's elements follow from it alone; those that several services may have are separate.
"""

from collections.abc import Iterator

from nftproxy.address import Family
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


def heads(route: Route, family: Family) -> Iterator[Element]:
    """Yield the elements of a route except its lists of endpoints."""
    frontend, affinity = route.frontend, route.affinity
    maps = schema.maps(family, frontend.proto, frontend.is_node_port)
    if target := pick(route, family):
        if affinity:
            target = affinity.sticky(target)
        yield Element(maps.services, frontend.key, Verdict("goto", target, route.name))
    if route.refusal is not Refusal.NONE:
        yield Element(
            maps.no_endpoints, frontend.key, route.refusal.value._replace(comment=route.name)
        )
    if affinity:
        yield Element(maps.new_clients, frontend.key)
        yield Element(maps.learn, frontend.key, Verdict("goto", affinity.learn))
    if route.sources is not None:
        yield Element(
            schema.FIREWALL.name(family), frontend.key, Verdict("goto", schema.allowed(family))
        )
        for network in route.sources:
            yield Element(
                schema.ALLOWED.name(family, network.length), (*frontend.key, network.text)
            )


def between(old: Route, new: Route, family: Family) -> tuple[list[Element], list[Element]]:
    """Return the elements of two routes of one frontend, without slots that both have alike."""
    maps = schema.maps(family, new.frontend.proto, new.frontend.is_node_port)
    before, after = list(heads(old, family)), list(heads(new, family))
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
        route.policy, family, frontend.proto, cluster, local, node_port=frontend.is_node_port
    )


def targets(route: Route, family: Family) -> Iterator[str]:
    """Yield the names of the chains that the verdicts of a route go to."""
    for element in elements(route, family):
        if type(element.value) is Verdict and element.value.target:
            yield element.value.target


def members(affinity: Affinity) -> Iterator[Element]:
    """Yield the members: the endpoints that the kernel may remember."""
    for declaration, members in (
        (schema.CLUSTER_MEMBERS, affinity.cluster),
        (schema.LOCAL_MEMBERS, affinity.local),
    ):
        where = declaration.name(affinity.family, affinity.name)
        for member in members:
            yield Element(where, tuple(member))


def shared(compiled: Compiled, family: Family) -> Iterator[Element]:
    """Yield the elements that other services may have as well."""
    yield Element(schema.CLUSTER_IPS.name(family), (compiled.cluster_ip,))
    hairpin = schema.HAIRPIN.name(family)
    for key in compiled.hairpins:
        yield Element(hairpin, key)
    members = schema.MEMBERS.name(family)
    for affinity in compiled.affinities:
        for address, port in (*affinity.cluster, *affinity.local):
            yield Element(members, (address, affinity.proto, port))
