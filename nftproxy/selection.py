"""Which endpoints a service port has on this node, from its Service and its slices (contract 2, 3).

Pure: from a Service, its EndpointSlices and the node's name and zone to values. Texts of addresses
are parsed here, once. Unusable entries are skipped and named in `notes`, so that one bad entry
never affects the rest of its service.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nftproxy import annotations
from nftproxy.address import Address, Family, Network, bracketed, parse_address, parse_network
from nftproxy.errors import AddressError
from nftproxy.model import (
    EndpointSlice,
    Proto,
    Scheduler,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)

DEFAULT_AFFINITY_SECONDS = 10800  # contract 2.4.1


class Endpoint(NamedTuple):
    """The destination of a connection: canonical address and port number."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"


class Locality(NamedTuple):
    """This node's name and its zone (empty without one), which endpoints are compared with."""

    node: str
    zone: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A Service as one IP family sees it.

    All addresses canonical (contract 2.1, 2.2, 2.3, 2.4, 2.7).
    """

    cluster_ip: str
    external_ips: tuple[str, ...]
    vips: tuple[str, ...]
    ranges: tuple[Network, ...] | None  # None: no filtering (contract 2.7.2, 2.7.3)
    internal_local: bool
    external_local: bool
    affinity_seconds: int | None
    affinity_shared: bool  # by all ports
    scheduler: Scheduler

    def externally_accessible(self, port: ServicePort) -> bool:
        """Whether clients outside the cluster can reach the port (contract 2.2.1)."""
        return bool(port.node_port or self.external_ips or self.vips)


class Lists(msgspec.Struct, frozen=True, kw_only=True):
    """The two endpoint lists of a service port (contract 3.4), each sorted.

    A list that no frontend uses is empty.
    """

    cluster: Sequence[Endpoint] = ()
    local: Sequence[Endpoint] = ()
    usable_anywhere: bool = False  # contract 3.4.6: an empty list then means drop, not reject
    here: tuple[Endpoint, ...] = ()  # those of either list that are on this node (contract 3.4.8)
    weights: Mapping[Endpoint, int] = {}  # of endpoints whose weight is not the full one


class Backend(NamedTuple):
    """An endpoint with the facts that decide its use.

    One of weight 0 takes no new connection: it counts as neither ready nor a fallback.
    """

    endpoint: Endpoint
    ready: bool
    serving: bool
    fallback: bool  # serving and terminating
    is_local: bool
    zones: tuple[str, ...]
    nodes: tuple[str, ...]
    weight: int


Notes = list[str]


def view(
    service: Service, family: Family, notes: Notes, *, external_ips: bool = True
) -> View | None:
    """Return a Service as `family` sees it.

    None if it does not exist there (contract 2.1.1 to 2.1.3).

    `external_ips`: the feature gate AllowServiceExternalIPs.
    """
    spec = service.spec
    if not spec.ports or spec.type == "ExternalName" or spec.cluster_ip in {None, "", "None"}:
        return None
    cluster_ip = _cluster_ip(service, family, notes)
    if cluster_ip is None:
        return None
    balancer = service.status and service.status.load_balancer
    ingress = (balancer and balancer.ingress) or ()
    vips = [i.ip for i in ingress if i.ip and i.ip_mode in {None, "VIP"}]
    policy_counts = spec.type in {"LoadBalancer", "NodePort"} or bool(spec.external_ips)
    config = spec.session_affinity_config and spec.session_affinity_config.client_ip
    seconds = (config and config.timeout_seconds) or DEFAULT_AFFINITY_SECONDS
    scope = annotations.affinity_scope(service, notes)
    return View(
        cluster_ip=cluster_ip,
        external_ips=_addresses(spec.external_ips or (), family, "spec.externalIPs", notes)
        if external_ips
        else (),
        vips=_addresses(vips, family, "status.loadBalancer.ingress", notes),
        ranges=_ranges(spec.load_balancer_source_ranges or (), family, notes),
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=spec.external_traffic_policy == "Local" and policy_counts,
        affinity_seconds=seconds if spec.session_affinity == "ClientIP" else None,
        affinity_shared=scope is annotations.AffinityScope.SERVICE,
        scheduler=annotations.scheduler(service, notes),
    )


def lists(
    seen: View,
    port: ServicePort,
    slices: Iterable[EndpointSlice],
    family: Family,
    here: Locality,
    notes: Notes,
) -> Lists:
    """Return the endpoint lists of one service port."""
    external = seen.externally_accessible(port)
    uses_cluster = external or not seen.internal_local
    uses_local = seen.internal_local or (seen.external_local and external)
    backends = merge(slices, port, family, here.node, notes)
    ready = [b for b in backends if b.ready]
    cluster: list[Backend] = []
    local: list[Backend] = []
    if uses_cluster:
        cluster = _hinted(ready, here) or [b for b in backends if b.fallback]
    if uses_local:
        at_home = [b for b in backends if b.is_local]
        local = [b for b in at_home if b.ready] or [b for b in at_home if b.fallback]
    anywhere = bool(cluster) or (uses_local and any(b.ready or b.fallback for b in backends))
    return Lists(
        cluster=tuple(b.endpoint for b in cluster),
        local=tuple(b.endpoint for b in local),
        usable_anywhere=anywhere,
        here=tuple(dict.fromkeys(b.endpoint for b in (*cluster, *local) if b.is_local)),
        weights={b.endpoint: b.weight for b in backends if b.weight != annotations.FULL},
    )


def local_ready(
    service: Service, slices: Iterable[EndpointSlice], family: Family, node: str
) -> frozenset[str]:
    """Return the addresses of a Service's ready endpoints here, over all ports (contract 3.5.1)."""
    having = by_port(slices, family)
    backends = (
        b for port in service.spec.ports or () for b in merge(having(port), port, family, node, [])
    )
    return frozenset(b.endpoint.address for b in backends if b.ready and b.is_local)


