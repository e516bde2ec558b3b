"""The real kube-proxy, a given program, with an API server that has the objects.

The reference for the renderings.

It is observed from outside. The time of a sync is that of kube-proxy's own metrics: from known
objects to rules in place, as in the other modes. The time that users wait, from a request to the
API server until then, is `Work.asked`. It may sync at once (minSyncPeriod 10 ms), because the other
modes do not wait either, and serves IPv4 only, as they do.

Objects are known by name. A change of a service with its slices is several events, and so several
syncs, each of which is awaited; `Work` is that of the service if it changed, else of its slices.
"""

import abc
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import urllib3

from nftproxy.bench.api import SERVICES, SLICES, Api, ApiServer, Collection, Document
from nftproxy.bench.modes.mode import Load, Mode, ModePlace, Work
from nftproxy.bench.modes.nft_rules import TABLE
from nftproxy.bench.modes.programs import Programs
from nftproxy.bench.modes.served import node_addresses, pod_network
from nftproxy.bench.modes.xtables import Xtables
from nftproxy.errors import NftproxyError
from nftproxy.lab import namespace
from nftproxy.model import EndpointSlice, Service

_PATIENCE: Final = 600.0  # seconds for one sync; 50 000 services need minutes
_LOOK: Final = 0.02  # minimum of seconds between two readings of the metrics, which have the times
_METRICS: Final = "http://127.0.0.1:10249/metrics"
_METRIC: Final = re.compile(
    r'^kubeproxy_sync_proxy_rules_(\w+)(?:\{ip_family="IPv4"\})? (\S+)$', re.MULTILINE
)


class KubeProxyProgram(msgspec.Struct, frozen=True):
    """A kube-proxy: the program, its API server, and a folder for its files and output."""

    path: str
    access: ApiServer
    folder: str


class _SeenOutput(msgspec.Struct, frozen=True):
    """The metrics.

    Seen changes, syncs and their total time, the last request for one, and the end of the last one.
    """

    changes: int = 0
    syncs: int = 0
    seconds: float = 0.0
    queued: float = 0.0
    ended: float = 0.0


