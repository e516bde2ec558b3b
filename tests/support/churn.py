"""Churn: clients connect without pause while everything around the services changes, up to a
hundred times a second.

A few *steady* services have a ready endpoint on each node the whole time. Whatever else happens, no
connection to one may be refused or lost, each must reach an endpoint that the service had at that
moment, and open connections must go on (contract 2.9.1). With --reset-gone-endpoints, which
restarts switch off and on, those to a pod that has left all slices may be cut, and no other. Every
steady service has endpoint ports of its own, so an answer tells whose endpoint it is. The clients
run in a process of their own (`python -m tests.support.churn`, orders on its input), so that they
and the changes really happen at once.
"""

import itertools
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nftproxy.address import Family
from nftproxy.configuration.settings import LocalDetector
from nftproxy.errors import NftproxyError
from nftproxy.lab.client import Connection, open_connection
from nftproxy.lab.plan import SERVICE_CIDRS
from nftproxy.model import EndpointSlice, Object, Service
from tests.support.objects import endpoint, endpoint_slice, node, service, service_cidr
from tests.support.world import CLUSTER, SLOW, World

STEADY = 4
PLACES = ("pod1-2", "pod2-2", "node1", "client")
ANCHORS = ("pod1-1", "pod2-1")
OTHERS = ("pod1-3", "pod2-3", "node2")
PATIENCE = 3.0 * SLOW
HELD = 8  # connections each client keeps open
LATE = 0.5 * SLOW  # seconds after which every table knows of a change


class Frontend(NamedTuple):
    """What a client connects to."""

    steady: int
    address: str
    port: int
    protocol: str


class Reached(NamedTuple):
    """A connection that was answered: when, of which service, by whom."""

    begin: float
    end: float
    steady: int
    address: str
    port: int


class Cut(NamedTuple):
    """An open connection that did not go on.

    When, of which service, to whom, and what is said about it.
    """

    moment: float
    steady: int
    address: str
    text: str


class Version(NamedTuple):
    """What endpoints a steady service had, from the moment it was told to the moment when the next
    version was in place.
    """

    begin: float
    end: float
    endpoints: frozenset[tuple[str, int]]


@dataclass
class Outcome:
    """What a churn showed."""

    changes: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    continued: int = 0  # how often an open connection was used again
    reset: int = 0  # open connections to a pod that had left all slices
    problems: list[str] = field(default_factory=list)


def churn(seconds: float, rate: float, seed: int, *, least: int = 0) -> Outcome:
    """Change things `rate` times a second for some time, with clients connecting all along.

    On a busy machine a change takes longer; so it goes on until there were `least` of them.
    """
    ports = sorted({port for number in range(STEADY + 1) for port in _target_ports(number)})
    with World(lab={"pods": 3, "ports": ports, "echo": "process"}, reset_gone=True) as world:
        world.lab.listen("node2", ports)
        cluster = _Cluster(world, random.Random(seed))
        cluster.begin()
        clients = _Clients(world)
        try:
            cluster.change_for(seconds, rate, least)
        finally:
            report = clients.stop()
    return _judge(cluster, report)


def _target_ports(number: int) -> tuple[int, int]:
    """Return the two ports that the endpoints of a steady service have in turn.

    The last pair is for the other services.
    """
    return 9000 + 10 * number, 9001 + 10 * number


def _judge(cluster: "_Cluster", report: dict[str, Any]) -> Outcome:
    outcome = Outcome(cluster.changes, len(report["reached"]), report["continued"])
    cuts = [Cut(*each) for each in report["cuts"]]
    live = [cut for cut in cuts if not cluster.may_cut(cut)]
    outcome.reset = len(cuts) - len(live)
    problems = [(cut.moment, cut.text) for cut in live]
    for moment, text in (*cluster.problems, *report["problems"], *problems):
        before = ", ".join(
            f"{name} {(moment - at) * 1000:.0f} ms before"
            for at, name in cluster.log
            if 0 <= moment - at < 0.1
        )
        outcome.problems.append(f"{text}; changes: {before or 'none'}")
    for reached in (Reached(*each) for each in report["reached"]):
        versions = cluster.versions[reached.steady]
        possible = (v for v in versions if v.begin <= reached.end and v.end >= reached.begin)
        if not any((reached.address, reached.port) in version.endpoints for version in possible):
            outcome.problems.append(
                f"service {reached.steady} was answered by {reached.address}:{reached.port}, "
                "none of its endpoints"
            )
    return outcome


