"""The connection to the API server: requests whose answers come as raw bytes.

Kubelets rotate tokens and certificates in place. So the files that say where the server is and who
we are count as out of date after a minute, and after a 401; then the next request reads them again
(contract 8.5.1). If that fails, what is known stays in use.

The rate limits of the configuration (`qps`, `burst`) are accepted without effect: there are four
streams, and each pauses after an error, so that requests stay below even the default of 5 a second.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple, Protocol, Self
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
import yaml
from loguru import logger

from nftproxy.errors import ConfigError, NftproxyError
from nftproxy.sources.access import (
    Access,
    distrusted,
    parsed,
    proxy_of,
    service_account,
    tls,
    url,
)
from nftproxy.sources.encoding import JSON
from nftproxy.sources.kubeconfig import Kubeconfig

CONNECT_TIMEOUT: Final = 10.0
CREDENTIALS_LAST: Final = 60.0

# A dead peer is noticed after 10 + 3 x 5 s, whether the stream is idle (keep-alive) or something
# was sent (user timeout).
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
)
_CONNECTIONS: Final = 8
"""That stay open between requests: a watch for each resource, and an event now and then."""
_AGENT: Final = f"nftproxy/{version('nftproxy')}"
"""Who asks. Read once: an upgrade removes the package's metadata while its process still runs."""
_TROUBLE: Final = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
_UNREADABLE: Final = (ConfigError, OSError, ValueError, yaml.YAMLError, msgspec.ValidationError)


class TransportError(NftproxyError):
    """The connection failed; the text says how."""


class SilentError(TransportError):
    """The server was silent for longer than the request allowed."""


class RequestObserver(Protocol):
    """Counts requests and restarts of watches; called from several threads."""

    def requested(self, *, code: str, method: str, host: str, seconds: float) -> None:
        """Count a request by the code of its answer, `<error>` without one (contract 7.4.17).

        `seconds` passed until the head of the answer, or the failure.
        """

    def watch_restarted(self, resource: str) -> None:
        """Count a list or watch that ended early and starts again after a pause."""


class NoObserver:
    """Counts nothing."""

    def requested(self, *, code: str, method: str, host: str, seconds: float) -> None:
        """Ignore a request."""

    def watch_restarted(self, resource: str) -> None:
        """Ignore a restart."""


class ApiAnswer:
    """An answer with an unread body. A context manager; leave it in the thread that reads."""

    def __init__(self, response: urllib3.BaseHTTPResponse, access: Access) -> None:
        self._response = response
        self._access = access
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    @property
    def retry_after(self) -> float:
        """The seconds that the server asks to wait, or 0.

        API servers do not use the form with a date.
        """
        text = self._response.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else 0.0

    def body(self) -> bytes:
        """Return the whole body. The connection is then free for the next request."""
        with _explained(self._access):
            body = self._response.read()
            self._response.release_conn()
            return body

    def chunks(self) -> Iterator[bytes]:
        """Yield the body piece by piece, as soon as there is something to read."""
        with _explained(self._access):
            while piece := self._response.read1(65536):
                yield piece
            self._response.release_conn()

    def abort(self) -> None:
        """Wake the reading thread with an error. Called from another thread."""
        with contextlib.suppress(*_TROUBLE, RuntimeError):  # it may just have ended
            self._response.shutdown()


class Credentials(Protocol):
    """Reads where the API server is and who we are."""

    def __call__(self, *, refused: bool) -> Access:
        """Return what counts now; ConfigError if it is unusable.

        `refused` says that the server did not accept the last ones.
        """


class _Session(NamedTuple):
    """Everything derived from the configuration and credentials of one moment."""

    access: Access
    base: str
    host: str  # and port, for logs and metrics: without credentials that the URL may have
    headers: Mapping[str, str]
    pool: urllib3.PoolManager


