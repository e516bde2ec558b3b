"""Which frontend is meant.

A Service, an address or a NodePort, found in the table or among the cluster's objects.

Pure, apart from its questions. What cannot be a destination is a cause at once: a Service that
another proxy serves, one without an address, an address without a port.
"""

import difflib
from dataclasses import dataclass

from nftproxy.address import Family, pack
from nftproxy.errors import ConfigError
from nftproxy.model import ObjectName, Proto, Service
from nftproxy.path.cluster import Cluster, is_others
from nftproxy.path.lookup import look_up
from nftproxy.path.model import Cause
from nftproxy.path.request import AskedTarget
from nftproxy.path.view import NodeView
from nftproxy.routes import Frontend
from nftproxy.table.schema import PROTOCOLS


@dataclass(frozen=True, slots=True)
class Destination:
    """Where packets go: an address and a port, and the frontend that the table has for them."""

    family: Family
    address: str
    port: int
    protocol: str
    frontend: Frontend

    @property
    def key(self) -> str:
        """The destination as keys of maps are written."""
        return f"{self.address} . {self.protocol} . {self.port}"


def destination(
    target: AskedTarget, protocol: str, node: NodeView, cluster: Cluster | None
) -> Destination | Cause:
    """Return the destination that a target means, or why none exists."""
    if target.service:
        return _of_service(target.service, target.port_name, protocol, node, cluster)
    if target.is_node_port:
        return _of_node_port(target.port, protocol, node)
    assert target.address  # noqa: S101 - the third kind
    family, address = target.address.family, target.address.text
    if not target.port:
        return _without_port(family, address, node)
    protocols = [protocol] if protocol else list(PROTOCOLS)
    for each in protocols:
        frontend = Frontend(address, each, target.port)
        if look_up(node.held, family, frontend).is_known:
            return Destination(family, address, target.port, each, frontend)
    if _is_own(address, node):
        for each in protocols:
            frontend = Frontend.node_port(each, target.port)
            if look_up(node.held, family, frontend).is_known:
                return Destination(family, address, target.port, each, frontend)
    first = protocols[0]
    return Destination(family, address, target.port, first, Frontend(address, first, target.port))


def _is_own(address: str, node: NodeView) -> bool:
    return node.machine is not None and node.machine.near.to(pack(address)).local


def _of_node_port(port: int, protocol: str, node: NodeView) -> Destination | Cause:
    for family in Family:
        for each in [protocol] if protocol else PROTOCOLS:
            frontend = Frontend.node_port(each, port)
            if look_up(node.held, family, frontend).is_known:
                address = _node_address(family, node)
                return Destination(family, address, port, each, frontend)
    return Cause("no-nodeport", f"No Service has the NodePort {port} on this node.")


def _node_address(family: Family, node: NodeView) -> str:
    """Return an address of this node that accepts NodePorts."""
    accepted = node.nodeport_addresses(family)
    if accepted:
        return accepted[0]
    if node.machine:
        from nftproxy.path.packet import text

        size = 4 if family is Family.IPv4 else 16
        for name, link in node.machine.near.links.items():
            own = node.machine.near.address_of(name, size)
            if own and link.up and name != "lo" and link.kind != "bridge":
                return text(own)
    return "127.0.0.1" if family is Family.IPv4 else "::1"


def _without_port(family: Family, address: str, node: NodeView) -> Cause:
    ports = node.ports_at(address)
    if ports:
        return Cause(
            "ping",
            f"{address} answers only on its ports, {', '.join(ports)}: a Service has no host that "
            "could answer a ping.",
            tuple(f"nftproxy explain {_with_port(address, each)}" for each in ports[:1]),
        )
    del family
    return Cause(
        "no-port",
        f"Name a port: {address} is not the address of a Service, so it has no port here.",
    )


def _with_port(address: str, port: str) -> str:
    number = port.partition("/")[0]
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def _of_service(
    name: ObjectName, port_name: str, protocol: str, node: NodeView, cluster: Cluster | None
) -> Destination | Cause:
    service = cluster.services.get(name) if cluster else None
    if cluster and service is None:
        return _unknown(str(name), cluster.near(name))
    if service and (cause := _not_ours(name, service)):
        return cause
    if service and port_name and (cause := _no_such_port(name, service, port_name)):
        return cause
    full = f"{name}:{port_name}" if port_name and not port_name.isdigit() else str(name)
    for family, frontend in node.find(full):
        if protocol and frontend.proto != protocol:
            continue
        if port_name.isdigit() and frontend.port != int(port_name):
            continue
        address = frontend.address or _node_address(family, node)
        return Destination(family, address, frontend.port, frontend.proto, frontend)
    if service:
        return Cause(
            "not-in-table",
            f"{full} is not in the table of this node yet, or the kernel refused it: see the log "
            "of nftproxy.",
        )
    names = node.names()
    services = [each.partition(":")[0] for each in names]
    same = [
        each
        for each in dict.fromkeys([*services, *names])
        if each.partition("/")[2].partition(":")[0] == name.name
    ]
    near = difflib.get_close_matches(full, list(dict.fromkeys([*services, *names])), 3, 0.6)
    return _unknown(full, list(dict.fromkeys([*same, *near])))


def _unknown(name: str, near: list[str]) -> Cause:
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    commands = tuple(f"nftproxy explain {each}" for each in near[:1])
    return Cause("no-such-service", f"There is no Service {name} on this node.{hint}", commands)


def _not_ours(name: ObjectName, service: Service) -> Cause | None:
    if is_others(service):
        labels = service.metadata.labels
        proxy = labels.proxy_name if labels else ""
        return Cause(
            "other-proxy",
            f"{name} has the label service.kubernetes.io/service-proxy-name: {proxy}; that proxy "
            "serves it, not nftproxy.",
        )
    if service.spec.type == "ExternalName":
        return Cause(
            "external-name",
            f"{name} is an ExternalName: the cluster's DNS answers with another name, and no "
            "packet meets a proxy.",
        )
    if service.spec.cluster_ip == "None":
        return Cause(
            "headless",
            f"{name} is headless: the cluster's DNS answers with the addresses of its Pods, and "
            "clients connect to these directly.",
        )
    return None


def _no_such_port(name: ObjectName, service: Service, wanted: str) -> Cause | None:
    ports = service.spec.ports or ()
    if any(wanted in {port.name, str(port.port)} for port in ports):
        return None
    known = ", ".join(
        f"{port.name or 'unnamed'} ({port.port}/{_lower(port.protocol)})" for port in ports
    )
    first = next(iter(ports), None)
    commands = (f"nftproxy explain {name}:{first.name or first.port}",) if first else ()
    return Cause("wrong-port", f"{name} has no port {wanted}; it has {known or 'none'}.", commands)


def _lower(protocol: Proto) -> str:
    return protocol.value.lower()


def check_protocol(protocol: str) -> str:
    """Return a protocol as nft spells it; ConfigError if there is no such one."""
    if protocol and protocol.lower() not in PROTOCOLS:
        raise ConfigError(
            [f"--protocol: {protocol[:20]!r} is not tcp, udp or sctp"],
            hint="leave it out: the Service's own protocol is used",
        )
    return protocol.lower()
