"""One family's syncs: from dirty services to a table that is in step.

The memory of the table consists of routes and changes only after the kernel accepted a change. A
sync writes in this order: memories that get into use are emptied; then all additions, rewrites and
verdicts; then clients forget removed endpoints; then, when every packet has left that read the old
ones, the removal of unreferenced elements. At the start, and whenever the kernel shows that the
memory is wrong, the table is read back and only the difference is written.

A service that the kernel refuses is set aside alone, named once in the log, and tried again when it
changes; all others are applied.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from loguru import logger

from nftproxy.address import Address, Family
from nftproxy.configuration.settings import ALL, NodeSettings
from nftproxy.errors import BlockedError, ExistsError, KernelError, MissingError
from nftproxy.kernel import grace
from nftproxy.kernel.transactions import Kernel
from nftproxy.node.memory import give_back, uncollected
from nftproxy.routes import Affinity, Key
from nftproxy.store import Store, Taken
from nftproxy.sync import preparation
from nftproxy.sync.compilation import Compilation
from nftproxy.sync.firstload import FirstLoad, FirstLoadError
from nftproxy.sync.forgetting import Forgetting
from nftproxy.sync.preparation import Preparation
from nftproxy.sync.report import Report
from nftproxy.sync.resets import Resets
from nftproxy.table import memories, schema
from nftproxy.table.batch import Batch
from nftproxy.table.delta import Delta
from nftproxy.table.elements import targets
from nftproxy.table.holdings import is_named_after
from nftproxy.table.memories import Memory, Regrouped
from nftproxy.table.plan import BATCH, Basis, Empty, InStep, ReadBack, Wanted, node_elements, plan
from nftproxy.table.program import Program, is_pick
from nftproxy.table.remembered import Change, Remembered


class Syncer:
    """Keeps one family's part of the table in step with the store.

    Not for two threads at the same time.
    """

    def __init__(
        self,
        family: Family,
        settings: NodeSettings,
        program: Program,
        kernel: Kernel,
        store: Store,
        resets: Resets | None = None,
    ) -> None:
        self.family = family
        self.remembered = Remembered(family)
        self._settings = settings
        self._program = program
        self._kernel = kernel
        self._store = store
        self._resets = resets
        # Of the program that `remembered` is about; -1: the table has to be read back
        self._generation = -1
        self._compilation = Compilation(family, settings)
        self._forgetting = Forgetting(kernel)
        # Services whose change was refused after reading back: what they have in the table is not
        # remembered, so it is read back before they change
        self._left: set[str] = set()
        self._doubtful: set[str] = set()  # memories that a packet may have filled in meanwhile
        self._preparation = Preparation(kernel, program)
        self._forwards = family in settings.forwarded
        self._names: dict[
            Affinity, tuple[str, ...]
        ] = {}  # of chains and sets of ClientIP service ports

    def sync(self) -> Report:
        """Bring the table in step; KernelError if that failed and has to be tried again."""
        taken = self._store.take_dirty(self.family, everything=not self.in_step)
        try:
            if self.in_step and not self._left.isdisjoint(map(str, taken.services)):
                taken = self._take_again(taken)
            try:
                return self._sync(taken)
            except FirstLoadError:
                taken = self._take_again(taken)
            except (MissingError, ExistsError) as error:
                logger.warning(
                    "{}: the table is not as it was left ({}); reading it back",
                    self.family,
                    error,
                )
                taken = self._take_again(taken)
            return self._sync(taken, careful=True)
        except BaseException:
            self._store.give_back(self.family, taken)
            raise

    def _take_again(self, taken: Taken) -> Taken:
        self.distrust()
        self._store.give_back(self.family, taken)
        return self._store.take_dirty(self.family, everything=True)

    @property
    def in_step(self) -> bool:
        """Whether `remembered` is believed to match the table."""
        return self._generation == self._kernel.generation

    def distrust(self) -> None:
        """Let the next sync read the table back."""
        self._generation = -1

    @property
    def untidy(self) -> bool:
        """Whether there is work for quiet times."""
        return self.remembered.untidy or bool(self._doubtful)

    def forget_doubtful(self) -> None:
        """Look again whether clients remember an endpoint that is gone: a packet was on its way.

        KernelError if that failed and has to be tried again.
        """
        if self._doubtful:
            grace.wait()
            self._forgetting.forget(
                memory
                for memory in memories.current(self.remembered)
                if memory[0] in self._doubtful
            )
            self._doubtful.clear()

    def needed(self, busy: Callable[[], bool]) -> set[str] | None:
        """Return the names of all chains and sets in use that are made on demand.

        None if `busy` reports that others wait. The names of a ClientIP service port take
        milliseconds, so they are kept; those of thousands would hold up a sync for seconds.
        """
        names: set[str] = set()
        if any(route.sources is not None for route in self.remembered.routes.values()):
            names.update(schema.SOURCE_RANGES)
        if any(True for _ in self.remembered.affinities):
            names.add(schema.remember(self.family))
        for target in {
            t for route in self.remembered.routes.values() for t in targets(route, self.family)
        }:
            names.update(self._program.pick(target) or (target,))
        affinities = dict.fromkeys(self.remembered.affinities)
        self._names = {
            affinity: known for affinity, known in self._names.items() if affinity in affinities
        }
        for affinity in affinities:
            if affinity not in self._names:
                if busy():
                    return None
                self._names[affinity] = tuple(self._program.affinity(affinity))
            names.update(self._names[affinity])
        if self._left:
            names |= self._program.optional
            names.update(
                name
                for name in self._kernel.chains | self._kernel.sets
                if is_pick(name) or is_named_after(name, self._left)
            )
        return names

    def _sync(self, taken: Taken, *, careful: bool = False) -> Report:
        report = Report(self.family, services=len(taken.services), looked_at=taken.services)
        accepted: tuple[Address, ...] | None = None
        if self.in_step:
            if self._resets:
                self._resets.look(self.family, taken.services, read=False)
            wanted = self._compilation.portions(taken, report, whole=True)
            self._write(wanted, InStep(), report)
        else:
            with uncollected():
                self._restart(taken, report, careful=careful)
            if self._settings.nodeport_addresses[self.family] is ALL:
                accepted = ()  # no rule looks there, but an older process may have left some
        with report.timed("difference"):
            self._commit_late(report)
        if accepted is not None or taken.networks is not None:
            self.say_of_node(node_elements(self.family, accepted, taken.networks))
        if report.postponed:
            self._postpone(taken, report)
        if report.read_back or report.written >= BATCH:
            give_back()
        return report

    def _restart(self, taken: Taken, report: Report, *, careful: bool) -> None:
        """Read the table back and write the difference."""
        basis, wanted = self._compiled_while_reading(taken, report)
        elements = basis.elements if isinstance(basis, ReadBack) else {}
        if self._resets:
            self._resets.read_back(self.family, elements)
            self._resets.look(self.family, taken.services, read=True)
        generation, before = self._kernel.generation, memories.members(elements)
        with report.timed("difference"):
            self._forgetting.forget(
                (where, frozenset(before.get(where, ())))
                for where in sorted(self._kernel.sets)
                if schema.is_memory(where, self.family)
            )
        if careful or isinstance(basis, ReadBack):
            self._write(wanted, basis, report)
        else:
            self._load(wanted, report)
        with report.timed("difference"):
            self._forget(
                list(memories.reduced_since(before, self.remembered)),
                list(memories.regrouped_since(before, self.remembered)),
            )
        self._generation = generation

    def _compiled_while_reading(
        self, taken: Taken, report: Report
    ) -> tuple[ReadBack | Empty, Iterable[Wanted]]:
        """Return what the table holds, and the wanted services.

        The kernel takes most of the time of reading, so services are compiled meanwhile.
        """
        portions = self._compilation.portions(taken, report, whole=False)
        compiled: list[Wanted] = []
        with report.timed("read_back"), ThreadPoolExecutor(1, "read-back") as thread:
            reading = thread.submit(self._read_back)
            while not reading.done() and (portion := next(portions, None)) is not None:
                compiled.append(portion)
            basis = reading.result()
        report.read_back = True
        return basis, itertools.chain(compiled, portions)

    def _plan(self, wanted: Iterable[Wanted], basis: Basis) -> Iterator[Batch]:
        alone = partial(self._preparation.is_large, limit=preparation.LAST)
        return plan(self.remembered, wanted, basis, alone=alone)

    def _write(self, wanted: Iterable[Wanted], basis: Basis, report: Report) -> None:
        """Make the changes of services, except late deletions."""
        large: list[Change] = []
        in_step = isinstance(basis, InStep)
        with report.timed("difference"):
            for batch in self._plan(wanted, basis):
                if in_step and self._is_large(batch, preparation.PREPARED):
                    large += batch.changes
                else:
                    self._apply(batch, basis, report)
            if large:
                self._prepare(large, report)

    def _load(self, wanted: Iterable[Wanted], report: Report) -> None:
        """Load an empty table, without services that come last: the next sync adds them."""
        large: list[Change] = []
        with (
            report.timed("difference"),
            FirstLoad(
                self.family,
                lambda whole, affinities: self._transact(whole, affinities, report),
                lambda picks: self._kernel.ensure_picks(picks, self._program),
            ) as first,
        ):
            for batch in self._plan(map(first.prepared, wanted), Empty()):
                if self._is_large(batch, preparation.LAST):
                    large += batch.changes
                    continue
                with report.timed("kernel"):
                    first.add(batch.delta, batch.affinities)
                report.accepted(batch.changes, self.remembered, forwarded=self._forwards)
                self.remembered.accept(batch.changes, batch.delta)
            with report.timed("kernel"):
                first.finish()
        self._leave(large, report)

    def _is_large(self, batch: Batch, limit: int) -> bool:
        (change, *others) = batch.changes
        return not others and self._preparation.is_large(change, limit)

    def _leave(self, changes: Iterable[Change], report: Report) -> None:
        """Leave changes to the next sync."""
        for change in changes:
            report.postponed |= {name: report.looked_at[name] for name in change.services}

    def _prepare(self, large: list[Change], report: Report) -> None:
        """Make a portion of the chains that large changes need; the next syncs make the changes."""
        try:
            with report.timed("kernel"):
                self._preparation.prepare(large[0])
        except KernelError as error:
            if isinstance(error, MissingError | ExistsError):
                raise
            self._kernel.probe()
            report.refuse(large.pop(0), error)
        self._leave(large, report)

    def _read_back(self) -> ReadBack | Empty:
        """Ensure the program, clear the memory, and return the elements of this family."""
        self._kernel.refresh()
        if not self._kernel.holds(self._program):
            self._kernel.load(self._program)
        self.remembered = Remembered(self.family)
        self.remembered.untidy = True
        self._left.clear()
        sets = [name for name in self._kernel.sets if schema.is_compared(name, self.family)]
        elements = self._kernel.packed(sets)
        # Somebody may have deleted some of them while the table looked like ours. While libnftables
        # must not be called, the table serves as it is, and is read back again afterwards.
        with suppress(BlockedError):
            self._kernel.ensure_optional(self._program, [name for name in sets if elements[name]])
        return ReadBack(elements) if any(elements.values()) else Empty()

    def _apply(self, batch: Batch, basis: Basis, report: Report) -> None:
        """Commit a batch; halve a refused one until the offender is alone, and set that aside."""
        in_step = isinstance(basis, InStep)
        try:
            if in_step and batch.begun:
                self._begin(batch)
            self._commit(batch.delta, batch.affinities, report)
        except KernelError as error:
            if not batch.changes or (in_step and isinstance(error, MissingError | ExistsError)):
                raise
            self._kernel.probe()
            if len(batch.changes) == 1:
                report.refuse(batch.changes[0], error)
                if isinstance(basis, ReadBack):
                    batch.leave()
                    self._left.update(map(str, batch.changes[0].services))
            for half in batch.halves():
                self._apply(half, basis, report)
            return
        report.accepted(batch.changes, self.remembered, forwarded=self._forwards)
        kept = batch.holdings.of_several() if batch.holdings else ()
        self.remembered.accept(batch.changes, batch.delta, kept)
        if batch.holdings:
            report.keep(batch.holdings.frontends)
        if in_step and (batch.reduced or batch.regrouped):
            self._forget(batch.reduced, batch.regrouped)

    def _begin(self, batch: Batch) -> None:
        """Prepare the memories that get into use."""
        self._forgetting.empty(batch.begun)
        if batch.regrouped:
            self._kernel.ensure_for(Delta(), self._program, batch.affinities)
        for each in batch.regrouped:
            self._forgetting.copy(each)

    def _forget(self, reduced: Sequence[Memory], regrouped: Sequence[Regrouped]) -> None:
        """Make clients forget the endpoints that a transaction has removed."""
        try:
            self._forgetting.forget(reduced)
            for each in regrouped:
                self._forgetting.move(each)
        except BaseException:
            self.distrust()
            raise
        self._doubtful.update(where for where, _ in reduced)
        for each in regrouped:
            self._doubtful.update(each.after.memories())

    def _postpone(self, taken: Taken, report: Report) -> None:
        """Leave the remaining work to the next sync."""
        report.looked_at = {
            name: each for name, each in taken.services.items() if name not in report.postponed
        }
        report.services = len(report.looked_at)
        self._store.give_back(self.family, Taken(services=report.postponed))

    def _commit(self, whole: Delta, affinities: Iterable[Affinity], report: Report) -> None:
        with report.timed("kernel"):
            self._transact(whole, affinities, report)

    def _transact(self, whole: Delta, affinities: Iterable[Affinity], report: Report) -> None:
        self._kernel.ensure_for(whole, self._program, affinities)
        if whole.removed or whole.added:
            report.written += len(whole) - sum(map(len, whole.late.values()))
            report.transactions += self._kernel.commit(whole)

    def _commit_late(self, report: Report) -> None:
        """Delete elements without references, which no packet follows any more.

        All belong to changes that were applied.
        """
        if self.remembered.late:
            with report.timed("kernel"):
                grace.wait()
                self._kernel.commit_late(self.remembered.late)
            report.transactions += 1
            report.written += len(self.remembered.late)
            self.remembered.late = Delta()

    def say_of_node(self, sets: Mapping[str, list[Key]]) -> None:
        """Write the elements of the node's own sets that differ."""
        try:
            for where, keys in sets.items():
                if self._kernel.keys(where) != set(keys):
                    self._kernel.replace(where, keys)
        except MissingError:  # somebody removed the table or the set
            self.distrust()
            raise
