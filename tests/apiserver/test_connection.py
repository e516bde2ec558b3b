"""Where the API server is and who we are.

Kubeconfig files, in-cluster credentials, and how they change while we run.
"""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nftproxy.errors import ConfigError
from nftproxy.sources import access
from nftproxy.sources.apiserver import ApiConnection, SilentError, TransportError, connect
from nftproxy.sources.resources import SERVICES
from tests.support.fake_apiserver import Exchange, FakeApiServer, refused
from tests.support.mirror import kubeconfig, logged, mirroring
from tests.support.pki import server_tls

QUERY = {"limit": "5"}


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeApiServer]:
    """To others, no credentials are sent."""
    with FakeApiServer(tls=server_tls(tmp_path_factory.mktemp("tls"))) as server:
        yield server


def ask(connection: ApiConnection) -> int:
    with connection.get(SERVICES.path, QUERY, silence=5) as answer:
        answer.body()
        return answer.status


def credentials(server: FakeApiServer) -> list[str]:
    return [each.token for each in server.requests]


def plugin(folder: Path) -> str:
    """Write an exec plugin that hands out a new token at each call."""
    path = folder / "plugin"
    path.write_text(
        "#!/bin/sh\n"
        f"echo >> {folder}/calls\n"
        f"test ! -e {folder}/broken || exit 1\n"
        """echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"'"""  # noqa: E501
        f"""$(wc -l < {folder}/calls)'"}}}}'\n"""
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.contract("8.5.1")
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "inline"}, "Bearer inline"),
        ({"tokenFile": "FOLDER/token"}, "Bearer from-file"),
        (
            {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "FOLDER/plugin",
                    "interactiveMode": "Never",
                }
            },
            "Bearer 1",
        ),
        ({"username": "a", "password": "b"}, "Basic " + base64.b64encode(b"a:b").decode()),
        ({}, ""),
    ],
    ids=["token", "tokenFile", "exec", "basic", "anonymous"],
)
def test_kubeconfig(
    secure: FakeApiServer, tmp_path: Path, user: dict[str, Any], expected: str
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    plugin(tmp_path)
    path = kubeconfig(
        tmp_path, secure.url, **json.loads(json.dumps(user).replace("FOLDER", str(tmp_path)))
    )
    before = Path(path).read_bytes()
    connection = connect(path, "")
    assert ask(connection) == 200
    assert credentials(secure) == [expected]
    assert Path(path).read_bytes() == before, "somebody else's file"
    connection.close()


@pytest.mark.contract("8.5.1")
@pytest.mark.parametrize("scheme", ["https://", ""])
def test_master_replaces_the_server(secure: FakeApiServer, tmp_path: Path, scheme: str) -> None:
    path = kubeconfig(tmp_path, "https://192.0.2.1:1", token="t")  # noqa: S106
    connection = connect(path, f"{scheme}127.0.0.1:{secure.port}/")
    assert ask(connection) == 200
    assert credentials(secure) == ["Bearer t"]
    connection.close()


@pytest.mark.contract("8.5.1")
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_master_alone(server: FakeApiServer, scheme: str) -> None:
    connection = connect("", f"{scheme}127.0.0.1:{server.port}/")
    assert ask(connection) == 200
    connection.close()


@pytest.mark.parametrize("by", ["file", "master"])
def test_nobody_on_the_way_sees_credentials(server: FakeApiServer, tmp_path: Path, by: str) -> None:
    """Without TLS they stay here; a plugin is not asked for any."""
    url = server.url if by == "file" else "https://192.0.2.1:1"
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": plugin(tmp_path)}
    for user in ({"token": "s3cret"}, {"exec": command}, {"username": "u", "password": "s3cret"}):
        with logged() as lines:
            connection = connect(
                kubeconfig(tmp_path, url, **user), server.url if by == "master" else ""
            )
            assert ask(connection) == 200
            connection.renew()
            assert ask(connection) == 200
            connection.close()
        (line,) = lines
        assert "the credentials of user u are not sent" in line
        assert "s3cret" not in line
    assert set(credentials(server)) == {""}
    assert not (tmp_path / "calls").exists()
    with logged() as lines:
        connect(kubeconfig(tmp_path, server.url), "").close()
    assert not lines, "there is nothing that could be sent"


@pytest.mark.contract("8.5.1")
def test_in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    token.write_text("service-account")
    with FakeApiServer(tls=server_tls(tmp_path)) as server:
        monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        connection = connect("", "")
        assert ask(connection) == 200
        token.write_text("rotated")
        connection.renew()
        assert ask(connection) == 200
        assert [each.split()[1] for each in credentials(server)] == ["service-account", "rotated"]

        server.expect("services", Exchange.begin_and_hold)
        with connection.get(SERVICES.path, QUERY, silence=60) as answer:
            waking = threading.Timer(0.05, answer.abort)
            waking.start()
            with pytest.raises(TransportError):
                next(answer.chunks())
            waking.join()
        connection.close()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "a: [",
        "{}",
        '{"current-context": "x"}',
        "[]",
        "7",
        '{"current-context": "x", "contexts": 5, "clusters": [], "users": []}',
        "a: !!bool s3cret",
        "a: !!float s3cret",
        "a: !!timestamp s3cret",
        'a: !!int ""',
    ],
    ids=[
        "missing",
        "empty",
        "no_yaml",
        "no_context",
        "context_unknown",
        "list",
        "number",
        "nonsense",
        "no_bool",
        "no_float",
        "no_timestamp",
        "no_int",
    ],
)
def test_unusable_kubeconfig(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        connect(str(path), "")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_no_cluster_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="in-cluster") as caught:
        connect("", "")
    assert "--kubeconfig" in caught.value.hint


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.contract("8.5.1")
def test_rotated_token_file_is_read_within_a_minute(secure: FakeApiServer, tmp_path: Path) -> None:
    token, clock = tmp_path / "token", Clock()
    token.write_text("first")
    path = kubeconfig(tmp_path, secure.url, tokenFile=str(token))
    connection = connect(path, "", clock=clock)
    ask(connection)
    token.write_text("second")
    clock.now = 59
    ask(connection)
    clock.now = 60
    ask(connection)
    assert credentials(secure) == ["Bearer first", "Bearer first", "Bearer second"]
    connection.close()


