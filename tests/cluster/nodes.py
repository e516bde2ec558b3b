"""Nodes: containerd and kubelet in namespaces and cgroups of their own.

All processes of a node are in one PID namespace, so nothing survives the first of them.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import images, network, pki, processes
from tests.cluster.names import CONTROL_IPV4, DNS, FOLDER, REPOSITORY, Node, program
from tests.cluster.waiting import wait

PACKAGES = FOLDER / "packages"
"""Debian's containerd, runc and CNI plugins, unpacked; nothing is installed."""
_DEBIAN = ("containerd", "runc", "containernetworking-plugins")
_PATH = f"{PACKAGES}/usr/sbin:{PACKAGES}/usr/bin:{os.environ['PATH']}"
_CGROUPS = Path("/sys/fs/cgroup")
_SOCKET = "/run/containerd/containerd.sock"
_CONTAINERD = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{repository}/pause:test"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{packages}/usr/sbin/runc"
      SystemdCgroup = false
"""


def unpack() -> None:
    """Fetch Debian's packages and unpack them."""
    if PACKAGES.exists():
        return
    half = PACKAGES.with_suffix(".half")
    half.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    subprocess.run(["apt-get", "-qq", "download", *_DEBIAN], check=True, cwd=half)
    for package in half.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", package, half], check=True)
    half.rename(PACKAGES)


def start(node: Node) -> None:
    """Start a node. What it has on disk from an earlier start stays."""
    node.folder.mkdir(parents=True, exist_ok=True)
    (node.folder / "entered").unlink(missing_ok=True)
    _cgroups(node)
    enter = Path(__file__).with_name("enter.sh")
    plugins = PACKAGES / "usr/lib/cni"
    processes.start(
        node.name,
        [
            *network.inside(node.namespace, "unshare", "--mount", "--uts", "--pid", "--fork"),
            *("--kill-child", "--mount-proc", "--propagation", "private"),
            *("sh", str(enter), node.name, str(node.folder), str(plugins)),
        ],
    )
    wait((node.folder / "entered").exists, problem=f"{node.name} is not entered")
    (node.folder / "containerd.toml").write_text(
        _CONTAINERD.format(repository=REPOSITORY, packages=PACKAGES)
    )
    (node.folder / "resolv.conf").write_text(f"nameserver {CONTROL_IPV4}\n")
    (node.folder / "kubelet.json").write_text(json.dumps(_kubelet(node)))
    containerd = f"{PACKAGES}/usr/bin/containerd"
    configuration = str(node.folder / "containerd.toml")
    processes.start(
        f"{node.name}-containerd",
        inside(node, containerd, "--config", configuration),
        env={"PATH": _PATH},
    )
    wait(
        lambda: not ctr(node, "version", check=False).returncode,
        problem="containerd does not answer",
    )
    load(node)
    processes.start(
        f"{node.name}-kubelet",
        inside(
            node,
            program("kubelet"),
            f"--config={node.folder}/kubelet.json",
            f"--kubeconfig={pki.kubeconfig(node.name)}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.ipv4},{node.ipv6}",
            f"--node-labels=topology.kubernetes.io/zone={node.zone}",
        ),
        env={"PATH": _PATH},
    )


def load(node: Node) -> None:
    """Import the images that a node does not have yet."""
    done = node.folder / "images"
    known = done.read_text().split() if done.exists() else []
    for path in sorted(images.IMAGES.glob("*.tar")):
        stamp = f"{path.name}:{path.stat().st_mtime_ns}"
        if stamp not in known:
            ctr(node, "images", "import", str(path))
            known.append(stamp)
    done.write_text("\n".join(known))


def stop(node: Node) -> None:
    """End all that runs on a node, at once, as when it loses power."""
    for part in ("kubelet", "containerd"):
        processes.stop(f"{node.name}-{part}", signal.SIGKILL)
    processes.stop(node.name, signal.SIGKILL)
    for controller in _controllers():
        own = controller / "nftproxy" / node.name
        # That of all nodes goes with the last of them.
        for folder in (*sorted(own.glob("**/"), reverse=True), own.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def inside(node: Node, *argv: str) -> list[str]:
    """Return a command that runs another on a node."""
    number = processes.running(node.name)
    first = Path(f"/proc/{number}/task/{number}/children").read_text().split()[0]
    spaces = ("--mount", "--uts", "--net", "--pid")
    return ["nsenter", f"--target={first}", *spaces, *argv]


def ctr(node: Node, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Ask a node's containerd."""
    argv = inside(node, f"{PACKAGES}/usr/bin/ctr", "-a", _SOCKET, "-n", "k8s.io", *arguments)
    return subprocess.run(
        argv, check=check, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}
    )


def restart_pods(node: Node, beginning: str) -> int:
    """Kill the sandboxes of pods by the beginning of their names, and return their number.

    The kubelet gives each pod another, with other addresses, whether it reaches an API server or
    not.
    """
    wanted = (
        f'labels."io.cri-containerd.kind"==sandbox,labels."io.kubernetes.pod.name"~=^{beginning}'
    )
    found = ctr(node, "containers", "list", "--quiet", wanted).stdout.split()
    running = ctr(node, "tasks", "list", "--quiet").stdout.split()
    killed = [each for each in found if each in running]
    for each in killed:
        ctr(node, "tasks", "kill", "--signal", "SIGKILL", each)
    return len(killed)


def attach_pods(node: Node, pods: Sequence[str]) -> None:
    """Write how pods are attached to the network, in their node's part of it."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": each}] for each in pods],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"cniVersion": "0.4.0", "name": "cluster", "plugins": [bridge, ports]}
    subprocess.run(
        inside(node, "tee", "/etc/cni/net.d/10-cluster.conflist"),
        check=True,
        input=json.dumps(document),
        text=True,
        stdout=subprocess.DEVNULL,
    )


def _kubelet(node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki.PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/nftproxy/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{_SOCKET}",
        "resolvConf": str(node.folder / "resolv.conf"),
        "tlsCertFile": f"{pki.PKI}/kubelet-{node.name}.crt",
        "tlsPrivateKeyFile": f"{pki.PKI}/kubelet-{node.name}.key",
        "hairpinMode": "hairpin-veth",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "maxPods": 100,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        # The tests' registries are not reached: a pull that fails should not wait for longer.
        "registryPullQPS": 0,
    }


def _controllers() -> list[Path]:
    """Return the hierarchies of cgroups, of which version 2 has one."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [each for each in _CGROUPS.iterdir() if each.is_dir() and not each.is_symlink()]


def _cgroups(node: Node) -> None:
    """Make the cgroups of a node; version 1 wants processors and memory named in each."""
    for controller in _controllers():
        for folder in (controller / "nftproxy", controller / "nftproxy" / node.name):
            folder.mkdir(exist_ok=True)
            for part in ("cpuset.cpus", "cpuset.mems"):
                if controller.name == "cpuset":
                    (folder / part).write_text((controller / part).read_text())
