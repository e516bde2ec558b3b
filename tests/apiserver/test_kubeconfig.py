"""Kubeconfig files, asked of a server that checks certificates and says whom it sees."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nftproxy.errors import ConfigError
from nftproxy.sources.access import Access, HttpProxy, proxy_of
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
    authority.server("proxy", ["127.0.0.3"])
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


@pytest.mark.parametrize("content", [None, b" \n", b"\xe4"], ids=["missing", "empty", "no UTF-8"])
def test_a_token_stands_in_for_its_file(
    write: Callable[..., str], tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    assert seen(write({"token": "t", "tokenFile": "token"})) == ["Bearer t"]
    (tmp_path / "token").write_text("from-file")
    assert seen(write({"token": "t", "tokenFile": "token"})) == ["Bearer from-file"]


@pytest.mark.parametrize(
    "answer",
    [
        'kind: ExecCredential\napiVersion: VERSION\nstatus: {token: "\\u0074"}\n',
        (
            '{"kind":"ExecCredential",\n\t"apiVersion":"VERSION","status":{"token":"\\u0074"},'
            '"more":"\\ud83d\\ude00"}'
        ),
    ],
    ids=["YAML", "JSON"],
)
def test_a_plugin_answers_in_json_or_yaml(
    write: Callable[..., str], tmp_path: Path, answer: str
) -> None:
    assert seen(write({"exec": plugin(tmp_path, answer.replace("VERSION", VERSION))})) == [
        "Bearer t"
    ]


@pytest.mark.parametrize("kind", ["token", "exec plugin, token"])
def test_null_is_the_same_as_nothing(
    write: Callable[..., str], certificates: Path, tmp_path: Path, kind: str
) -> None:
    user, expected = kinds(certificates, tmp_path)[kind]
    fields = ("client-certificate", "client-certificate-data", "client-key", "client-key-data")
    more = ("token", "tokenFile", "username", "password", "exec", "auth-provider", "as")
    user = {**dict.fromkeys((*fields, *more)), **user}
    if plugin := user["exec"]:
        variable = {"name": "A", "value": None}
        plugin |= {"args": None, "installHint": None, "provideClusterInfo": None, "env": [variable]}
    cluster = ("tls-server-name", "insecure-skip-tls-verify", "proxy-url", "extensions")
    path = Path(write(user, **dict.fromkeys(cluster)))
    document = {**json.loads(path.read_text()), "kind": None, "apiVersion": None}
    path.write_text(json.dumps(document))
    assert seen(str(path)) == expected
    for document["users"][0]["user"] in (None, {}):
        path.write_text(json.dumps(document))
        assert seen(str(path)) == [""]
    document |= {
        "users": None,
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": None}}],
    }
    path.write_text(json.dumps(document))
    assert seen(str(path)) == [""]


@pytest.mark.parametrize("kind", ["cluster", "user", "context"])
def test_entries_for_others_may_be_as_they_like(write: Callable[..., str], kind: str) -> None:
    path = Path(write({"token": "t"}))
    document = json.loads(path.read_text())
    document[f"{kind}s"] += [
        {"name": "other", kind: {"exec": {}, "server": 5, "cluster": [], "proxy-url": "x"}},
        {"name": "other", kind: {"exec": {"command": "x", "apiVersion": "v1alpha1"}}},
        {"name": "other"},
        {kind: {}},
        {"name": 5, kind: 7},
        None,
    ]
    path.write_text(json.dumps(document))
    assert seen(str(path)) == ["Bearer t"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": [{"name": "x", "context": {"user": 5}}]}, "context x: Expected `str`"),
        ({"clusters": [{"name": "c", "cluster": {"server": 5}}]}, "cluster c: Expected `str`"),
        ({"clusters": [{"name": "c"}]}, "cluster c: server is not set"),
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


def refusal(path: str) -> TransportError:
    """Return why there is no answer."""
    connection = connect(path, "")
    with pytest.raises(TransportError) as caught:
        whoami(connection)
    connection.close()
    assert "\n" not in str(caught.value) + caught.value.hint
    return caught.value


@pytest.mark.parametrize("how", ["file", "data"])
def test_a_server_of_another_authority_gets_no_request(
    write: Callable[..., str], tmp_path: Path, how: str
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").own.certificate
    place, value = "certificate-authority", str(other)
    if how == "data":
        place, value = f"{place}-data", base64.b64encode(other.read_bytes()).decode()
    error = refusal(write({"token": "t"}, **{place: value}))
    assert "certificate verify failed" in str(error)
    assert error.hint.startswith(f"cluster c: {place} ")
    assert error.hint.endswith("has to vouch for the API server's certificate")


def test_without_an_authority_those_of_the_system_count(write: Callable[..., str]) -> None:
    error = refusal(write({"token": "t"}, **{"certificate-authority": None}))
    assert error.hint.startswith("the system's store of certificates")


def test_a_certificate_out_of_date(write: Callable[..., str], tmp_path: Path) -> None:
    """Named as what it is, not as one of another authority."""
    authority = Authority(tmp_path)
    authority.server("server", ["127.0.0.1"], days=-1)
    with serving(tmp_path) as port:
        path = write(
            {"token": "t"},
            server=f"https://127.0.0.1:{port}",
            **{"certificate-authority": str(tmp_path / "ca.crt")},
        )
        assert "has to be renewed" in refusal(path).hint


def test_the_name_in_the_certificate_counts(write: Callable[..., str], port: int) -> None:
    by_name = {"server": f"https://127.0.0.2:{port}", "tls-server-name": "kubernetes.test"}
    with serving_at("127.0.0.2", port):
        assert seen(write({"token": "t"}, **by_name)) == ["Bearer t"]
        error = refusal(write({"token": "t"}, server=by_name["server"]))
        assert "127.0.0.2" in str(error)
        assert "its certificate names" in error.hint


@contextmanager
def serving_at(address: str, port: int, certificate: Path | None = None) -> Iterator[list[bytes]]:
    """Forward connections to an address to the server; as a proxy if they ask for that."""
    heads: list[bytes] = []
    listener = socket.create_server((address, port))
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(f"{certificate}.crt", f"{certificate}.key")
        listener = tls.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
    stopped = threading.Event()

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def forward(client: socket.socket) -> None:
        with client, suppress(OSError):
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
@pytest.mark.parametrize(
    ("user", "pair"),
    [
        ("me:s%3Ccret@", b"me:s<cret"),
        (":s%3Ccret@", b":s<cret"),
        ("m%C3%A9:%E2%82%AC@", "m\u00e9:\u20ac".encode()),
        ("", b""),
    ],
    ids=["user", "password alone", "in UTF-8", "nobody"],
)
def test_a_proxy_on_the_way(
    write: Callable[..., str],
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    user: str,
    pair: bytes,
) -> None:
    with serving_at("127.0.0.3", port) as heads:
        proxy = f"http://{user}127.0.0.3:{port}"
        cluster = {"server": f"https://kubernetes.test:{port}"}
        if where == "file":
            cluster["proxy-url"] = proxy
        else:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert seen(write({"token": "t"}, **cluster)) == ["Bearer t"]
    (head,) = heads
    assert head.startswith(f"CONNECT kubernetes.test:{port}".encode())
    told = [line for line in head.split(b"\r\n") if line.lower().startswith(b"proxy-auth")]
    assert [line.split()[-1] for line in told] == ([base64.b64encode(pair)] if pair else [])
    assert b"Bearer" not in head


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_proxy_by_https_is_trusted_as_the_server_is(
    write: Callable[..., str],
    certificates: Path,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Then it has nothing in common with the system's authorities, or proves nothing at all."""
    with serving_at("127.0.0.3", port, certificates / "proxy") as heads:
        proxy = f"https://127.0.0.3:{port}"
        cluster: dict[str, Any] = {"server": f"https://kubernetes.test:{port}"}
        if where == "file":
            cluster["proxy-url"] = proxy
        else:
            monkeypatch.setenv("HTTPS_PROXY", proxy)
        assert seen(write({"token": "t"}, **cluster)) == ["Bearer t"]
        assert len(heads) == 1
        (tmp_path / "other").mkdir()
        other = str(Authority(tmp_path / "other").own.certificate)
        error = refusal(write({"token": "t"}, **cluster, **{"certificate-authority": other}))
        assert "proxy: " in str(error)
        assert f"{other} has to vouch for the proxy's certificate" in error.hint
        assert len(heads) == 1, "to a proxy that is not trusted, nothing is said"
        nobody = {"insecure-skip-tls-verify": True, "certificate-authority": None}
        assert seen(write({"token": "t"}, **cluster, **nobody)) == ["Bearer t"]


