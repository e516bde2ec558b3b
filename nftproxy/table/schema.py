"""The names of everything in our table, made and parsed here and nowhere else.

Pure. There is one declaration for each set or map of `rulesets/`; a test compares the two. A name
says what its owner is: `nodeport_endpoints4-tcp` holds the cluster lists of the NodePorts of IPv4
and TCP.
"""

import enum
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.model import Scheduler

PROTOCOLS = ("tcp", "udp", "sctp")
VERDICT = "verdict"
REJECT_NEW = "reject-new"
"""The chain that rejects a connection: a verdict map cannot hold "reject"."""
DROP_NEW = "drop-new"
"""The chain that drops a connection where refusals are logged: the verdict "drop" logs nothing."""
SEED = 0x6E667470
"""Of the hash of a client's address: the same on all nodes, whatever release they run."""
LOG_GROUP = 10256
"""The group of NFLOG in which refusals are logged."""
LOG_LINES, LOG_BURST = 10, 20
"""How many refusals a second are logged for each reason, and how many at once.

The rest is counted.
"""
LOG_BYTES = 96
"""How much of a packet is logged: the headers of IPv6 and of a transport."""


class Reason(enum.StrEnum):
    """Why a packet is refused; the label of the metric, and the prefix where it is logged."""

    NO_ENDPOINTS = "no-endpoints"
    POLICY_LOCAL = "policy-local"
    SOURCE_RANGE = "source-range"
    UNKNOWN_PORT = "unknown-port"
    UNALLOCATED = "unallocated-address"


class Per(enum.Enum):
    """How often a set or map stands in the table.

    The value is the end of its name in `rulesets/`.
    """

    FAMILY = ""
    PROTOCOL = "-$proto"
    LENGTH = "-$length"  # prefix length of source ranges
    SERVICE_PORT = "-$id"  # with ClientIP affinity
    ENDPOINT_PORT = "-$id-$port"  # port number of the endpoints of such a service port
    GROUP = "-$peers"  # of endpoints of a Service whose ports share a memory


@dataclass(frozen=True, eq=False)
class Declaration:
    """A set or map, and its twin for NodePorts, whose keys have no address.

    Keys and values have a letter for each field: an address, a protocol, a port (service), a slot
    number.
    """

    base: str
    key: str
    value: str = ""  # VERDICT in a map of verdicts; empty in a set
    per: Per = Per.FAMILY
    twin: bool = False
    counter: bool = False
    late: bool = False  # verdicts point to its elements, which are therefore deleted after these
    learnt: bool = False  # the kernel fills it
    of_node: bool = False  # says something about the node or the cluster, not about a Service
    interval: bool = False

    @lru_cache(4096)  # noqa: B019 - declarations are constants of this module
    def name(self, family: Family, *details: str | int, node_port: bool = False) -> str:
        """Return the name of one of them, with the `details` that `per` asks for."""
        start = f"{_TWIN if node_port else ''}{self.base}{family.digit}"
        return "-".join((start, *map(str, details)))


_TWIN = "nodeport_"
_FRONTEND, _SLOT, _ENDPOINT = "aps", "asn", "as"

CLUSTER_IPS = Declaration("cluster_ips", "a")
SERVICE_CIDRS = Declaration("service_cidrs", "a", of_node=True, interval=True)
NODEPORT_IPS = Declaration("nodeport_ips", "a", of_node=True)
LOCALHOST_NODEPORTS = Declaration("localhost_nodeports", "ps")
FIREWALL = Declaration("firewall", _FRONTEND, VERDICT)
SERVICES = Declaration("services", _FRONTEND, VERDICT, twin=True, counter=True)
NEW_CLIENTS = Declaration("new_clients", _FRONTEND, twin=True, counter=True)
NO_ENDPOINTS = Declaration("no_endpoints", _FRONTEND, VERDICT, twin=True, counter=True)
HAIRPIN = Declaration("hairpin", "aaps")
MEMBERS = Declaration("members", "aps")
LEARN = Declaration("learn", _FRONTEND, VERDICT, twin=True)
GONE = Declaration("gone", "aps", of_node=True)
ENDPOINTS = Declaration(
    "endpoints", _SLOT, _ENDPOINT, Per.PROTOCOL, twin=True, counter=True, late=True
)
LOCAL_ENDPOINTS = Declaration(
    "local_endpoints", _SLOT, _ENDPOINT, Per.PROTOCOL, twin=True, counter=True, late=True
)
ALLOWED = Declaration("allowed", "apsa", per=Per.LENGTH, late=True)
CLUSTER_MEMBERS = Declaration("cluster_members", _ENDPOINT, per=Per.SERVICE_PORT)
LOCAL_MEMBERS = Declaration("local_members", _ENDPOINT, per=Per.SERVICE_PORT)
AFFINITY = Declaration("affinity", "a", "a", Per.ENDPOINT_PORT, learnt=True)
LOCAL_AFFINITY = Declaration("local_affinity", "a", "a", Per.ENDPOINT_PORT, learnt=True)
SERVICE_MEMBERS = Declaration("service_members", "a", per=Per.GROUP)
LOCAL_SERVICE_MEMBERS = Declaration("local_service_members", "a", per=Per.GROUP)
SERVICE_AFFINITY = Declaration("service_affinity", "a", "a", Per.GROUP, learnt=True)
LOCAL_SERVICE_AFFINITY = Declaration("local_service_affinity", "a", "a", Per.GROUP, learnt=True)
REMEMBERED_IN = {
    CLUSTER_MEMBERS: AFFINITY,
    LOCAL_MEMBERS: LOCAL_AFFINITY,
    SERVICE_MEMBERS: SERVICE_AFFINITY,
    LOCAL_SERVICE_MEMBERS: LOCAL_SERVICE_AFFINITY,
}
"""The sets of those that the kernel may remember, for each ClientIP service port or Service, and
the memories that are for them."""

