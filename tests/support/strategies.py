"""Clusters as hypothesis draws them.

Everything the contract speaks of, mixed, on the places of the lab that `tests.support.stage`
builds.

A `Scenario` is a pair of nodes with their settings and a sequence of steps; each step redraws a few
Services and slices, so that a table goes through many small transitions and some large ones.
Services share pools of addresses, ports and NodePorts that are small on purpose: conflicts,
duplicates and reused numbers are frequent.
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st

from nftproxy.address import Family
from nftproxy.model import EndpointSlice, Proto, Service, ServiceCIDR, SliceEndpoint
from tests.support.objects import endpoint, endpoint_slice, service_cidr

Draw = st.DrawFn
Slices = tuple[EndpointSlice, ...]
Place = tuple[str, dict[str, Any]]

NODES = ("node1", "node2")
PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
ADDRESSES: Mapping[Family, Mapping[str, str]] = {
    Family.IPv4: {
        "node1": "192.168.50.11", "node2": "192.168.50.12", "client": "192.168.50.201",
        "client2": "192.168.50.202",
        "pod1-1": "10.244.1.2", "pod1-2": "10.244.1.3", "pod2-1": "10.244.2.2",
        "pod2-2": "10.244.2.3",
        "gateway1": "10.244.1.1", "gateway2": "10.244.2.1",
    },
    Family.IPv6: {
        "node1": "fd00:50::11", "node2": "fd00:50::12", "client": "fd00:50::201",
        "client2": "fd00:50::202",
        "pod1-1": "fd00:244:1::2", "pod1-2": "fd00:244:1::3", "pod2-1": "fd00:244:2::2",
        "pod2-2": "fd00:244:2::3",
        "gateway1": "fd00:244:1::1", "gateway2": "fd00:244:2::1",
    },
}  # fmt: skip
NAMES = (("default", "a"), ("default", "b"), ("other", "a"), ("other", "c"))
CLUSTER_IPS = {
    Family.IPv4: ("10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13"),
    Family.IPv6: ("fd00:10:96::10", "fd00:10:96::11", "fd00:10:96::12", "fd00:10:96::13"),
}
UNALLOCATED = {Family.IPv4: "10.96.0.99", Family.IPv6: "fd00:10:96::99"}
OUTSIDE = {  # external IPs and load-balancer addresses; the last one is an address of node1 too
    Family.IPv4: ("203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.12"),
    Family.IPv6: ("fd00:beef::1", "fd00:beef::2", "fd00:beef::3", "fd00:beef::12"),
}
PORTS = (80, 443)
UNDEFINED_PORT = 81
NODE_PORTS = (30080, 30081, 80)
UNDEFINED_NODE_PORT = 30099
ENDPOINT_PORTS = (8080, 9376)
PORT_NAMES = ("http", "")
PROTOS = (Proto.TCP, Proto.UDP)
SLICES = 5


@dataclass(frozen=True)
class Options:
    """What is settled for the nodes at their start.

    Names rather than values, for people to read.
    """

    detector: str = "cluster"
    masquerade_all: bool = False
    node_ports: str = "primary"
    wiring: str = "bridge"
    external_ips: bool = True


@dataclass(frozen=True)
class Step:
    """What changes: Services by number (None: deleted), slices by number (none: deleted),
    ServiceCIDRs, zones, restarts.
    """

    services: Mapping[int, Service | None] = field(default_factory=dict)
    slices: Mapping[int, Slices] = field(default_factory=dict)
    cidrs: tuple[ServiceCIDR, ...] | None = None
    zones: Mapping[str, str] = field(default_factory=dict)
    restart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """Settings, steps, and the seed of the choice of packets where there are too many."""

    options: Options
    steps: tuple[Step, ...]
    seed: int

    def __repr__(self) -> str:
        lines = [f"Scenario(seed={self.seed}, {self.options}"]
        for number, step in enumerate(self.steps):
            lines.append(f"  step {number}: zones {dict(step.zones)}, restart {list(step.restart)}")
            for name, items in (("service", step.services), ("slice", step.slices)):
                lines += [f"    {name} {index}: {_short(item)}" for index, item in items.items()]
            if step.cidrs is not None:
                lines.append(f"    service CIDRs: {_short(step.cidrs)}")
        return "\n".join([*lines, ")"])

    def _repr_pretty_(self, printer: Any, _: object) -> None:
        """Have hypothesis print it like that, too."""
        printer.text(repr(self))


def _short(item: object) -> str:
    """An object as JSON, without what is not set."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if v is not None}
        return [strip(v) for v in value] if isinstance(value, list | tuple) else value

    return json.dumps(strip(msgspec.to_builtins(item)))


