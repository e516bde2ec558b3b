"""One certificate authority, and who has a certificate of it."""

import base64
import json
from pathlib import Path

from tests.cluster.names import (
    CONTROL_IPV4,
    CONTROL_IPV6,
    FOLDER,
    KUBERNETES_SERVICE,
    NODES,
    SERVER,
)
from tests.support.pki import Authority, Certificate, key_pair

PKI = FOLDER / "pki"
_CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    **{node.name: (f"system:node:{node.name}", "system:nodes") for node in NODES},
}
_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")


def make() -> None:
    """Make all keys, certificates and kubeconfigs."""
    PKI.mkdir(parents=True)
    authority = Authority(PKI)
    addresses = ["127.0.0.1", CONTROL_IPV4, CONTROL_IPV6, *KUBERNETES_SERVICE]
    authority.server("apiserver", addresses, names=_NAMES)
    for node in NODES:
        authority.server(f"kubelet-{node.name}", [node.ipv4, node.ipv6], names=[node.name])
    authority.client("apiserver-kubelet-client", "system:masters")
    authority.client("front-proxy-client")
    key_pair(PKI, "service-accounts")
    for name, (user, group) in _CLIENTS.items():
        kubeconfig(name).write_text(_kubeconfig(authority.own, authority.client(user, group)))


def kubeconfig(name: str) -> Path:
    """Return the path of the kubeconfig of a client."""
    return PKI / f"{name}.conf"


def _kubeconfig(authority: Certificate, client: Certificate) -> str:
    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {
        "server": SERVER,
        "certificate-authority-data": encoded(authority.certificate),
    }
    user = {
        "client-certificate-data": encoded(client.certificate),
        "client-key-data": encoded(client.key),
    }
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "default", "context": {"cluster": "cluster", "user": "user"}}],
            "current-context": "default",
        }
    )
