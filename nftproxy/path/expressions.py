"""One rule, run on a packet: what each expression reads, decides and changes.

Pure except for what it asks of `Ruleset` and `Surroundings`. An expression leads to one state or to
several; what is not known here leads to both outcomes, with the rule named as the doubt, and is
never guessed.
"""

# ruff: noqa: ARG002 - all expressions are given the same
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from nftproxy.path.ending import Ending, decided
from nftproxy.path.machine import (
    Registers,
    bitwise,
    byteorder,
    choice,
    compare,
    exact,
    shift,
    unknown,
    within,
)
from nftproxy.path.reading import both, broken, integer, of_machine, store
from nftproxy.path.ruleset import ATTRIBUTES, NftRule, RuleExpression, SetElement
from nftproxy.path.state import Doubt, Event, RuleState
from nftproxy.table import expressions as nft
from nftproxy.table import netlink
from nftproxy.table.expressions import BitwiseOperation, VerdictCode
from nftproxy.table.jhash import jhash

_LIMITS = {
    "limit": "a limit of packets",
    "quota": "a quota of bytes",
    "connlimit": "a limit of connections",
}
_INVERTED = 1  # NFT_LOOKUP_F_INV
_DELETE = 2  # NFT_DYNSET_OP_DELETE


class RuleMachine(Ending):
    """Runs rules of one base chain and the chains that it calls."""

    __slots__ = ()

    def run(self, rule: NftRule, state: RuleState) -> list[RuleState]:
        """Run a rule; return the states that it can end in, each once."""
        states = [replace(state, registers=Registers())]
        ended: list[RuleState] = []
        for expression in rule.expressions:
            after = [each for one in states for each in self._step(expression, rule, one)]
            ended += [one for one in after if one.code != VerdictCode.CONTINUE]
            states = [one for one in after if one.code == VerdictCode.CONTINUE]
            if not states:
                break
        return _each_once(ended + states, state)

    def _step(
        self, expression: RuleExpression, rule: NftRule, state: RuleState
    ) -> Iterable[RuleState]:
        name, data = expression
        if name in _STEPS:
            return _STEPS[name](self, data, rule, state)
        if name in _LIMITS:
            return both(state, Doubt("limit", _LIMITS[name], rule))
        return both(state, Doubt("unknown", f"the expression {name}", rule))

    # ---- what computes and compares ----

    def numgen(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Draw a number."""
        offset = integer(data[nft.Numgen.OFFSET]) if nft.Numgen.OFFSET in data else 0
        value = choice(offset, integer(data[nft.Numgen.MODULUS]), "chance")
        return [store(state, integer(data[nft.Numgen.TO]), value)]

    def hash(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Take a hash of a known value; else any of the numbers that it can be."""
        offset = integer(data[nft.Hash.OFFSET]) if nft.Hash.OFFSET in data else 0
        modulus = integer(data[nft.Hash.MODULUS])
        value = choice(offset, modulus, "a hash")
        if nft.Hash.FROM in data and nft.Hash.SEED in data and nft.Hash.LENGTH in data:
            length = integer(data[nft.Hash.LENGTH])
            hashed = state.registers.load(integer(data[nft.Hash.FROM]), length)
            if hashed.is_exact:
                number = jhash(hashed.options[0][:length], integer(data[nft.Hash.SEED]))
                scaled = offset + (number * modulus >> 32)
                value = exact(scaled.to_bytes(4, sys.byteorder))
        return [store(state, integer(data[nft.Hash.TO]), value)]

    def immediate(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Load a constant, or say a verdict."""
        content = netlink.parts(data[nft.Immediate.DATA])
        if netlink.Data.VERDICT in content:
            verdict = netlink.parts(content[netlink.Data.VERDICT])
            code = int.from_bytes(verdict[netlink.VerdictAttribute.CODE], signed=True)
            return [
                replace(
                    state,
                    code=code,
                    target=netlink.text(verdict.get(netlink.VerdictAttribute.CHAIN, b"")),
                )
            ]
        return [store(state, integer(data[nft.Immediate.TO]), exact(content[netlink.Data.VALUE]))]

    def bitwise(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Change bits."""
        length = integer(data[nft.Bitwise.LENGTH])
        value = state.registers.load(integer(data[nft.Bitwise.FROM]), length)
        operation = (
            integer(data[nft.Bitwise.OPERATION])
            if nft.Bitwise.OPERATION in data
            else BitwiseOperation.MASK_XOR
        )
        to = integer(data[nft.Bitwise.TO])
        if operation in {BitwiseOperation.LEFT, BitwiseOperation.RIGHT}:
            bits = of_machine(_value(data[nft.Bitwise.DATA]))
            return [store(state, to, shift(value, operation, bits))]
        if operation == BitwiseOperation.MASK_XOR:
            changed = bitwise(
                value, operation, _value(data[nft.Bitwise.MASK]), _value(data[nft.Bitwise.XOR])
            )
        elif nft.Bitwise.FROM_2 in data:
            other = state.registers.load(integer(data[nft.Bitwise.FROM_2]), length)
            changed = (
                bitwise(value, operation, other.options[0], b"")
                if other.is_exact
                else unknown(length, other.why)
            )
        else:
            changed = bitwise(value, operation, _value(data[nft.Bitwise.DATA]), b"")
        return [store(state, to, changed)]

    def byteorder(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Swap bytes."""
        value = state.registers.load(
            integer(data[nft.Byteorder.FROM]), integer(data[nft.Byteorder.LENGTH])
        )
        return [
            store(
                state,
                integer(data[nft.Byteorder.TO]),
                byteorder(value, integer(data[nft.Byteorder.SIZE])),
            )
        ]

    def compare(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Compare with a constant."""
        wanted = _value(data[nft.Compare.DATA])
        value = state.registers.load(integer(data[nft.Compare.FROM]), len(wanted))
        return decided(
            compare(value, integer(data[nft.Compare.OPERATION]), wanted), value, rule, state
        )

    def range(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Compare with two constants."""
        lowest, highest = _value(data[nft.Range.LOWEST]), _value(data[nft.Range.HIGHEST])
        value = state.registers.load(integer(data[nft.Range.FROM]), len(lowest))
        unequal = integer(data[nft.Range.OPERATION]) == nft.Operation.UNEQUAL
        return decided(
            {answer is not unequal for answer in within(value, lowest, highest)}, value, rule, state
        )

    def lookup(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Look a key up in a set or map."""
        name = netlink.text(data[nft.LookupExpression.SET])
        inverted = bool(
            nft.LookupExpression.FLAGS in data
            and integer(data[nft.LookupExpression.FLAGS]) & _INVERTED
        )
        to = integer(data[nft.LookupExpression.TO]) if nft.LookupExpression.TO in data else None
        for key, found, after in self._elements(
            name, integer(data[nft.LookupExpression.FROM]), rule, state
        ):
            if found is _ANY:
                yield broken(after)
                if to == 0:  # a verdict; chains that the map may jump to are not followed
                    yield replace(after, code=VerdictCode.DROP)
                    yield replace(after, code=VerdictCode.ACCEPT)
                else:
                    yield after if to is None else _unknown_data(after, to)
                continue
            event = Event("lookup", rule, name, key, found)
            seen = replace(after, events=(*after.events, event))
            if (found is None) is not inverted:
                yield broken(seen)
                continue
            for one in self._stateful(found, rule, seen):
                yield (
                    one
                    if found is None or to is None or one.code != VerdictCode.CONTINUE
                    else _taken(one, found, to)
                )

    def _elements(
        self, name: str, register: int, rule: NftRule, state: RuleState
    ) -> Iterator[tuple[bytes, "SetElement | None", RuleState]]:
        """Yield what a look-up can find, each with a key that finds it.

        `_ANY` where the key is not known.
        """
        table = rule.chain.table
        value = state.registers.load(register, self.rules.key_length(table, name))
        if not value.is_known:
            doubt = Doubt("unknown", value.why, rule)
            yield b"", _ANY, replace(state, doubts=(*state.doubts, doubt))
            return
        found: dict[SetElement | None, bytes] = {}
        learnt = {key: there for of, key, there in state.packet.learnt if of == f"{table} {name}"}
        for key in value.options:
            if key in learnt:
                found.setdefault(SetElement() if learnt[key] else None, key)
            else:
                found.setdefault(self.rules.element(table, name, key), key)
        for element, key in found.items():
            doubts = (
                (*state.doubts, Doubt("chance", value.why, rule))
                if len(found) > 1
                else state.doubts
            )
            yield key, element, replace(state, doubts=doubts)

    def _stateful(
        self, element: "SetElement | None", rule: NftRule, state: RuleState
    ) -> Iterable[RuleState]:
        """Run the expressions of an element, such as a limit for each client."""
        states: list[RuleState] = [state]
        for expression in element.expressions if element else ():
            states = [each for one in states for each in self._step(expression, rule, one)]
        return states

    def dynamic(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Put an element into a set, or take it out: only what it brings can stop the rule."""
        table, name = rule.chain.table, netlink.text(data[nft.Dynamic.SET])
        key = state.registers.load(
            integer(data[nft.Dynamic.KEY]), self.rules.key_length(table, name)
        )
        if key.is_exact and nft.Dynamic.VALUE not in data:
            there = integer(data[nft.Dynamic.OPERATION]) != _DELETE
            place = f"{table} {name}", key.options[0]
            others = (one for one in state.packet.learnt if one[:2] != place)
            state = replace(state, packet=replace(state.packet, learnt=(*others, (*place, there))))
        inside = [data[nft.Dynamic.EXPRESSION]] if nft.Dynamic.EXPRESSION in data else []
        if nft.Dynamic.EXPRESSIONS in data:
            inside += [
                data[nft.Dynamic.EXPRESSIONS][start:end]
                for _, (start, end) in netlink.attributes(data[nft.Dynamic.EXPRESSIONS])
            ]
        states: list[RuleState] = [state]
        for packed in inside:
            states = [
                each for one in states for each in self._step(expression_of(packed), rule, one)
            ]
        return states

    def object(self, data: ATTRIBUTES, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        """Use a named counter, limit, quota and so on, perhaps one that a map chooses."""
        if nft.Object.SET not in data:
            return self._object(integer(data[nft.Object.TYPE]), rule, state)
        found: list[RuleState] = []
        for _, element, after in self._elements(
            netlink.text(data[nft.Object.SET]), integer(data[nft.Object.FROM]), rule, state
        ):
            if element is None:
                found.append(broken(after))
            else:  # of what kind the objects are is not said here
                found += both(after, Doubt("limit", f"the object {element.object_name}", rule))
        return found

    def _object(self, kind: int, rule: NftRule, state: RuleState) -> Iterable[RuleState]:
        limits = {
            nft.ObjectType.QUOTA: "quota",
            nft.ObjectType.LIMIT: "limit",
            nft.ObjectType.CONNECTIONS: "connlimit",
        }
        if kind in limits:
            return both(state, Doubt("limit", _LIMITS[limits[nft.ObjectType(kind)]], rule))
        if kind == nft.ObjectType.SYN_PROXY:
            return both(state, Doubt("unknown", "a SYN proxy", rule))
        return [state]


Step = Callable[[RuleMachine, ATTRIBUTES, NftRule, RuleState], Iterable[RuleState]]
_STEPS: dict[str, Step] = {
    "payload": RuleMachine.payload,
    "meta": RuleMachine.meta,
    "ct": RuleMachine.ct,
    "fib": RuleMachine.fib,
    "socket": RuleMachine.socket,
    "exthdr": RuleMachine.header,
    "rt": RuleMachine.route,
    "numgen": RuleMachine.numgen,
    "hash": RuleMachine.hash,
    "immediate": RuleMachine.immediate,
    "bitwise": RuleMachine.bitwise,
    "byteorder": RuleMachine.byteorder,
    "cmp": RuleMachine.compare,
    "range": RuleMachine.range,
    "lookup": RuleMachine.lookup,
    "dynset": RuleMachine.dynamic,
    "objref": RuleMachine.object,
    "reject": RuleMachine.reject,
    "nat": RuleMachine.nat,
    "masq": RuleMachine.masquerade,
    "redir": RuleMachine.redirect,
    "counter": RuleMachine.other,
    "log": RuleMachine.other,
    "last": RuleMachine.other,
    "dup": RuleMachine.other,
    "flow_offload": RuleMachine.other,
    "notrack": RuleMachine.untracked,
    "fwd": RuleMachine.handed_over,
    "synproxy": RuleMachine.handed_over,
    "queue": RuleMachine.queued,
    "xtables": RuleMachine.meets,
    "match": RuleMachine.match,
    "target": RuleMachine.target,
}
_ANY = SetElement(object_name="?")
"""An element that may be there or not."""


def expression_of(packed: bytes) -> RuleExpression:
    """Return an expression as it stands in a message."""
    parts = netlink.parts(packed)
    inside = (
        netlink.parts(parts[netlink.ExpressionAttribute.DATA])
        if netlink.ExpressionAttribute.DATA in parts
        else {}
    )
    return RuleExpression(netlink.text(parts[netlink.ExpressionAttribute.NAME]), inside)


def _each_once(states: list[RuleState], before: RuleState) -> list[RuleState]:
    """Return states that differ in what follows; a fork whose branches do the same is no fork."""
    found: dict[object, RuleState] = {}
    for state in states:
        code = VerdictCode.CONTINUE if state.code == VerdictCode.BREAK else state.code
        key = code, state.target, state.packet, state.reject, state.translated
        if key not in found or len(state.doubts) < len(found[key].doubts):
            found[key] = replace(state, code=code)
    if len(found) == 1:
        return [replace(state, doubts=before.doubts) for state in found.values()]
    return list(found.values())


def _unknown_data(state: RuleState, register: int) -> RuleState:
    return store(state, register, unknown(16, "what the map holds"))


def _taken(state: RuleState, element: SetElement, register: int) -> RuleState:
    """Take over what an element of a map holds."""
    if element.code is not None:
        return replace(state, code=element.code, target=element.target)
    return store(state, register, exact(element.data)) if element.data else state


def _value(packed: bytes) -> bytes:
    return netlink.parts(packed)[netlink.Data.VALUE]
