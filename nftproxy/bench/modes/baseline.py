"""Common to the baselines.

Render each service once, remember that, then write what their sync writes.
"""

import abc
import shutil
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from nftproxy.bench.modes.mode import Load, Mode, ModePlace, Work
from nftproxy.bench.modes.programs import Programs
from nftproxy.bench.modes.served import ServedPort, served
from nftproxy.model import ObjectName

Rendered = TypeVar("Rendered")


class Baseline(Mode, Generic[Rendered]):
    """A mode that works through programs."""

    needs: ClassVar[dict[str, str]] = {}  # programs, and the Debian packages they come from

    def __init__(self, place: ModePlace) -> None:
        super().__init__(place)
        self.prepare()

    def prepare(self) -> None:
        """Start empty, without writing to the kernel."""
        self.programs = Programs(self.place.namespace)
        self.rendered: dict[ObjectName, Rendered] = {}

    def unavailable(self) -> str:
        """Name a program that is missing."""
        missing = sorted(
            {package for program, package in self.needs.items() if not shutil.which(program)}
        )
        return (
            f"{self.name} needs the Debian package{'s' * (len(missing) > 1)} {', '.join(missing)}"
            if missing
            else ""
        )

    @abc.abstractmethod
    def render(self, ports: Sequence[ServedPort]) -> Rendered:
        """Render a service in this mode; pure."""

    @abc.abstractmethod
    def full(self) -> None:
        """Bring the kernel in step with all rendered services, as a first sync does."""

    @abc.abstractmethod
    def partial(self, put: Sequence[ObjectName], gone: dict[ObjectName, Rendered]) -> None:
        """Bring the kernel in step after changes.

        `gone` are the previous renderings of changed and deleted services.
        """

    def start(self, load: Sequence[Load]) -> Work:
        """Render everything and write it."""

        def work() -> None:
            self.rendered = {each.name: self._render(each) for each in load}
            self.full()

        return self.programs.measured(work)

    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:
        """Render the changes and write what the mode writes then."""

        def work() -> None:
            names = [each.name for each in put]
            gone = {name: self.rendered.pop(name) for name in (each.name for each in deleted)}
            gone |= {name: self.rendered[name] for name in names if name in self.rendered}
            self.rendered |= {
                name: self._render(each) for name, each in zip(names, put, strict=True)
            }
            self.partial(names, gone)

        return self.programs.measured(work)

    def restart(self, load: Sequence[Load]) -> Work:
        """Forget everything and start."""
        self.prepare()
        return self.start(load)

    def _render(self, load: Load) -> Rendered:
        return self.render(served(load, self.place.settings))
