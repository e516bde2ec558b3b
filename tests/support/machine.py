"""`kube-proxy` as a process in a network namespace of its own, with a mock API server beside it."""

import contextlib
import http.client
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nftproxy.kernel.reader import Reader
from nftproxy.lab import namespace
from nftproxy.lab.namespace import enter
from nftproxy.routes import Key, Value
from tests.support.fake_apiserver import FakeApiServer
from tests.support.world import unique_name

NODE = "192.0.2.10"  # the node's address: on loopback
KUBE_PROXY = [str(Path(sys.executable).with_name("kube-proxy"))]
QUIET = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}


class Machine:
    """A network namespace with an API server in it, and one kube-proxy at a time."""

    def __init__(self, netns: str, folder: Path) -> None:
        self.netns = netns
        self.config = folder / "config.conf"
        self.log = folder / "log"
        self.api = self._api_server()
        self.process: subprocess.Popen[bytes] | None = None

    def secure(self, tls: ssl.SSLContext) -> None:
        """Have an API server that speaks TLS, in the place of the one so far."""
        self.api.shut()
        self.api = self._api_server(tls)

    def _api_server(self, tls: ssl.SSLContext | None = None) -> FakeApiServer:
        server = FakeApiServer(tls=tls)
        with enter(self.netns):
            server.listen()
        server.put("nodes", node())
        return server

    def configure(self, **fields: Any) -> None:
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": "10.244.0.0/16",
            "conntrack": QUIET,
            **fields,
        }
        self.config.write_text(yaml.dump(document))

    def start(self, *arguments: str, **fields: Any) -> None:
        """Start the process with a configuration file."""
        self.configure(**fields)
        flags = [
            f"--config={self.config}",
            "--hostname-override=node1",
            f"--master={self.api.url}",
            *arguments,
        ]
        with enter(self.netns), self.log.open("wb") as log:
            self.process = subprocess.Popen([*KUBE_PROXY, *flags], stderr=log, stdout=log)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        assert self.process
        self.process.send_signal(number)
        return self.code()

    def code(self) -> int:
        """Wait for the end; the exit code."""
        assert self.process
        code = self.process.wait(30)
        self.process = None
        return code

    def said(self) -> str:
        return self.log.read_text()

    def elements(self) -> dict[str, dict[Key, Value]]:
        """What is in our table; nothing when there is none."""
        with enter(self.netns), contextlib.closing(Reader()) as reader:
            if not reader.table_exists():
                return {}
            return {
                name: reader.elements(name) for name in sorted(reader.sets()) if "cidrs" not in name
            }

    def services(self) -> set[str]:
        """The addresses that are served."""
        return {str(key[0]) for key in self.elements().get("services4", {})}

    def get(self, port: int, path: str, host: str = "127.0.0.1") -> tuple[int, dict[str, str], str]:
        """GET; status, headers in lower case, body."""
        with enter(self.netns):
            connection = socket.create_connection((host, port), timeout=5)
        client = http.client.HTTPConnection(host, port)
        client.sock = connection
        with contextlib.closing(client):
            client.request("GET", path)
            response = client.getresponse()
            return (
                response.status,
                {k.lower(): v for k, v in response.getheaders()},
                response.read().decode(),
            )

    def answers(self, port: int, path: str) -> Callable[[], bool]:
        """A condition: somebody answers 200 there."""

        def condition() -> bool:
            with contextlib.suppress(OSError):
                return self.get(port, path)[0] == 200
            return False

        return condition


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Machine]:
    """Lend a machine; nothing of it is left afterwards."""
    netns = f"{unique_name()}.daemon"
    namespace.create(netns)
    subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "-n", netns, "addr", "add", f"{NODE}/32", "dev", "lo"], check=True)
    machine = Machine(netns, folder)
    try:
        yield machine
    finally:
        if machine.process:
            machine.process.kill()
            machine.process.wait()
        machine.api.shut()
        namespace.delete(netns)


def node(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "node1"},
        "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }


def service(
    name: str = "web", ip: str = "10.96.0.10", spec: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": ip,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            **(spec or {}),
        },
        "status": {"loadBalancer": {}},
    }


def slice_of(name: str = "web", *addresses: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [each], "nodeName": "node1", "conditions": {"ready": True}}
            for each in addresses
        ],
    }
