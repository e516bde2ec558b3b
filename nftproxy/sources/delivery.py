"""From a scan of manifests to the store of one node, and to its own Node. Pure."""

from collections.abc import Iterator

from nftproxy.configuration.settings import NodeFacts
from nftproxy.model import KINDS, Node, Service
from nftproxy.sources.manifests import Manifests, Scan
from nftproxy.store import Store


def deliver(store: Store, scan: Scan, node_name: str) -> bool:
    """Put all objects of a scan into a store; return whether that changes anything."""
    changed = [
        store.replace(kind, scan.objects[kind]) for kind in KINDS.values() if kind is not Node
    ]
    node = own_node(scan, node_name)
    if node is not None:
        changed.append(store.put(node))
    return any(changed)


def own_node(scan: Scan, name: str) -> Node | None:
    """Return the Node of that name."""
    nodes = (item for item in scan.objects[Node] if isinstance(item, Node))
    return next((node for node in nodes if node.metadata.name == name), None)


def doubts(manifests: Manifests, scan: Scan, node_name: str) -> Iterator[str]:
    """Warn of signs of a wrong folder or a wrong node name."""
    if not scan.objects[Service]:
        yield f"{', '.join(map(str, manifests.paths))}: no Service in there"
    known = [node.metadata.name for node in scan.objects[Node]]
    if known and node_name not in known:
        others = ", ".join(known)
        yield (
            f"no Node {node_name!r} in the manifests, so its addresses and zone are unknown; "
            f"--node-name can be {others}"
        )


def facts(node: Node | None) -> NodeFacts | None:
    """Return the addresses and pod CIDRs of a Node; None without a Node."""
    if node is None:
        return None
    return NodeFacts(
        tuple((each.type, each.address) for each in node.status.addresses or ()),
        node.spec.pod_cidrs or (),
    )
