"""`doctor`: each check broken once for real, found, and cured by the command that it proposes."""

import contextlib
import json
import os
import platform
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftproxy.doctor import machine, rules
from nftproxy.doctor.checks import CHECKS
from nftproxy.doctor.model import CheckState, Result
from nftproxy.lab import namespace
from nftproxy.table.program import Program
from tests.support.patient import NODE, SERVICE_CIDR, Patient, node, patient
from tests.support.process import NFTPROXY, Run, nftproxy, write

BAD, WARNING, OK, UNCHECKED = (
    CheckState.BAD,
    CheckState.WARNING,
    CheckState.OK,
    CheckState.UNCHECKED,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Patient, Run]]:
    with patient(tmp_path_factory.mktemp("node")) as one, one.run() as run:
        run.until_started()
        yield one, run


@pytest.fixture
def here(running: tuple[Patient, Run], monkeypatch: pytest.MonkeyPatch) -> Patient:
    """The node in good order; each test leaves it so."""
    monkeypatch.setattr(machine, "_BETWEEN_LOOKS", 0.1)
    return running[0]


def test_a_node_in_good_order_has_nothing_to_cure(here: Patient) -> None:
    found = here.look()
    assert [check.name for check in CHECKS] == list(found)
    assert {name: one for name, one in found.items() if one.state in {BAD, WARNING}} == {}
    assert {name for name, one in found.items() if one.state is UNCHECKED} == {
        "API server",
        "Services",
    }


def test_what_people_read(here: Patient) -> None:
    done = nftproxy("doctor", "--host-root", str(here.root), where=here.where)
    assert done.returncode == 0, done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0] == "kernel"
    assert " ok, " in done.stdout.splitlines()[-1]
    here.shell("sysctl -w net.ipv4.ip_forward=0")
    done = nftproxy("doctor", "--host-root", str(here.root), where=here.where)
    here.shell("sysctl -w net.ipv4.ip_forward=1")
    assert done.returncode == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    at = lines.index("bad IPv4 forwarding net.ipv4.ip_forward is 0")
    assert lines[at + 1].startswith("means this node drops")
    assert lines[at + 2] == "try sysctl -w net.ipv4.ip_forward=1"
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_colours_on_a_terminal_alone(here: Patient) -> None:
    screen, end = pty.openpty()
    with namespace.enter(here.where):
        process = subprocess.Popen(
            [*NFTPROXY, "doctor"], stdout=end, env={**os.environ, "TERM": "xterm"}
        )
    os.close(end)
    text = b""
    with contextlib.suppress(OSError):  # the other end is closed: that is how a terminal says so
        while data := os.read(screen, 4096):
            text += data
    os.close(screen)
    assert process.wait() == 0
    assert b"\x1b[32mok" in text


def test_what_programs_read(here: Patient) -> None:
    done = nftproxy("doctor", "--host-root", str(here.root), "--output", "json", where=here.where)
    found = json.loads(done.stdout)
    assert found["version"] == 1
    assert sum(found["counts"].values()) == len(found["checks"]) == len(CHECKS)
    assert found["counts"]["bad"] == 0
    assert set(found["checks"][0]) == {"group", "check", "state", "found", "means", "cures"}


