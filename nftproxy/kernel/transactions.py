"""Transactions on our table in the kernel.

This loads the program as nft text, makes missing chains and sets, and commits deltas as JSON, both
through libnftables. That is on purpose, also where netlink messages of our own would be quicker:
the library is well proven, it writes the same on every version, and its input can be read, pasted
into nft and reported. Every call is one transaction: it happens whole or not at all, and its error
says how our picture of the table was wrong (`MissingError`, `ExistsError`).

Two things end that. Each call reads all chains and sets, so where there are thousands, as with many
ClientIP Services, elements are netlink messages of our own. And while another program's set would
end a process that calls the library (`neighbours`), it is not called at all: chains that differ
from existing ones in numbers only are copied by netlink, other text is refused (`BlockedError`),
and the table continues to serve. libnftables is not thread safe: one lock guards it, and its calls
release the GIL.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import msgspec
from loguru import logger

from nftproxy.address import Family, Network, parse_network
from nftproxy.errors import BlockedError, KernelError, UnusableError
from nftproxy.kernel import grace
from nftproxy.kernel.channel import Channel
from nftproxy.kernel.library import Library, Sender
from nftproxy.kernel.neighbours import Neighbours
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.writer import Writer
from nftproxy.routes import Affinity, Key, Value, Verdict
from nftproxy.table import copies, schema
from nftproxy.table.delta import Delta, is_late
from nftproxy.table.program import TABLE, Program, table

_PROBE = """\
add table inet nftproxy-probe
add map inet nftproxy-probe m { \
    typeof ip daddr . tcp dport . numgen random mod 65536 : ip daddr . tcp dport; counter; }
