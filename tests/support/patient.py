"""A node for `doctor`, in good order: with a pod, a bridge, an uplink, a router, and nftproxy."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from nftproxy.commands.doctor import asking_options, examine
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.doctor.model import CheckState, Result
from nftproxy.lab import namespace
from tests.support import process
from tests.support.process import Line, Run, network, nftproxy, service, write

NODE, ROUTER, POD, FAR_POD = "192.168.50.11", "192.168.50.1", "10.244.1.2", "10.244.2.2"
CLUSTER_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/16"
API, DNS = "10.96.0.1", "10.96.0.10"
RETURNS = {CheckState.OK, CheckState.UNCHECKED}


def node(address: str = NODE, pods: str = "10.244.1.0/24") -> Line:
    """The Node document."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1"},
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def slice_of(name: str, namespace_: str, port: Line, *addresses: str) -> Line:
    """An EndpointSlice document of any Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": namespace_,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
        "ports": [port],
    }


def cluster(*more: Line) -> list[Line]:
    """What every cluster has, a Service with a NodePort, and more."""
    api = service("kubernetes", API, ports=[{"name": "https", "port": 443}])
    return [
        node(),
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": [SERVICE_CIDR]},
        },
        api,
        slice_of("kubernetes", "default", {"name": "https", "port": 6443}, NODE),
        service(
            "web",
            "10.96.0.20",
            type="NodePort",
            ports=[{"name": "http", "port": 80, "nodePort": 30080}],
        ),
        process.endpoints(POD, FAR_POD),
        *more,
    ]


class Patient:
    """The node."""

    def __init__(self, where: str, beyond: str, pod: str, folder: Path) -> None:
        self.where, self.beyond, self.pod, self.folder = where, beyond, pod, folder
        self.root = folder / "root"
        self.config = folder / "config.conf"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.root.mkdir()
        self.write_config()
        write(self.manifests / "all.yaml", *cluster())

    def write_config(self, **fields: Any) -> None:
        """Write the configuration file."""
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clusterCIDR": CLUSTER_CIDR,
            **fields,
        }
        self.config.write_text(yaml.safe_dump(document))

    def run(self) -> Run:
        """Return nftproxy, with a copy of the configuration: a change of its file would end it."""
        used = self.folder / "used.conf"
        used.write_text(self.config.read_text())
        return Run(self.where, self.manifests, "--config", str(used))

    def look(self, *arguments: str, manifests: bool = True) -> dict[str, Result]:
        """Return all findings by check; this thread visits the namespace."""
        given = ["--host-root", str(self.root), "--node-name", "node1"]
        given += ["--config", str(self.config)]
        given += ["--manifests", str(self.manifests)] if manifests else []
        with namespace.enter(self.where):
            found = examine(_parsed([*given, *arguments]))
        return {result.check: result for result in found}

    def say(self, *arguments: str, before: Sequence[str] = (), **options: Any) -> Any:
        """Return what the command prints as JSON, and its exit code, as a user would run it."""
        done = nftproxy(
            "doctor",
            "--output",
            "json",
            "--host-root",
            str(self.root),
            *arguments,
            where=self.where,
            before=before,
            **options,
        )
        assert done.returncode in {0, 1}, done.stderr
        found = json.loads(done.stdout)
        return {one["check"]: one for one in found["checks"]}, done.returncode

    def shell(self, command: str) -> None:
        """Run a command here as if pasted; files of the host are below our root."""
        command = command.replace(" /etc/", f" {self.root}/etc/")
        with namespace.enter(self.where):
            subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)

    def cure(self, result: Result) -> None:
        """Run what a finding proposes."""
        assert result.cures, result
        for command in result.cures:
            self.shell(command)

    def file(self, name: str, text: str) -> Path:
        """Write a file of the host."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@click.command(context_settings=CONTEXT_SETTINGS)
@asking_options
@click.pass_context
def _parse(context: click.Context, /, **options: Any) -> None:
    context.obj.update(options)


def _parsed(arguments: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _parse.main(arguments, standalone_mode=False, obj=found)
    return found


@contextlib.contextmanager
def patient(folder: Path) -> Iterator[Patient]:
    """A node in good order, on which nothing of ours runs yet."""
    with network() as where, network() as beyond, network() as pod:
        _ip(
            f"-n {where} link add eth0 type veth peer name eth0 netns {beyond}",
            f"-n {where} link add cni0 type bridge",
            f"-n {where} link add veth1 type veth peer name eth0 netns {pod}",
            f"-n {where} link set veth1 master cni0 up",
            f"-n {where} addr add {NODE}/24 dev eth0",
            f"-n {where} addr add 10.244.1.1/24 dev cni0",
            f"-n {where} link set cni0 up",
            f"-n {where} link set eth0 up",
            f"-n {beyond} addr add {ROUTER}/24 dev eth0",
            f"-n {beyond} addr add 192.168.50.12/24 dev eth0",
            f"-n {beyond} link set eth0 up",
            f"-n {beyond} route add 10.244.1.0/24 via {NODE}",
            f"-n {pod} addr add {POD}/24 dev eth0",
            f"-n {pod} link set eth0 up",
            f"-n {pod} route add default via 10.244.1.1",
            f"-n {where} route add default via {ROUTER}",
            f"-n {where} route add 10.244.2.0/24 via 192.168.50.12",
        )
        one = Patient(where, beyond, pod, folder)
        one.shell("sysctl -qw net.ipv4.ip_forward=1")
        if Path("/proc/sys/net/bridge").exists():
            one.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
        yield one


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
