"""Programs that hand out credentials: a kubeconfig names one under `exec`.

The protocol is Kubernetes' `client.authentication.k8s.io`: the task is in the environment, the
answer is an ExecCredential on the standard output.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml

from nftproxy import kubeyaml
from nftproxy.errors import ConfigError

_PATIENCE: Final = 60
"""Seconds: a program may ask a server for credentials, but must come to an end."""


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str | None = None


class Grant(msgspec.Struct, frozen=True, rename="camel"):
    """What a program handed out: a token, or a certificate and its key in PEM, or both."""

    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return bool(self.expiration_timestamp and self.expiration_timestamp <= datetime.now(UTC))


class _ExecCredential(msgspec.Struct, frozen=True, rename="camel"):
    kind: Literal["ExecCredential", ""] = ""
    api_version: str = ""
    status: Grant = Grant()


class CredentialPlugin(msgspec.Struct, frozen=True, rename="camel"):
    """A program as a kubeconfig describes it."""

    command: str
    api_version: Literal["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"]
    args: list[str] | None = None
    env: list[_Variable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: Literal["Never", "IfAvailable", "Always", ""] = ""

    def ask(self, folder: Path, cluster: Mapping[str, Any]) -> Grant:
        """Run the program and return what it hands out; ConfigError says why it gave nothing.

        `folder` is the kubeconfig's, where a relative path begins; `cluster` describes the server.
        """
        if self.interactive_mode == "Always":
            raise self._error("it wants a terminal (interactiveMode: Always)")
        answer = self._answer(self._run(folder, cluster))
        grant = answer.status
        if answer.api_version != self.api_version:
            raise self._error(f"it answers in {answer.api_version}, not {self.api_version}")
        if bool(grant.client_certificate_data) != bool(grant.client_key_data):
            raise self._error("certificate and key belong together")
        if not grant.token and not grant.client_certificate_data:
            raise self._error("its answer has neither a token nor a certificate")
        return grant

    def _run(self, folder: Path, cluster: Mapping[str, Any]) -> bytes:
        spec = {"interactive": False, **({"cluster": cluster} if self.provide_cluster_info else {})}
        task = {"kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec}
        command = str(folder / self.command) if "/" in self.command else self.command
        try:
            done = subprocess.run(
                [command, *(self.args or ())],
                env={
                    **os.environ,
                    **{each.name: each.value or "" for each in self.env or ()},
                    "KUBERNETES_EXEC_INFO": json.dumps(task),
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise self._error(f"no answer within {_PATIENCE} s") from error
        except OSError as error:
            hint = " ".join(self.install_hint.split())
            raise self._error(str(error.strerror), hint=hint) from error
        except (TypeError, ValueError) as error:
            # A zero byte in an argument, or a date where JSON has none.
            raise self._error(str(error)) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it says nothing"
            raise self._error(f"exit code {done.returncode}: {said}")
        return done.stdout

    def _answer(self, printed: bytes) -> _ExecCredential:
        try:
            return kubeyaml.convert(_document(printed), _ExecCredential)
        except msgspec.ValidationError as error:
            raise self._error(f"its answer is no ExecCredential: {error}") from error
        except (ValueError, yaml.YAMLError) as error:
            # Parsers quote what they read, and so perhaps a token.
            raise self._error("its answer is neither JSON nor YAML") from error

    def _error(self, problem: str, *, hint: str = "") -> ConfigError:
        return ConfigError([f"exec plugin {self.command}: {problem}"], hint=hint)


def _document(printed: bytes) -> Any:
    """Return a document in JSON, or in YAML, which does not know JSON's pairs of surrogates."""
    try:
        return msgspec.json.decode(printed)
    except msgspec.DecodeError:
        (document,) = kubeyaml.documents(printed.decode())
        return document
