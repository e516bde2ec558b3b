"""Taking a node over from another mode of kube-proxy: finding what it left and removing it (contract 5.12).

To be called only when our own table is in place: then every Service has rules all the time, for a moment even twice, and whichever
translates a new connection first does so alone. kube-proxy itself removes them first and programs its own much later.

Both iptables backends are looked at in both families, each through its own programs, whose absence is no error (5.12.3). Each table
is changed in one transaction. IPVS and IP sets are only looked at where the kernel has them in use already: no module is ever loaded for
that. What is not kube-proxy's never changes; see `leftovers` for what is.
"""

import errno
import os
import shutil
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
from nftproxy.node.leftovers import INTERFACE, IPSETS, NFT_TABLES, Leftovers, Saved

ROUNDS = 3  # kubelet or a network plugin may change a table between reading and writing, which then fails as a whole
_LOCK_WAIT = "5"  # seconds for the lock that programs of iptables-legacy share
_TIMEOUT = 600.0  # seconds; iptables-nft takes half a minute for 10 000 Services
_LIST_NAMES = 1 << 1  # IPSET_FLAG_LIST_SETNAME


def take_over(kernel: Kernel) -> tuple[Leftovers, list[str]]:
    """Remove whatever is left; return what was found, and what went wrong, which is logged and stops nothing (contract 5.12.1)."""
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
        logger.error("what another mode of kube-proxy left could not all be removed: {}", problem)
    return found, problems


def leftovers() -> Leftovers:
    """Look for what another mode of kube-proxy left in this thread's network namespace; changes nothing."""
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
        # Others use IPVS too, keepalived for one: without anything else of kube-proxy's mode the services are theirs.
        virtual_services=_virtual_services() if interface or ipsets else 0,
        interface=interface,
        ipsets=ipsets,
        problems=tuple(problems),
    )


def remove(found: Leftovers, kernel: Kernel) -> list[str]:
    """Remove what was found; return what went wrong, one line each.

    What is gone already is no problem, but in a table of iptables: that is changed as a whole or not at all, so look again.
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
    """A chain of somebody else's table whose policy drops; `table` begins with its family or its program."""

    table: str
    chain: str
    hook: str

    @property
    def needed(self) -> str:
        """What has to be accepted there, as no accept of ours overrides a drop."""
        return {
            "input": "connections to endpoints on the network of this host and to health check node ports",
            "forward": "connections to and from pods",
            "output": "connections of this node to Services",
        }.get(self.hook, "packets to and from Services and pods")


def dropping_chains() -> list[DroppingChain]:
    """Return the chains of other tables that drop what no rule accepts, for a warning (contract 9.8)."""
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
    """Return the tables of every iptables program there is, with the program's name; what cannot be read is left out."""
    return list(_saved([]))


@contextmanager
def _reported(problems: list[str], what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a line: everything here is best effort (contract 5.12.1)."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of programs, netlink and pyroute2 alike
        problems.append(f"{what}: {error}")


def _saved(problems: list[str]) -> Iterator[tuple[str, Saved]]:
    """Yield the tables of every iptables program there is."""
    for program in _programs():
        text = ""
        with _reported(problems, program):
            text = _run([f"{program}-save"])
        yield from ((program, table) for table in left.parse(text))


def _programs() -> Iterator[str]:
    """Yield the programs at hand: both backends by name, or the one there is where it has no such name."""
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
    """Run a program; KernelError with its first words if it fails."""
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
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        return bool(netlink.link_lookup(ifname=INTERFACE))


def _remove_interface() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=INTERFACE):
            netlink.link("del", index=index)


def _ipsets() -> tuple[str, ...]:
    if not Path("/sys/module/ip_set").exists():
        return ()
    from pyroute2 import IPSet

    with IPSet() as netlink:
        names = {item.get_attr("IPSET_ATTR_SETNAME") for item in netlink.list(flags=_LIST_NAMES)}
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
    """Count the IPVS services; none where the module is not loaded."""
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
