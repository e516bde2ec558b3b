"""Takeover of a node from another mode of kube-proxy.

Find its rules and remove them (contract 5.12).

Call this only when our own table is in place: then every Service has rules all the time, for a
moment even twice, and the first to translate a new connection does so alone. kube-proxy itself
removes the old rules first and writes its own much later.

Both iptables backends are read in both families, each through its own programs, whose absence is no
error (5.12.3). Each table is changed in one transaction. IPVS and IP sets are only read where the
kernel uses them already, so no module is ever loaded for that. Rules of others never change; see
`leftovers` for the distinction.
"""

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from nftproxy.errors import KernelError
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.transactions import Kernel
from nftproxy.node import leftovers as left
from nftproxy.node.dump import dump
from nftproxy.node.leftovers import INTERFACE, IPSETS, NFT_TABLES, Leftovers, Saved
from nftproxy.table import netlink
from nftproxy.table.netlink import IpSet

# kubelet or a network plugin may change a table between reading and writing, which then fails as a
# whole
ROUNDS = 3
_LOCK_WAIT = "5"  # seconds for the lock that programs of iptables-legacy share
_TIMEOUT = 600.0  # seconds; iptables-nft takes half a minute for 10 000 Services


def take_over(kernel: Kernel) -> tuple[Leftovers, list[str]]:
    """Remove all leftovers.

    Return what existed, and the problems, which are logged (contract 5.12.1).
    """
    found = leftovers()
    problems: list[str] = []
    now = found
    for _ in range(ROUNDS):
        problems = [*now.problems, *remove(now, kernel)]
        if not problems:
            break
        now = leftovers()
    for line in found.lines():
        logger.info(
            "left by another mode of kube-proxy, {}: {}",
            "removed as far as possible" if problems else "removed",
            line,
        )
    for problem in problems:
        logger.error(
            "the rules of another mode of kube-proxy could not all be removed: {}", problem
        )
    return found, problems


def leftovers() -> Leftovers:
    """Look for rules of another mode in this thread's network namespace; change nothing."""
    problems: list[str] = []
    rules = [
        found for program, table in _saved(problems) if (found := left.rules_left(program, table))
    ]
    with closing(Reader()) as reader:
        tables = [
            (family, name) for family, name in NFT_TABLES if reader.table_exists(name, family)
        ]
    ipsets: tuple[str, ...] = ()
    interface = False
    with _reported(problems, "IP sets"):
        ipsets = _ipsets()
    with _reported(problems, INTERFACE):
        interface = _interface()
    return Leftovers(
        rules=tuple(rules),
        tables=tuple(tables),
        # Others use IPVS too, such as keepalived: without other traces of kube-proxy's mode, its
        # services are theirs.
        virtual_services=_virtual_services() if interface or ipsets else 0,
        interface=interface,
        ipsets=ipsets,
        problems=tuple(problems),
    )


def remove(found: Leftovers, kernel: Kernel) -> list[str]:
    """Remove the leftovers; return the problems, one line each.

    An object that no longer exists is no problem, except in a table of iptables: that is changed as
    a whole or not at all, so the caller looks again.
    """
    problems: list[str] = []
    for rules in found.rules:
        with _reported(problems, f"{rules.program} table {rules.table}"):
            _run([f"{rules.program}-restore", "--noflush", "-w", _LOCK_WAIT], rules.restore)
    for family, name in found.tables:
        with _reported(problems, f"nftables table {family} {name}"):
            kernel.delete_foreign_table(family, name)
    if found.virtual_services:
        with _reported(problems, "IPVS virtual services"):
            _remove_virtual_services()
    if found.interface:
        with _reported(problems, INTERFACE):
            _remove_interface()
    for name in found.ipsets:  # last: rules that use a set keep it
        with _reported(problems, f"IP set {name}"):
            _destroy(name)
    return problems