delete table inet nftproxy-probe
"""
_CONNTRACK = """\
add table inet nftproxy-probe
add chain inet nftproxy-probe c
add rule inet nftproxy-probe c ct state new
delete table inet nftproxy-probe
"""
_ELEMENT = {"family": "inet", "table": "nftproxy"}
# chains and sets of ours from which on elements bypass the library, which takes 2 µs for each
CROWDED = 1000
# characters of commands in a log line: many services are halved until one is left, whose commands
# are shorter
_SHOWN = 4000


class Kernel:
    """Our table in the network namespace of the thread that made this object."""

    def __init__(self, library: Sender | None = None, *, by_netlink: bool = False) -> None:
        """`library` takes the text and JSON.

        With `by_netlink` elements never pass through it, for `bench`.
        """
        self._lock = threading.RLock()
        self.library = library or Library()
        self._by_netlink = by_netlink
        self._channel = Channel()
        self._reader = Reader(self._channel)
        self._second = Reader()
        self._neighbours = Neighbours(self._channel)
        self._writer = Writer(self._channel, self._note)
        # the number of the last transaction at the last look at other programs' sets, or of a later
        # one of ours
        self._looked_at = -1
        self.chains: set[str] = set()
        self.sets: set[str] = set()
        self.generation = 0  # increases with every load of a program
        self._doubted = False
        self._stale: set[str] = set()  # chains made on demand under another program

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; the table stays."""
        self._neighbours.close()
        self._second.close()
        self._channel.close()
        self.library.close()

    @property
    def blocked(self) -> BlockedError | None:
        """The reason why the library must not be called now, with its cure; None if it may."""
        with self._lock:
            deadly = self._neighbours.deadly(self._looked_at)
            self._looked_at = self._neighbours.looked_at
        return _blocked(deadly) if deadly else None

    def require(self) -> None:
        """Raise UnusableError, with its cure, if this machine cannot hold our table.

        A table with the most demanding declaration is made and deleted in one transaction, which
        leaves nothing behind.
        """
        try:
            with self._lock:
                self._reader.table_exists()
                if not self.blocked:
                    self._run(_PROBE)
        except KernelError as error:
            if "not permitted" in str(error):
                raise UnusableError(
                    "not allowed to change nftables",
                    hint="run as root or with the capability NET_ADMIN",
                ) from error
            raise UnusableError(
                f"this kernel or libnftables cannot hold the table: {error}",
                hint="needed: kernel 5.13 or later with nf_tables (modprobe nf_tables), "
                "libnftables 1.0.1 or later "
                "(apt-get install libnftables1)",
            ) from error

    def load_conntrack(self) -> None:
        """Let the kernel load its module nf_conntrack.

        A rule that looks at connections does that, in a table that is deleted at once.
        """
        with self._lock:
            self._transact(_CONNTRACK)

    @property
    def ports(self) -> set[int]:
        """The netlink port ids of our transactions."""
        return {*self.library.ports, self._channel.port}

    def refresh(self) -> bool:
        """Read the names of chains and sets; return whether the table exists."""
        with self._lock:
            exists = self._reader.table_exists()
            self.chains = set(self._reader.chains()) if exists else set()
            self._stale &= self.chains
            self.sets = self._reader.sets() if exists else set()
        return exists

    def doubt(self) -> None:
        """Load the program again at the next read-back, whatever the table seems to hold."""
        with self._lock:
            self.generation += 1
            self._doubted = True

    def holds(self, program: Program) -> bool:
        """Whether the table is known to hold exactly this program."""
        return not self._doubted and program.marker in self.chains

    def elements(self, where: str) -> dict[Key, Value]:
        """Return the elements of one of our sets or maps."""
        with self._lock:
            return self._reader.elements(where)

    def elements_of(self, names: Sequence[str]) -> dict[str, dict[Key, Value]]:
        """Return the elements of several of our sets or maps."""
        with self._lock:
            return self._reader.elements_of(names)

    def packed(self, names: Iterable[str]) -> dict[str, dict[bytes, bytes]]:
        """Return the packed elements of some of our sets and maps, which are read two at a time.

        The kernel takes most of the time: for each piece of its answer it starts at the beginning.
        """
        free: SimpleQueue[Reader] = SimpleQueue()

        def read(where: str) -> dict[bytes, bytes]:
            reader = free.get()
            try:
                return reader.packed(where)
            finally:
                free.put(reader)

        for reader in (self._reader, self._second):
            free.put(reader)
        # The longest are first
        order = sorted(names, key=lambda where: (not is_late(where), where))
        with self._lock, ThreadPoolExecutor(2, "reading") as threads:
            return dict(zip(order, threads.map(read, order), strict=True))

    def networks(self, where: str, family: Family) -> list[Network]:
        """Return the networks of a set."""
        with self._lock:
            return self._reader.networks(where, family)

    def keys(self, where: str) -> set[Key]:
        """Return the keys of one of our sets; the networks of an interval set as texts."""
        place = schema.parse(where)
        if place and place.declaration.interval:
            return {(str(network),) for network in self.networks(where, place.family)}
        return set(self.elements(where))

    def load(self, program: Program) -> None:
        """Load the program into the kernel, in one transaction, over any other program.

        Elements, counters and remembered clients stay. Picks are made again; chains of ClientIP
        services stay as they are until `ensure_for` replaces them, others until `tidy`.
        """
        with self._lock:
            self.refresh()
            if program.marker in self.chains and (blocked := self.blocked):
                logger.error(
                    "the rules of table inet nftproxy cannot be loaded again, elements are written "
                    "all the same: {}",
                    blocked,
                )
                return
            parts = self._on_demand(program, self.chains, ())
            base, other = program.chains(self.chains)
            known = self._reader.chains() if self.chains else {}
            text = f"add table {TABLE}\n"
            for (
                name
                # the kernel refuses a base chain with another hook or priority, so the old one is
                # deleted first
            ) in base:
                text += f"add chain {TABLE} {name}\ndelete chain {TABLE} {name}\n"
            stale_base = [name for name, is_base in known.items() if is_base and name not in base]
            text += "".join(f"delete chain {TABLE} {name}\n" for name in stale_base)
            refilled = [
                n
                for n in (*other, *(n for n, t in parts.items() if t.startswith("chain")))
                if n in known
            ]
            text += "".join(f"flush chain {TABLE} {name}\n" for name in dict.fromkeys(refilled))
            text += "".join(
                f"delete chain {TABLE} {n}\n"
                for n in known
                if schema.parse_program(n) and n != program.marker
            )
            body = program.text(
                {family: schema.lengths(self.sets, family) for family in program.families},
                self.chains,
            )
            self._transact(text + table([f"chain {program.marker} {{\n}}", body, *parts.values()]))
            self._stale = self.chains - set(parts)
            self._doubted = False
            self.generation += 1
            self.refresh()

    def ensure_for(
        self, delta: Delta, program: Program, affinities: Iterable[Affinity] = ()
    ) -> None:
        """Make missing chains and sets that additions and ClientIP service ports need.

        This is a transaction of its own, and none if nothing is missing: unused chains do no harm.
        """
        with self._lock:
            self._ensure(program, delta.targets(), delta.added, affinities)

    def ensure_picks(self, names: Iterable[str], program: Program) -> None:
        """Make missing picks, before elements are there.

        For each chain that looks into a map, the kernel walks along all its elements.
        """
        with self._lock:
            self._ensure(program, names, (), ())

    def add_missing(self, chains: Mapping[str, str]) -> None:
        """Make those of some chains that are missing, by name; one transaction, or none."""
        with self._lock:
            missing = {name: text for name, text in chains.items() if name not in self.chains}
            if missing:
                self._transact(table(missing.values()))
                self.chains |= missing.keys()

    def ensure_optional(self, program: Program, wheres: Iterable[str]) -> None:
        """Make missing optional chains that elements of these sets need."""
        with self._lock:
            self._ensure(program, (), wheres, ())

    def without(self, program: Program, optional: set[str]) -> None:
        """Delete optional chains, in one transaction with the rules that lead to them."""
        with self._lock:
            if gone := self.chains & optional:
                left = program.having(self.chains & program.optional - gone)[schema.TRANSLATED]
                self._transact(
                    f"flush chain {TABLE} {schema.TRANSLATED}\n"
                    + "".join(f"flush chain {TABLE} {name}\n" for name in sorted(gone))
                    + table([left])
                    + "".join(f"delete chain {TABLE} {name}\n" for name in sorted(gone))
                )
                self.chains -= gone

    def lacks(self, affinity: Affinity) -> bool:
        """Whether chains of a ClientIP service port are missing.

        With its chains it has everything that they name.
        """
        return any(name not in self.chains or name in self._stale for name in affinity.chains)

    def commit(self, delta: Delta) -> int:
        """Apply removals and additions of a delta; return in how many transactions.

        One, or two where a load-balancer address gets source ranges. A packet meets these in
        another hook, before the address: in one transaction, one that is between the two hooks
        would find no ranges, but the address. If the second fails, nothing of the first is left.
        """
        with self._lock:
            if not (ranges := delta.source_ranges()):
                self._change(delta.removed, delta.added)
                return 1
            self._change({}, ranges.added)
            grace.wait()
            try:
                self._change(delta.removed, delta.added)
            except KernelError:
                undone = {where: dict.fromkeys(keys) for where, keys in ranges.added.items()}
                with suppress(KernelError):
                    self._change(undone, {})
                raise
            return 2

    def _change(
        self, removed: Mapping[str, dict[Key, None]], added: Mapping[str, dict[Key, Value]]
    ) -> None:
        self._json(lambda: _commands(removed, added), lambda: self._writer.change(removed, added))

    def commit_late(self, delta: Delta) -> None:
        """Apply the late removals of a delta in one transaction."""
        with self._lock:
            late = {where: keys for where, keys in delta.late.items() if keys}
            self._json(lambda: _commands(late, {}), lambda: self._writer.change(late, {}))

    def replace(self, where: str, keys: Iterable[Key]) -> None:
        """Replace the keys of a set, in one transaction; texts with a slash are networks."""
        found = [str(key[0]) for key in sorted(keys)]
        with self._lock:
            commands: list[object] = [{"flush": {"set": {**_ELEMENT, "name": where}}}]
            if found:
                elements = [_network(text) for text in found]
                commands.append({"add": {"element": {**_ELEMENT, "name": where, "elem": elements}}})
            packed = [parse_network(text) if "/" in text else text for text in found]
            self._json(lambda: commands, lambda: self._writer.replace(where, packed))

    def forget(self, where: str, entries: dict[Key, Value]) -> None:
        """Delete entries that the kernel learnt.

        Each is added first, because one that has just expired could not be deleted.
        """
        if not entries:
            return
        with self._lock:
            self._json(
                lambda: [
                    {"add": _elements(where, entries)},
                    {"delete": _elements(where, dict.fromkeys(entries))},
                ],
                lambda: self._writer.forget(where, entries),
            )

    def remember(self, where: str, entries: dict[Key, Value], timeout: int) -> None:
        """Add clients to a memory, for some seconds.

        If the kernel refuses that, because it has learnt one of them meanwhile or the memory is
        full, they are new clients: that costs affinity, not service.
        """
        with self._lock, suppress(KernelError):
            self._json(
                lambda: [{"add": _ending(where, entries, timeout)}],
                lambda: self._writer.remember(where, entries, timeout),
            )

    def delete_table(self) -> bool:
        """Remove the table with all its content; return whether it existed."""
        found = self.delete_foreign_table("inet", "nftproxy")
        with self._lock:
            self.chains, self.sets = set(), set()
        return found

    def delete_foreign_table(self, family: str, name: str) -> bool:
        """Remove another program's table that this one replaces; return whether it existed."""
        with self._lock:
            if not self._reader.table_exists(name, family):
                return False
            if self.blocked:
                self._writer.delete_table(family, name)
            else:
                self._run(f"delete table {family} {name}\n")
            return True

    def tidy(self, chains: Iterable[str], sets: Iterable[str]) -> None:
        """Delete unused chains and sets; KernelError if one is still in use.

        First the sets, then the chains that their verdicts pointed to: before kernel 6.2 these
        count as used for a moment longer.
        """
        chains, sets = [c for c in chains if c in self.chains], [s for s in sets if s in self.sets]
        text = "".join(f"flush chain {TABLE} {name}\n" for name in chains)
        with self._lock:
            if sets:
                self._transact(text + "".join(f"delete set {TABLE} {name}\n" for name in sets))
                self.sets -= set(sets)
            if chains:
                self._transact(text + "".join(f"delete chain {TABLE} {name}\n" for name in chains))
                self.chains -= set(chains)
                self._stale -= set(chains)

    def probe(self) -> None:
        """Commit a transaction that changes nothing.

        KernelError if the kernel accepts none at all.
        """
        with self._lock:
            if self.blocked:
                self._writer.probe()
            else:
                self._run(f"add table {TABLE}\n")

    def _ensure(
        self,
        program: Program,
        targets: Iterable[str],
        wheres: Iterable[str],
        affinities: Iterable[Affinity],
    ) -> None:
        missing = {name for name in targets if name not in self.chains}
        affinities = [affinity for affinity in affinities if self.lacks(affinity)]
        parts = {} if not (missing or affinities) else self._on_demand(program, missing, affinities)
        made = (self.chains - self._stale) | self.sets if parts else set()
        parts = {name: text for name, text in parts.items() if name not in made}
        again = [name for name in parts if name in self._stale]
        for family in program.families:
            wanted = {name for name in wheres if schema.is_allowed(name, family)} - self.sets
            if wanted:
                parts |= program.sources(family, schema.lengths(self.sets | wanted, family))
                again.append(schema.allowed(family))
        optional = {name for where in wheres for name in schema.needed_by(where)}
        made_optional = not optional <= self.chains
        if made_optional:
            having = program.having(self.chains | optional)
            parts |= having
            again += having.keys() & self.chains
        if parts and (blocked := self.blocked):
            self._copy(parts, blocked)
        elif parts:
            self._transact(
                "".join(f"flush chain {TABLE} {name}\n" for name in again) + table(parts.values())
            )
            self._stale -= parts.keys()
            if made_optional:  # a packet on its way without them must not meet what they guard
                grace.wait()
        for name, text in parts.items():
            (self.chains if text.startswith("chain") else self.sets).add(name)

    def _copy(self, parts: dict[str, str], blocked: BlockedError) -> None:
        """Make chains after the model of others.

        BlockedError if one has no model, or is no new chain.
        """
        made: dict[str, list[bytes]] = {}
        known = self.chains - self._stale
        for name, text in parts.items():
            model = copies.model(name, known)
            if model is None or name in self.chains:
                raise blocked
            try:
                made[name] = copies.adapted(self._reader.expressions(model), text)
            except copies.ShapeError:
                raise blocked from None
        self._writer.add_chains(made)

    def _on_demand(
        self, program: Program, chains: Iterable[str], affinities: Iterable[Affinity]
    ) -> dict[str, str]:
        parts: dict[str, str] = {}
        for name in chains:
            parts |= program.pick(name)
        for affinity in affinities:
            parts |= program.affinity(affinity)
        return parts

    def _json(self, commands: Callable[[], list[object]], instead: Callable[[], None]) -> None:
        """Change elements through the library, or by netlink.

        By netlink if the library would read very many chains and sets, or must not be called.
        """
        if not self._by_netlink and len(self.chains) + len(self.sets) < CROWDED:
            with suppress(BlockedError):
                if found := commands():
                    self._transact(_document(found))
                return
        with _logged(lambda: _document(commands())):
            instead()

    def _transact(self, text: str) -> None:
        """Run the commands of a sync."""
        with _logged(lambda: text):
            self._run(text)

    def _run(self, text: str) -> None:
        if blocked := self.blocked:
            raise blocked
        self.library.run(text)
        if self._channel.generation() == self._looked_at + 1:
            self._looked_at += 1

    def _note(self) -> None:
        """Note a transaction of the writer; one that changes nothing has no number."""
        if self._channel.generation() == self._looked_at + 1:
            self._looked_at += 1


