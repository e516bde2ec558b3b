"""What nodes have to remember.

Which endpoints clients of ClientIP services are to be sent to again (contract 2.4).
"""

from collections.abc import Iterable, Mapping

from nftproxy.address import Family
from tests.support.journey import Choice, Memory
from tests.support.oracle import Endpoint, Oracle, Which

Oracles = Mapping[tuple[str, Family], list[Oracle]]
LISTS: tuple[Which, ...] = ("cluster", "local")


class Recollection:
    """For each client and each list the endpoints it used and that stayed in the list since.

    The first one that was used is what counts. Only of several with different port numbers any may
    be the one: the contract speaks of an accidental order there (2.4.4).
    """

    def __init__(self) -> None:
        self._oracles: Oracles = {}
        self._used: dict[Choice, dict[int, Endpoint]] = {}
        self._unsure: set[Choice] = set()  # where the contract leaves open what is remembered

    def renew(self, oracles: Oracles) -> None:
        """Go on with another state of the cluster.

        Endpoints that left a list are forgotten (2.4.5).
        """
        self._oracles = oracles
        for choice in [*self._used, *self._unsure]:
            if not any(self._members(choice)):
                self._used.pop(choice, None)
                self._unsure.discard(choice)
        for choice, used in self._used.items():
            for port, endpoint in list(used.items()):
                inside = [endpoint in members for members in self._members(choice)]
                if not all(inside):
                    del used[port]
                    if any(inside):
                        self._unsure.add(choice)

    def expected(self, choice: Choice) -> frozenset[Endpoint]:
        """Return the endpoints of which a client has to be sent to one.

        Empty if it may be sent to any.
        """
        return (
            frozenset()
            if choice in self._unsure
            else frozenset(self._used.get(choice, {}).values())
        )

    def note(self, memory: Memory, endpoint: Endpoint) -> None:
        """Take in that a client reached an endpoint."""
        for which in LISTS:
            choice = Choice(memory, which)
            inside = [endpoint in members for members in self._members(choice)]
            if all(inside):
                self._used.setdefault(choice, {}).setdefault(endpoint.port, endpoint)
            elif any(inside):
                self._unsure.add(choice)

    def doubt(self, memories: Iterable[Memory]) -> None:
        """Take in that these may hold what nobody saw."""
        self._unsure |= {Choice(memory, which) for memory in memories for which in LISTS}

    def _members(self, choice: Choice) -> list[frozenset[Endpoint]]:
        """Return what may be remembered, in each reading of the cluster."""
        memory, which = choice
        family = Family.IPv6 if ":" in memory.client else Family.IPv4
        found = [
            oracle.members().get(memory.owner) for oracle in self._oracles[memory.node, family]
        ]
        return [lists[which] if lists else frozenset() for lists in found]
