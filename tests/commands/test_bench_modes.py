"""The modes that `nftproxy bench` compares.

Packets through each of them, so that no baseline wins or loses by being wrong.

Each mode runs on node1 of a lab; what one test leaves in it, the next one finds. What differs
between modes on purpose stands in `HIDES_CLIENTS`, and in test_local: the userspace mode never
showed endpoints who their client is, nor knew of external policies.
"""

import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.bench.modes import MODES, Load, Mode, ModePlace, iptables_rules, make, nft_rules
from nftproxy.bench.modes.served import node_addresses, pod_network, served
from nftproxy.bench.modes.uses import Uses
from nftproxy.bench.workload import Workload
from nftproxy.configuration.settings import ALL
from nftproxy.errors import NftproxyError
from nftproxy.lab.client import Answer, Refused, Silent, Unreachable
from nftproxy.lab.lab import Lab
from nftproxy.lab.namespace import enter
from nftproxy.lab.plan import SERVICE_CIDRS
from nftproxy.model import Service
from tests.support.objects import endpoint, endpoint_slice, service, service_cidr
from tests.support.world import SLOW, settings, unique_name

IPV4 = Family.IPv4
VIP = "203.0.113.10"
HIDES_CLIENTS = {"userspace"}
# Connections until all endpoints must have answered: of two, one in 10^19 runs has none of one
PATIENCE = 64
BY_CLIENT = {
    "nftproxy-source-hash",
    "nftproxy-maglev",
    "nftproxy-affinity",
}  # a client has one endpoint
MODE_NAMES = [name for name in MODES if name not in {"none", "floor", *BY_CLIENT}]


class Node:
    """A mode on node1, and connections through it."""

    def __init__(self, lab: Lab, mode: Mode) -> None:
        self.lab = lab
        self.mode = mode
        self.addresses = {lab.nodes[0].addresses[IPV4], lab.nodes[0].gateways[IPV4]}

    def load(self, item: Service, *pods: str, protocol: str = "TCP", port: int = 8080) -> Load:
        """A service with pods as its endpoints."""
        known = {pod.name: pod for pod in self.lab.pods}
        found = [endpoint(known[name].addresses[IPV4], known[name].node) for name in pods]
        return Load(
            item, (endpoint_slice(item.metadata.name, found, protocol=protocol, port=port),)
        )

    def answers(
        self,
        where: str,
        address: str,
        port: int,
        protocol: str = "TCP",
        *,
        until: Iterable[str] = (),
        times: int = 1,
    ) -> list[Answer]:
        """So many answers, or until all of some pods have answered."""
        wanted, found = set(until), []
        for _ in range(PATIENCE if wanted else times):
            outcome = self.lab.connect(where, address, port, protocol, timeout=2 * SLOW)
            assert isinstance(outcome, Answer), f"{where} -> {address}:{port}/{protocol}: {outcome}"
            found.append(outcome)
            wanted.discard(outcome.name)
            if until and not wanted:
                break
        assert not wanted, f"{wanted} never answered"
        return found

    def sources(self, answers: list[Answer]) -> set[str]:
        """Whom the endpoints saw, with `node` for any address of the node and `client` for whoever
        connected.
        """
        return {
            "node" if a.source in self.addresses else "client" if a.source == a.client else a.source
            for a in answers
        }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(unique_name(), nodes=2, pods=2, families=(IPV4,)) as lab:
        for cidr in (SERVICE_CIDRS[IPV4], f"{VIP}/32"):
            lab.route("client", cidr, "node1")
        yield lab


