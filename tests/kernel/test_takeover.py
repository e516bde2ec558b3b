"""Taking a node over from another mode of kube-proxy, with real rules, and giving it back."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
from pyroute2 import IPVS, IPSet, IPVSService

from nftproxy.address import Family
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.transactions import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.client import Answer, Outcome
from nftproxy.node import takeover
from nftproxy.node.leftovers import IPSETS, LeftoverRules, Leftovers, dropping, parse, rules_left
from nftproxy.node.takeover import dropping_chains, leftovers, remove, take_over
from tests.support.objects import service
from tests.support.world import CLUSTER_IP, World, unique_name

BACKENDS = ["legacy", "nft"]
ROUNDS = 4

KUBELET_AND_FOREIGN = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "mine, not -j KUBE-PROXY-CANARY" -j MARK --set-xmark 0x1/0x1
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NWPLCY-ABCDEF - [0:0]
:MINE - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "\\"quoted\\" -j KUBE-FORWARD" -j MINE
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -m mark --mark 0x8000/0x8000 -j DROP
-A MINE -p tcp -m tcp --dport 4711 -j DROP
COMMIT
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 4712 -j RETURN
COMMIT
"""  # noqa: E501


def kube_proxy_rules(world: World, family: Family, pods: Iterable[str]) -> str:
    """What kube-proxy's iptables mode makes of a Service with TCP and UDP ports and NodePort."""
    cluster_ip, length = CLUSTER_IP[family], family.bits
    chains, rules, places = [], [], [world.address(pod, family) for pod in pods]
    for proto, service_chain in (
        ("tcp", "KUBE-SVC-TTTTTTTTTTTTTTTT"),
        ("udp", "KUBE-SVC-UUUUUUUUUUUUUUUU"),
    ):
        external = service_chain.replace("SVC", "EXT")
        chains += [service_chain, external]
        rules += [
            (
                f'-A KUBE-SERVICES -d {cluster_ip}/{length} -p {proto} -m comment --comment "a b" '
                f"-m {proto} --dport 80 -j {service_chain}"
            ),
            (
                f"-A KUBE-NODEPORTS -p {proto} -m comment --comment default/web:{proto} -m {proto} "
                f"--dport 30080 -j {external}"
            ),
            f"-A {external} -j KUBE-MARK-MASQ",
            f"-A {external} -j {service_chain}",
        ]
        for number, address in enumerate(places):
            endpoint = f"KUBE-SEP-{proto.upper()}{number:013}"
            chains.append(endpoint)
            chance = (
                f"-m statistic --mode random --probability {1 / (len(places) - number):.11f} "
                if number + 1 < len(places)
                else ""
            )
            target = f"[{address}]:8080" if ":" in address else f"{address}:8080"
            rules += [
                f"-A {service_chain} {chance}-j {endpoint}",
                f"-A {endpoint} -s {address}/{length} -j KUBE-MARK-MASQ",
                f"-A {endpoint} -p {proto} -m {proto} -j DNAT --to-destination {target}",
            ]
    nat = [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-PROXY-CANARY",
        *chains,
    ]
    return "\n".join(
        [
            "*mangle",
            ":KUBE-PROXY-CANARY - [0:0]",
            "COMMIT",
            "*filter",
            *(
                f":{chain} - [0:0]"
                for chain in (
                    "KUBE-SERVICES",
                    "KUBE-EXTERNAL-SERVICES",
                    "KUBE-FORWARD",
                    "KUBE-NODEPORTS",
                    "KUBE-PROXY-FIREWALL",
                    "KUBE-PROXY-CANARY",
                )
            ),
            (
                '-A INPUT -m comment --comment "kubernetes health check service ports" -j '
                "KUBE-NODEPORTS"
            ),
            "-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
            '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
            "-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
            "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES",
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "COMMIT",
            "*nat",
            *(f":{chain} - [0:0]" for chain in nat),
            '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            (
                '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j '
                "KUBE-POSTROUTING"
            ),
            *rules,
            "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
            "COMMIT",
            "",
        ]
    )


