"""One family's syncs: from dirty services to a table that is in step.

What the table holds is remembered as routes and changed only after the kernel accepted a change. A sync writes in this order:
what nothing may remember any more is forgotten, then all additions, rewrites and verdicts, then, when no packet is on its way any more
that read the old ones, the removal of what nothing points to.
At the start, and whenever the kernel shows that the memory is wrong, the table is read back and only the difference is
written.

A service that the kernel refuses is set aside alone, named once in the log, and tried again when it changes; all others are applied.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping

from loguru import logger

from nftproxy.address import Family, Network
from nftproxy.configuration.settings import ALL, NodeSettings
from nftproxy.errors import BlockedError, ExistsError, KernelError, MissingError
from nftproxy.kernel import grace
from nftproxy.kernel.transactions import Kernel
from nftproxy.model import ObjectName
from nftproxy.node.memory import give_back, uncollected
from nftproxy.routes import MEMBERS, Affinity, Compiled, Context, Frontend, compile_service, targets
from nftproxy.selection import Locality
from nftproxy.store import Pending, Store, Taken
from nftproxy.sync.firstload import BATCH, FirstLoad, FirstLoadError
from nftproxy.sync.report import Report
from nftproxy.table.difference import Actual, Change, Delta, Remembered, age, delta, difference, shared_delta, unpacked
from nftproxy.table.packing import shape
from nftproxy.table.program import Program

PORTION = 1000  # services looked at together after reading back; what a sync needs on the way grows with it
FORGET = 2000  # remembered clients deleted in one transaction

Pair = tuple[Change, Delta]


class Syncer:
    """Keeps the part of the table that belongs to one family in step with the store; not for two threads at once."""

    def __init__(self, family: Family, settings: NodeSettings, program: Program, kernel: Kernel, store: Store) -> None:
        self.family = family
        self.remembered = Remembered(family)
        self.untidy = False  # whether chains or sets may have fallen out of use
        self._settings = settings
        self._program = program
        self._kernel = kernel
        self._store = store
        self._generation = -1  # of the program that `remembered` stands on; -1: the table has to be read back
        self._notes: dict[ObjectName, list[str]] = {}
        self._late = Delta()

    def sync(self) -> Report:
        """Bring the table in step; KernelError when that failed and has to be tried again."""
        taken = self._store.take(self.family, everything=not self.in_step)
        try:
            try:
                return self._sync(taken)
            except FirstLoadError:
                taken = self._take_again(taken)
            except (MissingError, ExistsError) as error:
                logger.warning("{}: the table is not what it was left as ({}); reading it back", self.family, error)
                taken = self._take_again(taken)
            return self._sync(taken, careful=True)
        except BaseException:
            self._store.give_back(self.family, taken)
            raise

    def _take_again(self, taken: Taken) -> Taken:
        self.distrust()
        self._store.give_back(self.family, taken)
        return self._store.take(self.family, everything=True)

    @property
    def in_step(self) -> bool:
        """Whether `remembered` is believed to be what the table holds."""
        return self._generation == self._kernel.generation

    def distrust(self) -> None:
        """Have the next sync read the table back."""
        self._generation = -1

    def accept_nodeports_on(self, addresses: Iterable[str]) -> None:
        """Make these the addresses that accept NodePorts (contract 2.6.5)."""
        where = f"nodeport_ips{self.family.digit}"
        wanted = {(address,) for address in addresses}
        try:
            if wanted != set(self._kernel.elements(where)):
                self._kernel.replace(where, [str(address) for (address,) in sorted(wanted)], self.family)
        except MissingError:  # somebody took the table away, or the set
            self.distrust()
            raise

    def needed(self) -> set[str]:
        """Return the names of all chains and sets made on demand that are in use."""
        names: set[str] = set()
        for target in {t for route in self.remembered.routes.values() for t in targets(route, self.family)}:
            names.update(self._program.pick(target) or (target,))
        for affinity in self._affinities():
            names.update(self._program.affinity(affinity))
        return names

    def _sync(self, taken: Taken, *, careful: bool = False) -> Report:
        report = Report(self.family, services=len(taken.services), looked_at=taken.services)
        if self.in_step:
            self._write(taken, None, None, report)
        else:
            with report.timed("read_back"):
                actual = self._read_back(report)
            generation, before = self._kernel.generation, set(self._kernel.sets)
            with uncollected():
                if actual or careful:
                    self._write(taken, actual, None, report)
                else:
                    with FirstLoad(lambda whole, affinities: self._transact(whole, affinities, report)) as first:
                        self._write(taken, actual, first, report)
            with report.timed("difference"):
                self._adopt(actual, before, report)
            if self._settings.nodeport_addresses[self.family] is ALL:
                self.accept_nodeports_on(())  # no rule looks there, but an older process may have left some
            self._generation = generation
        with report.timed("difference"):
            self._commit_late(report)
        report.stages["difference"] -= report.stages.get("kernel", 0)  # all but what the kernel takes of it
        if taken.networks is not None:
            self._service_cidrs(taken.networks)
        if report.read_back or report.written >= BATCH:
            give_back()
        return report

    def _write(self, taken: Taken, actual: Actual | None, first: FirstLoad | None, report: Report) -> None:
        """Make the changes of services, but for late deletions."""
        for services in _portions(taken.services, None if actual is None else PORTION):
            with report.timed("compile"):
                wanted = self._compile(services, taken.zone)
            with report.timed("difference"):
                for batch in self._batches(difference(self.remembered, wanted), actual):
                    if first:
                        self._load(batch, first, report)
                    else:
                        self._apply(batch, actual, report)
        if first:
            with report.timed("difference"), report.timed("kernel"):
                first.finish()

    def _compile(self, services: Mapping[ObjectName, Pending], zone: str) -> dict[ObjectName, Compiled | None]:
        node_ip = self._settings.node_ips[self.family].text
        here = Locality(self._settings.node_name, zone)
        context = Context(self.family, here, node_ip, external_ips=self._settings.allow_external_ips)
        wanted: dict[ObjectName, Compiled | None] = {}
        for name, (service, slices) in services.items():
            notes: list[str] = []
            wanted[name] = compile_service(service, slices, context, notes) if service is not None else None
            if notes or self._notes:
                self._log(name, list(dict.fromkeys(notes)))  # every port of a service reads the same slices
        return wanted

    def _log(self, name: ObjectName, notes: list[str]) -> None:
        """Say what was ignored in a service's objects, once until it changes."""
        if notes != self._notes.get(name, []):
            for note in notes:
                logger.warning("Service {} {}: {}", name, self.family, note)
            self._notes[name] = notes
        if not notes:
            self._notes.pop(name, None)

    def _read_back(self, report: Report) -> Actual:
        """Make sure that the program is there, forget what was remembered, and return the elements of this family, by set.

        At a first start there are none, and no sets either in what is returned.
        """
        report.read_back = True
        self._kernel.refresh()
        if not self._kernel.holds(self._program):
            self._kernel.load(self._program)
        self.remembered = Remembered(self.family)
        self._late = Delta()
        self.untidy = True
        actual = {name: self._kernel.packed(name) for name in self._kernel.sets if compared(name, self.family)}
        return actual if any(actual.values()) else {}

    def _batches(self, changes: list[Change], actual: Actual | None) -> Iterator[list[Pair]]:
        """Cut changes into transactions; one that makes clients forget endpoints stands alone, last, as that can take seconds."""
        slow: list[Pair] = []
        batch: list[Pair] = []
        size = 0
        for change in changes:
            pair = (change, delta(change, self.remembered, actual))
            if actual is None and self._forgetful(change):
                slow.append(pair)
                continue
            batch.append(pair)
            size += len(pair[1])
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
        yield from ([pair] for pair in slow)

    def _load(self, batch: list[Pair], first: FirstLoad, report: Report) -> None:
        """Hand a batch to a first load."""
        changes, whole, affinities = self._together(batch, {})
        with report.timed("kernel"):
            first.add(whole, affinities)
        self._accept(changes, whole)

    def _apply(self, batch: list[Pair], actual: Actual | None, report: Report) -> None:
        """Commit a batch; if the kernel refuses it, halve it until the offender is alone and set that aside."""
        changes, whole, affinities = self._together(batch, actual)
        try:
            if actual is None and len(changes) == 1 and self._forgetful(changes[0]):
                self._forget_departed(changes[0], whole, report)
            self._commit(whole, affinities, report)
        except KernelError as error:
            if actual is None and isinstance(error, MissingError | ExistsError):
                raise
            self._kernel.probe()
            if len(batch) > 1:
                middle = len(batch) // 2
                self._apply(batch[:middle], actual, report)
                self._apply(batch[middle:], actual, report)
                return
            self._refuse(changes[0], error, report)
            return
        self._accept(changes, whole)

    def _together(self, batch: list[Pair], actual: Actual | None) -> tuple[list[Change], Delta, list[Affinity]]:
        changes = [change for change, _ in batch]
        whole = shared_delta(changes, self.remembered, actual)
        for _, part in batch:
            whole.merge(part)
        return changes, whole, [a for change in changes for new in change.services.values() if new for a in new.affinities]

    def _accept(self, changes: list[Change], whole: Delta) -> None:
        """Remember changes that the kernel accepted, or will have before a first load ends."""
        for change in changes:
            self._log_rivals(change)
            self.untidy = self.untidy or self._drops_affinity(change)
            self.remembered.accept(change)
        self._late.cancel(whole.added)
        self._late.merge(Delta(late=whole.late))

    def _refuse(self, change: Change, error: KernelError, report: Report) -> None:
        for name in change.services:
            report.refused[name] = str(error)
            if isinstance(error, BlockedError):
                logger.error(
                    "Service {} {}: it needs a chain or set that only libnftables can make; it stays as it was until that may be called",
                    name,
                    self.family,
                )
                continue
            logger.error(
                "Service {} {}: the kernel refuses it ({}); it stays as it was, all others are applied. "
                "It is tried again when it changes.",
                name,
                self.family,
                error,
            )

    def _log_rivals(self, change: Change) -> None:
        """Say which services claim the same frontends, once until it changes (contract 2.2.3)."""
        shared: dict[tuple[ObjectName, ...], list[Frontend]] = {}
        for frontend, claimants in change.claimants.items():
            if len(claimants) > 1 and self.remembered.rivals.get(frontend) != claimants:
                shared.setdefault(tuple(claimants), []).append(frontend)
        for (owner, *others), frontends in shared.items():
            more = f" and {len(frontends) - 1} more" if len(frontends) > 1 else ""
            logger.error(
                "Service {} has {}{}, as the oldest of those who claim it; without it: {}",
                owner,
                frontends[0],
                more,
                ", ".join(map(str, others)),
            )

    def _commit(self, whole: Delta, affinities: Iterable[Affinity], report: Report) -> None:
        with report.timed("kernel"):
            self._transact(whole, affinities, report)

    def _transact(self, whole: Delta, affinities: Iterable[Affinity], report: Report) -> None:
        self._kernel.ensure_for(whole, self._program, affinities)
        if whole.removed or whole.added:
            report.transactions += 1
            report.written += len(whole) - sum(map(len, whole.late.values()))
            self._kernel.commit(whole)

    def _commit_late(self, report: Report) -> None:
        """Delete what nothing points to any more, nor any packet follows; all of it belongs to changes that were applied."""
        if self._late:
            with report.timed("kernel"):
                grace.wait()
                self._kernel.commit_late(self._late)
            report.transactions += 1
            report.written += len(self._late)
            self._late = Delta()

    def _adopt(self, actual: Actual, before: set[str], report: Report) -> None:
        """After reading back: delete what no service has, and forget clients of endpoints that are gone.

        Only memories that were there before hold any; each costs the kernel a walk along all sets.
        """
        rest = Delta()
        for where, keys in actual.items():
            for key in unpacked(where, keys):
                rest.drop(where, key)
        self._commit(rest, (), report)
        self._late.merge(Delta(late=rest.late))
        for affinity in self._affinities():
            if not before.isdisjoint(_memories(affinity, affinity.ports)):
                self._forget(affinity, affinity.ports)

    def _affinities(self) -> Iterator[Affinity]:
        return (affinity for compiled in self.remembered.services.values() for affinity in compiled.affinities)

    def _before_after(self, change: Change) -> Iterator[tuple[Affinity | None, Affinity]]:
        """Yield the affinities that a change leaves, each with what it was."""
        for name, new in change.services.items():
            if new and new.affinities:
                old = self.remembered.services.get(name)
                known = {a.name: a for a in old.affinities} if old else {}
                yield from ((known.get(affinity.name), affinity) for affinity in new.affinities)

    def _drops_affinity(self, change: Change) -> bool:
        for name, new in change.services.items():
            old = self.remembered.services.get(name)
            if old and old.affinities and old.affinities != (new.affinities if new else ()):
                return True
        return False

    def _forgetful(self, change: Change) -> bool:
        """Whether some client may remember an endpoint that it must not reach any more."""
        for old, new in self._before_after(change):
            if old is None:
                if any(memory in self._kernel.sets for memory in _memories(new, new.ports)):
                    return True
            elif set(old.cluster) - set(new.cluster) or set(old.local) - set(new.local) or set(new.ports) - set(old.ports):
                return True
        return False

    def _forget_departed(self, change: Change, whole: Delta, report: Report) -> None:
        """Take endpoints that go out of the member sets, then out of the clients' memory, before the change itself."""
        departed = Delta()
        for where in [w for w in whole.removed if w.startswith(MEMBERS)]:
            departed.removed[where] = whole.removed.pop(where)
        if departed:
            self._commit(departed, (), report)
            with report.timed("kernel"):
                grace.wait()  # for a packet that found its endpoint among the members, and is about to be remembered
        try:
            for old, new in self._before_after(change):
                self._forget(new, {*new.ports, *(old.ports if old else ())})
        except BaseException:
            self.distrust()
            raise

    def _forget(self, affinity: Affinity, ports: Iterable[int]) -> None:
        """Delete what clients remember of endpoints that are no members."""
        for which, members in (("affinity", affinity.cluster), ("local_affinity", affinity.local)):
            for port in ports:
                memory = affinity.memory(which, port)
                if memory not in self._kernel.sets:
                    continue
                usable = {member.address for member in members if member.port == port}
                stale = {k: v for k, v in self._kernel.elements(memory).items() if v not in usable}
                entries = iter(stale.items())
                while part := dict(itertools.islice(entries, FORGET)):
                    self._kernel.forget(memory, part)

    def _service_cidrs(self, networks: list[Network]) -> None:
        where = f"service_cidrs{self.family.digit}"
        if self._kernel.networks(where, self.family) != networks:
            self._kernel.replace(where, networks, self.family)


def _portions(services: dict[ObjectName, Pending], size: int | None) -> Iterator[dict[ObjectName, Pending]]:
    """Yield services some at a time; all at once without a size.

    Only what exchanges a frontend must change together, and after reading back nobody is known to have had one. The oldest come
    first: of two that claim a frontend the younger then never has it for a moment.
    """
    if size is None:
        yield services
        return

    def by_age(item: tuple[ObjectName, Pending]) -> tuple[bool, str, ObjectName]:
        name, (service, _) = item
        return age(name, (service and service.metadata.creation_timestamp) or "")

    rest = iter(sorted(services.items(), key=by_age))
    while portion := dict(itertools.islice(rest, size)):
        yield portion


def compared(name: str, family: Family) -> bool:
    """Whether a set holds elements of services of this family: no node-wide ones, nothing learnt, nothing of another release."""
    base = name.partition("-")[0]
    if not base.endswith(family.digit) or base[:-1] in {"service_cidrs", "nodeport_ips", "affinity", "local_affinity"}:
        return False
    return shape(name) is not None


def _memories(affinity: Affinity, ports: Iterable[int]) -> list[str]:
    return [affinity.memory(which, port) for which in ("affinity", "local_affinity") for port in ports]
