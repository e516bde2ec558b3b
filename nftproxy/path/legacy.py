"""The tables of iptables-legacy, read from the kernel and turned into rules as nft has them.

The kernel hands a table out as one piece: entries with matches and targets, which are those that
iptables-nft puts into rules of nft, byte for byte. So the same code runs both. No program is
needed, and a table that is not in use is not asked for, because that would load it.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nftproxy.errors import KernelError
from nftproxy.path.ruleset import (
    NftBaseChain,
    NftChain,
    NftRule,
    NftTable,
    RuleExpression,
    Ruleset,
    SetElement,
)
from nftproxy.table.expressions import Extension, Immediate, VerdictCode
from nftproxy.table.netlink import Data, VerdictAttribute, attribute, named, nested

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_*, IP6T_SO_*
_INFO = struct.Struct("=32sI5I5III")
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SOURCE = 100  # of nat, where sources are translated
_ERROR, _RETURN = b"ERROR\0", -5  # the target at the head of a chain; XT_RETURN
_ATTEMPTS = 5
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Layout(NamedTuple):
    """Where things are in the entries of a family, in bytes."""

    name: str
    names: str  # the file with the tables in use
    kind: int
    level: int
    header: int  # the length of the conditions on addresses, interfaces and protocol
    offsets: int  # of the target, and of the next entry
    matches: int
    flags: int
    goto: int


_FAMILIES = (
    _Layout("iptables", "ip_tables_names", socket.AF_INET, socket.IPPROTO_IP, 84, 88, 112, 82, 2),
    _Layout(
        "ip6tables", "ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, 136, 140, 168, 131, 4
    ),
)


class _Entry(NamedTuple):
    """A rule as it stands in the table."""

    end: int
    header: bytes
    matches: tuple[tuple[str, int, bytes], ...]
    target: tuple[str, int, bytes]
    goto: bool


class _Blob(NamedTuple):
    """A table as the kernel hands it out, with its chains by the place of their first entry."""

    layout: _Layout
    data: bytes
    names: dict[int, str]


class _Chain(NamedTuple):
    """Where a chain is in its table; that of a hook without its policy."""

    blob: _Blob
    start: int
    end: int


class LegacyTables:
    """The tables that are in use in the maker's network namespace.

    Each is read at once, and a chain is taken apart when somebody asks for its rules.
    """

    def __init__(self) -> None:
        self.unread: list[str] = []  # tables that could not be read
        self._base: list[NftBaseChain] = []
        self._chains: dict[NftChain, _Chain] = {}
        self._rules: dict[NftChain, list[NftRule]] = {}
        for layout in _FAMILIES:
            for name in _in_use(layout):
                try:
                    self._take(layout, name)
                except OSError:
                    self.unread.append(f"{layout.name} {name}")

    def base_chains(self) -> Sequence[NftBaseChain]:
        """Return the chains that packets meet first."""
        return self._base

    def chains(self) -> dict[str, list[str]]:
        """Return the names of all chains, by family and name of their table."""
        found: dict[str, list[str]] = {}
        for chain in self._chains:
            found.setdefault(str(chain.table), []).append(chain.name)
        return found

    def rules(self, chain: NftChain) -> Sequence[NftRule]:
        """Return the rules of a chain, in order; their handles are their numbers."""
        if chain not in self._rules and chain in self._chains:
            blob, start, end = self._chains[chain]
            self._rules[chain] = [
                NftRule(chain, number, tuple(_expressions(entry, blob.names)))
                for number, entry in enumerate(_entries(blob.layout, blob.data, start, end), 1)
            ]
        return self._rules.get(chain, ())

    def _take(self, layout: _Layout, name: str) -> None:
        hooks, policies, data = _read(layout, name)
        table = NftTable(layout.name, name)
        blob = _Blob(layout, data, {})
        ends = {start: policies[hook] for hook, start in hooks.items()}
        blob.names.update({start: _HOOKS[hook].upper() for hook, start in hooks.items()})
        start = 0
        for place, head in _heads(layout, data):
            # A chain of a user ends where the head of the next one begins, or that of the end.
            if start in blob.names and start not in ends:
                ends[start] = place
            start = place + _length(layout, data, place)
            if start < len(data):
                blob.names[start] = head
        for start, own in blob.names.items():
            self._chains[NftChain(table, own)] = _Chain(blob, start, ends[start])
        for hook, start in hooks.items():
            (policy,) = _entries(
                layout, data, policies[hook], policies[hook] + _length(layout, data, policies[hook])
            )
            source = name == "nat" and _HOOKS[hook] in {"input", "postrouting"}
            self._base.append(
                NftBaseChain(
                    NftChain(table, blob.names[start]),
                    "nat" if name == "nat" else "filter",
                    _HOOKS[hook],
                    _SOURCE if source else _PRIORITIES.get(name, 0),
                    _verdict(policy.target[2]) == VerdictCode.DROP,
                )
            )


class EveryRuleset:
    """Tables of nftables and of iptables-legacy as one ruleset."""

    def __init__(self, rules: Ruleset, legacy: LegacyTables) -> None:
        self._nft = rules
        self._legacy = legacy

    def base_chains(self) -> Sequence[NftBaseChain]:
        """Return the base chains of all tables, by priority."""
        found = [*self._nft.base_chains(), *self._legacy.base_chains()]
        return sorted(found, key=lambda chain: chain.priority)

    def rules(self, chain: NftChain) -> Sequence[NftRule]:
        """Return the rules of a chain, in order."""
        return (self._legacy if chain.table.is_legacy else self._nft).rules(chain)

    def key_length(self, table: NftTable, name: str) -> int:
        """Return how long the keys of a set are."""
        return self._nft.key_length(table, name)

    def element(self, table: NftTable, name: str, key: bytes) -> SetElement | None:
        """Return an element of a set; None when it is not there."""
        return self._nft.element(table, name, key)


def _in_use(layout: _Layout) -> list[str]:
    with suppress(OSError):
        return Path("/proc/thread-self/net", layout.names).read_text().split()
    return []


def _read(layout: _Layout, name: str) -> tuple[dict[int, int], dict[int, int], bytes]:
    """Return where each hook's chain and policy begin, and all entries of a table."""
    with socket.socket(layout.kind, socket.SOCK_DGRAM) as sock:
        for _ in range(_ATTEMPTS):
            head = name.encode().ljust(32, b"\0")
            info = _ask(sock, layout, _GET_INFO, head.ljust(_INFO.size, b"\0"))
            _, valid, *rest = _INFO.unpack(info)
            starts, policies, size = rest[:5], rest[5:10], rest[11]
            wanted = head + struct.pack("=I4x", size)
            try:
                answer = _ask(sock, layout, _GET_ENTRIES, wanted.ljust(40 + size, b"\0"))
            except OSError as error:
                if error.errno == errno.EAGAIN:  # it was changed in between
                    continue
                raise
            hooks = [hook for hook in range(5) if valid & 1 << hook]
            return (
                {hook: starts[hook] for hook in hooks},
                {hook: policies[hook] for hook in hooks},
                answer[40:],
            )
    raise KernelError(f"table {layout.name} {name} changes too fast to be read")