def test_credentials_change_while_the_package_is_upgraded(
    secure: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are gone then."""
    path = kubeconfig(tmp_path, secure.url, tokenFile="token")
    (tmp_path / "token").write_text("first")
    connection = connect(path, "")
    ask(connection)
    (tmp_path / "token").write_text("second")
    connection.renew()
    with monkeypatch.context() as gone:
        gone.setattr("sys.path", [])
        ask(connection)
    assert credentials(secure) == ["Bearer first", "Bearer second"]
    connection.close()


@pytest.mark.parametrize("trouble", ["kubeconfig", "token"])
def test_what_cannot_be_read_any_more_stays_in_use(
    secure: FakeApiServer, tmp_path: Path, trouble: str
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    path = kubeconfig(tmp_path, secure.url, tokenFile=str(token))
    connection = connect(path, "")
    Path(path).write_text("{") if trouble == "kubeconfig" else token.unlink()
    connection.renew()
    with logged() as lines:
        assert ask(connection) == 200
        assert ask(connection) == 200
    assert credentials(secure) == ["Bearer first"] * 2
    assert len(lines) == 1
    connection.close()


def test_exec_plugin_is_asked_again_after_a_refusal(secure: FakeApiServer, tmp_path: Path) -> None:
    user = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": plugin(tmp_path),
        "interactiveMode": "Never",
    }
    connection = connect(kubeconfig(tmp_path, secure.url, exec=user), "")
    ask(connection)
    connection.renew()
    ask(connection)
    assert credentials(secure) == ["Bearer 1", "Bearer 2"]
    connection.close()


class Counter:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []
        self.restarts: list[str] = []

    def requested(self, *, code: str, method: str, host: str, seconds: float) -> None:
        self.requests.append((code, method, host))
        self.seconds.append(seconds)

    def watch_restarted(self, resource: str) -> None:
        self.restarts.append(resource)


@pytest.mark.contract("7.4.17")
def test_requests_are_counted(server: FakeApiServer) -> None:
    counter = Counter()
    connection = connect("", server.url, observer=counter)
    server.expect("services", refused(403))
    ask(connection)
    ask(connection)
    server.shut()
    with pytest.raises(TransportError):  # on the connection that was closed
        ask(connection)
    with pytest.raises(TransportError, match="Connection refused"):
        ask(connection)
    host = f"127.0.0.1:{server.port}"
    assert counter.requests[:2] == [("403", "GET", host), ("200", "GET", host)]
    assert all(0 < seconds < 5 for seconds in counter.seconds)
    assert [each[0] for each in counter.requests[2:]] == ["<error>"] * 2
    connection.close()
    server.listen()


def test_credentials_in_the_url_are_in_no_metric(server: FakeApiServer) -> None:
    counter = Counter()
    host = f"127.0.0.1:{server.port}"
    connection = connect("", f"http://user:s3cret@{host}", observer=counter)
    assert ask(connection) == 200
    assert counter.requests == [("200", "GET", host)]
    assert connection.server == host
    connection.close()


def test_a_dead_peer_is_noticed_within_30_seconds(server: FakeApiServer) -> None:
    """By the kernel: TCP keep-alive where a stream is idle, the user timeout where something was
    sent.
    """
    connection = connect("", server.url)
    with connection.get(SERVICES.path, QUERY, silence=5) as answer:
        of = answer._response._connection.sock  # type: ignore[attr-defined]
        idle, interval, count, patience = (
            of.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        )
        assert of.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert idle + interval * count <= 30
        assert 0 < patience <= 30_000
    connection.close()


def test_silence_is_told_from_trouble(server: FakeApiServer) -> None:
    server.expect("services", Exchange.hold)
    connection = connect("", server.url)
    with pytest.raises(SilentError):
        connection.get(SERVICES.path, QUERY, silence=0.05)
    connection.close()


def test_restarts_are_counted(server: FakeApiServer) -> None:
    counter = Counter()
    server.expect("services", refused(503), times=3)
    with mirroring(server, SERVICES, connect("", server.url, observer=counter)) as mirror:
        mirror.until(lambda: mirror.changes)
        assert counter.restarts == ["services"] * 3
