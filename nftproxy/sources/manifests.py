"""Objects from files.

Service, EndpointSlice, Node and ServiceCIDR as YAML or JSON, as `kubectl get -o yaml` prints them.

A scan reads only changed files, and none that is being written. A fault affects nothing else: a
broken document keeps the last good version of its object, a file that is empty or no YAML all its
objects, a folder that cannot be listed all its files. Other kinds are ignored, so that an
application's folder of manifests can be used unchanged. Problems are values, one line each, that
name file, document, object and field.
"""

import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from nftproxy import kubeyaml
from nftproxy.errors import SourceError, brief
from nftproxy.model import KINDS, EndpointSlice, Object, ObjectName
from nftproxy.sources.admission import problems

SUFFIXES = {".yaml", ".yml", ".json"}
_GROUPS = {
    "Service": "",
    "Node": "",
    "EndpointSlice": "discovery.k8s.io",
    "ServiceCIDR": "networking.k8s.io",
}
_TICK = 20_000_000  # nanoseconds; file systems keep times to a jiffy, 10 ms at most
_EMPTIED = 5_000_000_000  # nanoseconds after which nobody is about to write into an empty file
_KEPT = "; its last good content stays in use"
_Identity = tuple[str, ObjectName]  # kind and name
_Unfinished = Callable[[], Collection[Path]]


