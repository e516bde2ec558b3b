"""vagrant/: what can be proved of a cluster without machines.

Scripts are checked, their functions called, smoke and bench run in a lab.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nftproxy.configuration.configfile import load
from nftproxy.configuration.validation import require_valid
from tests.tools.consoles import PROJECT, Shell

VAGRANT = PROJECT / "vagrant"
SCRIPTS = sorted(
    path
    for folder in ("vagrant", "docs", "release", ".ci")
    for path in (PROJECT / folder).rglob("*.sh")
)
PROVISION = sorted(
    path for path in (VAGRANT / "provision").glob("*.sh") if path.name != "common.sh"
)
VARIABLES = dict(
    re.findall(r"^([A-Z0-9_]+)=(.*)$", (VAGRANT / "variables.env").read_text(), re.MULTILINE)
)
FLANNEL = """\
kind: ConfigMap
data:
  net-conf.json: |
    {
      "Network": "10.244.0.0/16",
      "Backend": {"Type": "vxlan"}
    }
---
kind: DaemonSet
args:
- --ip-masq
- --kube-subnet-mgr
- --healthz-port=8081
"""


def call(script: str, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call functions of a provisioning script, which does nothing else when it is sourced."""
    given = {
        **VARIABLES,
        "NODE": "1",
        "JOIN_TOKEN": "abcdef.0123456789abcdef",
        "NFTPROXY_TREE": str(PROJECT),
        **variables,
    }
    return subprocess.run(
        ["bash", "-c", f"source {VAGRANT}/provision/{script}\n{command}"],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(script: str, command: str, **variables: str) -> str:
    done = call(script, command, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_scripts_are_checked(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(
        ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""


@pytest.mark.parametrize("path", PROVISION, ids=lambda path: path.name)
def test_steps_stop_at_the_first_error(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert any(line.startswith("source ") and line.endswith('common.sh"') for line in lines)


def test_the_vagrantfile_runs_every_step_that_there_is() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    (named,) = re.findall(r"%w\[(system [^\]]*)\]", text)
    assert set(named.split()) == {path.stem for path in PROVISION}


@pytest.mark.skipif(
    not shutil.which("vagrant"),
    reason="vagrant is not installed: apt-get install vagrant vagrant-libvirt",
)
@pytest.mark.parametrize(
    ("variables", "valid"),
    [
        ({}, True),
        ({"PROXY": "ipvs"}, False),
        ({"NODES": "0"}, False),
        ({"DRIVER": "qemu"}, True),
        ({"DRIVER": "xen"}, False),
        ({"OFFLINE": "full"}, True),
        ({"OFFLINE": "empty"}, False),
    ],
    ids=["default", "unknown proxy", "no node", "qemu", "unknown driver", "offline", "not filled"],
)
def test_the_vagrantfile_is_valid(
    tmp_path: Path, variables: dict[str, str], *, valid: bool
) -> None:
    tree = shutil.copytree(
        VAGRANT, tmp_path / "vagrant", ignore=shutil.ignore_patterns(".vagrant", "results")
    )
    (tree / "full").mkdir()
    (tree / "full/SHA256SUMS").touch()
    (tree / "empty").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "VAGRANT_HOME": str(tmp_path / "home"),
        **variables,
    }
    done = subprocess.run(
        ["vagrant", "validate"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is valid, done.stderr


def test_addresses_of_others_stand_in_one_file() -> None:
    texts = {
        path: path.read_text()
        for path in VAGRANT.rglob("*")
        if path.is_file() and ".vagrant" not in path.parts
    }
    hosts = re.compile(r"https?://(?!localhost|\$|www\.w3\.org)[\w.-]+\.\w+")
    named = {
        path.name for path, text in texts.items() if hosts.search(text) and path.suffix != ".md"
    }
    assert named == {"variables.env"}


def test_every_variable_is_used() -> None:
    texts = [
        path.read_text()
        for path in VAGRANT.rglob("*")
        if path.suffix == ".sh" or path.name in {"Vagrantfile", "Makefile"}
    ]
    assert [
        name for name in VARIABLES if not any(re.search(rf"\b{name}\b", text) for text in texts)
    ] == []


def test_kubeadm_gets_documents_without_kube_proxy() -> None:
    init, cluster = yaml.safe_load_all(
        printed("cluster.sh", "configuration", KUBERNETES_VERSION="1.35.1", NETWORK="192.168.60")
    )
    assert init["skipPhases"] == ["addon/kube-proxy"]
    assert init["bootstrapTokens"][0]["token"] == "abcdef.0123456789abcdef"  # noqa: S105
    assert init["localAPIEndpoint"] == {"advertiseAddress": "192.168.60.11"}
    assert cluster["kubernetesVersion"] == "v1.35.1"
    assert cluster["networking"] == {"podSubnet": "10.244.0.0/16", "serviceSubnet": "10.96.0.0/16"}
    for program in ("controllerManager", "scheduler"):
        assert cluster[program]["extraArgs"] == [{"name": "leader-elect", "value": "false"}]


def test_kubeadm_joins_by_the_token() -> None:
    join = yaml.safe_load(printed("cluster.sh", "join_configuration", NETWORK="192.168.60"))
    assert join["kind"] == "JoinConfiguration"
    assert join["discovery"]["bootstrapToken"] == {
        "apiServerEndpoint": "192.168.60.11:6443",
        "token": "abcdef.0123456789abcdef",
        "unsafeSkipCAVerification": True,
    }
    assert join["timeouts"]["tlsBootstrap"] == "20m0s"


def test_an_init_that_failed_is_done_again(tmp_path: Path) -> None:
    """kubeadm writes its kubeconfig long before it is done: the file proves no cluster."""
    kubeadm = f'kubeadm() {{ echo "$1" >&2; touch {tmp_path}/admin.conf; [ "$FAILS" != "$1" ]; }}'
    command = f"{kubeadm}; initialise kubeadm.yaml {tmp_path}/admin.conf {tmp_path}/copy/config"
    failed = call("cluster.sh", command, FAILS="init")
    assert failed.returncode == 1
    assert not (tmp_path / "copy/config").exists()
    assert call("cluster.sh", command, FAILS="").stderr.split() == ["reset", "init"]
    assert call("cluster.sh", command, FAILS="").stderr == "", "a cluster that is there stays"


def test_flannel_takes_the_network_between_the_machines(tmp_path: Path) -> None:
    (tmp_path / "flannel.yml").write_text(FLANNEL)
    made = printed(
        "cluster.sh", f"with_interface {tmp_path}/flannel.yml", POD_NETWORK="10.1.0.0/16"
    )
    config, daemonset = yaml.safe_load_all(made)
    (pattern,) = (
        argument.removeprefix("--iface-regex=")
        for argument in daemonset["args"]
        if "regex" in argument
    )
    assert re.match(pattern, "192.168.56.11")
    assert not re.match(pattern, "192.168.5611")
    assert daemonset["args"][0] == "--ip-masq"
    assert json.loads(config["data"]["net-conf.json"])["Network"] == "10.1.0.0/16"


def test_a_bad_token_is_refused() -> None:
    done = call("cluster.sh", "true", JOIN_TOKEN="nonsense")  # noqa: S106
    assert done.returncode == 1
    assert done.stderr == "provisioning failed: JOIN_TOKEN is not what kubeadm takes\n"


def test_deploy_is_made_to_fit_the_cluster(tmp_path: Path) -> None:
    printed("proxy.sh", f"manifests {tmp_path}", POD_NETWORK="10.7.0.0/16", NETWORK="192.168.60")
    config, _ = load((tmp_path / "base/config.conf").read_text(), "config.conf")
    require_valid(config)
    assert config.cluster_cidr == "10.7.0.0/16"
    (generator,) = yaml.safe_load((tmp_path / "kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    assert generator["literals"] == ["API_SERVER=https://192.168.60.11:6443"]
    (image,) = yaml.safe_load((tmp_path / "image/kustomization.yaml").read_text())["images"]
    built = re.search(r"--name (\S+)", (VAGRANT / "provision/nftproxy.sh").read_text())
    assert built
    assert f"{image['newName']}:{image['newTag']}" == built[1]
    assert built[1] in (VAGRANT / "workload/deployments.yaml").read_text()


def test_kube_proxy_gets_its_mode(tmp_path: Path) -> None:
    kubeadm = tmp_path / "kubeadm.yaml"
    kubeadm.write_text(printed("cluster.sh", "configuration"))
    made = printed(
        "proxy.sh", f'sed() {{ command sed "$1" {kubeadm}; }}; kube_proxy_configuration nftables'
    )
    init, _, proxy = yaml.safe_load_all(made)
    assert "skipPhases" not in init
    assert proxy["kind"] == "KubeProxyConfiguration"
    assert proxy["mode"] == "nftables"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"PROXY": "nftproxy", "RUN_AS": "daemonset"}, ["daemonset"]),
        ({"PROXY": "nftproxy", "RUN_AS": "systemd"}, ["systemd"]),
        ({"PROXY": "kube-proxy-iptables", "RUN_AS": "systemd"}, ["kube-proxy"]),
    ],
    ids=["daemonset", "systemd", "kube-proxy"],
)
def test_one_thing_is_wanted(variables: dict[str, str], wanted: list[str]) -> None:
    asked = (
        "for kind in kube-proxy daemonset systemd; do if wanted $kind; then echo $kind; fi; done"
    )
    assert printed("proxy.sh", asked, **variables).split() == wanted


@pytest.mark.parametrize(
    "variables",
    [{"PROXY": "ipvs"}, {"RUN_AS": "cron"}, {"PROXY": ""}],
    ids=["proxy", "run as", "missing"],
)
def test_unknown_ways_to_serve_are_refused(variables: dict[str, str]) -> None:
    done = call("proxy.sh", "true", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("provisioning failed: ")


def test_an_error_names_line_and_command() -> None:
    done = call("common.sh", "false and more\necho never")
    assert done.returncode != 0
    assert "false and more" in done.stderr
    assert "never" not in done.stdout


@pytest.mark.parametrize(
    ("version", "minor"), [("1.35.6", "1.35"), ("1.9.10", "1.9"), ("1.35", None), ("v1.35.6", None)]
)
def test_minor_versions(version: str, minor: str | None) -> None:
    done = call("common.sh", f"minor {version}")
    assert done.stdout.strip() == (minor or "")
    assert (done.returncode == 0) is bool(minor)


def test_files_are_written_once(tmp_path: Path) -> None:
    target = tmp_path / "folder/file"
    twice = f"echo new | write {target} && echo changed; echo new | write {target} || echo same"
    assert printed("common.sh", twice).split() == ["changed", "same"]
    assert target.read_text() == "new\n"


def test_another_sum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    right = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    assert call("common.sh", f"check_sha256 {tmp_path}/file {right}").returncode == 0
    assert call("common.sh", f"check_sha256 {tmp_path}/file {right[::-1]}").returncode == 1


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """Return a folder as collect.sh fills it, with one small package."""
    folder = tmp_path / "offline"
    control = tmp_path / "hello/DEBIAN/control"
    for path in (folder / "packages", folder / "images", control.parent):
        path.mkdir(parents=True)
    control.write_text(
        "Package: hello-offline\nVersion: 1.2-1\nArchitecture: all\nMaintainer: a <a@b>\n"
        "Description: a package\n"
    )
    argv = ["dpkg-deb", "--build", str(tmp_path / "hello"), str(folder / "packages")]
    subprocess.run(argv, check=True, capture_output=True)
    for name in ("pause_3.10.tar", "nftproxy.tar"):
        (folder / "images" / name).write_text(name)
    (folder / "flannel.yml").write_text(FLANNEL)
    printed("../collect.sh", f"sums {folder}")
    return folder


def test_a_complete_folder_is_accepted(offline: Path) -> None:
    printed("common.sh", f"check_offline {offline}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("rm SHA256SUMS", "has no SHA256SUMS; collect.sh fills it"),
        ("rm packages/*", "hello-offline_1.2-1_all.deb: FAILED open or read"),
        ("echo more >>images/pause_3.10.tar", "images/pause_3.10.tar: FAILED"),
        ("sed -i /nftproxy/d SHA256SUMS; rm images/nftproxy.tar", "has no images/nftproxy.tar"),
        ("sed -i /flannel/d SHA256SUMS; rm flannel.yml", "has no flannel.yml"),
    ],
    ids=["not complete", "no package", "damaged", "no image", "no manifest"],
)
def test_a_folder_that_lacks_something_is_refused(offline: Path, damage: str, message: str) -> None:
    subprocess.run(damage, shell=True, cwd=offline, check=True)  # noqa: S602
    done = call("common.sh", f"check_offline {offline}\necho never")
    assert done.returncode == 1
    assert done.stderr.startswith("provisioning failed: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_apt_takes_packages_from_the_folder_alone(offline: Path, tmp_path: Path) -> None:
    """The real apt, with all its folders elsewhere."""
    apt = tmp_path / "apt"
    for name in ("etc/apt.conf.d", "etc/preferences.d", "lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "etc/sources.list").write_text("deb http://192.0.2.1/debian trixie main\n")
    (apt / "configuration").write_text(
        f'Dir::Etc "{apt}/etc";\nDir::State "{apt}";\nDir::State::status "{apt}/status";\n'
        f'Dir::Cache "{apt}/cache";\nAPT::Sandbox::User "root";\n'
    )
    commands = f"only_from {offline}; apt-get -qq install --print-uris hello-offline; apt-get check"
    done = call("offline.sh", commands, APT_CONFIG=f"{apt}/configuration", APT_FOLDER=f"{apt}/etc")
    assert done.returncode == 0, done.stderr
    assert f"'file:{offline}/packages/./hello-offline_1.2-1_all.deb'" in done.stdout
    assert "192.0.2.1" not in done.stdout + done.stderr


def test_images_are_imported_when_they_are_new(offline: Path, tmp_path: Path) -> None:
    command = f'ctr() {{ echo "${{@: -1}}"; }} >&2; import_images {offline}; echo again >&2'
    seen = {"IMPORTED_FOLDER": str(tmp_path / "imported")}
    first, second, changed = "nftproxy.tar", "pause_3.10.tar", "import_images"
    done = call("common.sh", f"{command}; import_images {offline}", **seen)
    assert [Path(line).name for line in done.stderr.split()] == [first, second, "again"]
    (offline / "images/pause_3.10.tar").write_text("another")
    printed("../collect.sh", f"sums {offline}")
    done = call("common.sh", command, **seen)
    assert [Path(line).name for line in done.stderr.split()] == [second, "again"]
    (offline / "images/other.tar").touch()
    done = call("common.sh", changed + f" {offline}", **seen)
    assert done.stderr == f"provisioning failed: {offline}/images/other.tar is not in SHA256SUMS\n"


@pytest.mark.parametrize(
    "configuration",
    ['    sandbox_image = "pause:3.8"\n', "      sandbox = 'pause:3.8'\n  sandboxer = 'a'\n"],
    ids=["containerd 1", "containerd 2"],
)
def test_both_generations_name_the_image_of_a_sandbox(configuration: str) -> None:
    asked = 'containerd() { printf "%s" "$CONFIGURATION"; }; sandbox_image'
    assert printed("kubernetes.sh", asked, CONFIGURATION=configuration) == "pause:3.8\n"


@pytest.mark.parametrize(
    ("there", "outcome"),
    [
        ("etcd:3.6 pause:3.10", "tag --force example/pause:3.10 example/pause:3.8\n"),
        ("pause:3.10", "no archive in /offline/images has example/etcd:3.6"),
    ],
    ids=["all", "one is missing"],
)
def test_the_control_planes_images_are_there(there: str, outcome: str) -> None:
    done = call(
        "kubernetes.sh",
        f"""
        kubeadm() {{ printf 'example/%s\n' kube-proxy:v1 etcd:3.6 pause:3.10; }}
        sandbox_image() {{ echo example/pause:3.8; }}
        ctr() {{
            [ $4 = list ] && printf 'example/%s\n' {there} || echo "${{@: -4}}" >&2
        }}
        require_images
        """,
        OFFLINE="/offline",
    )
    assert outcome in done.stderr


def test_settings_of_the_environment_win() -> None:
    asked = "use_settings; echo $KUBERNETES_VERSION $FLANNEL_SHA256"
    done = subprocess.run(
        ["bash", "-c", f"source {VAGRANT}/collect.sh\n{asked}"],
        env={"PATH": os.environ["PATH"], "KUBERNETES_VERSION": "1.40.0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.40.0", VARIABLES["FLANNEL_SHA256"]]


def test_images_are_collected_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    names = "example.test/a/kube-apiserver:v1 example.test/coredns/coredns:v2"
    fetch = (
        'skopeo() { echo "${@: -2:1}" >&2; local to=${@: -1}; to=${to#*:}; touch "${to%%:*}"; }; '
        f"images {tmp_path} {names}"
    )
    done = call("../collect.sh", fetch)
    assert done.stderr.split() == [f"docker://{name}" for name in names.split()]
    assert done.stdout.splitlines()[1] == "image 2 of 2: example.test/coredns/coredns:v2"
    files = {path.name for path in (tmp_path / "images").iterdir()}
    assert files == {"kube-apiserver_v1.tar", "coredns_v2.tar"}
    assert call("../collect.sh", fetch).stderr == ""


def test_an_image_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    done = call("../collect.sh", f"skopeo() {{ false; }}; images {tmp_path} example.test/a:v1")
    assert done.returncode == 1
    assert done.stderr.startswith("collecting failed: example.test/a:v1 cannot be fetched; ")
    assert not list((tmp_path / "images").iterdir())


def test_flannels_images_are_those_of_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "flannel.yml").write_text("x:\n  image: b/c:1\n- image: b/a:2\n  image: b/c:1\n")
    assert printed("../collect.sh", f"flannel_images {tmp_path}/flannel.yml").split() == [
        "b/a:2",
        "b/c:1",
    ]


def test_machines_of_one_box_have_identities_of_their_own(tmp_path: Path) -> None:
    """DHCP would give all the same address, and ssh would not tell one from the other."""
    once = [
        tmp_path / name
        for name in (
            "etc/machine-id",
            "var/lib/dbus/machine-id",
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssh/ssh_host_ed25519_key.pub",
        )
    ]
    folders = ("etc/ssh/sshd_config.d", "etc/sudoers.d", "etc/systemd/network")
    for folder in (*folders, "etc/systemd/system", "var/lib/dbus"):
        (tmp_path / folder).mkdir(parents=True)
    for path in once:
        path.write_text("the box's\n")
    # What these two do needs a whole Debian.
    stand_ins = "chroot() { :; }; public_key() { echo ssh-rsa AAAA; }"
    printed("../box.sh", f"{stand_ins}; configure {tmp_path} 0-1-2")
    assert [path.read_text() for path in once if path.exists()] == [""], "machine-id, empty"
    assert (
        "ExecStart=/usr/bin/ssh-keygen -A"
        in (tmp_path / "etc/systemd/system/host-keys.service").read_text()
    )
    assert "root=UUID=0-1-2" in (tmp_path / "boot/grub/grub.cfg").read_text()
    assert (tmp_path / "home/vagrant/.ssh/authorized_keys").read_text() == "ssh-rsa AAAA\n"


@pytest.mark.skipif(
    not (shutil.which("grub-mkimage") and Path("/usr/lib/grub/i386-pc/boot.img").exists())
    or not shutil.which("sfdisk"),
    reason="no GRUB and no sfdisk here: apt-get install grub-common grub-pc-bin fdisk",
)
def test_a_disk_has_a_boot_loader_and_the_files(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/hello").write_text("hello\n")
    uuid, disk = "599c4e75-a977-47c8-95cb-44bbfd392bd0", tmp_path / "disk"
    printed("../box.sh", f"size_gb=1; disk {tmp_path}/root {uuid} {disk}")
    with disk.open("rb") as file:
        first, second = file.read(512), file.read(512)
    assert first[510:] == b"\x55\xaa"
    assert b"GRUB" in first
    assert any(second)
    argv = ["debugfs", "-R", "cat /hello", f"{disk}?offset=1048576"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"


def test_workload_is_complete() -> None:
    folder = VAGRANT / "workload"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert [name for name in kustomization["resources"] if not (folder / name).is_file()] == []
    deployments = {
        each["metadata"]["name"]: each
        for each in yaml.safe_load_all((folder / "deployments.yaml").read_text())
    }
    services = {
        each["metadata"]["name"]: each
        for each in yaml.safe_load_all((folder / "services.yaml").read_text())
    }
    assert services.keys() == {"web", "shop", "mail", "cart", "batch"}
    assert services.keys() - deployments.keys() == {"batch"}, "batch has no endpoints"
    for name in services.keys() & deployments.keys():
        assert (
            deployments[name]["spec"]["template"]["metadata"]["labels"]
            == services[name]["spec"]["selector"]
        )


def test_the_endpoint_of_the_workload_answers_the_client() -> None:
    commands = f"""
    {sys.executable} vagrant/workload/echo.py &
    {sys.executable} vagrant/workload/load.py until answered 127.0.0.1 8080
    head -n 1 </dev/tcp/127.0.0.1/8080
    exec 3<>/dev/udp/127.0.0.1/8080; echo hello >&3; head -n 1 <&3
    {sys.executable} vagrant/workload/load.py connect 127.0.0.1 8080 0.2
    """
    with Shell() as shell:
        tcp, udp, figures = map(json.loads, shell.run(commands).splitlines())
    assert tcp["source"] == udp["source"] == "127.0.0.1"
    assert figures["per_second"] > 0
    assert figures["failed"] == 0


@pytest.mark.timeout(300)
def test_smoke_in_the_lab() -> None:
    with Shell() as shell:
        lines = shell.run("vagrant/smoke.sh lab 2>&1; echo $?").splitlines()
    assert lines[-2:] == ["all right", "0"], "\n".join(lines)
    assert sum(line.endswith(" ok") for line in lines) == 11


@pytest.mark.timeout(300)
def test_bench_and_chart_in_the_lab() -> None:
    with Shell() as shell:
        shell.run("export SECONDS_EACH=1 RESULTS=$PWD/results")
        figures = json.loads(shell.run("vagrant/bench.sh lab nftproxy").splitlines()[-1])
        shell.run("python3 vagrant/workload/chart.py results")
        head, row = shell.run("cat results/results.csv").splitlines()
        picture = shell.run("cat results/results.svg")
    assert figures["failed"] == 0
    assert figures["gone_ms"] > 0
    assert row.split(",")[0] == "nftproxy"
    assert len(head.split(",")) == len(row.split(","))
    assert picture.startswith("<svg")
    assert picture.count("<rect") == 6
