"""Connections that `--probe` makes: to a Service through its ClusterIP, and to its endpoints.

What fails through the ClusterIP alone is the proxy's or a firewall's; what fails at an endpoint,
too, is the endpoint's. Only kubernetes.default and the cluster's DNS are asked.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from nftproxy.address import bracketed
from nftproxy.doctor.facts import FetchedPage, Probed
from nftproxy.kernel.snapshot import AddressKind, Shown, ShownServicePort, Snapshot

_PATIENCE = 2.0  # seconds
_TRIES = 3  # through the ClusterIP, as each may reach another endpoint
_MOST = 8  # endpoints
_API = "default/kubernetes"
_DNS_NAMESPACE, _DNS_PORT = "kube-system/", 53
_QUESTION = b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"


def probe(seen: Snapshot) -> tuple[Probed, ...]:
    """Ask the Services that every cluster has, as far as the table knows them."""
    return tuple(
        _probed(port, shown) for port in seen.services if _meant(port) for shown in _chosen(port)
    )


def _meant(port: ShownServicePort) -> bool:
    if port.is_called(_API):
        return True
    return port.name.startswith(_DNS_NAMESPACE) and any(
        shown.port == _DNS_PORT and shown.protocol in {"udp", "tcp"} for shown in port.frontends
    )


def _chosen(port: ShownServicePort) -> Iterator[Shown]:
    return (shown for shown in port.frontends if shown.kind is AddressKind.CLUSTER_IP)


def _probed(port: ShownServicePort, shown: Shown) -> Probed:
    ask = _dns if shown.protocol == "udp" else _tcp
    places = dict.fromkeys((each.address, each.port) for each in (*shown.cluster, *shown.local))
    wanted = [(shown.address, shown.port)] * _TRIES + list(places)[:_MOST]
    with ThreadPoolExecutor(len(wanted)) as side_by_side:
        answers = tuple(side_by_side.map(lambda place: _answer(ask, *place), wanted))
    through, direct = answers[:_TRIES], answers[_TRIES:]
    return Probed(f"{port.name} ({shown.family}, {shown.protocol})", through, direct)


def _answer(ask: Callable[[str, int], None], address: str, port: int) -> FetchedPage:
    where = f"{bracketed(address)}:{port}"
    try:
        ask(address, port)
    except TimeoutError:
        return FetchedPage(where, f"no answer in {_PATIENCE:.0f} s")
    except OSError as error:
        return FetchedPage(where, (error.strerror or str(error)).lower())
    return FetchedPage(where, "")


def _tcp(address: str, port: int) -> None:
    socket.create_connection((address, port), timeout=_PATIENCE).close()


def _dns(address: str, port: int) -> None:
    """Ask for a name that any cluster has; any answer will do, also that there is no such name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        number = os.urandom(2)
        sock.send(number + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + _QUESTION)
        deadline = time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if sock.recv(4096)[:2] == number:
                return
        raise TimeoutError
