"""Objects from files: Service, EndpointSlice, Node and ServiceCIDR as YAML or JSON, as `kubectl get -o yaml` prints them.

A scan reads only files that changed. What is broken never takes anything else with it: a broken document leaves the last good version
of its object in place, a file that is no YAML all its objects, a folder that cannot be listed all its files. Other kinds are
passed over, so a folder of an application's manifests can be used as it is.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from nftproxy.admission import problems
from nftproxy.errors import SourceError
from nftproxy.model import KINDS, Object, ObjectName
from nftproxy.yamldepth import refuse_depth

SUFFIXES = {".yaml", ".yml", ".json"}
_GROUPS = {"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/", "ServiceCIDR": "networking.k8s.io/"}
_Identity = tuple[str, ObjectName]  # kind and name


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: a timestamp is a text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the class attribute is how PyYAML is told
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(slots=True)
class _File:
    """What a file held when it was last read."""

    signature: tuple[int, int, int]
    objects: dict[_Identity, Object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scan:
    """All objects of all files, and what is wrong with those that could not be used; `news` are the problems not told before."""

    objects: dict[type[Object], list[Object]]
    problems: list[str]
    news: list[str]


class Manifests:
    """Folders and files of manifests; each scan returns all that there is now."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._files: dict[Path, _File] = {}
        self._told: set[str] = set()

    def folders(self) -> set[Path]:
        """Return the folders in which something may change."""
        return {path if path.is_dir() else path.parent for path in self._paths}

    def check(self) -> None:
        """Raise SourceError when a path does not exist at all: at the start that is a mistake, later an outage."""
        for path in self._paths:
            if not path.exists():
                raise SourceError(f"{path}: no such file or folder", hint="--manifests takes folders and files")

    def scan(self) -> Scan:
        """Read what changed since the last scan and return everything."""
        faults: list[str] = []
        present = dict.fromkeys(self._list(faults))
        self._files = {path: file for path, file in self._files.items() if path in present}
        for path in present:
            self._read(path, faults)
        objects: dict[type[Object], list[Object]] = {kind: [] for kind in KINDS.values()}
        seen: dict[_Identity, Path] = {}
        for path in present:
            file = self._files.get(path)
            if file is None:
                continue
            faults += file.problems
            for identity, item in file.objects.items():
                if identity in seen:
                    faults.append(f"{path}: {_named(identity)} is already defined in {seen[identity]}; this one is ignored")
                    continue
                seen[identity] = path
                objects[type(item)].append(item)
        news = [fault for fault in faults if fault not in self._told]
        self._told = set(faults)
        return Scan(objects, faults, news)

    def _list(self, faults: list[str]) -> Iterator[Path]:
        """Yield the files there are; those of a folder that cannot be listed are the ones known before."""
        for path in self._paths:
            if not path.is_dir() and (path.exists() or path in self._files):
                yield path
                continue
            try:
                names = sorted(entry.name for entry in path.iterdir())
            except OSError as error:
                faults.append(f"{path}: {error.strerror}; what was read from it stays in use")
                yield from [known for known in self._files if known.parent == path]
                continue
            yield from (path / name for name in names if not name.startswith(".") and Path(name).suffix in SUFFIXES)

    def _read(self, path: Path, faults: list[str]) -> None:
        known = self._files.get(path)
        try:
            status = path.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            if known is not None and known.signature == signature:
                return
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            faults.append(f"{path}: {reason}; what was read from it stays in use")
            return
        file = _File(signature)
        before = known.objects if known else {}
        try:
            documents = list(_documents(path, text))
        except SourceError as error:
            self._files[path] = _File(signature, before, [str(error)])
            return
        for place, document in documents:
            _take(file, f"{path}: {place}", document, before)
        self._files[path] = file


def _documents(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each document; the items of a List count as documents."""
    try:
        if path.suffix == ".json":
            documents = [json.loads(text)]
        else:
            refuse_depth(text)
            documents = list(yaml.load_all(text, _Loader))
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SourceError(f"{path}: {where}not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not {'JSON' if path.suffix == '.json' else 'YAML'}: {str(error).splitlines()[0]}") from error
    for number, document in enumerate(documents, 1):
        items = document.get("items") if isinstance(document, dict) and str(document.get("kind", "")).endswith("List") else None
        if isinstance(items, list):
            kind = str(document["kind"]).removesuffix("List")
            implied = {"kind": kind, "apiVersion": document.get("apiVersion")} if kind else {}  # a ServiceList does not repeat it
            for index, item in enumerate(items):
                yield f"document {number}, item {index}", {**implied, **item} if isinstance(item, dict) else item
        elif document is not None:
            yield f"document {number}", document


def _take(file: _File, place: str, document: Any, before: dict[_Identity, Object]) -> None:
    """Add a document's object to a file, or its problems and the last good version."""
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        file.problems.append(f"{place}: not a Kubernetes object: it has no kind")
        return
    kind, version = document["kind"], str(document.get("apiVersion", ""))
    if kind not in KINDS or not version.startswith(_GROUPS[kind]):
        return  # another kind, or another group's kind of the same name
    meta = document.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    identity = (kind, ObjectName(str(meta.get("namespace", "default")), str(meta.get("name", "?"))))
    try:
        item = msgspec.convert(document, KINDS[kind])
        faults = problems(item)
    except msgspec.ValidationError as error:
        faults = [_readable(error)]
    if not faults:
        file.objects[identity] = item
        return
    kept = before.get(identity)
    if kept is not None:
        file.objects[identity] = kept
    fate = "; the version before stays in use" if kept is not None else ""
    file.problems += [f"{place}: {_named(identity)}: {fault}{fate}" for fault in faults]


def _readable(error: msgspec.ValidationError) -> str:
    """Put the path of the field first, as in all other messages."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    return f"{path}: {text}" if path else text


def _named(identity: _Identity) -> str:
    kind, name = identity
    return f"{kind} {name.name if kind in {'Node', 'ServiceCIDR'} else name}"
