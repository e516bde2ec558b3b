"""Requests to the API server of a `controlplane`.

Create, change and delete objects, many at the same time.

Callers are in a namespace with a route to the server: sockets and threads belong to that of the
thread that makes them.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Final, NamedTuple

import msgspec
import urllib3

from nftproxy.errors import NftproxyError

_SIDE_BY_SIDE: Final = 16  # requests; more are not faster on two processors
_PATIENCE: Final = 30.0  # seconds
_STEP: Final = 100  # objects between two reports of progress

Document = dict[str, Any]


class ApiServer(msgspec.Struct, frozen=True):
    """The address of the server and the credentials.

    `certificate` is a file that its certificate is checked with.
    """

    url: str
    certificate: str
    token: str

    def kubeconfig(self) -> Document:
        """Return the same as a kubeconfig."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "bench",
                    "cluster": {"server": self.url, "certificate-authority": self.certificate},
                }
            ],
            "users": [{"name": "bench", "user": {"token": self.token}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        }


class Collection(NamedTuple):
    """Objects of one kind, by where the server has them."""

    path: str

    def item(self, document: Document) -> str:
        """Return where an object is."""
        return f"{self.path}/{document['metadata']['name']}"


NODES: Final = Collection("/api/v1/nodes")
SERVICES: Final = Collection("/api/v1/namespaces/default/services")
SLICES: Final = Collection("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")


class Api:
    """The server, for one process."""

    def __init__(self, access: ApiServer) -> None:
        self._url = access.url
        self._pool = urllib3.PoolManager(
            maxsize=_SIDE_BY_SIDE,
            ca_certs=access.certificate,
            headers={"Authorization": f"Bearer {access.token}", "Content-Type": "application/json"},
            timeout=_PATIENCE,
            retries=False,
        )

    def create(self, collection: Collection, document: Document) -> None:
        """Create an object, with its status."""
        self._ask("POST", collection.path, document)
        if "status" in document:
            self._ask("PUT", f"{collection.item(document)}/status", document)

    def put(self, collection: Collection, document: Document) -> bool:
        """Create or change an object; return whether watchers see a difference."""
        path = collection.item(document)
        before = self._ask("GET", path, missing=True)
        if before is None:
            self.create(collection, document)
            return True
        return self._ask("PUT", path, document) != before

    def delete(self, collection: Collection, document: Document) -> bool:
        """Delete an object; watchers always see that."""
        self._ask("DELETE", collection.item(document))
        return True

    def create_all(
        self, objects: Iterable[tuple[Collection, Document]], progress: Callable[[int], None]
    ) -> None:
        """Create many objects; `progress` gets their number now and then."""
        made = 0
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as threads:
            waiting = set()
            for collection, document in objects:
                waiting.add(threads.submit(self.create, collection, document))
                if len(waiting) >= _STEP:
                    done, waiting = wait(waiting, return_when=FIRST_EXCEPTION)
                    for each in done:
                        each.result()
                    made += len(done)
                    progress(made)
            for each in waiting:
                each.result()

    def _ask(
        self, method: str, path: str, document: Document | None = None, *, missing: bool = False
    ) -> str | None:
        """Return the version of the object; None if it is missing and may be."""
        body = None if document is None else msgspec.json.encode(document)
        try:
            answer = self._pool.request(method, self._url + path, body=body)
        except urllib3.exceptions.HTTPError as error:
            raise NftproxyError(f"the API server does not answer: {error}") from error
        if answer.status == 404 and missing:
            return None
        if answer.status >= 300:
            raise NftproxyError(
                f"the API server refuses {method} {path}: "
                f"{answer.data.decode(errors='replace')[:300]}"
            )
        return msgspec.json.decode(answer.data, type=_Answer).metadata.version


class _Version(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")


class _Answer(msgspec.Struct):
    metadata: _Version = msgspec.field(default_factory=_Version)
