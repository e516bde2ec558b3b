"""Kubeconfig files: which API server to ask, and as whom.

What is read here is all that kube-proxy reads, but impersonation (`as`), which is refused: nobody
would notice that it had no effect. The Kubernetes client for Python would read these files, too; it
takes 0.3 s of each start and 16 MB of each node for it (docs/decisions.md).
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from loguru import logger

from nftproxy import kubeyaml
from nftproxy.errors import ConfigError
from nftproxy.sources.access import Access, basic, bearer, is_secure, parsed, pem, token_in, url
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


class _Config(msgspec.Struct, frozen=True, rename="kebab"):
    """A file. Of the entries in its lists, only those that count are looked at."""

    kind: Literal["Config", ""] = ""
    api_version: Literal["v1", ""] = msgspec.field(default="", name="apiVersion")
    current_context: str = ""
    clusters: list[Any] | None = None
    users: list[Any] | None = None
    contexts: list[Any] | None = None


T = TypeVar("T")


class Kubeconfig:
    """A kubeconfig file, which may change, and the credentials that its plugin handed out."""

    def __init__(self, path: str, master: str = "") -> None:
        """Take the server from `master` instead of the file, unless it is empty."""
        self._path = Path(path)
        self._master = master
        self._asked: CredentialPlugin | None = None
        self._grant = Grant()
        self._warned = False

    def read(self, *, refused: bool) -> Access:
        """Return what the file says now, with all that it names.

        A plugin is asked when it was not asked before, when its credentials have expired, and when
        the server `refused` them. ConfigError, OSError, ValueError, yaml.YAMLError and
        msgspec.ValidationError say what is wrong, without credentials in their texts.
        """
        documents = kubeyaml.documents(self._path.read_text(encoding="utf-8"))
        file = kubeyaml.convert(documents[0] if documents else {}, _Config)
        if not file.current_context:
            raise ConfigError(["current-context is not set"])
        context = _find("context", file.contexts, file.current_context, _Context)
        cluster = _find("cluster", file.clusters, context.cluster, _Cluster)
        user = _find("user", file.users, context.user, _User) if context.user else _User()
        if user.auth_provider or user.impersonated:
            field = "auth-provider" if user.auth_provider else "as"
            raise ConfigError([f"user {context.user}: {field} is not supported"])
        if not cluster.server:
            raise ConfigError([f"cluster {context.cluster}: server is not set"])
        place, authority = self._pem(
            f"cluster {context.cluster}: certificate-authority",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )
        if authority and cluster.insecure_skip_tls_verify:
            problem = "a certificate-authority and insecure-skip-tls-verify exclude each other"
            raise ConfigError([f"cluster {context.cluster}: {problem}"])
        found = Access(
            server=self._server(cluster, secure=bool(authority)),
            server_name=cluster.tls_server_name,
            authority=authority,
            verified=not cluster.insecure_skip_tls_verify,
            proxy=cluster.proxy_url or None,
        )
        if found.proxy:
            parsed(found.proxy, f"cluster {context.cluster}: proxy-url")
        if authority:
            found = replace(found, authority_from=place)
        if is_secure(found.server):
            return self._with_credentials(found, cluster, context.user, user, refused=refused)
        if user != _User() and not self._warned:
            self._warned = True
            logger.warning(
                "kubeconfig {}: the server is reached by http, where others could read along; the "
                "credentials of user {} are not sent. Name it by https",
                self._path,
                context.user,
            )
        return found

    def _server(self, cluster: _Cluster, *, secure: bool) -> str:
        """Return the URL that counts. `master` may leave the scheme to the file."""
        server = url(cluster.server, secure=secure or cluster.insecure_skip_tls_verify)
        return url(self._master, secure=is_secure(server)) if self._master else server

    def _with_credentials(
        self,
        access: Access,
        cluster: _Cluster,
        name: str,
        user: _User,
        *,
        refused: bool,
    ) -> Access:
        """Add what the server is to be shown."""
        place, certificate = self._pem(
            f"user {name}: client-certificate",
            user.client_certificate_data,
            user.client_certificate,
        )
        _, key = self._pem(f"user {name}: client-key", user.client_key_data, user.client_key)
        if bool(certificate) != bool(key):
            raise ConfigError([f"user {name}: certificate and key belong together"])
        authorization = self._authorization(name, user)
        if user.exec and not authorization and not certificate:
            return self._granted(user.exec, cluster, access, refused=refused)
        return replace(
            access,
            certificate=certificate,
            certificate_from=place,
            key=key,
            authorization=authorization,
        )

    def _pem(self, field: str, data: str, path: str) -> tuple[str, str]:
        """Return a place and the text in it: the file itself, in base64, or one that it names."""
        if data:
            place = f"{field}-data"
            try:
                content = base64.b64decode("".join(data.split()), validate=True)
            except ValueError as error:
                raise ConfigError([f"{place} is no base64"]) from error
            return place, pem(content, place)
        place = f"{field} {path}"
        return place, pem(self._beside(path).read_bytes(), place) if path else ""

    def _beside(self, path: str) -> Path:
        """Return a path of the file; a relative one begins at the file's folder."""
        return self._path.parent / path

    def _authorization(self, name: str, user: _User) -> str:
        if user.token_file:
            path = self._beside(user.token_file)
            try:
                return bearer(token_in(path), f"user {name}: tokenFile {path}")
            except (OSError, ConfigError):
                if not user.token:
                    raise
        if user.token:
            return bearer(user.token, f"user {name}: token")
        if user.username:
            return basic(user.username, user.password)
        return ""

    def _granted(
        self, plugin: CredentialPlugin, cluster: _Cluster, access: Access, *, refused: bool
    ) -> Access:
        if refused or plugin != self._asked or self._grant.has_expired:
            self._grant = plugin.ask(self._path.parent, _described(cluster, access))
            self._asked = plugin
        token, place = self._grant.token, f"exec plugin {plugin.command}"
        return replace(
            access,
            authorization=bearer(token, place) if token else "",
            certificate=self._grant.client_certificate_data,
            certificate_from=place,
            key=self._grant.client_key_data,
        )


def _find(kind: str, entries: Iterable[Any] | None, name: str, to: type[T]) -> T:
    """Return the entry with a name. What the others say does not matter."""
    found = [
        each.get(kind)
        for each in entries or ()
        if isinstance(each, Mapping) and each.get("name") == name
    ]
    if len(found) != 1:
        raise ConfigError([f"{kind} {name!r} is in the file {len(found)} times"])
    try:
        return kubeyaml.convert({} if found[0] is None else found[0], to)
    except msgspec.ValidationError as error:
        raise ConfigError([f"{kind} {name}: {error}"]) from error


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