@pytest.fixture(scope="module", params=MODE_NAMES)
def node(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Node]:
    mode = make(request.param, place(lab))
    if reason := mode.unavailable():
        assert mode.name == "ipvs", reason
        assert not Path("/proc/net/ip_vs").exists(), reason
        # This kernel has no ip_vs; those of Debian have it: see tests.tools.versions.kernels
        pytest.skip(reason)
    node = Node(lab, mode)
    try:
        # Two services, so that the second is found although it is not the first.
        mode.start(
            [node.load(service("first", "10.96.0.9"), "pod2-2"), web(node, "pod1-1", "pod2-1")]
        )
        yield node
    finally:
        processes = mode.processes()
        mode.stop()
    assert leftovers(lab) == ""
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def place(lab: Lab) -> ModePlace:
    chosen = settings("node1", lab.nodes[0].addresses, families=(IPV4,))
    return ModePlace(
        lab.nodes[0].namespace, chosen, service_cidr("kubernetes", SERVICE_CIDRS[IPV4])
    )


def leftovers(lab: Lab) -> str:
    """What a mode that was stopped left in node1; empty built-in chains stay with iptables."""
    commands = ("nft list tables", "iptables-legacy-save", "iptables-nft-save", "ip -o link")
    with enter(lab.nodes[0].namespace):
        said = [
            subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
            for command in commands
        ]
    return "\n".join(
        line for line in "".join(said).splitlines() if "kube" in line.lower() or "nftproxy" in line
    )


def web(node: Node, *pods: str) -> Load:
    return node.load(service("web", node_port=30080), *pods)


def elsewhere(node: Node, name: str) -> str:
    return "node" if node.mode.name in HIDES_CLIENTS else name


def test_none_is_the_way_without_a_proxy(lab: Lab) -> None:
    mode = make("none", place(lab))
    node = Node(lab, mode)
    mode.start([web(node, "pod2-1")])
    answers = node.answers("pod1-1", lab.place("pod2-1").addresses[IPV4], 8080)
    assert node.sources(answers) == {"client"}
    assert not isinstance(lab.connect("pod1-1", "10.96.0.10", 80, timeout=0.3 * SLOW), Answer)
    mode.stop()


def test_floor_is_one_rule_to_one_endpoint(lab: Lab) -> None:
    mode = make("floor", place(lab))
    node = Node(lab, mode)
    try:
        mode.start([web(node, "pod2-1", "pod1-2")])
        answers = node.answers("pod1-1", "10.96.0.10", 80, times=PATIENCE)
        assert len({answer.name for answer in answers}) == 1
        rules = lab.run("node1", ["nft", "list", "ruleset"]).stdout
        assert rules.count("chain ") == rules.count("dnat to ") == 1
    finally:
        mode.stop()
    assert not lab.run("node1", ["nft", "list", "ruleset"]).stdout


def test_a_large_cluster_is_not_tidied_by_an_update(lab: Lab) -> None:
    """More than 1000 endpoints.

    The iptables mode lists nothing then, and a restart finds what is left over.
    """
    mode = make("iptables", place(lab))
    workload = Workload(400)
    load = [Load(workload.service(number), (workload.slice(number),)) for number in range(400)]
    try:
        mode.start(load)
        assert mode.update(deleted=[load.pop()]).commands == 1
        assert own_chains(lab) == 400 * 4
        mode.restart(load)
        assert own_chains(lab) == 399 * 4
    finally:
        mode.stop()


def own_chains(lab: Lab) -> int:
    with enter(lab.nodes[0].namespace):
        saved = subprocess.run(
            ["iptables-legacy-save", "-t", "nat"], capture_output=True, text=True, check=True
        ).stdout
    return sum(line.startswith((":KUBE-SVC-", ":KUBE-SEP-")) for line in saved.splitlines())


