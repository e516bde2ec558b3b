"""Kubeconfig files, asked of a server that checks certificates and says whom it sees."""

import base64
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nftproxy.errors import ConfigError
from nftproxy.sources.access import Access, proxy_of
from nftproxy.sources.apiserver import ApiConnection, TransportError, connect
from nftproxy.sources.kubeconfig import Kubeconfig
from tests.support.pki import Authority
from tests.tools.credentials import kinds, kubeconfig, serving, whoami

VERSION = "client.authentication.k8s.io/v1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    authority.server("server", ["127.0.0.1"], names=["kubernetes.test"])
    authority.client("reader")
    authority.client("writer")
    return folder


@pytest.fixture(scope="module")
def port(certificates: Path) -> Iterator[int]:
    with serving(certificates) as port:
        yield port


@pytest.fixture
def write(certificates: Path, port: int, tmp_path: Path) -> Callable[..., str]:
    """Write a kubeconfig for the server; arguments replace what it says of the cluster."""

    def write(user: dict[str, Any], **cluster: Any) -> str:
        right = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority": str(certificates / "ca.crt"),
        }
        return kubeconfig(tmp_path / "kubeconfig", user, **{**right, **cluster})

    return write


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def seen(path: str) -> list[str]:
    connection = connect(path, "")
    try:
        found: list[str] = whoami(connection)["seen"]
        return found
    finally:
        connection.close()


@pytest.mark.contract("8.5.1")
@pytest.mark.parametrize(
    "kind",
    [
        "token",
        "token file",
        "exec plugin, token",
        "exec plugin, certificate",
        "certificate in files",
        "certificate inline",
    ],
)
def test_each_kind_of_credentials(
    write: Callable[..., str], certificates: Path, tmp_path: Path, kind: str
) -> None:
    user, expected = kinds(certificates, tmp_path)[kind]
    assert seen(write(user)) == expected


def test_paths_begin_at_the_files_folder(
    write: Callable[..., str], certificates: Path, tmp_path: Path
) -> None:
    for name in ("ca.crt", "reader.crt", "reader.key"):
        shutil.copy(certificates / name, tmp_path)
    user = {"client-certificate": "reader.crt", "client-key": "./reader.key"}
    assert seen(write(user, **{"certificate-authority": "ca.crt"})) == ["", "reader"]


def test_an_authority_may_stand_in_the_file(write: Callable[..., str], certificates: Path) -> None:
    data = base64.b64encode((certificates / "ca.crt").read_bytes()).decode()
    lines = "\n".join(data[at : at + 64] for at in range(0, len(data), 64))
    path = write({"token": "t"}, **{"certificate-authority-data": lines})
    assert seen(path) == ["Bearer t"]


def test_an_authority_may_have_comments_in_any_language(
    write: Callable[..., str], certificates: Path, tmp_path: Path
) -> None:
    """And other certificates, lines of Windows, and a leaf that is trusted by itself."""
    other = (certificates / "writer.crt").read_text()
    own = (certificates / "ca.crt").read_text()
    bundle = f"# Zertifikate für alle\n{other}{own}".replace("\n", "\r\n")
    (tmp_path / "bundle.crt").write_bytes(bundle.encode())
    assert seen(write({"token": "t"}, **{"certificate-authority": "bundle.crt"})) == ["Bearer t"]
    leaf = str(certificates / "server.crt")
    assert seen(write({"token": "t"}, **{"certificate-authority": leaf})) == ["Bearer t"]


@pytest.mark.parametrize("content", [None, " \n"], ids=["missing", "empty"])
def test_a_token_stands_in_for_its_file(
    write: Callable[..., str], tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    assert seen(write({"token": "t", "tokenFile": "token"})) == ["Bearer t"]
    (tmp_path / "token").write_text("from-file")
    assert seen(write({"token": "t", "tokenFile": "token"})) == ["Bearer from-file"]


@pytest.mark.parametrize(
    "answer",
    [
        'kind: ExecCredential\napiVersion: VERSION\nstatus: {token: "\\u00e9"}\n',
        (
            '{"kind":"ExecCredential",\n\t"apiVersion":"VERSION","status":{"token":"\\u00e9"},'
            '"more":"\\ud83d\\ude00"}'
        ),
    ],
    ids=["YAML", "JSON"],
)
def test_a_plugin_answers_in_json_or_yaml(
    write: Callable[..., str], tmp_path: Path, answer: str
) -> None:
    assert seen(write({"exec": plugin(tmp_path, answer.replace("VERSION", VERSION))})) == [
        "Bearer \u00e9"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Pod"}, "'Pod'"),
        ({"apiVersion": "v2"}, "'v2'"),
        ({"current-context": ""}, "current-context is not set"),
        ({"current-context": "other"}, "'other' is in the file 0 times"),
        ({"users": []}, "user 'u' is in the file 0 times"),
        ({"users": [{"name": "u", "user": {}}] * 2}, "user 'u' is in the file 2 times"),
        ({"contexts": [{"name": "x", "context": {}}]}, "cluster '' is in the file 0 times"),
    ],
)
def test_unusable_files(write: Callable[..., str], change: dict[str, Any], message: str) -> None:
    path = Path(write({"token": "t"}))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in str(_told(lambda: connect(str(path), "")))