# ---- what changes ----


class _Steady:
    """A service that always has an endpoint on each node."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.others: dict[str, str] = {}  # endpoints that come and go: in which condition
        self.target = 0
        self.spec: dict[str, Any] = {}
        self.hinted = False
        self.more_ports = False

    @property
    def name(self) -> str:
        return f"steady{self.number}"

    @property
    def ips(self) -> dict[Family, dict[str, str]]:
        """Its addresses by kind."""
        n = self.number + 1
        return {
            Family.IPv4: {
                "cluster": f"10.96.1.{n}",
                "external": f"203.0.113.{n}",
                "vip": f"203.0.113.{100 + n}",
            },
            Family.IPv6: {
                "cluster": f"fd00:10:96::1:{n}",
                "external": f"fd00:beef::{n}",
                "vip": f"fd00:beef::1{n}",
            },
        }

    @property
    def node_port(self) -> int:
        return 31000 + self.number

    def frontends(self, world: World, place: str) -> Iterator[Frontend]:
        """Yield everything a client connects to.

        NodePorts on the node that the client's packets come to first.
        """
        on_node = "node2" if place.startswith("pod2") else "node1"
        for family, kinds in self.ips.items():
            for protocol in ("TCP", "UDP"):
                for address in kinds.values():
                    yield Frontend(self.number, address, 80, protocol)
                yield Frontend(
                    self.number, world.address(on_node, family), self.node_port, protocol
                )

    def service(self) -> Service:
        ports = [
            {"port": 80, "name": "tcp", "protocol": "TCP", "nodePort": self.node_port},
            {"port": 80, "name": "udp", "protocol": "UDP", "nodePort": self.node_port},
        ]
        if self.more_ports:
            ports.append(
                {"port": 443, "name": "more", "protocol": "TCP", "nodePort": self.node_port + 100}
            )
        spec = {
            "externalIPs": [kinds["external"] for kinds in self.ips.values()],
            "ports": ports,
            **self.spec,
        }
        cluster_ips = [kinds["cluster"] for kinds in self.ips.values()]
        return service(
            self.name, cluster_ips, vips=[kinds["vip"] for kinds in self.ips.values()], **spec
        )

    def slices(self, world: World) -> list[EndpointSlice]:
        port = _target_ports(self.number)[self.target]
        ports = [
            {"name": name, "port": port, "protocol": name.upper().replace("MORE", "TCP")}
            for name in ("tcp", "udp", "more")
        ]
        found = []
        for family in Family:
            endpoints = []
            for place, condition in {**dict.fromkeys(ANCHORS, "ready"), **self.others}.items():
                on = f"node{place.removeprefix('pod').removeprefix('node')[0]}"
                more: dict[str, Any] = (
                    {"ready": True} if condition == "ready" else {"ready": False, "serving": True}
                )
                more["terminating"] = condition == "leaving"
                more["pod"] = f"{self.name}-{place}"
                if self.hinted:
                    more["zones"] = ["a" if on == "node1" else "b"]
                endpoints.append(endpoint(world.address(place, family), on, **more))
            found.append(endpoint_slice(self.name, endpoints, ports=ports, family=family))
        return found

    def addresses(self, world: World) -> Iterator[str]:
        """Yield the addresses in its slices, in whatever condition."""
        for place in (*ANCHORS, *self.others):
            yield from (world.address(place, family) for family in Family)

    def endpoints(self, world: World) -> frozenset[tuple[str, int]]:
        """Return the endpoints that may be used: those that are ready."""
        places = [
            *ANCHORS,
            *(place for place, condition in self.others.items() if condition == "ready"),
        ]
        port = _target_ports(self.number)[self.target]
        return frozenset(
            (world.address(place, family), port) for place in places for family in Family
        )


class _Cluster:
    """All objects, and what happens to them."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.changes: Counter[str] = Counter()
        self.log: list[tuple[float, str]] = []
        self.versions: dict[int, list[Version]] = defaultdict(list)
        self.problems: list[tuple[float, str]] = []
        self._world = world
        self._random = chance
        self._steady = [_Steady(number) for number in range(STEADY)]
        self._objects: dict[tuple[type, Any], Object] = {}
        # Which service lists which addresses, and since when
        self._listed: list[tuple[float, frozenset[tuple[int, str]]]] = []
        self._zones = {"node1": "a", "node2": "b"}
        self._reloaded = False

    def begin(self) -> None:
        """Bring the first state into the kernel."""
        for steady in self._steady:
            self._put(steady.service(), *steady.slices(self._world))
            self.versions[steady.number].append(
                Version(0, float("inf"), steady.endpoints(self._world))
            )
        self._note_listed()
        self._tell_zones()
        self._world.sync()

    def change_for(self, seconds: float, rate: float, least: int) -> None:
        """Change something every 1/rate seconds, and not less often than `least` times."""
        begin = time.monotonic()
        number = 0
        while (now := time.monotonic()) < begin + seconds or number < least:
            if (early := begin + number / rate - now) > 0:
                time.sleep(early)
            number += 1
            kind = self._random.choices(list(_KINDS), [weight for _, weight in _KINDS.values()])[0]
            self.changes[kind] += 1
            self.log.append((time.monotonic(), kind))
            try:
                _KINDS[kind][0](self)
                self._reset()
            except AssertionError as error:  # of World.sync: the kernel refused something
                self.problems.append((time.monotonic(), str(error)))

    def may_cut(self, cut: Cut) -> bool:
        """Whether its pod was in no slice, as far as the tables may have known."""
        changes = [*self._listed, (float("inf"), frozenset[tuple[int, str]]())]
        return any(
            (cut.steady, cut.address) not in listed
            for (begin, listed), (end, _) in itertools.pairwise(changes)
            if begin <= cut.moment and end >= cut.moment - LATE
        )

    def _note_listed(self) -> None:
        found = {
            (steady.number, each)
            for steady in self._steady
            for each in steady.addresses(self._world)
        }
        self._listed.append((time.monotonic(), frozenset(found)))

    def _reset(self) -> None:
        """Do what a running proxy does when an endpoint has stayed away for a moment."""
        for table in self._world.tables.values():
            if resets := table.resets:
                for family in Family:
                    resets.synced(family)
                if resets.due is not None and resets.due <= time.monotonic():
                    resets.apply()

    def _put(self, *items: Object) -> None:
        for item in items:
            self._objects[type(item), item.metadata.key] = item
            for table in self._world.tables.values():
                table.store.put(item)

    def _remove(self, item: Object) -> None:
        self._objects.pop((type(item), item.metadata.key), None)
        for table in self._world.tables.values():
            table.store.remove(type(item), item.metadata.key)

    def _renew(self, steady: _Steady) -> None:
        """Tell everybody about a steady service and sync."""
        versions = self.versions[steady.number]
        begin = time.monotonic()
        self._note_listed()
        self._put(steady.service(), *steady.slices(self._world))
        self._world.sync()
        versions[-1] = versions[-1]._replace(end=time.monotonic())
        versions.append(Version(begin, float("inf"), steady.endpoints(self._world)))

    def _change_endpoints(self) -> None:
        steady, place = self._random.choice(self._steady), self._random.choice(OTHERS)
        condition = self._random.choice(("ready", "ready", "leaving", "waiting", ""))
        steady.others.pop(place, None)
        if condition:
            steady.others[place] = condition
        steady.hinted = self._random.random() < 0.2
        self._renew(steady)

    def _roll(self) -> None:
        """Replace some pods of a service: each drains, is gone, and another has its address."""
        steady = self._random.choice(self._steady)
        for place in self._random.sample(OTHERS, 2):
            for condition in ("ready", "leaving", "", "ready"):
                steady.others.pop(place, None)
                if condition:
                    steady.others[place] = condition
                self._renew(steady)
                time.sleep(0.05)
                self._reset()

    def _change_target_port(self) -> None:
        steady = self._random.choice(self._steady)
        steady.target = 1 - steady.target
        self._renew(steady)

    def _change_policy(self) -> None:
        steady = self._random.choice(self._steady)
        key, values = self._random.choice(list(_POLICIES.items()))
        steady.spec[key] = self._random.choice(values)
        self._renew(steady)

    def _change_ports(self) -> None:
        steady = self._random.choice(self._steady)
        steady.more_ports = not steady.more_ports
        self._renew(steady)

    def _change_other(self) -> None:
        """Make, change or delete a service that nobody depends on.

        It may claim what an older one has.
        """
        number = self._random.randrange(20)
        name = f"other{number}"
        port = _target_ports(STEADY)[0]
        spec: dict[str, Any] = {
            "vips": [f"203.0.113.{120 + number}"],
            "created": "2026-02-01T00:00:00Z",
        }
        if self._random.random() < 0.3:
            spec["externalIPs"] = [f"203.0.113.{1 + self._random.randrange(STEADY)}"]
        if self._random.random() < 0.3:
            spec["sessionAffinity"] = "ClientIP"
        made = service(
            name,
            [f"10.96.2.{number}", f"fd00:10:96::2:{number}"],
            80,
            node_port=32000 + number,
            **spec,
        )
        places = self._random.sample(
            ("pod1-1", "pod1-3", "pod2-1", "pod2-3"), self._random.randrange(4)
        )
        found = [endpoint(self._world.address(place), f"node{place[3]}") for place in places]
        piece = endpoint_slice(name, found, port=port)
        if self._random.random() < 0.4:
            self._remove(made)
            self._remove(piece)
        else:
            self._put(made, piece)
        self._world.sync()

    def _change_cidrs(self) -> None:
        extra = self._random.sample(("10.96.0.0/16", "10.97.0.0/24", "fd00:10:96::/112"), 2)
        self._put(service_cidr("kubernetes", *extra))
        self._world.sync()

    def _change_zones(self) -> None:
        self._zones[self._random.choice(list(self._zones))] = self._random.choice("ab")
        self._tell_zones()
        self._world.sync()

    def _tell_zones(self) -> None:
        for name, table in self._world.tables.items():
            table.store.put(node(name, zone=self._zones[name]))

    def _tidy(self) -> None:
        for table in self._world.tables.values():
            table.tidy()

    def _restart(self) -> None:
        """Start a node's proxy again, now and then with other settings, so that it loads another
        program, with or without resets.
        """
        name = self._random.choice(list(self._world.tables))
        self._reloaded = self._reloaded != (self._random.random() < 0.5)
        detector: LocalDetector = CLUSTER
        table = self._world.start(
            name,
            detector=detector,
            masquerade_all=self._reloaded,
            reset_gone=self._random.random() < 0.7,
        )
        for item in self._objects.values():
            table.store.put(item)
        self._tell_zones()
        self._world.sync()


