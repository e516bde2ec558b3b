"""Who serves the Services: kubeadm's DaemonSet with one image or another, or our own manifests."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster import e2e, network, pki
from tests.cluster.cluster import kubectl, read
from tests.cluster.names import (
    CONTROL,
    CONTROL_IPV4,
    FOLDER,
    NFTPROXY,
    PODS,
    REPOSITORY,
    SERVER,
    SERVICES,
    program,
)
from tests.support.paths import ROOT

DAEMONSET = "daemonset/kube-proxy"


def original() -> str:
    """Return the image of kube-proxy that kubeadm writes into its DaemonSet."""
    return f"{REPOSITORY}/kube-proxy:{e2e.version()}"


def addons() -> None:
    """Let kubeadm make its DaemonSet of kube-proxy, and its DNS."""
    addon("kube-proxy")
    addon("coredns")


def addon(name: str) -> None:
    """Let kubeadm write one of its addons, as `kubeadm init` and `kubeadm upgrade` do."""
    path = FOLDER / "kubeadm.json"
    path.write_text("\n---\n".join(json.dumps(each) for each in _configuration()))
    argv = [program("kubeadm"), "init", "phase", "addon", name, f"--config={path}"]
    subprocess.run(
        network.inside(CONTROL, *argv, f"--kubeconfig={pki.kubeconfig('admin')}"), check=True
    )


def image() -> str:
    """Return the image in kubeadm's DaemonSet."""
    found = read(DAEMONSET, "--namespace=kube-system")
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


def set_mode(mode: str) -> None:
    """Write the mode into kubeadm's ConfigMap, as docs/operations.md says."""
    found = read("configmap", "kube-proxy", "--namespace=kube-system")
    lines = found["data"]["config.conf"].splitlines()
    found["data"]["config.conf"] = "\n".join(
        f"mode: {mode}" if line.startswith("mode:") else line for line in lines
    )
    kubectl("apply", "--filename=-", documents=[found])


def set_server(url: str) -> None:
    """Write the API server's address into the kubeconfig that kubeadm's ConfigMap has."""
    found = read("configmap", "kube-proxy", "--namespace=kube-system")["data"]["kubeconfig.conf"]
    changed = re.sub(r"server: .*", f"server: {url}", found)
    patch = json.dumps({"data": {"kubeconfig.conf": changed}})
    kubectl("--namespace=kube-system", "patch", "configmap", "kube-proxy", f"--patch={patch}")


def set_image(image: str, *, wait: bool = True) -> None:
    """Swap the image of kubeadm's DaemonSet."""
    kubectl("--namespace=kube-system", "set", "image", DAEMONSET, f"kube-proxy={image}")
    if wait:
        rollout(DAEMONSET)


def restart(*, wait: bool = True) -> None:
    """Start the pods of kubeadm's DaemonSet again, one node after the other."""
    kubectl("--namespace=kube-system", "rollout", "restart", DAEMONSET)
    if wait:
        rollout(DAEMONSET)


def rollout(what: str) -> None:
    """Wait until all pods of an object are there, and are of its newest kind."""
    kubectl("--namespace=kube-system", "rollout", "status", what, "--timeout=300s")


def apply_own() -> None:
    """Apply deploy/ with this cluster's values."""
    kubectl("apply", "--kustomize", str(own()))
    rollout("daemonset/nftproxy")


def delete_own() -> None:
    """Delete what deploy/ made; the table stays."""
    kubectl("delete", "--kustomize", str(own()), "--wait")


def select_nodes(*, all_nodes: bool) -> None:
    """Let kubeadm's DaemonSet run on all nodes or on none."""
    value = None if all_nodes else "true"
    selector = {"example.org/kube-proxy": value}
    patch = {"spec": {"template": {"spec": {"nodeSelector": selector}}}}
    name = ("--namespace=kube-system", "patch", DAEMONSET, "--type=merge")
    kubectl(*name, f"--patch={json.dumps(patch)}")


def own() -> Path:
    """Write what docs/install.md has somebody write, and return its folder."""
    folder = FOLDER / "own"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    image = folder / "deploy/image/kustomization.yaml"
    name, _, tag = NFTPROXY.rpartition(":")
    text = image.read_text().replace("example.org/nftproxy", name).replace('"0.1.0"', f'"{tag}"')
    image.write_text(text)
    base = (ROOT / "deploy/base/config.conf").read_text()
    config = "\n".join(
        f"clusterCIDR: {PODS}" if line.startswith("clusterCIDR:") else line
        for line in base.splitlines()
    )
    # Nodes that are namespaces cannot set limits that are the machine's.
    (folder / "config.conf").write_text(f"{config}\nconntrack: {{maxPerCore: 0}}\n")
    whole = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "kube-system",
        "resources": ["deploy/base"],
        "configMapGenerator": [
            {"name": "nftproxy-api", "behavior": "merge", "literals": [f"API_SERVER={SERVER}"]},
            {"name": "nftproxy", "behavior": "merge", "files": ["config.conf"]},
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(whole))
    return folder


def _configuration() -> list[dict[str, Any]]:
    kubeadm = "kubeadm.k8s.io/v1beta4"
    return [
        {
            "apiVersion": kubeadm,
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": CONTROL_IPV4, "bindPort": 6443},
            "nodeRegistration": {"criSocket": "unix:///run/containerd/containerd.sock"},
        },
        {
            "apiVersion": kubeadm,
            "kind": "ClusterConfiguration",
            "kubernetesVersion": e2e.version(),
            "imageRepository": REPOSITORY,
            "networking": {"podSubnet": PODS, "serviceSubnet": SERVICES},
        },
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            # Nodes that are namespaces cannot set limits that are the machine's.
            "conntrack": {"maxPerCore": 0, "min": 0},
        },
    ]
