"""This machine, read as far as an explanation asks. Nothing is written, and nothing is sent.

All sockets belong to the network namespace of the thread that made the object.
"""

import http.client
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from nftproxy.address import Family, pack
from nftproxy.errors import KernelError, MissingError
from nftproxy.kernel.reader import Reader, counted_in
from nftproxy.node.leftovers import NFT_TABLES
from nftproxy.path.entries import entries
from nftproxy.path.held import HeldByKernel
from nftproxy.path.live import LiveRuleset
from nftproxy.path.planned import Listed, named, ports
from nftproxy.path.routing import Routing
from nftproxy.path.ruleset import OURS, NftChain, NftRule
from nftproxy.path.view import Entry, Fill
from nftproxy.routes import Frontend, Verdict
from nftproxy.table import schema

_HEALTH: Final = ("127.0.0.1", 10256)
_TIMEOUT: Final = 2.0  # seconds for an answer of the proxy process, and for nft
_TWINS: Final = [
    each.name(family, node_port=node_port)
    for family in Family
    for each in (schema.SERVICES, schema.NO_ENDPOINTS)
    for node_port in (False, True)
]


class ThisMachine:
    """The parts of a node that only the node itself knows."""

    def __init__(self) -> None:
        self.rules = LiveRuleset()
        self.near = Routing()
        self._texts: dict[tuple[str, str, str], dict[int, str]] = {}

    def close(self) -> None:
        """Close the sockets."""
        self.rules.close()
        self.near.close()

    def sysctl(self, path: str) -> str:
        """Return a setting of the kernel; empty if it does not exist."""
        try:
            return (Path("/proc/sys") / path).read_text().strip()
        except OSError:
            return ""

    def rule_text(self, rule: NftRule) -> str:
        """Return a rule as nft prints it; empty if nft is not there or fails."""
        table, chain = rule.chain
        place = table.family, table.name, chain
        if place not in self._texts:
            self._texts[place] = dict(_listing(*place))
        return self._texts[place].get(rule.handle, "")

    def entries(self, family: Family, protocol: str, address: str, port: int) -> list[Entry]:
        """Return the connections to an address and port; none if conntrack cannot be read."""
        try:
            return entries(family, protocol, address, port)
        except OSError:
            return []

    def fill(self) -> Fill:
        """Return how full the conntrack table is."""
        count, limit = (
            int(self.sysctl(f"net/netfilter/nf_conntrack_{each}") or 0) for each in ("count", "max")
        )
        return Fill(count, limit)

    def other_proxies(self) -> list[str]:
        """Return the tables of other service proxies, each once: those of kube-proxy in any mode."""
        tables = {chain.chain.table for chain in self.rules.base_chains()}
        found = [
            f"table {table}" for table in sorted(tables) if (table.family, table.name) in NFT_TABLES
        ]
        for table in sorted(tables):
            chains = [
                chain.chain for chain in self.rules.base_chains() if chain.chain.table == table
            ]
            if table.name == "nat" and any(self._calls(chain) for chain in chains):
                found.append(f"KUBE-SERVICES in table {table}")
        return found

    def _calls(self, chain: NftChain) -> bool:

        return any(
            b"KUBE-SERVICES" in part
            for rule in self.rules.rules(chain)
            for expression in rule.expressions
            for part in expression.data.values()
        )

    def legacy_tables(self) -> list[str]:
        """Return the tables of iptables-legacy that are loaded."""
        found = []
        for name in ("ip_tables_names", "ip6_tables_names"):
            with suppress(OSError):
                program = "iptables" if name.startswith("ip_") else "ip6tables"
                tables = (Path("/proc/net") / name).read_text().split()
                found += [f"{program}-legacy {table}" for table in tables]
        return found

    def trouble(self) -> str:
        """Return what the proxy process reports as unhealthy.

        Empty if nothing or if it does not answer.
        """
        connection = http.client.HTTPConnection(*_HEALTH, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            return "" if answer.status == 200 else answer.read(500).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


class ThisNode:
    """The view of this node; a context that closes its sockets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.machine = ThisMachine()
        self.held = HeldByKernel(self.machine.rules)
        self.lacks: Sequence[str] = ()
        self._reader = Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        self._reader.close()
        self.machine.close()

    def has_table(self) -> bool:
        """Whether there is a table of ours."""
        return self._reader.table_exists(OURS.name, OURS.family)

    def find(self, service: str) -> list[tuple[Family, Frontend]]:
        """Return the frontends of a Service, by the name in their elements."""
        return named(self._verdicts(service.encode()), service)

    def names(self) -> list[str]:
        """Return the names of all service ports in the table."""
        return sorted({value.comment for _, _, value in self._verdicts(b"") if value.comment})

    def ports_at(self, address: str) -> list[str]:
        """Return the ports that an address has in the table."""
        return ports(self._verdicts(pack(address)), address)

    def nodeport_addresses(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""
        name = schema.NODEPORT_IPS.name(family)
        if not self._reader.looks_up(name):
            return None
        return sorted(str(key[0]) for key in self._reader.elements(name))

    def _verdicts(self, part: bytes) -> Iterator[Listed]:
        """Yield the frontends in messages of the kernel that contain some bytes.

        The kernel lists some 250 elements in a message: no others are taken apart.
        """
        for name in _TWINS:
            place = schema.parse(name)
            with suppress(MissingError, KernelError):
                for message in self._reader.messages(name):
                    if part not in message:
                        continue
                    for element, _ in counted_in(name, message):
                        if place and isinstance(element.value, Verdict):
                            yield place.family, Frontend.of_key(element.key), element.value


def _listing(family: str, table: str, chain: str) -> Iterator[tuple[int, str]]:
    """Yield handle and text of the rules of a chain, by the program nft.

    What would kill it does not kill us.
    """
    command = ["nft", "--handle", "list", "chain", family, table, chain]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines():
        rule, mark, handle = line.strip().rpartition(" # handle ")
        if mark and handle.isdigit():
            yield int(handle), rule
