"""Each kind of credentials of a kubeconfig, sent to a server.

Run where nftproxy's packages are not all there.

    python3 credentials.py FOLDER

A program of its own, because an image has no tests: FOLDER has ca.crt, and certificate and key of
`server` and of the user `reader`.
"""

import base64
import json
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nftproxy.sources.apiserver import ApiConnection, connect

_PLUGIN = """#!/bin/sh
test -n "$KUBERNETES_EXEC_INFO" || exit 1
cat <<'END'
{ANSWER}
END
"""


class _Whoami(BaseHTTPRequestHandler):
    """Answers with whom it takes the client for, and from which port that was said."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        certificate: Mapping[str, Any] = connection.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for _, value in part]
        header = self.headers.get("Authorization", "")
        answer = json.dumps({"seen": [header, *names], "port": self.client_address[1]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that ends the handshake, as one does that distrusts us."""


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve on a port of 127.0.0.1, with the certificate `server` of a folder."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.crt", folder / "server.key")
    tls.load_verify_locations(folder / "ca.crt")
    tls.verify_mode = ssl.CERT_OPTIONAL
    server = _Server(("127.0.0.1", 0), _Whoami)
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(path: Path, user: Mapping[str, Any], **cluster: Any) -> str:
    """Write a kubeconfig file with one user and one cluster; return its path."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return str(path)


def whoami(connection: ApiConnection) -> Mapping[str, Any]:
    """Ask the server whom it takes us for."""
    with connection.get("/", {}, silence=5) as answer:
        found: Mapping[str, Any] = json.loads(answer.body())
        return found


def kinds(folder: Path, work: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return what a kubeconfig says of its user, and whom the server then has to take it for."""
    certificate, key = folder / "reader.crt", folder / "reader.key"
    (work / "token").write_text("from-file\n")

    def plugin(name: str, **status: str) -> dict[str, Any]:
        version = "client.authentication.k8s.io/v1"
        answer = {"kind": "ExecCredential", "apiVersion": version, "status": status}
        path = work / name
        path.write_text(_PLUGIN.replace("{ANSWER}", json.dumps(answer)))
        path.chmod(0o755)
        return {"exec": {"apiVersion": version, "command": str(path), "interactiveMode": "Never"}}

    pair = {
        "clientCertificateData": certificate.read_text(),
        "clientKeyData": key.read_text(),
    }
    inline = {
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
    }
    files = {"client-certificate": str(certificate), "client-key": str(key)}
    return {
        "token": ({"token": "inline"}, ["Bearer inline"]),
        "token file": ({"tokenFile": str(work / "token")}, ["Bearer from-file"]),
        "exec plugin, token": (plugin("token-plugin", token="of-plugin"), ["Bearer of-plugin"]),  # noqa: S106
        "exec plugin, certificate": (plugin("pair-plugin", **pair), ["", "reader"]),
        "certificate in files": (files, ["", "reader"]),
        "certificate inline": (inline, ["", "reader"]),
    }


def main() -> None:
    """Try all kinds against a server of our own; an AssertionError names the one that fails."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as made, serving(folder) as port:
        for kind, (user, expected) in kinds(folder, Path(made)).items():
            cluster = {
                "server": f"https://127.0.0.1:{port}",
                "certificate-authority": str(folder / "ca.crt"),
            }
            connection = connect(kubeconfig(Path(made) / "kubeconfig", user, **cluster), "")
            seen = whoami(connection)["seen"]
            connection.close()
            assert seen == expected, f"{kind}: {seen}, not {expected}"
            print(f"works: {kind}")


if __name__ == "__main__":
    main()
