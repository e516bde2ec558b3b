"""This machine, and a node that only manifests describe: what an explanation can ask of either.

Reads, never writes. What cannot be read for lack of permission is named in `lacks`, with what it
needs.
"""

import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

from nftproxy.address import Family
from nftproxy.configuration.settings import OnLocalhost
from nftproxy.errors import KernelError, MissingError, UnusableError
from nftproxy.kernel.channel import Channel
from nftproxy.kernel.reader import Reader
from nftproxy.path import connections
from nftproxy.path.held import Held, HeldByKernel, HeldByPlan
from nftproxy.path.legacy import EveryRuleset, LegacyTables
from nftproxy.path.live import LiveRuleset
from nftproxy.path.routing import Routing
from nftproxy.path.ruleset import NftChain, NftRule, NftTable, Ruleset
from nftproxy.path.view import Entry, Fill, Places
from nftproxy.routes import Frontend, Key, Value, Verdict
from nftproxy.table import schema

_HEALTH = "http://127.0.0.1:10256/healthz"
_KUBE_PROXY = "kube-proxy"
_LEFTOVERS = (("ip", "nat"), ("ip6", "nat"))


class LiveNode:
    """The node whose network namespace the calling thread is in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._cleanup = ExitStack()
        self._texts: dict[NftChain, dict[int, str]] = {}
        self._channel = Channel()
        self._cleanup.callback(self._channel.close)
        self._reader = Reader(self._channel)
        try:
            self.has_table = self._reader.table_exists()
        except KernelError as error:
            self.close()
            if isinstance(error, MissingError) or "permitted" not in str(error):
                raise
            raise UnusableError(
                "explain reads nftables and conntrack, which needs the capability NET_ADMIN",
                hint="run it as root, or explain objects alone: --manifests FOLDER",
            ) from None
        self._legacy = LegacyTables()
        self.rules: Ruleset = EveryRuleset(LiveRuleset(self._channel), self._legacy)
        self.held: Held = HeldByKernel(self.rules) if self.has_table else HeldByPlan({})
        routing = self._cleanup.enter_context(Routing())
        self.around: Places = routing
        self.lacks: Sequence[str] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        self._cleanup.close()

    def sysctl(self, path: str) -> str:
        """Return a setting of the kernel; empty when it is not there."""
        try:
            return Path("/proc/sys", path).read_text().strip()
        except OSError:
            return ""

    def rule_text(self, rule: NftRule) -> str:
        """Return a rule as its program prints it; empty when that is not there."""
        chain = rule.chain
        if chain not in self._texts:
            table = chain.table
            if table.is_legacy:
                lines = _listed([f"{table.family}-legacy-save", "-t", table.name])
                rules = (line for line in lines if line.startswith(f"-A {chain.name} "))
                self._texts[chain] = dict(enumerate(rules, 1))
            else:
                command = ["nft", "--handle", "list", "chain", table.family, table.name, chain.name]
                found = (
                    re.fullmatch(r"\s*(.*?) # handle (\d+)", line) for line in _listed(command)
                )
                self._texts[chain] = {int(match[2]): match[1] for match in found if match}
        return self._texts[chain].get(rule.handle, "")

    def entries(self, protocol: str, address: str, port: int) -> list[Entry]:
        """Return the connections to an address and port."""
        try:
            return connections.entries(protocol, address, port)
        except OSError:
            return []

    def fill(self) -> Fill | None:
        """Return how full the conntrack table is."""
        names = ("net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max")
        count, limit = map(self.sysctl, names)
        return Fill(int(count), int(limit)) if count and limit else None

    def frontends(self) -> Iterator[tuple[Family, Frontend, str]]:
        """Yield every frontend with the name of its service port."""
        for family in Family if self.has_table else ():
            for declaration in (schema.SERVICES, schema.NO_ENDPOINTS):
                for node_port in (False, True):
                    with suppress(MissingError):
                        where = declaration.name(family, node_port=node_port)
                        for (_, key, value), _ in self._reader.counted(where):
                            if isinstance(value, Verdict):
                                yield family, Frontend.of_key(key), value.comment

    def accepted(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""
        where = schema.NODEPORT_IPS.name(family)
        try:
            found = sorted(str(key[0]) for key in self._reader.elements(where))
        except MissingError:
            return []
        return found if found or self._reader.looks_up(where) else None

    def on_localhost(self, family: Family, frontend: Frontend) -> OnLocalhost:
        """Return what becomes of a NodePort on loopback addresses."""
        where = schema.LOCALHOST_NODEPORTS.name(family)
        if where not in self._reader.sets():
            return OnLocalhost.UNTOUCHED
        refused, _ = self.held.get(where, frontend.key)
        return OnLocalhost.REFUSED if refused else OnLocalhost.FORWARDED

    def other_proxies(self) -> list[str]:
        """Return the tables and chains of other proxies on this node."""
        bases = self.rules.base_chains()
        found = [str(one.chain.table) for one in bases if one.chain.table.name == _KUBE_PROXY]
        for family, table in _LEFTOVERS:
            with suppress(KernelError):
                if self.rules.rules(NftChain(NftTable(family, table), "KUBE-SERVICES")):
                    found.append(f"{family} {table} KUBE-SERVICES")
        return list(dict.fromkeys(found))

    def legacy(self) -> list[str]:
        """Return the tables of iptables-legacy that could not be read."""
        return self._legacy.unread

    def trouble(self) -> str:
        """Return why the proxy of this node is behind; empty if it is not."""
        with socket.socket(socket.AF_UNIX) as lock:
            if lock.connect_ex("\0nftproxy"):
                return "no nftproxy runs on this node, so nobody keeps its table"
        try:
            with urlopen(_HEALTH, timeout=0.3):
                return ""
        except HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            return f"the proxy of this node says that it is behind: {' '.join(said.split())}"
        except OSError:
            return ""


def _listed(command: Sequence[str]) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


class PlannedNode:
    """A node that only manifests describe: what a sync would write, and nothing else."""

    rules: Ruleset | None = None
    around: Places | None = None
    has_table = True

    def __init__(
        self,
        name: str,
        elements: Mapping[str, Mapping[Key, Value]],
        accepted: Mapping[Family, list[str] | None],
        why: str,
    ) -> None:
        self.name = name
        self.lacks: Sequence[str] = (
            f"routes, links, neighbours, conntrack and the rules of all tables: {why}",
        )
        self._elements = elements
        self._accepted = accepted
        self.held: Held = HeldByPlan(elements)

    def sysctl(self, path: str) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""

    def rule_text(self, rule: NftRule) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""

    def entries(self, *_: object) -> list[Entry]:
        """Return nothing."""
        return []

    def fill(self) -> Fill | None:
        """Return nothing."""
        return None

    def frontends(self) -> Iterator[tuple[Family, Frontend, str]]:
        """Yield every frontend with the name of its service port."""
        for where, items in self._elements.items():
            place = schema.parse(where)
            if place and place.declaration in {schema.SERVICES, schema.NO_ENDPOINTS}:
                for key, value in items.items():
                    if isinstance(value, Verdict):
                        yield place.family, Frontend.of_key(key), value.comment

    def accepted(self, family: Family) -> list[str] | None:
        """Return the addresses that accept NodePorts; None if all but loopback do."""
        return self._accepted.get(family, [])

    def on_localhost(self, family: Family, frontend: Frontend) -> OnLocalhost:  # noqa: ARG002
        """Return that of the usual settings."""
        return OnLocalhost.UNTOUCHED

    def other_proxies(self) -> list[str]:
        """Return nothing."""
        return []

    def legacy(self) -> list[str]:
        """Return nothing."""
        return []

    def trouble(self) -> str:
        """Return nothing."""
        return ""
