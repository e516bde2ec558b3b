"""`doctor` again: the process, conntrack's limits, the API server, and `--probe`."""

import contextlib
import http.server
import itertools
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nftproxy.doctor import machine
from nftproxy.doctor.model import CheckState, Result
from nftproxy.kernel import neighbours
from nftproxy.lab import namespace
from tests.support.entries import Collisions, fill
from tests.support.fake_apiserver import Exchange, FakeApiServer, list_objects, refused
from tests.support.mirror import kubeconfig
from tests.support.neighbour import move_in, move_out
from tests.support.patient import API, DNS, NODE, ROUTER, Patient, cluster, node, patient, slice_of
from tests.support.pki import server_tls
from tests.support.process import PATIENCE, service, write

BAD, WARNING, OK, UNCHECKED = (
    CheckState.BAD,
    CheckState.WARNING,
    CheckState.OK,
    CheckState.UNCHECKED,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BETWEEN_LOOKS", 0.2)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Patient]:
    with patient(tmp_path) as one:
        yield one


# ---- the table, and who keeps it ----


def test_nothing_runs_and_then_it_does(here: Patient) -> None:
    """The cure is a start, whoever makes it."""
    found = here.look()
    assert found["present"].state is BAD
    assert found["process"].state is BAD
    assert found["process"].means == "no Service works here"
    assert found["health"].state is UNCHECKED
    assert found["syncs"].state is UNCHECKED
    here.file("etc/systemd/system/nftproxy.service", "[Service]\n")
    assert here.look()["present"].cures == ("systemctl restart nftproxy",)
    with here.run() as run:
        run.until_started()
        found = here.look()
        for name in ("present", "program", "process", "health", "syncs", "refused", "repairs"):
            assert found[name].state is OK, found[name]
        run.end(signal.SIGTERM)
        found = here.look()
        assert found["present"].state is OK
        assert found["process"].state is BAD
        assert "changes of endpoints have no effect" in found["process"].means


def test_the_table_holds_another_program(here: Patient) -> None:
    """The configuration changed since the process started; a new start is the cure."""
    with here.run() as run:
        run.until_started()
        here.write_config(nftables={"masqueradeAll": True})
        found = here.look()["program"]
        assert found.state is BAD
        run.end(signal.SIGTERM)
    with here.run() as run:
        run.until_started()
        assert here.look()["program"].state is OK


def test_somebody_removed_the_programs_name(here: Patient) -> None:
    with here.run() as run:
        run.until_started()
        run.end(signal.SIGTERM)
        with namespace.enter(here.where):
            listed = subprocess.run(
                ["nft", "list", "table", "inet", "nftproxy"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        marker = next(line.split()[1] for line in listed.splitlines() if "chain program-" in line)
        here.shell(f"nft delete chain inet nftproxy {marker}")
        assert here.look()["program"].state is BAD
        run.start()
        run.until_started()
        assert here.look()["program"].state is OK


@contextlib.contextmanager
def owner(here: Patient) -> Iterator[None]:
    """Another program owns the table: nobody else may write it until that ends."""
    with namespace.enter(here.where):
        nft = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, text=True)
    assert nft.stdin
    try:
        nft.stdin.write("add table inet nftproxy { flags owner; }\n")
        nft.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        with namespace.enter(here.where):
            while (
                "nftproxy"
                not in subprocess.run(
                    ["nft", "list", "tables"], check=True, capture_output=True, text=True
                ).stdout
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield
    finally:
        nft.stdin.close()
        nft.wait(PATIENCE)


def test_syncs_fail(here: Patient) -> None:
    here.write_config(nftables={"syncPeriod": "1s"})
    with owner(here), here.run() as run:
        run.until(lambda: run.logged("sync failed"))
        found: dict[str, Result] = {}

        def is_bad() -> bool:
            found.update(here.look())
            return found["health"].state is BAD

        run.until(is_bad)
        assert found["syncs"].state is BAD
        assert found["syncs"].found == "no sync has succeeded yet"
        assert "no sync since" in found["health"].found
    with here.run() as run:
        run.until_started()
        found = here.look()
        assert found["health"].state is OK
        assert found["syncs"].state is OK


def test_a_process_that_does_not_answer(here: Patient) -> None:
    with here.run() as run:
        run.until_started()
        run.process.send_signal(signal.SIGSTOP)
        found = here.look()
        assert found["process"].state is OK
        assert found["health"].state is WARNING, found["health"]
        run.process.send_signal(signal.SIGCONT)
        assert here.look()["health"].state is OK


def test_somebody_changes_the_table(here: Patient) -> None:
    with here.run() as run:
        run.until_started()
        here.shell("nft flush map inet nftproxy services4")
        run.until(lambda: run.logged("somebody changed table"))
        run.until(lambda: here.look()["repairs"].state is WARNING)
        assert here.look()["present"].state is OK
        run.end(signal.SIGTERM)
        run.start()
        run.until_started()
        assert here.look()["repairs"].state is OK


def test_the_kernel_refuses_services(here: Patient) -> None:
    """A stand-in for the metrics server: no kernel at hand refuses a Service for long."""
    answers = [2]

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lines = ['nftproxy_build_info{version="1"} 1.0']
            lines += [f'nftproxy_services_refused{{ip_family="IPv4"}} {answers[0]}.0']
            self.send_response(200)
            self.end_headers()
            self.wfile.write("\n".join(lines).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as there
            pass

    with namespace.enter(here.where):
        server = http.server.HTTPServer(("127.0.0.1", 10249), Metrics)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        found = here.look()["refused"]
        assert found.state is BAD
        assert found.found == "the kernel refuses 2 Services"
        answers[0] = 0
        assert here.look()["refused"].state is OK
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_newer_nft(here: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library at hand survives it, this process believes that it does not."""
    with here.run() as run:
        run.until_started()
        move_in(here.where)
        with namespace.enter(here.where), Path("/proc/thread-self/ns/net").open() as place:
            survives = neighbours.survives(place.fileno())
        monkeypatch.setattr(neighbours, "survives", lambda _: False)
        found = here.look()
        assert found["newer nft"].state is BAD
        assert "ip other s" in found["newer nft"].found
        assert found["expressions"].state is UNCHECKED
        if not survives:
            sticky = service("sticky", "10.96.0.30", sessionAffinity="ClientIP")
            piece = slice_of("sticky", "default", {"name": "http", "port": 8080}, "10.244.1.9")
            write(here.manifests / "more.yaml", sticky, piece)
            run.until(lambda: run.logged("needs a chain or set"))
            assert here.look()["health"].state is WARNING
        move_out(here.where)
        monkeypatch.undo()
        monkeypatch.setattr(machine, "_BETWEEN_LOOKS", 0.2)
        assert here.look()["newer nft"].state is OK
        run.until(lambda: here.look()["health"].state is OK)


# ---- limits ----


def test_conntrack_fills_up(here: Patient) -> None:
    """The limit is the whole machine's: entries are removed in place of the proposed command."""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if limit > 300_000:
        pytest.skip(f"a limit of {limit} connections takes too long to reach")
    with here.run() as run:
        run.until_started()
    with namespace.enter(here.where):
        fill(0, limit * 8 // 10)
    found = here.look()["conntrack"]
    assert found.state is WARNING
    assert found.cures == (f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",)
    with namespace.enter(here.where):
        fill(limit * 8 // 10, limit * 2 // 10 + 10)
    assert here.look()["conntrack"].state is BAD
    with going_on(here, lose):
        found = here.look()["conntrack drops"]
    assert found.state is BAD
    assert "more every second" in found.found
    here.shell("conntrack -F")
    found = here.look()["conntrack drops"]
    assert found.state is WARNING  # it was, and is over
    assert here.look()["conntrack"].state is OK


def lose() -> None:
    """Send a first packet of a connection, where there is no room for any."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (ROUTER, 9))


def test_connections_collide(here: Patient) -> None:
    with here.run() as run:
        run.until_started()  # without a rule that asks for it, the kernel tracks nothing
    assert here.look()["collisions"].found == "no collision"
    here.shell(Collisions.RULE)
    with namespace.enter(here.where):
        collisions = Collisions(ROUTER)
    ports = itertools.count(10_000)
    with contextlib.closing(collisions), going_on(here, lambda: collisions.meet(next(ports))):
        found = here.look()
    assert found["collisions"].state is WARNING
    assert "more every second" in found["collisions"].found
    assert found["conntrack drops"].state is OK
    assert here.look()["collisions"].state is OK


@contextlib.contextmanager
def going_on(here: Patient, do: Callable[[], None]) -> Iterator[None]:
    """Do something again and again on the node."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            do()

    with namespace.enter(here.where):
        thread = threading.Thread(target=work)
        thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# ---- the API server ----


@pytest.fixture
def server(here: Patient) -> Iterator[FakeApiServer]:
    one = FakeApiServer(tls=server_tls(here.folder))
    one.begin_with("nodes", node())
    cidr = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]},
    }
    one.begin_with("servicecidrs", cidr)
    with namespace.enter(here.where):
        one.listen()
    file = kubeconfig(here.folder, one.url, token="t")  # noqa: S106 - nothing behind it
    here.write_config(clientConnection={"kubeconfig": file})
    yield one
    if not one.stopped:
        one.shut()


def test_objects_come_from_the_api_server(here: Patient, server: FakeApiServer) -> None:
    found = here.look(manifests=False)
    for name in ("API server", "node address", "pod network", "service network"):
        assert found[name].state is OK, found[name]
    assert {request.resource for request in server.requests} == {"nodes", "servicecidrs"}


STRANGER = """
import http.server, json, sys
body = json.dumps({"kubeproxy.config.k8s.io": {"clientConnection": {"kubeconfig": sys.argv[1]}}})
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())
server = http.server.HTTPServer(("127.0.0.1", 10249), Answer)
print("ready", flush=True)
server.serve_forever()
"""


def test_another_users_server_makes_us_run_nothing(here: Patient) -> None:
    """A kubeconfig may name a program to run, and anybody may listen while nftproxy does not."""
    mark = here.folder / "mark"
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch",
              "args": [str(mark)], "interactiveMode": "Never"}  # fmt: skip
    path = kubeconfig(here.folder, "https://127.0.0.1:9", exec=plugin)
    for stranger in (True, False):
        before = ["setpriv", "--reuid=65534", "--clear-groups"] if stranger else []
        with namespace.enter(here.where):
            server = subprocess.Popen(
                [*before, "/usr/bin/python3", "-I", "-c", STRANGER, path],
                stdout=subprocess.PIPE,
                cwd="/",
            )
        try:
            assert server.stdout
            assert server.stdout.readline() == b"ready\n"
            found, _ = here.say()
        finally:
            server.kill()
            server.communicate()
        assert mark.exists() is not stranger  # as root, it is taken for ours
        if stranger:
            assert "no configuration" in found["node address"]["found"]


def test_a_slow_api_server(here: Patient, server: FakeApiServer) -> None:
    def slow(exchange: Exchange) -> None:
        time.sleep(1.2)
        list_objects(exchange)

    server.expect("nodes", slow)
    assert here.look(manifests=False)["API server"].state is WARNING
    assert here.look(manifests=False)["API server"].state is OK


def test_no_api_server(here: Patient, server: FakeApiServer) -> None:
    server.shut()
    found = here.look(manifests=False)
    assert found["API server"].state is BAD
    assert "refused" in found["API server"].found
    assert found["node address"].state is UNCHECKED
    with namespace.enter(here.where):
        server.listen()
    assert here.look(manifests=False)["API server"].state is OK


def test_credentials_that_nobody_accepts(here: Patient, server: FakeApiServer) -> None:
    server.token = "another"  # noqa: S105 - nothing behind it
    found = here.look(manifests=False)
    assert found["API server"].state is BAD
    assert "401" in found["API server"].found
    server.token = "t"  # noqa: S105 - nothing behind it
    assert here.look(manifests=False)["API server"].state is OK


def test_permissions_that_lack(here: Patient, server: FakeApiServer) -> None:
    server.expect("servicecidrs", refused(403))
    found = here.look(manifests=False)
    assert found["API server"].state is OK
    assert found["service network"].state is UNCHECKED
    assert "403" in found["service network"].found


# ---- probes ----


class Servers:
    """An API server that only takes connections, and a DNS server that answers anything."""

    def __init__(self, here: Patient) -> None:
        with namespace.enter(here.where):
            self.api = socket.create_server((NODE, 6443))
            self.dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.dns.bind((NODE, 5353))
        self.dns.settimeout(0.1)
        self._ended = False
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._ended:
            with contextlib.suppress(TimeoutError):
                question, client = self.dns.recvfrom(4096)
                self.dns.sendto(question[:2] + b"\x81\x83" + question[4:], client)

    def close(self) -> None:
        self._ended = True
        self._thread.join(PATIENCE)
        self.dns.close()
        self.api.close()


@pytest.fixture
def probed(here: Patient) -> Iterator[tuple[Patient, Servers]]:
    dns = {"name": "dns", "port": 53, "protocol": "UDP"}
    kube_dns = service("kube-dns", DNS, ports=[dns])
    kube_dns["metadata"]["namespace"] = "kube-system"
    piece = slice_of("kube-dns", "kube-system", {**dns, "port": 5353}, NODE)
    write(here.manifests / "all.yaml", *cluster(kube_dns, piece))
    here.shell("ip link set lo up")
    with here.run() as run:
        run.until_started()
        servers = Servers(here)
        yield here, servers
        servers.close()


def probe(here: Patient) -> Result:
    return here.look("--probe")["Services"]


def test_both_services_answer(probed: tuple[Patient, Servers]) -> None:
    found = probe(probed[0])
    assert found.state is OK, found
    assert f"default/kubernetes:https (IPv4, tcp): answers through {API}:443" in found.found
    assert f"kube-system/kube-dns:dns (IPv4, udp): answers through {DNS}:53" in found.found


def test_without_being_asked_it_connects_to_nobody(probed: tuple[Patient, Servers]) -> None:
    here, servers = probed
    assert here.look()["Services"].state is UNCHECKED
    servers.api.settimeout(0.2)
    with pytest.raises(TimeoutError):
        servers.api.accept()


def test_the_endpoint_is_at_fault(probed: tuple[Patient, Servers]) -> None:
    here, servers = probed
    servers.api.close()
    found = probe(here)
    assert found.state is BAD
    assert "neither through the ClusterIP nor at any endpoint" in found.found
    assert found.cures == ("kubectl -n default get pods -o wide",)


def test_the_way_through_the_service_is_at_fault(probed: tuple[Patient, Servers]) -> None:
    here, _ = probed
    here.shell(
        "nft add table ip fence; nft add chain ip fence out "
        "'{ type filter hook output priority -150; }'; "
        f"nft add rule ip fence out ip daddr {DNS} drop"
    )
    found = probe(here)
    assert found.state is BAD
    assert "all 1 endpoints answer directly" in found.found
    assert found.cures == ("nftproxy explain kube-system/kube-dns:dns",)
    here.shell("nft delete table ip fence")
    assert probe(here).state is OK


def test_one_endpoint_of_two_is_at_fault(probed: tuple[Patient, Servers]) -> None:
    here, _ = probed
    piece = slice_of("kubernetes", "default", {"name": "https", "port": 6443}, NODE, "10.244.1.1")
    documents = [d for d in cluster() if d["metadata"]["name"] != "kubernetes-1"]
    write(here.manifests / "all.yaml", *documents, piece)
    deadline = time.monotonic() + PATIENCE
    while (found := probe(here)).state is not WARNING:
        assert time.monotonic() < deadline, found
    assert "1 of 2 endpoints answer" in found.found
    assert "10.244.1.1:6443 connection refused" in found.found
