"""The nftproxy that runs on this node: whether it does, what it serves, its configuration."""

import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nftproxy.address import bracketed
from nftproxy.configuration import config as configuration
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.doctor.facts import Health
from nftproxy.doctor.model import Unknown
from nftproxy.node import instance

_PATIENCE = 5.0  # seconds
_LARGEST = 64 << 20
_LISTENING = "0A"
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound


def running() -> bool | Unknown:
    """Whether a process holds the lock of this network namespace."""
    try:
        lines = Path("/proc/thread-self/net/unix").read_text().splitlines()
    except OSError as error:
        return Unknown(f"/proc/thread-self/net/unix cannot be read: {error.strerror}")
    return any(line.split()[-1] == instance.SHOWN_NAME for line in lines if "@" in line)


def get(address: str, path: str) -> tuple[int, bytes] | Unknown:
    """Ask a server of this node; `address` is what it listens on, as the configuration has it."""
    host, _, port = address.rpartition(":")
    host = _UNSPECIFIED.get(host.strip("[]"), host.strip("[]"))
    server = http.client.HTTPConnection(host, int(port), timeout=_PATIENCE)
    try:
        server.request("GET", path)
        answer = server.getresponse()
        return answer.status, answer.read(_LARGEST)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unknown(f"http://{bracketed(host)}:{port}{path} does not answer: {reason}")
    finally:
        server.close()


def health(address: str) -> Health | Unknown:
    """Return what the health server says."""
    answer = get(address, "/healthz") if address else Unknown("healthzBindAddress is empty")
    if isinstance(answer, Unknown):
        return answer
    try:
        body: dict[str, Any] = json.loads(answer[1])
        return Health(
            answer[0],
            str(body.get("limited", "")),
            str(body["lastUpdated"]),
            bool(body.get("nodeEligible", True)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unknown(f"http://{address}/healthz is not ours: another program has the port")


def metrics(address: str) -> Mapping[str, float] | Unknown:
    """Return the metrics, the series of one name added together; of times the latest."""
    answer = get(address, "/metrics") if address else Unknown("metricsBindAddress is empty")
    if isinstance(answer, Unknown):
        return answer
    found: dict[str, float] = {}
    for line in answer[1].decode(errors="replace").splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if line.startswith("#") or not name:
            continue
        try:
            value = float(line.rpartition(" ")[2])
        except ValueError:
            continue
        if name.endswith("_timestamp_seconds"):
            found[name] = max(found.get(name, 0.0), value)
        else:
            found[name] = found.get(name, 0.0) + value
    if "nftproxy_build_info" not in found:
        return Unknown(f"http://{address}/metrics is not ours: another program has the port")
    return found


def served_configuration(address: str) -> KubeProxyConfiguration | Unknown:
    """Return the configuration that the running process has.

    It names a kubeconfig, which may name programs to run. So it counts only from a server of this
    user or of root: anybody may listen on the port while nftproxy does not run.
    """
    port = int(address.rpartition(":")[2])
    if not _listeners(port) <= {0, os.geteuid()}:
        return Unknown(f"port {port} belongs to another user's program")
    answer = get(address, "/configz")
    if isinstance(answer, Unknown):
        return answer
    try:
        fields = json.loads(answer[1])["kubeproxy.config.k8s.io"]
        return configuration.build(
            {name: value for name, value in fields.items() if name not in {"kind", "apiVersion"}}
        )
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.ValidationError):
        return Unknown(f"http://{address}/configz is not ours: another program has the port")


def _listeners(port: int) -> set[int]:
    """Return the users whose programs listen on a TCP port."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:  # without IPv6
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(int(fields[7]))
    return found
