"""What our own table says about a destination: steps, and the causes that it knows. Pure."""

from collections.abc import Iterator

from nftproxy.model import ObjectName, Service, ServicePort
from nftproxy.path.asker import OUTSIDE, Asker
from nftproxy.path.cluster import Cluster, why_none
from nftproxy.path.held import has
from nftproxy.path.lookup import Lookup, is_allowed, listed
from nftproxy.path.model import Cause, Outcome, Place, PlaceKind, Step
from nftproxy.path.targets import Destination
from nftproxy.path.view import NodeView
from nftproxy.routes import Frontend
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.schema import Policy

_TABLE = Place(PlaceKind.TABLE)


def uses_local_list(lookup: Lookup, asker: Asker) -> bool:
    """Whether a client gets the endpoints of this node only."""
    policy = lookup.policy
    return policy is Policy.LOCAL or (policy is Policy.PRESERVE and asker.what == OUTSIDE)


def steps(
    node: NodeView, to: Destination, lookup: Lookup, asker: Asker
) -> tuple[list[Step], int, list[Endpoint]]:
    """Return the steps in our table, the length of the list that this client gets, and its first endpoints."""
    found = []
    if lookup.is_known and not to.frontend.is_node_port:
        found.append(_source_ranges(node, lookup, asker))
    name = schema.SERVICES.name(to.family, node_port=to.frontend.is_node_port)
    key = " . ".join(map(str, to.frontend.key))
    count, endpoints = 0, list[Endpoint]()
    if lookup.choice:
        local = uses_local_list(lookup, asker)
        count, endpoints = listed(node.held, to.family, to.frontend, local=local)
        where = "on this node" if local else "in the cluster"
        number = "its only endpoint" if count == 1 else f"any of {count} endpoints"
        said = f"{lookup.choice.target}: {number} {where}"
        details: tuple[str, ...] = ()
        if lookup.learn:
            details = (f"a client keeps its endpoint for {lookup.learn[0]} s (ClientIP affinity)",)
        outcome = Outcome.FOUND if count else Outcome.STOPPED
        found.append(Step(name, _TABLE, key, said, outcome, details=details))
    if not lookup.choice or not count:
        refused = schema.NO_ENDPOINTS.name(to.family, node_port=to.frontend.is_node_port)
        if lookup.refusal:
            verb = "dropped" if lookup.refusal.verb == "drop" else "rejected"
            found.append(Step(refused, _TABLE, key, f"no endpoint: {verb}", Outcome.STOPPED))
        elif not lookup.choice:
            found.append(Step(name, _TABLE, to.key, "no Service has it", Outcome.OK))
            found += _unclaimed_steps(node, to)
    return found, count, endpoints


def _unclaimed_steps(node: NodeView, to: Destination) -> Iterator[Step]:
    for declaration, said in (
        (schema.CLUSTER_IPS, "a ClusterIP without this port: rejected"),
        (schema.SERVICE_CIDRS, "in the range of Services: dropped"),
    ):
        if has(node.held, declaration, to.family, to.address):
            name = declaration.name(to.family)
            yield Step(name, _TABLE, to.address, said, Outcome.STOPPED)
            return


def _source_ranges(node: NodeView, lookup: Lookup, asker: Asker) -> Step:
    if not lookup.is_filtered:
        return Step("source ranges", _TABLE, "", "none on this address", Outcome.OK)
    name = schema.allowed(lookup.family)
    if asker.address and is_allowed(node.held, lookup.family, lookup.frontend, asker.address):
        return Step(name, _TABLE, asker.address, "an allowed source", Outcome.OK)
    return Step(name, _TABLE, asker.address, "not an allowed source: dropped", Outcome.STOPPED)


def cause(
    node: NodeView, to: Destination, lookup: Lookup, asker: Asker, cluster: Cluster | None
) -> Cause | None:
    """Return why our table does not send a connection to an endpoint; None if it does."""
    if lookup.is_filtered and not (
        asker.address and is_allowed(node.held, to.family, to.frontend, asker.address)
    ):
        return _source_range(lookup, asker, cluster)
    if not lookup.is_known:
        return _unclaimed(node, to, cluster)
    if to.frontend.is_node_port and (refused := _not_accepted(node, to)):
        return refused
    count, _ = listed(node.held, to.family, to.frontend, local=uses_local_list(lookup, asker))
    if lookup.choice and count:
        return None
    dropped = lookup.refusal is not None and lookup.refusal.verb == "drop"
    if dropped or (lookup.choice and not count):
        return _local(lookup, cluster)
    return _none(lookup, cluster)