def test_a_server_of_another_authority_gets_no_request(
    write: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").own.certificate
    connection = connect(write({"token": "t"}, **{"certificate-authority": str(other)}), "")
    with pytest.raises(TransportError, match="certificate verify failed"):
        whoami(connection)
    connection.close()


def test_the_name_in_the_certificate_counts(write: Callable[..., str], port: int) -> None:
    by_name = {"server": f"https://127.0.0.2:{port}", "tls-server-name": "kubernetes.test"}
    with serving_at("127.0.0.2", port):
        assert seen(write({"token": "t"}, **by_name)) == ["Bearer t"]
        connection = connect(write({"token": "t"}, server=by_name["server"]), "")
        with pytest.raises(TransportError, match=r"127\.0\.0\.2"):
            whoami(connection)
        connection.close()


@contextmanager
def serving_at(address: str, port: int) -> Iterator[list[bytes]]:
    """Forward connections to an address to the server; as a proxy if they ask for that."""
    heads: list[bytes] = []
    listener = socket.create_server((address, port))
    stopped = threading.Event()

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def forward(client: socket.socket) -> None:
        with client:
            first = client.recv(65536)
            goal = server_port
            if first.startswith(b"CONNECT"):
                heads.append(first)
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                goal, first = int(first.split()[1].rpartition(b":")[2]), b""
            with socket.create_connection(("127.0.0.1", goal)) as server:
                server.sendall(first)
                back = threading.Thread(target=copy, args=[server, client], daemon=True)
                back.start()
                copy(client, server)
                back.join()

    def accept() -> None:
        while not stopped.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=forward, args=[client], daemon=True).start()

    server_port = port
    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield heads
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_without_verification_any_server_will_do(
    write: Callable[..., str], recwarn: pytest.WarningsRecorder
) -> None:
    path = write({"token": "t"}, **{"insecure-skip-tls-verify": True, "certificate-authority": ""})
    assert seen(path) == ["Bearer t"]
    assert not recwarn.list, "the configuration asks for it"


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_proxy_on_the_way(
    write: Callable[..., str], port: int, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with socket.create_server(("127.0.0.3", 0)) as found:
        free = found.getsockname()[1]
    with serving_at("127.0.0.3", free) as heads:
        proxy = f"http://me:s%3Ccret@127.0.0.3:{free}"
        cluster = {"server": f"https://kubernetes.test:{port}"}
        if where == "file":
            cluster["proxy-url"] = proxy
        else:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert seen(write({"token": "t"}, **cluster)) == ["Bearer t"]
    (head,) = heads
    assert head.startswith(f"CONNECT kubernetes.test:{port}".encode())
    assert base64.b64encode(b"me:s<cret") in head
    assert b"Bearer" not in head


@pytest.mark.parametrize(
    ("server", "exceptions", "through"),
    [
        ("https://api.example:6443", "", True),
        ("http://api.example", "", False),  # only HTTPS_PROXY is set
        ("https://localhost:6443", "", False),
        ("https://127.0.0.1", "", False),
        ("https://[::1]:6443", "", False),
        ("https://api.example", "*", False),
        ("https://api.example", "example", False),
        ("https://api.example", ".example", False),
        ("https://api.example", "*.example", False),
        ("https://api.example", " other , API.example ", False),
        ("https://api.example", "other api.example", True),
        ("https://api.example", "*example", True),
        ("https://api.example", "api.example:443", False),
        ("https://api.example", "api.example:80", True),
        ("https://example", ".example", True),
        ("https://api.example", ".api.example", True),
        ("https://api.example", "pi.example", True),
        ("https://api.example:6443", "api.example:6443", False),
        ("https://api.example:6443", "api.example:443", True),
        ("https://10.96.0.1:443", "10.96.0.0/12", False),
        ("https://10.112.0.1:443", "10.96.0.0/12", True),
        ("https://10.96.0.1:443", "10.96.0.1", False),
        ("https://10.96.0.1:443", "10.96.0.1:443", False),
        ("https://[fd00::1]:443", "fd00::/8", False),
        ("https://[fd00::1]:443", "fd00::1", False),
        ("https://[fd00::1]:443", "[fd00::1]:443", False),
        ("https://[fd00::1]:443", "[fd00::1]", True),
        ("https://10.96.0.1", "10.96.0.0/99,fd00::/8,,nonsense/", True),
    ],
)
def test_which_servers_the_environment_exempts(
    monkeypatch: pytest.MonkeyPatch, server: str, exceptions: str, through: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", exceptions)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert proxy_of(Access(server=server)) == ("http://proxy.example:3128" if through else "")
    assert proxy_of(Access(server=server, proxy="http://of.file:1")) == "http://of.file:1"


def plugin(folder: Path, answer: Any, *, code: int = 0) -> dict[str, Any]:
    """Write an exec plugin that keeps what it was told, and count its calls in a file."""
    (folder / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
    program = folder / "plugin"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\necho "$KUBERNETES_EXEC_INFO" >>told\n'
        f'echo "$FROM_FILE $1" >>arguments\necho complaint >&2\ncat answer\nexit {code}\n'
    )
    program.chmod(0o755)
    return {
        "command": "./plugin",
        "apiVersion": VERSION,
        "args": ["first"],
        "env": [{"name": "FROM_FILE", "value": "yes"}],
        "installHint": "get it from\nyour administrator",
    }


def grant(**status: Any) -> dict[str, Any]:
    return {"kind": "ExecCredential", "apiVersion": VERSION, "status": status}


def test_a_plugin_is_told_its_task(
    write: Callable[..., str], port: int, certificates: Path, tmp_path: Path
) -> None:
    asked = {**plugin(tmp_path, grant(token="t")), "provideClusterInfo": True}  # noqa: S106
    extension = {
        "name": "client.authentication.k8s.io/exec",
        "extension": {"audience": "a"},
    }
    assert seen(write({"exec": asked}, extensions=[extension])) == ["Bearer t"]
    assert (tmp_path / "arguments").read_text() == "yes first\n"
    told = json.loads((tmp_path / "told").read_text())
    assert told["kind"] == "ExecCredential"
    assert told["apiVersion"] == VERSION
    authority = base64.b64encode((certificates / "ca.crt").read_bytes()).decode()
    assert told["spec"] == {
        "interactive": False,
        "cluster": {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority-data": authority,
            "config": {"audience": "a"},
        },
    }


def test_a_plugin_is_asked_again_once_its_credentials_expire(
    write: Callable[..., str], tmp_path: Path
) -> None:
    def until(seconds: float) -> str:
        return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()

    def calls() -> int:
        return len((tmp_path / "told").read_text().splitlines())

    clock = Clock()
    answer = grant(token="a", expirationTimestamp=until(3600))  # noqa: S106
    connection = connect(write({"exec": plugin(tmp_path, answer)}), "", clock=clock)
    whoami(connection)
    clock.now = 61
    whoami(connection)
    assert calls() == 1
    connection.renew()
    plugin(tmp_path, grant(token="b", expirationTimestamp=until(-1)))  # noqa: S106
    assert whoami(connection)["seen"] == ["Bearer b"]
    assert calls() == 2
    plugin(tmp_path, grant(token="c"))  # noqa: S106
    clock.now = 122
    assert whoami(connection)["seen"] == ["Bearer c"]
    clock.now = 183
    whoami(connection)
    assert calls() == 3
    connection.close()


def test_unchanged_credentials_keep_the_connection(
    write: Callable[..., str], certificates: Path, tmp_path: Path
) -> None:
    """Files that were rotated in place begin a new one."""
    for name in ("reader.crt", "reader.key"):
        shutil.copy(certificates / name, tmp_path)
    clock = Clock()
    user = {"client-certificate": "reader.crt", "client-key": "reader.key"}
    connection = connect(write(user), "", clock=clock)
    first = whoami(connection)
    clock.now = 61
    assert whoami(connection) == first
    for suffix in ("crt", "key"):
        shutil.copy(certificates / f"writer.{suffix}", tmp_path / f"reader.{suffix}")
    clock.now = 122
    rotated = whoami(connection)
    assert rotated["seen"] == ["", "writer"]
    assert rotated["port"] != first["port"]
    connection.close()


def test_several_requests_at_once_leave_their_connections_open(write: Callable[..., str]) -> None:
    """As many as there are resources: a handshake costs the server more than an answer."""
    connection = connect(write({"token": "t"}), "")
    ports = []
    for _ in range(2):
        with ExitStack() as stack:
            answers = [stack.enter_context(connection.get("/", {}, silence=5)) for _ in range(4)]
            ports.append({json.loads(answer.body())["port"] for answer in answers})
    connection.close()
    assert len(ports[0]) == 4
    assert ports[1] == ports[0]


def _told(connection_of: Callable[[], ApiConnection]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        connection_of()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"auth-provider": {"name": "gcp"}}, "auth-provider is not supported"),
        ({"as": "system:admin", "token": "s3cret"}, "as is not supported"),
        ({"client-certificate": "CERTIFICATE"}, "certificate and key belong together"),
        ({"client-certificate": "gone.crt", "client-key": "gone.key"}, "gone.crt"),
        ({"client-certificate-data": "s3cret!", "client-key-data": "s3cret!"}, "base64"),
        ({"client-certificate-data": "czNjcmV0", "client-key-data": "czNjcmV0"}, "no PEM"),
        ({"tokenFile": "empty"}, "the token is empty"),
        ({"token": ["s3cret"]}, r"users\[0\].user.token"),
        ({"exec": {"command": "x", "apiVersion": "v1"}}, "'v1'"),
        ({"exec": {"command": "no-such-plugin", "apiVersion": VERSION}}, "No such file"),
        ({"exec": {"command": "x", "apiVersion": VERSION, "env": [{"value": "v"}]}}, "env"),
        (
            {"exec": {"command": "x", "apiVersion": VERSION, "interactiveMode": "Always"}},
            "wants a terminal",
        ),
    ],
)
def test_unusable_users(
    write: Callable[..., str],
    certificates: Path,
    tmp_path: Path,
    user: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "empty").write_text(" \n")
    text = json.dumps(user).replace("CERTIFICATE", str(certificates / "reader.crt"))
    path = write(json.loads(text))
    with pytest.raises(ConfigError, match=message) as caught:
        connect(path, "")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ("pass-word", 0, "no ExecCredential"),
        ("{pass-word", 0, "neither JSON nor YAML"),
        (grant(token="t", expirationTimestamp="2026-01-01T00:00:00"), 0, "timezone"),  # noqa: S106
        (grant(), 0, "neither a token nor a certificate"),
        (grant(clientCertificateData="c"), 0, "certificate and key belong together"),
        ({**grant(token="t"), "apiVersion": f"{VERSION}beta1"}, 0, "answers in"),  # noqa: S106
        ({"kind": "Pod", "apiVersion": "v1", "status": {}}, 0, "no ExecCredential"),
        ("", 3, "exit code 3: complaint"),
    ],
)
def test_plugins_that_fail(
    write: Callable[..., str], tmp_path: Path, answer: Any, code: int, message: str
) -> None:
    path = write({"exec": plugin(tmp_path, answer, code=code)})
    error = _told(lambda: connect(path, ""))
    assert message in str(error)
    assert "./plugin" in str(error)
    assert "pass-word" not in str(error)


