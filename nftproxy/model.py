"""Kubernetes objects as typed values, with only the fields that are read (contract 1, 2, 3).

The Structs decode from JSON bytes and from parsed YAML; unknown fields are skipped, a wrong type is
an error that names the path. `gc=False` and short tuples keep 100 000 endpoints small. Addresses
are still texts here: `selection` parses them once.
"""

import enum
from typing import Annotated, Literal, NamedTuple

import msgspec


class Proto(enum.StrEnum):
    """A transport protocol, spelled as in the API."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @property
    def nft(self) -> str:
        """The name in nft syntax and in element keys (contract 5.3.2)."""
        return _NFT_NAMES[self]


_NFT_NAMES = {proto: proto.value.lower() for proto in Proto}


class Scheduler(enum.StrEnum):
    """How an endpoint is chosen for a new connection, spelled as in the annotation."""

    RANDOM = "random"
    SOURCE_HASH = "source-hash"  # by the client's address; a change of endpoints moves most clients
    MAGLEV = "maglev"  # by the client's address; a change of endpoints moves few clients


class ObjectName(NamedTuple):
    """A namespaced name; prints as namespace/name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Wire(msgspec.Struct, frozen=True, rename="camel", gc=False, kw_only=True):
    """The base of all decoded objects."""


Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrZero = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# Names become part of nft identifiers of ClientIP services and of log lines: only DNS labels and
# subdomains are accepted. They end with \Z, as a $ would let a newline follow.
DnsName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")]
DnsLabel = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")]
PortName = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?\Z")]


class Labels(Wire, frozen=True, rename=None):
    """The labels that have an effect here (contract 1.1.1, 1.1.2, 1.4.1, 3.1.1)."""

    proxy_name: str | None = msgspec.field(
        default=None, name="service.kubernetes.io/service-proxy-name"
    )
    headless: str | None = msgspec.field(default=None, name="service.kubernetes.io/headless")
    service_name: str | None = msgspec.field(default=None, name="kubernetes.io/service-name")
    zone: str | None = msgspec.field(default=None, name="topology.kubernetes.io/zone")


class Annotations(Wire, frozen=True, rename=None):
    """The annotations that are read: one of Kubernetes (contract 7.4.16), and our own."""

    trigger_time: str | None = msgspec.field(
        default=None, name="endpoints.kubernetes.io/last-change-trigger-time"
    )
    affinity_scope: str | None = msgspec.field(default=None, name="nftproxy.io/affinity-scope")
    scheduler: str | None = msgspec.field(default=None, name="nftproxy.io/scheduler")
    weight: str | None = msgspec.field(default=None, name="nftproxy.io/weight")


class Meta(Wire, frozen=True):
    """Object metadata. A manifest without a namespace means `default`, as for kubectl."""

    name: DnsName
    namespace: DnsLabel = "default"
    labels: Labels | None = None
    annotations: Annotations | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None

    @property
    def key(self) -> ObjectName:
        """The namespaced name."""
        return ObjectName(self.namespace, self.name)


class ServicePort(Wire, frozen=True):
    """One port of a Service (contract 2.1.4)."""

    port: Port
    name: PortName | None = None
    protocol: Proto = Proto.TCP
    node_port: PortOrZero | None = None


class ClientIp(Wire, frozen=True):
    """ClientIP affinity settings; at most a day (contract 2.4.1)."""

    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=86400)] | None = None


class AffinityConfig(Wire, frozen=True):
    """Session affinity settings."""

    client_ip: ClientIp | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Wire, frozen=True):
    """What a Service asks for.

    Fields that a service proxy does not read are absent (contract 2.1.6).
    """

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] | None = None
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    ports: tuple[ServicePort, ...] | None = None
    session_affinity: Literal["None", "ClientIP", ""] | None = None
    session_affinity_config: AffinityConfig | None = None
    external_traffic_policy: Literal["Cluster", "Local", ""] | None = None
    internal_traffic_policy: Literal["Cluster", "Local", ""] | None = None
    load_balancer_source_ranges: tuple[str, ...] | None = None
    health_check_node_port: PortOrZero | None = None


class Ingress(Wire, frozen=True):
    """One load-balancer address."""

    ip: str | None = None
    ip_mode: Literal["VIP", "Proxy"] | None = None


class LoadBalancer(Wire, frozen=True):
    """The addresses that a load balancer assigned to a Service."""

    ingress: tuple[Ingress, ...] | None = None


class ServiceStatus(Wire, frozen=True):
    """The part of the status with load-balancer addresses."""

    load_balancer: LoadBalancer | None = None


class Service(Wire, frozen=True):
    """core/v1 Service."""

    metadata: Meta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None

    @property
    def unassigned(self) -> bool:
        """Whether it lacks the ClusterIP that an API server would assign."""
        return self.spec.type != "ExternalName" and not self.spec.cluster_ip


class SlicePort(Wire, frozen=True):
    """One port of an EndpointSlice (contract 3.1.3); nil name or number: the entry is ignored."""

    name: str | None = None
    port: PortOrZero | None = None
    protocol: Proto | None = None


class Conditions(Wire, frozen=True):
    """Endpoint conditions.

    Nil ready and serving mean true, nil terminating means false (contract 3.1.6).
    """

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire, frozen=True):
    """A zone or node that an endpoint is meant for."""

    name: str


class Hints(Wire, frozen=True):
    """For which zones and nodes an endpoint is meant (contract 3.3)."""

    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class TargetRef(Wire, frozen=True):
    """The object, mostly a pod, that an endpoint is."""

    uid: str | None = None


class SliceEndpoint(Wire, frozen=True):
    """One endpoint of an EndpointSlice; only the first address is used (contract 3.1.5)."""

    addresses: tuple[str, ...] = ()
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None


class EndpointSlice(Wire, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: Meta
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None

    @property
    def service(self) -> ObjectName | None:
        """The Service this slice belongs to; None without the label (contract 3.1.1)."""
        labels = self.metadata.labels
        return (
            ObjectName(self.metadata.namespace, labels.service_name)
            if labels and labels.service_name
            else None
        )


class NodeSpec(Wire, frozen=True):
    """Node fields used by the NodeCIDR detector."""

    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")
    taints: "tuple[Taint, ...] | None" = None


class Taint(Wire, frozen=True):
    """A node taint; one key makes the node ineligible for load balancers (contract 7.1.9)."""

    key: str


class NodeAddress(Wire, frozen=True):
    """One address of a Node, of type InternalIP, ExternalIP or another."""

    type: str
    address: str


class NodeStatus(Wire, frozen=True):
    """The addresses that a Node has (contract 8.6.2)."""

    addresses: tuple[NodeAddress, ...] | None = None


class Node(Wire, frozen=True):
    """core/v1 Node."""

    metadata: Meta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def zone(self) -> str:
        """The zone label, empty without one (contract 1.4.1)."""
        return (self.metadata.labels and self.metadata.labels.zone) or ""


class ServiceCIDRSpec(Wire, frozen=True):
    """The address ranges of ClusterIPs."""

    cidrs: tuple[str, ...] | None = None


class ServiceCIDR(Wire, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: Meta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


Object = Service | EndpointSlice | Node | ServiceCIDR
KINDS: dict[str, type[Object]] = {
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Node": Node,
    "ServiceCIDR": ServiceCIDR,
}