DECLARATIONS = {
    each.base: each for each in list(globals().values()) if isinstance(each, Declaration)
}
_NAME = re.compile(rf"({_TWIN})?({'|'.join(DECLARATIONS)})([46])(?:-(.+))?", re.DOTALL)
_DETAILS = {
    Per.PROTOCOL: re.compile("|".join(PROTOCOLS)),
    Per.LENGTH: re.compile("[0-9]+"),
    Per.SERVICE_PORT: re.compile(".+", re.DOTALL),
    Per.ENDPOINT_PORT: re.compile(".+-[0-9]+", re.DOTALL),
    Per.GROUP: re.compile(".+-[0-9.]+", re.DOTALL),
}
_FAMILIES = {family.digit: family for family in Family}


class ParsedName(NamedTuple):
    """The content of the name of a set or map."""

    declaration: Declaration
    family: Family
    node_port: bool
    # the detail that `per` asks for: a protocol, a prefix length, a service port, that and a port
    # number
    detail: str

    @property
    def key(self) -> str:
        """The fields of its keys."""
        return self.declaration.key[1:] if self.node_port else self.declaration.key

    @property
    def memory(self) -> tuple[str, int]:
        """The service port and the endpoints' port number in the name of a map of clients."""
        service_port, _, port = self.detail.rpartition("-")
        return service_port, int(port)

    @property
    def service(self) -> str:
        """The Service in the name of a set or map of a group of endpoints."""
        return self.detail.rpartition("-")[0]


@lru_cache(4096)
def parse(name: str) -> ParsedName | None:
    """Return the parts of the name of a set or map; None if it is not one of the program's."""
    if not (match := _NAME.fullmatch(name)):
        return None
    twin, base, digit, detail = match.groups()
    declaration = DECLARATIONS[base]
    if (twin and not declaration.twin) or (detail is None) != (declaration.per is Per.FAMILY):
        return None
    if detail is not None and not _DETAILS[declaration.per].fullmatch(detail):
        return None
    return ParsedName(declaration, _FAMILIES[digit], bool(twin), detail or "")


def declaration(name: str) -> Declaration | None:
    """Return the declaration of a set or map of that name."""
    place = parse(name)
    return place and place.declaration


def is_compared(name: str, family: Family) -> bool:
    """Whether a set holds elements of Services of a family.

    Not the node's, not learnt ones, not those of another release.
    """
    place = parse(name)
    return bool(
        place
        and place.family is family
        and not (place.declaration.of_node or place.declaration.learnt)
    )


def is_memory(name: str, family: Family) -> bool:
    """Whether a map is filled by the kernel: a memory of clients of a family."""
    place = parse(name)
    return place is not None and place.declaration.learnt and place.family is family


def is_allowed(name: str, family: Family) -> bool:
    """Whether a set holds allowed sources of a family."""
    place = parse(name)
    return place is not None and place.declaration is ALLOWED and place.family is family


def lengths(names: Iterable[str], family: Family) -> set[int]:
    """Return the prefix lengths of the sets of allowed sources among `names`."""
    places = filter(None, map(parse, names))
    return {
        int(each.detail) for each in places if each.declaration is ALLOWED and each.family is family
    }


class Maps(NamedTuple):
    """The names of the sets and maps of a frontend."""

    services: str
    no_endpoints: str
    new_clients: str
    learn: str
    endpoints: str
    local_endpoints: str


