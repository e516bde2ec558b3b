"""The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

import signal
import subprocess
import time

from tests.cluster import network, pki, processes
from tests.cluster.names import CONTROL, CONTROL_IPV4, FOLDER, PODS, SERVER, SERVICES, program

_START = 180.0


def start() -> None:
    """Start all parts, and return when the API server is ready."""
    _start(
        "etcd",
        f"--data-dir={FOLDER}/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    )
    start_apiserver()


def start_apiserver() -> None:
    """Start the API server and what makes use of it, and return when it is ready."""
    made = pki.PKI
    _start(
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={CONTROL_IPV4}",
        "--secure-port=6443",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={made}/ca.crt",
        f"--tls-cert-file={made}/apiserver.crt",
        f"--tls-private-key-file={made}/apiserver.key",
        f"--kubelet-client-certificate={made}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={made}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={made}/service-accounts.pub",
        f"--service-account-signing-key-file={made}/service-accounts.key",
        f"--requestheader-client-ca-file={made}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={made}/front-proxy-client.crt",
        f"--proxy-client-key-file={made}/front-proxy-client.key",
        f"--service-cluster-ip-range={SERVICES}",
        "--shutdown-watch-termination-grace-period=1s",
    )
    deadline = time.monotonic() + _START
    argv = [*_kubectl(), "get", "--raw=/readyz"]
    while subprocess.run(argv, check=False, capture_output=True).returncode:
        if time.monotonic() > deadline or not processes.running("kube-apiserver"):
            raise TimeoutError(f"no answer of {SERVER}; see {FOLDER}/logs/kube-apiserver.log")
        time.sleep(0.5)
    _start_controllers()


def stop_apiserver() -> None:
    """End the API server, and controllers that would take nodes for lost when it is back."""
    for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver"):
        processes.stop(name, signal.SIGKILL)


def stop() -> None:
    """End all parts."""
    stop_apiserver()
    processes.stop("etcd", signal.SIGKILL)


def _start_controllers() -> None:
    controllers = [
        f"--root-ca-file={pki.PKI}/ca.crt",
        f"--service-account-private-key-file={pki.PKI}/service-accounts.key",
        f"--cluster-signing-cert-file={pki.PKI}/ca.crt",
        f"--cluster-signing-key-file={pki.PKI}/ca.key",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={PODS}",
        "--node-cidr-mask-size-ipv6=64",
        f"--service-cluster-ip-range={SERVICES}",
    ]
    own: dict[str, list[str]] = {"kube-controller-manager": controllers, "kube-scheduler": []}
    for name, options in own.items():
        kubeconfig = pki.kubeconfig(name.removeprefix("kube-"))
        _start(
            name,
            *(f"--{part}kubeconfig={kubeconfig}" for part in ("", "authentication-")),
            f"--authorization-kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *options,
        )


def _kubectl() -> list[str]:
    argv = (program("kubectl"), f"--kubeconfig={pki.kubeconfig('admin')}")
    return network.inside(CONTROL, *argv, "--request-timeout=5s")


def _start(name: str, *options: str) -> None:
    processes.start(name, network.inside(CONTROL, program(name), *options))
