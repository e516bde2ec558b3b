"""Rules of iptables-legacy by chance, as iptables-restore reads them.

Lines with -4 or -6 are for one family.
"""

import random
from collections.abc import Iterator

_HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_PORTS = (7, 22, 53, 80, 443, 5353, 8080)


class LegacyWriter:
    """Writes one ruleset."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"legacy {seed}")

    def ruleset(self) -> str:
        """All tables."""
        return "\n".join(line for table in _HOOKS for line in self._table(table)) + "\n"

    def _table(self, table: str) -> Iterator[str]:
        chance = self._chance
        hooks = _HOOKS[table]
        own = [f"own-{table}-{number}" for number in range(chance.randint(0, 3))]
        yield f"*{table}"
        for hook in hooks:
            drops = table in {"filter", "mangle"} and chance.random() < 0.12
            yield f":{hook} {'DROP' if drops else 'ACCEPT'} [0:0]"
        for chain in own:
            yield f":{chain} - [0:0]"
        many = {"filter": 5, "nat": 2}.get(table, 1)
        for hook in hooks:
            for _ in range(chance.randint(0, many)):
                yield self._rule(table, hook, hook, own)
        for index, chain in enumerate(own):
            for _ in range(chance.randint(1, 3)):
                yield self._rule(table, chain, "", own[index + 1 :])
        yield "COMMIT"

    def _rule(self, table: str, chain: str, hook: str, further: list[str]) -> str:
        family = self._chance.choice(("", "", "-4 ", "-6 "))
        matches = [each for each in self._matches(family, hook) if each]
        if not family and any("icmp" in each for each in matches):
            family = "-4 "
        target, protocol = self._target(table, hook, family, further)
        if protocol:  # it names a port
            matches = [each for each in matches if not each.startswith("-p")]
            matches.insert(0, protocol)
        return f"{family}-A {chain} {' '.join(matches)} {target}".replace("  ", " ")

    def _matches(self, family: str, hook: str) -> Iterator[str]:
        chance = self._chance
        no = chance.choice(("", "", "! "))
        if family and chance.random() < 0.4:
            network = chance.choice((1, 2, 3, 9))
            text = f"10.{network}.0.0/16" if family == "-4 " else f"fd0{network}::/64"
            yield f"{no}{chance.choice(('-s', '-d'))} {text}"
        if hook not in {"OUTPUT", "POSTROUTING", ""} and chance.random() < 0.3:
            yield f"{no}-i {chance.choice(('in0', 'br0', 'out0', 'in+', 'o+'))}"
        if hook not in {"PREROUTING", "INPUT", ""} and chance.random() < 0.3:
            yield f"{no}-o {chance.choice(('in0', 'br0', 'out0', 'b+'))}"
        protocol = chance.choice(("", "tcp", "udp", "tcp", "icmp"))
        if protocol == "icmp" and family == "-6 ":
            yield "-p ipv6-icmp"
        elif protocol == "icmp":
            yield f"-p icmp{chance.choice(('', ' --icmp-type echo-request'))}"
        elif protocol:
            yield f"-p {protocol}{self._ports(protocol)}"
        if chance.random() < 0.45:
            yield self._extension(no)

    def _extension(self, no: str) -> str:
        states = ("NEW", "INVALID", "UNTRACKED", "ESTABLISHED,RELATED", "NEW,UNTRACKED")
        state = f"-m conntrack {no}--ctstate {self._chance.choice(states)}"
        kind = self._chance.choice(("LOCAL", "UNICAST"))
        return self._chance.choice(
            (
                f"-m mark {no}--mark 0x{self._chance.randint(0, 3):x}/0x3",
                state,
                state,
                f"-m addrtype {no}--dst-type {kind}",
                "-m limit --limit 1/hour --limit-burst 1",
                "-m length --length 0:60",
                '-m comment --comment "one of many"',
            )
        )

    def _ports(self, protocol: str) -> str:
        chance = self._chance
        port = chance.choice(_PORTS)
        no = chance.choice(("", "", "! "))
        syn = " --syn" if protocol == "tcp" and chance.random() < 0.2 else ""
        return syn + chance.choice(
            (
                "",
                f" {no}--dport {port}",
                f" --dport {port}:{port + 400}",
                f" -m multiport {no}--dports {port},443,5000:5600",
            )
        )

    def _target(self, table: str, hook: str, family: str, further: list[str]) -> tuple[str, str]:
        """Return a target, and the protocol that it needs."""
        chance = self._chance
        if further and chance.random() < 0.35:
            return f"{chance.choice(('-j', '-j', '-g'))} {chance.choice(further)}", ""
        if table == "nat" and hook and family:
            address = "10.3.0.4" if family == "-4 " else "fd03::4"
            port = f"[{address}]:80" if family == "-6 " else f"{address}:80"
            source = "10.3.0.1" if family == "-4 " else "fd03::1"
            if hook == "POSTROUTING":
                return chance.choice(("-j MASQUERADE", f"-j SNAT --to-source {source}")), ""
            return chance.choice(
                (
                    (f"-j DNAT --to-destination {address}", ""),
                    (f"-j DNAT --to-destination {port}", "-p tcp"),
                    ("-j REDIRECT --to-ports 8080", "-p udp"),
                    ("-j RETURN", ""),
                )
            )
        choices = ["-j ACCEPT", "-j RETURN", ""]
        if table == "filter":
            choices += ["-j DROP", "-j DROP", "-j REJECT"]
        if table == "mangle":
            choices += ["-j MARK --set-mark 0x1", "-j MARK --set-xmark 0x2/0x3", "-j DROP"]
        if table == "raw":
            choices += ["-j CT --notrack", "-j DROP"]
        return chance.choice(choices), ""