_POLICIES: dict[str, tuple[Any, ...]] = {
    "externalTrafficPolicy": ("Local", "Cluster"),
    "internalTrafficPolicy": ("Local", "Cluster"),
    "sessionAffinity": ("ClientIP", "None"),
    "loadBalancerSourceRanges": (
        [],
        ["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"],
        ["0.0.0.0/1", "128.0.0.0/1", "fd00::/9"],
    ),
}
_KINDS: dict[str, tuple[Callable[[_Cluster], None], float]] = {
    "endpoints": (_Cluster._change_endpoints, 40),
    "policy": (_Cluster._change_policy, 20),
    "other service": (_Cluster._change_other, 20),
    "rolling update": (_Cluster._roll, 15),
    "target port": (_Cluster._change_target_port, 8),
    "ports": (_Cluster._change_ports, 5),
    "service CIDRs": (_Cluster._change_cidrs, 2),
    "zone": (_Cluster._change_zones, 2),
    "tidy": (_Cluster._tidy, 2),
    "restart": (_Cluster._restart, 1),
}


# ---- the clients ----


class _Clients:
    """The process with the clients, from outside."""

    def __init__(self, world: World) -> None:
        for client in world.lab.clients:
            for family in Family:
                world.lab.route(client, SERVICE_CIDRS[family], "node1")
                world.lab.route(
                    client, "203.0.113.0/24" if family is Family.IPv4 else "fd00:beef::/64", "node1"
                )
        orders = [
            (
                world.lab.place(place).namespace,
                [f for number in range(STEADY) for f in _Steady(number).frontends(world, place)],
            )
            for place in PLACES
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.churn"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "connecting\n":
            raise NftproxyError("the clients of the churn did not start")

    def stop(self) -> dict[str, Any]:
        """Have them finish; return what they saw."""
        output, _ = self._process.communicate("stop\n", timeout=60)
        if self._process.returncode:
            raise NftproxyError(f"the clients of the churn failed: {self._process.returncode}")
        found: dict[str, Any] = json.loads(output)
        return found


class _Client:
    """One place that connects without pause, in a thread."""

    def __init__(self, namespace: str, frontends: list[Frontend], stop: threading.Event) -> None:
        self.reached: list[Reached] = []
        self.problems: list[tuple[float, str]] = []
        self.cuts: list[Cut] = []
        self.continued = 0
        self._namespace = namespace
        self._frontends = frontends
        self._stop = stop
        self._held: list[tuple[Frontend, Connection]] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        chance = random.Random(self._namespace)
        while not self._stop.is_set():
            self._connect(chance.choice(self._frontends), keep=chance.random() < 0.02)
            if self._held and chance.random() < 0.1:
                self._go_on(*chance.choice(self._held))
        for _, connection in self._held:
            connection.close()

    def _connect(self, frontend: Frontend, *, keep: bool) -> None:
        begin = time.monotonic()
        found = open_connection(
            self._namespace, frontend.address, frontend.port, frontend.protocol, timeout=PATIENCE
        )
        end = time.monotonic()
        if not isinstance(found, Connection):
            self._problem(begin, f"{frontend}: {found}")
            return
        if frontend.protocol == "TCP" and (lost := _retransmitted(found)):
            self._problem(begin, f"{frontend}: {lost} packets had to be sent again")
        self.reached.append(
            Reached(begin, end, frontend.steady, found.answer.address, found.answer.port)
        )
        if not keep or frontend.protocol == "UDP":
            found.close()
            return
        self._held.append((frontend, found))
        if len(self._held) > HELD:
            self._held.pop(0)[1].close()

    def _go_on(self, frontend: Frontend, connection: Connection) -> None:
        outcome = connection.again(PATIENCE)
        self.continued += 1
        if outcome != connection.answer:
            to = connection.answer.address
            text = f"{self._namespace}: {frontend}: an open connection to {to} was cut: {outcome}"
            self.cuts.append(Cut(time.monotonic(), frontend.steady, to, text))
            self._held.remove((frontend, connection))
            connection.close()

    def _problem(self, moment: float, text: str) -> None:
        self.problems.append((moment, f"{self._namespace}: {text}"))


def _retransmitted(connection: Connection) -> int:
    """Return how many packets a TCP connection sent twice.

    A lost SYN is repeated after a second and would pass for slow.
    """
    info = connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 100)[0])  # tcpi_total_retrans


def main() -> None:
    """Be the clients: orders on the input, then "stop"; what was seen on the output."""
    stop = threading.Event()
    orders = json.loads(sys.stdin.readline())
    clients = [
        _Client(namespace, [Frontend(*each) for each in frontends], stop)
        for namespace, frontends in orders
    ]
    for client in clients:
        client.thread.start()
    print("connecting", flush=True)
    sys.stdin.readline()
    stop.set()
    for client in clients:
        client.thread.join()
    json.dump(
        {
            "reached": [each for client in clients for each in client.reached],
            "continued": sum(client.continued for client in clients),
            "problems": [each for client in clients for each in client.problems],
            "cuts": [each for client in clients for each in client.cuts],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
