"""Keys and certificates for servers and clients of tests, made with the `openssl` program."""

import ssl
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path


class Authority:
    """A certificate authority that lives in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.own = Certificate(folder / "ca.crt", folder / "ca.key")
        extensions = [
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]
        _openssl(
            "req",
            "-x509",
            *_new_key(self.own.key),
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-out",
            self.own.certificate,
            *extensions,
        )

    def server(
        self, name: str, addresses: Iterable[str], *, names: Iterable[str] = (), days: int = 2
    ) -> Certificate:
        """Return a certificate for a server that is reached by IP addresses, and by names.

        With -1 `days`, its time is over.
        """
        listed = ",".join([*(f"IP:{each}" for each in addresses), *(f"DNS:{n}" for n in names)])
        return self._issue(
            name,
            f"/CN={name}",
            [f"subjectAltName={listed}", "extendedKeyUsage=serverAuth"],
            days=days,
        )

    def client(self, user: str, group: str = "") -> Certificate:
        """Return a certificate that makes its bearer a user in Kubernetes, in a group."""
        return self._issue(
            user.replace(":", "-"),
            (f"/O={group}" if group else "") + f"/CN={user}",
            ["extendedKeyUsage=clientAuth"],
        )

    def _issue(
        self, name: str, subject: str, extensions: list[str], *, days: int = 2
    ) -> Certificate:
        made = Certificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        request, config = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        config.write_text("\n".join(extensions) + "\n")
        _openssl("req", *_new_key(made.key), "-subj", subject, "-out", request)
        by: list[str | Path] = [
            "-CA",
            self.own.certificate,
            "-CAkey",
            self.own.key,
            "-CAcreateserial",
            "-days",
            str(days),
            "-extfile",
            config,
        ]
        _openssl("x509", "-req", "-in", request, *by, "-out", made.certificate)
        return made


def server_tls(folder: Path) -> ssl.SSLContext:
    """Return what a server at 127.0.0.1 listens with, of an authority made in a folder."""
    ours = Authority(folder).server("server", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.certificate, ours.key)
    return context


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a private and a public key, to sign tokens with."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
    _openssl("ec", "-in", private, "-pubout", "-out", public)
    return private, public


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
