"""The lab itself, with real namespaces: what it promises to every other packet test."""

import contextlib
import ipaddress
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from nftproxy.address import Family, parse_address, parse_network
from nftproxy.errors import NftproxyError, UnusableError
from nftproxy.lab import build, namespace, state, topology
from nftproxy.lab.cli import lab as command
from nftproxy.lab.client import Answer, Connection, Refused, Silent, Unreachable
from nftproxy.lab.echo import EchoListener, EchoServer
from nftproxy.lab.lab import Lab, tear_down
from nftproxy.lab.namespace import enter
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS, Shape, make_plan
from tests.support.process import network
from tests.support.running import eventually

WIRINGS = {
    "host-gw": {},
    "vxlan": {"vxlan": True},
    "routed": {"wiring": "routed"},
    "no br_netfilter": {"bridge_netfilter": False},
}
SERVICE = {Family.IPv4: "10.96.0.7", Family.IPv6: "fd00:10:96::7"}
PROTOCOLS = ("TCP", "UDP")
COMMAND = [sys.executable, "-c", "from nftproxy.lab.cli import lab; lab()"]

_numbers = itertools.count(1)


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a lab, of which nothing is left afterwards."""
    chosen = f"t{os.getpid()}-{next(_numbers)}"
    try:
        yield chosen
    finally:
        tear_down(chosen)


@pytest.fixture(scope="module", params=WIRINGS)
def wired(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(f"t{os.getpid()}-{next(_numbers)}", pods=2, **WIRINGS[request.param]) as lab:  # type: ignore[arg-type]
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"t{os.getpid()}-{next(_numbers)}", clients=2) as lab:
        yield lab


@pytest.fixture
def rules(lab: Lab) -> Iterator[None]:
    """Whatever rules a test loads are gone afterwards."""
    yield
    for place in lab.plan.places:
        lab.run(place, ["nft", "flush", "ruleset"])


def nft(lab: Lab, where: str, rules: str) -> None:
    lab.run(where, ["nft", "-f", "-"], input=f"table inet test {{\n{rules}\n}}")


def counted(lab: Lab, where: str, counter: str) -> int:
    listed = lab.run(where, ["nft", "-j", "list", "counter", "inet", "test", counter]).stdout
    return int(json.loads(listed)["nftables"][1]["counter"]["packets"])


def left_of(name: str) -> list[str]:
    """What exists of a lab."""
    spaces = namespace.names(name)
    files = (
        [path.name for path in state.DIRECTORY.glob(f"{name}*")] if state.DIRECTORY.exists() else []
    )
    return spaces + [f"process {pid}" for pid in namespace.processes(spaces)] + files


# --- the plan -------------------------------------------------------------------------------------


def test_names_and_addresses() -> None:
    plan = make_plan(Shape(name="x", nodes=12, pods=2, clients=2))
    node, pod, client = plan.place("node12"), plan.place("pod12-2"), plan.place("client2")
    assert (node.namespace, pod.namespace, client.namespace) == (
        "x.node12",
        "x.pod12-2",
        "x.client2",
    )
    assert list(node.addresses.values()) == ["192.168.50.22", "fd00:50::22"]
    assert list(pod.addresses.values()) == ["10.244.12.3", "fd00:244:12::3"]
    assert list(client.addresses.values()) == ["192.168.50.202", "fd00:50::202"]
    assert len(plan.pods) == 24


def test_addresses_nest_and_are_unique() -> None:
    plan = make_plan(Shape(nodes=89, pods=97, clients=49))
    seen = [address for place in plan.places for address in place.addresses.values()]
    assert len(seen) == len(set(seen))
    for node in plan.nodes:
        for family, cidr in node.pod_cidrs.items():
            assert ipaddress.ip_network(cidr).subnet_of(ipaddress.ip_network(CLUSTER_CIDRS[family]))  # type: ignore[arg-type]
            inside = [node.gateways[family], *(pod.addresses[family] for pod in node.pods)]
            assert all(parse_network(cidr).contains(parse_address(address)) for address in inside)
            assert not parse_network(SERVICE_CIDRS[family]).contains(
                parse_address(node.addresses[family])
            )


def test_commands_stay_inside_the_lab() -> None:
    plan = make_plan(Shape(name="x"))
    spaces = {commands.namespace for commands in topology.commands(plan)}
    assert spaces == {"x.underlay", *(place.namespace for place in plan.places)}
    for line in topology.cables(plan):
        words = line.split()
        ends = [words[at + 1] for at, word in enumerate(words) if word == "netns"]
        assert len(ends) == 2
        assert set(ends) <= spaces


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(name="a.b"), "cannot be the name"),
        (Shape(name=""), "cannot be the name"),
        (Shape(name="../x"), "cannot be the name"),
        (Shape(nodes=0), "1 to 89 nodes, not 0"),
        (Shape(pods=98), "0 to 97 pods per node, not 98"),
        (Shape(clients=50), "0 to 49 clients, not 50"),
        (Shape(families=()), "at least one IP family"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_labs(shape: Shape, message: str) -> None:
    with pytest.raises(NftproxyError, match=message):
        make_plan(shape)


def test_unknown_place_lists_the_known_ones() -> None:
    with pytest.raises(NftproxyError, match="'pod3-1'") as caught:
        make_plan(Shape(pods=1)).place("pod3-1")
    assert caught.value.hint == "known: node1, node2, pod1-1, pod2-1, client"


# --- packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_everybody_reaches_every_pod(wired: Lab, protocol: str, family: Family) -> None:
    for source in wired.plan.places:
        for pod in wired.pods:
            answer = wired.connect(source, pod.addresses[family], 8080, protocol)
            assert isinstance(answer, Answer), (source.name, pod.name)
            assert (answer.name, answer.port, answer.address) == (
                pod.name,
                8080,
                pod.addresses[family],
            )
            assert (answer.source, answer.source_port) == (answer.client, answer.client_port), (
                "nobody masquerades"
            )
            if source not in wired.nodes:
                assert answer.source == source.addresses[family]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "endpoint", ["pod1-1", "pod1-2", "pod2-1"], ids=["itself", "same node", "other node"]
)
def test_pod_reaches_pods_through_a_service(
    wired: Lab, endpoint: str, protocol: str, family: Family
) -> None:
    """DNAT without masquerading (but for a pod to itself) works only if every answer passes the
    node again.
    """
    service, pod, client = SERVICE[family], wired.place(endpoint), wired.place("pod1-1")
    ip, target = (
        ("ip", pod.addresses[family])
        if family is Family.IPv4
        else ("ip6", f"[{pod.addresses[family]}]")
    )
    nft(
        wired,
        "node1",
        f"""
        chain translate {{
            type nat hook prerouting priority dstnat
            {ip} daddr {service} {protocol.lower()} dport 80 dnat {ip} to {target}:9376
        }}
        chain hairpin {{
            type nat hook postrouting priority srcnat
            {ip} saddr {client.addresses[family]} {ip} daddr {client.addresses[family]} masquerade
        }}""",
    )
    try:
        outcomes = [wired.connect(client, service, 80, protocol) for _ in range(3)]
    finally:
        wired.run("node1", ["nft", "flush", "ruleset"])
    seen = wired.nodes[0].gateways[family] if pod is client else client.addresses[family]
    assert [(o.name, o.port, o.source) for o in outcomes if isinstance(o, Answer)] == [
        (endpoint, 9376, seen)
    ] * 3


def test_vxlan_carries_what_crosses_nodes(name: str) -> None:
    with Lab(name, pods=1, vxlan=True) as lab:
        for family, device in ((Family.IPv4, "flannel.1"), (Family.IPv6, "flannel-v6.1")):
            assert isinstance(lab.connect("pod1-1", lab.pods[1].addresses[family], 8080), Answer)
            link = json.loads(lab.run("node2", ["ip", "-s", "-j", "link", "show", device]).stdout)[
                0
            ]
            assert link["stats64"]["rx"]["packets"] >= 3


@pytest.mark.parametrize(("wiring", "interface"), [("bridge", "cni0"), ("routed", "veth1")])
def test_interface_by_which_pods_enter_the_node(name: str, wiring: str, interface: str) -> None:
    with Lab(name, nodes=1, pods=2, wiring=wiring) as lab:  # type: ignore[arg-type]
        nft(
            lab,
            "node1",
            f"""
            counter entered {{ }}
            chain count {{
                type filter hook prerouting priority -110
                iifname {interface} ip saddr {lab.pods[0].addresses[Family.IPv4]} ct state new counter name entered
            }}""",  # noqa: E501
        )
        assert isinstance(lab.connect("pod1-1", lab.pods[1].addresses[Family.IPv4], 8080), Answer)
        assert counted(lab, "node1", "entered") == 1


@pytest.mark.parametrize("family", Family)
def test_lab_of_one_family(name: str, family: Family) -> None:
    with Lab(name, nodes=2, pods=1, families=[family]) as lab:
        assert isinstance(lab.connect("client", lab.pods[1].addresses[family], 8080), Answer)
        shown = lab.run("node1", ["ip", "-j", "addr"]).stdout
        assert ("inet6" in shown) == (family is Family.IPv6)


@pytest.mark.parametrize("family", Family)
@pytest.mark.usefixtures("rules")
def test_client_goes_through_the_chosen_node(lab: Lab, family: Family) -> None:
    ip = "ip" if family is Family.IPv4 else "ip6"
    for node in ("node1", "node2"):
        nft(
            lab,
            node,
            f"""
            counter passed {{ }}
            chain count {{
                type filter hook prerouting priority 0
                {ip} daddr {SERVICE[family]} counter name passed drop
            }}""",
        )
    client = lab.clients[1]
    for via, expected in (("node2", (0, 1)), ("node1", (1, 1))):
        lab.route(client, SERVICE[family], via=via)
        assert lab.connect(client, SERVICE[family], 80, "UDP", timeout=0.05) == Silent()
        assert (counted(lab, "node1", "passed"), counted(lab, "node2", "passed")) == expected


# --- outcomes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.usefixtures("rules")
def test_refused_silent_and_unreachable(lab: Lab, protocol: str, family: Family) -> None:
    ip = "ip" if family is Family.IPv4 else "ip6"
    pod = lab.place("pod1-1").addresses[family]
    nft(
        lab,
        "node1",
        f"""
        chain forward {{
            type filter hook forward priority 0
            {ip} daddr {pod} th dport {{ 81, 83 }} meta l4proto {{ tcp, udp }} reject
            {ip} daddr {pod} th dport 82 meta l4proto {{ tcp, udp }} drop
        }}
        chain output {{
            type filter hook output priority 0
            {ip} daddr {pod} th dport {{ 81, 83 }} meta l4proto {{ tcp, udp }} reject
            {ip} daddr {pod} th dport 82 meta l4proto {{ tcp, udp }} drop
        }}""",
    )
    for source in ("client", "pod1-2", "node1"):
        assert lab.connect(source, pod, 80, protocol) == Refused(), "closed port"
        assert lab.connect(source, pod, 81, protocol) == Refused(), "rejected"
        assert lab.connect(source, pod, 82, protocol, timeout=0.05) == Silent(), "dropped"
    # More than the kernel's default of six ICMP errors a second for one client.
    assert {lab.connect("client", pod, 83, protocol) for _ in range(60)} == {Refused()}
    lab.ip("client", f"route add unreachable {SERVICE[family]}")
    assert lab.connect("client", SERVICE[family], 80, protocol) == Unreachable("EHOSTUNREACH")
    lab.ip("client", f"route del unreachable {SERVICE[family]}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_connection_stays_open(lab: Lab, protocol: str) -> None:
    pod = lab.place("pod2-1")
    connection = lab.open_connection("pod1-1", pod.addresses[Family.IPv6], 8080, protocol)
    assert isinstance(connection, Connection)
    with connection:
        assert [connection.again() for _ in range(3)] == [connection.answer] * 3
        lab.ip("pod1-1", "link set eth0 down")
        assert isinstance(connection.again(timeout=0.1), Silent | Unreachable)
    # Without its IPv6 addresses and routes, which the kernel dropped
    lab.ip("pod1-1", "link set eth0 up")
    lab.ip("pod1-1", f"addr add {lab.place('pod1-1').addresses[Family.IPv6]}/64 dev eth0 nodad")
    lab.ip("pod1-1", f"route add default via {lab.nodes[0].gateways[Family.IPv6]}")
    lab.ip("pod1-1", f"route replace default via {lab.nodes[0].gateways[Family.IPv4]}")


def test_source_address_and_port_can_be_chosen(lab: Lab) -> None:
    lab.ip("client", "addr add 192.168.50.250/32 dev eth0")
    for protocol in PROTOCOLS:
        pod = lab.pods[0].addresses[Family.IPv4]
        answer = lab.connect(
            "client", pod, 8080, protocol, source="192.168.50.250", source_port=4321
        )
        assert isinstance(answer, Answer)
        assert (answer.source, answer.source_port) == ("192.168.50.250", 4321)


def test_udp_source_ports_are_never_used_twice(lab: Lab) -> None:
    pod = lab.pods[0].addresses[Family.IPv4]
    ports: list[int] = []

    def ask() -> None:
        for _ in range(200):
            answer = lab.connect("client", pod, 8080, "UDP")
            assert isinstance(answer, Answer)
            ports.append(answer.source_port)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ports)) == len(ports) == 600


@pytest.mark.parametrize("family", Family)
def test_node_answers_from_the_address_it_was_asked_at(lab: Lab, family: Family) -> None:
    """A hostNetwork endpoint has several addresses.

    UDP from a socket that is bound to none of them is the hard case.
    """
    lab.listen("node1", [53], families=[family])
    node = lab.nodes[0]
    try:
        for source, address in (
            ("pod1-1", node.addresses[family]),
            ("client", node.gateways[family]),
        ):
            for protocol in PROTOCOLS:
                answer = lab.connect(source, address, 53, protocol)
                assert isinstance(answer, Answer)
                assert (answer.name, answer.address) == ("node1", address)
    finally:
        lab.silence("node1")


def test_servers_come_and_go_and_count(lab: Lab) -> None:
    pod = lab.pods[0]
    address = pod.addresses[Family.IPv4]
    lab.listen(pod, [7000], ["TCP"], name="other")
    lab.counts.clear()
    assert [getattr(lab.connect("client", address, 7000), "name", None) for _ in range(3)] == [
        "other"
    ] * 3
    assert lab.connect("client", address, 7000, "UDP") == Refused()
    assert lab.counts == {EchoListener("other", 7000, "TCP"): 3}
    lab.silence(pod, [7000])
    assert lab.connect("client", address, 7000) == Refused()
    assert isinstance(lab.connect("client", address, 8080), Answer)
    with pytest.raises(OSError, match="Address already in use"):
        lab.listen(pod, [7001, 8080])
    assert lab.connect("client", address, 7001) == Refused(), "all or nothing"


def test_servers_in_another_process(name: str) -> None:
    with Lab(name, nodes=1, pods=1, echo="process") as lab:
        lab.listen("pod1-1", [7000], name="other")
        for port, expected in ((8080, "pod1-1"), (7000, "other")):
            answer = lab.connect("client", lab.pods[0].addresses[Family.IPv4], port)
            assert isinstance(answer, Answer)
            assert answer.name == expected
        with pytest.raises(NftproxyError, match="Address already in use"):
            lab.listen("pod1-1", [8080])
    assert left_of(name) == []


def test_a_thousand_connections_in_a_row(name: str) -> None:
    with Lab(name, nodes=1, pods=2, echo="process") as lab:
        for _ in range(1000):
            assert isinstance(
                lab.connect("pod1-1", lab.pods[1].addresses[Family.IPv4], 8080), Answer
            )


def test_something_else_than_an_echo_server(lab: Lab) -> None:
    server = lab.popen(
        "pod1-1", [sys.executable, "-c", _GREETER], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    port = int(server.stdout.readline())
    with server, pytest.raises(NftproxyError, match=r"no echo server of a lab: it said b'hello"):
        lab.connect("client", lab.pods[0].addresses[Family.IPv4], port)


_GREETER = """
import socket
server = socket.create_server(("", 0))
print(server.getsockname()[1], flush=True)
server.accept()[0].send(b"hello\\n")
"""


# --- namespaces -----------------------------------------------------------------------------------


def _here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_enter_always_comes_back(lab: Lab) -> None:
    home = _here()
    with lab.enter("node1"):
        node = _here()
        assert node != home
        with contextlib.suppress(ZeroDivisionError), lab.enter("node2"):
            assert _here() not in (home, node)
            raise ZeroDivisionError
        assert _here() == node
    assert _here() == home
    with (
        pytest.raises(NftproxyError, match="no network namespace 'nowhere'"),
        namespace.enter("nowhere"),
    ):
        pass
    assert _here() == home


def test_other_threads_stay_at_home(lab: Lab) -> None:
    home, seen, go, done = _here(), [], threading.Event(), threading.Event()

    def look() -> None:
        go.wait()
        seen.append(_here())
        done.set()

    thread = threading.Thread(target=look)
    thread.start()
    with lab.enter("node1"):
        go.set()
        done.wait()
    thread.join()
    assert seen == [home]


def test_run_in_a_place(lab: Lab) -> None:
    assert "192.168.50.12" in lab.run("node2", ["ip", "-4", "addr", "show", "eth0"]).stdout
    assert lab.run("node2", ["false"], check=False).returncode == 1
    with pytest.raises(
        NftproxyError,
        match=rf"`ip -n {lab.name}.node1 route add 192.0.2.1 via 192.0.2.2` failed: Error",
    ):
        lab.ip("node1", "link set lo up", "route add 192.0.2.1 via 192.0.2.2", "link set lo up")
    with pytest.raises(
        NftproxyError, match=r"`sh -c 'echo why >&2; exit 3'` on node2 exited with 3: why"
    ):
        lab.run("node2", ["sh", "-c", "echo why >&2; exit 3"])


# --- nothing is left ------------------------------------------------------------------------------


def test_up_and_down_without_remains(name: str) -> None:
    lab = Lab(name)
    lab.up()
    sleeper = lab.popen("pod1-1", ["sleep", "1000"])
    assert len(left_of(name)) == 10 + 1 + 1
    lab.down()
    assert left_of(name) == []
    assert sleeper.wait() == -signal.SIGKILL


def test_failed_up_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "cables", lambda _: ["link add nonsense"])
    with pytest.raises(NftproxyError, match="`ip link add nonsense` failed"):
        Lab(name).up()
    assert left_of(name) == []


def _kill_when(name: str, argv: Sequence[str], pieces: int) -> None:
    process = subprocess.Popen([*COMMAND, *argv], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(left_of(name)) < pieces:
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize("pieces", [1, 2, 20, 36, 37, 38])
def test_down_after_a_killed_up(name: str, pieces: int) -> None:
    """35 namespaces, the file, the echo process.

    Killed when so many are there, and at once taken down.
    """
    _kill_when(name, ["up", "--name", name, "--nodes", "3", "--pods", "10"], pieces)
    assert left_of(name)
    assert tear_down(name)
    time.sleep(0.1)  # for whoever might still be building
    assert left_of(name) == []
    assert not tear_down(name)


def test_down_without_the_file_and_with_a_namespace_never_mounted(name: str) -> None:
    Lab(name, nodes=1, pods=1, echo="background").up()
    state.release(name)
    (namespace.DIRECTORY / f"{name}.pod9-9").touch()
    with pytest.raises(NftproxyError, match="incomplete"):
        Lab(name).up()
    with pytest.raises(NftproxyError, match="incomplete"):
        Lab.attach(name)
    assert tear_down(name)
    assert left_of(name) == []


def test_servers_end_with_a_killed_test(name: str) -> None:
    script = (
        f"from nftproxy.lab.lab import Lab; Lab({name!r}, echo='process').up(); "
        "print('up', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        spaces = namespace.names(name)
        assert len(namespace.processes(spaces)) == 1
        process.kill()
    eventually(lambda: not namespace.processes(spaces))


def test_labs_with_similar_names_are_apart(name: str) -> None:
    with Lab(f"{name}-a", nodes=1, pods=0, ports=[]) as other:
        with Lab(name, nodes=1, pods=0, ports=[]):
            pass
        assert len(namespace.names(other.name)) == 3


# --- the commands ---------------------------------------------------------------------------------


def _invoke(*argv: str) -> str:
    result = CliRunner().invoke(command, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_commands(name: str) -> None:
    assert _invoke("down", "--name", name) == f"there is no lab '{name}', nothing to remove\n"
    shown = _invoke("up", "--name", name, "--pods", "1", "--vxlan")
    assert f"lab '{name}' is up; nodes: 2, pods on each: 1" in shown
    with pytest.raises(NftproxyError, match="already") as caught:
        _invoke("up", "--name", name)
    assert caught.value.hint == f"nftproxy lab down --name {name}"

    suggested = shlex.split(shown.splitlines()[-1])
    assert suggested[:2] == ["nftproxy", "lab"]
    said = subprocess.run(
        [*COMMAND, *suggested[2:]], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(said)["name"] == "pod2-1"

    lab = Lab.attach(name)
    assert lab.plan.shape.vxlan
    answer = lab.connect("client", lab.pods[1].addresses[Family.IPv6], 9376)
    assert isinstance(answer, Answer)
    assert answer.name == "pod2-1"
    with pytest.raises(NftproxyError, match="accept no commands"):
        lab.listen("pod1-1", [1])

    status = json.loads(_invoke("status", "--name", name, "--output", "json"))
    assert (status["complete"], status["servers"], status["network"]) == (True, True, "vxlan")
    assert status["places"][2] == {
        "name": "pod1-1",
        "kind": "pod",
        "node": "node1",
        "namespace": f"{name}.pod1-1",
        "present": True,
        "addresses": {"IPv4": "10.244.1.2", "IPv6": "fd00:244:1::2"},
    }
    assert "missing" not in _invoke("status", "--name", name)

    namespace.kill(namespace.processes([lab.plan.underlay]))
    build.remove([f"{name}.pod2-1"])
    table = _invoke("status", "--name", name)
    assert "missing: pod2-1\n" in table
    assert "the pods do not answer" in table
    assert f"pod1-1  node1  {name}.pod1-1" in table
    assert _invoke("down", "--name", name) == f"lab '{name}' is down\n"
    assert left_of(name) == []


def test_exec(name: str) -> None:
    with Lab(name, nodes=1, pods=1, ports=[]):
        shown = [
            "exec",
            "--name",
            name,
            "pod1-1",
            "--",
            "sh",
            "-c",
            "ls /sys/class/net; ip -br addr show eth0; exit 7",
        ]
        result = subprocess.run([*COMMAND, *shown], capture_output=True, text=True, check=False)
        assert result.returncode == 7
        assert "eth0" in result.stdout.split()
        assert "10.244.1.2/24" in result.stdout
        for argv, message, hint in (
            (
                ["nobody", "--", "true"],
                "nothing in lab .* has the name 'nobody'",
                "known: node1, pod1-1, client",
            ),
            (["node1", "--", "no-such-program"], "no program 'no-such-program'", "places share"),
        ):
            with pytest.raises(NftproxyError, match=message) as caught:
                _invoke("exec", "--name", name, *argv)
            assert hint in caught.value.hint


def test_commands_about_a_lab_that_is_not_there(name: str) -> None:
    for argv in (["status"], ["exec", "node1", "true"]):
        with pytest.raises(NftproxyError, match=f"there is no lab '{name}'"):
            _invoke(argv[0], "--name", name, *argv[1:])


@pytest.mark.parametrize(
    "argv", [["up"], ["down"], ["exec", "node1", "true"]], ids=lambda argv: argv[0]
)
def test_without_root(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnusableError, match="needs root"):
        _invoke(*argv)


def test_without_iproute2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnusableError, match="`ip` is missing") as caught:
        _invoke("up")
    assert caught.value.hint == "apt install iproute2"


def test_without_a_kernel_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        topology, "cables", lambda plan: [f"link add x netns {plan.underlay} type nonesuch"]
    )
    with pytest.raises(UnusableError, match="nonesuch") as caught:
        _invoke("up", "--name", name)
    assert "modprobe" in caught.value.hint


def test_help_loads_nothing_of_the_lab() -> None:
    script = (
        "import sys; from nftproxy.lab.cli import lab; print(*sorted(m for m in "
        "sys.modules if m.startswith('nftproxy')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == ["nftproxy", "nftproxy.errors", "nftproxy.lab", "nftproxy.lab.cli"]


def test_echo_server_without_a_thread() -> None:
    """A lab whose building failed half-way closes what it has."""
    server = EchoServer()
    with network() as where:
        server.listen(where, "somebody", [80])
        server.close(where)
        server.listen(where, "somebody else", [80])  # the port is free again
        server.stop()
        with enter(where), socket.create_server(("", 80)):  # and again
            pass


@pytest.mark.parametrize("call", ["unshare", "mount", "setns"])
def test_a_namespace_that_is_interrupted_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """By Ctrl-C right after each system call, also when the file is a mount point already."""
    made, wanted = namespace._call, f"{name}.node1"

    def interrupted(function: str, *arguments: int | bytes | None) -> None:
        made(function, *arguments)
        if function == call and wanted in namespace.names(name):
            raise KeyboardInterrupt

    home = Path("/proc/thread-self/ns/net").readlink()
    monkeypatch.setattr(namespace, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        namespace.create(wanted)
    assert namespace.names(name) == []
    assert Path("/proc/thread-self/ns/net").readlink() == home