class Original(Mode):
    """The program in one of its modes."""

    elsewhere = True
    mode: ClassVar[str]  # as kube-proxy calls it
    needs: ClassVar[dict[str, str]]  # programs it runs, and the Debian packages they come from

    def __init__(self, place: ModePlace, program: KubeProxyProgram) -> None:
        super().__init__(place)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._api = Api(program.access)
        self._http = urllib3.PoolManager(retries=False, timeout=30.0)
        self._folder = Path(program.folder, place.namespace)

    @abc.abstractmethod
    def remove(self) -> None:
        """Remove the rules."""

    def node_ports(self) -> list[str]:
        """Return the networks that accept NodePorts."""
        return [f"{address}/32" for address in node_addresses(self.place.settings)]

    def environment(self) -> dict[str, str]:
        """Return the environment that the program runs in."""
        return dict(os.environ)

    def unavailable(self) -> str:
        """Name the program that is missing."""
        missing = [package for program, package in self.needs.items() if not shutil.which(program)]
        return f"{self.name} needs the Debian package {missing[0]}" if missing else ""

    def start(self, load: Sequence[Load]) -> Work:  # noqa: ARG002
        """Start the program and wait for its first sync; the objects are in the API server."""
        self._folder.mkdir(exist_ok=True)
        self._configure()
        with namespace.enter(self.place.namespace):
            _without_ipv6()
            began = time.time()
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        self._program.path,
                        "--config",
                        self._folder / "config",
                        "--hostname-override",
                        self.place.settings.node_name,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    start_new_session=True,  # Ctrl-C is for the bench, which then stops it
                )
        seen = self._after(_SeenOutput(), certain=True)
        return Work(programs=seen.seconds, asked=seen.ended - began)

    def update(self, put: Sequence[Load] = (), deleted: Sequence[Load] = ()) -> Work:
        """Change objects, and wait for the sync after each."""
        work = Work()
        for each in put:
            for piece in each.slices:
                work = self._synced(self._api.put, SLICES, _document(piece)) or work
            work = self._synced(self._api.put, SERVICES, _document(each.service)) or work
        for each in deleted:
            work = self._synced(self._api.delete, SERVICES, _document(each.service)) or work
            for piece in each.slices:
                self._synced(self._api.delete, SLICES, _document(piece))
        return work

    def restart(self, load: Sequence[Load]) -> Work:
        """End the program that runs in the namespace, and start it again."""
        self._end()
        return self.start(load)

    def stop(self) -> None:
        """End the program and remove its rules."""
        self._end()
        self.remove()

    def processes(self) -> tuple[int, ...]:
        """Return the program."""
        return (self._process.pid,) if self._process else ()

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _configure(self) -> None:
        kubeconfig = self._folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(self._program.access.kubeconfig()))
        settings = self.place.settings
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "mode": self.mode,
            self.mode: {"minSyncPeriod": "10ms"},
            "clusterCIDR": pod_network(settings),
            "nodePortAddresses": self.node_ports(),
            "conntrack": {
                "maxPerCore": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },  # the machine's stay
            "oomScoreAdj": 0,
        }
        (self._folder / "config").write_text(json.dumps(document))

    def _synced(
        self,
        change: Callable[[Collection, Document], bool],
        collection: Collection,
        document: Document,
    ) -> Work | None:
        """Change an object and wait for the sync that follows; None where nothing changed."""
        before = self._look()
        with namespace.enter(self.place.namespace):
            began = time.time()
            changed = change(collection, document)
        if not changed:
            return None
        seen = self._after(before)
        return (
            Work(programs=seen.seconds - before.seconds, asked=seen.ended - began)
            if seen.syncs > before.syncs
            else None
        )

    def _after(self, before: _SeenOutput, *, certain: bool = False) -> _SeenOutput:
        """Return the metrics when it has seen a change and synced it.

        A sync may be unnecessary, unless one is certain.

        Reading costs the program time, so the pauses grow with the wait.
        """
        began = time.monotonic()
        idle = False
        while (waited := time.monotonic() - began) < _PATIENCE:
            if self._process is not None and self._process.poll() is not None:
                raise NftproxyError(f"{self._program.path} ended", hint=self._last_words())
            seen = self._look()
            done = seen.changes > before.changes and seen.queued <= seen.ended
            if done and (idle or seen.syncs > before.syncs):
                return seen
            idle = done and not certain  # unchanged, so it will not request a sync
            time.sleep(min(max(_LOOK, waited / 10), 1.0))
        raise NftproxyError(
            f"{self._program.path} did not sync within {_PATIENCE:g} s", hint=self._last_words()
        )

    def _look(self) -> _SeenOutput:
        """Return the current metrics, None without an answer."""
        text = ""
        with (
            namespace.enter(self.place.namespace),
            contextlib.suppress(urllib3.exceptions.HTTPError),
        ):
            text = self._http.request("GET", _METRICS).data.decode()
        found = {name: float(value) for name, value in _METRIC.findall(text)}
        return _SeenOutput(
            changes=int(
                found.get("service_changes_total", 0) + found.get("endpoint_changes_total", 0)
            ),
            syncs=int(found.get("duration_seconds_count", 0)),
            seconds=found.get("duration_seconds_sum", 0.0),
            queued=found.get("last_queued_timestamp_seconds", 0.0),
            ended=found.get("last_timestamp_seconds", 0.0),
        )

    def _last_words(self) -> str:
        said = self._log.read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "it says nothing"

    def _end(self) -> None:
        """End the program, also that of a previous process in this namespace."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        namespace.kill(
            pid
            for pid in namespace.processes([self.place.namespace])
            if _runs(pid, self._program.path)
        )


class OriginalNftables(Original):
    """In nftables mode."""

    name = "real-nftables"
    mode = "nftables"
    needs = {"nft": "nftables"}  # noqa: RUF012

    def remove(self) -> None:
        """Delete the table."""
        Programs(self.place.namespace).run("nft", "delete", "table", *TABLE.split(), may_fail=True)


class OriginalIptables(Original):
    """In iptables mode.

    It runs whatever `iptables` is on PATH, so a folder of links decides about the backend.
    """

    name = "real-iptables"
    mode = "iptables"
    needs = {"iptables": "iptables", "nft": "nftables"}  # noqa: RUF012

    def __init__(self, place: ModePlace, program: KubeProxyProgram, backend: str) -> None:
        super().__init__(place, program)
        self._backend = backend

    def node_ports(self) -> list[str]:
        """Return the default, every address, as in the rendered rules."""
        return []

    def environment(self) -> dict[str, str]:
        """Return the environment with the links in front."""
        links = self._folder / "bin"
        links.mkdir(exist_ok=True)
        for name, suffix in itertools.product(("iptables", "ip6tables"), ("", "-save", "-restore")):
            found = shutil.which(f"{name}-{self._backend}{suffix}")
            if found and not (links / f"{name}{suffix}").exists():
                (links / f"{name}{suffix}").symlink_to(found)
        return {**os.environ, "PATH": f"{links}:{os.environ['PATH']}"}

    def remove(self) -> None:
        """Remove jumps and chains."""
        Xtables(Programs(self.place.namespace), f"iptables-{self._backend}").remove()


def _document(item: Service | EndpointSlice) -> Document:
    version, kind = (
        ("v1", "Service") if isinstance(item, Service) else ("discovery.k8s.io/v1", "EndpointSlice")
    )
    fields: Document = _given(msgspec.to_builtins(item))
    return {"apiVersion": version, "kind": kind, **fields}


def _given(value: Any) -> Any:
    """Return a document without unset fields: a null label would exist."""
    if isinstance(value, dict):
        return {key: _given(each) for key, each in value.items() if each is not None}
    return [_given(each) for each in value] if isinstance(value, list | tuple) else value


def _without_ipv6() -> None:
    switch = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if switch.exists():
        switch.write_text("1")


def _runs(pid: int, program: str) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").samefile(program)
    except OSError:  # ended meanwhile
        return False
