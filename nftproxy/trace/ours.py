"""What our own table said to a packet, in words: from the chains that it met. Pure."""

from nftproxy.kernel.headers import PacketHeader
from nftproxy.model import Scheduler
from nftproxy.path.model import Outcome, Place, PlaceKind, Step
from nftproxy.path.packet import PROTOCOL_NAMES, text
from nftproxy.table import schema
from nftproxy.table.expressions import VerdictCode
from nftproxy.table.schema import Policy
from nftproxy.trace.events import POLICY, RULE, TraceEvent, TraceVisit

SOURCE_RANGES = {"filter-prerouting", "filter-output-early"}
CHOICE = {"nat-prerouting", "nat-output"}
REFUSAL = {"filter-forward", "filter-input", "filter-output"}
_TABLE = Place(PlaceKind.TABLE)
NO_RANGES = Step("source ranges", _TABLE, "", "none on this address", Outcome.OK)
"""Also where the table has no such chains, because no Service has source ranges."""


def protocol(header: PacketHeader) -> str:
    """Return the name of a protocol."""
    return PROTOCOL_NAMES.get(header.protocol, str(header.protocol))


def key(header: PacketHeader, *, node_port: bool = False) -> str:
    """Return whom a packet asks for, as an element of our table has it."""
    end = header.destination
    return (
        f"{protocol(header)} . {end.port}"
        if node_port
        else f"{text(end.address)} . {protocol(header)} . {end.port}"
    )


def chosen(visit: TraceVisit) -> schema.Pick | None:
    """Return the pick that a packet got to, and never the chain for slot 0 in which all picks end.

    None if the client was remembered, or nothing was picked.
    """
    if schema.is_sticky(visit.last.chain):
        return None
    names = (name for e in reversed(visit.events) for name in (e.target, e.chain))
    picks = filter(None, map(schema.parse_pick, names))
    return next((pick for pick in picks if pick.size), None)


def found(visit: TraceVisit) -> TraceEvent | None:
    """Return the report that says which element of the maps of frontends matched."""
    return next(
        (
            event
            for event in visit.events
            if event.chain.startswith("find-service")
            and event.kind == RULE
            and event.verdict in {VerdictCode.GOTO, VerdictCode.JUMP}
        ),
        None,
    )


def ranges(visit: TraceVisit) -> Step:
    """Return the step about source ranges."""
    asked = next((e for e in visit.events if e.chain == "firewall" and e.target), None)
    if asked is None:
        return NO_RANGES
    looked_up = ""
    if visit.header:
        source = text(visit.header.source.address)
        looked_up = f"{key(visit.header)} . {source}"
    if visit.stopped:
        said = "the source is in no range of this address: dropped"
        return Step("source ranges", _TABLE, looked_up, said, Outcome.STOPPED)
    return Step("source ranges", _TABLE, looked_up, "the source is in a range", Outcome.OK)


def choice(visit: TraceVisit, header: PacketHeader) -> Step:
    """Return the step that finds a frontend."""
    event = found(visit)
    if event is None:
        said = "not in the table: no endpoint to choose"
        return Step(schema.SERVICES.name(header.family), _TABLE, key(header), said, Outcome.OK)
    pick = chosen(visit)
    node_port = "nodeport-" in event.target
    name = schema.SERVICES.name(header.family, node_port=node_port)
    said = f"{event.target}: {_words(visit, pick)}"
    outcome = Outcome.OK if visit.last.kind == POLICY else Outcome.FOUND
    return Step(name, _TABLE, key(header, node_port=node_port), said, outcome)


def size(visit: TraceVisit) -> int:
    """Return of how many slots one was chosen; without weights, each is an endpoint.

    0 if the client was remembered, or nobody can say.
    """
    pick = chosen(visit)
    if pick is None:
        return 0
    return pick.own if pick.policy is Policy.PRESERVE and pick.own else pick.size


def _words(visit: TraceVisit, pick: schema.Pick | None) -> str:
    if schema.is_sticky(visit.last.chain):
        return "the endpoint that this client had before"
    if pick is None:
        return "an endpoint"
    if visit.last.kind == POLICY:
        return "no endpoint for this client"
    number = size(visit)
    if pick.scheduler is not Scheduler.RANDOM:
        said = f"the endpoint of the client's slot, one of {number} ({pick.scheduler})"
    else:
        said = "the only endpoint" if number == 1 else f"any of {number} endpoints"
    if pick.policy is Policy.LOCAL:
        said += " on this node"
    masks = any(schema.policy(event.chain) is Policy.EXTERNAL for event in visit.events)
    return f"{said}, masqueraded" if masks else said


def refusal(visit: TraceVisit, *, rejects: bool) -> tuple[Step, str] | None:
    """Return the step that refuses a packet, and a word for the reason; None if none does."""
    header = visit.header
    if not visit.stopped or header is None:
        return None
    last, family = visit.last, header.family
    held, looked_up = schema.NO_ENDPOINTS, key(header)
    if last.chain == f"refuse-unknown{family.digit}" and rejects:
        held, said, reason = schema.CLUSTER_IPS, "a ClusterIP without this port", "wrong-port"
    elif last.chain == f"refuse-unknown{family.digit}":
        held, said, reason = schema.SERVICE_CIDRS, "in the range of Services", "unallocated"
    elif rejects:
        said, reason = "no endpoint", "no-endpoints"
    else:
        said, reason = "policy Local, and no endpoint on this node", "policy-local"
    said += ": rejected" if rejects else ": dropped"
    return Step(held.name(family), _TABLE, looked_up, said, Outcome.STOPPED), reason