def program(family: Family, backend: str, verb: str) -> str:
    return f"ip{'6' if family is Family.IPv6 else ''}tables-{backend}-{verb}"


def restore(family: Family, backend: str, rules: str) -> None:
    subprocess.run(
        [program(family, backend, "restore"), "--noflush"],
        input=rules,
        text=True,
        check=True,
        capture_output=True,
    )


def saved(family: Family, backend: str) -> list[str]:
    """All rules and chains, without times and counters."""
    done = subprocess.run(
        [program(family, backend, "save")], text=True, check=True, capture_output=True
    )
    return [
        re.sub(r" \[\d+:\d+\]$", "", line)
        for line in done.stdout.splitlines()
        if not line.startswith("#")
    ]


@pytest.fixture
def node() -> Iterator[None]:
    """An empty network namespace, in which the test lives."""
    name = unique_name()
    namespace.create(name)
    try:
        with namespace.enter(name):
            yield
    finally:
        namespace.delete(name)


@pytest.fixture
def kernel(node: None) -> Iterator[Kernel]:  # noqa: ARG001
    with Kernel() as kernel:
        yield kernel


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(lab={"nodes": 1, "pods": 3}) as world:
        yield world


class Load:
    """Clients that connect without a pause, and what became of it."""

    def __init__(self, world: World, family: Family) -> None:
        self.outcomes: list[Outcome] = []
        self._world, self._stop = world, threading.Event()
        node = world.address("node1", family)
        ways = [
            (where, address, port, protocol)
            for where, address, port in (
                ("pod1-3", CLUSTER_IP[family], 80),
                ("node1", CLUSTER_IP[family], 80),
                ("client", node, 30080),
            )
            for protocol in ("TCP", "UDP")
        ]
        self._thread = threading.Thread(target=self._run, args=(ways,))

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, more: int = 60) -> None:
        """Let it go on for some more connections."""
        wanted = len(self.outcomes) + more
        while len(self.outcomes) < wanted:
            assert self._thread.is_alive()
            self._thread.join(0.005)

    def _run(self, ways: list[tuple[str, str, int, str]]) -> None:
        while not self._stop.is_set():
            self.outcomes += [self._world.connect(*way) for way in ways]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.contract("5.12.1", "5.12.2", "5.12.4")