def _ask(sock: socket.socket, layout: _Layout, option: int, question: bytes) -> bytes:
    """Ask by a socket option whose buffer is question and answer."""
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    place = sock.fileno(), layout.level, option, buffer, ctypes.byref(length)
    if _LIBC.getsockopt(*place):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw


def _length(layout: _Layout, data: bytes, place: int) -> int:
    return int(struct.unpack_from("=H", data, place + layout.offsets + 2)[0])


def _heads(layout: _Layout, data: bytes) -> Iterator[tuple[int, str]]:
    """Yield the heads of chains that users made, with their names, and the end of the table."""
    start = 0
    while start + layout.matches <= len(data):
        target, length = struct.unpack_from("=HH", data, start + layout.offsets)
        if data.startswith(_ERROR, start + target + 2):
            there = start + target + 32
            yield start, _text(data[there : there + 30])
        start += length


def _entries(layout: _Layout, data: bytes, start: int, stop: int) -> Iterator[_Entry]:
    while start < stop:
        target, length = struct.unpack_from("=HH", data, start + layout.offsets)
        matches = []
        at = start + layout.matches
        while at < start + target:
            size = struct.unpack_from("=H", data, at)[0]
            matches.append(_extension(data[at : at + size]))
            at += size
        yield _Entry(
            start + length,
            data[start : start + layout.header],
            tuple(matches),
            _extension(data[start + target : start + length]),
            bool(data[start + layout.flags] & layout.goto),
        )
        start += length


def _extension(data: bytes) -> tuple[str, int, bytes]:
    """Return name, revision and content of a match or target."""
    return _text(data[2:31]), data[31], data[32:]


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def _expressions(entry: _Entry, targets: dict[int, str]) -> Iterator[RuleExpression]:
    """Return a rule as nft would have it."""
    yield RuleExpression("xtables", {Extension.INFO: entry.header})
    for match in entry.matches:
        yield _of_extension("match", match)
    name, _, info = entry.target
    if name:
        yield _of_extension("target", entry.target)
        return
    (verdict,) = struct.unpack_from("=i", info)
    if verdict < 0:
        yield _immediate(_verdict(info))
    elif verdict != entry.end:
        code = VerdictCode.GOTO if entry.goto else VerdictCode.JUMP
        yield _immediate(code, targets.get(verdict, ""))


def _verdict(info: bytes) -> int:
    (verdict,) = struct.unpack_from("=i", info)
    return VerdictCode.RETURN if verdict == _RETURN else -verdict - 1


def _of_extension(kind: str, extension: tuple[str, int, bytes]) -> RuleExpression:
    name, revision, info = extension
    data: dict[int, bytes] = {
        Extension.NAME: name.encode(),
        Extension.REVISION: revision.to_bytes(4),
        Extension.INFO: info,
    }
    return RuleExpression(kind, data)


def _immediate(code: int, chain: str = "") -> RuleExpression:
    verdict = attribute(VerdictAttribute.CODE, code.to_bytes(4, signed=True))
    if chain:
        verdict += named(VerdictAttribute.CHAIN, chain)
    data: dict[int, bytes] = {Immediate.TO: bytes(4), Immediate.DATA: nested(Data.VERDICT, verdict)}
    return RuleExpression("immediate", data)