def test_the_configuration_is_that_of_the_running_process(here: Patient) -> None:
    """Without a flag: what /configz says."""
    found, code = here.say()
    assert found["program"]["state"] == OK, found["program"]
    assert code == 0
    found, code = here.say("--node-name", "node1", "--manifests", str(here.manifests))
    assert found["program"]["state"] == OK, found["program"]
    assert found["node address"]["state"] == OK
    assert code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "/does/not/exist"],
        ["--manifests", "/does/not/exist"],
        ["--host-root", "/does/not/exist"],
        ["--node-name", " "],
        ["--output", "xml"],
    ],
)
def test_bad_input_is_an_error_of_one_line(arguments: list[str]) -> None:
    done = nftproxy("doctor", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr
    assert done.stdout == ""


def test_without_the_capability_it_checks_what_it_can(here: Patient) -> None:
    found, _ = here.say(before=("setpriv", "--bounding-set=-net_admin"))
    assert found["nf_tables"]["state"] == UNCHECKED
    assert "NET_ADMIN" in found["nf_tables"]["found"]
    assert "NET_ADMIN" in found["other tables"]["found"]
    assert found["IPv4 forwarding"]["state"] == OK
    assert found["health"]["state"] == OK


def test_the_capabilities_of_the_daemonset_are_enough(here: Patient) -> None:
    """Our manifest gives the container these two, and nothing else."""
    bounding = "--bounding-set=-all,+net_admin,+net_raw"
    found, code = here.say("--node-name", "node1", "--manifests", str(here.manifests),
                           before=("setpriv", bounding))  # fmt: skip
    assert code == 0
    unchecked = {name for name, one in found.items() if one["state"] == UNCHECKED}
    assert unchecked == {"API server", "Services"}


# ---- kernel ----


def test_an_old_kernel(here: Patient) -> None:
    """The kernel itself can be made to call itself 2.6."""
    found, code = here.say(before=("setarch", platform.machine(), "--uname-2.6"))
    assert found["version"]["state"] == BAD
    assert found["version"]["found"].startswith("2.6.")
    assert code == 1


def test_no_conntrack(here: Patient) -> None:
    """A mount hides what the module brings; the cure, modprobe, cannot help against that."""
    hide = 'mount -t tmpfs none /proc/sys/net/netfilter && exec "$@"'
    found, _ = here.say(before=("unshare", "--mount", "sh", "-c", hide, "sh"))
    assert found["nf_conntrack"]["state"] == BAD
    assert found["nf_conntrack"]["cures"] == ["modprobe nf_conntrack"]
    assert found["conntrack"]["state"] == UNCHECKED


def test_no_libnftables(here: Patient, tmp_path: Path) -> None:
    (tmp_path / "libnftables.so.1").write_text("no library\n")
    before = ("env", f"LD_LIBRARY_PATH={tmp_path}")
    found, _ = here.say(before=before)
    assert found["libnftables"]["state"] == BAD
    assert found["libnftables"]["cures"] == ["apt-get install libnftables1"]
    assert found["expressions"]["state"] == UNCHECKED


def test_an_expression_that_nobody_knows(here: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """libnftables at hand refuses it, as an old one refuses ours."""
    broken = "chain c {\n  meta frobnicate 1 accept\n}\n"
    monkeypatch.setattr(Program, "text", lambda *_, **__: broken)
    found = here.look()["expressions"]
    assert found.state is BAD
    assert "syntax error" in found.found


def test_the_rehearsal_changes_nothing(here: Patient) -> None:
    with namespace.enter(here.where):
        before = rules.netfilter()
    here.look()
    with namespace.enter(here.where):
        assert rules.netfilter() == before


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net.ipv4.conf.cni0.forwarding"])
def test_forwarding_is_off(here: Patient, name: str) -> None:
    here.shell(f"sysctl -w {name}=0")
    found = here.look()["IPv4 forwarding"]
    assert found.state is BAD
    here.cure(found)
    assert here.look()["IPv4 forwarding"].state is OK


def test_ipv6_forwarding_is_off(here: Patient) -> None:
    assert here.look()["IPv6 forwarding"].found == "no Service here has an IPv6 address"
    before = here.config.read_text()
    here.write_config(clusterCIDR="10.244.0.0/16,fd00:244::/32")
    here.shell("sysctl -w net.ipv6.conf.all.forwarding=0")
    found = here.look()["IPv6 forwarding"]
    assert found.state is BAD
    here.cure(found)
    assert here.look()["IPv6 forwarding"].state is OK
    here.config.write_text(before)


def test_rp_filter_drops(here: Patient) -> None:
    here.shell("sysctl -w net.ipv4.conf.eth0.rp_filter=1")
    assert here.look()["rp_filter"].state is OK  # nothing lost yet
    spoof = f"ip addr add 10.244.1.77/32 dev lo && ip route replace {NODE} dev eth0 src 10.244.1.77"
    with namespace.enter(here.beyond):
        # First with its own address: ARP from the other one gets no answer.
        subprocess.run(["ping", "-c", "1", "-W", "5", NODE], check=True, capture_output=True)
        subprocess.run(["sh", "-c", spoof], check=True)
        subprocess.run(
            ["ping", "-c", "2", "-W", "0.2", "-i", "0.2", NODE], check=False, capture_output=True
        )
        subprocess.run(["ip", "route", "del", NODE], check=True)
    found = here.look()["rp_filter"]
    assert found.state is WARNING
    assert "strict on eth0" in found.found
    here.cure(found)
    assert here.look()["rp_filter"].state is OK
    here.shell("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")


@pytest.mark.skipif(
    not Path("/proc/sys/net/bridge").exists(), reason="this kernel has no br_netfilter"
)
def test_bridged_packets_bypass_the_rules(here: Patient) -> None:
    here.shell("sysctl -w net.bridge.bridge-nf-call-iptables=0")
    found = here.look()["bridges"]
    assert found.state is BAD
    assert "cni0" in found.found
    here.cure(found)
    assert here.look()["bridges"].state is OK


# ---- neighbours ----


def test_kube_proxys_table(here: Patient) -> None:
    here.shell("nft add table ip kube-proxy")
    found = here.look()["other proxies"]
    assert found.state is BAD
    assert "ip kube-proxy" in found.found
    here.cure(found)
    assert here.look()["other proxies"].state is OK


def test_kube_proxys_rules_in_iptables(running: tuple[Patient, Run], here: Patient) -> None:
    """The cure is a start of nftproxy, which removes them."""

    def found_of_a_new_chain() -> Result:
        here.shell("iptables-legacy -t nat -N KUBE-SVC-ABCDEFGHIJKLMNOP || true")
        return here.look()["other proxies"]

    running[1].until(  # the start before this test may still be removing such chains
        lambda: found_of_a_new_chain().state is BAD
    )
    found = here.look()["other proxies"]
    assert "KUBE-SVC-ABCDEFGHIJKLMNOP" in found.found
    assert found.cures == ("nftproxy run --manifests FOLDER",)
    restart(running[1])
    assert here.look()["other proxies"].state is OK


def restart(run: Run) -> None:
    run.end(15)
    run.start()
    run.until_started()
    run.until(lambda: run.logged("left by another mode") or run.process.poll() is None)


FOREIGN = """\
table inet fence {
  chain forward { type filter hook forward priority 10; policy drop; ct state established accept; }
}
"""


def test_another_table_drops(here: Patient) -> None:
    here.shell(f"nft -f - <<'END'\n{FOREIGN}END")
    found = here.look()["other tables"]
    assert found.state is BAD
    assert "inet fence forward (forward) stops" in found.found
    assert "policy drop" in found.found
    here.cure(found)
    assert here.look()["other tables"].state is OK
    here.shell("nft delete table inet fence")


def test_a_rule_of_another_table_rejects(here: Patient) -> None:
    """Its policy accepts: the rule alone says no, and is named by its handle."""
    here.shell(f"nft -f - <<'END'\n{FOREIGN.replace('policy drop; ct', 'ct')}END")
    assert here.look()["other tables"].state is OK
    here.shell("nft add rule inet fence forward oifname cni0 reject")
    found = here.look()["other tables"]
    assert found.state is BAD
    assert "rule with handle" in found.found
    here.cure(found)
    assert here.look()["other tables"].state is OK
    here.shell("nft delete table inet fence")


def test_a_table_that_may_drop(here: Patient) -> None:
    text = FOREIGN.replace("ct state", "limit rate 1/second accept; ct state")
    here.shell(f"nft -f - <<'END'\n{text}END")
    found = here.look()["other tables"]
    assert found.state is WARNING
    assert "may stop" in found.found
    here.shell("nft delete table inet fence")


def test_iptables_legacy_drops(here: Patient) -> None:
    here.shell("iptables-legacy -P FORWARD DROP")
    found = here.look()["other tables"]
    assert found.state is BAD
    assert "iptables filter FORWARD (forward) stops" in found.found
    here.cure(found)
    assert here.look()["other tables"].state is OK
    here.shell("iptables-legacy -F FORWARD && iptables-legacy -P FORWARD ACCEPT")


def test_iptables_nft_drops(here: Patient) -> None:
    """Its own program opens it: a rule of nft's would make iptables refuse the table."""
    here.shell("iptables-nft -P FORWARD DROP")
    found = here.look()["other tables"]
    assert found.state is BAD
    assert found.cures == ("iptables-nft -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT",)
    here.cure(found)
    assert here.look()["other tables"].state is OK
    here.shell("nft delete table ip filter")


def test_docker_drops(here: Patient) -> None:
    here.shell("iptables-nft -N DOCKER-USER && iptables-nft -P FORWARD DROP")
    assert here.look()["other tables"].state is OK
    found = here.look()["docker"]
    assert found.state is BAD
    assert "ip-forward-no-drop" in found.means
    here.cure(found)
    assert here.look()["docker"].state is OK
    here.shell("nft delete table ip filter")


def test_ufw_is_enabled(here: Patient) -> None:
    here.file("etc/ufw/ufw.conf", "# comment\nENABLED=yes\n")
    defaults = here.file("etc/default/ufw", 'DEFAULT_FORWARD_POLICY="DROP"\n')
    found = here.look()["ufw"]
    assert found.state is WARNING
    assert found.cures == ("ufw default allow routed",)
    # What that command does, without ufw at hand.
    defaults.write_text(defaults.read_text().replace("DROP", "ACCEPT"))
    assert here.look()["ufw"].state is OK
    here.file("etc/ufw/ufw.conf", "ENABLED=no\n")


def test_ufw_drops(here: Patient) -> None:
    here.shell("iptables-nft -N ufw-before-forward && iptables-nft -P FORWARD DROP")
    found = here.look()["ufw"]
    assert found.state is BAD
    assert found.cures == ("ufw default allow routed",)
    here.shell("iptables-nft -P FORWARD ACCEPT && iptables-nft -P INPUT DROP")
    assert here.look()["ufw"].cures == ("ufw allow in on cni0",)
    here.shell("nft delete table ip filter")
    assert here.look()["ufw"].state is OK


def enable(here: Patient, service: str, unit: str, target: str = "multi-user") -> None:
    here.file(f"usr/lib/systemd/system/{service}", unit)
    link = here.root / f"etc/systemd/system/{target}.target.wants/{service}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"/usr/lib/systemd/system/{service}")


def test_firewalld_forgets_on_reload(here: Patient) -> None:
    enable(here, "firewalld.service", "[Service]\nExecStart=/usr/sbin/firewalld\n")
    here.file("etc/firewalld/firewalld.conf", "DefaultZone=public\nFlushAllOnReload=yes\n")
    found = here.look()["firewalld"]
    assert found.state is WARNING
    here.cure(found)
    assert here.look()["firewalld"].state is OK


def test_firewalld_rejects(here: Patient) -> None:
    here.shell(f"nft -f - <<'END'\n{FOREIGN.replace('fence', 'firewalld')}END")
    found = here.look()["firewalld"]
    assert found.state is BAD
    assert found.cures == (
        "firewall-cmd --permanent --zone=trusted --add-interface=cni0",
        "firewall-cmd --reload",
    )
    here.shell("nft delete table inet firewalld")
    assert here.look()["firewalld"].state is OK


NFTABLES = """\
[Service]
ExecStart=/usr/sbin/nft -f /etc/nftables.conf
ExecReload=/usr/sbin/nft -f /etc/nftables.conf
"""


@pytest.mark.parametrize("included", [False, True])
def test_a_service_flushes_all_tables(here: Patient, *, included: bool) -> None:
    flush = "#!/usr/sbin/nft -f\nflush ruleset\n\ntable inet filter {\n}\n"
    name = "etc/nftables.d/a.nft" if included else "etc/nftables.conf"
    here.file("etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\n')
    here.file(name, flush)
    found = here.look()["flush ruleset"]
    assert found.state is OK
    enable(here, "nftables.service", NFTABLES, "sysinit")
    found = here.look()["flush ruleset"]
    assert found.state is WARNING
    assert f"/{name} of nftables.service" in found.found
    here.cure(found)
    assert here.look()["flush ruleset"].state is OK
    (here.root / "etc/systemd/system/sysinit.target.wants/nftables.service").unlink()


def test_a_service_that_flushes_when_it_stops(here: Patient) -> None:
    """Debian's does."""
    here.file("etc/nftables.conf", "table inet filter {\n}\n")
    enable(here, "nftables.service", f"{NFTABLES}ExecStop=/usr/sbin/nft flush ruleset\n", "sysinit")
    found = here.look()["flush ruleset"]
    assert found.state is WARNING
    assert found.cures == ("systemctl disable nftables.service",)
    (
        here.root / "etc/systemd/system/sysinit.target.wants/nftables.service"
    ).unlink()  # as that does
    assert here.look()["flush ruleset"].state is OK


def test_an_nft_that_cannot_list_our_table(here: Patient, tmp_path: Path) -> None:
    fake = tmp_path / "nft"
    fake.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fake.chmod(0o755)
    found, _ = here.say(before=("env", f"PATH={tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"))
    assert found["nft"]["state"] == WARNING
    assert "ends with signal 11" in found["nft"]["found"]
    assert here.look()["nft"].state is OK


# ---- cluster ----


@contextlib.contextmanager
def objects(here: Patient, *documents: object) -> Iterator[None]:
    """Other objects, in a folder that nftproxy does not follow."""
    before, here.manifests = here.manifests, here.folder / "others"
    here.manifests.mkdir(exist_ok=True)
    write(here.manifests / "all.yaml", *documents)  # type: ignore[arg-type]
    yield
    here.manifests = before


def test_the_nodes_address_is_on_no_interface(here: Patient) -> None:
    with objects(here, node("192.168.50.99")):
        found = here.look()["node address"]
        assert found.state is BAD
        assert found.cures == ("ip address add 192.168.50.99 dev eth0",)
        here.cure(found)
        assert here.look()["node address"].state is OK
    here.shell("ip address del 192.168.50.99/32 dev eth0")


def test_pods_outside_of_the_cluster_cidr(here: Patient) -> None:
    before = here.config.read_text()
    with objects(here, node(pods="10.200.1.0/24")):
        found = here.look()["pod network"]
        assert found.state is BAD
        here.cure(found)
        assert here.look()["pod network"].state is OK
    here.config.write_text(before)


def test_no_cluster_cidr(here: Patient) -> None:
    before = here.config.read_text()
    here.write_config(clusterCIDR="")
    found = here.look()["pod network"]
    assert found.state is WARNING
    here.cure(found)
    assert here.look()["pod network"].state is OK
    here.config.write_text(before)


def test_a_part_of_the_services_network_is_routed_elsewhere(here: Patient) -> None:
    here.shell("ip route add 10.96.7.0/24 dev eth0")
    found = here.look()["service network"]
    assert found.state is WARNING
    assert "10.96.7.0/24 goes to eth0" in found.found
    here.cure(found)
    assert here.look()["service network"].state is OK


def test_the_services_network_is_unreachable(here: Patient) -> None:
    here.shell(f"ip route add unreachable {SERVICE_CIDR}")
    found = here.look()["service network"]
    assert found.state is BAD
    here.cure(found)
    assert here.look()["service network"].state is OK


def test_there_is_no_route_to_services(here: Patient) -> None:
    here.shell("ip route del default")
    found = here.look()["service network"]
    assert found.state is BAD
    here.cure(found)
    assert here.look()["service network"].state is OK
    here.shell(f"ip route del {SERVICE_CIDR} && ip route add default via 192.168.50.1")


def test_there_is_no_route_to_an_endpoint(here: Patient) -> None:
    """The route is the network plugin's: the command shows what there is."""
    here.shell("ip route add unreachable 10.244.2.0/25")
    found = here.look()["endpoints"]
    assert found.state is BAD
    assert "10.244.2.2: " in found.found
    assert found.cures == ("ip route get 10.244.2.2",)
    here.shell("ip route del unreachable 10.244.2.0/25")
    assert here.look()["endpoints"].state is OK


def test_the_next_hop_is_silent(here: Patient) -> None:
    here.shell("ip neigh replace 192.168.50.12 dev eth0 nud failed")
    found = here.look()["endpoints"]
    assert found.state is WARNING
    assert "10.244.2.2: 192.168.50.12 on eth0 is silent" in found.found
    here.shell("ip neigh del 192.168.50.12 dev eth0")
    assert here.look()["endpoints"].state is OK


def test_clients_get_the_numbers_of_node_ports(here: Patient) -> None:
    here.shell("sysctl -w net.ipv4.ip_local_port_range='20000 60999'")
    found = here.look()["NodePorts"]
    assert found.state is WARNING
    here.cure(found)
    assert here.look()["NodePorts"].state is OK
    here.shell("sysctl -w net.ipv4.ip_local_port_range='32768 60999'")
