"""The expressions of a rule that end it or change the packet.

Refusals, translations, what xtables brings.

Pure except for what it asks of `Surroundings`.
"""

# ruff: noqa: ARG002 - all expressions are given the same
from collections.abc import Iterable
from dataclasses import replace

from nftproxy.path import xtables
from nftproxy.path.machine import RegisterValue, unknown
from nftproxy.path.packet import Packet
from nftproxy.path.reading import Reading, both, broken, integer
from nftproxy.path.ruleset import ATTRIBUTES, NftRule
from nftproxy.path.state import Doubt, Event, RuleState
from nftproxy.table import expressions as nft
from nftproxy.table import netlink
from nftproxy.table.expressions import VerdictCode

_NETMAP = 0x40  # NF_NAT_RANGE_NETMAP


class Ending(Reading):
    """Ends rules of one base chain and the chains that it calls."""

    __slots__ = ()

    def reject(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Refuse, and say so to the client."""
        kind = integer(data[nft.Reject.TYPE])
        code = data.get(nft.Reject.CODE, b"\0")[-1]
        said = {
            nft.RejectType.ICMP: f"ICMP unreachable, code {code}",
            nft.RejectType.TCP_RESET: "TCP reset",
        }
        return [
            replace(
                state,
                code=VerdictCode.DROP,
                reject=said.get(
                    nft.RejectType(kind), f"ICMP unreachable, code {code} of both families"
                ),
            )
        ]

    def nat(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Translate source or destination."""
        destination = integer(data[nft.Nat.TYPE]) == nft.NatType.DESTINATION
        flags = integer(data[nft.Nat.FLAGS]) if nft.Nat.FLAGS in data else 0
        size = state.packet.size
        address = _loaded(data, nft.Nat.ADDRESS, size, state)
        last = (
            _loaded(data, nft.Nat.ADDRESS_END, size, state)
            if nft.Nat.ADDRESS_END in data
            else address
        )
        port = _loaded(data, nft.Nat.PORT, 2, state)
        for value in (address, port):
            if value is not None and not value.is_known:
                return [
                    replace(
                        state,
                        code=VerdictCode.ACCEPT,
                        doubts=(*state.doubts, Doubt("unknown", value.why, rule)),
                        translated=True,
                    )
                ]
        found = []
        addresses = _addresses(
            address, last, state.packet, destination=destination, netmap=bool(flags & _NETMAP)
        )
        ports = [None] if port is None else [int.from_bytes(option) for option in port.options]
        for one in addresses:
            for number_of_it in ports:
                packet = state.packet.translated(
                    destination=destination, address=one, port=number_of_it
                )
                doubts = state.doubts
                if len(addresses) * len(ports) > 1:
                    doubts = (*doubts, Doubt("chance", "one of several addresses or ports", rule))
                found.append(
                    _translated(
                        replace(state, doubts=doubts), packet, rule, destination=destination
                    )
                )
        return found

    def masquerade(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Give the packet an address of this node as its source."""
        address = self.around.address_of(state.packet.oif, state.packet.size)
        packet = state.packet.translated(destination=False, address=address, port=None)
        return [_translated(state, packet, rule, destination=False)]

    def redirect(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Send the packet to this node itself."""
        size = state.packet.size
        loopback = bytes((127, 0, 0, 1)) if size == 4 else bytes(15) + b"\x01"
        address = (
            loopback
            if self.base.hook == "output"
            else self.around.address_of(state.packet.iif, size)
        )
        port = _loaded(data, nft.Redirect.PORT, 2, state)
        to = int.from_bytes(port.options[0]) if port is not None and port.is_exact else None
        packet = state.packet.translated(destination=True, address=address, port=to)
        return [_translated(state, packet, rule, destination=True)]

    def other(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Let the packet pass a statement that changes nothing about where it goes."""
        return [state]

    def untracked(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Keep conntrack off the packet."""
        return [replace(state, packet=replace(state.packet, untracked=True, tracked=None))]

    def handed_over(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Give the packet to somebody else, who decides."""
        return [replace(state, code=VerdictCode.STOLEN)]

    def queued(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Give the packet to a program: it may come back, or not."""
        doubt = Doubt("unknown", "a program that the rule asks", rule)
        doubtful = replace(state, doubts=(*state.doubts, doubt))
        return [
            replace(doubtful, code=VerdictCode.ACCEPT),
            replace(doubtful, code=VerdictCode.DROP),
        ]

    def meets(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Look at the conditions at the head of a rule of iptables-legacy."""
        met = xtables.meets(data[nft.Extension.INFO], state.packet)
        return [state if met else broken(state)]

    def match(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Ask a match of xtables."""
        name, info = netlink.text(data[nft.Extension.NAME]), data.get(nft.Extension.INFO, b"")
        answers = xtables.match(
            name, integer(data[nft.Extension.REVISION]), info, state.packet, self.around
        )
        if answers is None:
            return both(state, Doubt("unknown", f"the xtables match {name}", rule))
        kind = (
            "chance" if name in xtables.CHANCE else "limit" if name in xtables.LIMITS else "unknown"
        )
        return decided(answers, unknown(0, f"the xtables match {name}"), rule, state, kind)

    def target(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Run a target of xtables."""
        name, info = netlink.text(data[nft.Extension.NAME]), data.get(nft.Extension.INFO, b"")
        done = xtables.target(
            name,
            integer(data[nft.Extension.REVISION]),
            info,
            state.packet,
            self.around,
            self.base.hook,
        )
        if done is None:
            doubt = Doubt("unknown", f"the xtables target {name}", rule)
            doubtful = replace(state, doubts=(*state.doubts, doubt))
            return [doubtful, replace(doubtful, code=VerdictCode.DROP)]
        after = replace(state, packet=done.packet, code=done.code, reject=done.reject)
        if done.destination is not None:
            return [_translated(after, done.packet, rule, destination=done.destination)]
        if done.packet.mark != state.packet.mark:
            return [replace(after, events=(*state.events, Event("mark", rule)))]
        return [after]


def decided(
    answers: set[bool], value: RegisterValue, rule: NftRule, state: RuleState, kind: str = ""
) -> list[RuleState]:
    """Go on where the answer is yes, break where it is no."""
    if len(answers) > 1:
        chance = value.is_known and len(value.options) > 1
        return both(state, Doubt(kind or ("chance" if chance else "unknown"), value.why, rule))
    return [state if True in answers else broken(state)]


def _translated(state: RuleState, packet: Packet, rule: NftRule, *, destination: bool) -> RuleState:
    event = Event("destination" if destination else "source", rule)
    return replace(
        state,
        packet=packet,
        code=VerdictCode.ACCEPT,
        events=(*state.events, event),
        translated=True,
    )


def _addresses(
    first: RegisterValue | None,
    last: RegisterValue | None,
    packet: Packet,
    *,
    destination: bool,
    netmap: bool,
) -> list[bytes | None]:
    """Return the addresses that a translation can choose from."""
    if first is None or last is None:
        return [None]
    low, high = first.options[0], last.options[0]
    if netmap:
        old = packet.ends.destination if destination else packet.ends.source
        mask = bytes(one ^ other for one, other in zip(low, high, strict=True))
        return [bytes(o & m | n & ~m & 0xFF for o, n, m in zip(old, low, mask, strict=True))]
    if first == last:
        return list(first.options)
    start, end = int.from_bytes(low), int.from_bytes(high)
    return [each.to_bytes(len(low)) for each in range(start, min(end, start + 255) + 1)]


def _loaded(data: ATTRIBUTES, key: int, length: int, state: RuleState) -> RegisterValue | None:
    return state.registers.load(integer(data[key]), length) if key in data else None
