"""What must become of a packet: the judge of the packet tests, written from the contract alone.

An `Oracle` knows one state of the cluster as one node sees it and says of any new connection what
has to happen on that node: reach one of these endpoints with this source address, be refused, be
dropped, or be left alone. It is a pure function of its arguments and follows the life of a
connection step by step (contract Appendix B). It shares no code with the way from Services to the
table, parses addresses with another library, and is naive on purpose: no look-ups that could be
wrong in the same way.

Where the contract leaves open which of two contradicting entries of an endpoint counts (3.2.2),
there are several right answers: `oracles` returns one Oracle for each reading, and a kernel is
right if it agrees with one of them.
"""

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, NamedTuple

from nftproxy.address import Family
from nftproxy.configuration.settings import (
    ALL,
    BridgeInterface,
    Cidr,
    InterfaceNamePrefix,
    NodeSettings,
)
from nftproxy.model import (
    EndpointSlice,
    ObjectName,
    Proto,
    Service,
    ServiceCIDR,
    ServicePort,
    SliceEndpoint,
)

Which = Literal["cluster", "local"]
IP = IPv4Address | IPv6Address
Net = IPv4Network | IPv6Network
MOST_READINGS = 64


class Fate(enum.Enum):
    """What becomes of a connection that reaches no endpoint."""

    REFUSED = "refused"
    SILENT = "silent"
    UNTOUCHED = "untouched"


class PortName(NamedTuple):
    """A service port (contract 2.1.4), what affinity is remembered for (2.4.2)."""

    service: ObjectName
    port: str
    proto: Proto


class Endpoint(NamedTuple):
    """Where a connection can end."""

    address: str
    port: int


@dataclass(frozen=True)
class Reached:
    """An endpoint that may answer, and the source addresses it may see.

    The client's own one unless masqueraded.
    """

    endpoint: Endpoint
    sources: frozenset[str]
    masqueraded: bool


@dataclass(frozen=True)
class Served:
    """The connection reaches one of several endpoints of `owner`, all in one list.

    `sticky`: the one remembered, if any.
    """

    owner: PortName
    which: Which
    reached: frozenset[Reached]
    sticky: bool

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that may answer."""
        return frozenset(reached.endpoint for reached in self.reached)


Verdict = Served | Fate


@dataclass(frozen=True)
class Cluster:
    """All objects as the API server has them."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    cidrs: tuple[ServiceCIDR, ...] = ()


@dataclass(frozen=True)
class Link:
    """An interface of a node: what is reached through it and the node's address there."""

    network: str
    address: str


