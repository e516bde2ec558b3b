"""What the cluster's objects say of this node: from manifests, or from the API server."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nftproxy.address import Network
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.doctor.facts import ApiServerFacts
from nftproxy.doctor.machine import networks
from nftproxy.doctor.model import Unknown
from nftproxy.errors import NftproxyError
from nftproxy.model import Node, ServiceCIDR
from nftproxy.sources import delivery
from nftproxy.sources.manifests import Manifests
from nftproxy.sources.resources import SERVICE_CIDRS, Resource, own_node

if TYPE_CHECKING:
    from nftproxy.sources.apiserver import ApiConnection

_PATIENCE = 5.0  # seconds
_NO_SOURCE = "no configuration names an API server; give --config or --manifests"


class Objects(msgspec.Struct, frozen=True):
    """The Node, the ServiceCIDRs, and how the API server answered."""

    node: Node | Unknown
    service_cidrs: tuple[Network, ...] | Unknown
    api: ApiServerFacts | Unknown


class _ServiceCIDRs(msgspec.Struct, frozen=True):
    items: tuple[ServiceCIDR, ...] = ()


class _Nodes(msgspec.Struct, frozen=True):
    items: tuple[Node, ...] = ()


def of_manifests(paths: Sequence[Path], node_name: str) -> Objects:
    """Return what files say; SourceError for an unusable path."""
    manifests = Manifests(paths)
    manifests.check()
    scan = manifests.scan()
    node = delivery.own_node(scan, node_name)
    cidrs = [item for item in scan.objects[ServiceCIDR] if isinstance(item, ServiceCIDR)]
    return Objects(
        node or Unknown(f"the manifests have no Node {node_name!r}"),
        _networks(cidrs) if cidrs else Unknown("the manifests have no ServiceCIDR"),
        Unknown("the Node is that of the manifests"),
    )


def of_api(config: KubeProxyConfiguration | Unknown, node_name: str) -> Objects:
    """Return what the API server says."""
    if isinstance(config, Unknown):
        return _unknown(config.reason)
    if not config.client_connection.kubeconfig and not in_cluster():
        return _unknown(_NO_SOURCE)
    from nftproxy.sources.apiserver import connect

    try:
        connection = connect(config.client_connection.kubeconfig, "")
    except NftproxyError as error:
        return _unknown(str(error))
    with closing(connection):
        return _asked(connection, node_name)


def _asked(connection: "ApiConnection", node_name: str) -> Objects:
    started = time.monotonic()
    try:
        status, body = _get(connection, own_node(node_name))
    except NftproxyError as error:
        failed = _unknown(f"the API server does not answer: {error}")
        api = ApiServerFacts(time.monotonic() - started, error.with_hint, connection.server)
        return msgspec.structs.replace(failed, api=api)
    failure = "" if status < 500 and status != 401 else f"it answers with HTTP {status}"
    api = ApiServerFacts(time.monotonic() - started, failure, connection.server)
    node: Node | Unknown = _denied(status, "the Node")
    cidrs: tuple[Network, ...] | Unknown
    try:
        if status == 200:
            found = msgspec.json.decode(body, type=_Nodes).items
            node = next(
                (each for each in found if each.metadata.name == node_name),
                Unknown(f"the API server knows no Node {node_name!r}"),
            )
        status, body = _get(connection, SERVICE_CIDRS)
        cidrs = (
            _networks(msgspec.json.decode(body, type=_ServiceCIDRs).items)
            if status == 200
            else _denied(status, "ServiceCIDRs")
        )
    except (NftproxyError, msgspec.MsgspecError) as error:
        return Objects(node, Unknown(f"the API server: {error}"), api)
    return Objects(node, cidrs, api)


def _denied(status: int, what: str) -> Unknown:
    return Unknown(f"the API server answers with HTTP {status} to a request for {what}")


def _get(connection: "ApiConnection", resource: Resource) -> tuple[int, bytes]:
    query = {**resource.selectors, "limit": "500"}
    with connection.get(resource.path, query, silence=_PATIENCE) as answer:
        return answer.status, answer.body()


def _networks(cidrs: Sequence[ServiceCIDR]) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(networks(text for item in cidrs for text in item.spec.cidrs or ())))


def _unknown(reason: str) -> Objects:
    return Objects(Unknown(reason), Unknown(reason), Unknown(reason))


def in_cluster() -> bool:
    """Whether this is a pod with a service account."""
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
