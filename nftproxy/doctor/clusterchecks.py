"""Checks of this node's place in the cluster: addresses, networks, ports, the API server. Pure."""

import shlex
from collections.abc import Iterable

from nftproxy.address import Network
from nftproxy.doctor.facts import Facts, FetchedPage, Probed, Starter
from nftproxy.doctor.machine import inside, networks, overlap
from nftproxy.doctor.model import CheckState, Finding, bad, known, ok, warning
from nftproxy.kernel.snapshot import AddressKind, Snapshot
from nftproxy.model import Node

_USUAL = (30000, 32767)
_SLOW = 1.0  # seconds
_CHOICE = (
    "Set it to the network of all pods, or let each node take its own: detectLocalMode NodeCIDR"
)


def address(facts: Facts) -> Finding:
    """Judge whether the Node's addresses are on this machine."""
    node = known(facts.node)
    named = [each.address for each in node.status.addresses or () if each.type == "InternalIP"]
    if not named:
        return bad(
            f"Node {facts.node_name} has no InternalIP",
            "NodePorts on `primary` addresses are accepted nowhere",
            f"kubectl get node {facts.node_name} -o wide",
        )
    held = {text for interface in known(facts.interfaces) for text, _ in interface.addresses}
    missing = [text for text in named if text not in held]
    if missing:
        device = next((r.device for r in known(facts.routes) if r.is_default and r.device), "eth0")
        return bad(
            f"{', '.join(missing)} of Node {facts.node_name} is on no interface here",
            "NodePorts and masquerading use an address that this machine does not have. Correct "
            "kubelet's --node-ip, or --hostname-override if this is another node; or add the "
            "address",
            *(f"ip address add {text} dev {shlex.quote(device)}" for text in missing),
        )
    return ok(f"{', '.join(named)}, as the Node says")


def pod_network(facts: Facts) -> Finding:
    """Judge whether this node's pods count as pods."""
    config = known(facts.configuration)
    if config.detect_local_mode not in {"", "ClusterCIDR"}:
        return ok(f"detectLocalMode is {config.detect_local_mode}: clusterCIDR has no part in it")
    wide = list(networks(config.cluster_cidr.split(",")))
    if not wide:
        return warning(
            "clusterCIDR is not set",
            "no packet counts as sent by a pod: what comes to ClusterIPs from outside of the pods' "
            f"network keeps its address, and policy Local makes no exception for pods. {_CHOICE}",
            *_take_own(facts),
        )
    node = known(facts.node)
    own = list(networks(node.spec.pod_cidrs or ()))
    outside = [one for one in own if not any(inside(one, each) for each in wide)]
    if outside:
        return bad(
            f"pods of this node have {_list(outside)}, which is outside of clusterCIDR "
            f"{_list(wide)}",
            "their connections to ClusterIPs are masqueraded, so endpoints see the node's address, "
            f"and policy Local makes no exception for them. {_CHOICE}",
            *_take_own(facts),
        )
    if not own:
        return Finding(CheckState.UNCHECKED, f"Node {facts.node_name} has no podCIDRs")
    return ok(f"{_list(own)} is within clusterCIDR {_list(wide)}")


def _take_own(facts: Facts) -> list[str]:
    """Return the command that makes each node take its pods' networks from its Node."""
    if not (isinstance(facts.node, Node) and facts.node.spec.pod_cidrs):
        return []
    if facts.config_file:
        lines = "-e '/^clusterCIDR:/d' -e '/^detectLocalMode:/d' -e '$a detectLocalMode: NodeCIDR'"
        return [f"sed -i {lines} {shlex.quote(facts.config_file)}"]
    if facts.started_by is Starter.HAND:
        return [f"{facts.restart} --detect-local-mode NodeCIDR"]
    return ["kubectl -n kube-system edit configmap nftproxy"]


def service_network(facts: Facts) -> Finding:
    """Judge whether ClusterIPs are free of other uses, and have a route."""
    cidrs = known(facts.service_cidrs)
    routes = known(facts.routes)
    taken = [
        route
        for route in routes
        if not route.is_default and any(overlap(route.network, cidr) for cidr in cidrs)
    ]
    refusing = [route for route in taken if route.kind not in {"unicast", "local"}]
    if refusing:
        return bad(
            f"{_list(r.network for r in refusing)} is {refusing[0].kind}, and holds ClusterIPs",
            "processes of this node cannot connect to ClusterIPs: the route is looked up first",
            *(f"ip route del {route.kind} {route.network}" for route in refusing),
        )
    attached = [
        route
        for route in taken
        if route.device != "lo" and not any(inside(cidr, route.network) for cidr in cidrs)
    ]
    if attached:
        return warning(
            "; ".join(f"{route.network} goes to {route.device}" for route in attached)
            + f", inside of the Services' network {_list(cidrs)}",
            "hosts there cannot be reached where a Service has the same address; others are, "
            "unless a Service gets it. Delete the route if nobody needs it; else one of the two "
            "networks has to change",
            *(
                f"ip route del {route.network} dev {shlex.quote(route.device)}"
                for route in attached
            ),
        )
    for cidr in cidrs:
        if not any(
            inside(cidr, route.network) and route.network.family is cidr.family for route in routes
        ):
            device = next((r.device for r in routes if r.device not in {"", "lo"}), "eth0")
            return bad(
                f"there is no route for {cidr}, the Services' network, and no default route",
                "processes of this node cannot connect to ClusterIPs: the kernel looks for a route "
                "before our rules see the packet",
                f"ip route add {cidr} dev {shlex.quote(device)}",
            )
    return ok(f"{_list(cidrs)} is routed nowhere else")