@pytest.mark.parametrize(
    ("where", "address", "port", "source"),
    [
        pytest.param("pod1-2", "10.96.0.10", 80, "client", id="pod-ClusterIP"),
        pytest.param("client", "10.96.0.10", 80, "node", id="client-ClusterIP"),
        pytest.param("node1", "10.96.0.10", 80, "node", id="node-ClusterIP"),
        pytest.param("client", "192.168.50.11", 30080, "node", id="client-NodePort"),
        pytest.param("pod1-2", "192.168.50.11", 30080, "node", id="pod-NodePort"),
        pytest.param("node1", "192.168.50.11", 30080, "node", id="node-NodePort"),
    ],
)
def test_both_endpoints_answer_and_see(
    node: Node, where: str, address: str, port: int, source: str
) -> None:
    answers = node.answers(where, address, port, until=("pod1-1", "pod2-1"))
    assert {a.name for a in answers} == {"pod1-1", "pod2-1"}
    assert node.sources(answers) == {elsewhere(node, source)}


def test_a_pod_reaches_itself(node: Node) -> None:
    answers = node.answers("pod1-1", "10.96.0.10", 80, until=("pod1-1",))
    assert node.sources([a for a in answers if a.name == "pod1-1"]) == {"node"}


def test_datagrams(node: Node) -> None:
    dns = node.load(
        service("dns", "10.96.0.53", 53, protocol="UDP"), "pod1-1", "pod2-1", protocol="UDP"
    )
    node.mode.update(put=[dns])
    answers = node.answers("pod1-2", "10.96.0.53", 53, "UDP", until=("pod1-1", "pod2-1"))
    assert node.sources(answers) == {elsewhere(node, "client")}
    node.mode.update(deleted=[dns])


def test_an_endpoint_changes(node: Node) -> None:
    node.mode.update(put=[web(node, "pod1-1", "pod2-2")])
    names = {a.name for a in node.answers("pod1-2", "10.96.0.10", 80, until=("pod1-1", "pod2-2"))}
    node.mode.update(put=[web(node, "pod2-1")])
    names_after = {a.name for a in node.answers("client", "192.168.50.11", 30080, times=8)}
    node.mode.update(put=[web(node, "pod1-1", "pod2-1")])
    assert (names, names_after) == ({"pod1-1", "pod2-2"}, {"pod2-1"})


def test_a_service_comes_and_goes(node: Node) -> None:
    new = node.load(service("new", "10.96.0.11", node_port=30081), "pod2-1")
    for _ in range(2):  # the same names come back
        node.mode.update(put=[new])
        node.answers("pod1-2", "10.96.0.11", 80)
        node.answers("client", "192.168.50.11", 30081)
        node.mode.update(deleted=[new])
        for where, address, port in (
            ("pod1-2", "10.96.0.11", 80),
            ("client", "192.168.50.11", 30081),
        ):
            assert not isinstance(
                node.lab.connect(where, address, port, timeout=0.3 * SLOW), Answer
            )
    node.answers("pod1-2", "10.96.0.10", 80)


def test_local(node: Node) -> None:
    item = service(
        "local", "10.96.0.12", node_port=30082, vips=[VIP], externalTrafficPolicy="Local"
    )
    balanced = node.load(item, "pod1-1", "pod2-1")
    node.mode.update(put=[balanced])
    if node.mode.name == "userspace":
        node.answers("client", VIP, 80, until=("pod1-1", "pod2-1"))
    else:
        for address, port in ((VIP, 80), ("192.168.50.11", 30082)):
            answers = node.answers("client", address, port, times=8)
            assert {a.name for a in answers} == {"pod1-1"}
            assert node.sources(answers) == {"client"}
    node.answers("pod1-2", "10.96.0.12", 80, until=("pod1-1", "pod2-1"))
    node.mode.update(deleted=[balanced])


def test_affinity(node: Node) -> None:
    sticky = node.load(
        service("sticky", "10.96.0.13", sessionAffinity="ClientIP"), "pod1-1", "pod2-1", "pod2-2"
    )
    node.mode.update(put=[sticky])
    assert len({a.name for a in node.answers("pod1-2", "10.96.0.13", 80, times=16)}) == 1
    node.mode.update(deleted=[sticky])