def test_a_missing_plugin_says_where_to_get_it(write: Callable[..., str], tmp_path: Path) -> None:
    path = write({"exec": plugin(tmp_path, grant())})
    (tmp_path / "plugin").unlink()
    assert _told(lambda: connect(path, "")).hint == "get it from your administrator"


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"server": ""}, "server is not set"),
        ({"certificate-authority": "/dev/null"}, "no PEM"),
        ({"insecure-skip-tls-verify": True}, "exclude each other"),
        ({"certificate-authority": "gone.crt"}, "gone.crt"),
        ({"proxy-url": "socks5://127.0.0.1:1080"}, "socks5://"),
    ],
)
def test_unusable_clusters(
    write: Callable[..., str], cluster: dict[str, Any], message: str
) -> None:
    path = write({"token": "t"}, **cluster)
    with pytest.raises(ConfigError, match=message):
        connect(path, "")


def test_a_key_with_a_password_is_refused(
    write: Callable[..., str], certificates: Path, tmp_path: Path
) -> None:
    """OpenSSL would ask for the password on the terminal."""
    locked = tmp_path / "locked.key"
    encrypt: list[str | Path] = ["openssl", "ec", "-aes256", "-passout", "pass:p", "-out", locked]
    subprocess.run([*encrypt, "-in", certificates / "reader.key"], check=True, capture_output=True)
    user = {"client-certificate": str(certificates / "reader.crt"), "client-key": str(locked)}
    path = write(user)
    with pytest.raises(ConfigError, match="the key has a password"):
        connect(path, "")


def test_secrets_are_not_shown(write: Callable[..., str], certificates: Path) -> None:
    key = certificates / "reader.key"
    user = {"client-certificate": str(certificates / "reader.crt"), "client-key": str(key)}
    access = Kubeconfig(write({**user, "token": "s3cret"})).read(refused=False)
    assert access.authorization == "Bearer s3cret"
    assert access.key == key.read_text()
    assert "s3cret" not in repr(access)
    assert "PRIVATE" not in repr(access)