def test_over_and_back_under_load_without_a_failed_connection(
    world: World, family: Family, backend: str
) -> None:
    ports = [
        {"name": p, "protocol": p.upper(), "port": 80, "nodePort": 30080} for p in ("tcp", "udp")
    ]
    web = service(cluster_ip=CLUSTER_IP[family], ports=ports, type="NodePort")
    slice_ports = [{"name": p, "protocol": p.upper(), "port": 8080} for p in ("tcp", "udp")]
    endpoints = world.endpoints("pod1-1", "pod1-2", family=family, ports=slice_ports)
    rules = kube_proxy_rules(world, family, ["pod1-1", "pod1-2"])
    table = world.start("node1")
    with world.lab.enter("node1"):
        restore(family, backend, KUBELET_AND_FOREIGN)
        before = saved(family, backend)
        restore(family, backend, rules)
        with_kube_proxy = saved(family, backend)
    try:
        with Load(world, family) as load:
            for _ in range(ROUNDS):
                for item in (web, endpoints):
                    table.store.put(item)
                for syncer in table.syncers.values():
                    syncer.distrust()
                world.sync()
                with world.lab.enter("node1"):
                    found, problems = take_over(table.kernel)
                    assert (bool(found), problems) == (True, [])
                    assert saved(family, backend) == before, (
                        "kubelet's chains and all foreign rules, byte for byte"
                    )
                    assert not leftovers(), "idempotent"
                load.wait(30)
                assert sum(world.counters("node1", f"endpoints{family.digit}-tcp").values()) > 5, (
                    "now it is our table that serves"
                )

                with world.lab.enter("node1"):
                    restore(family, backend, rules)
                    assert table.kernel.delete_table()
                    assert saved(family, backend) == with_kube_proxy
                load.wait(30)
        assert not [outcome for outcome in load.outcomes if not isinstance(outcome, Answer)]
        assert {o.name for o in load.outcomes if isinstance(o, Answer)} == {"pod1-1", "pod1-2"}
    finally:
        with world.lab.enter("node1"):
            table.kernel.delete_table()
            take_over(table.kernel)
            restore(
                family,
                backend,
                "".join(f"*{t}\n-F\n-X\nCOMMIT\n" for t in ("mangle", "filter", "nat")),
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.contract("5.12.1")
class TestIptables:
    def test_every_chain_and_jump_of_both_modes(self, kernel: Kernel, backend: str) -> None:
        nat = [
            "KUBE-SERVICES",
            "KUBE-SVC-A",
            "KUBE-SVL-A",
            "KUBE-FW-A",
            "KUBE-EXT-A",
            "KUBE-SEP-A",
            "KUBE-LOAD-BALANCER",
            "KUBE-NODE-PORT",
        ]
        filters = [
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
            "KUBE-PROXY-FIREWALL",
        ]
        lines = [
            "*nat",
            *(f":{c} - [0:0]" for c in nat),
            "-A KUBE-SERVICES -j KUBE-SVC-A",
            "-A KUBE-SVC-A -j KUBE-SEP-A",
        ]
        lines += [
            f"-A {chain} -j KUBE-SERVICES" for chain in ("PREROUTING", "OUTPUT", "POSTROUTING")
        ]
        lines += ["COMMIT", "*filter", *(f":{c} - [0:0]" for c in filters)]
        lines += [f"-A {chain} -g KUBE-IPVS-FILTER" for chain in ("INPUT", "FORWARD", "OUTPUT")]
        for family in Family:
            restore(family, backend, "\n".join([*lines, "COMMIT", ""]))
        found = leftovers()
        assert sorted(
            (r.program, r.table, len(r.jumps), sorted(r.chains)) for r in found.rules
        ) == sorted(
            (program(family, backend, "").removesuffix("-"), table, 3, sorted(chains))
            for family in Family
            for table, chains in (("nat", nat), ("filter", filters))
        )
        assert remove(found, kernel) == []
        for family in Family:
            assert not [line for line in saved(family, backend) if "KUBE" in line]
        assert leftovers() == Leftovers()

    @pytest.mark.contract("5.12.2")
    def test_chains_that_foreign_rules_use(self, kernel: Kernel, backend: str) -> None:
        """The marking chain stays as it is, others stay but do nothing.

        The foreign rules are as they were.
        """
        theirs = [
            "-A MINE -p tcp -m tcp --dport 4712 -j KUBE-MARK-MASQ",
            "-A MINE -j KUBE-SERVICES",
        ]
        marks = "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"
        restore(
            Family.IPv4,
            backend,
            "\n".join(
                [
                    *(
                        "*nat",
                        ":MINE - [0:0]",
                        ":KUBE-SERVICES - [0:0]",
                        ":KUBE-MARK-MASQ - [0:0]",
                        ":KUBE-SVC-A - [0:0]",
                    ),
                    *("-A PREROUTING -j MINE", "-A OUTPUT -j KUBE-SERVICES", *theirs, marks),
                    *(
                        "-A KUBE-SERVICES -j KUBE-SVC-A",
                        "-A KUBE-SVC-A -j KUBE-MARK-MASQ",
                        "COMMIT",
                        "",
                    ),
                ]
            ),
        )
        found = leftovers()
        assert (found.rules[0].chains, found.rules[0].emptied) == (
            ("KUBE-SVC-A",),
            ("KUBE-SERVICES",),
        )
        assert remove(found, kernel) == []
        rules = [line for line in saved(Family.IPv4, backend) if line.startswith("-A")]
        assert sorted(rules) == sorted(["-A PREROUTING -j MINE", *theirs, marks])
        assert not leftovers()

    def test_a_table_that_changed_meanwhile_is_read_again(
        self, kernel: Kernel, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restore(Family.IPv4, backend, "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SEP-A - [0:0]\nCOMMIT\n")
        stale = leftovers()
        restore(
            Family.IPv4, backend, "*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j KUBE-SEP-A\nCOMMIT\n"
        )
        assert len(remove(stale, kernel)) == 1
        assert "KUBE-SERVICES" in "".join(saved(Family.IPv4, backend)), (
            "one transaction: all or nothing"
        )

        once = iter([stale])
        monkeypatch.setattr(takeover, "leftovers", lambda: next(once, None) or leftovers())
        _, problems = take_over(kernel)
        assert problems == []
        assert not leftovers()

    def test_policies_that_drop_are_named(self, node: None, backend: str) -> None:  # noqa: ARG002
        assert dropping_chains() == []
        restore(
            Family.IPv4,
            backend,
            "*filter\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n*raw\n:PREROUTING DROP "
            "[0:0]\nCOMMIT\n",
        )
        restore(
            Family.IPv6,
            backend,
            "*filter\n:INPUT DROP [0:0]\nCOMMIT\n*mangle\n:POSTROUTING DROP [0:0]\nCOMMIT\n",
        )
        ip, ip6 = ("iptables-legacy", "ip6tables-legacy") if backend == "legacy" else ("ip", "ip6")
        assert set(dropping_chains()) == {
            (f"{ip} filter", "FORWARD", "forward"),
            (f"{ip} filter", "OUTPUT", "output"),
            (f"{ip} raw", "PREROUTING", "prerouting"),
            (f"{ip6} filter", "INPUT", "input"),
            (f"{ip6} mangle", "POSTROUTING", "postrouting"),
        }


@pytest.mark.contract("9.8")
def test_nftables_policies_that_drop_are_named(kernel: Kernel) -> None:
    kernel.library.run(
        """
        table inet firewall {
            chain in { type filter hook input priority 0; policy drop; }
            chain on { type filter hook forward priority 10; policy drop; }
            chain out { type filter hook output priority 0; policy drop; }
            chain pre { type filter hook prerouting priority 0; policy drop; }
            chain post { type filter hook postrouting priority 0; policy drop; }
            chain open { type filter hook forward priority 0; policy accept; }
            chain plain { }
        }
        table netdev card {
            chain arriving { type filter hook ingress device lo priority 0; policy drop; }
            chain fine { type filter hook ingress device lo priority 1; policy accept; }
        }
        table bridge ports { chain crossing { type filter hook forward priority 0; policy drop; }
        }
        table inet nftproxy { chain c { type filter hook input priority 0; policy drop; }
        }
        """
    )
    found = {tuple(chain): chain.needed for chain in dropping_chains()}
    assert found.keys() == {
        ("inet firewall", "in", "input"),
        ("inet firewall", "on", "forward"),
        ("inet firewall", "out", "output"),
        ("inet firewall", "pre", "prerouting"),
        ("inet firewall", "post", "postrouting"),
        ("netdev card", "arriving", "ingress"),
        ("bridge ports", "crossing", "forward"),
    }
    assert found["inet firewall", "on", "forward"] == "connections to and from pods"


@pytest.mark.contract("5.12.4")
def test_nftables_mode(kernel: Kernel) -> None:
    """Its tables go, with what is in them; nobody else's do, and missing ones are no error."""
    kernel.library.run(
        """
        table ip kube-proxy { chain services { type nat hook prerouting priority -100; }
        }
        table ip6 kube-proxy { map service-ips { type ipv6_addr : verdict; }
        }
        table inet kube-proxy { chain not-its { }
        }
        table ip mine { chain services { }
        }
        """
    )
    found = leftovers()
    assert found == Leftovers(tables=(("ip", "kube-proxy"), ("ip6", "kube-proxy")))
    assert remove(found, kernel) == []
    assert remove(found, kernel) == [], "what is gone already is no problem"
    assert not leftovers()
    with closing(Reader()) as reader:
        assert reader.table_exists("kube-proxy", "inet")
        assert reader.table_exists("mine", "ip")


@pytest.mark.contract("5.12.1")
def test_interface_and_ip_sets_of_ipvs_mode(kernel: Kernel) -> None:
    for name in (
        "kube-ipvs0",
        "kube-other",
    ):  # a bridge will do: not every kernel has dummy interfaces
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    with IPSet() as sets:
        for name in ("KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-SRC-NETWORKPOLICY", "mine"):
            sets.create(name, "hash:ip,port")
    restore(
        Family.IPv4,
        "legacy",
        "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP "
        "dst,dst -j ACCEPT\nCOMMIT\n",
    )
    found = leftovers()
    assert found.interface
    assert found.ipsets == ("KUBE-6-CLUSTER-IP", "KUBE-CLUSTER-IP")
    assert remove(found, kernel) == [], "the rule that uses the set goes before the set"
    assert remove(replace(found, rules=()), kernel) == [], "what is gone already is no problem"
    assert not leftovers()
    with IPSet() as sets:
        assert {item.get_attr("IPSET_ATTR_SETNAME") for item in sets.list()} == {
            "KUBE-SRC-NETWORKPOLICY",
            "mine",
        }
    assert (
        subprocess.run(
            ["ip", "link", "show", "kube-other"], check=False, capture_output=True
        ).returncode
        == 0
    )


def has_ipvs() -> bool:
    """Whether the kernel has IPVS or can load it.

    Debian's kernels, which `make` targets boot, can.
    """
    if not Path("/proc/net/ip_vs").exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "ip_vs_rr"], check=False, capture_output=True)
    return Path("/proc/net/ip_vs").exists()


