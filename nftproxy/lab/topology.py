"""The commands that build a plan: lines for `ip -batch` and `bridge -batch`, and sysctls.

Pure text, nothing is run here.

Differences from real machines, and their reasons:
- Duplicate address detection is off: IPv6 addresses work at once instead of after two seconds.
- ICMP errors are not rate limited: a test sees each rejection, where a real host sends a client
  about one per second.
- Redirects are neither sent nor obeyed: a lab's nodes route between interfaces of one link on
  purpose.

The return path of a same-node connection: a pod connects to a service, the node rewrites the
destination to another pod on the same bridge; that pod would answer directly across the bridge,
past the netfilter hooks that have to undo the rewriting. Kubernetes nodes therefore pass bridged
packets to netfilter (br_netfilter, net.bridge.bridge-nf-call-iptables=1), and so does a lab where
the kernel has it. Where it has not, bridge ports are isolated from each other and pods have single
addresses (/32, /128), so that every packet between pods is routed by the node. Loading br_netfilter
ourselves would change what the machine's other bridges do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nftproxy.address import Family
from nftproxy.lab.plan import ROUTER, LabClient, LabNode, LabPlace, LabPlan, Pod

_FLANNEL_PORT = 8472
_VXLAN_MTU = 1430  # 1500 less the outer headers of IPv6, the longer ones
_VXLAN = {Family.IPv4: "flannel.1", Family.IPv6: "flannel-v6.1"}
_UNDERLAY_LENGTH = {Family.IPv4: 24, Family.IPv6: 64}


@dataclass(frozen=True)
class IpCommands:
    """The commands of one namespace.

    Sysctls (path below /proc/sys, value) before any link exists, then the batches.
    """

    namespace: str
    sysctls: Mapping[str, str]
    ip: tuple[str, ...]
    bridge: tuple[str, ...] = ()


def cables(plan: LabPlan) -> list[str]:
    """Return the `ip` commands that make all links, each end at once in its namespace."""
    lines = [
        f"link add {place.name} netns {plan.underlay} type veth peer name eth0 netns "
        f"{place.namespace}"
        for place in (*plan.nodes, *plan.clients)
    ]
    mtu = _VXLAN_MTU if plan.shape.vxlan else 1500
    lines += [
        f"link add {pod.veth} netns {node.namespace} mtu {mtu} type veth peer name eth0 netns "
        f"{pod.namespace} mtu {mtu}"
        for node in plan.nodes
        for pod in node.pods
    ]
    return lines


def commands(plan: LabPlan) -> list[IpCommands]:
    """Return the commands of each namespace; they do not depend on each other."""
    return [
        _underlay(plan),
        *(_node(plan, node) for node in plan.nodes),
        *(_pod(plan, node, pod) for node in plan.nodes for pod in node.pods),
        *(_client(plan, client) for client in plan.clients),
    ]


def _underlay(plan: LabPlan) -> IpCommands:
    lines = [
        "link set lo up",
        "link add br0 type bridge stp_state 0 mcast_snooping 0",
        "link set br0 up",
    ]
    for place in (*plan.nodes, *plan.clients):
        lines += [f"link set {place.name} master br0", f"link set {place.name} up"]
    lines += _addresses(
        "br0", {family: ROUTER[family] for family in plan.shape.families}, _UNDERLAY_LENGTH
    )
    return IpCommands(plan.underlay, _sysctls(plan, bridge_netfilter=False), tuple(lines))


def _node(plan: LabPlan, node: LabNode) -> IpCommands:
    lines = [*_up(node), *(f"route add default via {ROUTER[f]}" for f in node.addresses)]
    lines += _bridge(plan, node) if plan.shape.wiring == "bridge" else _routed(node)
    forwarding = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
    sysctls = forwarding | _sysctls(plan, bridge_netfilter=plan.shape.bridge_netfilter)
    others = [other for other in plan.nodes if other is not node]
    if not plan.shape.vxlan:
        lines += [
            f"route add {o.pod_cidrs[f]} via {o.addresses[f]}" for o in others for f in o.addresses
        ]
        return IpCommands(node.namespace, sysctls, tuple(lines))
    lines += [line for family in node.addresses for line in _vxlan(node, others, family)]
    return IpCommands(node.namespace, sysctls, tuple(lines), tuple(_forwarding_entries(others)))


def _bridge(plan: LabPlan, node: LabNode) -> list[str]:
    """cni0 with a fixed MAC address: else it changes with its ports, and pods remember it."""
    lines = [
        (
            f"link add cni0 address 0a:58:0a:f4:{node.number:02x}:01 type bridge stp_state 0 "
            "mcast_snooping 0"
        ),
        "link set cni0 up",
        *_addresses("cni0", node.gateways, {Family.IPv4: 24, Family.IPv6: 64}),
    ]
    # Hairpin: a pod that reaches itself through a service gets its packet back through the port it
    # came from.
    port = "hairpin on" if plan.shape.bridge_netfilter else "hairpin on isolated on"
    for pod in node.pods:
        lines += [
            f"link set {pod.veth} master cni0",
            f"link set {pod.veth} type bridge_slave {port}",
        ]
        lines += [f"link set {pod.veth} up"]
    return lines


def _routed(node: LabNode) -> list[str]:
    """Every pod's link has the gateway address, and every pod a route."""
    lines = []
    for pod in node.pods:
        lines += [f"link set {pod.veth} up", *_addresses(pod.veth, node.gateways, {})]
        lines += [f"route add {a}/{f.bits} dev {pod.veth}" for f, a in pod.addresses.items()]
    return lines


