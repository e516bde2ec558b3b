"""The network: a bridge in the control plane's namespace, to which all nodes are attached.

Nodes know the way to each other's pods, and so does the control plane. A client that is neither
node nor pod lives there too, at an address of its own.
"""

import ipaddress
import subprocess
from collections.abc import Mapping

from tests.cluster.names import CONTROL, CONTROL_IPV4, CONTROL_IPV6, NODES, Node

CLIENT = "172.29.0.1"
"""An address of the control plane's namespace that is not of the nodes' network."""
_FORWARD = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def inside(namespace: str, *argv: str) -> list[str]:
    """Return a command that runs another in a network namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *argv]


def make() -> None:
    """Make all namespaces, and connect them."""
    _run("ip", "netns", "add", CONTROL)
    _ip(CONTROL, "link set lo up")
    _ip(CONTROL, "link add underlay type bridge")
    _ip(CONTROL, "link set underlay up")
    _ip(CONTROL, f"addr add {CONTROL_IPV4}/24 dev underlay")
    _ip(CONTROL, f"addr add {CONTROL_IPV6}/64 dev underlay nodad")
    _ip(CONTROL, f"addr add {CLIENT}/32 dev lo")
    _sysctl(CONTROL, *_FORWARD, *_bridged(0))
    for node in NODES:
        _run("ip", "netns", "add", node.namespace)
        _ip(node.namespace, "link set lo up")
        _run(
            *("ip", "link", "add", "eth0", "netns", node.namespace),
            *("type", "veth", "peer", "name", node.name, "netns", CONTROL),
        )
        _ip(CONTROL, f"link set {node.name} master underlay up")
        _ip(node.namespace, "link set eth0 up")
        _ip(node.namespace, f"addr add {node.ipv4}/24 dev eth0")
        _ip(node.namespace, f"addr add {node.ipv6}/64 dev eth0 nodad")
        _ip(node.namespace, f"route add default via {CONTROL_IPV4}")
        _ip(node.namespace, f"-6 route add default via {CONTROL_IPV6}")
        # The bridge of pods: its address must not change when one of them leaves, or the others
        # lose their gateway for as long as they remember the old one.
        _ip(node.namespace, f"link add cni0 address 02:00:00:00:00:0{node.number} type bridge")
        _sysctl(node.namespace, *_FORWARD, *_bridged(1))


def connect(networks: Mapping[Node, tuple[str, ...]]) -> None:
    """Make the routes to the pods of each node."""
    for node, pods in networks.items():
        for network in pods:
            via = node.ipv4 if ipaddress.ip_network(network).version == 4 else node.ipv6
            for other in (CONTROL, *(each.namespace for each in networks if each != node)):
                _ip(other, f"route replace {network} via {via}")


def remove() -> None:
    """Remove the namespaces that are there."""
    for namespace in (CONTROL, *(node.namespace for node in NODES)):
        subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def _bridged(value: int) -> tuple[str, str]:
    prefix = "net.bridge.bridge-nf-call"
    return f"{prefix}-iptables={value}", f"{prefix}-ip6tables={value}"


def _sysctl(namespace: str, *settings: str) -> None:
    _run(*inside(namespace, "sysctl", "--quiet", "--write", *settings))


def _ip(namespace: str, command: str) -> None:
    _run("ip", "-n", namespace, *command.split())


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