def serving(
    slices: Iterable[EndpointSlice], port: ServicePort, family: Family
) -> tuple[Endpoint, ...]:
    """Return the endpoints that a UDP flow may keep.

    All that serve, regardless of policies and hints (contract 6.2.2).

    If none serves but the table uses ready ones (publishNotReadyAddresses), return those.
    """
    backends = merge(slices, port, family, "", [])
    return tuple(b.endpoint for b in backends if b.serving) or tuple(
        b.endpoint for b in backends if b.ready
    )


def refusal(address: Address) -> str:
    """Return why a Service or an endpoint cannot have this address; empty if it can.

    kube-apiserver forbids most of these, but a manifest or an old object may have them, and DNAT to
    a loopback or multicast address would send foreign traffic to a wrong place.
    """
    text = address.text
    if address.family is Family.IPv4:
        first = int(text[: text.index(".")])
        if first == 0:
            return "is unspecified"
        if first == 127:
            return "is a loopback address"
        if text.startswith("169.254."):
            return "is link-local"
        return "is multicast or reserved" if first >= 224 else ""
    if text == "::":
        return "is unspecified"
    if text == "::1":
        return "is a loopback address"
    if text[:3] in {"fe8", "fe9", "fea", "feb"} and text[4:5] == ":":
        return "is link-local"
    return "is multicast" if text.startswith("ff") and text[4:5] == ":" else ""


def _cluster_ip(service: Service, family: Family, notes: Notes) -> str | None:
    """Return the ClusterIP of a family; None without one (contract 2.1.2)."""
    spec = service.spec
    if not spec.ip_families:
        found = spec.cluster_ip
    else:
        pairs = zip(spec.ip_families, spec.cluster_ips or (), strict=False)
        found = next((ip for of, ip in pairs if of == family), None)
    if not found:
        return None
    chosen = _addresses((found,), family, "spec.clusterIP", notes)
    return chosen[0] if chosen else None


def _addresses(texts: Iterable[str], family: Family, field: str, notes: Notes) -> tuple[str, ...]:
    """Return the usable addresses of `family` in `texts`, each once.

    Blank ones are ignored (contract 2.2).
    """
    found: dict[str, None] = {}
    for text in texts:
        if not text.strip():
            continue
        try:
            address = parse_address(text)
        except AddressError as error:
            notes.append(f"{field}: {error}; ignored")
            continue
        if reason := refusal(address):
            notes.append(f"{field}: {text} {reason}; ignored")
        elif address.family is family:
            found[address.text] = None
    return tuple(found)


def _ranges(texts: Iterable[str], family: Family, notes: Notes) -> tuple[Network, ...] | None:
    """Return the allowed sources.

    None when this family is not filtered (contract 2.7.1 to 2.7.3).
    """
    found: dict[Network, None] = {}
    for text in texts:
        if not text.strip():
            continue
        try:
            network = parse_network(text.strip())
        except AddressError as error:
            notes.append(f"spec.loadBalancerSourceRanges: {error}; ignored")
            continue
        if network.family is family:
            found[network] = None
    if not found or any(network.length == 0 for network in found):
        return None
    return tuple(sorted(found))


