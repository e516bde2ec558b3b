"""The addresses of this node, as the kernel lists them."""

import subprocess

from nftproxy.address import Address, parse_address
from nftproxy.lab.namespace import enter
from nftproxy.node import interfaces


def test_addresses_of_all_interfaces(netns: str) -> None:
    """Also of one that is down; of a point-to-point link the own end."""
    for command in (
        "link add one type veth peer name two",
        "addr add 192.0.2.1/24 dev one",
        "addr add 192.0.2.2/24 dev one",
        "addr add 198.51.100.1 peer 198.51.100.2/32 dev two",
        "addr add 2001:db8::1/64 dev one nodad",
        "link set lo up",
    ):
        subprocess.run(["ip", "-n", netns, *command.split()], check=True)
    with enter(netns):
        found = interfaces.addresses()
    assert set(found) == {
        parse_address(text)
        for text in ("127.0.0.1", "::1", "192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1")
    }
    assert len(found) == 6


def test_more_addresses_than_one_answer_holds(netns: str) -> None:
    with enter(netns):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        batch = "".join(f"addr add 10.{n >> 8}.{n & 255}.1/32 dev lo\n" for n in range(1, 2001))
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
        found = interfaces.addresses()
    assert len(found) == 2002
    assert len(set[Address](found)) == 2002