def _rarely(draw: Draw, one_in: int = 8) -> bool:
    return draw(st.integers(0, one_in - 1)) == one_in - 1


def _some(*pool: Any, most: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(pool), max_size=most, unique=True)


def _either(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def service_ports(draw: Draw) -> list[dict[str, Any]]:
    """The ports of a Service.

    No two with one number and protocol, nor with one name and protocol.
    """
    ports: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0 if _rarely(draw, 16) else 1, 2))):
        port = {
            "port": draw(_either(*PORTS)),
            "name": draw(_either(*PORT_NAMES)),
            "protocol": draw(_either(*PROTOS)),
        }
        node_port = draw(_either(None, *NODE_PORTS))
        if node_port:
            port["nodePort"] = node_port
        same = [p for p in ports if p["protocol"] == port["protocol"]]
        if not any(
            p["port"] == port["port"] or p["name"] == port["name"] or p.get("nodePort") == node_port
            for p in same
        ):
            ports.append(port)
    return ports


_ANY_FAMILIES = (("IPv4", "IPv6"), ("IPv6", "IPv4"), ("IPv4",), ("IPv6",))
_RANGES = (
    "10.244.1.0/24", "10.244.1.2/32", " 010.244.002.003/032 ", "192.168.50.201/24",
    "192.168.50.202/32", "192.168.50.11/32",
    "fd00:244:1::/64", "fd00:50::201/128", "fd00:50::/64", "fd00:244:2::3/127", "fd00:50::11/128",
)  # fmt: skip
_ODD_RANGES = (
    "0.0.0.0/0",
    "::/0",
    "nonsense",
    "",
    "203.0.113.12/32",
    "10.244.0.0/33",
    "::ffff:10.244.1.0/120",
)


@st.composite
def _ranges(draw: Draw) -> list[str]:
    """Source ranges."""
    return [
        *draw(_some(*_RANGES, most=3)),
        *(draw(_some(*_ODD_RANGES, most=2)) if _rarely(draw, 4) else ()),
    ]


