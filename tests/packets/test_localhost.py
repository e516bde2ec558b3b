"""NodePorts on loopback addresses: what the forwarder does with connections (contract 2.10)."""

import contextlib
import errno
import hashlib
import os
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from nftproxy.address import Family
from nftproxy.forwarder.bounds import Bounds
from nftproxy.forwarder.messages import LocalFrontend
from nftproxy.lab.namespace import enter
from tests.support.forwarding import (
    PLACE,
    EndpointProcess,
    Forwarding,
    echo,
    everything,
    machine,
    names_itself,
)
from tests.support.running import eventually
from tests.support.world import SLOW

PORT = 30080
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with machine() as name:
        yield name


@pytest.fixture
def forwarding(netns: str) -> Iterator[Forwarding]:
    with Forwarding(netns) as found:
        yield found


@contextlib.contextmanager
def bounded(netns: str, **limits: float) -> Iterator[Forwarding]:
    with Forwarding(netns, Bounds(**limits)) as found:  # type: ignore[arg-type]
        yield found


def is_cut(client: socket.socket) -> bool:
    """Whether the next thing that a client hears is a reset."""
    with contextlib.closing(client):
        try:
            client.recv(1)
        except ConnectionResetError:
            return True
    return False


def is_reset(forwarding: Forwarding, port: int) -> bool:
    """Whether a new connection is reset, which may be before it is known to be one."""
    try:
        return is_cut(forwarding.connect(port))
    except ConnectionResetError:
        return True


@pytest.mark.contract("2.10.3")
@pytest.mark.parametrize("family", Family)
def test_a_connection_reaches_an_endpoint(forwarding: Forwarding, family: Family) -> None:
    with EndpointProcess(forwarding.netns, echo, family) as endpoint:
        forwarding.put(PORT, endpoint.place, family=family)
        with forwarding.connect(PORT, family) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        (other,) = set(Family) - {family}
        with pytest.raises(ConnectionRefusedError):
            forwarding.connect(PORT, other)


@pytest.mark.contract("2.10.3")
@pytest.mark.parametrize("family", Family)
def test_no_other_address_has_it(forwarding: Forwarding, family: Family) -> None:
    with EndpointProcess(forwarding.netns, echo, family) as endpoint:
        forwarding.put(PORT, endpoint.place, family=family)
        others = [PLACE[family], *(["127.0.0.2"] if family is Family.IPv4 else [])]
        for address in others:
            with pytest.raises(ConnectionRefusedError):
                forwarding.connect(PORT, family, address=address)


@pytest.mark.contract("2.10.5", "3.4.9")
def test_each_endpoint_gets_its_share(forwarding: Forwarding) -> None:
    with contextlib.ExitStack() as stack:
        endpoints = [
            stack.enter_context(EndpointProcess(forwarding.netns, names_itself(name)))
            for name in ("one", "two")
        ]
        forwarding.put(PORT, *(each.place for each in endpoints))
        seen: Counter[bytes] = Counter()
        for _ in range(200):
            with forwarding.connect(PORT) as client:
                seen[everything(client)] += 1
        assert seen.keys() == {b"one", b"two"}
        assert min(seen.values()) > 50  # 1 in 10^12 by chance


@pytest.mark.contract("2.10.5")
def test_affinity_keeps_an_endpoint_while_it_is_there(forwarding: Forwarding) -> None:
    with contextlib.ExitStack() as stack:
        places = {
            name: stack.enter_context(EndpointProcess(forwarding.netns, names_itself(name))).place
            for name in ("one", "two", "three")
        }

        def ask() -> str:
            with forwarding.connect(PORT) as client:
                return everything(client).decode()

        forwarding.put(PORT, *places.values(), affinity=100)
        first = ask()
        assert {ask() for _ in range(30)} == {first}
        kept = {name: place for name, place in places.items() if name != first}
        forwarding.put(PORT, *kept.values(), affinity=100)
        second = ask()
        assert second != first
        assert {ask() for _ in range(30)} == {second}
        forwarding.put(PORT, *kept.values())
        assert {ask() for _ in range(60)} == set(kept), "no affinity any more"


