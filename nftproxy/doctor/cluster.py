"""What the cluster's objects say of this node: from manifests, or from the API server with the proxy's own permissions."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from nftproxy.address import Network
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.doctor.facts import Api
from nftproxy.doctor.machine import networks
from nftproxy.doctor.model import Unknown
from nftproxy.errors import NftproxyError
from nftproxy.model import Node, ServiceCIDR
from nftproxy.sources.delivery import own_node
from nftproxy.sources.manifests import Manifests

if TYPE_CHECKING:
    from nftproxy.sources.apiserver import Connection

_PATIENCE = 5.0  # seconds
_NO_SOURCE = "no configuration names an API server; give --config or --manifests"


class Objects(msgspec.Struct, frozen=True):
    """The Node, the ServiceCIDRs, and how the API server answered."""

    node: Node | Unknown
    service_cidrs: tuple[Network, ...] | Unknown
    api: Api | Unknown


class _List(msgspec.Struct, frozen=True):
    items: tuple[ServiceCIDR, ...] = ()


def of_manifests(paths: Sequence[Path], node_name: str) -> Objects:
    """Return what files say; SourceError for an unusable path."""
    manifests = Manifests(paths)
    manifests.check()
    scan = manifests.scan()
    node = own_node(scan, node_name)
    cidrs = [item for item in scan.objects[ServiceCIDR] if isinstance(item, ServiceCIDR)]
    return Objects(
        node or Unknown(f"the manifests have no Node {node_name!r}"),
        _networks(cidrs) if cidrs else Unknown("the manifests have no ServiceCIDR"),
        Unknown("objects come from manifests"),
    )


def of_api(config: KubeProxyConfiguration | Unknown, node_name: str) -> Objects:
    """Return what the API server says."""
    if isinstance(config, Unknown):
        return _unknown(config.reason)
    if not config.client_connection.kubeconfig and not _in_cluster():
        return _unknown(_NO_SOURCE)
    from nftproxy.sources.apiserver import connect

    try:
        connection = connect(config.client_connection.kubeconfig, "")
    except NftproxyError as error:
        return _unknown(str(error))
    with closing(connection):
        return _asked(connection, node_name)


def _asked(connection: "Connection", node_name: str) -> Objects:
    started = time.monotonic()
    node: Node | Unknown
    cidrs: tuple[Network, ...] | Unknown
    try:
        status, body = _get(connection, f"/api/v1/nodes/{node_name}")
    except NftproxyError as error:
        failed = _unknown(f"the API server does not answer: {error}")
        return msgspec.structs.replace(
            failed, api=Api(time.monotonic() - started, str(error), connection.server)
        )
    api = Api(
        time.monotonic() - started,
        "" if status < 500 and status != 401 else f"it answers with HTTP {status}",
        connection.server,
    )
    try:
        node = (
            msgspec.json.decode(body, type=Node)
            if status == 200
            else Unknown(
                f"the API server answers with HTTP {status} to a request for Node {node_name!r}"
            )
        )
        status, body = _get(connection, "/apis/networking.k8s.io/v1/servicecidrs")
        cidrs = (
            _networks(msgspec.json.decode(body, type=_List).items)
            if status == 200
            else Unknown(f"the API server answers with HTTP {status} to a request for ServiceCIDRs")
        )
    except (NftproxyError, msgspec.MsgspecError) as error:
        return Objects(Unknown(str(error)), Unknown(str(error)), api)
    return Objects(node, cidrs, api)


def _get(connection: "Connection", path: str) -> tuple[int, bytes]:
    with connection.get(path, {}, silence=_PATIENCE) as answer:
        return answer.status, answer.body()


def _networks(cidrs: Sequence[ServiceCIDR]) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(networks(text for item in cidrs for text in item.spec.cidrs or ())))


def _unknown(reason: str) -> Objects:
    return Objects(Unknown(reason), Unknown(reason), Unknown(reason))


def _in_cluster() -> bool:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
