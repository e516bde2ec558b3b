"""The interface of every way to lay out rules for Services: the same code measures them all.

A mode works in one network namespace, which is the node. Every mode gets the same model objects and
decides what to make of them. Objects must be as in a cluster: a service in a later `put` replaces
the earlier one.
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
class ModePlace:
    """The place of a mode: a namespace with ip_forward on, and the settings of its proxy.

    IPv4 only.
    """

    namespace: str
    settings: NodeSettings
    service_cidr: ServiceCIDR


@dataclass(frozen=True, slots=True)
class Work:
    """The cost of a sync.

    own         seconds in the calling process: from objects to the input of programs, or to the
    commit without programs programs    seconds in programs, from start to exit commands    the
    number of programs sent        bytes of their input asked       seconds from the request to
    another process, over the API or by starting it, to the end; 0 without one
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
    """One way to proxy services, from `start` to `stop`.

    Every method belongs to one thread at a time.
    """

    name: ClassVar[str]
    elsewhere: ClassVar[bool] = (
        False  # whether `processes` do everything, and the calling one only watches
    )

    def __init__(self, place: ModePlace) -> None:
        self.place = place

    def unavailable(self) -> str:
        """Return why this machine cannot run the mode, a sentence without a full stop.

        Empty if it can.
        """
        return ""

    @abc.abstractmethod
    def start(self, load: Sequence[Load]) -> Work:
        """Do what the first sync on a fresh node does."""

    @abc.abstractmethod
    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:
        """Do what a sync does after changes of services or slices, no more than the original.

        A service in `put` again has the same slices, by name; a deleted one is deleted with its
        slices.
        """

    @abc.abstractmethod
    def restart(self, load: Sequence[Load]) -> Work:
        """Do what a new process does that finds the rules of the previous one."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Remove all rules and end every process; also after a failed `start`.

        iptables leaves empty tables with their hooks in a namespace, which cost every packet a
        little: measure each mode in a namespace of its own.
        """

    def processes(self) -> tuple[int, ...]:
        """Return the processes that packets need; empty if the kernel does everything."""
        return ()