NOBODY: dict[str, type | tuple[type, ...]] = {
    "userspace": Unreachable,
    "ipvs": (Refused, Silent, Unreachable),
}
"""What a client sees where nobody answers, in modes that do not refuse.

The forwarder has accepted, and resets.
"""


def test_nobody_there(node: Node) -> None:
    empty = node.load(service("empty", "10.96.0.14"))
    node.mode.update(put=[empty])
    outcome = node.lab.connect("pod1-2", "10.96.0.14", 80, timeout=2 * SLOW)
    assert isinstance(outcome, NOBODY.get(node.mode.name, Refused))
    node.mode.update(put=[node.load(service("empty", "10.96.0.14"), "pod2-1")])
    node.answers("pod1-2", "10.96.0.14", 80)
    node.mode.update(deleted=[empty])


def test_restart(node: Node) -> None:
    """A new process drops what went while nobody ran, and knows what it took over."""
    gone = node.load(service("gone", "10.96.0.15"), "pod2-1")
    node.mode.update(put=[gone])
    node.mode.restart([web(node, "pod1-1", "pod2-1")])
    node.answers("pod1-2", "10.96.0.10", 80, until=("pod1-1", "pod2-1"))
    assert not isinstance(node.lab.connect("pod1-2", "10.96.0.15", 80, timeout=0.3 * SLOW), Answer)
    node.mode.update(put=[web(node, "pod2-2")])
    assert {a.name for a in node.answers("client", "192.168.50.11", 30080, times=8)} == {"pod2-2"}
    node.mode.update(put=[web(node, "pod1-1", "pod2-1")])