@pytest.mark.contract("2.10.6")
def test_what_the_client_ends_first_goes_on_from_the_other_side(forwarding: Forwarding) -> None:
    def answers_at_the_end(connection: socket.socket) -> None:
        digest = hashlib.sha256(everything(connection)).digest()
        connection.sendall(digest)

    with EndpointProcess(forwarding.netns, answers_at_the_end) as endpoint:
        forwarding.put(PORT, endpoint.place)
        data = os.urandom(3_000_000)
        with forwarding.connect(PORT) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert everything(client) == hashlib.sha256(data).digest()
    eventually(lambda: forwarding.connections == 0)


@pytest.mark.contract("2.10.6")
def test_what_the_endpoint_ends_first_goes_on_from_the_other_side(forwarding: Forwarding) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def ends_first(connection: socket.socket) -> None:
        connection.sendall(b"greeting")
        connection.shutdown(socket.SHUT_WR)
        received.append(everything(connection))
        done.set()

    with EndpointProcess(forwarding.netns, ends_first) as endpoint:
        forwarding.put(PORT, endpoint.place)
        with forwarding.connect(PORT) as client:
            assert everything(client) == b"greeting"
            client.sendall(b"still here")
            client.shutdown(socket.SHUT_WR)
            assert done.wait(20)
    assert received == [b"still here"]
    eventually(lambda: forwarding.connections == 0)


def test_both_directions_at_the_same_time_lose_nothing(forwarding: Forwarding) -> None:
    with EndpointProcess(forwarding.netns, echo) as endpoint:
        forwarding.put(PORT, endpoint.place)
        data = os.urandom(20_000_000)
        with forwarding.connect(PORT) as client:

            def send() -> None:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            back = everything(client)
            sending.join()
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


