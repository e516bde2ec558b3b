"""What our table says to a frontend.

Source ranges, the map of frontends, endpoints, or a refusal and why.

Pure except for what it asks of `Node`: single elements, one for each slot.
"""

from collections import Counter
from dataclasses import dataclass, field

from nftproxy.address import Address, Network, bracketed, mask
from nftproxy.model import Scheduler
from nftproxy.path import held
from nftproxy.path.aim import Aim
from nftproxy.path.cluster import Cluster, why_none
from nftproxy.path.model import Cause, Client, Outcome, Place, PlaceKind, Step
from nftproxy.path.view import NodeView
from nftproxy.routes import Verdict
from nftproxy.table import schema
from nftproxy.table.jhash import slot
from nftproxy.table.schema import Declaration, Policy

_MOST = 1024
"""Slots that are asked for; a list with more is named by its length."""
_LARGEST = 65536
"""Slots of a list with a scheduler."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the maps have for a frontend, and which endpoints that leaves for this client."""

    found: Verdict | None = None
    none: Verdict | None = None
    guarded: bool = False  # it has source ranges
    allowed: bool = True
    policy: Policy | None = None
    cluster: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    slots: Counter[str] = field(default_factory=Counter)  # how many each of `endpoints` has
    picked: str = ""  # that of them which this client gets, where its address decides

    @property
    def local_only(self) -> bool:
        """Whether the policy keeps traffic on this node."""
        if self.policy is None:
            return bool(self.none and self.none.drops)
        return self.policy is Policy.LOCAL or (
            self.policy is Policy.PRESERVE and self.endpoints == self.local
        )


def choose(aimed: Aim, client: Client, node: NodeView) -> Choice:
    """Look a frontend up."""
    if aimed.frontend is None:
        return Choice()
    family, frontend = aimed.family, aimed.frontend
    guard = None
    if not frontend.is_node_port:
        guard = held.verdict(node.held, schema.FIREWALL, family, frontend)
    found = held.verdict(node.held, schema.SERVICES, family, frontend)
    none = held.verdict(node.held, schema.NO_ENDPOINTS, family, frontend)
    policy = schema.policy(found.target) if found else None
    by = schema.scheduler(found.target) if found else Scheduler.RANDOM
    cluster = _slots(node, schema.ENDPOINTS, aimed, by) if policy and policy.uses_cluster else ()
    local = _slots(node, schema.LOCAL_ENDPOINTS, aimed, by) if policy and policy.uses_local else ()
    inside = client.what in {"pod", "node"}
    used = (
        cluster
        if policy and policy.uses_cluster and (inside or policy is not Policy.PRESERVE)
        else local
    )
    allowed = guard is None or _is_allowed(aimed, client, node)
    if not allowed:
        used = ()
    by_address = by is not Scheduler.RANDOM
    picked = used[slot(client.address, len(used))] if by_address and used and client.address else ""
    return Choice(
        found,
        none,
        guard is not None,
        allowed,
        policy,
        tuple(dict.fromkeys(cluster)),
        tuple(dict.fromkeys(local)),
        tuple(dict.fromkeys(used)),
        Counter(used),
        picked,
    )


def _slots(
    node: NodeView, declaration: Declaration, aimed: Aim, scheduler: Scheduler
) -> tuple[str, ...]:
    """Return the endpoints of a list: slots are dense, so the first that is not there ends it."""
    assert aimed.frontend  # noqa: S101 - asked for by `choose` alone
    frontend = aimed.frontend
    where = declaration.name(aimed.family, frontend.proto, node_port=frontend.is_node_port)
    found: list[str] = []
    for number in range(_MOST if scheduler is Scheduler.RANDOM else _LARGEST):
        there, value = node.held.get(where, frontend.slot(number))
        if not there or not isinstance(value, tuple):
            break
        address, port = value
        found.append(f"{bracketed(str(address))}:{port}")
    return tuple(found)


def ranges(aimed: Aim, client: str, node: NodeView) -> list[str]:
    """Return the prefix lengths that let a client pass; each is one element."""
    assert aimed.frontend  # noqa: S101
    found = []
    address = Address(aimed.family, client)
    for length in range(aimed.family.bits + 1):
        key = (*aimed.frontend.key, mask(address, length).text)
        if node.held.get(schema.ALLOWED.name(aimed.family, length), key)[0]:
            found.append(str(Network(aimed.family, mask(address, length).text, length)))
    return found


def _is_allowed(aimed: Aim, client: Client, node: NodeView) -> bool:
    return not client.address or bool(ranges(aimed, client.address, node))


