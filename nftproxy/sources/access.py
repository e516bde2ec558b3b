"""Where the API server is, who we are, and the way there, as one value.

All files that a configuration names are read into it, so that two readings can be compared: only
when something has changed, new connections are made.
"""

import base64
import os
import re
import ssl
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from urllib3.util import Url, parse_url

from nftproxy.address import bracketed
from nftproxy.errors import ConfigError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the API server's authority."""

_NOT_IN_TIME: Final = frozenset({9, 10})
_OTHER_NAME: Final = frozenset({62, 64})
"""OpenSSL's numbers for what is wrong with a certificate: X509_V_ERR_* in its x509_vfy.h."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to reach the API server, and what to show it. Secrets are not in its `repr`."""

    server: str
    """A URL: scheme, host, port and the beginning of each path."""
    server_name: str = ""
    """The name in the server's certificate, if it is not the host of the URL."""
    authority: str = ""
    """Certificates in PEM that vouch for the server; those of the system if empty."""
    authority_from: str = "the system's store of certificates"
    """Where `authority` was read, for messages."""
    verified: bool = True
    """Whether the server has to prove who it is."""
    proxy: str | None = None
    """The URL of an HTTP proxy; None leaves it to the environment."""
    certificate: str = ""
    """Our own certificate, in PEM."""
    certificate_from: str = ""
    """Where it and its key were read, for messages."""
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
    authority = SERVICE_ACCOUNT / "ca.crt"
    return Access(
        server=f"https://{bracketed(host)}:{port}",
        authority=pem(authority.read_bytes(), str(authority)),
        authority_from=str(authority),
        authorization=bearer(token_in(SERVICE_ACCOUNT / "token"), str(SERVICE_ACCOUNT / "token")),
    )


def url(server: str, *, secure: bool) -> str:
    """Return a server's URL; a configuration may leave the scheme out."""
    return server if "://" in server else f"{'https' if secure else 'http'}://{server}"


def is_secure(server: str) -> bool:
    """Say whether nobody on the way to a server can read what it is sent."""
    return urlsplit(server).scheme == "https"


def parsed(address: str, place: str) -> Url:
    """Return the parts of an HTTP URL; ConfigError, which does not quote it, for another text.

    The URL may have a password in it.
    """
    hint = f"{place} has to be http://HOST:PORT or https://HOST:PORT"
    try:
        found = parse_url(address)
    except ValueError as error:
        raise ConfigError([f"{place} is no URL"], hint=hint) from error
    if found.scheme not in ("http", "https"):
        scheme = f"{found.scheme}://" if found.scheme else "no scheme"
        raise ConfigError([f"{place} is a URL with {scheme}"], hint=hint)
    if not found.host:
        raise ConfigError([f"{place} names no host"], hint=hint)
    return found


def pem(content: bytes, place: str) -> str:
    """Return the certificates or the key in a file; ValueError for a file without any.

    An empty authority is a mistake: without a file, those of the system count. Comments may be in
    any language, which OpenSSL does not expect.
    """
    text = content.decode("ascii", errors="ignore")
    if "-----BEGIN" not in text:
        raise ValueError(f"{place} has no PEM in it")
    return text


def token_in(path: Path) -> str:
    """Return what a file has for a token. `bearer` refuses the characters of another encoding."""
    return path.read_text(encoding="utf-8", errors="replace")


def bearer(token: str, place: str) -> str:
    """Return the header for a token, which often ends in a newline.

    ConfigError, which does not quote it, if it is empty or no HTTP header can carry it.
    """
    if not (token := token.strip()):
        raise ConfigError([f"{place}: the token is empty"])
    if not re.fullmatch(r"[\t -~]+", token):
        hint = "a token is one line of ASCII without control characters: write it again"
        raise ConfigError([f"{place}: the token has characters that cannot be sent"], hint=hint)
    return f"Bearer {token}"


def basic(username: str, password: str) -> str:
    """Return the header for a name and a password."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def tls(access: Access) -> ssl.SSLContext:
    """Return what connections to the server and to its proxy use.

    ConfigError for unusable certificates. As for other Kubernetes clients, every certificate of
    `authority` is trusted by itself, and nothing is asked of its extensions: many clusters have
    authorities that lack some.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not access.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.authority:
        try:
            context.load_verify_locations(cadata=access.authority)
        except (OSError, ValueError) as error:
            hint = "each certificate in it has to be one that OpenSSL can read, in PEM"
            raise ConfigError([f"{access.authority_from}: {error}"], hint=hint) from error
    else:
        context.load_default_certs()
    if access.certificate:
        try:
            _show_certificate(context, access)
        except (OSError, ValueError) as error:
            hint = "certificate and key have to belong together, in PEM and without a password"
            raise ConfigError([f"{access.certificate_from}: {error}"], hint=hint) from error
    return context


def _show_certificate(context: ssl.SSLContext, access: Access) -> None:
    """Have connections show our own certificate."""
    # OpenSSL reads both from one file; this one has no name, and ends with the block.
    with os.fdopen(os.memfd_create("credentials"), "w", encoding="utf-8") as file:
        file.write(f"{access.certificate}\n{access.key}\n")
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=_no_password)


def _no_password() -> str:
    """Refuse a key with a password: OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a password")


def distrusted(error: ssl.SSLCertVerificationError, access: Access, whose: str) -> str:
    """Return what to check after a certificate was not accepted; `whose` is its owner."""
    if error.verify_code in _NOT_IN_TIME:
        return f"{whose}'s certificate has to be renewed, if the clock of this node is right"
    if error.verify_code in _OTHER_NAME:
        return f"the host in the URL of {whose} has to be one that its certificate names"
    return f"{access.authority_from} has to vouch for {whose}'s certificate"


class HttpProxy(NamedTuple):
    """An HTTP proxy, and the headers that it gets besides a request's own."""

    url: str
    headers: dict[str, str]


def proxy_of(access: Access) -> HttpProxy | None:
    """Return the proxy to use, if any; ConfigError for an unusable one.

    Without one in the configuration, HTTPS_PROXY, HTTP_PROXY and NO_PROXY decide, as for all that
    Go's programs ask for: kubeadm passes the three of its own environment on to kube-proxy.
    """
    place, chosen = "proxy-url", access.proxy
    if chosen is None:
        server = parsed(access.server, "server")
        place, port = ("HTTPS_PROXY", 443) if server.scheme == "https" else ("HTTP_PROXY", 80)
        chosen = _environment(place)
        host = (server.host or "").strip("[]")
        if not chosen or _direct(host, server.port or port, _environment("NO_PROXY")):
            return None
        chosen = chosen if "://" in chosen else f"http://{chosen}"
    username, _, password = (parsed(chosen, place).auth or "").partition(":")
    if not username and not password:
        return HttpProxy(chosen, {})
    return HttpProxy(chosen, {"proxy-authorization": basic(unquote(username), unquote(password))})


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
