"""Kubeconfig files: which API server to ask, and as whom.

Their fields are those of `Config` in Kubernetes' `client.config.k8s.io/v1` and, for programs that
hand out credentials, of `client.authentication.k8s.io/v1`. What is read here is all that kube-proxy
reads, but impersonation (`as`), which is refused: nobody would notice that it had no effect.

`nftproxy` reads these files itself because the Kubernetes client for Python takes 0.3 s of each
start and 16 MB of each node to do it (docs/decisions.md).
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec
import yaml

from nftproxy import kubeyaml
from nftproxy.errors import ConfigError
from nftproxy.sources.access import Access, bearer, pem, url

_PLUGIN_SECONDS: Final = 60
"""A program that hands out credentials may ask a server for them, but must come to an end."""


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    extensions: list[Mapping[str, Any]] | None = None


class _Plugin(msgspec.Struct, frozen=True, rename="camel"):
    command: str
    api_version: Literal["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"]
    args: list[str] | None = None
    env: list[Mapping[str, str]] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: Literal["Never", "IfAvailable", "Always", ""] = ""


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    exec: _Plugin | None = None
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


class _Grant(msgspec.Struct, frozen=True, rename="camel"):
    """The credentials that a plugin prints."""

    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _Credential(msgspec.Struct, frozen=True, rename="camel"):
    kind: Literal["ExecCredential"]
    api_version: str
    status: _Grant


class _WithName(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=_WithName)


class Kubeconfig:
    """A kubeconfig file, which may change, and the credentials that its plugin handed out."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._asked: _Plugin | None = None
        self._grant = _Grant()

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
        self, plugin: _Plugin, cluster: _Cluster, access: Access, *, refused: bool
    ) -> Access:
        until = self._grant.expiration_timestamp
        if refused or plugin != self._asked or (until and until <= datetime.now(UTC)):
            self._grant = self._ask(plugin, cluster, access)
            self._asked = plugin
        return replace(
            access,
            authorization=bearer(self._grant.token) if self._grant.token else "",
            certificate=self._grant.client_certificate_data,
            key=self._grant.client_key_data,
        )

    def _ask(self, plugin: _Plugin, cluster: _Cluster, access: Access) -> _Grant:
        """Run a plugin; ConfigError says why it gave nothing."""
        name = f"exec plugin {plugin.command}"
        if plugin.interactive_mode == "Always":
            raise ConfigError([f"{name}: it wants a terminal (interactiveMode: Always)"])
        command = plugin.command
        if "/" in command:
            command = str(self._beside(command))
        task = {"KUBERNETES_EXEC_INFO": json.dumps(_task(plugin, cluster, access))}
        named = {each["name"]: each["value"] for each in plugin.env or []}
        try:
            done = subprocess.run(
                [command, *(plugin.args or [])],
                env={**os.environ, **named, **task},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_PLUGIN_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError([f"{name}: no answer within {_PLUGIN_SECONDS} s"]) from error
        except OSError as error:
            hint = " ".join(plugin.install_hint.split())
            raise ConfigError([f"{name}: {error.strerror}"], hint=hint) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").split("\n")
            said = next((line for line in reversed(lines) if line.strip()), "it says nothing")
            raise ConfigError([f"{name}: exit code {done.returncode}: {said.strip()}"])
        try:
            answer = msgspec.convert(_document(done.stdout), _Credential)
        except (ValueError, yaml.YAMLError, msgspec.ValidationError) as error:
            # The texts of the parsers quote what they read, and so perhaps a token.
            why = f": {error}" if isinstance(error, msgspec.ValidationError) else ""
            raise ConfigError([f"{name}: its answer is no ExecCredential{why}"]) from error
        if answer.api_version != plugin.api_version:
            raise ConfigError(
                [f"{name}: it answers in {answer.api_version}, not {plugin.api_version}"]
            )
        grant = answer.status
        if bool(grant.client_certificate_data) != bool(grant.client_key_data):
            raise ConfigError([f"{name}: certificate and key belong together"])
        if not grant.token and not grant.client_certificate_data:
            raise ConfigError([f"{name}: its answer has neither a token nor a certificate"])
        return grant


def _document(answer: bytes) -> Any:
    """Return what a plugin printed: JSON, or YAML, in which pairs of surrogates are unknown."""
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError:
        (document,) = kubeyaml.documents(answer.decode())
        return document


def _find(kind: str, named: Iterable[N] | None, name: str) -> N:
    found = [each for each in named or () if each.name == name]
    if len(found) != 1:
        raise ConfigError([f"{kind} {name!r} is in the file {len(found)} times"])
    return found[0]


def _task(plugin: _Plugin, cluster: _Cluster, access: Access) -> dict[str, Any]:
    """Return the description of its task that a plugin gets."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
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
        spec["cluster"] = {name: value for name, value in about.items() if value}
    return {"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec}
