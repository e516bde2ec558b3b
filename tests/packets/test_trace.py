"""`trace`: what it says of real connections, against what really happened to them."""

import socket
import subprocess
import time

import pytest

from nftproxy.address import Family
from nftproxy.lab.client import Answer, Refused, Silent
from nftproxy.lab.namespace import enter
from nftproxy.path.model import Outcome, Reach, Reply, Whose
from tests.support.frontends import Web, Wire, each_wire, masked
from tests.support.objects import endpoint, endpoint_slice, service_cidr
from tests.support.process import nftproxy
from tests.support.running import eventually
from tests.support.traced import Traced, marks, nft, rules, seen, step, stops, tables
from tests.support.world import World

SILENCE = 0.2
SOURCES = {"pod1-1": "pod", "node1": "node", "client": "outside"}
TCP4 = Wire(Family.IPv4, "TCP")
UDP4 = Wire(Family.IPv4, "UDP")


def place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def namespace_of(world: World, node: str = "node1") -> str:
    return world.lab.place(node).namespace


@each_wire
@pytest.mark.parametrize("where", SOURCES)
def test_an_answered_connection(world: World, where: str, wire: Wire) -> None:
    """From a pod, this node and outside: who was asked, who answered, and with which source."""
    web = Web(world)
    web.apply("pod1-2", "pod2-1")
    address, port, protocol = web.at("cluster", wire)
    answers: list[Answer] = []
    path = seen(
        namespace_of(world),
        f"default/{web.name}:{protocol.lower()}",
        lambda: answers.append(world.ask(where, address, port, protocol)),
    )
    (answer,) = answers
    endpoint = place(answer.address, answer.port)
    assert (path.target.address, path.target.protocol) == (address, protocol.lower())
    assert (path.target.kind, path.target.service) == (
        "ClusterIP",
        f"default/{web.name}:{protocol.lower()}",
    )
    assert (path.client.what, path.client.address) == (SOURCES[where], answer.client)
    assert path.reach is Reach.YES
    assert path.reply is not None
    assert (path.reply.what, path.reply.who) == ("answered", endpoint)
    assert 0 < (path.reply.milliseconds or 0) < 3000
    (used,) = path.candidates
    assert (used.address, used.port, used.share) == (answer.address, answer.port, 0.5)
    found = step(path, f"services{wire.family.digit}")
    assert found.looked_up == f"{address} . {protocol.lower()} . {port}"
    assert found.came_out == f"pick{wire.family.digit}-{protocol.lower()}-2: any of 2 endpoints"
    assert step(path, "endpoint").came_out == f"{endpoint}, one of 2"
    if where == "pod1-1":
        assert step(path, "source").came_out == f"stays {answer.source}: it is a pod's"
    else:
        masked_as = masked(world, "node1", answer.name, wire.family)
        assert step(path, "source").came_out == f"becomes {masked_as}: masqueraded"
        assert answer.source == masked_as
    assert not path.causes


