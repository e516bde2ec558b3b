"""The way of a packet through a node.

Which hooks it meets in which order, and the routes in between.

Pure except for what it asks. A packet comes in by an interface, or is made on this node; it ends in
a process of this node, leaves by an interface, or does not get so far.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nftproxy.path.hooks import Branch, chains_of, pass_hook
from nftproxy.path.packet import Packet
from nftproxy.path.ruleset import LEGACY, Link, Ruleset, Surroundings, Way


class Stop(NamedTuple):
    """A hook on the way, and the branches after it."""

    hook: str
    family: str  # inet, bridge or netdev: which kind of hook
    device: str
    branches: tuple[Branch, ...]


@dataclass(slots=True)
class Journey:
    """What became of a packet.

    Stops in order, and the ends of all branches with the ways they take.
    """

    stops: list[Stop] = field(default_factory=list)
    ends: list["End"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class End:
    """The end of a branch: `delivered` to a process here, sent out on `way`, or neither."""

    branch: Branch
    way: Way | None = None
    delivered: bool = False

    @property
    def arrives(self) -> bool:
        """Whether the packet gets past this node, or to a process on it."""
        return self.branch.alive


class Traveller:
    """Sends packets through a ruleset.

    `choose` keeps the branches that are followed after the destination is chosen.
    """

    def __init__(
        self,
        rules: Ruleset,
        around: Surroundings,
        choose: Callable[[list[Branch]], list[Branch]] = lambda branches: branches,
    ) -> None:
        self._rules = rules
        self._around = around
        self._choose = choose
        self._chains = rules.base_chains()

    def arrive(self, packet: Packet) -> Journey:
        """Follow a packet that comes in by an interface."""
        journey = Journey()
        branches = self._enter(journey, [Branch(packet)])
        branches = self._layer3(journey, "prerouting", branches)
        self._route(journey, branches)
        return journey

    def leave(self, packet: Packet) -> Journey:
        """Follow a packet that a process of this node sends."""
        journey = Journey()
        way = self._around.to(packet.ends.destination, mark=packet.mark or 0)
        if way.error:
            journey.ends.append(End(Branch(packet, alive=False, why=way.error), way))
            return journey
        branches = [Branch(packet.at("", "lo" if way.local else way.device))]
        branches = self._layer3(journey, "output", branches)
        for way, group in self._ways(journey, branches, own=True):
            after = [
                replace(one, packet=one.packet.at("", "lo" if way.local else way.device))
                for one in group
            ]
            after = self._layer3(journey, "postrouting", after)
            if not way.local:
                self._exit(journey, after, way)
                continue
            after = [
                replace(one, packet=one.packet.at("lo", "")) if one.alive else one for one in after
            ]
            after = self._layer3(journey, "prerouting", after)
            after = self._layer3(journey, "input", after)
            journey.ends += [End(one, way, delivered=one.alive) for one in after if one.alive]
        return journey

    def _enter(self, journey: Journey, branches: list[Branch]) -> list[Branch]:
        """Pass what is below the internet protocol, by a bridge or not."""
        iif = branches[0].packet.iif
        branches = self._device(journey, "ingress", iif, branches)
        link = self._around.link(iif)
        master = self._around.link(link.master) if link and link.master else None
        if master is None or master.kind != "bridge":
            return branches
        for hook in ("prerouting", "input"):
            branches = self._pass(journey, hook, "bridge", {"bridge"}, branches)
        branches = [replace(one, packet=one.packet.at(master.name, "")) for one in branches]
        return self._device(journey, "ingress", master.name, branches)

    def _route(self, journey: Journey, branches: list[Branch]) -> None:
        for way, group in self._ways(journey, branches, own=False):
            if way.local:
                after = self._layer3(journey, "input", group)
                journey.ends += [End(one, way, delivered=one.alive) for one in after if one.alive]
                continue
            after = [
                replace(one, packet=one.packet.at(one.packet.iif, way.device)) for one in group
            ]
            after = self._layer3(journey, "forward", after)
            after = self._layer3(journey, "postrouting", after)
            self._exit(journey, after, way)

    def _ways(
        self, journey: Journey, branches: list[Branch], *, own: bool
    ) -> Iterable[tuple[Way, list[Branch]]]:
        """Group packets by the way that the kernel has for them; those without one end here."""
        groups: dict[Way, list[Branch]] = {}
        for branch in self._choose(branches):
            packet = branch.packet
            known = {} if own else {"source": packet.ends.source, "iif": packet.iif}
            way = self._around.to(packet.ends.destination, mark=packet.mark or 0, **known)  # type: ignore[arg-type]
            if way.error:
                journey.ends.append(End(replace(branch, alive=False, why=way.error), way))
            else:
                groups.setdefault(way, []).append(branch)
        return groups.items()

    def _exit(self, journey: Journey, branches: list[Branch], way: Way) -> None:
        """Pass what is below the internet protocol on the way out.

        Which port of a bridge it is, nobody here knows.
        """
        link: Link | None = self._around.link(way.device)
        if link and link.kind == "bridge":
            for hook in ("output", "postrouting"):
                branches = self._pass(journey, hook, "bridge", {"bridge"}, branches)
        branches = self._device(journey, "egress", way.device, branches)
        journey.ends += [End(one, way) for one in branches if one.alive]

    def _layer3(self, journey: Journey, hook: str, branches: list[Branch]) -> list[Branch]:
        if not branches:
            return []
        family = "ip" if branches[0].packet.size == 4 else "ip6"
        return self._pass(journey, hook, "inet", {family, "inet", LEGACY[family]}, branches)

    def _device(
        self, journey: Journey, hook: str, device: str, branches: list[Branch]
    ) -> list[Branch]:
        families = {"netdev", "inet"} if hook == "ingress" else {"netdev"}
        return self._pass(journey, hook, "netdev", families, branches, device)

    def _pass(
        self,
        journey: Journey,
        hook: str,
        kind: str,
        families: set[str],
        branches: list[Branch],
        device: str = "",
    ) -> list[Branch]:
        """Pass one hook; branches that end there are ends of the journey."""
        chains = chains_of(self._chains, hook, families, device)
        if not chains and kind != "inet":
            return branches
        after = pass_hook(branches, chains, hook, self._rules, self._around)
        journey.stops.append(Stop(hook, kind, device, tuple(after)))
        journey.ends += [End(one) for one in after if not one.alive]
        return [one for one in after if one.alive]