def merge(
    slices: Iterable[EndpointSlice], port: ServicePort, family: Family, node: str, notes: Notes
) -> list[Backend]:
    """Merge all slices for one service port, sorted by text (contract 3.1, 3.2)."""
    merged: dict[Endpoint, Backend] = {}
    # Sorted: of two non-terminating duplicates the same one wins on every run (contract 3.2.2
    # leaves it open).
    for piece in sorted(slices, key=lambda s: s.metadata.name):
        numbers = port_numbers(piece, port, family, notes)
        weight = annotations.weight(piece, notes) if numbers else annotations.FULL
        for each in piece.endpoints or () if numbers else ():
            address = endpoint_address(each, family, piece.metadata.name, notes)
            if address is None:
                continue
            terminating = bool(each.conditions and each.conditions.terminating)
            for number in numbers:
                endpoint = Endpoint(address, number)
                if terminating and endpoint in merged:
                    continue
                merged[endpoint] = backend(endpoint, each, node, weight)
    return [merged[e] for e in sorted(merged, key=str)]


def by_port(
    slices: Iterable[EndpointSlice], family: Family
) -> Callable[[ServicePort], tuple[EndpointSlice, ...]]:
    """Return a function from a service port to slices that have it, each with that port alone.

    A Service of a thousand ports would else look at all of them a thousand times.
    """
    having: dict[tuple[str | None, Proto], list[EndpointSlice]] = {}
    others: list[EndpointSlice] = []
    for piece in slices:
        if piece.address_type != family:
            others.append(piece)
            continue
        ports: dict[tuple[str | None, Proto], list[SlicePort]] = {}
        for each in piece.ports or ():
            ports.setdefault((each.name, each.protocol or Proto.TCP), []).append(each)
        for wanted, found in ports.items():
            one = msgspec.structs.replace(piece, ports=tuple(found))
            having.setdefault(wanted, []).append(one)
    return lambda port: (*having.get((port.name or "", port.protocol), ()), *others)


def port_numbers(
    piece: EndpointSlice, port: ServicePort, family: Family, notes: Notes
) -> list[int]:
    """Return the port numbers of a slice's endpoints for a service port, nearly always one."""
    if piece.address_type != family:
        if piece.address_type == "FQDN":  # contract 3.1.2
            notes.append(f"EndpointSlice {piece.metadata.name}: addressType FQDN; ignored")
        return []
    name, proto = port.name or "", port.protocol
    return [
        p.port
        for p in piece.ports or ()
        if p.port and p.name == name and (p.protocol or Proto.TCP) is proto
    ]


def endpoint_address(each: SliceEndpoint, family: Family, piece: str, notes: Notes) -> str | None:
    """Return the first address in canonical form; None if it is unusable (contract 3.1.5)."""
    if not each.addresses:
        notes.append(f"EndpointSlice {piece}: an endpoint without addresses; ignored")
        return None
    try:
        address = parse_address(each.addresses[0])
    except AddressError as error:
        notes.append(f"EndpointSlice {piece}: {error}; ignored")
        return None
    if address.family is not family:
        notes.append(
            f"EndpointSlice {piece}: {address.text} is not of addressType {family}; ignored"
        )
        return None
    if reason := refusal(address):
        notes.append(f"EndpointSlice {piece}: {address.text} {reason}; ignored")
        return None
    return address.text


def backend(endpoint: Endpoint, each: SliceEndpoint, node: str, weight: int) -> Backend:
    """Read conditions, hints and whether the endpoint is on `node` (contract 3.1.6, 3.1.7)."""
    conditions, hints = each.conditions, each.hints
    ready = conditions is None or conditions.ready is not False
    serving = conditions is None or conditions.serving is not False
    terminating = conditions is not None and conditions.terminating is True
    return Backend(
        endpoint,
        ready and weight > 0,
        serving,
        serving and terminating and weight > 0,
        each.node_name == node,
        tuple(z.name for z in hints.for_zones or ()) if hints else (),
        tuple(n.name for n in hints.for_nodes or ()) if hints else (),
        weight,
    )


def _hinted(ready: list[Backend], here: Locality) -> list[Backend]:
    """Return the endpoints meant for this node, or else this zone, or else all (contract 3.3).

    Hints count only where every ready endpoint has one and one of them names this place.
    """
    for place, meant_for in (
        (here.node, [b.nodes for b in ready]),
        (here.zone, [b.zones for b in ready]),
    ):
        if place and all(meant_for):
            mine = [b for b, places in zip(ready, meant_for, strict=True) if place in places]
            if mine:
                return mine
    return ready