@each_wire
def test_a_nodeport_from_outside(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod2-1")
    path = seen(
        namespace_of(world),
        str(web.node_port),
        lambda: world.ask("client", *web.at("nodeport", wire)),
        "--from",
        "outside",
    )
    protocol = wire.protocol.lower()
    assert (path.target.kind, path.reach) == ("NodePort", Reach.YES)
    found = step(path, f"nodeport_services{wire.family.digit}")
    assert found.looked_up == f"{protocol} . {web.node_port}"
    external = f"nodeport-external{wire.family.digit}-{protocol}-1"
    assert found.came_out == f"{external}: the only endpoint, masqueraded"
    via = world.address("node2", wire.family)
    assert step(path, "route").came_out == f"via {via} dev eth0"


def test_an_endpoint_of_this_node_itself(world: World) -> None:
    """The packet goes to a process here: by the hook input."""
    web = Web(world)
    world.lab.listen("node1", [8081])
    web.apply("node1", port=8081)
    for where in ("pod1-1", "node1"):
        path = seen(
            namespace_of(world),
            f"default/{web.name}",
            lambda where=where: world.ask(where, *web.at("cluster", TCP4)),  # type: ignore[misc]
        )
        assert path.reach is Reach.YES
        assert step(path, "route").came_out == "this node itself"


def test_affinity(world: World) -> None:
    web = Web(world)
    web.apply("pod1-2", "pod2-1", sessionAffinity="ClientIP")
    target = place(*web.at("cluster", TCP4)[:2])
    said = []
    for _ in range(2):
        path = seen(
            namespace_of(world), target, lambda: world.ask("pod1-1", *web.at("cluster", TCP4))
        )
        assert path.reach is Reach.YES
        said.append(step(path, "services4").came_out.partition(": ")[2])
    assert said == ["any of 2 endpoints", "the endpoint that this client had before"]


# ---- refused by us ----


@each_wire
def test_without_endpoints(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply()
    for where in SOURCES:
        path = seen(
            namespace_of(world),
            f"default/{web.name}:{wire.protocol.lower()}",
            lambda where=where: web.assert_refused(where, "cluster", wire),  # type: ignore[misc]
        )
        assert (path.reach, path.causes[0].code) == (Reach.NO, "no-endpoints")
        assert stops(path) == [f"no_endpoints{wire.family.digit}", "answer"]
        assert path.reply is not None
        assert (path.reply.what, path.reply.who) == ("refused", "this node")


def test_policy_local_without_an_endpoint_here(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1", externalTrafficPolicy="Local", internalTrafficPolicy="Local")
    path = seen(
        namespace_of(world),
        f"default/{web.name}:tcp",
        lambda: web.assert_dropped("client", "vip", TCP4),
    )
    assert [cause.code for cause in path.causes] == ["policy-local"]
    assert path.reply == Reply("silent")
    assert step(path, "services4").came_out == "preserve4-tcp-1: no endpoint for this client"
    assert "dropped" in step(path, "no_endpoints4").came_out


def test_unknown_port_and_unallocated_address(world: World) -> None:
    web = Web(world)
    world.apply(service_cidr("kubernetes", "10.96.0.0/16"))
    web.apply("pod1-2")
    address = web.address("cluster", Family.IPv4)
    path = seen(namespace_of(world), f"{address}:81", lambda: world.connect("pod1-1", address, 81))
    assert (path.causes[0].code, path.target.service) == ("wrong-port", "")
    assert "port 81/tcp" in path.causes[0].text
    path = seen(
        namespace_of(world),
        "10.96.77.77:81",
        lambda: world.connect("pod1-1", "10.96.77.77", 81, timeout=SILENCE),
    )
    assert path.causes[0].code == "unallocated"
    assert stops(path) == ["service_cidrs4"]


def test_source_ranges(world: World) -> None:
    web = Web(world)
    web.apply("pod1-2", loadBalancerSourceRanges=["198.51.100.0/24"])
    path = seen(
        namespace_of(world),
        f"default/{web.name}:tcp",
        lambda: world.connect("client", *web.at("vip", TCP4), timeout=SILENCE),
    )
    assert (stops(path), path.causes[0].code) == (["source ranges"], "source-range")
    web.apply("pod1-2", loadBalancerSourceRanges=["192.168.50.0/24"])
    path = seen(
        namespace_of(world),
        f"default/{web.name}:tcp",
        lambda: world.ask("client", *web.at("vip", TCP4)),
    )
    assert step(path, "source ranges").came_out == "the source is in a range"


# ---- tables of others ----

FIREWALL = """
table inet house {{
    chain first {{
        type filter hook prerouting priority -300
    }}
    chain forwarding {{
        type filter hook forward priority 10
        jump rooms
    }}
    chain rooms {{
        {rule}
    }}
}}
"""


@each_wire
@pytest.mark.parametrize("verb", ["drop", "reject"])
def test_a_rule_of_another_table(world: World, wire: Wire, verb: str) -> None:
    """Its text is shown, and the command that is proposed makes the Service answer."""
    web = Web(world)
    web.apply("pod2-1")
    where, frontend = namespace_of(world), web.at("cluster", wire)
    rule = f"meta l4proto {wire.protocol.lower()} th dport 8080 counter {verb}"
    with rules(where, FIREWALL.format(rule=rule), "inet house"):
        wanted = f"default/{web.name}:{wire.protocol.lower()}"
        patience = SILENCE if verb == "drop" else 5.0
        outcomes: list[object] = []
        path = seen(
            where,
            wanted,
            lambda: outcomes.append(world.connect("pod1-1", *frontend, timeout=patience)),
        )
        assert outcomes == [Silent() if verb == "drop" else Refused()]
        assert [each.looked_up for each in path.steps if each.rule] == [
            "inet house first",
            "inet house forwarding",
        ]
        stopped = step(path, "forward")
        assert stopped.rule is not None
        assert (stopped.outcome, stopped.rule.whose) == (Outcome.STOPPED, Whose.FOREIGN)
        assert stopped.rule.chain == "rooms"
        assert f"{wire.protocol.lower()} dport 8080 counter {verb}" in stopped.rule.text
        assert "counter packets 1" in nft(where, "list chain inet house rooms").replace(
            "packets 2", "packets 1"
        )
        (cause,) = path.causes
        assert cause.code == f"foreign-{verb}"
        assert stopped.rule.text in cause.text
        for command in cause.commands:
            with enter(where):
                subprocess.run(["/bin/sh", "-c", command], check=True)
        world.ask("pod1-1", *frontend)


@each_wire
def test_a_rule_before_connection_tracking(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod2-1")
    where, frontend = namespace_of(world), web.at("cluster", wire)
    chain = f"type filter hook prerouting priority -300; {wire.protocol.lower()} dport 80 drop"
    with rules(where, f"table inet early {{ chain raw {{ {chain}; }}; }}", "inet early"):
        path = seen(
            where,
            place(*frontend[:2]),
            lambda: world.connect("pod1-1", *frontend, timeout=SILENCE),
        )
    assert [each.name for each in path.steps] == ["prerouting", "answer"]
    assert f"{wire.protocol.lower()} dport 80 drop" in path.steps[0].details[0]


def test_a_policy(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    where = namespace_of(world)
    text = """table inet strict {
    chain everything {
        type filter hook output priority 5; policy drop;
        tcp dport != 8080 accept
    }
}"""
    with rules(where, text, "inet strict"):
        path = seen(
            where,
            f"default/{web.name}:tcp",
            lambda: world.connect("node1", *web.at("cluster", TCP4), timeout=SILENCE),
        )
    assert step(path, "output").came_out == "policy drops"
    assert "policy of chain everything" in path.causes[0].text


def test_another_table_translates_first(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    where, there = namespace_of(world), world.address("pod1-2")
    address = web.address("cluster", Family.IPv4)
    chain = (
        f"type nat hook prerouting priority -110; ip daddr {address} tcp dport 80 dnat to "
        f"{there}:9376"
    )
    with rules(where, f"table ip hostport {{ chain pre {{ {chain}; }}; }}", "ip hostport"):
        path = seen(
            where,
            f"default/{web.name}:tcp",
            lambda: world.ask("pod1-1", *web.at("cluster", TCP4)),
        )
    assert path.causes[0].code == "foreign-translation"
    assert step(path, "prerouting").came_out.startswith(f"sends it to {there}:9376 (handle ")
    assert path.reply is not None
    assert path.reply.who == f"{there}:9376"


def test_the_answer_is_dropped(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    where = namespace_of(world)
    chain = "type filter hook forward priority 20; ct direction reply drop"
    with rules(where, f"table inet oneway {{ chain back {{ {chain}; }}; }}", "inet oneway"):
        path = seen(
            where,
            f"default/{web.name}:tcp",
            lambda: world.connect("pod1-1", *web.at("cluster", TCP4), timeout=SILENCE),
        )
    assert stops(path) == ["answer, forward"]
    assert "does not get back" in path.causes[0].text
    assert "ct direction reply drop" in path.causes[0].text


# ---- the endpoint ----


@each_wire
def test_nothing_listens(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod2-1", port=8099)
    path = seen(
        namespace_of(world),
        f"default/{web.name}:{wire.protocol.lower()}",
        lambda: world.connect("pod1-1", *web.at("cluster", wire), timeout=5.0),
    )
    assert path.reach is Reach.NO
    who = world.address("pod2-1", wire.family)
    what = "RST" if wire.protocol == "TCP" else "ICMP port unreachable"
    assert step(path, "answer").came_out == f"{what} from {who}: nothing listens on 8099"
    assert path.causes[0].code == "endpoint-refuses"


@each_wire
def test_silence(world: World, wire: Wire) -> None:
    web = Web(world)
    web.apply("pod2-1")
    there = namespace_of(world, "pod2-1")
    chain = f"type filter hook input priority 0; {wire.protocol.lower()} dport 8080 drop"
    with rules(there, f"table inet mute {{ chain in {{ {chain}; }}; }}", "inet mute"):
        path = seen(
            namespace_of(world),
            f"default/{web.name}:{wire.protocol.lower()}",
            lambda: world.connect("pod1-1", *web.at("cluster", wire), timeout=SILENCE),
        )
    assert (path.reply, path.causes[0].code) == (Reply("silent"), "silent")
    assert step(path, "answer").came_out == "no answer in 3 s"


def test_nobody_is_there(world: World) -> None:
    """The neighbour does not exist: the packet leaves no interface."""
    web = Web(world)
    nobody = world.address("pod1-2").rpartition(".")[0] + ".99"
    piece = endpoint_slice(web.name, [endpoint(nobody, "node1")], port_name="tcp")
    world.apply(web.service(), piece)
    path = seen(
        namespace_of(world),
        f"default/{web.name}:tcp",
        lambda: world.connect("pod1-1", *web.at("cluster", TCP4), timeout=4.0),
    )
    assert path.reach is Reach.NO
    assert path.causes[0].code in {"neighbour", "unreachable"}


def test_the_answer_passes_this_node(world: World) -> None:
    """A bridge carries it past the hooks: seen on the bridge's port, with what mends it."""
    web = Web(world)
    web.apply("pod1-2")
    setting = "net.bridge.bridge-nf-call-iptables"
    if not world.lab.plan.shape.bridge_netfilter:
        pytest.skip("the kernel has no br_netfilter: a lab's bridges pass nothing by")
    world.lab.run("node1", ["sysctl", "-qw", f"{setting}=0"])
    try:
        path = seen(
            namespace_of(world),
            f"default/{web.name}:tcp",
            lambda: world.connect("pod1-1", *web.at("cluster", TCP4), timeout=2.5),
        )
    finally:
        world.lab.run("node1", ["sysctl", "-qw", f"{setting}=1"])
    who = f"{world.address('pod1-2')}:8080"
    assert path.reply == Reply("passed by", who)
    veth = next(pod.veth for pod in world.lab.pods if pod.name == "pod1-2")
    assert f"(seen on {veth})" in step(path, "answer").came_out
    assert f"sysctl -w {setting}=1" in path.causes[0].commands


def test_this_node_does_not_forward(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    world.lab.run("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    try:
        path = seen(
            namespace_of(world),
            f"default/{web.name}:tcp",
            lambda: world.connect("pod1-1", *web.at("cluster", TCP4), timeout=SILENCE),
        )
    finally:
        world.lab.run("node1", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    assert (stops(path), path.causes[0].code) == (["route"], "ip-forward")


# ---- which connections ----


def test_only_of_whom_is_asked_for(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    frontend = web.at("vip", TCP4)
    for wanted, expected in (
        ("pod", "pod1-1"),
        ("node", "node1"),
        ("outside", "client"),
        (world.address("pod1-2"), "pod1-2"),
    ):
        with Traced(
            namespace_of(world), f"default/{web.name}:tcp", "--from", wanted, "--timeout", "2s"
        ) as traced:
            for where in ("pod1-1", "node1", "client", "pod1-2"):
                if (wanted, where) != ("pod", "pod1-2"):
                    world.ask(where, *frontend)
            paths = traced.end()
        assert [path.client.address for path in paths] == [world.address(expected)]
        assert traced.code == 0


def test_a_flow_of_udp_that_was_there_before_is_not_new(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    found = world.lab.open_connection("pod1-1", *web.at("cluster", UDP4), timeout=5.0)
    assert not isinstance(found, Refused | Silent)
    with found, Traced(namespace_of(world), f"default/{web.name}:udp", "--timeout", "1s") as traced:  # type: ignore[union-attr]
        for _ in range(3):
            assert isinstance(found.again(), Answer)  # type: ignore[union-attr]
        assert traced.end() == []
    assert traced.code == 1
    assert "no new connection" in traced.said


def test_no_more_than_the_rate(world: World) -> None:
    """Thirty at once: as many are traced as the rate lets pass; all are answered."""
    web = Web(world)
    web.apply("pod2-1")
    arguments = ("--rate", "3", "--count", "100", "--timeout", "2s")
    with Traced(namespace_of(world), f"default/{web.name}:tcp", *arguments) as traced:
        started = time.monotonic()
        for _ in range(30):
            world.ask("pod1-1", *web.at("cluster", TCP4))
        took = time.monotonic() - started
        paths = traced.end()
    assert 1 <= len(paths) <= 3 + 3 * took + 1
    assert all(path.reach is Reach.YES for path in paths)


def test_the_node_makes_the_connection(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    with Traced(namespace_of(world), f"default/{web.name}", "--probe", "--count", "4") as traced:
        paths = traced.end()
    wires = {(path.target.protocol, ":" in path.target.address) for path in paths}
    assert len(paths) == 4
    assert wires <= {(protocol, six) for protocol in ("tcp", "udp") for six in (False, True)}
    assert {path.client.what for path in paths} == {"node"}
    assert traced.code == 0


def test_the_table_of_services_can_be_written_meanwhile(world: World) -> None:
    """Our own libnftables reads all sets of all tables before it writes."""
    web = Web(world)
    with Traced(namespace_of(world), "10.96.0.1:80", "--timeout", "5s") as traced:
        assert "flags owner" in nft(namespace_of(world), "list ruleset")
        web.apply("pod2-1")
        world.tables["node1"].distrust(program=True)
        world.sync()
        world.ask("pod1-1", *web.at("cluster", TCP4))
        assert traced.end() == []


# ---- what is left ----


def test_nothing_is_left_after_sigkill(world: World) -> None:
    """At twenty moments, from the start of the process to the middle of its work."""
    web = Web(world)
    web.apply("pod2-1")
    where, found = namespace_of(world), 0
    before = tables(where)
    with Traced(where, f"default/{web.name}", "--count", "100") as traced:
        begins = time.monotonic()
        traced.process.kill()
        traced.process.wait()
    eventually(lambda: tables(where) == before)
    del begins
    for moment in range(20):
        traced = Traced(where, f"default/{web.name}:tcp", "--probe", "--count", "100")
        if moment % 2:
            with traced:  # until the table is there, then a little later
                found += bool(marks(where))
                time.sleep(0.02 * moment)
        else:
            with enter(where):
                process = subprocess.Popen(traced._argv, stdout=-3, stderr=-3)
            time.sleep(0.06 * moment)
            process.kill()
            process.wait()
        eventually(lambda: tables(where) == before)
    assert found == 10
    world.ask("pod1-1", *web.at("cluster", TCP4))


@pytest.mark.parametrize("number", ["INT", "TERM"])
def test_nothing_is_left_after_an_interruption(world: World, number: str) -> None:
    import signal

    where = namespace_of(world)
    before = tables(where)
    with Traced(where, "10.96.0.1:80") as traced:
        assert len(tables(where)) == len(before) + 1
        traced.process.send_signal(getattr(signal, f"SIG{number}"))
        assert traced.end() == []
    assert traced.code == 130
    assert tables(where) == before


def test_without_net_raw(world: World) -> None:
    """It says what it could not look for."""
    web = Web(world)
    web.apply("pod2-1")
    there = namespace_of(world, "pod2-1")
    before = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    chain = "type filter hook input priority 0; tcp dport 8080 drop"
    arguments = ("--count", "1")
    with (
        rules(there, f"table inet mute {{ chain in {{ {chain}; }}; }}", "inet mute"),
        Traced(namespace_of(world), f"default/{web.name}:tcp", *arguments, before=before) as traced,
    ):
        world.connect("pod1-1", *web.at("cluster", TCP4), timeout=SILENCE)
        (path,) = traced.end()
    assert any("NET_RAW" in each for each in path.not_checked)


def test_the_text(world: World) -> None:
    web = Web(world)
    web.apply("pod2-1")
    done = nftproxy(
        "trace", f"default/{web.name}:tcp", "--probe", "--count", "1", where=namespace_of(world)
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"default/{web.name}:tcp  {web.address('cluster', Family.IPv4)}:80/tcp"
    )
    assert lines[-1] == "1 connection: 1 answered"
    assert all(len(line) <= 100 for line in lines)


def test_sctp_is_traced_where_the_kernel_has_it(world: World) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        pytest.skip("this kernel has no SCTP")
    web = Web(world, Wire(Family.IPv4, "SCTP"))
    web.apply("pod2-1")
    path = seen(
        namespace_of(world),
        f"default/{web.name}",
        lambda: world.connect("pod1-1", *web.at("cluster", Wire(Family.IPv4, "SCTP"))),
    )
    assert path.target.protocol == "sctp"
