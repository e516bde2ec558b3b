"""Which frontend a target means, and whose it is; or why there is no such frontend.

Pure except for what it asks of `Node`.

With objects a Service is found by its name at once; without them the maps of frontends are passed
over once, for the comment that bears it. An address needs neither: single elements are asked for.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

from nftproxy.address import Family, pack, parse_address
from nftproxy.configuration.settings import OnLocalhost
from nftproxy.model import ObjectName, Service, ServicePort
from nftproxy.path import held
from nftproxy.path.cluster import Cluster, is_others
from nftproxy.path.lookup import kind, look_up
from nftproxy.path.model import Cause, Target
from nftproxy.path.request import Request
from nftproxy.path.view import NodeView
from nftproxy.routes import Frontend
from nftproxy.selection import view
from nftproxy.table import schema

PROTOCOLS = schema.PROTOCOLS
SOMEWHERE = {Family.IPv4: "192.0.2.1", Family.IPv6: "2001:db8::1"}
"""Addresses that no node has a route to but its default route."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a packet is sent to.

    `frontend` is what the maps know it as: a NodePort has no address there.
    """

    target: Target
    family: Family = Family.IPv4
    frontend: Frontend | None = None
    name: ObjectName | None = None
    port: ServicePort | None = None
    causes: tuple[Cause, ...] = field(default=())


def aim(request: Request, node: NodeView, cluster: Cluster | None, family: Family | None) -> Aim:
    """Return what is meant. `family` is that of the client, None if it has both."""
    target = request.target
    if target.service is not None:
        if cluster is None:
            return _by_comment(request, node, family)
        return _by_objects(request, target.service, cluster, family)
    if target.address is not None:
        return _by_address(request, target.address.text, node, cluster)
    return _node_port(request, node, cluster, family or Family.IPv4)


def _none(request: Request, code: str, text: str, *commands: str) -> Aim:
    protocol = request.protocol or "tcp"
    return Aim(
        Target(request.target.asked, protocol=protocol), causes=(Cause(code, text, commands),)
    )


def _did_you_mean(near: Sequence[str]) -> str:
    return f" Near names: {', '.join(near)}." if near else ""


def _by_objects(request: Request, name: ObjectName, cluster: Cluster, family: Family | None) -> Aim:
    service = cluster.services.get(name)
    if service is None:
        near = cluster.near(name)
        said = f"There is no Service {name}.{_did_you_mean(near)}"
        return _none(request, "no-service", said, *(f"nftproxy explain {one}" for one in near[:1]))
    if cause := _served_otherwise(name, service):
        return Aim(Target(request.target.asked, protocol="tcp", service=str(name)), causes=(cause,))
    ports = service.spec.ports or ()
    wanted = request.target.port_name
    named = [p for p in ports if not wanted or wanted in {p.name, str(p.port)}]
    fitting = [p for p in named if request.protocol in {"", "icmp", p.protocol.nft}]
    if not fitting:
        return _wrong_port(request, str(name), _said(ports))
    port = fitting[0]
    families = [f for f in ([family] if family else _families(service)) if view(service, f, [])]
    if not families:
        said = f"Service {name} has no address of family {family}, which the client uses."
        return _none(request, "other-family", said)
    seen = view(service, families[0], [])
    assert seen  # noqa: S101 - chosen so
    frontend = Frontend(seen.cluster_ip, port.protocol.nft, port.port)
    whole = f"{name}:{port.name}" if port.name else str(name)
    target = Target(
        request.target.asked, frontend.address, port.port, frontend.proto, whole, "ClusterIP"
    )
    return Aim(target, families[0], frontend, name, port)


def _families(service: Service) -> list[Family]:
    return [Family(text) for text in service.spec.ip_families or ()] or list(Family)


def _served_otherwise(name: ObjectName, service: Service) -> Cause | None:
    spec = service.spec
    if is_others(service):
        label = service.metadata.labels and service.metadata.labels.proxy_name
        said = f"Service {name} bears the label service.kubernetes.io/service-proxy-name={label}"
        return Cause("other-proxy-label", f"{said}: {label} serves it, not nftproxy.")
    if spec.type == "ExternalName":
        said = f"Service {name} is of type ExternalName: cluster DNS answers with another name"
        return Cause("external-name", f"{said}, and no proxy has a part in it.")
    if spec.cluster_ip == "None":
        said = f"Service {name} is headless: cluster DNS answers with the addresses of its Pods"
        return Cause("headless", f"{said}, and no proxy has a part in it.")
    if service.unassigned:
        return Cause("no-cluster-ip", f"Service {name} has no ClusterIP yet.")
    return None


def _said(ports: Sequence[ServicePort]) -> list[str]:
    return [f"{p.port}/{p.protocol.nft}{f' ({p.name})' if p.name else ''}" for p in ports]


def _wrong_port(request: Request, what: str, ports: Sequence[str], at: Aim | None = None) -> Aim:
    asked = request.target.port_name or str(request.target.port or "")
    asked = f"{asked}/{request.protocol}" if request.protocol else asked
    has = f"it has {', '.join(ports)}" if ports else "its ports are not known here"
    said = f"{what} has no port {asked}" if asked else f"{what} is asked for no port"
    cause = Cause("wrong-port", f"{said}: {has}.")
    target = at.target if at else Target(request.target.asked, protocol=request.protocol or "tcp")
    return Aim(target, at.family if at else Family.IPv4, causes=(cause,))


def _by_comment(request: Request, node: NodeView, family: Family | None) -> Aim:
    name, wanted = request.target.service, request.target.port_name
    known: dict[str, None] = {}
    for of, frontend, comment in node.frontends():
        service, _, port = comment.partition(":")
        known[service] = None
        if service != str(name) or of is not (family or of) or frontend.is_node_port:
            continue
        if wanted not in {"", port, str(frontend.port)}:
            continue
        if request.protocol not in {"", "icmp", frontend.proto}:
            continue
        return _found(request, node, of, frontend, comment)
    if str(name) in known:
        has = [f"{f.port}/{f.proto}" for _, f, c in node.frontends() if c.startswith(f"{name}:")]
        return _wrong_port(request, str(name), list(dict.fromkeys(has)))
    same = [one for one in known if name and one.partition("/")[2] == name.name]
    near = list(dict.fromkeys([*same, *difflib.get_close_matches(str(name), known, 3, 0.6)]))
    said = f"The table of this node has no Service {name}.{_did_you_mean(near)}"
    return _none(request, "no-service", said, *(f"nftproxy explain {one}" for one in near[:1]))


def _found(
    request: Request,
    node: NodeView,
    family: Family,
    frontend: Frontend,
    comment: str,
    address: str = "",
    cluster: Cluster | None = None,
) -> Aim:
    target = Target(
        request.target.asked,
        address or frontend.address,
        frontend.port,
        frontend.proto,
        comment,
        kind(node.held, family, frontend),
    )
    namespace, _, rest = comment.partition(":")[0].partition("/")
    port = _port_of(cluster, comment)
    return Aim(target, family, frontend, ObjectName(namespace, rest), port)


def _port_of(cluster: Cluster | None, comment: str) -> ServicePort | None:
    """Return the port that a comment names."""
    service, _, name = comment.partition(":")
    namespace, _, rest = service.partition("/")
    found = cluster and cluster.services.get(ObjectName(namespace, rest))
    ports = (found and found.spec.ports) or ()
    return next((port for port in ports if (port.name or "") == name), None)


def _protocols(request: Request) -> tuple[str, ...]:
    return (request.protocol,) if request.protocol in PROTOCOLS else PROTOCOLS


def _by_address(request: Request, address: str, node: NodeView, cluster: Cluster | None) -> Aim:
    family, port = parse_address(address).family, request.target.port
    for protocol in _protocols(request) if port else ():
        frontend = Frontend(address, protocol, port)
        if found := look_up(node.held, family, frontend):
            return _found(request, node, family, frontend, found.service, cluster=cluster)
    accepted = node.accepted(family)
    is_own = _is_own(node, address)
    for protocol in _protocols(request) if port and is_own else ():
        frontend = Frontend.node_port(protocol, port)
        if found := look_up(node.held, family, frontend):
            at = _found(request, node, family, frontend, found.service, address, cluster)
            loopback = address.startswith("127.") or address == "::1"
            if (accepted is None and not loopback) or address in (accepted or ()):
                return at
            if loopback and (said := _on_localhost(node, family, frontend, address)):
                return Aim(at.target, family, causes=(Cause("node-port-address", said),))
            where = "every address of this node but loopback"
            where = where if accepted is None else ", ".join(accepted) or "no address"
            said = (
                f"NodePort {port} is not accepted on {address}; this node accepts NodePorts "
                f"on {where}."
            )
            commands = tuple(f"nftproxy explain {one}:{port}" for one in (accepted or [])[:1])
            return Aim(at.target, family, causes=(Cause("node-port-address", said, commands),))
    return _unknown_address(request, address, node, cluster, is_own=is_own)


def _on_localhost(node: NodeView, family: Family, frontend: Frontend, address: str) -> str:
    """Return what becomes of a NodePort on a loopback address; empty if nothing does."""
    match node.on_localhost(family, frontend):
        case OnLocalhost.REFUSED:
            return (
                f"NodePort {frontend.port} is refused on loopback addresses: nftproxy forwards "
                "there TCP alone, and only if nodePortAddresses names localhost."
            )
        case OnLocalhost.FORWARDED if address in {"127.0.0.1", "::1"}:
            return (
                f"nftproxy itself listens on {address} for NodePort {frontend.port} and connects "
                "to an endpoint; no rule has a part in it, and its log says what hinders it."
            )
    return ""


def _unknown_address(
    request: Request, address: str, node: NodeView, cluster: Cluster | None, *, is_own: bool
) -> Aim:
    family, port = parse_address(address).family, request.target.port
    protocol = request.protocol or "tcp"
    bare = Aim(Target(request.target.asked, address, port, protocol), family)
    of_service = list(cluster.at(address, family)) if cluster else []
    if held.has(node.held, schema.CLUSTER_IPS, family, address) or of_service:
        if protocol == "icmp":
            whose = str(of_service[0][0]) if of_service else ""
            target = Target(request.target.asked, address, 0, "icmp", whose, "ClusterIP")
            return Aim(target, family)
        if cluster:
            ports = [f"{p.port}/{p.protocol.nft}" for _, p in of_service]
        else:
            ports = [f"{f.port}/{f.proto}" for _, f, _ in node.frontends() if f.address == address]
        whose = f" ({of_service[0][0]})" if of_service else ""
        return _wrong_port(request, f"{address}{whose}", list(dict.fromkeys(ports)), bare)
    if held.has(node.held, schema.SERVICE_CIDRS, family, address):
        said = f"No Service has {address}, which lies in a ServiceCIDR: nftproxy drops the packets."
        cause = Cause("unallocated-address", said, ("kubectl get services --all-namespaces",))
        return Aim(bare.target, family, causes=(cause,))
    if cluster and address in cluster.addresses():
        target = Target(request.target.asked, address, port, protocol, "", "Endpoint")
        return Aim(target, family)
    what = "is this node's own, and no NodePort has that number" if is_own else "is no Service's"
    cause = Cause("no-service-address", f"{address} {what}: nftproxy has no part in it.")
    return Aim(bare.target, family, causes=(cause,))


def _is_own(node: NodeView, address: str) -> bool:
    if node.around is None:
        return address in {one for f in Family for one in node.accepted(f) or ()}
    return address.startswith("127.") or node.around.address_type(pack(address), "") == 2


def _node_port(request: Request, node: NodeView, cluster: Cluster | None, family: Family) -> Aim:
    port = request.target.port
    accepted = node.accepted(family)
    address = accepted[0] if accepted else ""
    if not address and node.around is not None:
        address = node.around.to(pack(SOMEWHERE[family])).source
    for protocol in _protocols(request):
        frontend = Frontend.node_port(protocol, port)
        if found := look_up(node.held, family, frontend):
            return _found(request, node, family, frontend, found.service, address, cluster)
    has = sorted(
        {
            f"{p.node_port}/{p.protocol.nft} ({name})"
            for name, service in (cluster.services.items() if cluster else ())
            for p in service.spec.ports or ()
            if p.node_port
        }
    )
    said = f"No Service has the NodePort {port}."
    return _none(request, "no-service", f"{said} There are {', '.join(has[:5])}." if has else said)
