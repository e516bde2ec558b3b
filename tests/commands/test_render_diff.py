"""`render`, `diff` and `cleanup`.

What is printed is what is loaded, and nothing but cleanup changes anything.
"""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftproxy import shipped
from nftproxy.lab import namespace
from nftproxy.lab.plan import CLUSTER_CIDRS
from tests.support.process import Run, endpoints, everything, network, nftproxy, service, write

NODE = ("--node-name", "node1")
SETTINGS: dict[str, tuple[str, ...]] = {
    "pods by address": ("--cluster-cidr", ",".join(CLUSTER_CIDRS.values())),
    "no pods": (),
    "pods by bridge": ("--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cni0"),
    "pods by prefix": (
        "--detect-local-mode",
        "InterfaceNamePrefix",
        "--pod-interface-name-prefix",
        "veth",
    ),
    "pods by the node": ("--detect-local-mode", "NodeCIDR"),
    "all masqueraded": ("--masquerade-all", "--masquerade-bit", "20"),
    "some not masqueraded": ("--no-masquerade-cidrs", "172.16.0.0/12,fd00:172::/32"),
    "NodePorts everywhere": ("--nodeport-addresses", "0.0.0.0/0,::/0"),
    "NodePorts on localhost": (
        "--nodeport-addresses",
        "primary,localhost",
        "--feature-gates",
        "KubeProxyNFTablesLocalhostNodePorts=true",
    ),
    "NodePorts refused on localhost": (
        "--nodeport-addresses",
        "all",
        "--feature-gates",
        "KubeProxyNFTablesLocalhostNodePorts=true",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    shutil.copytree(shipped.folder("examples"), path)
    return path


@pytest.fixture
def where() -> Iterator[str]:
    """A network with the addresses of node1, on which NodePorts are accepted."""
    with network() as name:
        for address in ("192.168.50.11/24", "fd00:50::11/64"):
            subprocess.run(["ip", "-n", name, "addr", "add", address, "dev", "lo"], check=True)
        yield name


def rendered(folder: Path, *options: str) -> str:
    done = nftproxy("render", "--manifests", folder, *NODE, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nft(where: str, text: str, *options: str) -> None:
    with namespace.enter(where):
        done = subprocess.run(
            ["nft", *options, "-f", "-"], input=text, text=True, capture_output=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_rendered_and_loaded_by_nft_is_what_run_makes(
    folder: Path, where: str, options: tuple[str, ...]
) -> None:
    text = rendered(folder, *options)
    nft(where, text)
    by_nft = everything(where)
    assert nftproxy("diff", "--manifests", folder, *NODE, *options, where=where).stdout == ""
    assert nftproxy("cleanup", where=where).returncode == 0
    with Run(where, folder, *options) as run:
        run.until_started()
        nft(where, text, "--check")  # also where the table is in use
        assert everything(where) == by_nft
        run.end(signal.SIGTERM)
    nft(where, text)  # and it may replace it
    assert everything(where) == by_nft


def test_what_render_says_as_json_is_what_is_in_the_table(folder: Path, where: str) -> None:
    nft(where, rendered(folder))
    found = json.loads(rendered(folder, "--output", "json"))
    table = everything(where)
    assert f"program-{found['program']}" in table["chains"]
    assert found["serviceCIDRs"] == [
        str(n) for family in "46" for n in table[f"service_cidrs{family}"]
    ]
    in_table = {
        name
        for name, items in table.items()
        if items and name not in {"chains", "rules", "service_cidrs4", "service_cidrs6"}
    }
    assert set(found["elements"]) == in_table
    for name in in_table:
        assert {tuple(item["key"]) for item in found["elements"][name]} == set(table[name]), name
    (element,) = [
        item for item in found["elements"]["services4"] if item["key"] == ["10.96.0.10", "tcp", 80]
    ]
    assert element["value"] == {"verdict": "goto pick4-tcp-3", "service": "default/web:http"}


def test_render_needs_no_privileges(folder: Path) -> None:
    allowed = nftproxy("render", "--manifests", folder, *NODE)
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
    assert (
        nftproxy("render", "--manifests", folder, *NODE, before=bare).stdout == allowed.stdout != ""
    )


def test_manifests_may_be_files_and_folders(folder: Path) -> None:
    files = [argument for path in sorted(folder.iterdir()) for argument in ("--manifests", path)]
    assert nftproxy("render", *files, *NODE).stdout == rendered(folder)


def test_render_warns_where_only_the_node_itself_knows(folder: Path) -> None:
    done = nftproxy(
        "render", "--manifests", folder, *NODE, "--nodeport-addresses", "192.168.50.0/24"
    )
    assert done.returncode == 0
    assert "192.168.50.0/24" in done.stderr
    assert "add element inet nftproxy nodeport_ips4" not in done.stdout


@pytest.mark.parametrize("command", ["render", "diff"])
def test_bad_input_is_refused_by_name(folder: Path, where: str, command: str) -> None:
    broken = service("broken")
    broken["spec"]["clusterIP"] = "10.96.0.999"
    write(folder / "broken.yaml", broken)
    (folder / "worse.yaml").write_text("]")
    done = nftproxy(command, "--manifests", folder, *NODE, where=where)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: ")] == [
        (
            f"error: {folder}/broken.yaml: document 1: Service default/broken: spec.clusterIP: "
            "'10.96.0.999' is not an IP address"
        ),
        f"error: {folder}/worse.yaml: line 1: not YAML: did not find expected node content",
    ]


def test_diff_tells_what_a_sync_would_change_and_changes_nothing(folder: Path, where: str) -> None:
    def diff(*options: str) -> tuple[int, list[str]]:
        done = nftproxy(
            "diff",
            "--manifests",
            folder,
            *NODE,
            *SETTINGS["pods by address"],
            *options,
            where=where,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    code, lines = diff()
    assert code == 1
    assert lines[0].startswith("+ program ")
    assert {line[0] for line in lines} == {"+"}
    assert (
        nftproxy("cleanup", where=where).stdout
        == "there is no table inet nftproxy, nothing to remove\n"
    )

    nft(where, rendered(folder, *SETTINGS["pods by address"]))
    before = everything(where)
    assert diff() == (0, [])

    write(folder / "affinity.yaml", service("new", "10.96.0.50"), endpoints("10.244.1.2", of="new"))
    code, lines = diff()
    assert code == 1
    assert set(lines) == {
        (
            '- services4 10.96.0.50 . tcp . 80 comment "default/cart:http" : goto '
            "sticky-pick4-tcp-3-8080-default/cart/tcp/http"
        ),
        '+ services4 10.96.0.50 . tcp . 80 comment "default/new:http" : goto pick4-tcp-1',
        "- endpoints4-tcp 10.96.0.50 . 80 . 1 : 10.244.2.2 . 8080",
        "- endpoints4-tcp 10.96.0.50 . 80 . 2 : 10.244.2.3 . 8080",
        "- new_clients4 10.96.0.50 . tcp . 80",
        "- learn4 10.96.0.50 . tcp . 80 : goto learn4-600-8080-default/cart/tcp/http",
        "- members4 10.244.1.2 . tcp . 8080",
        "- cluster_members4-default/cart/tcp/http 10.244.1.2 . 8080",
        "- cluster_members4-default/cart/tcp/http 10.244.2.2 . 8080",
        "- cluster_members4-default/cart/tcp/http 10.244.2.3 . 8080",
    }
    changes = json.loads("\n".join(diff("--output", "json")[1]))
    assert {
        f"{change['change']} {change['where']} {change['element']}" for change in changes
    } == set(lines)
    assert everything(where) == before


def test_diff_sees_node_wide_changes(folder: Path, where: str) -> None:
    nft(where, rendered(folder))
    (folder / "service-cidr.yaml").unlink()
    subprocess.run(["ip", "-n", where, "addr", "del", "192.168.50.11/24", "dev", "lo"], check=True)
    done = nftproxy("diff", "--manifests", folder, *NODE, "--masquerade-all", where=where)
    assert done.returncode == 1
    assert {line for line in done.stdout.splitlines() if " program " not in line} == {
        "- service_cidrs4 10.96.0.0/16",
        "- service_cidrs6 fd00:10:96::/112",
        "- nodeport_ips4 192.168.50.11",
    }
    assert len([line for line in done.stdout.splitlines() if " program " in line]) == 2


def test_cleanup_removes_the_table_and_nothing_else(folder: Path, where: str) -> None:
    nft(where, "table inet other { chain c { type filter hook input priority 0; accept; }; }")
    nft(where, rendered(folder))
    done = nftproxy("cleanup", where=where)
    assert done.returncode == 0
    assert done.stdout.startswith("removed table inet nftproxy with ")
    with namespace.enter(where):
        assert (
            subprocess.run(
                ["nft", "list", "tables"], text=True, capture_output=True, check=True
            ).stdout
            == "table inet other\n"
        )
    assert (
        nftproxy("cleanup", where=where).stdout
        == "there is no table inet nftproxy, nothing to remove\n"
    )


def test_cleanup_does_not_pull_the_table_from_under_a_proxy(folder: Path, where: str) -> None:
    with Run(where, folder) as run:
        run.until_started()
        before = everything(where)
        done = nftproxy("cleanup", where=where)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(
            "error: another nftproxy already keeps this node's table\nhint: "
        )
        assert everything(where) == before


def test_a_chart_without_addresses_can_be_rendered(tmp_path: Path) -> None:
    chart = service("chart")
    both = service("both", ipFamilies=["IPv4", "IPv6"])
    for document in (chart, both):
        for name in ("clusterIP", "clusterIPs"):
            del document["spec"][name]
    write(
        tmp_path / "chart.yaml",
        chart,
        both,
        service("fixed", "10.96.0.1"),
        endpoints("10.244.1.2", of="chart"),
    )
    argv = ("render", "--manifests", tmp_path, *NODE)
    without = nftproxy(*argv)
    assert without.returncode == 0
    assert without.stderr.count("is left out: it has no spec.clusterIP") == 2
    rendered = nftproxy(*argv, "--assign-cluster-ips")
    assert rendered.returncode == 0
    assert "spec.clusterIP" not in rendered.stderr
    assert '10.96.0.3 . tcp . 80 comment "default/chart:http"' in rendered.stdout
    assert '10.96.0.2 . tcp . 80 comment "default/both:http"' in rendered.stdout
    assert "fd00:96::1 . tcp . 80" in rendered.stdout
    cidr = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "c"},
        "spec": {"cidrs": ["10.7.0.0/30"]},
    }
    write(tmp_path / "cidr.yaml", cidr)
    assert "10.7.0.2 . tcp . 80" in nftproxy(*argv, "--assign-cluster-ips").stdout
    write(tmp_path / "cidr.yaml", {**cidr, "spec": {"cidrs": ["10.7.0.0/31"]}})
    write(tmp_path / "more.yaml", {**chart, "metadata": {"name": "more"}})
    full = nftproxy(*argv, "--assign-cluster-ips")
    assert full.returncode == 2
    assert "10.7.0.0/31 has no address left for it" in full.stderr
