"""An API server for `--kube-proxy`.

Etcd and kube-apiserver in a namespace of their own, with the objects of one offer.

The programs come from the folder that `KUBEBUILDER_ASSETS` names, the convention of the
controller-runtime test environment. No controller runs, so there are no objects but those made
here. A link of its own connects each node to the server, with networks outside all others of the
bench. However the block ends, it removes everything.
"""

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import urllib3

from nftproxy.bench.api import NODES, SERVICES, SLICES, Api, ApiServer, Collection, Document
from nftproxy.bench.bed import own_name
from nftproxy.bench.offer import Offer
from nftproxy.bench.workload import CLUSTER_IPS, NODE, NODE_IP
from nftproxy.errors import NftproxyError
from nftproxy.lab import build, namespace

PROGRAMS: Final = ("etcd", "kube-apiserver")
_START: Final = 60.0  # seconds until a server must answer
_STOP: Final = 10.0
_ADDRESS: Final = "10.253.0.1"
_CABLES: Final = 200  # networks 10.253.1.0/24 and so on; those of removed nodes are free again
_TOKEN: Final = "bench"  # noqa: S105 - nobody else reaches the server
_URL: Final = f"https://{_ADDRESS}:6443"
_ETCD, _PEER = "http://127.0.0.1:2379", "http://127.0.0.1:2380"


def assets() -> Path:
    """Return the folder with the programs; NftproxyError without one."""
    folder = os.environ.get("KUBEBUILDER_ASSETS", "")
    missing = [each for each in PROGRAMS if not Path(folder or "/nonexistent", each).is_file()]
    if missing:
        problem = (
            f"{folder} has no {' and no '.join(missing)}"
            if folder
            else "KUBEBUILDER_ASSETS is not set"
        )
        raise NftproxyError(
            f"--kube-proxy needs an API server, but {problem}",
            hint=f"KUBEBUILDER_ASSETS=<a folder with {' and '.join(PROGRAMS)}>",
        )
    return Path(folder)


class ControlPlane:
    """The servers, from `with` on."""

    def __init__(self) -> None:
        self._programs = assets()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cables = itertools.count()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="nftproxy-bench-"))
            )
            self._namespace = own_name("api")
            namespace.create(self._namespace)
            stack.callback(build.remove, [self._namespace])
            stack.callback(self._stop)
            build.batch("ip", self._namespace, ["link set lo up", f"addr add {_ADDRESS}/32 dev lo"])
            self._start("etcd", *self._etcd())
            self._wait_for("etcd", f"{_ETCD}/health")
            self._start("kube-apiserver", *self._apiserver())
            self._wait_for("kube-apiserver", f"{_URL}/readyz")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def access(self) -> ApiServer:
        """Address and credentials of the server."""
        return ApiServer(_URL, str(self._folder / "apiserver.crt"), _TOKEN)

    @property
    def folder(self) -> str:
        """A folder that is deleted with the servers."""
        return str(self._folder)

    def attach(self, node: str) -> None:
        """Connect the namespace of a node to the server."""
        number = next(self._cables) % _CABLES + 1
        near, far = f"10.253.{number}.1", f"10.253.{number}.2"
        build.batch(
            "ip",
            None,
            [f"link add api netns {node} type veth peer name node{number} netns {self._namespace}"],
        )
        build.batch(
            "ip",
            self._namespace,
            [f"addr add {near}/24 dev node{number}", f"link set node{number} up"],
        )
        build.batch(
            "ip",
            node,
            [f"addr add {far}/24 dev api", "link set api up", f"route add {_ADDRESS} via {near}"],
        )

    def load(self, offer: Offer, progress: Callable[[int], None]) -> None:
        """Create the objects of an offer, and the node; `progress` gets their number."""
        with namespace.enter(self._namespace):
            Api(self.access).create_all(_objects(offer), progress)

    def _etcd(self) -> Iterator[str]:
        yield from (
            "--name",
            "bench",
            "--data-dir",
            str(self._folder / "etcd"),
            "--initial-cluster",
            f"bench={_PEER}",
        )
        yield from ("--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD)
        yield from ("--listen-peer-urls", _PEER, "--initial-advertise-peer-urls", _PEER)
        yield from ("--unsafe-no-fsync", "--log-level", "warn")

    def _apiserver(self) -> Iterator[str]:
        tokens, key = self._folder / "tokens.csv", self._folder / "service-accounts.key"
        tokens.write_text(f"{_TOKEN},bench,bench\n")
        subprocess.run(
            ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key],
            check=True,
            capture_output=True,
        )
        yield from (
            f"--etcd-servers={_ETCD}",
            f"--bind-address={_ADDRESS}",
            f"--advertise-address={_ADDRESS}",
        )
        yield from (
            f"--cert-dir={self._folder}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=AlwaysAllow",
        )
        yield from (
            f"--service-cluster-ip-range={CLUSTER_IPS}",
            "--service-node-port-range=30000-65535",
        )
        yield "--endpoint-reconciler-type=none"
        yield "--service-account-issuer=https://kubernetes.default.svc"
        yield from (
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
        )
        yield "--disable-admission-plugins=ServiceAccount"  # there are no default accounts here

    def _start(self, program: str, *arguments: str) -> None:
        with namespace.enter(self._namespace), self._log(program).open("wb") as log:
            self._processes[program] = subprocess.Popen(
                [self._programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the bench alone
            )

    def _wait_for(self, program: str, url: str) -> None:
        """Wait until a server answers, by asking it."""
        deadline = time.monotonic() + _START
        headers = {"Authorization": f"Bearer {_TOKEN}"}
        while self._processes[program].poll() is None and time.monotonic() < deadline:
            certificate = Path(self.access.certificate)
            with (
                namespace.enter(self._namespace),
                contextlib.suppress(urllib3.exceptions.HTTPError),
            ):
                options = {"ca_certs": str(certificate)} if certificate.exists() else {}
                with urllib3.PoolManager(**options) as pool:  # type: ignore[arg-type]
                    if (
                        pool.request("GET", url, headers=headers, timeout=5.0, retries=False).status
                        == 200
                    ):
                        return
            time.sleep(0.1)
        said = self._log(program).read_text(errors="replace").strip().splitlines()
        raise NftproxyError(
            f"{program} of KUBEBUILDER_ASSETS does not become ready",
            hint=said[-1] if said else "it says nothing",
        )

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self, program: str) -> Path:
        return self._folder / f"{program}.log"


def _objects(offer: Offer) -> Iterator[tuple[Collection, Document]]:
    addresses = [{"type": "InternalIP", "address": NODE_IP}]
    yield (
        NODES,
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE},
            "status": {"addresses": addresses},
        },
    )
    for number in range(offer.services):
        service, piece = offer.documents(number)
        yield SERVICES, service
        yield SLICES, piece
