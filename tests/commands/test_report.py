"""`report`: what is in the archive, what is never in it, and how large it gets."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nftproxy.doctor.archive import LARGEST, bounded
from nftproxy.doctor.secrets import REMOVED, scrub
from tests.support.mirror import kubeconfig
from tests.support.patient import POD, Patient, patient
from tests.support.process import Run, nftproxy, write

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJlLXBsYW50ZWQ"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEplantedkey\nabc\n-----END RSA PRIVATE KEY-----"
PLANTED = (
    "planted-token-1",
    "planted-password-2",
    "planted-client-key-3",
    "planted-environment-4",
    "planted-annotation-5",
    "planted-rule-6",
    "planted-field-7",
    "planted-bearer-8",
    "planted-proxy-9",
    "MIIEplantedkey",
    JWT,
    "abc123.0123456789abcdef",
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Patient, Run]]:
    """A node whose files, environment and foreign rules are full of secrets."""
    with patient(tmp_path_factory.mktemp("node")) as one:
        user = {"token": PLANTED[0], "password": PLANTED[1], "client-key-data": PLANTED[2]}
        path = kubeconfig(one.folder, f"http://u:{PLANTED[8]}@127.0.0.1:1", **user)
        one.write_config(clientConnection={"kubeconfig": path})
        documents = list(yaml.safe_load_all((one.manifests / "all.yaml").read_text()))
        documents[2]["metadata"]["annotations"] = {"example.org/secret": PLANTED[4]}
        write(one.manifests / "all.yaml", *documents)
        one.shell(
            "nft 'add table inet fence; add chain inet fence secrets; "
            f'add rule inet fence secrets accept comment "{PLANTED[5]}"\''
        )
        with one.run() as run:
            run.until_started()
            yield one, run


def log_with_secrets(folder: Path) -> Path:
    log = folder / "proxy.log"
    lines = [
        "INFO node node1: serving IPv4 and IPv6",
        f"DEBUG GET https://u:{PLANTED[8]}@10.0.0.1/api",
        f"DEBUG Authorization: Bearer {PLANTED[7]}",
        f'DEBUG token={PLANTED[0]} password: \'{PLANTED[1]}\' "client-key-data": "{PLANTED[2]}"',
        f"DEBUG the service account has {JWT}",
        f"DEBUG bootstrap {PLANTED[11]}",
        PEM,
        "WARNING somebody changed table inet nftproxy",
    ]
    log.write_text("\n".join(lines))
    return log


def opened(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        found = {}
        for entry in archive.getmembers():
            assert entry.mode == 0o600
            assert not entry.name.startswith(("/", ".."))
            file = archive.extractfile(entry)
            assert file
            found[entry.name.partition("/")[2]] = file.read().decode()
    return found


def piped(here: Patient, *arguments: object, **options: Any) -> Any:
    """Have it write to standard output."""
    given = map(str, arguments)
    return nftproxy("report", "--output", "-", *given, where=here.where, text=False, **options)


def test_what_is_in_it_and_no_secret(node: tuple[Patient, Run], tmp_path: Path) -> None:
    here, _ = node
    target = tmp_path / "report.tar.gz"
    config = tmp_path / "config.conf"  # a change of the one in use would end nftproxy
    config.write_text(f"{here.config.read_text()}token: {PLANTED[6]}\n")
    done = nftproxy(
        "report",
        "--output",
        target,
        "--host-root",
        here.root,
        "--config",
        config,
        "--log",
        log_with_secrets(tmp_path),
        where=here.where,
        env={**os.environ, "API_TOKEN": PLANTED[3]},
    )
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    parts = opened(target.read_bytes())
    assert set(parts) == {
        "README.txt", "doctor.txt", "doctor.json", "show.json", "table.nft", "chains.txt",
        "configuration.yaml",
        "versions.txt", "metrics.txt", "healthz.json", "livez.json", "log-1.txt",
    }  # fmt: skip
    everything = "".join([*parts.values(), done.stdout, done.stderr])
    assert [secret for secret in PLANTED if secret in everything] == []
    assert POD in parts["show.json"]
    assert POD in parts["table.nft"]
    assert "chain services4" in parts["table.nft"] or "map services4" in parts["table.nft"]
    assert "table inet fence\n  secrets\n" in parts["chains.txt"]
    assert "clusterCIDR: 10.244.0.0/16" in parts["configuration.yaml"]
    assert "nftproxy_build_info" in parts["metrics.txt"]
    assert '"healthy":true' in parts["healthz.json"]
    assert parts["log-1.txt"].startswith("INFO node node1: serving IPv4 and IPv6\n")
    assert "somebody changed table inet nftproxy" in parts["log-1.txt"]
    for name in parts:
        if name != "README.txt":
            assert f"  {name} " in parts["README.txt"]
            assert f"  {name} " in done.stderr
    assert "credentials: kubeconfig files" in parts["README.txt"]
    assert "credentials: kubeconfig files" in done.stderr


def test_the_test_would_see_a_secret(node: tuple[Patient, Run], tmp_path: Path) -> None:
    """All of them are where the command looks, or could look."""
    here, _ = node
    kept = log_with_secrets(tmp_path).read_text()
    kept += (here.folder / "kubeconfig").read_text()
    kept += subprocess.run(
        ["ip", "netns", "exec", here.where, "nft", "list", "table", "inet", "fence"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    elsewhere = {PLANTED[3], PLANTED[4], PLANTED[6]}  # environment, objects, configuration
    assert {secret for secret in PLANTED if secret not in kept} == elsewhere


def test_standard_output(node: tuple[Patient, Run]) -> None:
    here, _ = node
    done = piped(here)
    assert done.returncode == 0, done.stderr
    assert "doctor.txt" in opened(done.stdout)
    assert b"wrote the archive" in done.stderr


def test_a_log_is_found_where_kubelet_keeps_it(node: tuple[Patient, Run]) -> None:
    here, _ = node
    here.file("var/log/pods/kube-system_nftproxy-x1_1/nftproxy/0.log", "found\n")
    done = piped(here, "--host-root", here.root)
    assert opened(done.stdout)["log-1.txt"] == "found\n"


def test_its_size_is_limited(node: tuple[Patient, Run], tmp_path: Path) -> None:
    here, _ = node
    log = tmp_path / "large.log"
    log.write_text("".join(f"line {number} {'x y ' * 500}\n" for number in range(20_000)))
    assert log.stat().st_size > 9 * LARGEST
    done = piped(here, "--log", log)
    part = opened(done.stdout)["log-1.txt"]
    assert len(part) <= LARGEST + 100
    assert part.endswith(f"line 19999 {'x y ' * 500}\n")
    assert len(done.stdout) < 5 * LARGEST


def test_without_the_capability_it_says_what_it_leaves_out(node: tuple[Patient, Run]) -> None:
    here, _ = node
    done = piped(here, before=("setpriv", "--bounding-set=-net_admin"))
    assert done.returncode == 0
    parts = opened(done.stdout)
    assert "table.nft" not in parts
    assert "table.nft: needs the capability NET_ADMIN" in parts["README.txt"]
    assert "healthz.json" in parts


def test_a_file_that_exists_stays(tmp_path: Path) -> None:
    target = tmp_path / "report.tar.gz"
    target.write_text("mine")
    done = nftproxy("report", "--output", target)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a token: abc", f"a token: {REMOVED}"),
        ("--bearer-token=abc x", f"--bearer-token={REMOVED} x"),
        ("Bearer abcdef", f"Bearer {REMOVED}"),
        (PEM, REMOVED),
        (PEM[:60], REMOVED),  # cut off
        (PEM[40:], REMOVED),
        ("x " + "A" * 200, f"x {REMOVED}"),
        ("https://u:p@h/", f"https://{REMOVED}@h/"),
        ('{"password": "a b", "x": 1}', f'{{"password": {REMOVED}, "x": 1}}'),
    ],
)
def test_secrets_are_removed(text: str, left: str) -> None:
    assert scrub(text) == left


def test_a_service_may_be_called_like_a_secret() -> None:
    text = '{"name": "default/token-secret:http", "address": "10.96.0.1"}'
    assert scrub(text, by_name=False) == text
    assert "http" not in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "10.96.0.10 . tcp . 80 : goto pick4-tcp-2",
        "the kernel refuses it",
        "default/web:http",
        'kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 1.0',
        "kubeconfig: /etc/nftproxy/kubeconfig.conf",
        "chain program-7082f0226e90bdb5 {",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert scrub(text) == text


def test_long_texts_lose_their_middle() -> None:
    assert bounded("abc", 3) == "abc"
    assert bounded("a" * 10 + "b" * 10, 10).startswith(
        "aaaaa\n... 10 characters left out ...\nbbbbb"
    )