@cache
def maps(family: Family, proto: str, node_port: bool) -> Maps:  # noqa: FBT001 - a cache key, asked for each frontend
    """Return the names of a protocol's sets and maps of frontends: with address, or NodePorts."""
    general = (
        each.name(family, node_port=node_port)
        for each in (SERVICES, NO_ENDPOINTS, NEW_CLIENTS, LEARN)
    )
    slots = (each.name(family, proto, node_port=node_port) for each in (ENDPOINTS, LOCAL_ENDPOINTS))
    return Maps(*general, *slots)


# ---- chains --------------------------------------------------------------------------------------


class Policy(enum.Enum):
    """The distribution of lists at a frontend (contract 2.3.5 to 2.3.7)."""

    CLUSTER = "cluster"  # a ClusterIP: everybody, the cluster list
    LOCAL = "local"  # a ClusterIP with internal policy Local: everybody, the local list
    EXTERNAL = "external"  # everybody, the cluster list, masqueraded
    # External policy Local: pods and this node the cluster list, others the local list
    PRESERVE = "preserve"

    @property
    def uses_cluster(self) -> bool:
        """Whether anybody gets the cluster list."""
        return self is not Policy.LOCAL

    @property
    def uses_local(self) -> bool:
        """Whether anybody gets the local list."""
        return self is Policy.LOCAL or self is Policy.PRESERVE


_PICKS = {
    Policy.CLUSTER: "pick",
    Policy.EXTERNAL: "external",
    Policy.LOCAL: "local",
    Policy.PRESERVE: "preserve",
}
_POLICIES = {name: policy for policy, name in _PICKS.items()}
_SIDE = "nodeport-"
_BY = {Scheduler.RANDOM: "", Scheduler.SOURCE_HASH: "hash-", Scheduler.MAGLEV: "maglev-"}
_SCHEDULERS = {start: scheduler for scheduler, start in _BY.items()}
_START = rf"({_SIDE})?({'|'.join(filter(None, _SCHEDULERS))})?({'|'.join(_POLICIES)})"
_FIRST = "first"
_PICK = re.compile(
    rf"{_START}([46])-({'|'.join(PROTOCOLS)})-([1-9][0-9]*|{_FIRST})(?:-([1-9][0-9]*))?"
)
_STICKY = "sticky-"
_ENTRY = re.compile(rf"(?:{_STICKY})?{_START}")
_LEARN = re.compile(r"learn(_service)?(?:_local|_both)?[46]-([0-9]+)-[0-9.]+-(.+)", re.DOTALL)
_PROGRAM = "program-"

# libnftables aborts the process on names of more than 255 characters. The longest starts with this,
# followed by ports and name; with a scheduler there is less room for ports.
PORTS_LIMIT = 40
NAME_LIMIT = 255 - len("sticky-nodeport-preserve4-sctp-65536-65536-") - PORTS_LIMIT - 1


class Pick(NamedTuple):
    """The content of the name of a pick chain."""

    policy: Policy
    family: Family
    proto: str
    # Slots of the list, or of the cluster list where both are used; 0 in the chain that takes the
    # first slot
    size: int
    own: int  # slots of the local list where both are used
    node_port: bool
    scheduler: Scheduler

    @property
    def by(self) -> str:
        """The start of the names of chains that go by the client's address."""
        return _BY[self.scheduler]

    @property
    def side(self) -> str:
        """The start of the names of such chains, and of those for NodePorts."""
        return (_SIDE if self.node_port else "") + self.by


def pick(
    policy: Policy,
    family: Family,
    proto: str,
    cluster: int,
    local: int,
    scheduler: Scheduler = Scheduler.RANDOM,
    *,
    node_port: bool,
) -> str:
    """Return the name of the chain that chooses from lists of that many slots.

    Empty without endpoints.
    """
    side = (_SIDE if node_port else "") + _BY[scheduler]
    if policy is Policy.LOCAL or (policy is Policy.PRESERVE and not cluster):
        return f"{side}local{family.digit}-{proto}-{local}" if local else ""
    own = f"-{local}" if policy is Policy.PRESERVE and local else ""
    return f"{side}{_PICKS[policy]}{family.digit}-{proto}-{cluster}{own}" if cluster else ""


def parse_pick(name: str) -> Pick | None:
    """Return the content of the name of a pick chain; None for other chains."""
    if not (match := _PICK.fullmatch(name)):
        return None
    side, by, base, digit, proto, count, own = match.groups()
    policy = _POLICIES[base]
    if own and policy is not Policy.PRESERVE:
        return None
    if count == _FIRST and (by or policy not in (Policy.CLUSTER, Policy.LOCAL)):
        return None
    return Pick(
        policy,
        _FAMILIES[digit],
        proto,
        0 if count == _FIRST else int(count),
        int(own or 0),
        bool(side),
        _SCHEDULERS[by or ""],
    )


def policy(chain: str) -> Policy | None:
    """Return the policy of a pick, or of the sticky chain before one, by its name."""
    match = _ENTRY.match(chain)
    return _POLICIES[match[3]] if match else None