@contextmanager
def _logged(text: Callable[[], str]) -> Iterator[None]:
    """Log the commands that a block makes for debugging, if they are refused (contract 5.10.4).

    Also those of the writer, as they would be sent to the library. The log has no listing of the
    table, which may take seconds: `nft` and `nftproxy show` give it at any time.
    """
    try:
        yield
    except BlockedError:
        raise
    except KernelError as error:
        commands = text()
        more = (
            f"\n... and {len(commands) - _SHOWN} characters more" if len(commands) > _SHOWN else ""
        )
        logger.debug("refused: {}; the commands were:\n{}{}", error, commands[:_SHOWN], more)
        raise


def _commands(
    removed: Mapping[str, dict[Key, None]], added: Mapping[str, dict[Key, Value]]
) -> list[object]:
    """Return deletions, then additions, as libnftables JSON."""
    commands: list[object] = [{"delete": _elements(where, keys)} for where, keys in removed.items()]
    return commands + [{"add": _elements(where, items)} for where, items in added.items()]


def _document(commands: list[object]) -> str:
    """Return commands as libnftables takes them."""
    return msgspec.json.encode({"nftables": commands}).decode()


def _elements(where: str, items: dict[Key, None] | dict[Key, Value]) -> dict[str, object]:
    """Return an element command of libnftables JSON."""
    return {
        "element": {
            **_ELEMENT,
            "name": where,
            "elem": [_json(key, value) for key, value in items.items()],
        }
    }