@pytest.mark.parametrize("where", ["proxy-url", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    "proxy",
    [
        "http://me:s3cret@127.0.0.1:x",
        "http://me:s3cret@127.0.0.1:99999",
        "http://me:s3cret@127.0.0.1 :80",
        " http://me:s3cret@127.0.0.1:80",
        "http://me:s3cret@[::1",
        "http://",
        "socks5://me:s3cret@127.0.0.1:1080",
    ],
)
def test_unusable_proxies(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str, proxy: str
) -> None:
    cluster = {"server": "https://kubernetes.test:6443"}
    if where == "proxy-url":
        cluster["proxy-url"] = proxy
    else:
        monkeypatch.setenv(where, proxy)
    path = write({"token": "t"}, **cluster)
    error = _told(lambda: connect(path, ""))
    assert where in str(error)
    assert (f"kubeconfig {path}: cluster " in str(error)) == (where == "proxy-url")
    assert "s3cret" not in str(error) + error.hint


@pytest.mark.parametrize(
    "server", ["https://me:s3cret@[::1", "https://me:s3cret@127.0.0.1:x", "https://", "unix:///x"]
)
def test_unusable_servers(write: Callable[..., str], server: str) -> None:
    error = _told(lambda: connect(write({"token": "t"}, server=server), ""))
    assert "s3cret" not in str(error) + error.hint


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
    assert proxy_of(Access(server=server)) == (
        HttpProxy("http://proxy.example:3128", {}) if through else None
    )
    named = proxy_of(Access(server=server, proxy="http://of.file:1"))
    assert named == HttpProxy("http://of.file:1", {})


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
        (
            {"client-certificate-data": "s3cret!", "client-key-data": "s3cret!"},
            "client-certificate-data .*base64",
        ),
        ({"client-certificate-data": "czNjcmV0", "client-key-data": "czNjcmV0"}, "no PEM"),
        ({"tokenFile": "empty"}, "user u: tokenFile .*/empty: the token is empty"),
        ({"token": " "}, "user u: token: the token is empty"),
        *(
            ({"token": f"s3{wrong}cret"}, "user u: token: .* cannot be sent")
            for wrong in ("\u20ac", "\u00e4", "\0", "\x7f", "\r\nX-Evil: yes")
        ),
        ({"tokenFile": "latin"}, "user u: tokenFile .*/latin: .* cannot be sent"),
        ({"tokenFile": "latin", "token": "s3\0cret"}, "user u: token: .* cannot be sent"),
        ({"token": ["s3cret"]}, r"user u: .*\$\.token"),
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
    (tmp_path / "latin").write_bytes(b"s3cret\xe4\n")
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
        (grant(token="pass-word\u20ac"), 0, "cannot be sent"),  # noqa: S106
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


@pytest.mark.parametrize("change", [{"args": ["\0"]}, {"env": [{"name": "A=B", "value": "c"}]}])
def test_a_plugin_that_cannot_be_called(
    write: Callable[..., str], tmp_path: Path, change: dict[str, Any]
) -> None:
    path = write({"exec": {**plugin(tmp_path, grant()), **change}})
    assert "exec plugin ./plugin" in str(_told(lambda: connect(path, "")))


def test_a_plugin_is_told_only_what_json_has(write: Callable[..., str], tmp_path: Path) -> None:
    asked = {**plugin(tmp_path, grant(token="t")), "provideClusterInfo": True}  # noqa: S106
    extension = {"name": "client.authentication.k8s.io/exec", "extension": "DAY"}
    path = Path(write({"exec": asked}, extensions=[extension]))
    path.write_text(path.read_text().replace('"DAY"', "!!timestamp 2026-01-01"))
    assert "exec plugin ./plugin" in str(_told(lambda: connect(str(path), "")))


def test_an_answer_needs_no_kind(write: Callable[..., str], tmp_path: Path) -> None:
    nulls = {"clientCertificateData": None, "clientKeyData": None, "expirationTimestamp": None}
    answer = {**grant(token="t", **nulls), "kind": None}  # noqa: S106
    assert seen(write({"exec": plugin(tmp_path, answer)})) == ["Bearer t"]
    del answer["kind"]
    assert seen(write({"exec": plugin(tmp_path, answer)})) == ["Bearer t"]


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
        ({"certificate-authority": "broken.crt"}, "cluster c: certificate-authority broken.crt: "),
    ],
)
def test_unusable_clusters(
    write: Callable[..., str], tmp_path: Path, cluster: dict[str, Any], message: str
) -> None:
    (tmp_path / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    path = write({"token": "t"}, **cluster)
    assert message in str(_told(lambda: connect(path, "")))


def test_a_key_with_a_password_is_refused(
    write: Callable[..., str], certificates: Path, tmp_path: Path
) -> None:
    """OpenSSL would ask for the password on the terminal."""
    locked = tmp_path / "locked.key"
    encrypt: list[str | Path] = ["openssl", "ec", "-aes256", "-passout", "pass:p", "-out", locked]
    subprocess.run([*encrypt, "-in", certificates / "reader.key"], check=True, capture_output=True)
    user = {"client-certificate": str(certificates / "reader.crt"), "client-key": str(locked)}
    path = write(user)
    error = _told(lambda: connect(path, ""))
    assert f"user u: client-certificate {user['client-certificate']}: the key" in str(error)


def test_secrets_are_not_shown(write: Callable[..., str], certificates: Path) -> None:
    key = certificates / "reader.key"
    user = {"client-certificate": str(certificates / "reader.crt"), "client-key": str(key)}
    access = Kubeconfig(write({**user, "token": "s3cret"})).read(refused=False)
    assert access.authorization == "Bearer s3cret"
    assert access.key == key.read_text()
    assert "s3cret" not in repr(access)
    assert "PRIVATE" not in repr(access)
