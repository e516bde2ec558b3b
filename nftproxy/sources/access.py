"""Where the API server is, who we are, and the way there, as one value.

All files that a configuration names are read into it, so that two readings can be compared: only
when something has changed, new connections are made.
"""

import os
import ssl
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from nftproxy.address import bracketed
from nftproxy.errors import ConfigError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the API server's authority."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to reach the API server, and what to show it. Secrets are not in its `repr`."""

    server: str
    """A URL: scheme, host, port and the beginning of each path."""
    server_name: str = ""
    """The name in the server's certificate, if it is not the host of the URL."""
    authority: str = ""
    """Certificates in PEM that vouch for the server; those of the system if empty."""
    verified: bool = True
    """Whether the server has to prove who it is."""
    proxy: str | None = None
    """The URL of an HTTP proxy; None leaves it to the environment."""
    certificate: str = ""
    """Our own certificate, in PEM."""
    key: str = field(default="", repr=False)
    """The key of that certificate, in PEM."""
    authorization: str = field(default="", repr=False)
    """The header Authorization of each request; not sent if empty."""


def service_account() -> Access:
    """Return what a pod is given (contract 8.5.1).

    ConfigError where there is no such thing, OSError for a file that cannot be read.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise ConfigError(["KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"])
    return Access(
        server=f"https://{bracketed(host)}:{port}",
        authority=pem((SERVICE_ACCOUNT / "ca.crt").read_bytes(), "ca.crt"),
        authorization=bearer((SERVICE_ACCOUNT / "token").read_text(encoding="utf-8")),
    )


def url(server: str, *, secure: bool) -> str:
    """Return a server's URL; a configuration may leave the scheme out."""
    return server if "://" in server else f"{'https' if secure else 'http'}://{server}"


def pem(content: bytes, place: str) -> str:
    """Return the certificates or the key in a file; ValueError for a file without any.

    An empty authority is a mistake: without a file, those of the system count. Comments may be in
    any language, which OpenSSL does not expect.
    """
    text = content.decode("ascii", errors="ignore")
    if "-----BEGIN" not in text:
        raise ValueError(f"{place} has no PEM in it")
    return text


def bearer(token: str) -> str:
    """Return the header for a token, which often ends in a newline; ValueError if it is empty."""
    if not (token := token.strip()):
        raise ValueError("the token is empty")
    return f"Bearer {token}"


def tls(access: Access) -> ssl.SSLContext:
    """Return what connections to the server use; OSError for unusable certificates.

    As for other Kubernetes clients, every certificate of `authority` is trusted by itself, and
    nothing is asked of its extensions: many clusters have authorities that lack some.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not access.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.authority:
        context.load_verify_locations(cadata=access.authority)
    else:
        context.load_default_certs()
    if access.certificate:
        # OpenSSL reads both from one file; this one has no name, and ends with the block.
        with os.fdopen(os.memfd_create("credentials"), "w", encoding="utf-8") as file:
            file.write(f"{access.certificate}\n{access.key}\n")
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=_no_password)
    return context


def _no_password() -> str:
    """Refuse a key with a password: OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a password")


def proxy_of(access: Access) -> str:
    """Return the URL of the proxy to use, or an empty text.

    Without one in the configuration, HTTPS_PROXY, HTTP_PROXY and NO_PROXY decide, as for all that
    Go's programs ask for: kubeadm passes the three of its own environment on to kube-proxy.
    """
    if access.proxy is not None:
        return access.proxy
    server = urlsplit(access.server)
    name, port = ("HTTPS_PROXY", 443) if server.scheme == "https" else ("HTTP_PROXY", 80)
    chosen = _environment(name)
    if not chosen or _direct(server.hostname or "", server.port or port, _environment("NO_PROXY")):
        return ""
    return chosen if "://" in chosen else f"http://{chosen}"


def _environment(name: str) -> str:
    return os.environ.get(name) or os.environ.get(name.lower(), "")


def _direct(host: str, port: int, exceptions: str) -> bool:
    """Say whether a list as in NO_PROXY exempts a host, and ourselves always.

    Its entries are `*`, addresses, CIDRs and domains, the last with what is below them; `.domain`
    and `*.domain` are only what is below. Addresses and domains may end in a port.
    """
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address and address.is_loopback):
        return True
    return any(
        entry == "*"
        or (_is_address(entry, address, port) if address else _is_name(entry, host, port))
        for entry in (each.strip() for each in exceptions.lower().split(","))
    )


def _is_name(entry: str, host: str, port: int) -> bool:
    """Say whether an entry is a host's name, or a domain above it."""
    name = entry.removesuffix(f":{port}")
    below = name.removeprefix("*.").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{below}"))


def _is_address(entry: str, address: IPv4Address | IPv6Address, port: int) -> bool:
    """Say whether an entry is an address, with the port or without, or a CIDR with it in it."""
    if entry in {str(address), f"{bracketed(str(address))}:{port}"}:
        return True
    try:
        return "/" in entry and address in ip_network(entry, strict=False)
    except ValueError:
        return False
