"""The connection to the API server.

Where it is, who we are, and requests whose answers come as raw bytes.

The `kubernetes` package reads configuration and credentials: kubeconfig files, in-cluster service
accounts, client certificates, exec plugins, proxies. It reads a token file once and keeps it, while
kubelets rotate tokens. So they are read again when they are a minute old and a request is due, and
after a 401 (contract 8.5.1). If that fails, the known credentials stay in use.

Import this module only where there is an API server: with `kubernetes` it takes 35 MB and 0.2 s.

The rate limits of the configuration (`qps`, `burst`) are accepted without effect: there are four
streams, and each pauses after an error, so that requests stay below even the default of 5 a second.
"""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self
from urllib.parse import urlencode, urlsplit

import urllib3
from loguru import logger

from nftproxy.errors import ConfigError, NftproxyError
from nftproxy.sources.encoding import JSON

if TYPE_CHECKING:
    from kubernetes.client import Configuration

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
_TROUBLE: Final = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)


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

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
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
        with _explained():
            body = self._response.read()
            self._response.release_conn()
            return body

    def chunks(self) -> Iterator[bytes]:
        """Yield the body piece by piece, as soon as there is something to read."""
        with _explained():
            while piece := self._response.read1(65536):
                yield piece
            self._response.release_conn()

    def abort(self) -> None:
        """Wake the reading thread with an error. Called from another thread."""
        with contextlib.suppress(*_TROUBLE, RuntimeError):  # it may just have ended
            self._response.shutdown()


class _Session(NamedTuple):
    """Everything derived from the configuration and credentials of one moment."""

    base: str
    host: str
    headers: Mapping[str, str]
    pool: urllib3.PoolManager
    loaded: float


class ApiConnection:
    """Sends requests to the API server. All methods may be called from any thread."""

    def __init__(
        self,
        load: "Callable[[], Configuration]",
        *,
        accept: str = JSON,
        observer: RequestObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read configuration and credentials by `load`; ConfigError if that fails at the start.

        `accept` is what readers that know both encodings ask for.
        """
        self._load = load
        self.accept = accept
        self.observer = observer or NoObserver()
        self._clock = clock
        self._lock = threading.Lock()
        self._outdated = False
        self._session = self._open()

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
            with _explained():
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
            return ApiAnswer(response)
        finally:
            self.observer.requested(
                code=code, method=method, host=session.host, seconds=time.monotonic() - begin
            )

    @property
    def server(self) -> str:
        """The host and port of the API server, without credentials in its URL."""
        return self._session.host.rpartition("@")[2]

    def renew(self) -> None:
        """Read the credentials again before the next request: the server refused them."""
        self._outdated = True

    def close(self) -> None:
        """Close the idle connections."""
        self._session.pool.clear()

    def _current(self) -> _Session:
        with self._lock:
            if self._outdated or self._clock() - self._session.loaded >= CREDENTIALS_LAST:
                self._outdated = False
                before = self._session
                try:
                    self._session = self._open()
                    before.pool.clear()  # open streams continue
                except ConfigError as error:
                    logger.warning("API server: keeping the credentials read before: {}", error)
                    self._session = before._replace(loaded=self._clock())
            return self._session

    def _open(self) -> _Session:
        from kubernetes.client.rest import RESTClientObject

        configuration = self._load()
        try:
            pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        except _TROUBLE as error:  # missing or invalid certificate files
            raise ConfigError([f"certificates for the API server: {_reason(error)}"]) from error
        pool.connection_pool_kw["socket_options"] = _SOCKET_OPTIONS
        headers = {"Accept": JSON, "User-Agent": f"nftproxy/{version('nftproxy')}"}
        settings: dict[str, Any] = dict(configuration.auth_settings())
        for each in settings.values():
            headers[each["key"]] = each["value"].strip()  # token files often end in a newline
        base = configuration.host.rstrip("/")
        return _Session(base, urlsplit(base).netloc, headers, pool, self._clock())


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
        lambda: _configuration(kubeconfig, master), accept=accept, observer=observer, clock=clock
    )


def _configuration(kubeconfig: str, master: str) -> "Configuration":
    import yaml
    from kubernetes import config
    from kubernetes.client import Configuration

    found = Configuration()
    try:
        if kubeconfig:
            # persist_config=False: never write the user's file.
            config.load_kube_config(
                config_file=kubeconfig, client_configuration=found, persist_config=False
            )  # type: ignore[no-untyped-call]
        elif not master:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except (
        config.ConfigException,
        yaml.YAMLError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        what = f"kubeconfig {kubeconfig}" if kubeconfig else "in-cluster credentials"
        hint = (
            "name a kubeconfig file with clientConnection.kubeconfig or --kubeconfig, or run "
            "in a pod with a service account"
        )
        raise ConfigError([f"{what}: {_reason(error)}"], hint=hint) from error
    found.refresh_api_key_hook = (
        None  # it would read the file again for each request, and reset the server
    )
    if master:
        scheme = "https" if found.host.startswith("https:") else "http"
        found.host = master if "://" in master else f"{scheme}://{master}"
    return found


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn an error of urllib3 into a TransportError with a readable text."""
    try:
        yield
    except urllib3.exceptions.ReadTimeoutError as error:
        raise SilentError("the API server is silent") from error
    except _TROUBLE as error:
        raise TransportError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line; urllib3 wraps it in several layers."""
    while isinstance(
        inner := error.__cause__ or error.__context__, OSError | http.client.HTTPException
    ):
        error = inner
    return " ".join(str(error).split())[:300] or type(error).__name__