@pytest.mark.skipif(
    not has_ipvs(), reason="this kernel has no IPVS; those that tests/tools/versions boots have"
)
@pytest.mark.contract("5.12.1")
def test_virtual_services_of_ipvs_mode(kernel: Kernel) -> None:
    """All of them go if kube-proxy's interface is there; without it they are somebody else's."""
    with IPVS() as netlink:
        for address, protocol in (("10.96.0.10", 6), ("10.96.0.10", 17), ("fd00:10:96::10", 6)):
            # A prefix length, where pyroute2 writes an IPv4 address
            six = {"netmask": "128.0.0.0"} if ":" in address else {}
            netlink.service(
                "add", IPVSService(addr=address, port=80, protocol=protocol, sched_name="rr", **six)
            )
    assert not leftovers()
    subprocess.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"], check=True)
    found = leftovers()
    assert (found.virtual_services, found.interface) == (3, True)
    assert remove(found, kernel) == []
    assert not leftovers()
    with IPVS() as netlink:
        assert list(netlink.service("dump")) == []
    assert remove(found, kernel) == [], "what is gone already is no problem"


def test_a_set_in_use_is_reported(kernel: Kernel) -> None:
    with IPSet() as sets:
        sets.create("KUBE-LOOP-BACK", "hash:ip")
    restore(
        Family.IPv4,
        "nft",
        "*filter\n-A INPUT -m set --match-set KUBE-LOOP-BACK src -j ACCEPT\nCOMMIT\n",
    )
    _, problems = take_over(kernel)
    assert len(problems) == 1
    assert problems[0].startswith("IP set KUBE-LOOP-BACK: ")


