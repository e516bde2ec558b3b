"""What a packet is like while a rule runs.

Itself, the registers, what is in doubt, what has been looked up and changed. Pure.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from nftproxy.path.machine import Registers
from nftproxy.path.packet import Packet
from nftproxy.path.ruleset import NftRule, SetElement
from nftproxy.table.expressions import VerdictCode


class Doubt(NamedTuple):
    """Why a packet may also go another way.

    Chance, a limit, or something that is not known, at a rule.
    """

    kind: str  # chance, limit, unknown or size
    what: str
    rule: NftRule | None


class Event(NamedTuple):
    """Something that a rule did.

    Looked a key up, gave the packet a mark, or another destination or source.
    """

    kind: str  # lookup, mark, destination, source
    rule: NftRule
    name: str = ""  # of the set
    key: bytes = b""
    element: SetElement | None = None


@dataclass(frozen=True, slots=True)
class RuleState:
    """A packet in a rule. `code` is CONTINUE until a verdict ends the rule."""

    packet: Packet
    registers: Registers = field(default_factory=Registers, compare=False)
    code: int = VerdictCode.CONTINUE
    target: str = ""
    doubts: tuple[Doubt, ...] = ()
    events: tuple[Event, ...] = ()
    reject: str = ""
    translated: bool = False