STICKY = service(
    "web", vips=[VIP], node_port=30080, externalTrafficPolicy="Local", sessionAffinity="ClientIP"
)
NAMES = {
    "CDGGSHYLG3RE2FKL": "WEB",
    "UIQK3OSOSTRHRPBX": "ONE",
    "4EX2N4PG4ASNZOBF": "TWO",
    "SUSTUHLJ-default/web/tcp/http": "WEB",
    "SVLGPL42-default/web/tcp/http__10.244.1.2/8080": "ONE",
    "AAOQDDFY-default/web/tcp/http__10.244.2.2/8080": "TWO",
}
LAYOUTS = {
    "iptables": """\
KUBE-SERVICES "default/web:http cluster IP" -m tcp -p tcp -d 10.96.0.10 --dport 80 -j KUBE-SVC-WEB
KUBE-SERVICES "default/web:http loadbalancer IP" -m tcp -p tcp -d 203.0.113.10 --dport 80 -j KUBE-EXT-WEB
KUBE-NODEPORTS default/web:http -m tcp -p tcp -d 127.0.0.0/8 --dport 30080 -j KUBE-EXT-WEB
KUBE-NODEPORTS default/web:http -m tcp -p tcp --dport 30080 -j KUBE-EXT-WEB
KUBE-EXT-WEB "pod traffic for default/web:http external destinations" -s 10.244.0.0/16 -j KUBE-SVC-WEB
KUBE-EXT-WEB "masquerade LOCAL traffic for default/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
KUBE-EXT-WEB "route LOCAL traffic for default/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-WEB
KUBE-EXT-WEB -j KUBE-SVL-WEB
KUBE-SVC-WEB "default/web:http cluster IP" -m tcp -p tcp -d 10.96.0.10 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
KUBE-SVC-WEB "default/web:http -> 10.244.1.2:8080" -m recent --name KUBE-SEP-ONE --rcheck --seconds 10800 --reap -j KUBE-SEP-ONE
KUBE-SVC-WEB "default/web:http -> 10.244.2.2:8080" -m recent --name KUBE-SEP-TWO --rcheck --seconds 10800 --reap -j KUBE-SEP-TWO
KUBE-SVC-WEB "default/web:http -> 10.244.1.2:8080" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-ONE
KUBE-SVC-WEB "default/web:http -> 10.244.2.2:8080" -j KUBE-SEP-TWO
KUBE-SVL-WEB "default/web:http -> 10.244.1.2:8080" -m recent --name KUBE-SEP-ONE --rcheck --seconds 10800 --reap -j KUBE-SEP-ONE
KUBE-SVL-WEB "default/web:http -> 10.244.1.2:8080" -j KUBE-SEP-ONE
KUBE-SEP-ONE default/web:http -s 10.244.1.2 -j KUBE-MARK-MASQ
KUBE-SEP-ONE default/web:http -m recent --name KUBE-SEP-ONE --set -m tcp -p tcp -j DNAT --to-destination 10.244.1.2:8080
KUBE-SEP-TWO default/web:http -s 10.244.2.2 -j KUBE-MARK-MASQ
KUBE-SEP-TWO default/web:http -m recent --name KUBE-SEP-TWO --set -m tcp -p tcp -j DNAT --to-destination 10.244.2.2:8080
""",
    "iptables, large cluster": """\
KUBE-SERVICES "default/web:http cluster IP" -m tcp -p tcp -d 10.96.0.10 --dport 80 -j KUBE-SVC-WEB
KUBE-SVC-WEB "default/web:http cluster IP" -m tcp -p tcp -d 10.96.0.10 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
KUBE-SVC-WEB -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-ONE
KUBE-SVC-WEB -j KUBE-SEP-TWO
KUBE-SEP-ONE -s 10.244.1.2 -j KUBE-MARK-MASQ
KUBE-SEP-ONE -m tcp -p tcp -j DNAT --to-destination 10.244.1.2:8080
KUBE-SEP-TWO -s 10.244.2.2 -j KUBE-MARK-MASQ
KUBE-SEP-TWO -m tcp -p tcp -j DNAT --to-destination 10.244.2.2:8080
""",
    "nftables": """\
add element hairpin-connections { 10.244.1.2 . 10.244.1.2 . tcp . 8080 }
add element cluster-ips { 10.96.0.10 }
add element service-ips { 10.96.0.10 . tcp . 80 : goto service-WEB }
add element service-ips { 203.0.113.10 . tcp . 80 : goto external-WEB }
add element service-nodeports { tcp . 30080 : goto external-WEB }
endpoint-ONE update @affinity-ONE { ip saddr }
endpoint-ONE meta l4proto tcp dnat to 10.244.1.2:8080
endpoint-TWO update @affinity-TWO { ip saddr }
endpoint-TWO meta l4proto tcp dnat to 10.244.2.2:8080
service-WEB ip saddr @affinity-ONE goto endpoint-ONE
service-WEB ip saddr @affinity-TWO goto endpoint-TWO
service-WEB numgen random mod 2 vmap { 0 : goto endpoint-ONE , 1 : goto endpoint-TWO }
local-WEB ip saddr @affinity-ONE goto endpoint-ONE
local-WEB numgen random mod 1 vmap { 0 : goto endpoint-ONE }
external-WEB ip saddr 10.244.0.0/16 goto service-WEB comment "short-circuit pod traffic"
external-WEB fib saddr type local mark set mark or 0x00004000 comment "masquerade local traffic"
external-WEB fib saddr type local goto service-WEB comment "short-circuit local traffic"
external-WEB goto local-WEB
""",
    "nftables, large cluster": """\
add element hairpin-connections { 10.244.1.2 . 10.244.1.2 . tcp . 8080 }
add element cluster-ips { 10.96.0.10 }
add element service-ips { 10.96.0.10 . tcp . 80 : goto service-WEB }
service-WEB meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080 , 1 : 10.244.2.2 . 8080 }
""",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    """What the originals write for such services, seen from outside.

    Names are shortened, in iptables the word for a comment too.
    """
    large = "large" in layout  # there a plain service
    found = [endpoint("10.244.1.2", "node1"), endpoint("10.244.2.2", "node2")]
    load = Load(service("web") if large else STICKY, (endpoint_slice("web", found),))
    ports = served(load, settings(families=(IPV4,)))
    if layout.startswith("iptables"):
        rules = iptables_rules.render(ports, "10.244.0.0/16", comments=not large)
        lines = [*rules.filter, *rules.dispatch, *chain.from_iterable(rules.chains.values())]
    else:
        nft = nft_rules.render(ports, "10.244.0.0/16")
        lines = [
            *(element.added for element in nft.elements),
            *chain.from_iterable(nft.chains.values()),
        ]
    text = "".join(f"{line}\n" for line in lines)
    for name, short in {
        **NAMES,
        "add rule ip kube-proxy ": "",
        "ip kube-proxy ": "",
        "-m comment --comment ": "",
    }.items():
        text = text.replace(name, short)
    assert text == LAYOUTS[layout]


def test_what_several_services_share() -> None:
    uses: Uses[str] = Uses()
    assert uses.exchange(["a", "b", "a"], []) == (["a", "b"], [])
    assert uses.exchange(["c"], ["a", "b"]) == (["c"], ["b"])
    assert uses.exchange(["a"], ["a"]) == ([], [])
    assert uses.exchange([], ["a", "c"]) == ([], ["a", "c"])


@pytest.mark.parametrize("name", sorted(BY_CLIENT))
def test_a_client_keeps_its_endpoint(lab: Lab, name: str) -> None:
    """Also after a change that removes another endpoint."""
    mode = make(name, place(lab))
    node = Node(lab, mode)
    pods = ["pod1-1", "pod1-2", "pod2-1", "pod2-2"]
    try:
        mode.start([web(node, *pods)])
        answered = {each.name for each in node.answers("client", "10.96.0.10", 80, times=24)}
        assert len(answered) == 1
        other = next(name for name in pods if name not in answered)
        mode.update(put=[web(node, *answered, other)])
        after = {each.name for each in node.answers("client", "10.96.0.10", 80, times=24)}
        assert len(after) == 1
        if name != "nftproxy-source-hash":
            assert after == answered
    finally:
        mode.stop()


COMMANDS = {  # programs that one changed endpoint costs; a mode without programs has none
    "nftproxy": {0},
    "nftproxy-netlink": {0},
    "iptables-legacy": {2},  # save, restore
    "iptables-nft": {2},
    "kube-proxy-nftables": {
        2,
        3,
    },  # list, transaction; before them what fell out of use a second ago
    "ipvs": {3},  # list, servers, rules
    "userspace": {1},
}


def test_a_changed_endpoint_costs_what_the_original_spends(node: Node) -> None:
    work = node.mode.update(put=[web(node, "pod1-1", "pod2-2")])
    assert work.commands in COMMANDS[node.mode.name]
    assert (work.sent > 0, work.programs > 0) == (work.commands > 0,) * 2
    assert work.seconds == work.own + work.programs > 0
    node.mode.update(put=[web(node, "pod1-1", "pod2-1")])


REFUSED = {
    "source ranges": (service(loadBalancerSourceRanges=["10.0.0.0/8"], vips=[VIP]), {}),
    "masquerade all": (service(), {"masquerade_all": True}),
    "no detector": (service(), {"detector": None}),
    "NodePorts everywhere": (service(), {"nodeports": {IPV4: ALL}}),
}


@pytest.mark.parametrize(("item", "options"), REFUSED.values(), ids=REFUSED)
def test_no_baseline_does_less_in_silence(item: Service, options: dict[str, Any]) -> None:
    chosen = settings(families=(IPV4,), **options)
    with pytest.raises(NftproxyError, match="modes to compare with"):
        node_addresses(chosen), pod_network(chosen), served(Load(item, ()), chosen)


def test_unknown_mode(lab: Lab) -> None:
    with pytest.raises(NftproxyError, match="there is no mode 'magic'"):
        make("magic", place(lab))