@pytest.mark.contract("5.12.3")
def test_without_any_program(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    restore(Family.IPv4, "legacy", "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert take_over(kernel) == (Leftovers(), [])
    assert dropping_chains() == []


def test_where_the_backends_have_no_names_of_their_own(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    restore(
        Family.IPv4,
        "legacy",
        "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n*filter\n:INPUT DROP [0:0]\nCOMMIT\n",
    )
    real = shutil.which("xtables-legacy-multi")
    assert real
    for verb in ("save", "restore"):
        (tmp_path / f"iptables-{verb}").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dropping_chains() == [("iptables filter", "INPUT", "input")]
    found, problems = take_over(kernel)
    assert [str(r) for r in found.rules] == [
        "iptables table nat: 0 jumps, 1 chains (KUBE-SERVICES)"
    ]
    assert problems == []
    assert not leftovers()


def test_a_program_that_fails_is_reported(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "iptables-nft-save"
    broken.write_text("#!/bin/sh\necho 'cannot do that' >&2\necho more >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found, problems = take_over(kernel)
    assert not found
    assert "iptables-nft: `iptables-nft-save` failed: cannot do that" in problems


class TestPlan:
    """The pure part."""

    def test_nothing_of_kube_proxys_is_nothing_to_do(self) -> None:
        assert [rules_left("iptables", table) for table in parse(KUBELET_AND_FOREIGN)] == [
            None,
            None,
            None,
        ]

    def test_many_services(self) -> None:
        names = [f"KUBE-SVC-{number}" for number in range(20000)]
        rules = [f"-A KUBE-SERVICES -j {name}" for name in names]
        [table] = parse(
            "\n".join(
                [
                    "*nat",
                    ":KUBE-SERVICES - [0:0]",
                    *(f":{name} - [0:0]" for name in names),
                    *rules,
                    "COMMIT",
                ]
            )
        )
        start = time.process_time()
        found = rules_left("iptables", table)
        assert found is not None
        assert len(found.chains) == 20001
        assert time.process_time() - start < 1, "linear: 20 ms"

    def test_the_input_of_restore(self) -> None:
        rules = LeftoverRules(
            "iptables-nft",
            "nat",
            ('-A OUTPUT -m comment --comment "a -A b" -j KUBE-SERVICES',),
            ("KUBE-SVC-A",),
            ("KUBE-SERVICES",),
        )
        assert rules.restore.splitlines() == [
            "*nat",
            '-D OUTPUT -m comment --comment "a -A b" -j KUBE-SERVICES',
            "-F KUBE-SVC-A",
            "-F KUBE-SERVICES",
            "-X KUBE-SVC-A",
            "COMMIT",
        ]

    def test_lines_for_people(self) -> None:
        found = Leftovers(
            rules=(
                LeftoverRules(
                    "iptables-nft",
                    "nat",
                    ("-A OUTPUT -j KUBE-SERVICES",),
                    tuple(f"KUBE-SVC-{n}" for n in range(9)),
                    ("KUBE-SERVICES",),
                ),
            ),
            tables=(("ip", "kube-proxy"),),
            virtual_services=3,
            interface=True,
            ipsets=("KUBE-CLUSTER-IP",),
        )
        assert list(found.lines()) == [
            (
                "iptables-nft table nat: 1 jumps, 9 chains (KUBE-SVC-0, KUBE-SVC-1, KUBE-SVC-2, "
                "...), 1 emptied (KUBE-SERVICES)"
            ),
            "nftables table ip kube-proxy",
            "3 IPVS virtual services",
            "interface kube-ipvs0",
            "1 IP sets (KUBE-CLUSTER-IP)",
        ]

    @pytest.mark.parametrize(
        ("policies", "named"),
        [("DROP", ["INPUT", "FORWARD", "OUTPUT"]), ("ACCEPT", ["OUTPUT"])],
    )
    def test_policies(self, policies: str, named: list[str]) -> None:
        [table] = parse(
            f"*filter\n:INPUT {policies} [0:0]\n:FORWARD {policies} [3:180]\n:OUTPUT DROP "
            "[0:0]\nCOMMIT\n"
        )
        assert dropping(table) == named

    def test_names_of_sets_fit_into_the_kernel(self) -> None:
        assert max(map(len, IPSETS)) == 31
        assert {"KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"} <= IPSETS
