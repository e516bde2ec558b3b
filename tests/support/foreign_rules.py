"""Rulesets as other programs and administrators write them.

Some by hand, of the kinds that are found on nodes, and any number by chance.

The places are those of `crossing`: in0 (10.1.0.0/24, fd01::/64), br0 (10.2., fd02), out0 (10.3. and
10.9., fd03 and fd09).
"""

import random
from collections.abc import Callable

from tests.support.paths import ROOT

KINDS = ROOT / "tests/support/foreign"
DOUBTFUL = (
    "limit",
    "quota",
    "meter",
    "ct count",
    "length",
    "ttl",
    "hoplimit",
    "skuid",
    "socket",
    "tcp option",
    "time",
    "maxseg",
    "over",
)
"""What makes an answer "may": a limit, or something that nobody can know."""
_INCOMING = ('"in0"', '"br0"', '{ "in0", "br0" }', '"in*"', '"wg0"')
_OUTGOING = ('"out0"', '"br0"', '{ "out0", "lo" }', '"out*"')
_MARKS = ("0x1", "meta mark | 0x10", "meta mark & 0xfffffff0", "numgen random mod 2", "ct mark")
_KINDS = ('"veth"', '"bridge"')


def written() -> dict[str, str]:
    """The rulesets written by hand, by the names of their files:

    `.nft`, or `.rules` as iptables-restore reads them.
    """
    return {path.name: path.read_text() for path in sorted(KINDS.iterdir())}


