"""A path: what happens to the first packet of a connection, step by step, whoever's rule it is.

`explain` computes a path, other commands observe or draw one: the same types, the same words, the
same JSON. A step that nobody looked at says so; an answer that looks complete and is not is worse
than none. Pure values.
"""

import enum

import msgspec

from nftproxy.address import bracketed

VERSION = 1
"""Of the JSON.

A field may be added without a new number; one that changes its meaning or goes asks for the next.
"""


class PathValue(msgspec.Struct, frozen=True, rename="camel"):
    """The base of all parts of a path."""


class Origin(enum.StrEnum):
    """How a path came to be known."""

    COMPUTED = "computed"
    OBSERVED = "observed"


class Outcome(enum.StrEnum):
    """The outcome of a step."""

    OK = "ok"  # the packet goes on
    FOUND = "found"  # the packet goes on, to what was looked up
    STOPPED = "stopped"  # the packet ends here
    # The packet may end here: a limit, chance, or an expression that is not known decides
    MAY = "may"
    UNCHECKED = "not checked"


class Reach(enum.StrEnum):
    """Whether a connection gets to an endpoint."""

    YES = "yes"
    NO = "no"
    MAY = "may"  # it depends on chance, on a limit, or on something that is not known


class PlaceKind(enum.StrEnum):
    """Where a place is."""

    OBJECTS = "objects"  # what the cluster asks for: Services and EndpointSlices
    TABLE = "table"  # elements of our table
    HOOK = "hook"  # base chains
    ROUTE = "route"
    NEIGHBOUR = "neighbour"
    LINK = "link"
    SYSCTL = "sysctl"
    CONNTRACK = "conntrack"
    REPLY = "reply"  # an answer


class Whose(enum.StrEnum):
    """To whom a table of rules belongs."""

    OURS = "ours"
    FOREIGN = "foreign"


class Place(PathValue, frozen=True):
    """Where on its way the packet is; hook, priority and family only where chains are."""

    kind: PlaceKind
    hook: str = ""  # ingress, prerouting, input, forward, output, postrouting, egress
    # Of the table: ip, ip6, inet, bridge, netdev; iptables, ip6tables for those of iptables-legacy
    family: str = ""
    priority: int | None = None


class Rule(PathValue, frozen=True):
    """The rule that decided; without a handle it was the chain's policy.

    `text` is for people, as nft or iptables-legacy-save prints it; of iptables-legacy the handle is
    the rule's number in its chain.
    """

    whose: Whose
    family: str
    table: str
    chain: str
    handle: int | None = None
    text: str = ""

    @property
    def name(self) -> str:
        """The chain with its table."""
        return f"{self.family} {self.table} {self.chain}"


class Step(PathValue, frozen=True):
    """One step: a place, a look-up and its outcome."""

    name: str  # a word or two, as the text shows it: "services4", "forward", "route"
    place: Place
    looked_up: str  # "10.96.0.10 . tcp . 80"
    came_out: str  # "pick4-tcp-2: any of 2 endpoints"
    outcome: Outcome
    rule: Rule | None = None
    endpoint: str = (
        ""  # the step is about packets that go to this endpoint; empty: about all of them
    )
    details: tuple[str, ...] = ()

    @property
    def checked(self) -> bool:
        """Whether it was looked at."""
        return self.outcome is not Outcome.UNCHECKED


class Target(PathValue, frozen=True):
    """What is asked for; `service` is empty for an address of no Service."""

    asked: str  # as the user wrote it
    address: str = ""
    port: int = 0
    protocol: str = ""  # tcp, udp, sctp
    service: str = ""  # namespace/name:port
    # ClusterIP, External, LoadBalancer, NodePort, Endpoint; empty for an address of no Service
    kind: str = ""


class Client(PathValue, frozen=True):
    """Who asks; `what` is pod, node or outside."""

    address: str
    what: str
    interface: str = ""


class Candidate(PathValue, frozen=True):
    """An endpoint that the Service has.

    Used, with its share of new connections, or left out, and why.
    """

    address: str
    port: int
    used: bool
    share: float | None = None  # of 1
    reason: str = ""
    reach: Reach | None = None  # None: not followed further

    def __str__(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"


class Reply(PathValue, frozen=True):
    """What was seen of an answer: "answered", "refused", "silent" or "passed by", and when."""

    what: str
    who: str = ""
    milliseconds: float | None = None


class Cause(PathValue, frozen=True):
    """Why a connection does not get through.

    A word for programs, a sentence for people, and commands that mend it.
    """

    code: str
    text: str
    commands: tuple[str, ...] = ()


class Path(PathValue, frozen=True):
    """The way of a connection's first packet."""

    origin: Origin
    target: Target
    client: Client
    reach: Reach
    steps: tuple[Step, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    causes: tuple[Cause, ...] = ()  # the first one is the answer
    not_checked: tuple[str, ...] = ()
    reply: Reply | None = None
    node: str = ""
    version: int = VERSION


def to_json(path: Path) -> bytes:
    """Return a path as its schema says."""
    return msgspec.json.format(msgspec.json.encode(path))


def of_json(text: bytes) -> Path:
    """Return the path that JSON holds."""
    return msgspec.json.decode(text, type=Path)
