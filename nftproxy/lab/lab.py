"""A lab as one object: built, used by tests or commands, torn down.

    with Lab("demo", nodes=2, pods=3) as lab:
        answer = lab.connect("client", lab.nodes[0].addresses[Family.IPv4], 30080)

However the block ends, it removes the namespaces and the servers. A place is the name of a node,
pod or client ("node1", "pod1-2", "client") or the place itself.
"""

import shlex
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

from msgspec import structs

from nftproxy.address import Family
from nftproxy.errors import NftproxyError
from nftproxy.lab import build, client, namespace, state
from nftproxy.lab.echo import EchoListener, EchoServer
from nftproxy.lab.echo_process import EchoProcess
from nftproxy.lab.plan import (
    LabClient,
    LabNode,
    LabPlace,
    LabPlan,
    Pod,
    Shape,
    check_name,
    make_plan,
)

PORTS = (8080, 9376)
"""The default ports of each pod: those of Kubernetes' examples."""


class Lab:
    """One lab. Nothing exists before `up` (or the `with` statement); `attach` finds one that is up.

    `echo` says where the servers run: "thread" in this process, with counts; "process" in one of
    its own that ends with this one; "background" in one that lives as long as the lab, which then
    outlives this process, and accepts no commands after `up`.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        nodes: int = 2,
        pods: int = 3,
        clients: int = 1,
        families: Iterable[str] = tuple(Family),
        vxlan: bool = False,
        wiring: Literal["bridge", "routed"] = "bridge",
        bridge_netfilter: bool | None = None,
        ports: Sequence[int] = PORTS,
        echo: Literal["thread", "process", "background"] = "thread",
    ) -> None:
        if bridge_netfilter is None:
            bridge_netfilter = build.has_bridge_netfilter()
        only = tuple(Family(family) for family in families)
        self.plan: LabPlan = make_plan(
            Shape(name, nodes, pods, clients, only, vxlan, wiring, bridge_netfilter)
        )
        self._ports = tuple(ports)
        self._echo = echo
        self._server: EchoServer | EchoProcess | None = None

    @classmethod
    def attach(cls, name: str) -> Self:
        """Return a lab that is up. Its servers belong to its builder."""
        check_name(name)
        shape = state.read(name)
        if shape is None and namespace.names(name):
            raise NftproxyError(
                f"lab {name!r} is incomplete", hint=f"nftproxy lab down --name {name}"
            )
        if shape is None:
            others = ", ".join(state.names())
            hint = f"labs that are up: {others}" if others else f"nftproxy lab up --name {name}"
            raise NftproxyError(f"there is no lab {name!r}", hint=hint)
        return cls(**structs.asdict(shape))

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def name(self) -> str:
        """The name of the lab, the first part of its namespaces' names."""
        return self.plan.shape.name

    @property
    def families(self) -> tuple[Family, ...]:
        """Its IP families."""
        return self.plan.shape.families

    @property
    def nodes(self) -> tuple[LabNode, ...]:
        """Its nodes, node1 first."""
        return self.plan.nodes

    @property
    def pods(self) -> tuple[Pod, ...]:
        """Its pods, those of node1 first."""
        return self.plan.pods

    @property
    def clients(self) -> tuple[LabClient, ...]:
        """The hosts outside."""
        return self.plan.clients

    @property
    def counts(self) -> Counter[EchoListener]:
        """How often each server answered; only with echo="thread"."""
        if not isinstance(self._server, EchoServer):
            raise NftproxyError("only a lab with echo='thread' counts answers")
        return self._server.counts

    def up(self) -> None:
        """Build everything; all of it is removed again if that fails."""
        build.check_machine()
        if namespace.names(self.name) and state.read(self.name) is None:
            raise NftproxyError(
                f"lab {self.name!r} is incomplete", hint=f"nftproxy lab down --name {self.name}"
            )
        state.claim(self.plan.shape)
        try:
            build.create_namespaces(self.plan)
            self._server = self._new_server()
            for pod in self.pods if self._ports else ():
                self.listen(pod, self._ports)
            self._server.start()
            build.connect(self.plan)
            if self._echo == "background":
                self._server.stop()
                self._server = None
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove everything, also foreign processes inside."""
        if self._server:
            self._server.stop()
            self._server = None
        tear_down(self.name)

    def place(self, where: str | LabPlace) -> LabPlace:
        """Return the node, pod or client of that name."""
        return self.plan.place(where) if isinstance(where, str) else where

    def enter(self, where: str | LabPlace) -> AbstractContextManager[None]:
        """Move this thread into a place for a `with` block.

        The module namespace says what to avoid there.
        """
        return namespace.enter(self.place(where).namespace)

    def run(
        self,
        where: str | LabPlace,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 30,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a place, with its output as text.

        Raise an error with its message if it fails and `check` is on.

        `options` are those of subprocess.run. The program's /sys shows the host's links, its
        /proc/sys the place's settings.
        """
        options = {"capture_output": True, "text": True, **options}
        with self.enter(where):
            done: subprocess.CompletedProcess[str] = subprocess.run(
                argv, check=False, timeout=timeout, **options
            )
        if check and done.returncode:
            place = self.place(where).name
            raise NftproxyError(
                f"`{shlex.join(argv)}` on {place} exited with {done.returncode}: "
                f"{done.stderr or ''}"
            )
        return done

    def popen(
        self, where: str | LabPlace, argv: Sequence[str], **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a program in a place. `down` ends it, but the caller has to wait for it."""
        with self.enter(where):
            return subprocess.Popen(argv, **options)

    def ip(self, where: str | LabPlace, *commands: str) -> None:
        """Run commands of `ip` in a place, such as "addr add 203.0.113.5/32 dev lo"."""
        build.batch("ip", self.place(where).namespace, commands)

    def route(self, where: str | LabPlace, cidr: str, via: str | LabPlace) -> None:
        """Route an address or CIDR from `where` to a node or client, replacing its route."""
        family = Family.IPv6 if ":" in cidr else Family.IPv4
        self.ip(where, f"route replace {cidr} via {self.place(via).addresses[family]}")

    def listen(
        self,
        where: str | LabPlace,
        ports: Iterable[int],
        protocols: Iterable[str] = ("TCP", "UDP"),
        families: Iterable[str] | None = None,
        name: str = "",
    ) -> None:
        """Answer on more ports of a pod, or of a node as a hostNetwork pod does.

        `name` is by default the place's.
        """
        if self._server is None:
            raise NftproxyError(f"the servers of lab {self.name!r} accept no commands from here")
        place = self.place(where)
        families = self.families if families is None else families
        self._server.listen(
            place.namespace, name or place.name, tuple(ports), tuple(protocols), tuple(families)
        )

    def silence(self, where: str | LabPlace, ports: Iterable[int] | None = None) -> None:
        """Stop answering there, on some ports or on all; connections are then refused.

        Only with echo="thread".
        """
        if not isinstance(self._server, EchoServer):
            raise NftproxyError("only a lab with echo='thread' can close its servers")
        self._server.close(self.place(where).namespace, ports)

    def connect(
        self, where: str | LabPlace, address: str, port: int, protocol: str = "TCP", **options: Any
    ) -> client.Outcome:
        """Connect from a place and return the outcome: see client.connect."""
        return client.connect(self.place(where).namespace, address, port, protocol, **options)

    def open_connection(
        self, where: str | LabPlace, address: str, port: int, protocol: str = "TCP", **options: Any
    ) -> client.Connection | client.Refused | client.Silent | client.Unreachable:
        """Connect from a place and keep the connection: see client.open_connection."""
        return client.open_connection(
            self.place(where).namespace, address, port, protocol, **options
        )

    def _new_server(self) -> EchoServer | EchoProcess:
        if self._echo == "thread":
            return EchoServer()
        return EchoProcess(self.plan.underlay, keep=self._echo == "background")


def tear_down(name: str) -> bool:
    """Remove a lab, complete or not, with every process inside; return whether there was one."""
    check_name(name)
    build.check_machine()
    names = namespace.names(name)
    if names:
        build.remove(names)
    return state.release(name) or bool(names)
