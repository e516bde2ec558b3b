"""`nftproxy bench --kube-proxy`: the real program next to what is rendered, where there is one.

And what is said where there is none.

It runs where `KUBEBUILDER_ASSETS` names a folder that has `kube-proxy` besides `etcd` and
`kube-apiserver`.
"""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nftproxy.bench.bed import Bed
from nftproxy.bench.controlplane import PROGRAMS, ControlPlane
from nftproxy.bench.measures import Measure
from nftproxy.bench.modes import REAL, KubeProxyProgram, Mode, ModePlace, make
from nftproxy.bench.offer import Offer
from nftproxy.bench.workload import Mix, node_settings
from nftproxy.lab.namespace import enter
from tests.commands.test_bench import bench, read
from tests.support.process import PATIENCE

# ClusterIP, LoadBalancer with policy Local and NodePort, ClientIP affinity, UDP
OFFER = Offer(10, mix=Mix.MIXED)
KUBE_PROXY = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nonexistent"), "kube-proxy")
needs_kube_proxy = pytest.mark.skipif(
    not all(KUBE_PROXY.with_name(each).is_file() for each in ("kube-proxy", *PROGRAMS)),
    reason=f"KUBEBUILDER_ASSETS names no folder with kube-proxy, {', '.join(PROGRAMS)}: there "
    "is no real one to compare with",
)


@pytest.fixture(scope="module")
def server() -> Iterator[ControlPlane]:
    with ControlPlane() as server:
        server.load(OFFER, lambda _: None)
        yield server


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed() as bed:
        yield bed


def real(name: str, server: ControlPlane, bed: Bed) -> Mode:
    server.attach(bed.node)
    program = KubeProxyProgram(str(KUBE_PROXY), server.access, server.folder)
    return make(name, place(bed), "legacy", program)


def place(bed: Bed) -> ModePlace:
    return ModePlace(bed.node, node_settings(), OFFER.workload().service_cidr())


class Listing(NamedTuple):
    """The mode that renders the same, and what lists its rules."""

    mode: str
    command: str


LISTED = {
    "real-nftables": Listing("kube-proxy-nftables", "nft --stateless list ruleset"),
    "real-iptables": Listing("iptables-legacy", "iptables-legacy-save"),
}
# The API server's own service; what modes.iptables names
NOT_RENDERED = (
    "default/kubernetes",
    "10.96.0.1",
    "health check node port",
)
NO_RULE = re.compile(
    r"elements = \{|[{}]|\[\d+:\d+\]|^#.*| -m nfacct --nfacct-name +\w+", re.MULTILINE
)


def rules(bed: Bed, name: str) -> Counter[str]:
    """What is in the kernel, in any order: the original has its services in none.

    Without the counters of nfacct, which are left out.
    """
    with enter(bed.node):
        listed = subprocess.run(
            LISTED[name].command.split(), capture_output=True, text=True, check=True
        ).stdout
    pieces = [piece.strip() for piece in NO_RULE.sub("", listed).replace(",", "\n").splitlines()]
    return Counter(
        piece
        for piece in pieces
        if piece and not any(re.search(rf"{word}(?!\d)", piece) for word in NOT_RENDERED)
    )


@needs_kube_proxy
@pytest.mark.parametrize("name", REAL)
def test_ours_is_rendered_as_the_original_is(name: str, server: ControlPlane, bed: Bed) -> None:
    mode = real(name, server, bed)
    try:
        work = mode.start([])
        assert 0 < work.seconds < work.asked
        original = rules(bed, name)
    finally:
        mode.stop()
    assert not [line for line in rules(bed, name) if "kube" in line.lower()]
    rendered = make(LISTED[name].mode, place(bed))
    rendered.start([OFFER.load(number) for number in range(OFFER.services)])
    assert rules(bed, name) == original


@needs_kube_proxy
def test_a_run(tmp_path: Path) -> None:
    """Packets through both modes, to every kind of service."""
    modes = ",".join(REAL)
    options: list[str | Path] = [
        "--quick",
        "--services",
        "10",
        "--mix",
        "mixed",
        "--modes",
        modes,
        "--kube-proxy",
        KUBE_PROXY,
    ]
    with bench(*options, "--output", tmp_path) as process:
        _, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (0, "")
    rows = read(tmp_path / "samples.csv")
    not_theirs = {Measure.TRANSACTION, Measure.PROGRAMS}
    assert {row["mode"] for row in rows} == set(REAL)
    assert {row["measure"] for row in rows if row["mode"] == REAL[0]} == set(Measure) - not_theirs
    assert {row["measure"] for row in rows if row["mode"] == REAL[1]} == set(Measure) - not_theirs
    assert (
        "Kubernetes v"
        in {row["property"]: row["value"] for row in read(tmp_path / "machine.csv")}["kube-proxy"]
    )


@pytest.mark.parametrize(
    ("script", "assets", "message"),
    [
        pytest.param(None, True, "kube-proxy cannot be run", id="no such file"),
        pytest.param(
            "echo something else",
            True,
            "is no kube-proxy: it says 'something else'",
            id="another program",
        ),
        pytest.param(
            "echo Kubernetes v1.36.2", False, "KUBEBUILDER_ASSETS is not set", id="no API server"
        ),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    message: str,
    *,
    assets: bool,
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path) if assets else "")
    path = tmp_path / "kube-proxy"
    if script:
        program(path, script)
    with bench("--kube-proxy", path, "--output", tmp_path / "out") as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert message in complaints
    assert not (tmp_path / "out").exists()


def test_a_mode_of_the_real_one_alone(tmp_path: Path) -> None:
    with bench("--modes", "real-nftables", "--output", tmp_path / "out") as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "--kube-proxy PATH" in complaints


def test_an_api_server_that_does_not_get_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is rendered is measured all the same."""
    for name in PROGRAMS:
        program(tmp_path / name, "echo out of order; exit 3")
    program(tmp_path / "kube-proxy", "echo Kubernetes v1.36.2")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    options: list[str | Path] = [
        "--quick",
        "--services",
        "10",
        "--modes",
        "nftproxy,real-nftables",
        "--kube-proxy",
        tmp_path / "kube-proxy",
    ]
    with bench(*options, "--output", tmp_path / "out") as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "etcd of KUBEBUILDER_ASSETS does not become ready" in complaints
    assert "out of order" in complaints
    assert {row["mode"] for row in read(tmp_path / "out/samples.csv")} == {"nftproxy"}


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