@dataclass(frozen=True)
class Host:
    """A node: settings, zone, interfaces and own addresses.

    The first link of a family is the one to everywhere else.
    """

    settings: NodeSettings
    zone: str
    links: tuple[Link, ...]
    others: tuple[str, ...] = ("127.0.0.1", "::1")

    @property
    def own(self) -> frozenset[IP]:
        """All addresses of the node."""
        return frozenset(
            ip_address(text) for text in (*(link.address for link in self.links), *self.others)
        )

    def egress(self, to: IP) -> frozenset[str]:
        """The addresses that masquerading may use towards an address."""
        if to in self.own:  # over lo, whose own addresses the kernel does not use; any other may do
            return frozenset(
                str(a) for a in self.own if a.version == to.version and not a.is_loopback
            )
        usable = [link for link in self.links if ip_address(link.address).version == to.version]
        inside = [link for link in usable if to in ip_network(link.network)]
        return frozenset({(inside or usable)[0].address})


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection as it comes to a node.

    `interface` is empty when the node made it.
    """

    source: str
    destination: str
    port: int
    proto: Proto = Proto.TCP
    interface: str = ""


@dataclass(frozen=True)
class _Entry:
    """An endpoint as the slices tell it, for one service port."""

    ip: IP
    port: int
    ready: bool
    serving: bool
    terminating: bool
    local: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(str(self.ip), self.port)


@dataclass(frozen=True)
class _ServicePort:
    """A service port of one family with its endpoints merged."""

    name: PortName
    number: int
    cluster_ip: IP
    external_ips: frozenset[IP]
    vips: frozenset[IP]
    node_port: int
    internal_local: bool
    external_local: bool
    sticky: bool
    ranges: tuple[Net, ...]  # empty: no filtering
    age: tuple[str, ObjectName]
    cluster_list: tuple[_Entry, ...]
    local_list: tuple[_Entry, ...]
    any_usable: bool

    @property
    def lists(self) -> Mapping[Which, tuple[_Entry, ...]]:
        """Return the cluster list and the local list (contract 3.4)."""
        return {"cluster": self.cluster_list, "local": self.local_list}

    @property
    def internal_list(self) -> Which:
        """Return the list for ClusterIP traffic (contract 2.3.5)."""
        return "local" if self.internal_local else "cluster"

    @property
    def usable(self) -> frozenset[_Entry]:
        """Return the endpoints that this node reaches: both lists (contract 3.4.8)."""
        return frozenset(self.cluster_list + self.local_list)


class ReadingsError(Exception):
    """The contract leaves so much of a cluster open that too many outcomes are right."""


Choice = Callable[[PortName, str, list[_Entry]], _Entry]


def oracles(cluster: Cluster, host: Host, family: Family) -> list["Oracle"]:
    """Return an oracle for each way to read the cluster; nearly always one.

    ReadingsError beyond MOST_READINGS.
    """
    open_questions: dict[tuple[PortName, str], list[_Entry]] = {}

    def note(name: PortName, key: str, entries: list[_Entry]) -> _Entry:
        open_questions[name, key] = entries
        return entries[0]

    first = Oracle(cluster, host, family, note)
    if not open_questions:
        return [first]
    keys, lists = list(open_questions), list(open_questions.values())
    readings = list(itertools.islice(itertools.product(*lists), MOST_READINGS + 1))
    if len(readings) > MOST_READINGS:
        raise ReadingsError(f"more than {MOST_READINGS} ways to read this cluster")

    def oracle(reading: tuple[_Entry, ...]) -> Oracle:
        answers = dict(zip(keys, reading, strict=True))
        return Oracle(cluster, host, family, lambda name, key, _: answers[name, key])

    return [oracle(reading) for reading in readings]


class Oracle:
    """One state of the cluster on one node, in one family."""

    def __init__(self, cluster: Cluster, host: Host, family: Family, choice: Choice) -> None:
        self.host = host
        self.family = family
        self._ports = [
            port
            for service in cluster.services
            for port in _service_ports(service, cluster.slices, host, family, choice)
        ]
        # 2.2.3: the ClusterIP of a service is its own; an external address has the oldest claimant,
        # by name within one second.
        self._ports.sort(key=lambda port: port.age)
        # 1.5.1
        self._cidrs = [
            n
            for c in cluster.cidrs
            for t in c.spec.cidrs or ()
            if (n := _network(t)) and _is(n, family)
        ]
        # With endpoints or without (2.5.6)
        self._cluster_ips = frozenset(port.cluster_ip for port in self._ports)
        self._hairpins = frozenset(  # 4.4.1
            (entry.ip, port.name.proto, entry.port)
            for port in self._ports
            for entry in port.usable
            if entry.local
        )

    def members(self) -> Mapping[PortName, Mapping[Which, frozenset[Endpoint]]]:
        """What the node may remember clients for.

        Both lists of service ports with affinity (2.4, 3.4.8).
        """

        def endpoints(entries: tuple[_Entry, ...]) -> frozenset[Endpoint]:
            return frozenset(entry.endpoint for entry in entries)

        return {
            p.name: {"cluster": endpoints(p.cluster_list), "local": endpoints(p.local_list)}
            for p in self._ports
            if p.sticky
        }

    def judge(self, packet: Packet) -> frozenset[Verdict]:
        """Return what may become of a new connection here (Appendix B): one thing.

        Two, where an address of the node is the external IP of one service and accepts the NodePort
        of another: the contract does not say whose connection that is (2.2.3).
        """
        to = ip_address(packet.destination)
        frontend, node_port = self._frontend(to, packet), self._node_port(to, packet)
        if frontend and node_port and frontend.port != node_port.port:
            return frozenset(
                {self._verdict(packet, to, frontend), self._verdict(packet, to, node_port)}
            )
        return frozenset({self._verdict(packet, to, frontend or node_port)})

    def _verdict(self, packet: Packet, to: IP, claim: "_Claim | None") -> Verdict:
        """Return what must become of a packet to a frontend, or to none."""
        if claim and claim.filtered and not self._allowed(claim.port, ip_address(packet.source)):
            return Fate.SILENT  # step 2; contract 2.5.8, 2.7.9
        if claim and claim.dispatched:  # step 4
            which, marked = self._list_for(claim, packet, to)
            if entries := claim.port.lists[which]:
                reached = frozenset(
                    self._reached(claim.port, entry, packet, marked=marked) for entry in entries
                )
                return Served(claim.port.name, which, reached, claim.port.sticky)
        if claim:  # step 5
            return claim.refusal
        if to not in self.host.own or not packet.interface:  # forward or output
            if to in self._cluster_ips:
                return Fate.REFUSED  # 2.5.6
            if any(to in network for network in self._cidrs):
                return Fate.SILENT  # 2.5.7
        return Fate.UNTOUCHED

    def _frontend(self, to: IP, packet: Packet) -> "_Claim | None":
        """Return who has this address and port (contract 2.2)."""
        ports = [
            port
            for port in self._ports
            if (port.number, port.name.proto) == (packet.port, packet.proto)
        ]
        for port in ports:
            if to == port.cluster_ip:
                return _Claim(port, internal=True)
        for port in ports:
            if to in port.external_ips or to in port.vips:
                return _Claim(port, internal=False, filtered=to in port.vips and bool(port.ranges))
        return None

    def _node_port(self, to: IP, packet: Packet) -> "_Claim | None":
        """Return whose NodePort this is (contract 2.6)."""
        accepted = self.host.settings.nodeport_addresses[self.family]
        if to not in self.host.own or to.is_loopback:  # 2.6.4, 2.6.5, 2.6.7
            return None
        if accepted is not ALL and not any(to in ip_network(str(network)) for network in accepted):
            return None
        found = (
            p
            for p in self._ports
            if p.node_port and (p.node_port, p.name.proto) == (packet.port, packet.proto)
        )
        return next((_Claim(port, internal=False) for port in found), None)

    def _allowed(self, port: _ServicePort, source: IP) -> bool:
        """Whether the source ranges let a source in (contract 2.7)."""
        if any(source in network for network in port.ranges):
            return True
        node_ip = ip_address(self.host.settings.node_ips[self.family].text)
        return source in port.vips and any(node_ip in network for network in port.ranges)  # 2.7.6

    def _list_for(self, claim: "_Claim", packet: Packet, to: IP) -> tuple[Which, bool]:
        """Return the list that applies and whether the packet is marked for masquerading (steps 3
        and 6).
        """
        port, settings = claim.port, self.host.settings
        detector, local_pod = self._detector, self._from_local_pod(packet)
        # 4.1.1, 4.1.2, 4.1.8
        marked = to in self._cluster_ips and (
            settings.masquerade_all or (detector and not local_pod)
        )
        if claim.internal:
            return port.internal_list, marked
        if not port.external_local:
            return "cluster", True  # 4.1.3
        if detector and local_pod:
            return "cluster", marked  # 2.3.7 rule 1
        if ip_address(packet.source) in self.host.own:
            return "cluster", True  # 2.3.7 rule 2
        return "local", marked

    def _reached(
        self, port: _ServicePort, entry: _Entry, packet: Packet, *, marked: bool
    ) -> Reached:
        """Return what an endpoint sees.

        What is delivered to the node itself never comes to post-routing (step 8, 4.3.1).
        """
        hairpin = (
            ip_address(packet.source) == entry.ip
            and (entry.ip, port.name.proto, entry.port) in self._hairpins
        )
        posted = not (packet.interface and entry.ip in self.host.own)
        masqueraded = posted and (marked or hairpin)
        sources = self.host.egress(entry.ip) if masqueraded else frozenset({packet.source})
        return Reached(entry.endpoint, sources, masqueraded)

    @property
    def _detector(self) -> bool:
        """Whether this family has a local detector (contract 4.2.2, 4.2.5)."""
        detector = self.host.settings.detector
        return (
            self.family in detector.networks if isinstance(detector, Cidr) else detector is not None
        )

    def _from_local_pod(self, packet: Packet) -> bool:
        """Whether the detector takes the source for a local pod (contract 4.2)."""
        match self.host.settings.detector:
            case Cidr(networks):
                return self._detector and ip_address(packet.source) in ip_network(
                    str(networks[self.family])
                )
            case BridgeInterface(name):
                return packet.interface == name
            case InterfaceNamePrefix(prefix):
                return packet.interface.startswith(prefix)
            case None:
                return False


@dataclass(frozen=True)
class _Claim:
    """A service port that has the destination: as its ClusterIP or as an external address.

    `filtered` says whether source ranges limit who may ask.
    """

    port: _ServicePort
    internal: bool
    filtered: bool = False

    @property
    def dispatched(self) -> bool:
        """Whether connections are sent to an endpoint at all (contract 2.5)."""
        return (
            bool(self.port.lists[self.port.internal_list])
            if self.internal
            else self.port.any_usable
        )

    @property
    def refusal(self) -> Fate:
        """What becomes of a connection for which there is no endpoint (contract 2.5, the table)."""
        return Fate.SILENT if self.port.any_usable else Fate.REFUSED


def _service_ports(
    service: Service, slices: tuple[EndpointSlice, ...], host: Host, family: Family, choice: Choice
) -> Iterator[_ServicePort]:
    """Yield the service ports of a Service in one family."""
    spec, labels = service.spec, service.metadata.labels
    cluster_ip = _cluster_ip(service, family)
    if cluster_ip is None or (labels and labels.proxy_name is not None):  # 1.1.5
        return
    external_ips = (
        _addresses(spec.external_ips, family) if host.settings.allow_external_ips else frozenset()
    )
    vips = _vips(service, family)
    external_local = spec.external_traffic_policy == "Local" and (  # 2.3.2
        spec.type in {"LoadBalancer", "NodePort"}
        or (spec.type == "ClusterIP" and bool(spec.external_ips))
    )
    internal_local = spec.internal_traffic_policy == "Local"
    for port in spec.ports or ():
        name = PortName(service.metadata.key, port.name or "", port.protocol)
        external = bool(port.node_port or external_ips or vips)  # 2.2.1
        entries = _merged(name, _told(name, port, slices, host, family), choice)
        everywhere = tuple(
            entry for entry in entries if entry.ready or (entry.serving and entry.terminating)
        )
        # 2.3.3, 2.3.4
        uses_cluster, uses_local = (
            not internal_local or external,
            internal_local or (external_local and external),
        )
        cluster_list = _cluster_list(entries, host) if uses_cluster else ()
        yield _ServicePort(
            name=name,
            number=port.port,
            cluster_ip=cluster_ip,
            external_ips=external_ips,
            vips=vips,
            node_port=port.node_port or 0,
            internal_local=internal_local,
            external_local=external_local,
            sticky=spec.session_affinity == "ClientIP",
            ranges=_ranges(spec.load_balancer_source_ranges, family),
            age=(service.metadata.creation_timestamp or "", service.metadata.key),
            cluster_list=cluster_list,
            local_list=_ready_or_leaving([entry for entry in entries if entry.local])
            if uses_local
            else (),  # 3.4.3, 3.4.4
            any_usable=bool(cluster_list or (uses_local and everywhere)),  # 3.4.6
        )


def _cluster_ip(service: Service, family: Family) -> IP | None:
    """Return the ClusterIP of a family.

    None where the service does not exist (contract 2.1.1, 2.1.2).
    """
    spec = service.spec
    if spec.type == "ExternalName" or spec.cluster_ip in {None, "", "None"}:
        return None
    if not spec.ip_families:
        found = _ip(spec.cluster_ip or "")
    else:
        places = [index for index, name in enumerate(spec.ip_families) if name == family]
        found = (
            _ip((spec.cluster_ips or ())[places[0]])
            if places and places[0] < len(spec.cluster_ips or ())
            else None
        )
    return found if found and _is(found, family) else None


def _vips(service: Service, family: Family) -> frozenset[IP]:
    """Return the load-balancer addresses with ipMode VIP (contract 2.2)."""
    balancer = service.status.load_balancer if service.status else None
    ingress = (balancer.ingress if balancer else None) or ()
    return _addresses(
        [each.ip for each in ingress if each.ip and each.ip_mode in {None, "VIP"}], family
    )


def _ranges(texts: Iterable[str] | None, family: Family) -> tuple[Net, ...]:
    """Return the source ranges of a family.

    None when they do not filter (contract 2.7.1 to 2.7.3).
    """
    valid = [
        network
        for text in texts or ()
        if (network := _network(text.strip())) and _is(network, family)
    ]
    return () if any(network.prefixlen == 0 for network in valid) else tuple(valid)


def _told(
    name: PortName, port: ServicePort, slices: tuple[EndpointSlice, ...], host: Host, family: Family
) -> Iterator[_Entry]:
    """Yield all that the slices tell about a service port (contract 3.1)."""
    for piece in slices:
        labels = piece.metadata.labels
        if (
            piece.service != name.service
            or piece.address_type != family
            or (labels and labels.headless is not None)
        ):  # 1.1.6
            continue
        numbers = [
            p.port
            for p in piece.ports or ()
            if p.name is not None
            and (p.name, p.protocol or Proto.TCP) == (name.port, port.protocol)
        ]
        for number, endpoint in itertools.product(numbers, piece.endpoints or ()):
            if number and endpoint.addresses and (ip := _ip(endpoint.addresses[0])):
                yield _entry(ip, number, endpoint, host.settings.node_name)


def _entry(ip: IP, number: int, endpoint: SliceEndpoint, node: str) -> _Entry:
    conditions, hints = endpoint.conditions, endpoint.hints
    ready, serving, terminating = (
        (conditions.ready, conditions.serving, conditions.terminating)
        if conditions
        else (None, None, None)
    )
    return _Entry(
        ip=ip,
        port=number,
        ready=ready is not False,  # 3.1.6
        serving=serving is not False,
        terminating=bool(terminating),
        local=bool(endpoint.node_name) and endpoint.node_name == node,  # 3.1.7
        zones=frozenset(hint.name for hint in (hints and hints.for_zones) or ()),
        nodes=frozenset(hint.name for hint in (hints and hints.for_nodes) or ()),
    )


def _merged(name: PortName, told: Iterable[_Entry], choice: Choice) -> list[_Entry]:
    """Return one entry per address and port.

    `choice` decides where the contract does not (3.2.1, 3.2.2).
    """
    by_key: dict[str, list[_Entry]] = {}
    for entry in told:
        known = by_key.setdefault(f"{entry.ip}:{entry.port}", [])
        if entry not in known:
            known.append(entry)
    merged = []
    for key, entries in by_key.items():
        candidates = [entry for entry in entries if not entry.terminating] or entries
        merged.append(candidates[0] if len(candidates) == 1 else choice(name, key, candidates))
    return merged


def _cluster_list(entries: list[_Entry], host: Host) -> tuple[_Entry, ...]:
    """Return the cluster list.

    Hints first, then the terminating ones (contract 3.3, 3.4.1, 3.4.2).
    """
    ready, node = [entry for entry in entries if entry.ready], host.settings.node_name
    if all(entry.nodes for entry in ready) and any(node in entry.nodes for entry in ready):
        return tuple(entry for entry in ready if node in entry.nodes)
    if (
        host.zone
        and all(entry.zones for entry in ready)
        and any(host.zone in entry.zones for entry in ready)
    ):
        return tuple(entry for entry in ready if host.zone in entry.zones)
    return _ready_or_leaving(entries)


def _ready_or_leaving(entries: list[_Entry]) -> tuple[_Entry, ...]:
    """Return those that are ready; if none is, those that still serve while they terminate."""
    ready = tuple(entry for entry in entries if entry.ready)
    return ready or tuple(entry for entry in entries if entry.serving and entry.terminating)


def _is(thing: IP | Net, family: Family) -> bool:
    return thing.version == (4 if family is Family.IPv4 else 6)


def _addresses(texts: Iterable[str] | None, family: Family) -> frozenset[IP]:
    return frozenset(ip for text in texts or () if (ip := _ip(text)) and _is(ip, family))


def _ip(text: str) -> IP | None:
    """Return the address a text means, leniently.

    Decimal octets may have leading zeros, IPv4-mapped is IPv4 (contract 2.1.5).
    """
    head, colon, tail = text.strip().rpartition(":")
    octets = tail.split(".")
    if len(octets) == 4 and all(octet.isdigit() for octet in octets):
        tail = ".".join(str(int(octet)) for octet in octets)
    try:
        ip = ip_address(head + colon + tail)
    except ValueError:
        return None
    return (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip


def _network(text: str) -> Net | None:
    """Return the CIDR a text means; host bits are cleared (contract 2.1.5)."""
    base, slash, length = text.partition("/")
    ip = _ip(base)
    if not ip or not slash or not length.isdigit():
        return None
    bits = int(length) - (96 if isinstance(ip, IPv4Address) and ":" in base else 0)
    try:
        return ip_network(f"{ip}/{bits}", strict=False)
    except ValueError:
        return None
