"""One rule, run on a packet: what each expression reads, decides and changes.

Pure but for what it asks of `Ruleset` and `Surroundings`. An expression leads to one state or to several; what is not known here leads
to both outcomes, with the rule named as the doubt, and is never guessed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from nftproxy.path import xtables
from nftproxy.path.machine import (
    Registers,
    Value,
    bitwise,
    byteorder,
    choice,
    compare,
    exact,
    number,
    partly,
    shift,
    unknown,
    within,
)
from nftproxy.path.packet import ETHERNET, NF_PROTOCOL, Packet
from nftproxy.path.ruleset import ATTRIBUTES, BaseChain, Element, Expression, Rule, Ruleset, Surroundings
from nftproxy.path.state import Doubt, Event, State
from nftproxy.table import expressions as nft
from nftproxy.table import netlink
from nftproxy.table.expressions import Base, BitwiseOperation, CtKey, FibFlag, FibResult, MetaKey, Verdict

RTN_LOCAL = 2
_LIMITS = {"limit": "a limit of packets", "quota": "a quota of bytes", "connlimit": "a limit of connections"}
_SILENT = {"counter", "log", "last", "dup", "flow_offload", "notrack", "fwd", "synproxy", "queue"}
_INVERTED = 1  # NFT_LOOKUP_F_INV
_PRESENT = 1  # NFT_EXTHDR_F_PRESENT
_NETMAP = 0x40  # NF_NAT_RANGE_NETMAP


@dataclass(frozen=True, slots=True)
class Machine:
    """Runs rules of one base chain and the chains that it calls."""

    base: BaseChain
    rules: Ruleset
    around: Surroundings

    def run(self, rule: Rule, state: State) -> list[State]:
        """Run a rule; return the states that it can end in, each once."""
        states = [replace(state, registers=Registers())]
        ended: list[State] = []
        for expression in rule.expressions:
            after = [each for one in states for each in self._step(expression, rule, one)]
            ended += [one for one in after if one.code != Verdict.CONTINUE]
            states = [one for one in after if one.code == Verdict.CONTINUE]
            if not states:
                break
        return _each_once(ended + states, state)

    def _step(self, expression: Expression, rule: Rule, state: State) -> Iterable[State]:
        name, data = expression
        if name in _STEPS:
            return _STEPS[name](self, data, rule, state)
        if name in _LIMITS:
            return _both(state, Doubt("limit", _LIMITS[name], rule))
        return _both(state, Doubt("unknown", f"the expression {name}", rule))

    # ---- what reads ----

    def payload(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Read a piece of a header, or write one."""
        base, offset, length = (_int(data[key]) for key in (nft.Payload.BASE, nft.Payload.OFFSET, nft.Payload.LENGTH))
        if nft.Payload.FROM in data:
            value = state.registers.load(_int(data[nft.Payload.FROM]), length)
            if value.is_exact:
                return [replace(state, packet=state.packet.write(base, offset, value.options[0]))]
            return [state]
        header = state.packet.header(base)
        to = _int(data[nft.Payload.TO])
        if header is None and base == Base.INNER:
            return [_store(state, to, unknown(length, "what the packet carries"))]
        if header is None or (base == Base.NETWORK and offset >= len(header[0])):
            return [_broken(state)]
        content, known = header
        if offset + length > len(content):
            return [_store(state, to, unknown(length, "what the packet carries"))]
        piece = partly(content[offset : offset + length], known[offset : offset + length], _field(base, offset, state.packet))
        return [_store(state, to, piece)]

    def meta(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Read what the kernel knows of a packet, or change its mark."""
        key = _int(data[nft.Meta.KEY])
        if nft.Meta.FROM in data:
            if key != MetaKey.MARK:
                return [state]
            value = state.registers.load(_int(data[nft.Meta.FROM]), 4)
            mark = _machine(value.options[0]) if value.is_exact else None
            return [replace(state, packet=state.packet.marked(mark), events=(*state.events, Event("mark", rule)))]
        value_or_none = self._meta(key, state.packet)
        return [_broken(state) if value_or_none is None else _store(state, _int(data[nft.Meta.TO]), value_or_none)]

    def _meta(self, key: int, packet: Packet) -> Value | None:  # noqa: C901, PLR0912 - one case for each key
        match key:
            case MetaKey.PROTOCOL:
                return exact(ETHERNET[packet.size])
            case MetaKey.NF_PROTOCOL:
                return number(NF_PROTOCOL[packet.size], 1)
            case MetaKey.L4_PROTOCOL:
                return number(packet.protocol, 1)
            case MetaKey.MARK:
                return unknown(4, "the mark of the packet") if packet.mark is None else number(packet.mark)
            case MetaKey.IIF_NAME | MetaKey.OIF_NAME:
                return exact(self._name(key == MetaKey.IIF_NAME, packet).encode().ljust(16, b"\0"))
            case MetaKey.PACKET_TYPE:
                return number(0, 1) if self.base.chain.table.family != "bridge" else unknown(1, "whom the frame is for")
            case MetaKey.TRACE:
                return number(0, 1)
            case MetaKey.USER | MetaKey.GROUP | MetaKey.CGROUP:
                return None if packet.iif else unknown(4, "the process that sends it")
        link = self.around.link(self._name(key in {MetaKey.IIF, MetaKey.IIF_TYPE, MetaKey.IIF_GROUP, MetaKey.IIF_KIND}, packet))
        match key:
            case MetaKey.IIF | MetaKey.OIF:
                return number(link.index if link else 0)
            case MetaKey.IIF_TYPE | MetaKey.OIF_TYPE:
                return number(link.type, 2) if link else None
            case MetaKey.IIF_GROUP | MetaKey.OIF_GROUP:
                return number(link.group) if link else None
            case MetaKey.IIF_KIND | MetaKey.OIF_KIND:
                return exact(link.kind.encode().ljust(16, b"\0")) if link and link.kind else None
        if key in {MetaKey.BRIDGE_IIF_NAME, MetaKey.BRIDGE_OIF_NAME}:
            link = self.around.link(self._name(key == MetaKey.BRIDGE_IIF_NAME, packet))
            return exact(link.master.encode().ljust(16, b"\0")) if link and link.master else None
        return unknown(16, f"meta key {key}")

    def _name(self, incoming: bool, packet: Packet) -> str:  # noqa: FBT001 - one of two
        """Return the interface that a packet came by, or leaves by, as far as the hook knows it."""
        if incoming:
            return packet.iif if self.base.hook != "output" else ""
        return packet.oif if self.base.hook in {"forward", "output", "postrouting", "egress"} else ""

    def ct(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Read what conntrack knows, or change its mark."""
        key, packet = _int(data[nft.Ct.KEY]), state.packet
        if nft.Ct.FROM in data:
            if key != CtKey.MARK or packet.tracked is None:
                return [state]
            value = state.registers.load(_int(data[nft.Ct.FROM]), 4)
            mark = _machine(value.options[0]) if value.is_exact else None
            return [replace(state, packet=replace(packet, tracked=replace(packet.tracked, mark=mark)))]
        to = _int(data[nft.Ct.TO])
        if key == CtKey.STATE:
            return [_store(state, to, number(packet.state))]
        found = _ct(key, data, packet)
        return [_broken(state) if found is None else _store(state, to, found)]

    def fib(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Ask the routes about an address."""
        flags, result = FibFlag(_int(data[nft.Fib.FLAGS])), _int(data[nft.Fib.RESULT])
        packet, to = state.packet, _int(data[nft.Fib.TO])
        address = packet.ends.source if FibFlag.SOURCE in flags else packet.ends.destination
        device = packet.iif if FibFlag.IIF in flags else packet.oif if FibFlag.OIF in flags else ""
        if result == FibResult.ADDRESS_TYPE:
            return [_store(state, to, number(self.around.address_type(address, device)))]
        if FibFlag.MARK in flags and packet.mark is None:
            return [_store(state, to, unknown(16, "the mark of the packet"))]
        way = self.around.way(address, packet.mark if FibFlag.MARK in flags else 0)
        if device and way != device:
            way = ""
        link = self.around.link(way) if way else None
        if FibFlag.PRESENT in flags:
            return [_store(state, to, number(int(link is not None)))]
        if result == FibResult.OIF_NAME:
            return [_store(state, to, exact(way.encode().ljust(16, b"\0")))]
        return [_store(state, to, number(link.index if link else 0))]

    def socket(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Ask for a socket of this node: there is none for an address of somebody else."""
        if self.around.address_type(state.packet.ends.destination, "") != RTN_LOCAL:
            return [_broken(state)]
        return [*_both(_store(state, _int(data[nft.Socket.TO]), unknown(16, "a socket")), Doubt("unknown", "a socket", rule))]

    def header(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Look for an extension header or an option: a first packet has no extension headers; its TCP options are not known."""
        if nft.Header.FROM in data or nft.Header.TO not in data:
            return [state]
        to = _int(data[nft.Header.TO])
        operation = _int(data[nft.Header.OPERATION]) if nft.Header.OPERATION in data else 0
        present = nft.Header.FLAGS in data and _int(data[nft.Header.FLAGS]) & _PRESENT
        if operation in {nft.HeaderOperation.IPV6, nft.HeaderOperation.IPV4}:
            return [_store(state, to, number(0)) if present else _broken(state)]
        return [_store(state, to, unknown(16, "the options of the packet"))]

    def route(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Ask for what the route says, such as the segment size; nothing but the packet's length depends on it."""
        return [_store(state, _int(data[nft.Route.TO]), unknown(16, "what the route says"))]

    def numgen(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Draw a number."""
        offset = _int(data[nft.Numgen.OFFSET]) if nft.Numgen.OFFSET in data else 0
        value = choice(offset, _int(data[nft.Numgen.MODULUS]), "chance")
        return [_store(state, _int(data[nft.Numgen.TO]), value)]

    def hash(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Take a hash of the packet: any of the numbers that it can be."""
        offset = _int(data[nft.Hash.OFFSET]) if nft.Hash.OFFSET in data else 0
        value = choice(offset, _int(data[nft.Hash.MODULUS]), "a hash")
        return [_store(state, _int(data[nft.Hash.TO]), value)]

    # ---- what computes and compares ----

    def immediate(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Load a constant, or say a verdict."""
        content = netlink.parts(data[nft.Immediate.DATA])
        if netlink.Data.VERDICT in content:
            verdict = netlink.parts(content[netlink.Data.VERDICT])
            code = int.from_bytes(verdict[netlink.Verdict.CODE], signed=True)
            return [replace(state, code=code, target=netlink.text(verdict.get(netlink.Verdict.CHAIN, b"")))]
        return [_store(state, _int(data[nft.Immediate.TO]), exact(content[netlink.Data.VALUE]))]

    def bitwise(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Change bits."""
        length = _int(data[nft.Bitwise.LENGTH])
        value = state.registers.load(_int(data[nft.Bitwise.FROM]), length)
        operation = _int(data[nft.Bitwise.OPERATION]) if nft.Bitwise.OPERATION in data else BitwiseOperation.MASK_XOR
        to = _int(data[nft.Bitwise.TO])
        if operation in {BitwiseOperation.LEFT, BitwiseOperation.RIGHT}:
            bits = _machine(_value(data[nft.Bitwise.DATA]))
            return [_store(state, to, shift(value, operation, bits))]
        if operation == BitwiseOperation.MASK_XOR:
            changed = bitwise(value, operation, _value(data[nft.Bitwise.MASK]), _value(data[nft.Bitwise.XOR]))
        elif nft.Bitwise.FROM_2 in data:
            other = state.registers.load(_int(data[nft.Bitwise.FROM_2]), length)
            changed = bitwise(value, operation, other.options[0], b"") if other.is_exact else unknown(length, other.why)
        else:
            changed = bitwise(value, operation, _value(data[nft.Bitwise.DATA]), b"")
        return [_store(state, to, changed)]

    def byteorder(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Swap bytes."""
        value = state.registers.load(_int(data[nft.Byteorder.FROM]), _int(data[nft.Byteorder.LENGTH]))
        return [_store(state, _int(data[nft.Byteorder.TO]), byteorder(value, _int(data[nft.Byteorder.SIZE])))]

    def compare(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Compare with a constant."""
        wanted = _value(data[nft.Compare.DATA])
        value = state.registers.load(_int(data[nft.Compare.FROM]), len(wanted))
        return _answers(compare(value, _int(data[nft.Compare.OPERATION]), wanted), value, rule, state)

    def range(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Compare with two constants."""
        lowest, highest = _value(data[nft.Range.LOWEST]), _value(data[nft.Range.HIGHEST])
        value = state.registers.load(_int(data[nft.Range.FROM]), len(lowest))
        unequal = _int(data[nft.Range.OPERATION]) == nft.Operation.UNEQUAL
        return _answers({answer is not unequal for answer in within(value, lowest, highest)}, value, rule, state)

    def lookup(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Look a key up in a set or map."""
        name = netlink.text(data[nft.Lookup.SET])
        inverted = bool(nft.Lookup.FLAGS in data and _int(data[nft.Lookup.FLAGS]) & _INVERTED)
        to = _int(data[nft.Lookup.TO]) if nft.Lookup.TO in data else None
        for key, found, after in self._elements(name, _int(data[nft.Lookup.FROM]), rule, state):
            if found is _ANY:
                yield _broken(after)
                yield replace(after, code=Verdict.DROP) if to == 0 else after if to is None else _unknown_data(after, to)
                continue
            event = Event("lookup", rule, name, key, found)
            seen = replace(after, events=(*after.events, event))
            if (found is None) is not inverted:
                yield _broken(seen)
                continue
            for one in self._stateful(found, rule, seen):
                yield one if found is None or to is None or one.code != Verdict.CONTINUE else _taken(one, found, to)

    def _elements(self, name: str, register: int, rule: Rule, state: State) -> Iterator[tuple[bytes, "Element | None", State]]:
        """Yield what a look-up can find, each with a key that finds it; `_ANY` where the key is not known."""
        table = rule.chain.table
        value = state.registers.load(register, self.rules.key_length(table, name))
        if not value.is_known:
            doubt = Doubt("unknown", value.why, rule)
            yield b"", _ANY, replace(state, doubts=(*state.doubts, doubt))
            return
        found: dict[Element | None, bytes] = {}
        for key in value.options:
            found.setdefault(self.rules.element(table, name, key), key)
        for element, key in found.items():
            doubts = (*state.doubts, Doubt("chance", value.why, rule)) if len(found) > 1 else state.doubts
            yield key, element, replace(state, doubts=doubts)

    def _stateful(self, element: "Element | None", rule: Rule, state: State) -> Iterable[State]:
        """Run the expressions of an element, such as a limit for each client."""
        states: list[State] = [state]
        for expression in element.expressions if element else ():
            states = [each for one in states for each in self._step(expression, rule, one)]
        return states

    def dynamic(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Put an element into a set: only what comes with it can stop the rule."""
        inside = [data[nft.Dynamic.EXPRESSION]] if nft.Dynamic.EXPRESSION in data else []
        if nft.Dynamic.EXPRESSIONS in data:
            inside += [
                data[nft.Dynamic.EXPRESSIONS][start:end] for _, (start, end) in netlink.attributes(data[nft.Dynamic.EXPRESSIONS])
            ]
        states: list[State] = [state]
        for packed in inside:
            states = [each for one in states for each in self._step(expression_of(packed), rule, one)]
        return states

    def object(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Use a named counter, limit, quota and so on, perhaps one that a map chooses."""
        if nft.Object.SET not in data:
            return self._object(_int(data[nft.Object.TYPE]), rule, state)
        found: list[State] = []
        for _, element, after in self._elements(netlink.text(data[nft.Object.SET]), _int(data[nft.Object.FROM]), rule, state):
            if element is None:
                found.append(_broken(after))
            else:  # of what kind the objects are is not said here
                found += _both(after, Doubt("limit", f"the object {element.object_name}", rule))
        return found

    def _object(self, kind: int, rule: Rule, state: State) -> Iterable[State]:
        limits = {
            nft.ObjectType.QUOTA: "quota",
            nft.ObjectType.LIMIT: "limit",
            nft.ObjectType.CONNECTIONS: "connlimit",
        }
        if kind in limits:
            return _both(state, Doubt("limit", _LIMITS[limits[nft.ObjectType(kind)]], rule))
        if kind == nft.ObjectType.SYN_PROXY:
            return _both(state, Doubt("unknown", "a SYN proxy", rule))
        return [state]

    # ---- what ends ----

    def reject(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Refuse, and say so to the client."""
        kind = _int(data[nft.Reject.TYPE])
        code = data.get(nft.Reject.CODE, b"\0")[-1]
        said = {nft.RejectType.ICMP: f"ICMP unreachable, code {code}", nft.RejectType.TCP_RESET: "TCP reset"}
        return [
            replace(
                state, code=Verdict.DROP, reject=said.get(nft.RejectType(kind), f"ICMP unreachable, code {code} of both families")
            )
        ]

    def nat(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Translate source or destination."""
        destination = _int(data[nft.Nat.TYPE]) == nft.NatType.DESTINATION
        flags = _int(data[nft.Nat.FLAGS]) if nft.Nat.FLAGS in data else 0
        size = state.packet.size
        address = _loaded(data, nft.Nat.ADDRESS, size, state)
        last = _loaded(data, nft.Nat.ADDRESS_END, size, state) if nft.Nat.ADDRESS_END in data else address
        port = _loaded(data, nft.Nat.PORT, 2, state)
        for value in (address, port):
            if value is not None and not value.is_known:
                return [
                    replace(
                        state, code=Verdict.ACCEPT, doubts=(*state.doubts, Doubt("unknown", value.why, rule)), translated=True
                    )
                ]
        found = []
        addresses = _addresses(address, last, state.packet, destination=destination, netmap=bool(flags & _NETMAP))
        ports = [None] if port is None else [int.from_bytes(option) for option in port.options]
        for one in addresses:
            for number_of_it in ports:
                packet = state.packet.translated(destination=destination, address=one, port=number_of_it)
                doubts = state.doubts
                if len(addresses) * len(ports) > 1:
                    doubts = (*doubts, Doubt("chance", "one of several addresses or ports", rule))
                found.append(_translated(replace(state, doubts=doubts), packet, rule, destination=destination))
        return found

    def masquerade(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Give the packet an address of this node as its source."""
        address = self.around.address_of(state.packet.oif, state.packet.size)
        packet = state.packet.translated(destination=False, address=address, port=None)
        return [_translated(state, packet, rule, destination=False)]

    def redirect(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Send the packet to this node itself."""
        size = state.packet.size
        loopback = bytes((127, 0, 0, 1)) if size == 4 else bytes(15) + b"\x01"
        address = loopback if self.base.hook == "output" else self.around.address_of(state.packet.iif, size)
        port = _loaded(data, nft.Redirect.PORT, 2, state)
        to = int.from_bytes(port.options[0]) if port is not None and port.is_exact else None
        packet = state.packet.translated(destination=True, address=address, port=to)
        return [_translated(state, packet, rule, destination=True)]

    def other(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Let the packet pass a statement that changes nothing about where it goes."""
        return [state]

    def untracked(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Keep conntrack off the packet."""
        return [replace(state, packet=replace(state.packet, untracked=True, tracked=None))]

    def handed_over(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Give the packet to somebody else, who decides."""
        return [replace(state, code=Verdict.STOLEN)]

    def queued(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Give the packet to a program: it may come back, or not."""
        doubt = Doubt("unknown", "a program that the rule asks", rule)
        doubtful = replace(state, doubts=(*state.doubts, doubt))
        return [replace(doubtful, code=Verdict.ACCEPT), replace(doubtful, code=Verdict.DROP)]

    def match(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Ask a match of xtables."""
        name, info = netlink.text(data[nft.Extension.NAME]), data.get(nft.Extension.INFO, b"")
        answers = xtables.match(name, _int(data[nft.Extension.REVISION]), info, state.packet, self.around)
        if answers is None:
            return _both(state, Doubt("unknown", f"the xtables match {name}", rule))
        kind = "chance" if name in xtables.CHANCE else "limit" if name in xtables.LIMITS else "unknown"
        return _answers(answers, unknown(0, f"the xtables match {name}"), rule, state, kind)

    def target(self, data: ATTRIBUTES, rule: Rule, state: State) -> Iterable[State]:
        """Run a target of xtables."""
        name, info = netlink.text(data[nft.Extension.NAME]), data.get(nft.Extension.INFO, b"")
        done = xtables.target(name, _int(data[nft.Extension.REVISION]), info, state.packet, self.around, self.base.hook)
        if done is None:
            doubt = Doubt("unknown", f"the xtables target {name}", rule)
            doubtful = replace(state, doubts=(*state.doubts, doubt))
            return [doubtful, replace(doubtful, code=Verdict.DROP)]
        after = replace(state, packet=done.packet, code=done.code, reject=done.reject)
        if done.destination is not None:
            return [_translated(after, done.packet, rule, destination=done.destination)]
        if done.packet.mark != state.packet.mark:
            return [replace(after, events=(*state.events, Event("mark", rule)))]
        return [after]


Step = Callable[[Machine, ATTRIBUTES, Rule, State], Iterable[State]]
_STEPS: dict[str, Step] = {
    "payload": Machine.payload, "meta": Machine.meta, "ct": Machine.ct, "fib": Machine.fib, "socket": Machine.socket,
    "exthdr": Machine.header, "rt": Machine.route, "numgen": Machine.numgen, "hash": Machine.hash,
    "immediate": Machine.immediate, "bitwise": Machine.bitwise, "byteorder": Machine.byteorder, "cmp": Machine.compare,
    "range": Machine.range, "lookup": Machine.lookup, "dynset": Machine.dynamic, "objref": Machine.object,
    "reject": Machine.reject, "nat": Machine.nat, "masq": Machine.masquerade, "redir": Machine.redirect,
    "counter": Machine.other, "log": Machine.other, "last": Machine.other, "dup": Machine.other, "flow_offload": Machine.other,
    "notrack": Machine.untracked, "fwd": Machine.handed_over, "synproxy": Machine.handed_over, "queue": Machine.queued,
    "match": Machine.match, "target": Machine.target,
}  # fmt: skip
_ANY = Element(object_name="?")
"""An element that may be there or not."""


def expression_of(packed: bytes) -> Expression:
    """Return an expression as it stands in a message."""
    parts = netlink.parts(packed)
    inside = netlink.parts(parts[netlink.Expression.DATA]) if netlink.Expression.DATA in parts else {}
    return Expression(netlink.text(parts[netlink.Expression.NAME]), inside)


def _each_once(states: list[State], before: State) -> list[State]:
    """Return states that differ in what comes next; a fork whose branches do the same is no fork."""
    found: dict[object, State] = {}
    for state in states:
        code = Verdict.CONTINUE if state.code == Verdict.BREAK else state.code
        key = code, state.target, state.packet, state.reject, state.translated
        if key not in found or len(state.doubts) < len(found[key].doubts):
            found[key] = replace(state, code=code)
    if len(found) == 1:
        return [replace(state, doubts=before.doubts) for state in found.values()]
    return list(found.values())


def _both(state: State, doubt: Doubt) -> list[State]:
    doubtful = replace(state, doubts=(*state.doubts, doubt))
    return [doubtful, _broken(doubtful)]


def _answers(answers: set[bool], value: Value, rule: Rule, state: State, kind: str = "") -> list[State]:
    """Go on where the answer is yes, break where it is no."""
    if len(answers) > 1:
        chance = value.is_known and len(value.options) > 1
        return _both(state, Doubt(kind or ("chance" if chance else "unknown"), value.why, rule))
    return [state if True in answers else _broken(state)]


def _broken(state: State) -> State:
    return replace(state, code=Verdict.BREAK)


def _store(state: State, register: int, value: Value) -> State:
    return replace(state, registers=state.registers.store(register, value))


def _unknown_data(state: State, register: int) -> State:
    return _store(state, register, unknown(16, "what the map holds"))


def _taken(state: State, element: Element, register: int) -> State:
    """Take over what an element of a map holds."""
    if element.code is not None:
        return replace(state, code=element.code, target=element.target)
    return _store(state, register, exact(element.data)) if element.data else state


def _translated(state: State, packet: Packet, rule: Rule, *, destination: bool) -> State:
    event = Event("destination" if destination else "source", rule)
    return replace(state, packet=packet, code=Verdict.ACCEPT, events=(*state.events, event), translated=True)


def _addresses(first: Value | None, last: Value | None, packet: Packet, *, destination: bool, netmap: bool) -> list[bytes | None]:
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


def _loaded(data: ATTRIBUTES, key: int, length: int, state: State) -> Value | None:
    return state.registers.load(_int(data[key]), length) if key in data else None


def _ct(key: int, data: ATTRIBUTES, packet: Packet) -> Value | None:  # noqa: C901 - one case for each key
    """Return what conntrack knows of a new connection; None breaks the rule."""
    tracked = packet.tracked
    if tracked is None:
        return None
    reply = data.get(nft.Ct.DIRECTION, b"\0")[-1] == 1
    original, ends = tracked.original, packet.ends
    source, destination = (ends.destination, original.source) if reply else (original.source, original.destination)
    ports = (ends.destination_port, original.source_port) if reply else (original.source_port, original.destination_port)
    match key:
        case CtKey.DIRECTION:
            return number(0, 1)
        case CtKey.STATUS:
            return number(tracked.status)
        case CtKey.MARK:
            return unknown(4, "the mark of the connection") if tracked.mark is None else number(tracked.mark)
        case CtKey.HELPER:
            return None
        case CtKey.L3_PROTOCOL:
            return number(NF_PROTOCOL[packet.size], 1)
        case CtKey.PROTOCOL:
            return number(packet.protocol, 1)
        case CtKey.SOURCE | CtKey.SOURCE_4 | CtKey.SOURCE_6:
            return exact(source) if _fits(key, packet) else None
        case CtKey.DESTINATION | CtKey.DESTINATION_4 | CtKey.DESTINATION_6:
            return exact(destination) if _fits(key, packet) else None
        case CtKey.PROTOCOL_SOURCE | CtKey.PROTOCOL_DESTINATION:
            port = ports[key == CtKey.PROTOCOL_DESTINATION]
            return unknown(2, "the port of the client") if port is None else exact(port.to_bytes(2))
        case CtKey.LABELS:
            return number(0, 16)
        case CtKey.ZONE:
            return number(0, 2)
    return unknown(16, f"ct key {key}")


def _fits(key: int, packet: Packet) -> bool:
    if key in {CtKey.SOURCE_4, CtKey.DESTINATION_4}:
        return packet.size == 4
    return key not in {CtKey.SOURCE_6, CtKey.DESTINATION_6} or packet.size == 16


def _field(base: int, offset: int, packet: Packet) -> str:
    """Say what is not known of a header."""
    if base == Base.LINK:
        return "the Ethernet addresses"
    if base == Base.TRANSPORT:
        return "the port of the client" if offset < 2 else "what the client writes into the transport header"
    return "length, lifetime or number of the packet" if packet.size == 4 else "length, lifetime or label of the packet"


def _value(packed: bytes) -> bytes:
    return netlink.parts(packed)[netlink.Data.VALUE]


def _int(packed: bytes) -> int:
    return int.from_bytes(packed)


def _machine(packed: bytes) -> int:
    return int.from_bytes(packed, sys.byteorder)
