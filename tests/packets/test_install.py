"""What docs/install.md says about neighbours: its commands, as they stand there, with the rules of
the neighbour and real connections.
"""

import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from nftproxy.lab.client import Answer
from nftproxy.lab.namespace import enter
from tests.support.firewalls import Firewall, need
from tests.support.objects import service
from tests.support.paths import ROOT
from tests.support.world import World

ADDRESS = "10.96.0.10"


@pytest.fixture
def world() -> Iterator[World]:
    """A lab for each test, because a firewall's rules stay in a namespace."""
    with World() as world:
        world.apply(service(), world.endpoints("pod1-1", "pod2-1"))
        yield world


def advice(neighbour: str) -> list[str]:
    """The commands on the page for a neighbour."""
    page = (ROOT / "docs/install.md").read_text()
    row = re.search(
        rf"^\| {neighbour} \| (.*) \|$", page[page.index("## Neighbours") :], re.MULTILINE
    )
    assert row
    return re.findall(r"`([^`]+)`", row[1])


def passes(world: World) -> list[bool]:
    """Whether a pod and a client outside reach the Service, at an endpoint here and elsewhere."""
    places = ("pod1-2", "client")
    outcomes = [world.connect(each, ADDRESS, 80, timeout=0.3) for each in places for _ in range(4)]
    return [isinstance(outcome, Answer) for outcome in outcomes]


def on_node(world: World, command: str) -> None:
    with enter(world.lab.place("node1").namespace):
        subprocess.run(shlex.split(command), check=True, capture_output=True)


def test_firewalld_accepts_services_also_after_a_reload(world: World) -> None:
    need("firewalld")
    with Firewall("firewalld", world.lab.place("node1").namespace) as firewall:
        assert all(passes(world))
        firewall.run("firewall-cmd --reload")
        assert all(passes(world))


def test_ufw_accepts_services_with_the_commands_of_the_page(world: World) -> None:
    need("ufw")
    commands = advice("ufw")
    assert len(commands) == 2
    with Firewall("ufw", world.lab.place("node1").namespace) as firewall:
        assert not any(passes(world))
        for command in commands:
            firewall.run(command)
        assert all(passes(world))


def test_docker_accepts_services_with_the_commands_of_the_page(world: World) -> None:
    for command in (
        "iptables --policy FORWARD DROP",
        "iptables --new-chain DOCKER-USER",
        "iptables --append FORWARD --jump DOCKER-USER",
    ):
        on_node(world, command)
    assert not any(passes(world))
    command, source = advice("docker")
    assert source == "-s"
    on_node(world, command)
    on_node(world, command.replace(" -d ", f" {source} "))
    assert all(passes(world))


class Cache:
    """What NodeLocal DNS does on a node: it listens at the DNS Service's address, untracked."""

    def __init__(self, world: World) -> None:
        self._world = world
        # A dummy there, which some kernels lack; what matters is that the address is the node's.
        on_node(world, "ip link add nodelocaldns type bridge")
        on_node(world, f"ip address add {ADDRESS}/32 dev nodelocaldns")
        for protocol in ("udp", "tcp"):
            here = f"-p {protocol} -d {ADDRESS} --dport 53 -j"
            back = f"-p {protocol} -s {ADDRESS} --sport 53 -j"
            for rule in (f"PREROUTING {here} CT --notrack", f"OUTPUT {here} CT --notrack"):
                on_node(world, f"iptables -t raw -A {rule}")
            on_node(world, f"iptables -t raw -A OUTPUT {back} CT --notrack")
            on_node(world, f"iptables -A INPUT {here} ACCEPT")
            on_node(world, f"iptables -A OUTPUT {back} ACCEPT")
        with enter(world.lab.place("node1").namespace):
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind((ADDRESS, 53))
            self._tcp = socket.create_server((ADDRESS, 53))
        for answer in (self._datagrams, self._streams):
            threading.Thread(target=answer, daemon=True).start()

    def close(self) -> None:
        for each in (self._udp, self._tcp):
            each.shutdown(socket.SHUT_RDWR) if each is self._tcp else None
            each.close()

    def _datagrams(self) -> None:
        while True:
            try:
                _, client = self._udp.recvfrom(100)
            except OSError:
                return
            self._udp.sendto(b"cache", client)

    def _streams(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"cache")


def asked(world: World, place: str, kind: socket.SocketKind) -> bytes:
    """What the DNS Service answers to a pod."""
    with enter(world.lab.place(place).namespace):
        client = socket.socket(socket.AF_INET, kind)
    with client:
        client.settimeout(2)
        client.connect((ADDRESS, 53))
        client.send(b"?")
        return client.recv(100)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_nodelocal_dns_gets_the_packets_of_its_node(world: World, kind: socket.SocketKind) -> None:
    protocol = "UDP" if kind is socket.SOCK_DGRAM else "TCP"
    world.apply(
        service(port=53, protocol=protocol), world.endpoints("pod1-1", "pod2-1", protocol=protocol)
    )
    assert isinstance(world.connect("pod1-2", ADDRESS, 53, protocol), Answer)
    cache = Cache(world)
    try:
        for place in ("pod1-2", "node1"):
            assert asked(world, place, kind) == b"cache"
    finally:
        cache.close()