def scheduler(chain: str) -> Scheduler:
    """Return how a pick chooses, or the one behind a sticky chain, by its name."""
    match = _ENTRY.match(chain)
    return _SCHEDULERS[(match and match[2]) or ""]


def sticky(picked: str, ports: str, service_port: str) -> str:
    """Return the name of the chain that looks a client up before a pick."""
    return f"{_STICKY}{picked}-{ports}-{service_port}"


def is_sticky(chain: str) -> bool:
    """Whether a chain looks clients up before a pick."""
    return chain.startswith(_STICKY)


def learn(
    family: Family,
    timeout: int,
    ports: str,
    owner: str,
    *,
    cluster: bool,
    local: bool,
    shared: bool = False,
) -> str:
    """Return the name of the chain that remembers clients, for the lists that are used.

    `owner` is a service port, or the Service whose ports share a memory.
    """
    lists = "_both" if cluster and local else "_local" if local else ""
    step = f"learn{'_service' if shared else ''}{lists}"
    return f"{step}{family.digit}-{timeout}-{ports}-{owner}"


class Learn(NamedTuple):
    """The content of the name of a chain that remembers clients."""

    timeout: int
    owner: str  # a service port, or a Service
    shared: bool


def parse_learn(chain: str) -> Learn | None:
    """Return the content of the name of a chain that remembers clients; None for other chains."""
    match = _LEARN.fullmatch(chain)
    return Learn(int(match[2]), match[3], bool(match[1])) if match else None


def allowed(family: Family) -> str:
    """Return the name of the chain that lets allowed sources pass."""
    return f"allowed{family.digit}"


def masquerade(family: Family) -> str:
    """Return the name of the chain that spares some sources."""
    return f"masquerade{family.digit}"


SOURCE_RANGES = ("filter-prerouting", "filter-output-early", "firewall")
"""The chains that ask for source ranges."""
TRANSLATED = "translated"
"""The chain for connections that have an endpoint; it has a rule for each `remember`."""


def remember(family: Family) -> str:
    """Return the name of the chain that finds the chain which remembers a client."""
    return f"remember{family.digit}"


def optional(families: Iterable[Family]) -> set[str]:
    """Return the names of the program's chains that are there only while a Service needs them."""
    return {*SOURCE_RANGES, *map(remember, families)}


def needed_by(where: str) -> tuple[str, ...]:
    """Return the optional chains without which no packet looks into a set; none for most sets."""
    place = parse(where)
    if place and place.declaration is FIREWALL:
        return SOURCE_RANGES
    if place and place.declaration in (MEMBERS, LEARN):
        return (remember(place.family),)
    return ()


def refuse_unknown(family: Family) -> str:
    """Return the name of the chain that refuses what no frontend has."""
    return f"refuse-unknown{family.digit}"


def reset_gone(family: Family) -> str:
    """Return the name of the chain that resets connections to endpoints that are gone."""
    return f"reset-gone{family.digit}"


def refuse_localhost(family: Family) -> str:
    """Return the name of the chain that refuses NodePorts on loopback addresses."""
    return f"refuse-localhost{family.digit}"


def log(reason: Reason) -> str:
    """Return the name of the chain that logs what is refused for a reason."""
    return f"log-{reason}"


def program(digest: str) -> str:
    """Return the name of the empty chain that names the program in the table."""
    return f"{_PROGRAM}{digest}"


def parse_program(chain: str) -> str:
    """Return the digest in the name of such a chain; empty for other chains."""
    return chain.removeprefix(_PROGRAM) if chain.startswith(_PROGRAM) else ""


def ports(numbers: Iterable[int], scheduler: Scheduler = Scheduler.RANDOM) -> str:
    """Return port numbers as in names."""
    return bounded(".".join(map(str, numbers)), PORTS_LIMIT - len(_BY[scheduler]))


def group(service: str, numbers: Iterable[int]) -> str:
    """Return the name of a group of endpoints: their port number for each port of the Service."""
    return f"{service}-{ports(numbers)}"


def looked_up(numbers: Iterable[int], groups: str) -> str:
    """Return port numbers as in names, with a digest of the groups that they are looked up in."""
    shown = "".join(f"{number}." for number in sorted(numbers))
    return f"{shown[: PORTS_LIMIT - 20 - max(map(len, _BY.values()))]}{_digest(groups)}"


def bounded(text: str, limit: int = NAME_LIMIT) -> str:
    """Shorten a part of a name; a digest distinguishes the cut parts (contract 5.6.3)."""
    return text if len(text) <= limit else f"{text[: limit - 21]}.{_digest(text)}"


def _digest(text: str) -> str:
    """Return 20 decimal digits."""
    return f"{int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]):020}"
