"""What every way to lay out rules for Services has in common, so that one piece of code can measure them all.

A mode works in one network namespace, which is the node. Whoever measures gives every mode the same model objects; what a mode
makes of them is its own affair. Objects must be as a cluster has them: a service that is put again replaces what it was.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from nftproxy.configuration.settings import NodeSettings
from nftproxy.model import EndpointSlice, ObjectName, Service, ServiceCIDR


class Load(NamedTuple):
    """A Service with its EndpointSlices."""

    service: Service
    slices: tuple[EndpointSlice, ...]

    @property
    def name(self) -> ObjectName:
        """The namespaced name of the Service."""
        return self.service.metadata.key


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mode works: a namespace with ip_forward on, and what a proxy there is told. IPv4 only."""

    namespace: str
    settings: NodeSettings
    service_cidr: ServiceCIDR


@dataclass(frozen=True, slots=True)
class Work:
    """What a sync took.

    own         seconds in the calling process: from objects to what is handed over, or to committed where there is no program
    programs    seconds in programs that were run, from start to exit
    commands    how many were run
    sent        bytes they were given on their input
    asked       seconds from asking a process for it, over the API or by starting it, to the end; 0 where nobody else was asked
    """

    own: float = 0.0
    programs: float = 0.0
    commands: int = 0
    sent: int = 0
    asked: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.own + self.programs


class Mode(abc.ABC):
    """One way to proxy services, from `start` to `stop`; every method belongs to one thread at a time."""

    name: ClassVar[str]
    elsewhere: ClassVar[bool] = False  # whether `processes` do everything, and the calling one only looks on

    def __init__(self, place: Place) -> None:
        self.place = place

    def unavailable(self) -> str:
        """Return why this machine cannot do it, a sentence without a full stop; empty when it can."""
        return ""

    @abc.abstractmethod
    def start(self, load: Sequence[Load]) -> Work:
        """Do what the first sync on a fresh node does."""

    @abc.abstractmethod
    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:
        """Do what a sync does after services or their slices were changed, added or deleted: no more than the original does.

        What is put again has the slices it had, by name; what is deleted goes with its slices.
        """

    @abc.abstractmethod
    def restart(self, load: Sequence[Load]) -> Work:
        """Forget everything and do what a new process does that finds the rules of the one before."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Remove what was written and end every process; also after a failed `start`.

        What iptables leaves in a namespace for good, empty tables with their hooks, costs every packet a little: measure each mode in a
        namespace of its own.
        """

    def processes(self) -> tuple[int, ...]:
        """Return the processes that packets need; empty where the kernel does it all."""
        return ()
