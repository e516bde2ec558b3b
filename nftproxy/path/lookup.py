"""What our table does with connections to one frontend, element by element.

Pure, apart from the questions to `Held`.

Only single keys are asked for, never a whole map, so the number of Services does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nftproxy.address import Family, mask, parse_address
from nftproxy.path.held import Held, has, verdict
from nftproxy.routes import Frontend, Verdict
from nftproxy.selection import Endpoint
from nftproxy.table import schema
from nftproxy.table.schema import Policy

MOST = 64  # endpoints that are named


@dataclass(frozen=True, slots=True)
class Lookup:
    """The answers of the table about one frontend."""

    family: Family
    frontend: Frontend
    is_cluster_ip: bool
    is_filtered: bool  # only some sources may connect
    choice: Verdict | None  # where new connections choose an endpoint
    refusal: Verdict | None  # what happens to those that no endpoint gets
    learn: tuple[int, str] | None  # ClientIP affinity: seconds, and the service port

    @property
    def is_known(self) -> bool:
        """Whether any Service has this frontend."""
        return bool(self.choice or self.refusal)

    @property
    def service(self) -> str:
        """The service port by the name in its elements; empty if no Service has it."""
        return (self.choice or self.refusal or Verdict("")).comment

    @property
    def policy(self) -> Policy | None:
        """Who gets which list; None if there is no endpoint to choose from."""
        return schema.policy(self.choice.target) if self.choice else None

    @property
    def kind(self) -> str:
        """What the address is, in the words of `show`; empty if no Service has it."""
        if not self.is_known:
            return ""
        if self.frontend.is_node_port:
            return "NodePort"
        if self.is_cluster_ip:
            return "ClusterIP"
        return "LoadBalancer" if self.is_filtered else "External"


def look_up(held: Held, family: Family, frontend: Frontend) -> Lookup:
    """Ask the table about a frontend."""
    learn = verdict(held, schema.LEARN, family, frontend)
    return Lookup(
        family,
        frontend,
        not frontend.is_node_port and has(held, schema.CLUSTER_IPS, family, frontend.address),
        not frontend.is_node_port and verdict(held, schema.FIREWALL, family, frontend) is not None,
        verdict(held, schema.SERVICES, family, frontend),
        verdict(held, schema.NO_ENDPOINTS, family, frontend),
        schema.parse_learn(learn.target) if learn else None,
    )


def is_allowed(held: Held, family: Family, frontend: Frontend, source: str) -> bool:
    """Whether a source is in the loadBalancerSourceRanges of a frontend."""
    address = parse_address(source)
    return address.family is family and any(
        held.get(schema.ALLOWED.name(family, length), (*frontend.key, mask(address, length).text))[
            0
        ]
        for length in range(family.bits + 1)
    )


def listed(
    held: Held, family: Family, frontend: Frontend, *, local: bool
) -> tuple[int, list[Endpoint]]:
    """Return how many endpoints a list of a frontend has, and the first of them."""
    maps = schema.maps(family, frontend.proto, frontend.is_node_port)
    name = maps.local_endpoints if local else maps.endpoints

    def at(number: int) -> tuple[str | int, ...] | None:
        value = held.get(name, frontend.slot(number))[1]
        return value if isinstance(value, tuple) and not isinstance(value, Verdict) else None

    count = _length(lambda number: at(number) is not None)
    slots = (at(number) for number in range(min(count, MOST)))
    return count, [Endpoint(str(slot[0]), int(slot[1])) for slot in slots if slot]


def _length(has_slot: Callable[[int], bool]) -> int:
    """Return the length of a list whose slots are dense from 0, in few questions."""
    if not has_slot(0):
        return 0
    low, high = 0, 1
    while has_slot(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if has_slot(middle) else (low, middle)
    return high
