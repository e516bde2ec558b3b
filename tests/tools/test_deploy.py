"""deploy/: manifests that say what they should, as far as that shows without a cluster.

`make test-image` does the Dockerfile's steps.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftproxy.configuration.configfile import load
from nftproxy.configuration.flags import FLAGS
from nftproxy.configuration.validation import require_valid
from nftproxy.sources.apiserver import connect
from release.image import steps
from tests.support.fake_apiserver import FakeApiServer
from tests.support.pki import server_tls
from tests.tools.consoles import PROJECT

DEPLOY = PROJECT / "deploy"
BASE = DEPLOY / "base"
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))
FOLDERS = sorted(path.parent for path in MANIFESTS if path.name == "kustomization.yaml")


def manifest(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text())


@pytest.fixture
def pod() -> Any:
    return manifest("daemonset.yaml")["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "path",
    [path for path in MANIFESTS if path.name != "rules-test.yaml"],
    ids=lambda path: str(path.relative_to(DEPLOY)),
)
def test_manifests_are_objects(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert all({"apiVersion", "kind"} <= document.keys() for document in documents)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_a_kustomization_names_what_is_there(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    generated = kustomization.get("configMapGenerator", ())
    files = [name.rpartition("=")[2] for each in generated for name in each.get("files", ())]
    named = [*kustomization.get("resources", ()), *kustomization.get("components", ()), *files]
    assert [name for name in named if not (folder / name).exists()] == []


def test_one_value_is_the_image_of_everything() -> None:
    (image,) = yaml.safe_load((DEPLOY / "image/kustomization.yaml").read_text())["images"]
    name = f"{image['newName']}:{image['newTag']}"
    assert name in (PROJECT / "docs/operations.md").read_text()
    assert name in (PROJECT / "docs/install.md").read_text()
    for path in (BASE / "daemonset.yaml", DEPLOY / "cleanup/cleanup.yaml"):
        pod = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
        containers = [*pod["containers"], *pod["initContainers"]]
        assert {container["image"] for container in containers} == {image["name"]}


@pytest.mark.contract("10.2.1", "10.2")
def test_permissions_are_those_of_kube_proxy_without_endpoints() -> None:
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in manifest("clusterrole.yaml")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert granted == {
        ("", "services"): {"list", "watch"},
        ("", "nodes"): {"get", "list", "watch"},
        ("discovery.k8s.io", "endpointslices"): {"list", "watch"},
        ("networking.k8s.io", "servicecidrs"): {"list", "watch"},
        ("", "events"): {"create", "patch", "update"},
        ("events.k8s.io", "events"): {"create", "patch", "update"},
    }


def test_the_role_is_bound_to_the_account_that_the_pods_have(pod: Any) -> None:
    binding = manifest("clusterrolebinding.yaml")
    (subject,) = binding["subjects"]
    assert binding["roleRef"]["name"] == manifest("clusterrole.yaml")["metadata"]["name"]
    assert (
        subject["name"]
        == manifest("serviceaccount.yaml")["metadata"]["name"]
        == pod["serviceAccountName"]
    )
    assert subject["namespace"] == manifest("kustomization.yaml")["namespace"]


@pytest.mark.contract("10.3.1")
def test_the_pods_are_on_every_linux_node_whatever_its_taints(pod: Any) -> None:
    daemonset = manifest("daemonset.yaml")["spec"]
    assert daemonset["updateStrategy"]["type"] == "RollingUpdate"
    assert (
        daemonset["selector"]["matchLabels"].items()
        <= daemonset["template"]["metadata"]["labels"].items()
    )
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["hostNetwork"] is True
    assert {
        container["imagePullPolicy"] for container in [*pod["containers"], *pod["initContainers"]]
    } == {"IfNotPresent"}


def test_only_the_init_container_is_privileged(pod: Any) -> None:
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert not rights.get("privileged")
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    (prepare,) = pod["initContainers"]
    assert "--init-only" in prepare["args"]
    assert prepare["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.contract("10.3.2")
def test_a_node_that_is_busy_gets_five_minutes_to_start_the_program(pod: Any) -> None:
    (container,) = pod["containers"]
    start, life = container["startupProbe"], container["livenessProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 300
    assert start["httpGet"] == life["httpGet"]
    assert start["timeoutSeconds"] == life["timeoutSeconds"] == 5


def test_the_node_name_comes_from_the_pod(pod: Any) -> None:
    for container in [*pod["containers"], *pod["initContainers"]]:
        assert "--hostname-override=$(NODE_NAME)" in container["args"]
        variables = {variable["name"]: variable["valueFrom"] for variable in container["env"]}
        assert variables["NODE_NAME"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


@pytest.mark.contract("10.3.3")
def test_configuration_and_lock_are_mounted(pod: Any) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert (
        volumes["config"]["configMap"]["name"]
        == manifest("kustomization.yaml")["configMapGenerator"][0]["name"]
    )
    assert volumes["xtables-lock"]["hostPath"] == {
        "path": "/run/xtables.lock",
        "type": "FileOrCreate",
    }
    for container in [*pod["containers"], *pod["initContainers"]]:
        mounted = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounted.keys() == volumes.keys()
        assert mounted["xtables-lock"]["mountPath"] == "/run/xtables.lock"
        assert not mounted["xtables-lock"].get("readOnly")
        assert f"--config={mounted['config']['mountPath']}/config.conf" in container["args"]


def test_flags_that_are_given_exist(pod: Any) -> None:
    known = {flag.name for flag in FLAGS}
    unit = (DEPLOY / "nftproxy.service").read_text()
    given = [
        argument
        for container in [*pod["containers"], *pod["initContainers"]]
        for argument in container["args"]
    ]
    given += re.findall(
        r"--\S+", "\n".join(line for line in unit.splitlines() if line.startswith("Exec"))
    )
    assert {flag.removeprefix("--").partition("=")[0] for flag in given} <= known


def test_the_configuration_is_valid_and_names_the_kubeconfig() -> None:
    config, warnings = load((BASE / "config.conf").read_text(), "config.conf")
    require_valid(config)
    assert not warnings
    assert config.mode == "nftables"
    assert config.client_connection.kubeconfig == "/etc/nftproxy/kubeconfig.conf"


@pytest.mark.contract("10.3.4")
def test_the_kubeconfig_reaches_a_server_with_the_token_of_the_pod(tmp_path: Path) -> None:
    text = (BASE / "kubeconfig.conf").read_text()
    assert yaml.safe_load(text)["clusters"][0]["cluster"]["certificate-authority"].endswith(
        "/ca.crt"
    )
    (tmp_path / "token").write_text("of-the-pod")
    with FakeApiServer(tls=server_tls(tmp_path)) as server:
        text = text.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(tmp_path))
        (tmp_path / "kubeconfig").write_text(text)
        connection = connect(str(tmp_path / "kubeconfig"), server.url)
        with connection.get("/api/v1/services", {"limit": "5"}, silence=5) as answer:
            answer.body()
            assert answer.status == 200
        connection.close()
        assert server.requests[-1].token == "Bearer of-the-pod"  # noqa: S105


def test_the_dockerfile_copies_what_is_there_and_the_build_needs() -> None:
    copied = [
        rest
        for instruction, rest in steps((DEPLOY / "Dockerfile").read_text())
        if instruction == "COPY"
    ]
    names = {
        name for rest in copied if not rest.startswith("--from=") for name in rest.split()[:-1]
    }
    assert [name for name in names if not (PROJECT / name).exists()] == []
    assert {"nftproxy", "rulesets", "examples", "release", "share"} <= names


@pytest.mark.contract("10.3.2")
def test_the_image_has_kube_proxy_where_kubeadm_calls_it() -> None:
    dockerfile = list(steps((DEPLOY / "Dockerfile").read_text()))
    assert dockerfile[-1] == ("ENTRYPOINT", '["/usr/local/bin/kube-proxy"]')
    assert any(
        "ln -s /opt/nftproxy/bin/kube-proxy /usr/local/bin/kube-proxy" in rest
        for _, rest in dockerfile
    )


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_locks_have_hashes_for_everything_and_name_no_host(name: str) -> None:
    text = (DEPLOY / name).read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"://|--(extra-)?index|--find-links", text)


def test_the_unit_is_one_that_systemd_reads() -> None:
    text = (DEPLOY / "nftproxy.service").read_text()
    sections = re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)
    assert sections == ["Unit", "Service", "Install"]
    body = [line for line in text.splitlines() if line and not line.startswith(("#", "["))]
    assert [line for line in body if not re.fullmatch(r"[A-Z][A-Za-z]+=.+", line)] == []
    assert "ExecStart=/opt/nftproxy/bin/kube-proxy --config=/etc/nftproxy/config.conf" in body


@pytest.mark.parametrize("files", [False, True], ids=["cluster", "files"])
def test_systemd_reads_the_unit_and_the_drop_in_of_the_page(tmp_path: Path, *, files: bool) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing")
    there = {"/opt/nftproxy/bin/kube-proxy": "/bin/true", "/opt/nftproxy/bin/nftproxy": "/bin/true"}
    texts = {"nftproxy.service": (DEPLOY / "nftproxy.service").read_text()}
    if files:
        page = (PROJECT / "docs/install.md").read_text()
        (drop_in,) = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        texts["nftproxy.service.d/files.conf"] = drop_in
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for program, other in there.items():
            text = text.replace(program, other)  # noqa: PLW2901
        (tmp_path / name).write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "nftproxy.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if "nftproxy" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_the_make_targets_that_pages_name_exist() -> None:
    pages = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")]
    named = {
        name for page in pages for name in re.findall(r"`?\bmake ([a-z-]+)`", page.read_text())
    }
    makefile = (PROJECT / "Makefile").read_text()
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()
    subprocess.run(
        ["make", "--dry-run", "--directory", PROJECT, "demo"], check=True, capture_output=True
    )