def own_steps(aimed: Aim, choice: Choice, client: Client, node: NodeView) -> list[Step]:
    """Return what our table did, as steps."""
    if aimed.frontend is None:
        return []
    key = " . ".join(map(str, aimed.frontend.key))
    steps = []
    table = Place(PlaceKind.TABLE, family="inet")
    if choice.guarded:
        where = schema.FIREWALL.name(aimed.family)
        if choice.allowed:
            said = (
                f"{client.address or 'the client'} is in "
                f"{', '.join(ranges(aimed, client.address, node)) if client.address else '?'}"
            )
            steps.append(Step("source ranges", table, f"{where} {key}", said, Outcome.OK))
        else:
            said = f"{client.address} is in none of them: dropped"
            return [Step("source ranges", table, f"{where} {key}", said, Outcome.STOPPED)]
    else:
        steps.append(Step("source ranges", table, key, "none on this address", Outcome.OK))
    name = schema.SERVICES.name(aimed.family, node_port=aimed.frontend.is_node_port)
    if choice.found:
        number = len(choice.endpoints)
        many = f"any of {number} endpoints" if number > 1 else "one endpoint"
        if choice.picked:
            many = f"{choice.picked} by the hash of {client.address}, one of {number} endpoints"
        said = f"{choice.found.target}: {many if number else 'no endpoint for this client'}"
        outcome = Outcome.FOUND if choice.endpoints else Outcome.STOPPED
        steps.append(Step(name, table, key, said, outcome))
    elif choice.none:
        name = schema.NO_ENDPOINTS.name(aimed.family, node_port=aimed.frontend.is_node_port)
        verb = "dropped" if choice.none.drops else "rejected"
        steps.append(Step(name, table, key, f"no endpoint to use: {verb}", Outcome.STOPPED))
    else:
        steps.append(Step(name, table, key, "not in the table", Outcome.STOPPED))
    return steps


def refusal(
    aimed: Aim, choice: Choice, client: Client, node: NodeView, cluster: Cluster | None
) -> list[Cause]:
    """Return why our table refuses; empty if it does not."""
    if aimed.frontend is None:
        return []
    service = aimed.target.service
    if not choice.allowed:
        said = f"{client.address} is not in loadBalancerSourceRanges of {service}"
        known = _ranges_of(aimed, cluster)
        said += f": they are {', '.join(known)}." if known else "."
        return [Cause("source-ranges", said, _patch(aimed, client, known))]
    if choice.endpoints:
        return []
    if choice.found or (choice.none and choice.none.drops):
        return [_local(aimed, cluster, node)]
    if choice.none is None:
        said = f"{aimed.frontend} of {service} is not in the table of this node: it is behind."
        trouble = node.trouble()
        return [Cause("behind", f"{said} {trouble}".strip(), ("journalctl -u nftproxy -n 50",))]
    name = aimed.name
    commands: tuple[str, ...] = ()
    if name:
        label = f"kubernetes.io/service-name={name.name}"
        commands = (f"kubectl -n {name.namespace} get endpointslices -l {label} -o wide",)
    if cluster and name and aimed.port:
        word, said = why_none(cluster, name, aimed.port, aimed.family)
        return [Cause(word, f"{said}.", commands)]
    return [Cause("no-endpoints", f"{service} has no endpoint that can be used.", commands)]


def _ranges_of(aimed: Aim, cluster: Cluster | None) -> list[str]:
    if cluster and aimed.name and aimed.name in cluster.services:
        return list(cluster.services[aimed.name].spec.load_balancer_source_ranges or ())
    return []


def _patch(aimed: Aim, client: Client, known: list[str]) -> tuple[str, ...]:
    if not aimed.name or not known:
        return ()
    wanted = ",".join(f'"{one}"' for one in [*known, f"{client.address}/{aimed.family.bits}"])
    patch = f'{{"spec":{{"loadBalancerSourceRanges":[{wanted}]}}}}'
    return (f"kubectl -n {aimed.name.namespace} patch service {aimed.name.name} -p '{patch}'",)


def _local(aimed: Aim, cluster: Cluster | None, node: NodeView) -> Cause:
    inside = aimed.target.kind == "ClusterIP"
    policy = "internalTrafficPolicy" if inside else "externalTrafficPolicy"
    said = f"{policy} of {aimed.target.service} is Local, and no endpoint is on this node"
    if cluster and aimed.name:
        nodes = {
            each.node_name
            for piece in cluster.slices.get(aimed.name, ())
            for each in piece.endpoints or ()
            if each.node_name and each.node_name != node.name
        }
        said += (
            f"; {', '.join(sorted(nodes))} ha{'ve' if len(nodes) > 1 else 's'} one" if nodes else ""
        )
    commands: tuple[str, ...] = ()
    if aimed.name:
        patch = f'{{"spec":{{"{policy}":"Cluster"}}}}'
        start = f"kubectl -n {aimed.name.namespace} patch service {aimed.name.name}"
        commands = (f"{start} -p '{patch}'",)
    return Cause("policy-local", f"{said}.", commands)
