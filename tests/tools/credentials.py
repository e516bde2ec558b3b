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
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nftproxy.sources.apiserver import connect

_PLUGIN = """#!/bin/sh
test -n "$KUBERNETES_EXEC_INFO" || exit 1
cat <<'END'
{ANSWER}
END
"""


class _Echo(BaseHTTPRequestHandler):
    """Answers with whom it takes the client for."""

    def do_GET(self) -> None:
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        certificate: Mapping[str, Any] = connection.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for _, value in part]
        answer = json.dumps([self.headers.get("Authorization", ""), *names]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


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
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.crt", folder / "server.key")
    tls.load_verify_locations(folder / "ca.crt")
    tls.verify_mode = ssl.CERT_OPTIONAL
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as made:
        for kind, (user, expected) in kinds(folder, Path(made)).items():
            cluster = {
                "server": f"https://127.0.0.1:{server.server_port}",
                "certificate-authority": str(folder / "ca.crt"),
            }
            kubeconfig = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            path = Path(made) / "kubeconfig"
            path.write_text(json.dumps(kubeconfig))
            connection = connect(str(path), "")
            with connection.get("/", {}, silence=5) as answer:
                seen = json.loads(answer.body())
            connection.close()
            assert seen == expected, f"{kind}: {seen}, not {expected}"
            print(f"works: {kind}")
    server.shutdown()


if __name__ == "__main__":
    main()