class ApiConnection:
    """Sends requests to the API server. All methods may be called from any thread."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        accept: str = JSON,
        observer: RequestObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read `credentials` for the first time; ConfigError if they are unusable.

        `accept` is what readers that know both encodings ask for.
        """
        self._credentials = credentials
        self.accept = accept
        self.observer = observer or NoObserver()
        self._clock = clock
        self._lock = threading.Lock()
        self._refused = False
        self._session = _session(credentials(refused=False))
        self._read = clock()

    def get(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        silence: float,
        headers: Mapping[str, str] | None = None,
    ) -> ApiAnswer:
        """Send a GET; TransportError without an answer, SilentError after `silence` seconds."""
        return self.request("GET", path, query, silence=silence, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = 30.0,
    ) -> ApiAnswer:
        """Send a request and return the answer, whatever its status.

        Errors are as for `get`; `silence` applies to each read, too.
        """
        session = self._current()
        code, begin = "<error>", time.monotonic()
        try:
            with _explained(session.access):
                response = session.pool.request(
                    method,
                    session.base + path + ("?" + urlencode(query) if query else ""),
                    body=body,
                    headers={**session.headers, **(headers or {})},
                    preload_content=False,
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=silence),
                )
            code = str(response.status)
            return ApiAnswer(response, session.access)
        finally:
            self.observer.requested(
                code=code, method=method, host=session.host, seconds=time.monotonic() - begin
            )

    @property
    def server(self) -> str:
        """The host and port of the API server."""
        return self._session.host

    def renew(self) -> None:
        """Read the credentials again before the next request: the server refused them."""
        self._refused = True

    def close(self) -> None:
        """Close the idle connections."""
        self._session.pool.clear()

    def _current(self) -> _Session:
        with self._lock:
            if self._refused or self._clock() - self._read >= CREDENTIALS_LAST:
                refused, self._refused = self._refused, False
                self._read = self._clock()
                try:
                    self._begin(self._credentials(refused=refused))
                except ConfigError as error:
                    logger.warning("API server: keeping the credentials read before: {}", error)
            return self._session

    def _begin(self, access: Access) -> None:
        """Make new connections from now on, if anything has changed; open streams continue."""
        before = self._session
        if access != before.access:
            self._session = _session(access)
            before.pool.clear()


def _session(access: Access) -> _Session:
    """Prepare requests; ConfigError for a URL, certificates or a proxy that cannot be used."""
    pool: urllib3.PoolManager
    context = tls(access)
    settings: dict[str, Any] = {
        "ssl_context": context,
        "server_hostname": access.server_name or None,
        "socket_options": _SOCKET_OPTIONS,
        "maxsize": _CONNECTIONS,
    }
    if not access.verified:  # urllib3 would warn of what the configuration asks for
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    parsed(access.server, "server")
    if proxy := proxy_of(access):
        pool = urllib3.ProxyManager(
            proxy.url, proxy_headers=proxy.headers, proxy_ssl_context=context, **settings
        )
    else:
        pool = urllib3.PoolManager(**settings)
    headers = {"Accept": JSON, "User-Agent": _AGENT}
    if access.authorization:
        headers["Authorization"] = access.authorization
    base = access.server.rstrip("/")
    host = urlsplit(base).netloc.rpartition("@")[2]
    return _Session(access, base, host, headers, pool)


def connect(
    kubeconfig: str,
    master: str,
    *,
    accept: str = JSON,
    observer: RequestObserver | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ApiConnection:
    """Return the configured connection (contract 8.5.1); ConfigError if the configuration is wrong.

    `kubeconfig` is a file, `master` a URL that replaces the server in it. If both are empty, the
    pod's service account counts.
    """
    return ApiConnection(
        _credentials(kubeconfig, master), accept=accept, observer=observer, clock=clock
    )


def _credentials(kubeconfig: str, master: str) -> Credentials:
    file = Kubeconfig(kubeconfig, master) if kubeconfig else None
    what = f"kubeconfig {kubeconfig}" if kubeconfig else "in-cluster credentials"

    def read(*, refused: bool) -> Access:
        if not file and master:
            return Access(server=url(master, secure=False))
        try:
            return file.read(refused=refused) if file else service_account()
        except _UNREADABLE as error:
            hint = getattr(error, "hint", "") or (
                "name a kubeconfig file with clientConnection.kubeconfig or --kubeconfig, or run "
                "in a pod with a service account"
            )
            raise ConfigError([f"{what}: {_line(error)}"], hint=hint) from error

    return read


@contextlib.contextmanager
def _explained(access: Access) -> Iterator[None]:
    """Turn an error of urllib3 into a TransportError with a readable text."""
    try:
        yield
    except urllib3.exceptions.ReadTimeoutError as error:
        raise SilentError("the API server is silent") from error
    except _TROUBLE as error:
        proxy = isinstance(error, urllib3.exceptions.ProxyError)
        cause, hint = _cause(error), ""
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = distrusted(cause, access, "the proxy" if proxy else "the API server")
        raise TransportError(f"{'proxy: ' if proxy else ''}{_line(cause)}", hint=hint) from error


def _cause(error: BaseException) -> BaseException:
    """Return the innermost cause; urllib3 wraps it in several layers, once as an argument."""
    while isinstance(
        inner := error.__cause__ or error.__context__ or next(iter(error.args), None),
        OSError | http.client.HTTPException | urllib3.exceptions.HTTPError,
    ):
        error = inner
    return error


def _line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
