"""Which service port a frontend belongs to by our table, and what kind of address it has.

Pure, apart from the questions to `Held`. Single keys are asked for, never a whole map, so the
number of Services does not matter.
"""

from typing import NamedTuple

from nftproxy.address import Family
from nftproxy.path.held import Held, has, verdict
from nftproxy.routes import Frontend
from nftproxy.table import schema


class Lookup(NamedTuple):
    """A frontend that a service port has; `kind` in the words of `show`."""

    family: Family
    frontend: Frontend
    service: str
    kind: str


def look_up(held: Held, family: Family, frontend: Frontend) -> Lookup | None:
    """Return whose a frontend is; None if no Service has it."""
    for declaration in (schema.SERVICES, schema.NO_ENDPOINTS):
        if found := verdict(held, declaration, family, frontend):
            return Lookup(family, frontend, found.comment, kind(held, family, frontend))
    return None


def kind(held: Held, family: Family, frontend: Frontend) -> str:
    """Return what the address of a frontend is."""
    if frontend.is_node_port:
        return "NodePort"
    if has(held, schema.CLUSTER_IPS, family, frontend.address):
        return "ClusterIP"
    return "LoadBalancer" if verdict(held, schema.FIREWALL, family, frontend) else "External"
