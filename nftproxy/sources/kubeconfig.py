"""Kubeconfig files: which API server to ask, and as whom.

What is read here is all that kube-proxy reads, but impersonation (`as`), which is refused: nobody
would notice that it had no effect. The Kubernetes client for Python would read these files, too; it
takes 0.3 s of each start and 16 MB of each node for it (docs/decisions.md).
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from nftproxy import kubeyaml
from nftproxy.errors import ConfigError
from nftproxy.sources.access import Access, bearer, pem, url
from nftproxy.sources.credentialplugin import CredentialPlugin, Grant


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    extensions: list[Mapping[str, Any]] | None = None


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    exec: CredentialPlugin | None = None
    auth_provider: Mapping[str, Any] | None = None
    impersonated: str = msgspec.field(default="", name="as")


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _Config(msgspec.Struct, frozen=True, rename="kebab"):
    kind: Literal["Config", ""] = ""
    api_version: Literal["v1", ""] = msgspec.field(default="", name="apiVersion")
    current_context: str = ""
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None


class _WithName(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_WithName)


class Kubeconfig:
    """A kubeconfig file, which may change, and the credentials that its plugin handed out."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._asked: CredentialPlugin | None = None
        self._grant = Grant()

    def read(self, *, refused: bool) -> Access:
        """Return what the file says now, with all that it names.

        A plugin is asked when it was not asked before, when its credentials have expired, and when
        the server `refused` them. ConfigError, OSError, ValueError, yaml.YAMLError and
        msgspec.ValidationError say what is wrong, without credentials in their texts.
        """
        documents = kubeyaml.documents(self._path.read_text(encoding="utf-8"))
        file = msgspec.convert(documents[0] if documents else {}, _Config)
        if not file.current_context:
            raise ConfigError(["current-context is not set"])
        context = _find("context", file.contexts, file.current_context).context
        cluster = _find("cluster", file.clusters, context.cluster).cluster
        user = _find("user", file.users, context.user).user if context.user else _User()
        if user.auth_provider or user.impersonated:
            field = "auth-provider" if user.auth_provider else "as"
            raise ConfigError([f"user {context.user}: {field} is not supported"])
        if not cluster.server:
            raise ConfigError([f"cluster {context.cluster}: server is not set"])
        authority = self._pem(cluster.certificate_authority_data, cluster.certificate_authority)
        if authority and cluster.insecure_skip_tls_verify:
            problem = "a certificate-authority and insecure-skip-tls-verify exclude each other"
            raise ConfigError([f"cluster {context.cluster}: {problem}"])
        found = Access(
            server=url(cluster.server, secure=bool(authority) or cluster.insecure_skip_tls_verify),
            server_name=cluster.tls_server_name,
            authority=authority,
            verified=not cluster.insecure_skip_tls_verify,
            proxy=cluster.proxy_url or None,
            certificate=self._pem(user.client_certificate_data, user.client_certificate),
            key=self._pem(user.client_key_data, user.client_key),
            authorization=self._authorization(user),
        )
        if bool(found.certificate) != bool(found.key):
            raise ConfigError([f"user {context.user}: certificate and key belong together"])
        if user.exec and not found.authorization and not found.certificate:
            found = self._granted(user.exec, cluster, found, refused=refused)
        return found

    def _pem(self, data: str, path: str) -> str:
        """Return what stands in the file itself, in base64, or else in the one that it names."""
        if data:
            return pem(base64.b64decode("".join(data.split()), validate=True), "the base64 text")
        return pem(self._beside(path).read_bytes(), path) if path else ""

    def _beside(self, path: str) -> Path:
        """Return a path of the file; a relative one begins at the file's folder."""
        return self._path.parent / path

    def _authorization(self, user: _User) -> str:
        if user.token_file:
            try:
                return bearer(self._beside(user.token_file).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                if not user.token:
                    raise
        if user.token:
            return bearer(user.token)
        if user.username:
            pair = f"{user.username}:{user.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        return ""

    def _granted(
        self, plugin: CredentialPlugin, cluster: _Cluster, access: Access, *, refused: bool
    ) -> Access:
        if refused or plugin != self._asked or self._grant.has_expired:
            self._grant = plugin.ask(self._path.parent, _described(cluster, access))
            self._asked = plugin
        return replace(
            access,
            authorization=bearer(self._grant.token) if self._grant.token else "",
            certificate=self._grant.client_certificate_data,
            key=self._grant.client_key_data,
        )


def _find(kind: str, named: Iterable[N] | None, name: str) -> N:
    found = [each for each in named or () if each.name == name]
    if len(found) != 1:
        raise ConfigError([f"{kind} {name!r} is in the file {len(found)} times"])
    return found[0]


def _described(cluster: _Cluster, access: Access) -> dict[str, Any]:
    """Return what a plugin may learn about the cluster, with what the file has for it alone."""
    settings = [
        each.get("extension")
        for each in cluster.extensions or ()
        if each.get("name") == "client.authentication.k8s.io/exec"
    ]
    about = {
        "server": access.server,
        "tls-server-name": access.server_name,
        "insecure-skip-tls-verify": not access.verified,
        "certificate-authority-data": base64.b64encode(access.authority.encode()).decode(),
        "proxy-url": access.proxy,
        "config": next(iter(settings), None),
    }
    return {name: value for name, value in about.items() if value}
