"""The process `kube-proxy`, from its command line to its end, with a mock API server."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab.lab import Lab
from nftproxy.lab.namespace import enter
from tests.support.fake_apiserver import JSON, PROTOBUF, Exchange
from tests.support.machine import KUBE_PROXY, QUIET, Machine, node, service, slice_of, started
from tests.support.mirror import kubeconfig
from tests.support.pki import server_tls
from tests.support.running import eventually
from tests.support.world import unique_name


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with started(tmp_path) as machine:
        yield machine


def web(machine: Machine) -> None:
    machine.api.put("services", service())
    machine.api.put("endpointslices", slice_of("web", "10.244.1.2"))


@pytest.mark.contract("8.1.1", "1.2.7", "10.3.2", "10.3.5")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_told_to_stop_and_leaves_the_rules(
    machine: Machine, number: signal.Signals
) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.api.put("services", service("more", "10.96.0.11"))
    machine.api.put("endpointslices", slice_of("more", "10.244.1.3"))
    eventually(lambda: machine.services() == {"10.96.0.10", "10.96.0.11"})
    before = machine.elements()
    assert machine.end(number) == 0
    assert machine.elements() == before


@pytest.mark.parametrize(
    ("connection", "accept"),
    [
        ({}, f"{PROTOBUF}, {JSON}"),
        ({"contentType": JSON}, JSON),
        ({"acceptContentTypes": JSON, "contentType": PROTOBUF}, JSON),
    ],
    ids=["default", "content_type", "accept_content_types"],
)
@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not_offered"])
def test_the_content_type_chooses_how_the_api_server_is_read(
    machine: Machine, connection: dict[str, str], accept: str, *, offered: bool
) -> None:
    machine.api.protobuf = offered
    web(machine)
    machine.start(clientConnection=connection)
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.api.put("services", service("more", "10.96.0.11"))
    machine.api.put("endpointslices", slice_of("more", "10.244.1.3"))
    eventually(lambda: machine.services() == {"10.96.0.10", "10.96.0.11"})
    assert {each.accept for each in machine.api.requests} == {accept}


@pytest.mark.contract("1.2.4", "1.2.5", "1.3.6")
def test_nothing_is_written_before_both_lists_are_there(machine: Machine) -> None:
    web(machine)
    held: list[Exchange] = []

    def hold(exchange: Exchange) -> None:
        held.append(exchange)
        exchange.hold()

    for kind in ("endpointslices", "servicecidrs"):
        machine.api.expect(kind, hold)
    machine.start()
    eventually(lambda: len(held) == 2 and bool(machine.api.asked("services", "watch")))
    eventually(machine.answers(10256, "/livez"))
    assert machine.elements() == {}
    next(exchange for exchange in held if exchange.request.resource == "endpointslices").cut()
    eventually(lambda: machine.services() == {"10.96.0.10"})


@pytest.mark.contract("1.4.2")
def test_a_change_of_the_pod_cidrs_ends_the_process(machine: Machine) -> None:
    machine.api.put("nodes", node(podCIDRs=["10.244.1.0/24"]))
    web(machine)
    machine.start(detectLocalMode="NodeCIDR")
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.api.put("nodes", node(podCIDRs=["10.244.1.0/24"], taints=[{"key": "anything"}]))
    machine.api.put("nodes", node(podCIDRs=["10.244.7.0/24"]))
    assert machine.code() == 1
    assert "error: the pod CIDRs of Node node1 have changed" in machine.said()
    assert machine.services() == {"10.96.0.10"}


@pytest.mark.contract("8.1.6")
def test_a_changed_configuration_ends_the_process(machine: Machine) -> None:
    machine.start()
    eventually(machine.answers(10256, "/livez"))
    machine.config.touch()
    machine.configure(masqueradeAll=False, oomScoreAdj=-5)
    assert machine.code() == 1
    assert f"{machine.config} has changed" in machine.said()


@pytest.mark.contract("8.1.6")
def test_the_swap_of_a_configmap_ends_the_process(machine: Machine, tmp_path: Path) -> None:
    machine.configure()
    content = machine.config.read_text()
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.conf").write_text(content + f"# {version}\n")
    machine.config.unlink()
    (tmp_path / "..data").symlink_to("one")
    machine.config.symlink_to("..data/config.conf")
    flags = [
        f"--config={machine.config}",
        "--hostname-override=node1",
        f"--master={machine.api.url}",
    ]
    with enter(machine.netns), machine.log.open("wb") as log:
        machine.process = subprocess.Popen([*KUBE_PROXY, *flags], stderr=log, stdout=log)
    eventually(machine.answers(10256, "/livez"))
    (tmp_path / "..data.new").symlink_to("two")
    (tmp_path / "..data.new").rename(tmp_path / "..data")
    assert machine.code() == 1
    assert "has changed" in machine.said()


@pytest.mark.contract("8.1.7")
def test_init_only_prepares_and_programs_nothing(machine: Machine) -> None:
    web(machine)
    timeout = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
    machine.start("--init-only", conntrack={**QUIET, "tcpCloseWaitTimeout": "17m0s"})
    assert machine.code() == 0
    assert machine.elements() == {}
    with enter(machine.netns):
        assert (
            subprocess.run(
                ["cat", f"/proc/sys/{timeout}"], check=True, capture_output=True
            ).stdout.strip()
            == b"1020"
        )


@pytest.mark.contract("6.1.5")
def test_a_sysctl_that_cannot_be_set_is_fatal(machine: Machine) -> None:
    with machine.log.open("wb") as log, enter(machine.netns):
        machine.configure(conntrack={**QUIET, "tcpCloseWaitTimeout": "18m0s"})
        flags = [
            f"--config={machine.config}",
            "--hostname-override=node1",
            f"--master={machine.api.url}",
        ]
        # A mount namespace in which /proc/sys is read-only, as in a container without privileges.
        script = 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"'
        machine.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", *KUBE_PROXY, *flags], stderr=log, stdout=log
        )
    assert machine.code() == 1
    assert "nf_conntrack_tcp_timeout_close_wait" in machine.said()
    assert "hint:" in machine.said()


@pytest.mark.contract("7.1.11", "10.1.1")
def test_a_port_that_is_taken(machine: Machine) -> None:
    with enter(machine.netns):
        taken = socket.create_server(("127.0.0.1", 10999))
    with taken:
        machine.start(healthzBindAddress="127.0.0.1:10999", bindAddressHardFail=True)
        assert machine.code() == 1
        assert "cannot listen on 127.0.0.1:10999" in machine.said()
        # The work begins at the same time, so it may have said that it starts.
        eventually(
            lambda: (
                "FailedToStartProxierHealthcheck"
                in {each["reason"] for each in machine.api.written}
            )
        )
        web(machine)
        machine.start(healthzBindAddress="127.0.0.1:10999")
        # Without hard fail it goes on without
        eventually(lambda: machine.services() == {"10.96.0.10"})


@pytest.mark.contract("10.1", "10.1.1")
def test_the_starting_event(machine: Machine) -> None:
    machine.start()
    eventually(lambda: bool(machine.api.written))
    written = machine.api.written[0]
    assert (written["reason"], written["type"], written["action"]) == (
        "Starting",
        "Normal",
        "StartKubeProxy",
    )
    assert written["regarding"]["kind"] == "Node"
    assert written["reportingController"] == "kube-proxy"


def test_an_annotation_with_an_unknown_value_is_an_event_and_a_log_line(machine: Machine) -> None:
    """Once, though both families read it; the Service works all the same."""
    marked = service()
    marked["metadata"]["annotations"] = {"nftproxy.io/affinity-scope": "Service"}
    marked["spec"]["sessionAffinity"] = "ClientIP"
    machine.api.put("services", marked)
    machine.api.put("endpointslices", slice_of("web", "10.244.1.2"))
    machine.start()
    note = (
        "annotation nftproxy.io/affinity-scope: 'Service' is not one of port, service; port applies"
    )

    def written() -> list[str]:
        found = [e for e in machine.api.written if e.get("reason") == "UnusableAnnotation"]
        assert all((e["regarding"]["name"], e["type"]) == ("web", "Warning") for e in found)
        return [each["note"] for each in found]

    eventually(lambda: written() == [note])
    assert machine.services() == {"10.96.0.10"}
    assert f"Service default/web IPv4: {note}" in machine.said()


@pytest.mark.contract("7.1.2", "7.1.4", "1.2.1")
def test_livez_answers_while_the_api_server_does_not(machine: Machine) -> None:
    machine.api.shut()
    machine.start()
    eventually(machine.answers(10256, "/livez"))
    assert machine.get(10256, "/healthz")[0] == 503, "no Node object seen yet: not eligible"
    assert machine.get(10249, "/healthz") == (200, machine.get(10249, "/healthz")[1], "ok")
    assert machine.get(10249, "/proxyMode")[2] == "nftables"
    with enter(machine.netns):
        machine.api.listen()
    eventually(machine.answers(10256, "/healthz"))


@pytest.mark.contract("2.8.1", "7.2.1", "7.2.3", "7.2.4", "7.2.5", "7.2.6", "3.5.1")
def test_health_check_node_port(machine: Machine) -> None:
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}
    machine.api.put("services", service(spec=local))
    machine.api.put("endpointslices", slice_of("web", "10.244.1.2", "10.244.1.3"))
    machine.start()

    def asked() -> tuple[int, dict[str, str], str]:
        return machine.get(32000, "/", "192.0.2.10")

    def answers(status: int) -> bool:
        with contextlib.suppress(OSError):
            return asked()[0] == status
        return False

    eventually(lambda: answers(200))
    _, headers, body = asked()
    assert headers["x-load-balancing-endpoint-weight"] == "2"
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    machine.api.put("endpointslices", slice_of("web"))
    eventually(lambda: answers(503))
    machine.api.delete("services", "web")

    def refused() -> bool:
        try:
            asked()
        except ConnectionResetError:  # connected to the server just before it went
            pass
        except ConnectionRefusedError:
            return True
        return False

    eventually(refused)


@pytest.mark.contract("7.3.1", "7.4.1", "7.4.4", "7.4.6", "7.4.17")
def test_metrics_of_a_running_process(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    eventually(
        lambda: (
            'sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1.0'
            in machine.get(10249, "/metrics")[2]
        )
    )
    text = machine.get(10249, "/metrics")[2]
    assert "kubeproxy_sync_proxy_rules_service_changes_total 2.0" in text, (
        "one Service, counted by both families"
    )
    assert "kubeproxy_sync_proxy_rules_endpoint_changes_total 1.0" in text
    assert 'rest_client_requests_total{code="200"' in text
    assert 'nftproxy_map_elements{map="services4"} 1.0' in text
    for stage in ("compile", "read_back", "difference", "kernel"):
        assert (
            f'nftproxy_sync_stage_duration_seconds_count{{ip_family="IPv4",stage="{stage}"}}'
            in text
        )
    assert 'nftproxy_elements_written_total{ip_family="IPv4"}' in text
    configuration = json.loads(machine.get(10249, "/configz")[2])["kubeproxy.config.k8s.io"]
    assert configuration["mode"] == "nftables"
    assert configuration["nodePortAddresses"] == ["primary"]
    assert f"master={machine.api.url}" in machine.get(10249, "/flagz")[2]


@pytest.mark.contract("5.12.1", "5.12.2", "9.8")
def test_what_another_mode_left_goes_when_the_table_is_there(machine: Machine) -> None:
    with enter(machine.netns):
        for command in (
            "add table ip kube-proxy; add chain ip kube-proxy x",
            (
                "add table inet firewall; add chain inet firewall f { type filter hook forward "
                "priority 0; policy drop; }"
            ),
        ):
            subprocess.run(["nft", command], check=True)
        subprocess.run(["iptables-nft", "-N", "KUBE-FIREWALL"], check=True)
        subprocess.run(["iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES"], check=True)
    web(machine)
    machine.start()

    def tables() -> str:
        with enter(machine.netns):
            return subprocess.run(
                ["nft", "list", "chains"], check=True, capture_output=True, text=True
            ).stdout

    eventually(lambda: "ip kube-proxy" not in tables() and "KUBE-SERVICES" not in tables())
    assert machine.services() == {"10.96.0.10"}
    assert "KUBE-FIREWALL" in tables()
    eventually(lambda: "firewall" in machine.said() and "drops" in machine.said())


@pytest.mark.contract("5.12.4")
def test_cleanup_needs_no_api_server(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.end()
    machine.api.shut()
    with enter(machine.netns):
        subprocess.run(["nft", "add table ip6 kube-proxy"], check=True)
        for _ in range(2):  # a missing table is no error
            assert (
                subprocess.run(
                    [*KUBE_PROXY, "--cleanup"], check=False, capture_output=True
                ).returncode
                == 0
            )
        assert (
            subprocess.run(["nft", "list", "tables"], check=True, capture_output=True).stdout == b""
        )
        machine.api.listen()


@pytest.mark.contract("8.1.2", "8.3.4", "8.1.3")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mode": "iptables"},
            (
                "mode: iptables is not available, nftproxy has the nftables mode only; set it to "
                "nftables"
            ),
        ),
        (
            {"mode": "ipvs"},
            "mode: ipvs is not available, nftproxy has the nftables mode only; set it to nftables",
        ),
        ({"nftables": {"masqueradeBit": 40}, "oomScoreAdj": 2000}, "nftables.masqueradeBit: "),
        ({"kind": "Something"}, "kind: is 'Something', not 'KubeProxyConfiguration'"),
    ],
    ids=["iptables", "ipvs", "values", "kind"],
)
def test_a_configuration_that_cannot_be_used(
    machine: Machine, fields: dict[str, Any], message: str
) -> None:
    machine.start(**fields)
    assert machine.code() == 1
    assert message in machine.said()
    assert "Traceback" not in machine.said()


def test_a_second_instance_ends_with_one_clear_line(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    flags = [
        "--hostname-override=node1",
        f"--master={machine.api.url}",
        "--healthz-port=10300",
        "--healthz-bind-address=127.0.0.1:10300",
    ]
    quiet = [
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]
    with enter(machine.netns):
        second = subprocess.run(
            [*KUBE_PROXY, *flags, *quiet, "--metrics-bind-address=127.0.0.1:10301"],
            check=False,
            capture_output=True,
        )
    assert second.returncode == 1
    assert second.stderr.count(b"error:") == 1
    assert b"another nftproxy already keeps this node's table" in second.stderr
    assert machine.services() == {"10.96.0.10"}


def with_addresses(*addresses: str, kind: str = "InternalIP") -> dict[str, Any]:
    """The Node with these addresses."""
    return node() | {"status": {"addresses": [{"type": kind, "address": a} for a in addresses]}}


@pytest.mark.contract("1.4.3", "1.2.7")
def test_a_changed_address_of_the_node_ends_the_process_and_the_next_one_uses_it(
    machine: Machine,
) -> None:
    web(machine)
    machine.start(nodePortAddresses=["primary"])
    eventually(lambda: set(machine.elements().get("nodeport_ips4", {})) == {("192.0.2.10",)})
    subprocess.run(
        ["ip", "-n", machine.netns, "addr", "add", "192.0.2.20/32", "dev", "lo"], check=True
    )
    machine.api.put("nodes", with_addresses("192.0.2.20"))
    assert machine.code() == 1
    assert (
        "error: the addresses of Node node1 have changed from 192.0.2.10 to 192.0.2.20"
        in machine.said()
    )
    assert "this process ends, to be started again with the new ones" in machine.said()
    assert machine.services() == {"10.96.0.10"}, "the table stays"
    machine.start(nodePortAddresses=["primary"])
    eventually(lambda: set(machine.elements()["nodeport_ips4"]) == {("192.0.2.20",)})


@pytest.mark.contract("1.4.3")
@pytest.mark.parametrize(
    "addresses",
    [("192.0.2.10", "fd00::10"), ("fd00::10", "192.0.2.10")],
    ids=["another family", "another primary family"],
)
def test_these_are_changed_addresses(machine: Machine, addresses: tuple[str, ...]) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.api.put("nodes", with_addresses(*addresses))
    assert machine.code() == 1
    assert "the addresses of Node node1 have changed" in machine.said()


@pytest.mark.contract("1.4.3")
def test_these_are_no_changed_addresses(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    same = with_addresses("192.0.2.10")
    for changed in (
        with_addresses("192.0.2.10", "192.0.2.20"),
        same | {"metadata": {"name": "node1", "labels": {"color": "blue"}}},
        with_addresses(),
        with_addresses("node1.example", kind="Hostname"),
        same,
    ):
        machine.api.put("nodes", changed)
    machine.api.put("services", service("more", "10.96.0.11"))
    machine.api.put("endpointslices", slice_of("more", "10.244.1.3"))
    eventually(lambda: machine.services() == {"10.96.0.10", "10.96.0.11"})
    assert machine.process
    assert machine.process.poll() is None
    assert machine.end() == 0


@pytest.mark.contract("1.4.4")
def test_a_deleted_node_ends_the_process(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    machine.api.delete("nodes", "node1")
    assert machine.code() == 1
    assert "error: Node node1 was deleted" in machine.said()
    assert machine.services() == {"10.96.0.10"}, "the table stays"


@pytest.mark.contract("8.3.1")
@pytest.mark.parametrize("where", ["file", "flag"])
def test_gates_of_other_components_are_warned_of(machine: Machine, where: str) -> None:
    web(machine)
    if where == "file":
        machine.start(featureGates={"JobManagedBy": True})
    else:
        flags = [
            f"--master={machine.api.url}",
            "--hostname-override=node1",
            "--feature-gates=JobManagedBy=true",
        ]
        quiet = [
            f"--conntrack-{name}=0"
            for name in ("max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait")
        ]
        with enter(machine.netns), machine.log.open("wb") as log:
            machine.process = subprocess.Popen(
                [*KUBE_PROXY, *flags, *quiet], stderr=log, stdout=log
            )
    eventually(lambda: machine.services() == {"10.96.0.10"})
    assert (
        machine.said().count(
            "featureGates: JobManagedBy: for other components; without effect here"
        )
        == 1
    )


@pytest.mark.contract("8.3.1")
@pytest.mark.parametrize("where", ["file", "flag"])
def test_a_gate_that_nobody_knows_ends_the_process(machine: Machine, where: str) -> None:
    if where == "file":
        machine.start(featureGates={"Bogus": True})
    else:
        with enter(machine.netns), machine.log.open("wb") as log:
            machine.process = subprocess.Popen(
                [*KUBE_PROXY, "--feature-gates=Bogus=true"], stderr=log, stdout=log
            )
    assert machine.code() == 1
    assert "featureGates.Bogus: unknown feature gate" in machine.said()


def test_an_outage_changes_nothing(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})
    eventually(lambda: set(machine.elements()["nodeport_ips4"]) == {("192.0.2.10",)})
    before = machine.elements()
    machine.api.shut()
    eventually(lambda: "Connection refused" in machine.said())
    assert machine.elements() == before
    assert machine.get(10256, "/healthz")[0] == 200
    with enter(machine.netns):
        machine.api.listen()
    machine.api.put("services", service("more", "10.96.0.11"))
    machine.api.put("endpointslices", slice_of("more", "10.244.1.3"))
    eventually(lambda: machine.services() == {"10.96.0.10", "10.96.0.11"})


def test_killed_and_started_again_writes_nothing(machine: Machine) -> None:
    web(machine)
    machine.start()
    eventually(lambda: "IPv4: in step" in machine.said() and "IPv6: in step" in machine.said())
    before = machine.elements()
    assert machine.process
    os.kill(machine.process.pid, signal.SIGKILL)
    machine.code()
    machine.start()
    eventually(lambda: "IPv6: in step" in machine.said())
    assert (
        "IPv4: in step: 1 services looked at, 0 elements written in 0 transactions"
        in machine.said()
    )
    assert machine.elements() == before


def test_the_log_names_no_secret(machine: Machine, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("very-secret-token")
    machine.secure(server_tls(tmp_path))
    file = kubeconfig(tmp_path, machine.api.url, tokenFile=str(token))
    machine.api.token = token.read_text()
    machine.start("-v=9", clientConnection={"kubeconfig": file})
    eventually(lambda: bool(machine.api.asked("services", "watch")))
    machine.api.token = "another"  # noqa: S105
    machine.api.end_watches("services")
    eventually(lambda: "401" in machine.said() or "Unauthorized" in machine.said())
    assert "very-secret-token" not in machine.said()


@pytest.mark.contract("2.6.5")
def test_an_address_that_is_added_later_accepts_nodeports(machine: Machine) -> None:
    web(machine)
    machine.start(nodePortAddresses=["192.0.2.0/24"])
    eventually(lambda: set(machine.elements().get("nodeport_ips4", {})) == {("192.0.2.10",)})
    subprocess.run(
        ["ip", "-n", machine.netns, "addr", "add", "192.0.2.77/32", "dev", "lo"], check=True
    )
    eventually(
        lambda: set(machine.elements()["nodeport_ips4"]) == {("192.0.2.10",), ("192.0.2.77",)}
    )
    subprocess.run(
        ["ip", "-n", machine.netns, "addr", "del", "192.0.2.10/32", "dev", "lo"], check=True
    )
    eventually(lambda: set(machine.elements()["nodeport_ips4"]) == {("192.0.2.77",)})


@pytest.mark.timeout(180)  # 13 000 chains take ten seconds on a machine with nothing else to do
def test_a_service_with_very_many_chains_holds_up_nobody(machine: Machine) -> None:
    """A thousand UDP ports with affinity.

    Meanwhile other Services change, the table is repaired, and health is answered. That these come
    first is for tests/kernel/test_syncer.py to say: here all is done within a second.
    """
    web(machine)
    machine.start()
    eventually(lambda: machine.services() == {"10.96.0.10"})

    def served(reader: Reader) -> set[str]:
        return {str(key[0]) for key in reader.elements("services4")}

    ports = [
        {"name": f"p{n}", "port": 1000 + n, "protocol": "UDP", "nodePort": 30000 + n}
        for n in range(1000)
    ]
    large = service(
        "large", "10.96.9.9", {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": ports}
    )
    piece = slice_of("large", "10.244.9.2", "10.244.9.3")
    piece["ports"] = [{"name": port["name"], "port": 8053, "protocol": "UDP"} for port in ports]
    with enter(machine.netns), contextlib.closing(Reader()) as reader:
        machine.api.put("services", large)
        machine.api.put("endpointslices", piece)
        eventually(lambda: any("default/large" in name for name in reader.chains()))
        for number in range(3):
            address = f"10.96.1.{number}"
            machine.api.put("services", service(f"s{number}", address))
            machine.api.put("endpointslices", slice_of(f"s{number}", "10.244.1.3"))
            eventually(lambda: address in served(reader))  # noqa: B023
            assert machine.get(10256, "/healthz")[0] == 200
        machine.api.delete("services", "s0", namespace="default")
        eventually(lambda: "10.96.1.0" not in served(reader))
        subprocess.run(
            ["nft", "delete element inet nftproxy services4 { 10.96.0.10 . tcp . 80 }"], check=True
        )
        eventually(lambda: "10.96.0.10" in served(reader))
        eventually(lambda: "10.96.9.9" in served(reader), 120)
        assert len(reader.elements("services4")) == 1003


def test_a_kernel_without_conntrack_files_is_warned_of(machine: Machine) -> None:
    """A mount namespace hides them, so that loading the module, which is there, cannot help."""
    web(machine)
    machine.configure(conntrack={})
    hide = 'mount -t tmpfs none /proc/sys/net/netfilter && exec "$0" "$@"'
    flags = [
        f"--config={machine.config}",
        "--hostname-override=node1",
        f"--master={machine.api.url}",
    ]
    with enter(machine.netns), machine.log.open("wb") as log:
        argv = ["unshare", "--mount", "sh", "-c", hide, *KUBE_PROXY, *flags]
        machine.process = subprocess.Popen(argv, stderr=log, stdout=log)
    eventually(lambda: machine.services() == {"10.96.0.10"})
    assert machine.said().count("nf_conntrack_max does not exist") == 1
    assert "modprobe nf_conntrack" in machine.said()


@pytest.mark.contract("9.8")
def test_another_table_that_drops_is_warned_of(machine: Machine) -> None:
    web(machine)
    with enter(machine.netns), Kernel() as kernel:
        kernel._run(
            "table inet firewall { chain late { type filter hook postrouting priority 0; policy "
            "drop; accept; }\n}\n"
        )
    machine.start()
    eventually(lambda: "drops by default" in machine.said())
    assert (
        "table inet firewall, chain late, hook postrouting drops by default: Services fail "
        "unless it accepts" in machine.said()
    )


@pytest.mark.contract("2.6.5", "6.2.7")
@pytest.mark.parametrize("accepted", ["192.168.50.0/24", "0.0.0.0/0"])
def test_a_udp_client_that_was_sending_reaches_an_address_that_comes_later(
    tmp_path: Path, accepted: str
) -> None:
    """One socket sends all the time to a NodePort at an address that node1 gets, loses and gets
    again.
    """
    floating = "192.168.50.77"
    with Lab(unique_name(), nodes=1, pods=1) as lab:
        lab.route("client", f"{floating}/32", "node1")
        machine = Machine(lab.place("node1").namespace, tmp_path)
        port = {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}
        machine.api.put("services", service(spec={"type": "NodePort", "ports": [port]}))
        piece = slice_of("web", lab.place("pod1-1").addresses[Family.IPv4])
        machine.api.put(
            "endpointslices", {**piece, "ports": [{"name": "dns", "port": 8080, "protocol": "UDP"}]}
        )
        try:
            machine.start(nodePortAddresses=[accepted])
            eventually(lambda: "IPv4: in step" in machine.said())
            with enter(lab.place("client").namespace):
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with client:
                client.connect((floating, 30053))

                def answered() -> bool:
                    """Send a datagram, and forget the answers to earlier ones before."""
                    client.settimeout(0)
                    with contextlib.suppress(OSError):
                        while client.recv(4096):
                            pass
                    client.settimeout(0.1)
                    with contextlib.suppress(OSError):
                        client.send(b"hello")
                        return bool(client.recv(4096))
                    return False

                assert not answered()
                for command, answers in (("add", True), ("del", False), ("add", True)):
                    lab.run("node1", ["ip", "addr", command, f"{floating}/32", "dev", "lo"])
                    eventually(lambda: answered() is answers)  # noqa: B023
        finally:
            if machine.process:
                machine.end()
            machine.api.shut()


@pytest.mark.contract("7.2.8")
def test_health_check_ports_without_a_health_server(machine: Machine) -> None:
    machine.api.put(
        "services",
        service(
            spec={
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32000,
            }
        ),
    )
    machine.api.put("endpointslices", slice_of("web", "10.244.1.2"))
    flags = [
        "--hostname-override=node1",
        f"--master={machine.api.url}",
        "--healthz-port=0",
        "--conntrack-max-per-core=0",
    ]
    quiet = [
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--connection-metrics=off",
    ]
    with enter(machine.netns), machine.log.open("wb") as log:
        machine.process = subprocess.Popen([*KUBE_PROXY, *flags, *quiet], stderr=log, stdout=log)

    def answered() -> bool:
        with contextlib.suppress(OSError):
            return machine.get(32000, "/", "192.0.2.10")[0] == 200
        return False

    eventually(answered)
    with pytest.raises(ConnectionRefusedError):
        machine.get(10256, "/livez")
    assert "nftproxy_map_elements" not in machine.get(10249, "/metrics")[2]


GATE = {"KubeProxyNFTablesLocalhostNodePorts": True}


@contextlib.contextmanager
def endpoint(machine: Machine, address: str, port: int, answer: bytes) -> Iterator[None]:
    """A process that listens in the machine and answers each connection."""
    with enter(machine.netns):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.create_server((address, port), family=family, backlog=64)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listening.accept()[0] as connection:
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


def heard(machine: Machine, port: int, host: str = "127.0.0.1") -> bytes | None:
    """What somebody answers there, nothing if it is reset; None if it is refused."""
    with enter(machine.netns):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family)
    with client:
        client.settimeout(10)
        try:
            client.connect((host, port))
            return client.recv(100)
        except ConnectionRefusedError:
            return None
        except ConnectionResetError:  # of a forwarder that just ends
            return b""


def node_port_service(**spec: Any) -> dict[str, Any]:
    ports = [
        {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080},
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
    ]
    return service(spec={"type": "NodePort", "ports": ports, **spec})


def metric(machine: Machine, name: str, **labels: str) -> float | None:
    """A metric of NodePorts on localhost; None if it, or anybody who shows it, is not there."""
    shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
    text = ""
    with contextlib.suppress(OSError):
        text = machine.get(10249, "/metrics")[2]
    for line in text.splitlines():
        if line.startswith(f"kubeproxy_nftables_localhost_nodeport_{name}{{{shown}}} "):
            return float(line.split()[-1])
    return None


@pytest.mark.contract("2.10.1", "2.10.2", "2.10.3", "7.4.19", "7.4.20")
def test_nodeports_on_localhost(machine: Machine) -> None:
    """From the configuration to the end: forwarded, refused again with the Service, and closed."""
    machine.api.put("services", node_port_service())
    machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))
    with endpoint(machine, "192.0.2.10", 8080, b"pod"):
        machine.start(featureGates=GATE, nodePortAddresses=["primary", "localhost"])
        eventually(lambda: heard(machine, 30080) == b"pod")
        assert heard(machine, 30080, "192.0.2.10") == b"pod", "by the rules"
        assert heard(machine, 30080, "::1") is None, "no endpoint of this family"
        assert metric(machine, "listeners", ip_family="IPv4") == 1
        assert metric(machine, "listeners", ip_family="IPv6") == 0
        assert metric(machine, "listener_creation_failures_total", ip_family="IPv4") == 0
        machine.api.put("endpointslices", slice_of("web"))
        eventually(lambda: heard(machine, 30080) is None)
        machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))
        eventually(lambda: heard(machine, 30080) == b"pod")
        machine.api.delete("services", "web", "default")
        eventually(lambda: heard(machine, 30080) is None)
        machine.api.put("services", node_port_service())
        eventually(lambda: heard(machine, 30080) == b"pod")
        assert machine.end() == 0
        assert heard(machine, 30080) is None, "closed at the end"
    assert "ERROR" not in machine.said()


@pytest.mark.contract("2.10.4")
def test_policy_local_on_localhost_means_endpoints_of_this_node(machine: Machine) -> None:
    machine.api.put("services", node_port_service(externalTrafficPolicy="Local"))
    both = slice_of("web", "192.0.2.10", "192.0.2.11")
    both["endpoints"][1]["nodeName"] = "node2"
    subprocess.run(
        ["ip", "-n", machine.netns, "addr", "add", "192.0.2.11/32", "dev", "lo"], check=True
    )
    machine.api.put("endpointslices", both)
    with (
        endpoint(machine, "192.0.2.10", 8080, b"here"),
        endpoint(machine, "192.0.2.11", 8080, b"elsewhere"),
    ):
        machine.start(featureGates=GATE, nodePortAddresses=["localhost"])
        eventually(lambda: heard(machine, 30080) == b"here")
        assert {heard(machine, 30080) for _ in range(20)} == {b"here"}
        both["endpoints"] = both["endpoints"][1:]
        machine.api.put("endpointslices", both)
        eventually(lambda: heard(machine, 30080) is None)


@pytest.mark.contract("2.10.9", "7.4.21")
def test_what_is_not_forwarded_is_refused_on_localhost_and_counted(machine: Machine) -> None:
    machine.api.put("services", node_port_service())
    machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))
    machine.start(featureGates=GATE, nodePortAddresses=["primary", "localhost"])
    eventually(lambda: metric(machine, "listeners", ip_family="IPv4") == 1)
    refused = {"ip_family": "IPv4", "protocol": "UDP"}
    with enter(machine.netns):
        hidden = socket.socket(type=socket.SOCK_DGRAM)
        client = socket.socket(type=socket.SOCK_DGRAM)
    with hidden, client:
        hidden.bind(("127.0.0.1", 30053))
        client.settimeout(10)
        client.connect(("127.0.0.1", 30053))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        hidden.settimeout(0)
        with pytest.raises(BlockingIOError):
            hidden.recv(1)
    assert metric(machine, "rejected_packets_total", **refused) == 1
    for proto in ("TCP", "SCTP"):
        assert metric(machine, "rejected_packets_total", ip_family="IPv4", protocol=proto) == 0


@pytest.mark.contract("2.10.1", "2.10.9", "2.10.10")
def test_a_restart_decides_alone_what_localhost_does(machine: Machine) -> None:
    """Refused, forwarded, refused, untouched: nothing is left of the process before."""
    machine.api.put("services", node_port_service())
    machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))

    rejected = {"ip_family": "IPv4", "protocol": "TCP"}

    def started(*addresses: str, gate: bool = True) -> None:
        machine.start(featureGates=GATE if gate else {}, nodePortAddresses=list(addresses))
        synced = 'sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1.0'
        eventually(machine.answers(10249, "/metrics"))
        eventually(lambda: synced in machine.get(10249, "/metrics")[2])

    with endpoint(machine, "192.0.2.10", 8080, b"pod"):
        for _ in range(2):
            started("primary")
            assert "nodePortAddresses names no loopback address" in machine.said()
            assert heard(machine, 30080) is None
            assert metric(machine, "rejected_packets_total", **rejected) == 1
            machine.end()
            started("primary", "localhost")
            eventually(lambda: heard(machine, 30080) == b"pod")
            machine.end()
    started("primary", "localhost", gate=False)
    assert "need the feature gate KubeProxyNFTablesLocalhostNodePorts" in machine.said()
    assert metric(machine, "listeners", ip_family="IPv4") is None
    with endpoint(machine, "127.0.0.1", 30080, b"a process of this machine"):
        assert heard(machine, 30080) == b"a process of this machine"


@pytest.mark.contract("2.10.8", "7.4.20")
def test_a_nodeport_on_localhost_that_is_taken(machine: Machine) -> None:
    machine.api.put("services", node_port_service())
    machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))
    with endpoint(machine, "127.0.0.1", 30080, b"somebody else"):
        machine.start(featureGates=GATE, nodePortAddresses=["localhost"])
        eventually(lambda: "30080 of default/web:http cannot be listened on" in machine.said())
        assert metric(machine, "listener_creation_failures_total", ip_family="IPv4") == 1
        assert metric(machine, "listeners", ip_family="IPv4") == 0
        assert heard(machine, 30080) == b"somebody else"


def test_a_forwarder_that_dies_is_started_again(machine: Machine) -> None:
    machine.api.put("services", node_port_service())
    machine.api.put("endpointslices", slice_of("web", "192.0.2.10"))
    with endpoint(machine, "192.0.2.10", 8080, b"pod"):
        machine.start(featureGates=GATE, nodePortAddresses=["localhost"])
        eventually(lambda: heard(machine, 30080) == b"pod")
        assert machine.process
        children = Path(f"/proc/{machine.process.pid}/task/{machine.process.pid}/children")
        (child,) = [
            int(pid)
            for pid in children.read_text().split()
            if b"nftproxy.forwarder" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(child, signal.SIGKILL)
        eventually(lambda: "the forwarder of NodePorts on localhost ended" in machine.said())
        eventually(lambda: heard(machine, 30080) == b"pod")
        machine.process.kill()
        machine.code()
        eventually(lambda: heard(machine, 30080) is None)  # it never outlives its proxy
