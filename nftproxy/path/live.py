"""The ruleset of the maker's network namespace, read from the kernel as far as it is asked for.

Chains are read when a packet gets there, and once; sets are asked for single elements and never
listed, so ten thousand Services cost no more than ten. Nothing is written, and libnftables has no
part in it, so no table of anybody's does any harm.
"""

from collections.abc import Sequence
from contextlib import suppress

from nftproxy.errors import KernelError, MissingError
from nftproxy.kernel.channel import Channel
from nftproxy.path.expressions import expression_of
from nftproxy.path.ruleset import (
    NftBaseChain,
    NftChain,
    NftRule,
    NftTable,
    RuleExpression,
    SetElement,
)
from nftproxy.table import netlink
from nftproxy.table.netlink import (
    FAMILIES,
    FAMILY_NAMES,
    Data,
    Elements,
    Message,
    Set,
    VerdictAttribute,
    attributes,
    named,
    nested,
    text,
)
from nftproxy.table.netlink import ChainAttribute as ChainPart
from nftproxy.table.netlink import ElementAttribute as Part
from nftproxy.table.netlink import Hook as HookPart
from nftproxy.table.netlink import RuleAttribute as RulePart
from nftproxy.table.netlink import TableAttribute as TablePart
from nftproxy.table.packing import unpack_comment

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_DEVICE_HOOKS = ("ingress", "egress")
_ATTEMPTS = 20


class LiveRuleset:
    """All tables, as they are now."""

    def __init__(self, channel: Channel | None = None) -> None:
        self._channel = channel or Channel()
        self._base: list[NftBaseChain] | None = None
        self._rules: dict[NftChain, list[NftRule]] = {}
        self._lengths: dict[tuple[NftTable, str], int] = {}
        self._elements: dict[tuple[NftTable, str, bytes], SetElement | None] = {}
        self.generation = self._channel.generation()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    @property
    def changed(self) -> bool:
        """Whether anybody has changed a table since the first look."""
        return self._channel.generation() != self.generation

    def base_chains(self) -> Sequence[NftBaseChain]:
        """Return the base chains of all tables that are not dormant.

        Of those of one priority the last one made is met first.
        """
        if self._base is None:
            asleep = set(self._asleep())
            found = []
            for number, message in self._channel.dump_all(Message.GET_CHAIN, _ATTEMPTS):
                chain = _base_chain(FAMILY_NAMES.get(number, ""), netlink.parts(message))
                if chain and chain.chain.table not in asleep:
                    found.append(chain)
            found.reverse()
            self._base = sorted(found, key=lambda chain: chain.priority)
        return self._base

    def _asleep(self) -> list[NftTable]:
        found = []
        for number, message in self._channel.dump_all(Message.GET_TABLE, _ATTEMPTS):
            parts = netlink.parts(message)
            if int.from_bytes(parts.get(TablePart.FLAGS, b"")) & netlink.DORMANT:
                found.append(NftTable(FAMILY_NAMES.get(number, ""), text(parts[TablePart.NAME])))
        return found

    def rules(self, chain: NftChain) -> Sequence[NftRule]:
        """Return the rules of a chain, in order."""
        if chain not in self._rules:
            wanted = named(RulePart.TABLE, chain.table.name) + named(RulePart.CHAIN, chain.name)
            messages = self._channel.dump(
                Message.GET_RULE, wanted, family=FAMILIES[chain.table.family]
            )
            self._rules[chain] = [
                rule
                for rule in (_rule(chain, netlink.parts(message)) for message in messages)
                if rule
            ]
        return self._rules[chain]

    def key_length(self, table: NftTable, name: str) -> int:
        """Return how long the keys of a set are."""
        if (table, name) not in self._lengths:
            wanted = named(Set.TABLE, table.name) + named(Set.NAME, name)
            (message,) = self._channel.get(Message.GET_SET, wanted, family=FAMILIES[table.family])
            self._lengths[table, name] = int.from_bytes(netlink.parts(message[4:])[Set.KEY_LENGTH])
        return self._lengths[table, name]

    def element(self, table: NftTable, name: str, key: bytes) -> SetElement | None:
        """Return an element of a set; None when it is not there, and no other stands for all."""
        place = table, name, key
        if place not in self._elements:
            packed = nested(Part.KEY, netlink.attribute(Data.VALUE, key))
            found = self._ask(table, name, packed)
            if found is None:
                with suppress(KernelError):  # before Linux 5.13 nothing stands for all
                    found = self._ask(
                        table, name, netlink.attribute(Part.FLAGS, netlink.CATCHES_ALL.to_bytes(4))
                    )
            self._elements[place] = found
        return self._elements[place]

    def _ask(self, table: NftTable, name: str, packed: bytes) -> SetElement | None:
        wanted = named(Elements.TABLE, table.name) + named(Elements.SET, name)
        wanted += nested(Elements.LIST, nested(netlink.LIST_ITEM, packed))
        try:
            answers = self._channel.get(Message.GET_ELEMENTS, wanted, family=FAMILIES[table.family])
        except MissingError:
            return None
        for message in answers:
            items = netlink.parts(message[4:]).get(Elements.LIST, b"")
            for _, place in attributes(items):
                return _element(netlink.parts(items, place))
        return None