def endpoints(facts: Facts) -> Finding:
    """Judge whether this node has a way to the endpoints."""
    if known(facts.snapshot) is None:
        return Finding(CheckState.UNCHECKED, "there is no table")
    found = sorted(known(facts.unreached), key=lambda one: not one.sure)
    if not found:
        return ok("there is a route to each endpoint looked at")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    text = ", ".join(f"{one.address}: {one.why}" for one in found[:3]) + more
    meaning = "connections that get such an endpoint fail: routes to pods are the network plugin's"
    cure = f"ip route get {found[0].address}"
    return (bad if found[0].sure else warning)(text, meaning, cure)


def node_ports(facts: Facts) -> Finding:
    """Judge whether the kernel gives NodePorts to clients of this node."""
    text = facts.sysctls.get("net/ipv4/ip_local_port_range", "")
    if not text:
        return Finding(
            CheckState.UNCHECKED, "/proc/sys/net/ipv4/ip_local_port_range cannot be read"
        )
    low, high = map(int, text.split())
    seen = facts.snapshot if isinstance(facts.snapshot, Snapshot) else None
    used = {
        shown.port
        for port in (seen.services if seen else ())
        for shown in port.frontends
        if shown.kind is AddressKind.NODE_PORT
    }
    first, last = min([*used, _USUAL[0]]), max([*used, _USUAL[1]])
    start, end = max(first, low), min(last, high)
    if start > end:
        return ok(f"NodePorts {first}-{last} are outside of {low}-{high}, which clients here get")
    reserved = facts.sysctls.get("net/ipv4/ip_local_reserved_ports", "")
    free = set(range(start, end + 1)) - set(_ports(reserved))
    if not free:
        return ok(f"NodePorts {first}-{last} are kept from clients here (ip_local_reserved_ports)")
    value = ",".join(filter(None, [reserved, f"{first}-{last}"]))
    return warning(
        f"clients on this node get ports {low}-{high}, NodePorts are {first}-{last}",
        "answers to a client of this node that got a NodePort's number may go to the Service",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={value}",
    )


def _ports(text: str) -> Iterable[int]:
    for part in filter(None, text.split(",")):
        start, _, end = part.partition("-")
        yield from range(int(start), int(end or start) + 1)


def api(facts: Facts) -> Finding:
    """Judge how fast the API server answers."""
    answer = known(facts.api)
    if answer.failure:
        return bad(
            f"{answer.where}: {answer.failure}",
            "changes of Services and endpoints do not arrive; traffic goes on as it was",
            "kubectl --kubeconfig KUBECONFIG get --raw /readyz"
            if "401" not in answer.failure
            else "kubectl auth whoami --kubeconfig KUBECONFIG",
        )
    found = f"{answer.where} answers in {1000 * answer.seconds:.0f} ms"
    if answer.seconds > _SLOW:
        return warning(
            found,
            "changes of endpoints arrive late",
            "kubectl get --raw '/readyz?verbose'",
        )
    return ok(found)


def probe(facts: Facts) -> Finding:
    """Judge the connections: what fails through a Service alone, and what at its endpoint."""
    probed = known(facts.probed)
    if not probed:
        return Finding(
            CheckState.UNCHECKED,
            "the table has neither default/kubernetes nor a DNS Service in kube-system",
        )
    judged = [_probed(one) for one in probed]
    worst = [one for one in judged if one.state is CheckState.BAD] or [
        one for one in judged if one.state is not CheckState.OK
    ]
    if worst:
        cures = dict.fromkeys(cure for one in worst for cure in one.cures)
        meaning = ". ".join(dict.fromkeys(one.means for one in worst))
        found = "; ".join(one.found for one in worst)
        return (bad if worst[0].state is CheckState.BAD else warning)(found, meaning, *cures)
    return ok("; ".join(one.found for one in judged))


def _probed(one: Probed) -> Finding:
    name = one.service.partition(" ")[0]
    broken = _failures(one.through)
    dead = _failures(one.direct)
    if not one.direct:
        return bad(
            f"{one.service}: no endpoint",
            "nothing serves it; this is not the proxy's doing",
            f"kubectl -n {name.partition('/')[0]} get endpointslices",
        )
    alive = len(one.direct) - len(dead)
    if not broken and not dead:
        return ok(f"{one.service}: answers through {one.through[0].where} and at {alive} endpoints")
    if broken and not alive:
        return bad(
            f"{one.service}: neither through the ClusterIP nor at any endpoint: {_told(dead)}",
            "the endpoints do not answer this node, with or without the proxy",
            f"kubectl -n {name.partition('/')[0]} get pods -o wide",
        )
    if dead:
        return warning(
            f"{one.service}: {alive} of {len(one.direct)} endpoints answer; {_told(dead)}",
            "connections that get such an endpoint fail, with or without the proxy",
            f"kubectl -n {name.partition('/')[0]} get pods -o wide",
        )
    return bad(
        f"{one.service}: all {alive} endpoints answer directly, but through the ClusterIP: "
        f"{_told(broken)}",
        "the way through the Service is broken on this node: by our rules, or by another table's",
        f"nftproxy explain {name}",
    )


def _failures(answers: Iterable[FetchedPage]) -> list[FetchedPage]:
    return [answer for answer in answers if answer.failure]


def _told(answers: Iterable[FetchedPage]) -> str:
    return ", ".join(dict.fromkeys(f"{one.where} {one.failure}" for one in answers))


def _list(items: Iterable[Network]) -> str:
    return ", ".join(map(str, items))
