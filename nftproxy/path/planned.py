"""A node that only manifests describe.

The elements that a sync would write, and nothing of a machine. Pure.
"""

from collections.abc import Iterable, Sequence

from nftproxy.address import Family
from nftproxy.path.held import HeldByPlan
from nftproxy.path.view import Machine
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.table import schema
from nftproxy.table.preview import Preview

_WHY = "only manifests are read"


class PlannedNode:
    """The view of a node before there is a table."""

    machine: Machine | None = None

    def __init__(self, name: str, previews: Iterable[Preview], why: str = _WHY) -> None:
        self.name = name
        self._elements: dict[str, dict[Key, Value]] = {}
        for preview in previews:
            self._elements |= preview.added
        self.held = HeldByPlan(self._elements)
        self.lacks: Sequence[str] = (
            f"the table, other programs' rules, routes and neighbours of the node ({why})",
        )

    def has_table(self) -> bool:
        """Whether there is a table: there would be."""
        return True

    def find(self, service: str) -> list[tuple[Family, Frontend]]:
        """Return the frontends of a Service, or of one of its ports."""
        return named(self._verdicts(), service)

    def names(self) -> list[str]:
        """Return the names of all service ports."""
        return sorted({value.comment for _, _, value in self._verdicts() if value.comment})

    def ports_at(self, address: str) -> list[str]:
        """Return the ports that an address has."""
        return ports(self._verdicts(), address)

    def nodeport_addresses(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts.

        None if all but loopback do, or if nobody knows.
        """
        found = self._elements.get(schema.NODEPORT_IPS.name(family))
        return None if found is None else [str(key[0]) for key in found]

    def _verdicts(self) -> "list[Listed]":
        return [
            (place.family, Frontend.of_key(key), value)
            for name, items in self._elements.items()
            if (place := schema.parse(name))
            and place.declaration in {schema.SERVICES, schema.NO_ENDPOINTS}
            for key, value in items.items()
            if isinstance(value, Verdict)
        ]


Listed = tuple[Family, Frontend, Verdict]
"""An element that says which Service a frontend belongs to."""


def named(elements: Iterable[Listed], service: str) -> list[tuple[Family, Frontend]]:
    """Return the frontends of a Service, or of one of its ports: ClusterIPs and IPv4 first."""
    found = {
        (family, frontend)
        for family, frontend, value in elements
        if service in {value.comment, value.comment.partition(":")[0]}
    }
    return sorted(found, key=lambda one: (one[1].is_node_port, one[0] is Family.IPv6, one[1]))


def ports(elements: Iterable[Listed], address: str) -> list[str]:
    """Return the ports of an address, as in "80/tcp", sorted."""
    found = {
        (frontend.port, frontend.proto)
        for _, frontend, _ in elements
        if frontend.address == address
    }
    return [f"{port}/{proto}" for port, proto in sorted(found)]