@dataclass(slots=True)
class _File:
    """The content of a file when it was last read."""

    signature: tuple[int, int, int]
    objects: dict[_Identity, Object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # Objects of the kind Endpoints, and where they are
    endpoints: dict[ObjectName, str] = field(default_factory=dict)
    pods: dict[ObjectName, tuple[str, ...]] = field(default_factory=dict)  # and their addresses


@dataclass(frozen=True, slots=True)
class Scan:
    """All objects of all files, and the problems of the unusable ones.

    `news` are the problems that the previous scan did not have, `mended` is the number of its
    solved problems. `notes` name valid objects without effect that the previous scan did not name.
    `pods` have no effect either, except that people can name a client. `unread` are files without
    any content so far, because somebody writes them or is about to.
    """

    objects: dict[type[Object], list[Object]]
    problems: list[str]
    news: list[str]
    mended: int
    notes: list[str] = field(default_factory=list)
    pods: dict[ObjectName, tuple[str, ...]] = field(default_factory=dict)
    unread: set[Path] = field(default_factory=set)


class Manifests:
    """Folders and files of manifests; each scan returns the whole current content."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(dict.fromkeys(paths))
        self._files: dict[Path, _File] = {}
        self._unfinished: set[Path] = set()  # as the last scan found
        self._told: set[str] = set()
        self._noted: set[str] = set()

    def folders(self) -> set[Path]:
        """Return the folders to watch; for a link to a file also that of its target."""
        files = [path for path in self.paths if not _is_folder(path)]
        return (
            {*self.paths} - {*files}
            | {path.parent for path in files}
            | {path.resolve().parent for path in files if path.is_symlink()}
        )

    def check(self) -> None:
        """Raise SourceError for an unusable path.

        At the start that is a mistake, later an outage.
        """
        for path in self.paths:
            try:
                if _is_folder(path):
                    next(path.iterdir(), None)
                else:
                    path.stat()
            except FileNotFoundError:
                raise SourceError(
                    f"{path}: no such file or folder", hint="--manifests takes folders and files"
                ) from None
            except OSError as error:
                raise SourceError(
                    f"{path}: {error.strerror}", hint="run as a user that may read it"
                ) from error

    def scan(self, unfinished: _Unfinished = tuple) -> Scan:
        """Read the files changed since the last scan and return everything.

        Files that are `unfinished` keep their old content. They are queried again after each file,
        because opening a file for writing empties it.
        """
        faults: list[str] = []
        untouched = set(unfinished())
        self._unfinished.clear()
        present = dict.fromkeys(self._list(faults, untouched))
        self._files = {path: file for path, file in self._files.items() if path in present}
        for path in present:
            if _in(path, untouched):
                self._unfinished.add(path)
            else:
                self._read(path, faults, unfinished)
        objects: dict[type[Object], list[Object]] = {kind: [] for kind in KINDS.values()}
        seen: dict[_Identity, Path] = {}
        for path in present:
            file = self._files.get(path)
            if file is None:
                continue
            faults += file.problems
            for identity, item in file.objects.items():
                if identity in seen:
                    faults.append(
                        f"{path}: {_named(identity)}: is already defined in {seen[identity]}, "
                        "which counts"
                    )
                    continue
                seen[identity] = path
                objects[type(item)].append(item)
        news = [fault for fault in faults if fault not in self._told]
        mended = len(self._told - set(faults))
        self._told = set(faults)
        notes = list(self._unread(objects))
        fresh = [note for note in notes if note not in self._noted]
        self._noted = set(notes)
        pods = {name: ips for file in self._files.values() for name, ips in file.pods.items()}
        unread = self._unfinished - self._files.keys()
        return Scan(objects, faults, news, mended, fresh, pods, unread)

    def _unread(self, objects: dict[type[Object], list[Object]]) -> Iterator[str]:
        """Name the objects of the old kind Endpoints whose Service has no EndpointSlice."""
        sliced = {
            piece.service for piece in objects[EndpointSlice] if isinstance(piece, EndpointSlice)
        }
        for file in self._files.values():
            for name, place in file.endpoints.items():
                if name not in sliced:
                    yield (
                        f"{place}: Endpoints {name}: not used, because only EndpointSlices are "
                        "read; write the addresses as an "
                        f"EndpointSlice with the label kubernetes.io/service-name: {name.name}"
                    )

    def _list(self, faults: list[str], untouched: set[Path]) -> Iterator[Path]:
        """Yield all files.

        Those of a folder that cannot be listed are the last known ones, and `untouched`.
        """
        # Those that were folders when last read
        folders = {known.parent for known in self._files} - {*self._files}
        for path in self.paths:
            if not _is_folder(path) and path not in folders:
                yield path
                continue
            try:
                names = sorted(entry.name for entry in path.iterdir())
            except OSError as error:
                faults.append(f"{path}: {error.strerror}{_KEPT}")
                kept = [known for known in self._files if known.parent == path]
                untouched.update(kept)
                yield from kept
                continue
            yield from (
                path / name
                for name in names
                if not name.startswith(".") and Path(name).suffix in SUFFIXES
            )

    def _read(self, path: Path, faults: list[str], unfinished: _Unfinished) -> None:
        known = self._files.get(path)
        kept = _KEPT if known and known.objects else ""
        try:
            status = path.stat()
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            regular = stat.S_ISREG(status.st_mode)
            if known is not None and (known.signature == signature or not regular):
                return
            if not regular and path not in self.paths:
                return  # files in a folder; a named file may be a pipe, and is read once
            if time.time_ns() - status.st_mtime_ns < _TICK:
                # Another write in the same tick of the clock would look the same: read it again
                # next time.
                signature = (0, 0, 0)
            content = path.read_bytes()
            # In this order: a writer has finished by the first look or changed the file by the
            # second. Whoever begins to write empties a file first, which is reported later.
            if regular and (
                _in(path, unfinished())
                or _is_rewritten(path, status, content)
                or (not content and abs(time.time_ns() - status.st_mtime_ns) < _EMPTIED)
            ):
                self._unfinished.add(path)
                return  # the end of writing leads to another scan
            if regular and not content and kept:
                faults.append(f"{path}: is empty{kept}; to remove its objects, delete the file")
                return
            text = content.decode()
        except (OSError, UnicodeDecodeError) as error:
            if (
                isinstance(error, FileNotFoundError)
                and path not in self.paths
                and not path.is_symlink()
            ):
                self._files.pop(path, None)  # deleted since the folder was listed
                return
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            faults.append(f"{path}: {reason}{kept}")
            return
        self._files[path] = _entered(path, text, signature, known.objects if known else {})


def _entered(
    path: Path, text: str, signature: tuple[int, int, int], before: dict[_Identity, Object]
) -> _File:
    """Return the content of a file; `before` are the objects that it had."""
    try:
        documents = list(_documents(path, text))
    except SourceError as error:
        return _File(signature, before, [f"{error}{_KEPT if before else ''}"])
    file = _File(signature)
    for place, document in documents:
        _enter_document(file, f"{path}: {place}", document, before)
    return file


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # even that may be unknown
        return False


def _in(path: Path, files: Collection[Path]) -> bool:
    """Whether a file is among others, by name or by target."""
    return bool(files) and (path in files or path.resolve() in files)


def _is_rewritten(path: Path, before: os.stat_result, content: bytes) -> bool:
    """Whether a file was changed in place while it was read; one that replaced it is complete."""
    after = path.stat()
    return before.st_ino == after.st_ino and (
        (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)
        or before.st_size != len(content)  # in one tick of the clock
    )


def _documents(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each document; the items of a List count as documents."""
    try:
        documents = [json.loads(text)] if path.suffix == ".json" else kubeyaml.documents(text)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise SourceError(f"{path}: {where}not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}: not {'JSON' if path.suffix == '.json' else 'YAML'}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for number, document in enumerate(documents, 1):
        items = (
            document.get("items")
            if isinstance(document, dict) and str(document.get("kind", "")).endswith("List")
            else None
        )
        if isinstance(items, list):
            kind = str(document["kind"]).removesuffix("List")
            # A ServiceList does not repeat it
            implied = {"kind": kind, "apiVersion": document.get("apiVersion")} if kind else {}
            for index, item in enumerate(items):
                yield (
                    f"document {number}, item {index}",
                    {**implied, **item} if isinstance(item, dict) else item,
                )
        elif document is not None:
            yield f"document {number}", document


def _enter_document(
    file: _File, place: str, document: Any, before: dict[_Identity, Object]
) -> None:
    """Add a document's object to a file, or its problems and the last good version."""
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        file.problems.append(f"{place}: not a Kubernetes object: it has no kind")
        return
    kind = document["kind"]
    meta = document.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    if kind not in KINDS:
        _note(file, place, document, _object_name(meta))
        return
    identity = (kind, _object_name(meta))
    version = document.get("apiVersion")
    if not isinstance(version, str):
        faults = ["apiVersion: is missing"]
    elif version.rpartition("/")[0] != _GROUPS[kind]:
        return  # another group's kind of the same name
    elif identity in file.objects:
        faults = ["is defined twice in this file; the first one counts"]
    else:
        try:
            item = msgspec.convert(document, KINDS[kind])
            faults = problems(item)
        except msgspec.ValidationError as error:
            faults = [_readable(error)]
        if not faults:
            file.objects[identity] = item
            return
    fate = ""
    if identity in before and identity not in file.objects:
        file.objects[identity] = before[identity]
        fate = "; its last good version stays in use"
    file.problems += [f"{place}: {_named(identity)}: {fault}{fate}" for fault in faults]


def _note(file: _File, place: str, document: dict[str, Any], name: ObjectName) -> None:
    """Remember an object of another kind, where it matters to people."""
    if document.get("apiVersion") != "v1":
        return
    if document["kind"] == "Endpoints":
        file.endpoints[name] = place
    elif document["kind"] == "Pod":
        file.pods[name] = tuple(_pod_addresses(document.get("status")))


def _pod_addresses(status: Any) -> Iterator[str]:
    """Yield the addresses of a Pod, whatever else its status holds."""
    listed = status.get("podIPs") if isinstance(status, dict) else None
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get("ip"), str):
            yield each["ip"]


def _object_name(meta: dict[str, Any]) -> ObjectName:
    return ObjectName(
        str(meta.get("namespace") or "default")[:63], str(meta.get("name", "?"))[:253]
    )


def _readable(error: msgspec.ValidationError) -> str:
    """Put the path of the field first, as in all other messages."""
    text, _, path = str(error).partition(" - at `$")
    if "matching regex" in text:
        text = "has to be a DNS name: a-z, 0-9 and -, with a letter or digit at either end"
    text, path = brief(text), path.rstrip("`").removeprefix(".")
    return f"{path}: {text[:1].lower()}{text[1:]}" if path else text[:1].lower() + text[1:]


def _named(identity: _Identity) -> str:
    kind, name = identity
    text = name.name if kind in {"Node", "ServiceCIDR"} else str(name)
    return f"{kind} {text if text.isprintable() else repr(text)}"
