"""Other programs' rules are evaluated as the kernel runs them.

Packets sent through them, and what was said against what became of them.
"""

import contextlib
import random
from collections.abc import Iterator

import pytest

from nftproxy.lab.namespace import enter
from nftproxy.path.journey import End, Traveller
from nftproxy.path.legacy import EveryRuleset, LegacyTables
from nftproxy.path.live import LiveRuleset
from nftproxy.path.packet import ICMP, ICMPV6, TCP, UDP, text
from tests.support.crossing import PORT, Crossing, Seen, Shot, address
from tests.support.firewalls import Firewall, need
from tests.support.foreign_rules import DOUBTFUL, Writer, written
from tests.support.tables import new_namespace

BY_CHANCE = 60
SHOTS = 12
PORTS = (7, 22, 53, 80, 80, 443, 443, 5353, 5500, 8080, 8080, 8443)
PLACES = {device: place for place, device in PORT.items()} | {"br0": "pod"}


@pytest.fixture(scope="module")
def crossing() -> Iterator[Crossing]:
    with Crossing() as crossing:
        yield crossing


def shots(seed: object) -> Iterator[Shot]:
    """Packets by chance.

    Each has a source port of its own, so that conntrack knows none of them.
    """
    chance = random.Random(str(seed))
    for number in range(SHOTS):
        six = chance.random() < 0.4
        place = chance.choice(("client", "client", "client", "pod", "server", ""))
        protocol = chance.choice((TCP, TCP, UDP, UDP, ICMPV6 if six else ICMP))
        to = chance.choice(
            [each for each in ("pod", "server", "far", "far", "router") if each != place]
        )
        near = place or "server"
        if to == "router":
            destination = address(near, six=six, host=1)
        elif to == "far":
            host = chance.choice((3, 4, 5, 10, 11, 12))
            destination = f"fd09::{host}" if six else f"10.9.0.{host}"
        else:
            destination = address(to, six=six, host=chance.randint(2, 5))
        if (
            place in {"pod", "server"} and to != "router"
        ):  # whatever is far away is behind the server
            destination = address("client", six=six, host=chance.randint(2, 5))
        source = address(near, six=six, host=chance.randint(2, 5) if place else 1)
        yield Shot(
            place,
            protocol,
            source,
            destination,
            10_000 + number * 3000 + chance.randint(0, 2999),
            chance.choice(PORTS),
        )


def fate(end: End) -> Seen:
    """What is to be seen of a packet."""
    packet = end.branch.packet
    if not end.branch.alive:
        return Seen("", refused=bool(end.branch.rejected))
    if end.delivered:
        return Seen("router")
    assert end.way is not None
    port = packet.ends.destination_port if packet.protocol in {TCP, UDP} else 0
    return Seen(
        PLACES[end.way.device], text(packet.ends.source), text(packet.ends.destination), port or 0
    )


def agrees(seen: Seen, said: Seen) -> bool:
    """Whether what was seen is what was said.

    An answer that refuses may itself fall victim to the rules.
    """
    if said.where or seen.where:
        return seen == said
    return not (seen.refused and not said.refused)


def compare(crossing: Crossing, name: str, rules: str, seed: object) -> list[str]:
    """Send packets through rules; return what was seen, and fail where it is not what was said."""
    crossing.load(name, rules)
    found = []
    for shot in shots(seed):
        with enter(crossing.router):
            live = LiveRuleset()  # anew for each: rules learn from packets
            rules_of_all = EveryRuleset(live, LegacyTables())
        with contextlib.closing(live):
            traveller = Traveller(rules_of_all, crossing.routing)
            packet = shot.packet()
            journey = traveller.arrive(packet) if shot.place else traveller.leave(packet)
        said = {fate(end): end for end in journey.ends}
        seen = crossing.send(shot, expected=all(one.where for one in said))
        doubts = {doubt.kind for end in journey.ends for doubt in end.branch.doubts}
        where = f"{name}: {shot}\n  said {list(said)} {doubts}\n  seen {seen}\n{rules}"
        assert any(agrees(seen, one) for one in said), where
        if len(said) > 1:
            assert doubts, where
            assert doubts <= {"limit", "unknown", "chance"}, where
            if "unknown" in doubts:  # the ports of ping are its checksum
                words = (*DOUBTFUL, "th dport") if shot.protocol in {ICMP, ICMPV6} else DOUBTFUL
                assert any(word in rules for word in words), where
        found.append(
            "may"
            if len(said) > 1
            else "delivered"
            if seen.where
            else "refused"
            if seen.refused
            else "dropped"
        )
    return found


@pytest.mark.parametrize("name", written())
def test_written_rules(crossing: Crossing, name: str) -> None:
    outcomes = [
        each
        for seed in range(3)
        for each in compare(crossing, name, written()[name], f"{name} {seed}")
    ]
    assert len(outcomes) == 3 * SHOTS


UFW = """
ufw allow 80
ufw allow in on in0 to any port 53 proto udp
ufw limit 22/tcp
ufw route allow in on in0 out on out0 to any port 443 proto tcp
ufw deny from 10.1.0.4
"""
FIREWALLD = """
firewall-cmd --zone=trusted --add-interface=br0
firewall-cmd --zone=dmz --add-interface=in0
firewall-cmd --zone=dmz --add-service=http
firewall-cmd --zone=dmz --add-forward-port=port=8080:proto=tcp:toport=80:toaddr=10.3.0.3
firewall-cmd --zone=external --add-interface=out0
firewall-cmd --zone=drop --add-source=10.1.0.5
"""
INSTALLED = {
    "ufw": (UFW, "iptables-save"),
    "firewalld": (FIREWALLD, "nft list table inet firewalld"),
}


@pytest.mark.parametrize("kind", INSTALLED)
def test_rules_of_real_firewalls(crossing: Crossing, kind: str) -> None:
    need(kind)
    commands, listing = INSTALLED[kind]
    with new_namespace() as netns, Firewall(kind, netns) as firewall:
        firewall.run(commands)
        rules = firewall.run(listing)
    name = "real.rules" if kind == "ufw" else "real.nft"
    outcomes = [
        each for seed in range(6) for each in compare(crossing, name, rules, f"{kind} {seed}")
    ]
    assert {"delivered", "dropped"} <= set(outcomes)


@pytest.mark.parametrize("seed", range(BY_CHANCE))
def test_rules_by_chance(crossing: Crossing, seed: int) -> None:
    assert compare(crossing, "chance.nft", Writer(seed).ruleset(), seed)
