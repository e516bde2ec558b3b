"""A real Kubernetes control plane for tests.

Etcd and kube-apiserver on the loopback of a network namespace of its own.

It runs where `KUBEBUILDER_ASSETS` names a folder with `etcd`, `kube-apiserver` and `kubectl`, the
convention of the controller-runtime test environment. There is no controller: EndpointSlices are
made by hand, and so are Nodes. A thread that makes sockets inside `with cluster.entered():` reaches
the server at 127.0.0.1, and so do threads and processes started there.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from pyroute2 import IPRoute

from nftproxy.lab import namespace as namespaces
from tests.support.pki import Authority, Certificate, key_pair

PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/112"

Document = dict[str, Any]


def assets() -> Path | None:
    """Return the folder with the programs, if there is one."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nonexistent"))
    return folder if all((folder / each).is_file() for each in PROGRAMS) else None


needs_cluster = pytest.mark.skipif(
    assets() is None,
    reason=f"KUBEBUILDER_ASSETS names no folder with {', '.join(PROGRAMS)}: there is no API "
    "server to test against",
)


@dataclass
class Cluster:
    """A control plane that runs from `with` on. `namespace` names the network namespace.

    None makes one and deletes it at the end.
    """

    namespace: str | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="nftproxy-cluster-"))
            )
            if self.namespace is None:
                self.namespace = f"cluster-{uuid.uuid4().hex[:8]}"
                namespaces.create(self.namespace)
                stack.callback(namespaces.delete, self.namespace)
            self._programs = assets()
            assert self._programs, "use `needs_cluster`"
            self._processes: dict[str, subprocess.Popen[bytes]] = {}
            stack.callback(self._stop_all)
            self._prepare()
            self._start_etcd()
            self.start_apiserver()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread live in the cluster's namespace.

        Sockets, threads and processes begun there belong to it.
        """
        assert self.namespace
        with namespaces.enter(self.namespace):
            yield

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def kubeconfig(self, user: str = "admin") -> Path:
        """Return a kubeconfig of `admin`, who may do everything, or `system:kube-proxy`, a
        node-proxier (contract 10.2).
        """
        path = self._folder / f"{user.replace(':', '-')}.kubeconfig"
        mine = self._admin if user == "admin" else self._proxy
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self._authority.own.certificate),
                    },
                }
            ],
            "users": [
                {
                    "name": "u",
                    "user": {
                        "client-certificate": str(mine.certificate),
                        "client-key": str(mine.key),
                    },
                }
            ],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(document))
        return path

    def kubectl(
        self,
        *arguments: str,
        documents: Document | list[Document] | None = None,
        check: bool = True,
    ) -> str:
        """Run kubectl as admin and return what it prints.

        `documents` go to its standard input, for `-f -`.
        """
        listed = documents if isinstance(documents, list) else [documents]
        given = (
            None
            if documents is None
            else json.dumps({"apiVersion": "v1", "kind": "List", "items": listed})
        )
        command = [
            self._program("kubectl"),
            "--kubeconfig",
            str(self.kubeconfig()),
            "--cache-dir",
            str(self._folder / "cache"),
            *arguments,
        ]
        with self.entered():
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, check=False, timeout=60
            )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *documents: Document) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", documents=list(documents))

    def start_apiserver(self) -> None:
        """Start the API server, and return when it is ready.

        After a stop it has the same address and objects as before.
        """
        private, public = self._signing
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={SERVICE_CIDRS}",
            f"--tls-cert-file={self._server.certificate}",
            f"--tls-private-key-file={self._server.key}",
            f"--client-ca-file={self._authority.own.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--authorization-mode=RBAC",
            # Nobody here makes the default accounts it asks for
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            # Else it waits for the end of all watches
            "--shutdown-watch-termination-grace-period=1s",
        )
        tls = ssl.create_default_context(cafile=str(self._authority.own.certificate))
        tls.load_cert_chain(self._admin.certificate, self._admin.key)
        self._wait_for("kube-apiserver", f"{self.url}/readyz", tls)

    def stop_apiserver(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the API server: in good order, or with SIGKILL."""
        self._stop("kube-apiserver", how)

    def pause_apiserver(self) -> None:
        """Freeze the API server: its connections stay open and are silent."""
        self._processes["kube-apiserver"].send_signal(signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        """Let a frozen API server go on."""
        self._processes["kube-apiserver"].send_signal(signal.SIGCONT)

    def _prepare(self) -> None:
        self._authority = Authority(self._folder)
        self._server = self._authority.server("kube-apiserver", ["127.0.0.1", "10.96.0.1"])
        self._admin: Certificate = self._authority.client("admin", "system:masters")
        self._proxy: Certificate = self._authority.client("system:kube-proxy")
        self._signing = key_pair(self._folder, "service-accounts")
        with self.entered():
            with IPRoute() as route:
                route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
            self._port, self._etcd_port, self._peer_port = _free_ports(3)

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        self._start(
            "etcd",
            *("--name", "test", "--data-dir", str(self._folder / "etcd")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"test={peer}",
            ),
            *("--unsafe-no-fsync", "--log-level", "warn"),
        )
        self._wait_for("etcd", f"{client}/health", None)

    def _program(self, name: str) -> str:
        assert self._programs
        return str(self._programs / name)

    def _start(self, program: str, *arguments: str) -> None:
        with self.entered(), self._log(program).open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [self._program(program), *arguments], stdout=log, stderr=log
            )

    def _wait_for(self, program: str, url: str, tls: ssl.SSLContext | None) -> None:
        """Wait until a server answers; there is nothing but asking that tells."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with self.entered(), contextlib.suppress(urllib.error.URLError, OSError):
                opener = urllib.request.build_opener(
                    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
                )
                with opener.open(url, timeout=5):
                    return
            assert self._processes[program].poll() is None, (
                f"{program} has ended:\n{self._log(program).read_text()[-2000:]}"
            )
            assert time.monotonic() < deadline, (
                f"{program} is not ready:\n{self._log(program).read_text()[-2000:]}"
            )
            time.sleep(0.1)

    def _stop(self, program: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self._processes.pop(program)
        process.send_signal(signal.SIGCONT)  # in case it is frozen
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _stop_all(self) -> None:
        for program in reversed(list(self._processes)):
            self._stop(program)

    def _log(self, program: str) -> Path:
        return self._folder / f"{program}.log"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses. In a namespace of our own nobody takes them meanwhile."""
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in listeners]