class Writer:
    """Writes a ruleset by chance; the same seed writes the same."""

    _family: str
    _rule_ip: str
    _transport: bool
    _may_reject: bool

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sets: list[str] = []
        self._count = 0

    def ruleset(self) -> str:
        """One to three tables."""
        return "\n".join(self._table(number) for number in range(self._random.randint(1, 3)))

    def _pick(self, *options: str) -> str:
        return self._random.choice(options)

    def _table(self, number: int) -> str:
        self._family = self._pick("inet", "inet", "ip", "ip6")
        self._sets = []
        bases = [self._base(hook) for hook in self._hooks()]
        self._may_reject = all(
            kind == "filter" and hook != "postrouting" for kind, hook, _, _ in bases
        )
        targets = [f"sub{index}" for index in range(self._random.randint(1, 3))]
        bodies: list[str] = []
        for index, name in enumerate(targets):  # each jumps only to those before it
            rules = "\n".join(
                self._rule("filter", targets[:index], hook="")
                for _ in range(self._random.randint(1, 4))
            )
            bodies.append(f"  chain {name} {{\n{rules}\n  }}")
        for index, (kind, hook, priority, policy) in enumerate(bases):
            self._may_reject = hook != "postrouting"
            rules = "\n".join(
                self._rule(kind, targets, hook=hook, early=priority == -300)
                for _ in range(self._random.randint(1, 6))
            )
            head = f"type {kind} hook {hook} priority {priority}; policy {policy};"
            bodies.append(f"  chain base{index} {{\n    {head}\n{rules}\n  }}")
        return (
            f"table {self._family} random{number} {{\n" + "\n".join(self._sets + bodies) + "\n}\n"
        )

    def _base(self, hook: str) -> tuple[str, str, int, str]:
        """Type, hook, priority and policy of a base chain."""
        if hook != "forward" and self._random.random() < 0.35:
            before = hook in {"prerouting", "output"}
            return (
                "nat",
                hook,
                self._random.choice((-110, -100, -90) if before else (90, 100, 110)),
                "accept",
            )
        priority = self._random.choice((-150, -10, 0, 0, 10, 50))
        if hook == "prerouting" and self._random.random() < 0.3:
            priority = -300
        return "filter", hook, priority, "drop" if self._random.random() < 0.3 else "accept"

    def _hooks(self) -> list[str]:
        return self._random.sample(
            ["prerouting", "input", "forward", "forward", "output", "postrouting"],
            self._random.randint(1, 4),
        )

    def _rule(self, kind: str, targets: list[str], *, hook: str, early: bool = False) -> str:
        self._rule_ip, self._transport = self._new_ip(), True
        matches = [
            self._match(hook, early=early)
            for _ in range(self._random.choice((0, 1, 1, 1, 2, 2, 3)))
        ]
        if kind == "nat" and self._random.random() < 0.6 and self._claim():
            return "    " + " ".join([*matches, self._translation(hook)])
        if self._random.random() < 0.12:
            return "    " + self._verdict_map([*targets, "nat"] if kind == "nat" else targets)
        return "    " + " ".join([*matches, self._statement(targets, kind)])

    def _statement(self, targets: list[str], kind: str) -> str:
        jumps = (
            [f"jump {self._random.choice(targets)}", f"goto {self._random.choice(targets)}"]
            if targets
            else ["counter"]
        )
        changes = [
            *(f"meta mark set {value}" for value in _MARKS),
            *(f"ct mark set {value}" for value in ("0x5", "meta mark")),
        ]
        changes += ["counter", 'log prefix "x "', "counter accept"]
        if kind == "nat":
            return self._pick("accept", "return", "counter", *jumps, *changes)
        refusals = ["drop", "drop", "counter drop"]
        if self._may_reject:
            refusals += [
                "reject",
                "reject with icmpx admin-prohibited" if self._family == "inet" else "reject",
            ]
        return self._pick(
            "accept", "accept", "return", *jumps, *changes, *(refusals if kind == "filter" else [])
        )

    def _verdict_map(self, targets: list[str]) -> str:
        ends = [
            "accept",
            "drop",
            "continue",
            "return",
            *(f"jump {target}" for target in targets if target != "nat"),
        ]
        if "nat" in targets:
            ends.remove("drop")
        one, other, third = (self._random.choice(ends) for _ in range(3))
        options = [
            f"ct state vmap {{ established : accept, new : {one}, invalid : {other} }}",
            (
                f"meta l4proto {{ tcp, udp }} th dport vmap "
                f"{{ 1-100 : {one}, 443 : {other}, 1000-8080 : {third} }}"
            ),
            f'iifname vmap {{ "in0" : {one}, "br0" : {other}, "lo" : accept }}',
            (
                f"meta l4proto {{ tcp, udp }} meta l4proto . th dport vmap "
                f"{{ tcp . 80 : {one}, udp . 53 : {other}, tcp . 8080 : {third} }}"
            ),
            f"numgen random mod 4 vmap {{ 0-2 : {one}, 3 : {other} }}",
            (
                f"jhash {self._ip()} saddr . {self._ip()} daddr mod 3 vmap "
                f"{{ 0 : {one}, 1 : {other}, 2 : {third} }}"
            ),
            f"meta mark vmap {{ 0x0 : {one}, 0x1 : {other} }}",
        ]
        return self._random.choice(options)

    def _translation(self, hook: str) -> str:
        self._count += 1
        six = self._rule_ip == "ip6"
        to = (
            self._pick("fd02::2", "fd03::3", "fd09::5")
            if six
            else self._pick("10.2.0.2", "10.3.0.3", "10.9.0.5")
        )
        proto = self._pick("tcp", "udp")
        ip = "ip6" if six else "ip"
        guard = f"meta l4proto {proto}"
        if self._family == "inet":
            guard = f"meta nfproto {'ipv6' if six else 'ipv4'} {guard}"
        with_port = f"[{to}]:8080" if six else f"{to}:8080"
        if hook in {"prerouting", "output"}:
            other = "fd03::4" if six else "10.3.0.4"
            return guard + " " + self._pick(
                f"dnat {ip} to {to}",
                f"dnat {ip} to {with_port}",
                f"dnat {ip} to numgen random mod 2 map {{ 0 : {to}, 1 : {other} }}",
                f"dnat {ip} to th dport map {{ 80 : {to}, 443 : {other} }}",
                "redirect to :8081",
                "redirect",
            )  # fmt: skip
        own = "fd03::1" if six else "10.3.0.1"
        if hook == "postrouting":
            return (
                guard + " " + self._pick("masquerade", "masquerade random", f"snat {ip} to {own}")
            )
        return guard + f" snat {ip} to {own}"

    def _ip(self) -> str:
        return self._rule_ip

    def _new_ip(self) -> str:
        return (
            "ip6"
            if self._family == "ip6" or (self._family == "inet" and self._random.random() < 0.4)
            else "ip"
        )

    def _network(self, ip: str) -> str:
        number = self._pick("1", "2", "3", "9")
        return f"fd0{number}::/64" if ip == "ip6" else f"10.{number}.0.0/24"

    def _host(self, ip: str) -> str:
        number, host = self._pick("1", "2", "3", "9"), self._random.randint(1, 6)
        return f"fd0{number}::{host}" if ip == "ip6" else f"10.{number}.0.{host}"

    def _match(self, hook: str, *, early: bool) -> str:
        """A match; of transport headers only one for each rule, as they exclude each other."""
        equal = self._pick("", "", "!= ")
        if self._transport and self._random.random() < 0.4:
            self._transport = False
            return self._random.choice(self._transport_matches(equal))()
        return self._random.choice(
            [*self._general_matches(equal), *self._matches_of(hook, equal, early=early)]
        )()

    def _transport_matches(self, equal: str) -> list[Callable[[], str]]:
        icmp = "icmpv6" if self._rule_ip == "ip6" else "icmp"
        return [
            lambda: f"meta l4proto {equal}{self._pick('tcp', 'udp', '{ tcp, udp }', 'icmp')}",
            lambda: (
                "tcp dport "
                f"{equal}{self._pick('80', '1-100', '{ 80, 443 }', '{ 1-100, 8000-9000 }')}"
            ),
            lambda: f"tcp dport {self._pick('>= 443', '< 1024')}",
            lambda: (
                "udp dport "
                f"{equal}{self._pick('53', '1-100', '{ 53, 443 }', '{ 1-60, 8000-9000 }')}"
            ),
            lambda: (
                f"meta l4proto {{ tcp, udp }} th dport "
                f"{equal}{self._pick('80', '1-1024', '{ 53, 80, 8080 }')}"
            ),
            lambda: f"udp sport {equal}{self._pick('1-20000', '20001-65535')}",
            lambda: f"meta l4proto tcp ct original proto-dst {equal}{self._pick('80', '443')}",
            lambda: (
                "tcp flags "
                f"{self._pick('syn', '& (fin | syn | rst | ack) == syn', '& (syn | ack) == ack')}"
            ),
            lambda: f"{icmp} type {self._pick('echo-request', 'echo-reply')}",
            lambda: f"meta l4proto {{ tcp, udp }} @th,16,16 & 0xff {self._pick('== 80', '!= 53')}",
        ]

    def _general_matches(self, equal: str) -> list[Callable[[], str]]:
        ip = self._rule_ip
        six = ip == "ip6"
        more: list[Callable[[], str]] = []
        if self._family == "inet":
            more.append(lambda: f"meta nfproto {'ipv6' if six else 'ipv4'}")
        return [
            *more,
            lambda: f"{ip} saddr {equal}{self._network(ip)}",
            lambda: f"{ip} daddr {equal}{self._host(ip)}",
            lambda: (
                f"{ip} daddr "
                f"{equal}{{ {self._network(ip)}, {'fd08::/64' if six else '10.8.0.0-10.8.0.9'} }}"
            ),
            lambda: f"{ip} saddr & {'::3 == ::2' if six else '0.0.0.3 == 0.0.0.2'}",
            lambda: f"meta mark {equal}{self._pick('0x0', '0x1', '0x10')}",
            lambda: f"meta mark & {self._pick('0x1 == 0x1', '0x10 == 0x0', '0x11 != 0x0')}",
            lambda: (
                f"ct state {equal}{self._pick('new', 'invalid', 'established,related', '{ new, untracked }')}"  # noqa: E501
            ),
            lambda: f"ct mark {equal}{self._pick('0x0', '0x5')}",
            lambda: f"ct status {self._pick('dnat', 'snat')}",
            lambda: "ct direction original",
            lambda: f"ct original {ip} daddr {equal}{self._network(ip)}",
            lambda: (
                f"fib daddr type {equal}{self._pick('local', 'unicast', '{ local, broadcast }')}"
            ),
            lambda: f"fib saddr type {equal}{self._pick('local', 'unicast')}",
            lambda: f"numgen random mod 3 {self._pick('== 0', '< 2', '!= 1')}",
            lambda: f"symhash mod 2 {self._pick('0', '1')}",
            lambda: f"jhash {ip} saddr mod 2 {self._pick('0', '1')}",
            lambda: f"limit rate {self._pick('1/hour', '100/second', 'over 10/minute')}",
            lambda: f"quota {self._pick('over 1000 bytes', 'until 1 mbytes')}",
            lambda: f"{'ip6 hoplimit' if six else 'ip ttl'} {self._pick('> 5', '== 64')}",
            lambda: "exthdr frag exists" if six else "ip frag-off & 0x1fff == 0",
            lambda: f"meta length {self._pick('> 20', '< 9000')}",
            lambda: self._set_match(ip),
            lambda: self._concat_match(ip),
            lambda: self._interval_concat_match(ip),
            lambda: self._learning_match(ip),
            lambda: f"{ip} saddr . {ip} daddr {equal}{{ {self._host(ip)} . {self._host(ip)} }}",
        ]

    def _matches_of(self, hook: str, equal: str, *, early: bool) -> list[Callable[[], str]]:
        """What makes sense, or is allowed, on some hooks only."""
        found: list[Callable[[], str]] = []
        if hook not in {"output", ""}:
            found += [
                lambda: f"iifname {equal}{self._pick(*_INCOMING)}",
                lambda: "meta iifgroup 7",
                lambda: f"meta iiftype {equal}ether",
                lambda: f"meta iifkind {self._pick(*_KINDS)}",
                lambda: f"meta pkttype {equal}{self._pick('host', 'multicast')}",
            ]
        if hook in {"prerouting", "forward", "input"}:
            found += [
                lambda: f"fib saddr . iif oif {self._pick('missing', 'exists')}",
                lambda: "fib saddr . mark . iif oif exists",
            ]
        if hook in {"prerouting", "input"}:
            found.append(lambda: f"fib daddr . iif type {equal}{self._pick('local', 'unicast')}")
        if hook in {"forward", "postrouting", "output"}:
            found.append(lambda: f"oifname {equal}{self._pick(*_OUTGOING)}")
        if early:
            found.append(lambda: "ct state untracked")
        return found

    def _set(self, declaration: str) -> str:
        name = f"set{len(self._sets)}"
        self._sets.append(f"  set {name} {{ {declaration} }}")
        return name

    def _type(self, ip: str) -> str:
        return "ipv6_addr" if ip == "ip6" else "ipv4_addr"

    def _claim(self) -> bool:
        """Whether the rule may look at transport headers; only once."""
        free, self._transport = self._transport, False
        return free

    def _set_match(self, ip: str) -> str:
        if self._random.random() < 0.5:
            networks = sorted({self._network(ip) for _ in range(2)})
            name = self._set(
                f"type {self._type(ip)}; flags interval; elements = {{ {', '.join(networks)} }}"
            )
        else:
            hosts = sorted({self._host(ip) for _ in range(5)})
            name = self._set(f"type {self._type(ip)}; elements = {{ {', '.join(hosts)} }}")
        return f"{ip} {self._pick('saddr', 'daddr')} {self._pick('', '!= ')}@{name}"

    def _concat_match(self, ip: str) -> str:
        keys = sorted(
            {
                f"{self._host(ip)} . {self._pick('tcp', 'udp')} . "
                f"{self._pick('80', '443', '53', '8080')}"
                for _ in range(8)
            }
        )
        name = self._set(
            f"type {self._type(ip)} . inet_proto . inet_service; elements = {{ {', '.join(keys)} }}"
        )
        return (
            f"meta l4proto {{ tcp, udp }} {ip} daddr . meta l4proto . th dport @{name}"
            if self._claim()
            else self._set_match(ip)
        )

    def _interval_concat_match(self, ip: str) -> str:
        keys = sorted(
            {f"{self._network(ip)} . {self._pick('1-100', '443', '5000-9000')}" for _ in range(3)}
        )
        taken: dict[str, str] = {}
        for key in keys:
            taken.setdefault(key.partition(" ")[0], key)
        name = self._set(
            f"type {self._type(ip)} . inet_service; flags interval; elements = "
            f"{{ {', '.join(taken.values())} }}"
        )
        return (
            f"meta l4proto {{ tcp, udp }} {ip} daddr . th dport @{name}"
            if self._claim()
            else self._set_match(ip)
        )

    def _learning_match(self, ip: str) -> str:
        name = self._set(f"type {self._type(ip)}; size 100; flags dynamic,timeout; timeout 1m;")
        return f"{self._pick('add', 'update')} @{name} {{ {ip} saddr }} {ip} saddr @{name}"
