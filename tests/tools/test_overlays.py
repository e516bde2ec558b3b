"""What `kubectl kustomize` makes of deploy/ and each overlay: objects of Kubernetes' own schemas,
and settings that fit together.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from nftproxy.configuration.configfile import load
from nftproxy.configuration.validation import require_valid
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
BUILT = (
    "deploy",
    "deploy/cleanup",
    "deploy/monitoring",
    *(f"deploy/overlays/{n}" for n in OVERLAYS),
)
OF_OPERATOR = {"PodMonitor", "PrometheusRule"}  # their schemas are not Kubernetes'


def kustomize(folder: str) -> list[dict[str, Any]]:
    """The objects that are applied; skipped without a kubectl that knows components (1.21)."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is missing")
    version = subprocess.run(
        ["kubectl", "version", "--client"], capture_output=True, text=True, check=False
    ).stdout
    if "Kustomize Version" not in version:
        pytest.skip("kubectl is older than 1.28, which first says which kustomize it has")
    done = subprocess.run(
        ["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def conforms(document: dict[str, Any]) -> None:
    """Require that an object has its kind's required fields, of the right types, and no other: the
    model would lose those.
    """
    version = document["apiVersion"].rpartition("/")[2].capitalize()
    model = getattr(client, version + document["kind"])
    assert model.from_dict(document).model_dump(by_alias=True, exclude_none=True) == document


def one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        each
        for each in documents
        if each["kind"] == kind
        and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
    )
    return found


@pytest.mark.parametrize("folder", BUILT)
def test_objects_are_those_of_kubernetes_schemas(folder: str) -> None:
    documents = kustomize(folder)
    assert documents
    for document in documents:
        if document["kind"] not in OF_OPERATOR:
            conforms(document)


def test_a_field_that_kubernetes_lacks_is_noticed() -> None:
    document = yaml.safe_load((DEPLOY / "base/daemonset.yaml").read_text())
    conforms(document)
    document["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(AssertionError):
        conforms(document)


@pytest.mark.parametrize("folder", ["deploy", *(f"deploy/overlays/{n}" for n in OVERLAYS)])
def test_containers_find_what_they_are_told_to_read(folder: str) -> None:
    documents = kustomize(folder)
    pod = one(documents, "DaemonSet", "nftproxy")["spec"]["template"]["spec"]
    settings = one(documents, "ConfigMap", "nftproxy")
    api = one(documents, "ConfigMap", "nftproxy-api")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "config")
    kubeadm = folder.endswith("kubeadm")
    wanted = "kube-proxy" if kubeadm else settings["metadata"]["name"]
    assert volume["configMap"]["name"] == wanted
    for container in [*pod["initContainers"], *pod["containers"]]:
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
        assert f"--config={mount['mountPath']}/config.conf" in container["args"]
        assert "--master=$(API_SERVER)" in container["args"]
        assert container["image"] == "example.org/nftproxy:0.1.0"
        (address,) = (each for each in container["env"] if each["name"] == "API_SERVER")
        assert address["valueFrom"]["configMapKeyRef"]["name"] == api["metadata"]["name"]
        if kubeadm:  # its kubeconfig has the address; contract 10.3.3
            assert mount["mountPath"] == "/var/lib/kube-proxy"
            assert not api["data"]["API_SERVER"]
        else:
            assert re.fullmatch(r"https://[a-z0-9.-]+:\d+", api["data"]["API_SERVER"])


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("config.conf")), ids=lambda path: path.parent.name
)
def test_configurations_are_valid(path: Path) -> None:
    config, warnings = load(path.read_text(), str(path))
    require_valid(config)
    assert not warnings
    assert config.cluster_cidr
    assert config.client_connection.kubeconfig == "/etc/nftproxy/kubeconfig.conf"


def test_the_page_has_a_recipe_for_each_overlay() -> None:
    page = (ROOT / "docs/install.md").read_text()
    named = set(re.findall(r"kubectl apply -k deploy/overlays/([a-z0-9]+)", page))
    assert named == set(OVERLAYS)
