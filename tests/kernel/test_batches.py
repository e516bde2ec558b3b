"""Many messages of a socket in one call."""

import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from nftproxy.kernel.batches import MESSAGES, Batches


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends; messages keep their limits."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def test_every_message_comes_once_in_order_and_whole(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    here, there = pair
    sent = [bytes([number]) * (1 + number * 600) for number in range(MESSAGES + 9)]
    sender = threading.Thread(target=lambda: [there.send(each) for each in sent])
    sender.start()
    batches, calls = Batches(here), 0
    received: list[bytes] = []
    while len(received) < len(sent):
        received += batches.receive()
        calls += 1
    sender.join()
    assert received == sent
    assert calls > 1, "a call is full at some number"


def test_it_waits_for_the_first_message_only(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    batches = Batches(here)
    there.send(b"one")
    there.send(b"two")
    assert batches.receive() == [b"one", b"two"]
    threading.Timer(0.05, there.send, [b"three"]).start()
    assert batches.receive() == [b"three"]


def test_a_signal_does_not_end_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        main = threading.main_thread().ident
        assert main

        def disturb() -> None:
            time.sleep(0.05)
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.05)
            there.send(b"late")

        helper = threading.Thread(target=disturb)
        helper.start()
        assert Batches(here).receive() == [b"late"]
        helper.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_a_closed_socket_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    batches = Batches(here)
    here.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        batches.receive()


def test_a_message_that_is_too_long_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    there.send(bytes(100_000))
    with pytest.raises(OSError, match="Message too long"):
        Batches(here).receive()