def _vxlan(node: LabNode, others: Iterable[LabNode], family: Family) -> list[str]:
    """One device per family over an underlay of that family, with fixed neighbours: flannel."""
    device = _VXLAN[family]
    underlay = f"dev eth0 local {node.addresses[family]} dstport {_FLANNEL_PORT} nolearning"
    lines = [
        f"link add {device} address {_vxlan_mac(node, family)} type vxlan id 1 {underlay}",
        f"link set {device} up",
        *_addresses(device, {family: _network(node, family)}, {}),
    ]
    for other in others:
        network = _network(other, family)
        # A route through an IPv6 gateway needs a reachable gateway: "onlink" says so.
        lines += [
            f"neigh add {network} lladdr {_vxlan_mac(other, family)} dev {device} nud permanent",
            f"route add {other.pod_cidrs[family]} via {network} dev {device} onlink",
        ]
    return lines


def _forwarding_entries(others: Iterable[LabNode]) -> list[str]:
    return [
        f"fdb append {_vxlan_mac(other, family)} dev {_VXLAN[family]} dst {address}"
        for other in others
        for family, address in other.addresses.items()
    ]


def _network(node: LabNode, family: Family) -> str:
    """Return the first address of a node's pod CIDR: flannel's end of the tunnel."""
    return node.pod_cidrs[family].partition("/")[0]


def _vxlan_mac(node: LabNode, family: Family) -> str:
    return f"0e:58:00:00:{family.digit:0>2}:{node.number:02x}"


def _pod(plan: LabPlan, node: LabNode, pod: Pod) -> IpCommands:
    single = plan.shape.wiring == "routed" or not plan.shape.bridge_netfilter
    lines = ["link set lo up", "link set eth0 up"]
    lines += _addresses("eth0", pod.addresses, {} if single else {Family.IPv4: 24, Family.IPv6: 64})
    for gateway in node.gateways.values():
        if single:
            lines += [f"route add {gateway} dev eth0"]
        lines += [f"route add default via {gateway}"]
    return IpCommands(pod.namespace, _sysctls(plan, bridge_netfilter=False), tuple(lines))


def _client(plan: LabPlan, client: LabClient) -> IpCommands:
    first = plan.nodes[0]
    lines = [*_up(client), *(f"route add default via {a}" for f, a in first.addresses.items())]
    return IpCommands(client.namespace, _sysctls(plan, bridge_netfilter=False), tuple(lines))


def _up(place: LabPlace) -> list[str]:
    """Return the commands that put a place on the underlay."""
    return [
        "link set lo up",
        "link set eth0 up",
        *_addresses("eth0", place.addresses, _UNDERLAY_LENGTH),
    ]


def _addresses(
    device: str, addresses: Mapping[Family, str], lengths: Mapping[Family, int]
) -> list[str]:
    """Return the commands that give a device its addresses.

    A family without a length gets single addresses.
    """
    return [
        f"addr add {address}/{lengths.get(family, family.bits)} dev "
        f"{device}{' nodad' if family is Family.IPv6 else ''}"
        for family, address in addresses.items()
    ]


def _sysctls(plan: LabPlan, *, bridge_netfilter: bool) -> dict[str, str]:
    """Return the settings of every namespace.

    Forwarding has to be set before, as the kernel then resets accept_redirects.
    """
    sysctls = {
        "net/ipv4/icmp_ratemask": "0",
        "net/ipv6/icmp/ratelimit": "0",
        # The limit for the whole machine: only for packet too big (2), not for all errors
        "net/ipv6/icmp/ratemask": "2",
        "net/bridge/bridge-nf-call-iptables": str(int(bridge_netfilter)),
        "net/bridge/bridge-nf-call-ip6tables": str(int(bridge_netfilter)),
    }
    for scope in ("all", "default"):
        sysctls |= {
            f"net/ipv4/conf/{scope}/rp_filter": "0",
            f"net/ipv4/conf/{scope}/send_redirects": "0",
            f"net/ipv4/conf/{scope}/accept_redirects": "0",
            f"net/ipv6/conf/{scope}/accept_redirects": "0",
            f"net/ipv6/conf/{scope}/accept_ra": "0",
            f"net/ipv6/conf/{scope}/accept_dad": "0",
            f"net/ipv6/conf/{scope}/disable_ipv6": str(int(Family.IPv6 not in plan.shape.families)),
        }
    return sysctls
