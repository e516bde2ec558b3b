"""The text of a configuration file.

V1alpha1 as YAML or JSON, read into a sparse mapping and written from a configuration.

Reading is lenient where kube-proxy is (contract 8.1.3): unknown and duplicate fields become
warnings. It is strict about the rest and finds everything at once: each field of a wrong type is
one problem with its path. kubeadm writes zero values for fields that it does not set; they count as
not set (contract 10.3.5), except where an explicit zero has a meaning (contract 8.2).
"""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from nftproxy.configuration import config
from nftproxy.configuration.duration import Duration
from nftproxy.errors import ConfigError
from nftproxy.kubeyaml import Loader, refuse_depth

_ZERO_HAS_MEANING: Final = frozenset(
    {"iptables.masqueradeBit", "nftables.masqueradeBit", "oomScoreAdj"}
)
_ZERO_HAS_MEANING_BELOW: Final = "conntrack."  # 8.2: explicit 0 is kept


def read(text: str, source: str) -> tuple[config.Sparse, list[str]]:
    """Return the fields set in `text` and warnings.

    ConfigError has all problems, each starting with `source`.
    """
    document, warnings = _parse(text, source)
    if not isinstance(document, Mapping):
        raise ConfigError([f"{source}: holds no {config.KIND} object"], hint=_HINT)
    problems = [
        f"{source}: {field}: is {document.get(field)!r:.80}, not {wanted!r}"
        for field, wanted in (("apiVersion", config.API_VERSION), ("kind", config.KIND))
        if document.get(field) != wanted
    ]
    if problems:
        raise ConfigError(problems, hint=_HINT)
    fields = {name: value for name, value in document.items() if name not in ("apiVersion", "kind")}
    found = config.Findings()
    sparse = _section(fields, config.KubeProxyConfiguration, "", found)
    if found.problems:
        raise ConfigError([f"{source}: {problem}" for problem in found.problems])
    return sparse, [
        *warnings,
        *(f"{source}: {warning}" for warning in found.warnings + _misplaced(sparse)),
    ]


def read_file(path: Path) -> tuple[config.Sparse, list[str]]:
    """Read the file at `path`; ConfigError also when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            [f"{path}: cannot be read: {reason}"], hint="check the file named by --config"
        ) from error
    return read(text, str(path))


def load(text: str, source: str) -> tuple[config.KubeProxyConfiguration, list[str]]:
    """Return the effective configuration of a file's text alone, and its warnings.

    ConfigError as `read`.
    """
    sparse, warnings = read(text, source)
    return config.build(sparse), warnings


def to_yaml(effective: config.KubeProxyConfiguration) -> str:
    """Return the text that --write-config-to writes (contract 8.1.5)."""
    return yaml.dump(
        config.dump(effective), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True
    )


_HINT: Final = (
    f"the file must be one YAML or JSON object with apiVersion: {config.API_VERSION} "
    f"and kind: {config.KIND}"
)


def _section(
    fields: Mapping[Any, Any], section: type[config.Section], prefix: str, found: config.Findings
) -> config.Sparse:
    """Return those of `fields` that are set, decoded.

    Report unknown ones and wrong types to `found`.
    """
    sparse: dict[str, Any] = {}
    known = {field.encode_name: field for field in msgspec.structs.fields(section)}
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if name not in known:
            found.warnings.append(f"{path}: unknown field, ignored")
            continue
        wanted = known[name].type
        if value is None:
            continue
        if isinstance(wanted, type) and issubclass(wanted, config.Section):
            if isinstance(value, Mapping):
                sparse[name] = _section(value, wanted, path + ".", found)
            else:
                found.problems.append(f"{path}: expected a section of fields, got {value!r:.80}")
            continue
        try:
            decoded = msgspec.convert(_as_written(path, value), wanted, dec_hook=config.decode)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$")
            found.problems.append(f"{path}{where.rstrip('`')}: {message[:1].lower()}{message[1:]}")
            continue
        if not _is_unset(path, decoded):
            sparse[name] = decoded
    return sparse


def _as_written(path: str, value: object) -> object:
    """Accept a number of nanoseconds as a duration: kubeadm writes `flushFrequency: 0`."""
    if path == "logging.flushFrequency" and type(value) is int:
        return Duration(value)
    return value


def _is_unset(path: str, value: object) -> bool:
    if (
        isinstance(value, bool)
        or path in _ZERO_HAS_MEANING
        or path.startswith(_ZERO_HAS_MEANING_BELOW)
    ):
        return False
    return not value


def _misplaced(sparse: config.Sparse) -> list[str]:
    """Warn of settings for kube-proxy's default mode that a file with `mode.

    ""` may have relied on.
    """
    iptables = sparse.get("iptables", {})
    defaults = config.IptablesSection()
    return [
        f"iptables.{name}: has no effect in nftables mode; set nftables.{name}"
        for name, default in (
            ("masqueradeBit", defaults.masquerade_bit),
            ("masqueradeAll", defaults.masquerade_all),
        )
        if iptables.get(name, default) != default and name not in sparse.get("nftables", {})
    ]


class _Loader(Loader):
    """Collects duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    self.duplicates.append(
                        f"line {line}: duplicate field {key.value!r}, the last one counts"
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str, source: str) -> tuple[object, list[str]]:
    """Return the first document in `text` as plain values, and warnings of duplicate keys."""
    if text.lstrip().startswith("{"):
        duplicates: list[str] = []
        try:
            return json.loads(
                text, object_pairs_hook=lambda pairs: _object(pairs, duplicates)
            ), _at(source, duplicates)
        except (ValueError, RecursionError):
            pass  # YAML's flow style begins with a brace too
    loader = None
    try:
        refuse_depth(text)
        loader = _Loader(text)
        document = loader.get_data() if loader.check_data() else None  # type: ignore[no-untyped-call]
        if loader.check_data():  # type: ignore[no-untyped-call]
            loader.duplicates.append("only the first of several documents is used")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{source}: {_first_line(error)}"], hint=_HINT) from error
    finally:
        if loader is not None:
            loader.dispose()
    return document, _at(source, loader.duplicates)


def _object(pairs: list[tuple[str, Any]], duplicates: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            duplicates.append(f"duplicate field {name!r}, the last one counts")
        fields[name] = value
    return fields


def _at(source: str, findings: list[str]) -> list[str]:
    return [f"{source}: {finding}" for finding in findings]


def _first_line(error: Exception) -> str:
    """Return the reason of the YAML library in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"
    return f"not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
