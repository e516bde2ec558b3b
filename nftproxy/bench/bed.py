"""The place of a measurement.

A client, a node and a host of endpoints, each a network namespace, in a row.

The client is a pod of the node. All endpoints, up to hundreds of thousands, are addresses of the
third namespace, so any service of a workload answers. However the block ends, it removes the
namespaces and the server in them.
"""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from nftproxy.bench.workload import BALANCERS, CLUSTER_IPS, ENDPOINT_RANGES, NODE_IP
from nftproxy.errors import NftproxyError
from nftproxy.lab import build, namespace

CLIENT_IP: Final = "10.255.0.2"  # inside the pods' network, outside the ranges of endpoints
_NODE_TO_CLIENT, _NODE_TO_SERVER, _SERVER = "10.255.0.1", "10.254.0.1", "10.254.0.2"
_numbers = itertools.count(1)


def own_name(place: str) -> str:
    """Return a name for a namespace that is unique in this process."""
    return f"bench-{os.getpid()}-{next(_numbers)}.{place}"


def clear() -> None:
    """Remove all namespaces of this process: a signal may end what removes one."""
    build.remove(namespace.names(f"bench-{os.getpid()}-*"))


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """Lend a namespace for probes, by name."""
    name = own_name("scratch")
    namespace.create(name)
    try:
        yield name
    finally:
        build.remove([name])


class Bed:
    """The three namespaces, by name, from `up` to `down`."""

    def __init__(self) -> None:
        name = f"bench-{os.getpid()}-{next(_numbers)}"
        self.client, self.node, self.server = (
            f"{name}.{place}" for place in ("client", "node", "server")
        )
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def endpoints(self) -> int:
        """The process that answers for all endpoints."""
        assert self._process is not None  # noqa: S101 - it is up
        return self._process.pid

    def up(self) -> None:
        """Build everything, and return when endpoints answer."""
        build.check_machine()
        for name in (self.client, self.node, self.server):
            namespace.create(name)
        build.batch("ip", None, self._cables())
        build.batches(
            [
                ("ip", self.client, _CLIENT),
                ("ip", self.node, _NODE),
                ("ip", self.server, _ENDPOINTS),
            ]
        )
        with namespace.enter(self.node):
            for path, value in _SYSCTLS.items():
                with open(f"/proc/sys/net/{path}", "w") as file:  # noqa: PTH123 - the thread's own view of /proc/sys
                    file.write(value)
        with namespace.enter(self.server):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nftproxy.bench.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Ctrl-C is for the bench alone: it ends this by closing its input
                start_new_session=True,
            )
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        if self._process.stdout.readline() != "ready\n":
            raise NftproxyError("the server of the bench did not start")

    def down(self) -> None:
        """Remove everything."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        names = [
            name
            for name in (self.client, self.node, self.server)
            if (namespace.DIRECTORY / name).exists()
        ]
        build.remove(names)

    def _cables(self) -> list[str]:
        return [
            f"link add client netns {self.node} type veth peer name eth0 netns {self.client}",
            f"link add server netns {self.node} type veth peer name eth0 netns {self.server}",
        ]


_CLIENT = [
    "link set lo up",
    f"addr add {CLIENT_IP}/24 dev eth0",
    "link set eth0 up",
    f"route add default via {_NODE_TO_CLIENT}",
]
_NODE = [
    "link set lo up",
    f"addr add {NODE_IP}/32 dev lo",
    f"addr add {_NODE_TO_CLIENT}/24 dev client",
    f"addr add {_NODE_TO_SERVER}/24 dev server",
    "link set client up",
    "link set server up",
    *(f"route add {cidr} via {_SERVER}" for cidr in ENDPOINT_RANGES),
    *(
        f"route add {cidr} dev lo" for cidr in (CLUSTER_IPS, BALANCERS)
    ),  # a route, which sending needs; translated before it is used
]
_ENDPOINTS = [
    "link set lo up",
    f"addr add {_SERVER}/24 dev eth0",
    "link set eth0 up",
    f"route add default via {_NODE_TO_SERVER}",
    *(f"route add local {cidr} dev lo" for cidr in ENDPOINT_RANGES),
]
_SYSCTLS = {"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0"}