def _source_range(lookup: Lookup, asker: Asker, cluster: Cluster | None) -> Cause:
    service = _service(lookup, cluster)
    ranges = (service.spec.load_balancer_source_ranges or ()) if service else ()
    said = f": {', '.join(ranges)}" if ranges else ""
    text = (
        f"{asker.address} is not in the loadBalancerSourceRanges of {_short(lookup)}{said}. "
        "Its packets are dropped without an answer."
    )
    host = f"{asker.address}/{lookup.family.bits}"
    patch = ",".join(f'"{each}"' for each in (*ranges, host))
    command = (
        f"kubectl patch service {_argument(lookup)} --type merge "
        f'-p \'{{"spec":{{"loadBalancerSourceRanges":[{patch}]}}}}\''
    )
    return Cause("source-range", text, (command,))


def _unclaimed(node: NodeView, to: Destination, cluster: Cluster | None) -> Cause | None:
    if has(node.held, schema.CLUSTER_IPS, to.family, to.address):
        ports = node.ports_at(to.address)
        known = f"; it has {', '.join(ports)}" if ports else ""
        text = f"{to.address} is a ClusterIP without port {to.port}/{to.protocol}{known}. Connections are rejected."
        return Cause("wrong-port", text)
    if has(node.held, schema.SERVICE_CIDRS, to.family, to.address):
        text = (
            f"{to.address} is in the range of Services, but no Service has it: it was deleted, or "
            "never existed. "
            "Packets are dropped."
        )
        return Cause("unallocated", text)
    del cluster
    return None


def _not_accepted(node: NodeView, to: Destination) -> Cause | None:
    if to.address in {"127.0.0.1", "::1"} or to.address.startswith("127."):
        return Cause(
            "nodeport-loopback",
            f"NodePorts are not accepted on {to.address}: packets from a loopback address cannot "
            "leave this node. "
            "Use an address of the node.",
        )
    accepted = node.nodeport_addresses(to.family)
    if accepted is None or to.address in accepted:
        return None
    known = ", ".join(accepted) or "no address"
    return Cause(
        "nodeport-address",
        f"NodePorts are not accepted on {to.address}, only on {known} (nodePortAddresses).",
        tuple(f"nftproxy explain {each}:{to.port}" for each in accepted[:1] if ":" not in each),
    )


def _local(lookup: Lookup, cluster: Cluster | None) -> Cause:
    nodes: list[str] = []
    name, port = port_of(lookup, cluster)
    if cluster and name and port:
        backends = cluster.backends(name, port, lookup.family, "")
        ready = {str(backend.endpoint) for backend in backends if backend.ready}
        nodes = sorted(cluster.nodes_of(name, ready))
    where = f" Nodes that have one: {', '.join(nodes)}." if nodes else ""
    kind = "internal" if lookup.is_cluster_ip else "external"
    text = (
        f"The {kind}TrafficPolicy of {_short(lookup)} is Local, and it has no endpoint on this "
        "node: "
        f"connections are dropped.{where}"
    )
    command = (
        f"kubectl patch service {_argument(lookup)} --type merge "
        f'-p \'{{"spec":{{"{kind}TrafficPolicy":"Cluster"}}}}\''
    )
    return Cause("policy-local", text, (command,))


def _none(lookup: Lookup, cluster: Cluster | None) -> Cause:
    name, port = port_of(lookup, cluster)
    commands = (f"kubectl get endpointslices {_selector(lookup)}",)
    if cluster and name and port:
        code, text = why_none(cluster, name, port, lookup.family)
        return Cause(code, f"{text[0].upper()}{text[1:]}. Connections are rejected.", commands)
    return Cause(
        "no-endpoints",
        f"{lookup.service} has no usable endpoint: connections are rejected.",
        commands,
    )


def port_of(
    lookup: Lookup, cluster: Cluster | None
) -> tuple[ObjectName | None, ServicePort | None]:
    """Return the Service and the port that a frontend belongs to, as far as objects are known."""
    service = _service(lookup, cluster)
    if service is None:
        return None, None
    wanted = lookup.service.partition(":")[2]
    frontend: Frontend = lookup.frontend
    for port in service.spec.ports or ():
        if (port.name or "") == wanted and port.protocol.value.lower() == frontend.proto:
            return service.metadata.key, port
    return service.metadata.key, None


def _service(lookup: Lookup, cluster: Cluster | None) -> Service | None:
    if cluster is None:
        return None
    namespace, _, name = _short(lookup).partition("/")
    return cluster.services.get(ObjectName(namespace, name))


def _short(lookup: Lookup) -> str:
    return lookup.service.partition(":")[0]


def _argument(lookup: Lookup) -> str:
    namespace, _, name = _short(lookup).partition("/")
    return f"-n {namespace} {name}"


def _selector(lookup: Lookup) -> str:
    namespace, _, name = _short(lookup).partition("/")
    return f"-n {namespace} -l kubernetes.io/service-name={name}"