@st.composite
def services(draw: Draw, number: int) -> Service:
    """A Service; its ClusterIPs belong to it alone, everything else comes from common pools."""
    namespace, name = NAMES[number]
    families = draw(_either(*_ANY_FAMILIES))
    ips = [CLUSTER_IPS[Family(family)][number] for family in families]
    outside = [address for family in Family for address in OUTSIDE[family]]
    mine = [addresses[-1] for addresses in OUTSIDE.values()]
    own = [ADDRESSES[family][node] for family in Family for node in NODES]
    others = [
        ip for pool in CLUSTER_IPS.values() for index, ip in enumerate(pool) if index != number
    ]
    spec: dict[str, Any] = {
        "type": draw(_either("LoadBalancer", "ClusterIP", "NodePort")),
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": families,
        "ports": draw(service_ports()),
        "externalIPs": draw(_some(*outside, *own, most=2)),
        "externalTrafficPolicy": draw(_either("Cluster", "Local", None)),
        "internalTrafficPolicy": draw(_either("Cluster", None, "Local")),
        "sessionAffinity": draw(_either("None", "ClientIP", None)),
        "loadBalancerSourceRanges": draw(_ranges()) if _rarely(draw, 3) else [],
    }
    if _rarely(draw):
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": draw(_either(3600, 86400))}}
    if _rarely(draw, 16):
        spec["externalIPs"].append(
            draw(_either(*others, "", "example.org", "::ffff:203.0.113.1", "203.000.113.002"))
        )
    if _rarely(draw, 16):
        spec |= draw(
            _either(
                {"type": "ExternalName"},
                {"clusterIP": "None"},
                {"clusterIP": ""},
                {"ipFamilies": []},
            )
        )
    labels = {"service.kubernetes.io/service-proxy-name": ""} if _rarely(draw, 24) else {}
    ingress = [
        {"ip": ip, **({"ipMode": mode} if mode else {})}
        for ip in (
            *draw(_some(*outside, *own, most=2)),
            *(mine if spec["loadBalancerSourceRanges"] and _rarely(draw, 3) else ()),
        )
        for mode in [draw(_either(None, "VIP", "Proxy") if _rarely(draw) else st.just("VIP"))]
    ]
    document = {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "creationTimestamp": draw(_either("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
        },
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return msgspec.convert(document, Service)


_CONDITIONS: tuple[dict[str, bool], ...] = (
    {"ready": True},
    {},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": True, "terminating": False},
    {"ready": False, "serving": False, "terminating": True},
    {"ready": False, "terminating": True},
    {"ready": False},
    {"ready": True, "serving": True, "terminating": True},  # publishNotReadyAddresses
    {"serving": False},
)


@st.composite
def endpoints(draw: Draw, *, hinted: bool) -> Place:
    """An endpoint and what its slice says about it: a pod, or a node as for hostNetwork pods."""
    place = draw(_either(*NODES)) if _rarely(draw, 6) else draw(_either(*PODS))
    node = "" if _rarely(draw, 12) else f"node{place.removeprefix('pod').removeprefix('node')[0]}"
    found = endpoint(
        "", node, **draw(_either(*_CONDITIONS[:2] if draw(st.booleans()) else _CONDITIONS))
    )
    if found["conditions"] == {"ready": True} and _rarely(draw):
        del found["conditions"]
    if hinted != _rarely(draw, 12):
        zones = "" if _rarely(draw, 10) else draw(_either("a", "b", "ab"))
        nodes = draw(_some(*NODES, most=2)) if _rarely(draw, 4) else []
        found["hints"] = {
            "forZones": [{"name": z} for z in zones],
            "forNodes": [{"name": n} for n in nodes],
        }
    return place, found


@st.composite
def slices(draw: Draw, number: int) -> Slices:
    """Slices of one of the Services, which need not exist.

    In one family, or twins with the same endpoints in both.
    """
    namespace, name = draw(_either(*NAMES))
    families = draw(_either(tuple(Family), tuple(Family), *((family,) for family in Family)))
    hinted = not _rarely(draw, 3)
    ports: list[dict[str, Any]] = []
    for port_name in (*PORT_NAMES, None):
        for proto in PROTOS:
            port = {"name": port_name, "protocol": proto, "port": draw(_either(*ENDPOINT_PORTS))}
            if port_name is None or _rarely(draw):
                port["port"] = draw(_either(None, 0, 8080))
            ports.append(port)
    labels = {"service.kubernetes.io/headless": ""} if _rarely(draw, 24) else None
    twice = _rarely(draw)
    places = draw(
        st.lists(
            endpoints(hinted=hinted),
            max_size=4,
            unique_by=None if twice else operator.itemgetter(0),
        )
    )
    return tuple(
        _slice(f"slice-{number}-{family.digit}", namespace, name, family, ports, places, labels)
        for family in families
    )


def _slice(
    own: str,
    namespace: str,
    service: str,
    family: Family,
    ports: Any,
    places: list[Place],
    labels: dict[str, str] | None,
) -> EndpointSlice:
    found = [{**more, "addresses": [ADDRESSES[family][place]]} for place, more in places]
    piece = endpoint_slice(service, found, name=own, ports=ports, family=family, labels=labels)
    return msgspec.structs.replace(
        piece, metadata=msgspec.structs.replace(piece.metadata, namespace=namespace)
    )


@st.composite
def edited_slices(draw: Draw, before: Slices) -> Slices:
    """The same slices with one endpoint more, less, or in another condition."""
    known = len(before[0].endpoints or ())
    at = draw(st.integers(0, known))
    place, new = draw(endpoints(hinted=draw(st.booleans())))
    gone = draw(st.booleans())

    def edited(piece: EndpointSlice) -> EndpointSlice:
        found = list(piece.endpoints or ())
        replacement = msgspec.convert(
            {**new, "addresses": [ADDRESSES[Family(piece.address_type)][place]]}, SliceEndpoint
        )
        if gone or at == known:
            found[at : at + 1] = [] if gone else [replacement]
        else:
            found[at] = msgspec.structs.replace(
                found[at], conditions=replacement.conditions, hints=replacement.hints
            )
        return msgspec.structs.replace(piece, endpoints=tuple(found))

    return tuple(edited(piece) for piece in before)


@st.composite
def edited_service(draw: Draw, before: Service, number: int) -> Service:
    """The same Service with one or two fields as another one has them."""
    other = draw(services(number))
    fields = {field: getattr(other.spec, field) for field in draw(_some(*_EDITED, most=2))}
    return msgspec.structs.replace(before, spec=msgspec.structs.replace(before.spec, **fields))


_EDITED = (
    "ports", "external_ips", "external_traffic_policy", "internal_traffic_policy",
    "session_affinity", "load_balancer_source_ranges",
)  # fmt: skip


@st.composite
def cidrs(draw: Draw) -> tuple[ServiceCIDR, ...]:
    """ServiceCIDR objects, which may overlap."""
    pool = (
        "10.96.0.0/16",
        "10.96.0.96/28",
        "10.96.0.0/24",
        "fd00:10:96::/112",
        "fd00:10:96::90/124",
    )
    return tuple(
        service_cidr(f"cidr-{number}", *draw(_some(*pool, most=2)))
        for number in range(draw(st.integers(0, 2)))
    )


@st.composite
def first_steps(draw: Draw) -> Step:
    """A step that draws everything."""
    return Step(
        services={
            number: draw(services(number)) for number in range(len(NAMES)) if not _rarely(draw, 6)
        },
        slices={number: draw(slices(number)) for number in range(SLICES) if not _rarely(draw, 6)},
        cidrs=draw(cidrs()),
        zones={node: draw(_either("a", "b", "")) for node in NODES},
    )


@st.composite
def later_steps(draw: Draw, known: Mapping[int, Service], pieces: Mapping[int, Slices]) -> Step:
    """A step that changes a little: edits, deletes or redraws a few objects."""

    def service(number: int) -> Service | None:
        if number in known and not _rarely(draw, 3):
            return draw(edited_service(known[number], number))
        return None if _rarely(draw, 3) else draw(services(number))

    def some_slices(number: int) -> Slices:
        if pieces.get(number) and not _rarely(draw, 3):
            return draw(edited_slices(pieces[number]))
        return () if _rarely(draw, 3) else draw(slices(number))

    return Step(
        services={number: service(number) for number in draw(_some(*range(len(NAMES)), most=2))},
        slices={number: some_slices(number) for number in draw(_some(*range(SLICES), most=3))},
        cidrs=draw(cidrs()) if _rarely(draw) else None,
        zones={node: draw(_either("a", "b", "")) for node in NODES} if _rarely(draw, 4) else {},
        restart=tuple(draw(_some(*NODES, most=2))) if _rarely(draw, 4) else (),
    )


@st.composite
def scenarios(draw: Draw) -> Scenario:
    """A whole scenario."""
    options = Options(
        detector=draw(_either("cluster", "none", "node", "bridge", "prefix", "ipv4-only")),
        masquerade_all=_rarely(draw),
        node_ports=draw(_either("primary", "all", "pods")),
        wiring=draw(_either("bridge", "routed")),
        external_ips=not _rarely(draw, 12),
    )
    steps = [draw(first_steps())]
    known, pieces = dict(steps[0].services), dict(steps[0].slices)
    for _ in range(draw(st.integers(1, 6))):
        steps.append(draw(later_steps({n: s for n, s in known.items() if s}, pieces)))
        known |= steps[-1].services
        pieces |= steps[-1].slices
    return Scenario(options, tuple(steps), draw(st.integers(0, 2**16)))
