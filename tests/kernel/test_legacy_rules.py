"""Tables of iptables-legacy are evaluated as the kernel runs them.

Packets sent through real ones.
"""

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from nftproxy.lab.namespace import enter
from nftproxy.path.legacy import LegacyTables
from nftproxy.path.ruleset import NftChain, NftTable
from tests.kernel.test_foreign_rules import SHOTS, compare
from tests.support.crossing import Crossing
from tests.support.foreign_rules import written
from tests.support.legacy_rules import LegacyWriter
from tests.support.tables import new_namespace

BY_CHANCE = 40
PROGRAMS = ("iptables-legacy", "iptables-legacy-restore", "ip6tables-legacy-restore")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="iptables-legacy is not installed"
)

WRITTEN = {
    "an accept list": """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i in0 -p tcp -m multiport --dports 80,443 -j ACCEPT
-A FORWARD -p udp --dport 53 -j ACCEPT
COMMIT
""",
    "docker": """
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-4 -A POSTROUTING -s 10.2.0.0/16 ! -o br0 -j MASQUERADE
-4 -A DOCKER ! -i br0 -p tcp --dport 8080 -j DNAT --to-destination 10.2.0.3:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION
-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br0 -j DOCKER
-A FORWARD -i br0 ! -o br0 -j ACCEPT
-4 -A DOCKER -d 10.2.0.3/32 ! -i br0 -o br0 -p tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
""",
    "goto and return": """
*filter
:FORWARD DROP [0:0]
:one - [0:0]
:two - [0:0]
-A FORWARD -p tcp -g one
-A FORWARD -j ACCEPT
-A one -j two
-A one -p tcp --dport 443 -j ACCEPT
-A two -p tcp --dport 80 -j RETURN
-A two -p tcp --dport 8080 -j REJECT --reject-with tcp-reset
COMMIT
""",
    "marks": """
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i in0 -j MARK --set-xmark 0x10/0xff
-A PREROUTING -p udp -j MARK --set-xmark 0x20/0xf0
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m mark --mark 0x10/0xf0 -p tcp --dport 80 -j DROP
-A FORWARD -m mark ! --mark 0x0/0x20 -j REJECT
COMMIT
""",
    "no conntrack": """
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p udp --dport 5353 -j CT --notrack
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate UNTRACKED -j DROP
-A FORWARD -m conntrack ! --ctstate NEW -j REJECT
COMMIT
""",
    "a limit and an unknown match": """
*filter
:FORWARD DROP [0:0]
-A FORWARD -p tcp -m limit --limit 1/hour -j ACCEPT
-A FORWARD -p udp -m length --length 0:40 -j ACCEPT
COMMIT
""",
}


@pytest.fixture(scope="module")
def crossing() -> Iterator[Crossing]:
    with Crossing() as crossing:
        yield crossing


@pytest.mark.parametrize("name", WRITTEN)
def test_written_rules(crossing: Crossing, name: str) -> None:
    outcomes = [
        each
        for seed in range(3)
        for each in compare(crossing, f"{name}.legacy", WRITTEN[name], f"{name} {seed}")
    ]
    assert len(outcomes) == 3 * SHOTS
    assert len(set(outcomes)) > 1


@pytest.mark.parametrize("name", [name for name in written() if name.endswith(".rules")])
def test_rules_of_other_programs(crossing: Crossing, name: str) -> None:
    """Those of IPv4, as iptables-nft has them elsewhere."""
    rules = "\n".join(
        f"-4 {line}" if line.startswith("-A") else line for line in written()[name].splitlines()
    )
    outcomes = compare(crossing, f"{name}.legacy", f"{rules}\n", name)
    assert len(outcomes) == SHOTS


@pytest.mark.parametrize("seed", range(BY_CHANCE))
def test_rules_by_chance(crossing: Crossing, seed: int) -> None:
    assert compare(crossing, "chance.legacy", LegacyWriter(seed).ruleset(), seed)


def test_no_table_is_loaded_by_looking() -> None:
    with new_namespace() as netns, enter(netns):
        assert LegacyTables().base_chains() == []
        names = subprocess.run(
            ["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert names.stdout == ""


def test_chains_rules_and_policies() -> None:
    with new_namespace() as netns, enter(netns):
        for command in (
            "-N mine",
            "-A mine -p tcp --dport 80 -j ACCEPT",
            "-A mine -j DROP",
            "-A FORWARD -i eth0 -j mine",
            "-P FORWARD DROP",
        ):
            subprocess.run(["iptables-legacy", *command.split()], check=True)
        tables = LegacyTables()
        assert tables.unread == []
        filtering = NftTable("iptables", "filter")
        drops = {base.chain.name: base.drops for base in tables.base_chains()}
        assert drops == {"INPUT": False, "FORWARD": True, "OUTPUT": False}
        assert [rule.handle for rule in tables.rules(NftChain(filtering, "FORWARD"))] == [1]
        assert len(tables.rules(NftChain(filtering, "mine"))) == 3, "with the return at its end"