def _base_chain(family: str, parts: dict[int, bytes]) -> NftBaseChain | None:
    if ChainPart.HOOK not in parts or family not in FAMILIES:
        return None
    hook = netlink.parts(parts[ChainPart.HOOK])
    number = int.from_bytes(hook[HookPart.NUMBER])
    hooks = _DEVICE_HOOKS if family == "netdev" else _HOOKS
    devices = [hook[HookPart.DEVICE]] if HookPart.DEVICE in hook else []
    if HookPart.DEVICES in hook:
        inside = hook[HookPart.DEVICES]
        devices += [inside[start:end] for _, (start, end) in attributes(inside)]
    return NftBaseChain(
        NftChain(NftTable(family, text(parts[ChainPart.TABLE])), text(parts[ChainPart.NAME])),
        text(parts.get(ChainPart.TYPE, b"filter")),
        hooks[number] if number < len(hooks) else str(number),
        int.from_bytes(hook[HookPart.PRIORITY], signed=True),
        ChainPart.POLICY in parts and int.from_bytes(parts[ChainPart.POLICY]) == 0,
        tuple(dict.fromkeys(map(text, devices))),
    )


def _rule(chain: NftChain, parts: dict[int, bytes]) -> NftRule | None:
    if text(parts[RulePart.TABLE]) != chain.table.name or text(parts[RulePart.CHAIN]) != chain.name:
        return None
    return NftRule(
        chain,
        int.from_bytes(parts[RulePart.HANDLE]),
        _expressions(parts.get(RulePart.EXPRESSIONS, b"")),
    )


def _expressions(packed: bytes) -> tuple[RuleExpression, ...]:
    return tuple(expression_of(packed[start:end]) for _, (start, end) in attributes(packed))


def _element(parts: dict[int, bytes]) -> SetElement:
    data, code, target = b"", None, ""
    if Part.DATA in parts:
        content = netlink.parts(parts[Part.DATA])
        if Data.VERDICT in content:
            verdict = netlink.parts(content[Data.VERDICT])
            code = int.from_bytes(verdict[VerdictAttribute.CODE], signed=True)
            target = text(verdict.get(VerdictAttribute.CHAIN, b""))
        else:
            data = content[Data.VALUE]
    inside = [expression_of(parts[Part.EXPRESSION])] if Part.EXPRESSION in parts else []
    inside += _expressions(parts.get(Part.EXPRESSIONS, b""))
    # Counters differ from look to look and decide nothing.
    deciding = tuple(one for one in inside if one.name not in {"counter", "last"})
    comment = unpack_comment(parts.get(Part.USER_DATA, b""))
    return SetElement(data, code, target, text(parts.get(Part.OBJECT, b"")), deciding, comment)