class DroppingChain(NamedTuple):
    """A chain of another program whose policy drops.

    `table` begins with its family or its program.
    """

    table: str
    chain: str
    hook: str

    @property
    def needed(self) -> str:
        """The traffic to accept there, as no accept of ours overrides a drop."""
        return {
            "input": "connections to endpoints on the network of this host and to health check "
            "node ports",
            "forward": "connections to and from pods",
            "output": "connections of this node to Services",
        }.get(self.hook, "packets to and from Services and pods")


def dropping_chains() -> list[DroppingChain]:
    """Return the chains of other tables that drop by default, for a warning (contract 9.8)."""
    with closing(Reader()) as reader:
        found = [
            DroppingChain(f"{c.family} {c.table}", c.name, c.hook)
            for c in reader.base_chains()
            if c.drops
        ]
    for program, table in _saved([]):
        if "-nft" not in program:  # the chains of iptables-nft are among those of nftables
            found += [
                DroppingChain(f"{program} {table.table}", chain, chain.lower())
                for chain in left.dropping(table)
            ]
    return found


def saved_tables() -> list[tuple[str, Saved]]:
    """Return the tables of all iptables programs, by program; unreadable ones are left out."""
    return list(_saved([]))


@contextmanager
def _reported(problems: list[str], what: str) -> Iterator[None]:
    """Turn any failure inside into a line: everything here is best effort (contract 5.12.1)."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of programs, netlink and pyroute2 alike
        problems.append(f"{what}: {error}")


def _saved(problems: list[str]) -> Iterator[tuple[str, Saved]]:
    """Yield the tables of all iptables programs."""
    for program in _programs():
        text = ""
        with _reported(problems, program):
            text = _run([f"{program}-save"])
        yield from ((program, table) for table in left.parse(text))


def _programs() -> Iterator[str]:
    """Yield the programs of this machine: both backends by name, or the one without such a name."""
    for family in ("iptables", "ip6tables"):
        named = [
            program
            for program in (f"{family}-legacy", f"{family}-nft")
            if shutil.which(f"{program}-save")
        ]
        if not named and shutil.which(f"{family}-save"):
            named = [family]
        yield from named


def _run(argv: list[str], text: str = "") -> str:
    """Run a program; KernelError with the start of its output if it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        argv,
        input=os.fsencode(text),
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
        env=environment,
    )
    if done.returncode:
        reason = os.fsdecode(done.stderr).strip().partition("\n")[0]
        raise KernelError(
            f"`{' '.join(argv)}` failed: {reason or f'exit status {done.returncode}'}"
        )
    return os.fsdecode(done.stdout)


def _interface() -> bool:
    return INTERFACE in {name for _, name in socket.if_nameindex()}


def _remove_interface() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=INTERFACE):
            netlink.link("del", index=index)


def _ipsets() -> tuple[str, ...]:
    if not Path("/sys/module/ip_set").exists():
        return ()
    asked = [
        netlink.attribute(IpSet.PROTOCOL, bytes([netlink.OLDEST_IP_SETS])),
        netlink.attribute(IpSet.FLAGS | netlink.BIG_ENDIAN, netlink.ONLY_NAMES.to_bytes(4, "big")),
    ]
    names = {
        netlink.text(netlink.parts(body, (4, len(body)))[IpSet.NAME])
        for body in dump(netlink.NETFILTER, netlink.LIST_IP_SETS, bytes(4) + b"".join(asked))
    }
    return tuple(sorted(names & IPSETS))


def _destroy(name: str) -> None:
    from pyroute2 import IPSet
    from pyroute2.netlink.exceptions import IPSetError

    with IPSet() as netlink:
        try:
            netlink.destroy(name)
        except IPSetError as error:
            if error.code != errno.ENOENT:
                raise


def _virtual_services() -> int:
    """Count the IPVS services; 0 if the module is not loaded."""
    try:
        lines = Path("/proc/thread-self/net/ip_vs").read_text().splitlines()
    except OSError:
        return 0
    return sum(line.startswith(("TCP ", "UDP ", "SCTP ", "FWM ")) for line in lines)


def _remove_virtual_services() -> None:
    from pyroute2 import IPVS, IPVSService

    with IPVS() as netlink:
        for item in netlink.service("dump"):
            netlink.service("del", IPVSService.from_message(item))