def _ending(where: str, items: dict[Key, Value], timeout: int) -> dict[str, object]:
    """Return an element command for clients that are forgotten after some seconds."""
    elements = [
        ({"elem": {"val": client, "timeout": timeout}}, address)
        for (client,), address in items.items()
    ]
    return {"element": {**_ELEMENT, "name": where, "elem": elements}}


def _json(key: Key, value: Value) -> object:
    left: object = {"concat": key} if len(key) > 1 else key[0]
    if value is None:
        return left
    if type(value) is Verdict:
        if value.comment:
            left = {"elem": {"val": left, "comment": value.comment}}
        return (left, {value.verb: {"target": value.target} if value.target else None})
    return (left, value if type(value) is str else {"concat": value})


def _network(text: str) -> object:
    """Return an address or a network as libnftables JSON."""
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash else text


def _blocked(deadly: tuple[str, ...]) -> BlockedError:
    return BlockedError(
        f"{_named(deadly)} was written by a newer nft and would end any process that reads it with "
        "this libnftables",
        hint="use libnftables 1.1.4 or later, such as that of the container image; or delete that "
        "table, "
        "or declare its sets with typeof",
    )


def _named(deadly: tuple[str, ...]) -> str:
    family, table, name = deadly[0].split(" ", 2)
    more = f" and {len(deadly) - 1} more" if len(deadly) > 1 else ""
    return f"table {family} {table} (set {name}{more})"
