"""What nftables, iptables and IPVS hold on this node, ours and others'. Nothing is written."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from nftproxy.address import pack
from nftproxy.configuration.settings import NodeSettings
from nftproxy.doctor import barriers, machine
from nftproxy.doctor.endpoints import EndpointPlace
from nftproxy.doctor.facts import Barrier, Failure, Unreached
from nftproxy.doctor.model import Unknown
from nftproxy.errors import NftproxyError
from nftproxy.kernel.channel import Channel
from nftproxy.kernel.child import rehearse
from nftproxy.kernel.neighbours import Neighbours
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.snapshot import Snapshot, take_snapshot
from nftproxy.path.legacy import EveryRuleset, LegacyTables
from nftproxy.path.live import LiveRuleset
from nftproxy.path.routing import Routing
from nftproxy.table import netlink, schema
from nftproxy.table.netlink import FAMILY_NAMES, ChainAttribute, Message
from nftproxy.table.program import Program

T = TypeVar("T")
_PATIENCE = 60.0  # seconds for nft, where other tables are large
_ATTEMPTS = 5


def attempt(ask: Callable[[], T]) -> T | Unknown:
    """Return what somebody says, or why not; a missing permission is a reason like any other."""
    try:
        return ask()
    except NftproxyError as error:
        return _unknown(error)
    except OSError as error:
        return Unknown(str(error.strerror or error))


def _unknown(error: NftproxyError) -> Unknown:
    if "not permitted" in str(error):
        return Unknown("needs the capability NET_ADMIN: run it as root")
    return Unknown(error.with_hint)


def netfilter() -> int | Unknown | Failure:
    """Return the number of the last transaction; Failure where the kernel has no nf_tables."""
    try:
        with closing(Channel()) as channel:
            return channel.generation()
    except NftproxyError as error:
        if "not permitted" in str(error):
            return _unknown(error)
        return Failure(str(error), error.hint or "modprobe nf_tables")


def library() -> Failure | None:
    """Return why libnftables cannot be used; None where it can."""
    try:
        rehearse("")
    except NftproxyError as error:
        return Failure(str(error), error.hint)
    return None


def program(settings: NodeSettings) -> Failure | None:
    """Return why the kernel would refuse our program; None where it takes it."""
    ours = Program(settings)
    text = f"table inet nftproxy-doctor {{\n{ours.text(optional=ours.optional)}\n}}\n"
    try:
        rehearse(text)
    except NftproxyError as error:
        return Failure(str(error), error.hint)
    return None


def snapshot() -> Snapshot | None:
    """Return what our table holds; None without one."""
    with closing(Reader()) as reader:
        return take_snapshot(reader)


def programs() -> tuple[str, ...]:
    """Return the digests of the programs that our table names."""
    with closing(Reader()) as reader:
        if not reader.table_exists():
            return ()
        return tuple(filter(None, map(schema.parse_program, reader.chains())))


def deadly() -> tuple[str, ...]:
    """Return the sets of other programs that end whoever has libnftables read them here."""
    with closing(Channel()) as channel, closing(Neighbours(channel)) as neighbours:
        return neighbours.deadly(-1)


def lister() -> Failure | Unknown | None:
    """Return why the program nft on this machine cannot list our table; None where it can."""
    if not shutil.which("nft"):
        return Unknown("there is no program nft here; nftproxy needs none")
    argv = ["nft", "--terse", "list", "table", "inet", "nftproxy"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Unknown(f"`{' '.join(argv)}`: {error}")
    if done.returncode < 0:
        return Failure(f"`{' '.join(argv)}` ends with signal {-done.returncode}")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Failure(f"`{' '.join(argv)}`: {lines[0] if lines else 'failed without a reason'}")
    return None


def found_barriers(endpoints: list[EndpointPlace]) -> tuple[Barrier, ...]:
    """Return the chains of others that stop what Services need."""
    with closing(Channel()) as channel, Routing() as around:
        legacy = LegacyTables()
        owners = {
            table: barriers.owner_of(names, table)
            for table, names in (chains(channel) | legacy.chains()).items()
        }
        tried = barriers.trials(endpoints, around)
        rules = EveryRuleset(LiveRuleset(channel), legacy)
        return tuple(barriers.barriers(rules, around, tried, owners))


def unreached(endpoints: list[EndpointPlace]) -> tuple[Unreached, ...]:
    """Return the endpoints that this node has no route to, or whose next hop does not answer."""
    found = []
    silent = machine.silent()
    with Routing() as around:
        for address in dict.fromkeys(place.address for place in endpoints):
            way = around.to(pack(address))
            if way.error:
                found.append(Unreached(address, way.error.lower(), sure=True))
                continue
            hop = way.gateway or address
            if not way.local and (hop, way.device) in silent:
                found.append(Unreached(address, f"{hop} on {way.device} is silent", sure=False))
    return tuple(found)


def chains(channel: Channel) -> dict[str, list[str]]:
    """Return the names of all chains, by family and name of their table."""
    found: dict[str, list[str]] = {}
    for number, message in channel.dump_all(Message.GET_CHAIN, _ATTEMPTS):
        parts = netlink.parts(message)
        table = f"{FAMILY_NAMES.get(number, number)} {netlink.text(parts[ChainAttribute.TABLE])}"
        found.setdefault(table, []).append(netlink.text(parts[ChainAttribute.NAME]))
    return found
