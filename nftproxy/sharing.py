"""ClientIP affinity for a whole Service: one memory for all of its ports.

Pure. A client is remembered with an address. Where pods have different port numbers for one port of
the Service, or none, the addresses form groups, each with a memory of its own. A port looks a
client up in the groups that have it, and adds the port number. So nobody is sent to an endpoint
that the port does not have, and what the other ports remember stays.
"""

from collections.abc import Iterator, Sequence

import msgspec

from nftproxy.address import Family
from nftproxy.selection import Endpoint
from nftproxy.table import schema


class Group(msgspec.Struct, frozen=True, gc=False):
    """The endpoints of a Service with the same port numbers for its ports, nearly always all."""

    name: str
    addresses: tuple[str, ...]


class Shared(msgspec.Struct, frozen=True, gc=False):
    """The memory that all ports of a Service share: for each list, who may be remembered where.

    A client is remembered with an address. What group it is in says which ports may look there, and
    which port number they add.
    """

    family: Family
    service: str
    timeout: int
    cluster: tuple[Group, ...]
    local: tuple[Group, ...]

    def lists(self) -> Iterator[tuple[schema.Declaration, schema.Declaration, tuple[Group, ...]]]:
        """Yield for each list its kind of member sets, its kind of memories, and its groups."""
        yield schema.SERVICE_MEMBERS, schema.SERVICE_AFFINITY, self.cluster
        yield schema.LOCAL_SERVICE_MEMBERS, schema.LOCAL_SERVICE_AFFINITY, self.local

    def places(self) -> dict[tuple[schema.Declaration, str], str]:
        """Return the memory of each endpoint address of each list."""
        return {
            (declaration, address): declaration.name(self.family, group.name)
            for _, declaration, groups in self.lists()
            for group in groups
            for address in group.addresses
        }

    def memories(self) -> dict[str, frozenset[str]]:
        """Return the names of the maps from client to endpoint address, each with its addresses."""
        return {
            declaration.name(self.family, group.name): frozenset(group.addresses)
            for _, declaration, groups in self.lists()
            for group in groups
        }


class SharedPart(msgspec.Struct, frozen=True, gc=False):
    """What one service port has of the memory that the ports of its Service share.

    All groups of each list, in the order in which a client is looked up, each with the port number
    of the service port's endpoints; 0 where it has none of them.
    """

    service: str
    groups: str  # all, as in chain names
    lookup: str  # those of the service port with its port numbers, as in chain names
    cluster: tuple[tuple[str, int], ...]
    local: tuple[tuple[str, int], ...]

    @classmethod
    def of(
        cls, service: str, cluster: tuple[tuple[str, int], ...], local: tuple[tuple[str, int], ...]
    ) -> "SharedPart":
        """Return the part with such groups."""
        numbers = {number for _, number in cluster + local if number}
        lists = [" ".join(f"{name}:{number}" for name, number in each) for each in (cluster, local)]
        names = [" ".join(name for name, _ in each) for each in (cluster, local)]
        return cls(
            service,
            schema.looked_up((), "|".join(names)),
            schema.looked_up(numbers, "|".join(lists)),
            cluster,
            local,
        )


def grouped(
    service: str, lists: Sequence[Sequence[Endpoint]]
) -> tuple[tuple[Group, ...], list[tuple[tuple[str, int], ...]]]:
    """Return the groups of the endpoints of some ports, and for each port its number in each.

    Groups that fewer ports have are first: a client who got one of them where others were not known
    keeps it. Of several port numbers of an address for one port, the lowest counts.
    """
    numbers: dict[str, list[int]] = {}
    used = [port for port, endpoints in enumerate(lists) if endpoints]
    for column, port in enumerate(used):
        for endpoint in lists[port]:
            row = numbers.setdefault(endpoint.address, [0] * len(used))
            row[column] = min(row[column] or endpoint.port, endpoint.port)
    members: dict[tuple[int, ...], list[str]] = {}
    for address, row in numbers.items():
        members.setdefault(tuple(row), []).append(address)
    rows = sorted(members, key=lambda row: (-row.count(0), row))
    names = [schema.group(service, row) for row in rows]
    columns = {port: column for column, port in enumerate(used)}
    of_ports = [
        tuple(
            (name, row[columns[port]] if port in columns else 0)
            for name, row in zip(names, rows, strict=True)
        )
        for port in range(len(lists))
    ]
    groups = tuple(
        Group(name, tuple(sorted(members[row]))) for name, row in zip(names, rows, strict=True)
    )
    return groups, of_ports