@pytest.mark.contract("2.10.6")
@pytest.mark.parametrize("who", ["client", "endpoint"])
def test_a_reset_is_passed_on(forwarding: Forwarding, who: str) -> None:
    seen = threading.Event()
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"x")
        if who == "endpoint":
            go.wait(20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        try:
            connection.recv(1)
        except ConnectionResetError:
            seen.set()

    with EndpointProcess(forwarding.netns, serve) as endpoint:
        forwarding.put(PORT, endpoint.place)
        client = forwarding.connect(PORT)
        assert client.recv(1) == b"x"
        if who == "client":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            assert seen.wait(20)
        else:
            go.set()
            assert is_cut(client)
    eventually(lambda: forwarding.connections == 0)


@pytest.mark.contract("2.10.3")
def test_without_endpoints_it_is_refused_at_once(forwarding: Forwarding) -> None:
    with EndpointProcess(forwarding.netns, echo) as endpoint:
        with pytest.raises(ConnectionRefusedError):
            forwarding.connect(PORT)
        forwarding.put(PORT, endpoint.place)
        with forwarding.connect(PORT) as client:
            forwarding.put(PORT)
            with pytest.raises(ConnectionRefusedError):
                forwarding.connect(PORT)
            client.sendall(b"an established one stays")
            assert client.recv(100) == b"an established one stays"
        forwarding.put(PORT, endpoint.place)
        forwarding.connect(PORT).close()


@pytest.mark.contract("2.10.6")
def test_an_endpoint_that_refuses_resets_the_client(forwarding: Forwarding) -> None:
    forwarding.put(PORT, (PLACE[Family.IPv4], 9))
    assert is_reset(forwarding, PORT)
    eventually(lambda: forwarding.connections == 0)


@pytest.mark.contract("2.10.6")
def test_an_endpoint_that_does_not_answer_resets_the_client(netns: str) -> None:
    """Its accept queue is full, so it drops what comes."""
    with bounded(netns, connecting=0.3) as forwarding:
        with EndpointProcess(netns, echo) as endpoint:
            place = endpoint.place
        with enter(netns), socket.socket() as full:
            full.bind(place)
            full.listen(0)
            forwarding.put(PORT, place)
            clients = [forwarding.connect(PORT) for _ in range(6)]
            eventually(lambda: forwarding.connections <= 2)
            for client in clients:
                client.close()


def test_a_client_that_does_not_read_holds_nobody_up_and_nothing_more_is_read(
    forwarding: Forwarding,
) -> None:
    sent = Counter[str]()

    def floods(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        connection.settimeout(1)
        piece = bytes(1 << 16)
        with contextlib.suppress(TimeoutError):
            while True:
                sent["bytes"] += connection.send(piece)
        sent["stopped"] += 1

    with (
        EndpointProcess(forwarding.netns, floods) as greedy,
        EndpointProcess(forwarding.netns, echo) as good,
    ):
        forwarding.put(PORT, greedy.place)
        forwarding.put(PORT + 1, good.place)
        slow = [forwarding.connect(PORT, buffer=4096) for _ in range(20)]
        for _ in range(50):
            with forwarding.connect(PORT + 1) as client:
                client.sendall(b"quick")
                assert client.recv(100) == b"quick"
        eventually(lambda: sent["stopped"] == 20)
        # What is under way: a pipe, and the buffers of four sockets, each up to some megabytes
        assert sent["bytes"] < 20 * (16 << 20)
        for each in slow:
            each.close()
    eventually(lambda: forwarding.connections == 0)


def test_an_endpoint_that_does_not_read_stops_its_client(forwarding: Forwarding) -> None:
    go = threading.Event()
    received = Counter[str]()

    def waits(connection: socket.socket) -> None:
        go.wait(20)
        received["bytes"] += len(everything(connection))

    with EndpointProcess(forwarding.netns, waits, buffer=4096) as endpoint:
        forwarding.put(PORT, endpoint.place)
        with forwarding.connect(PORT) as client:
            client.settimeout(0)
            sent = 0
            quiet = 0
            while quiet < 20:
                try:
                    sent += client.send(bytes(1 << 16))
                    quiet = 0
                except BlockingIOError:
                    quiet += 1
                    time.sleep(0.02)
            client.settimeout(20)
            go.set()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        eventually(lambda: received["bytes"] == sent)


@pytest.mark.contract("2.10.7")
def test_thousands_of_connections(forwarding: Forwarding) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    held: list[socket.socket] = []
    clients: list[socket.socket] = []
    with enter(forwarding.netns):
        listening = socket.create_server((PLACE[Family.IPv4], 0), backlog=4096)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(listening.accept()[0])

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        forwarding.put(PORT, listening.getsockname())
        for _ in range(3000):
            clients.append(forwarding.connect(PORT))  # noqa: PERF401 - one that fails leaves the others
        eventually(lambda: len(held) == 3000)
        assert forwarding.connections == 3000
        for number, each in enumerate(held):
            each.sendall(number.to_bytes(4, "big"))
        numbers = {int.from_bytes(client.recv(4), "big") for client in clients}
        assert numbers == set(range(3000)), "each has its own"
    finally:
        for client in clients:
            client.close()
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for each in (listening, *held):
            each.close()
    eventually(lambda: forwarding.connections == 0)


@pytest.mark.contract("2.10.7")
def test_at_the_limit_of_a_nodeport_the_new_one_is_reset(netns: str) -> None:
    with (
        bounded(netns, of_port=3) as forwarding,
        EndpointProcess(netns, echo) as endpoint,
    ):
        forwarding.put(PORT, endpoint.place)
        forwarding.put(PORT + 1, endpoint.place)
        clients = [forwarding.connect(PORT) for _ in range(3)]
        assert is_reset(forwarding, PORT)
        for client in (*clients, forwarding.connect(PORT + 1)):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.close()
        eventually(lambda: forwarding.connections == 0)
        with forwarding.connect(PORT) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        warnings = [each.warning for each in forwarding.bulletins if each.warning]
        (warning,) = warnings
        assert warning.startswith("NodePort 127.0.0.1:30080: the limit of 3 connections is reached")


@pytest.mark.contract("2.10.7")
def test_at_a_limit_the_one_that_was_unused_for_longest_makes_room(netns: str) -> None:
    with (
        bounded(netns, of_port=3, stale=0.2) as forwarding,
        EndpointProcess(netns, echo) as endpoint,
    ):
        forwarding.put(PORT, endpoint.place)
        first, second, third = (forwarding.connect(PORT) for _ in range(3))
        first.sendall(b"x")
        assert first.recv(1) == b"x"
        time.sleep(0.3)
        first.sendall(b"x")
        assert first.recv(1) == b"x"
        fourth = forwarding.connect(PORT)
        assert is_cut(second)
        for client in (first, third, fourth):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.close()


@pytest.mark.contract("2.10.7")
def test_nobody_who_fills_one_nodeport_keeps_others_out_of_another(netns: str) -> None:
    with (
        bounded(netns, connections=20, of_port=100, stale=0) as forwarding,
        EndpointProcess(netns, echo) as endpoint,
    ):
        forwarding.put(PORT, endpoint.place)
        forwarding.put(PORT + 1, endpoint.place)
        with forwarding.connect(PORT + 1) as early:
            greedy = [forwarding.connect(PORT) for _ in range(40)]
            with forwarding.connect(PORT + 1) as late:
                for client in (early, late):
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
            assert forwarding.connections <= 20
            for each in greedy:
                each.close()


@pytest.mark.contract("2.10.7")
def test_a_connection_that_nobody_uses_ends(netns: str) -> None:
    with (
        bounded(netns, idle=2 * SLOW) as forwarding,
        EndpointProcess(netns, echo) as endpoint,
    ):
        forwarding.put(PORT, endpoint.place)
        unused = forwarding.connect(PORT)
        unused.settimeout(0.1)
        with unused, forwarding.connect(PORT) as used:
            cut = False
            while not cut:
                used.sendall(b"x")
                assert used.recv(1) == b"x"
                try:
                    unused.recv(1)
                except TimeoutError:
                    continue
                except ConnectionResetError:
                    cut = True
            used.sendall(b"x")
            assert used.recv(1) == b"x"


class Short:
    """A listening socket of a process that has no descriptors left until there are some."""

    def __init__(self, listening: socket.socket) -> None:
        self.fileno = listening.fileno
        self.close = listening.close
        self.refused = 0
        self.over = threading.Event()
        self._listening = listening

    def accept(self) -> tuple[socket.socket, object]:
        if not self.over.is_set():
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()


@pytest.mark.contract("2.10.7")
def test_without_descriptors_it_waits_for_some(forwarding: Forwarding) -> None:
    """The socket stays readable all the time: a loop without pauses would do nothing else."""
    with EndpointProcess(forwarding.netns, echo) as endpoint:
        forwarding.put(PORT, endpoint.place)
        listener = forwarding.ports._listeners[LocalFrontend(Family.IPv4, PORT)]
        short = Short(listener._socket)
        listener._socket = short  # type: ignore[assignment]
        with forwarding.connect(PORT) as client:
            eventually(lambda: short.refused > 1)
            assert short.refused < 5
            short.over.set()
            client.sendall(b"x")
            assert client.recv(1) == b"x"


@pytest.mark.contract("2.10.8")
def test_a_port_that_is_taken_is_tried_again_and_others_go_on(netns: str) -> None:
    with (
        bounded(netns, retry=0.1) as forwarding,
        EndpointProcess(netns, names_itself("endpoint")) as endpoint,
    ):
        with enter(netns):
            other = socket.create_server(("127.0.0.1", PORT))
        forwarding.put(PORT, endpoint.place)
        forwarding.put(PORT + 1, endpoint.place)
        with forwarding.connect(PORT + 1) as client:
            assert everything(client) == b"endpoint"
        with forwarding.connect(PORT), other.accept()[0]:
            pass  # it is the other's still
        other.close()

        def served() -> bool:
            with contextlib.suppress(OSError), forwarding.connect(PORT) as client:
                return everything(client) == b"endpoint"
            return False

        eventually(served)
        taken, free = (text for each in forwarding.bulletins if (text := each.warning or each.info))
        assert taken.startswith(
            "NodePort 127.0.0.1:30080 of default/web cannot be listened on: Address already in use;"
        )
        assert free == "NodePort 127.0.0.1:30080 of default/web is listened on"
        assert forwarding.bulletins[-1].listeners == {Family.IPv4: 2}
        assert forwarding.bulletins[-1].failures[Family.IPv4] >= 1


@pytest.mark.contract("2.10.8")
def test_services_exchange_their_nodeports(forwarding: Forwarding) -> None:
    with (
        EndpointProcess(forwarding.netns, names_itself("one")) as one,
        EndpointProcess(forwarding.netns, names_itself("two")) as two,
    ):
        for first, second in ((one, two), (two, one)):
            forwarding.put(PORT, first.place)
            forwarding.put(PORT + 1, second.place)
        for port, name in ((PORT, b"two"), (PORT + 1, b"one")):
            with forwarding.connect(port) as client:
                assert everything(client) == name


@pytest.mark.contract("2.10.6")
def test_the_end_resets_all(netns: str) -> None:
    with EndpointProcess(netns, echo) as endpoint:
        with Forwarding(netns) as forwarding:
            forwarding.put(PORT, endpoint.place)
            client = forwarding.connect(PORT)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert is_cut(client)
