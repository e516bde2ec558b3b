"""Manifests: what is read, what is said about what cannot be, and that one broken thing never takes
another with it.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nftproxy import kubeyaml, shipped
from nftproxy.errors import SourceError
from nftproxy.model import EndpointSlice, Node, Service, ServiceCIDR
from nftproxy.sources import folders as folders_module
from nftproxy.sources.folders import Folders
from nftproxy.sources.manifests import Manifests, Scan

WEB: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]},
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.244.1.2"]}],
    "ports": [{"name": "http", "port": 8080}],
}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a document with one field (spec.ports.0.port) set, or taken out (None)."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    place: Any = copy
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[int(last) if last.isdigit() else last] = value
    if value is None:
        del place[last]
    return copy


def text(*documents: dict[str, Any]) -> str:
    return yaml.safe_dump_all(documents)


def names(scan: Scan, kind: type = Service) -> list[str]:
    return [item.metadata.name for item in scan.objects[kind]]


def scan(folder: Path) -> Scan:
    return Manifests([folder]).scan()


def test_examples_are_objects_as_kubectl_prints_them() -> None:
    found = scan(shipped.folder("examples"))
    assert found.problems == []
    assert names(found) == [
        *("meeting", "cart", "web", "portal", "mail", "batch", "shop"),
        *("cache", "canary"),
    ]
    assert names(found, Node) == ["node1", "node2"]
    assert names(found, ServiceCIDR) == ["kubernetes"]
    assert len(found.objects[EndpointSlice]) == 11


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("documents.yaml", text(WEB, SLICE)),
        ("list.yml", text({"apiVersion": "v1", "kind": "List", "items": [WEB, SLICE]})),
        ("list.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": [WEB, SLICE]})),
        ("comment first.yaml", "# a comment\n---\n" + text(WEB, SLICE) + "---\n"),
        (
            "other kinds.yaml",
            text(
                WEB,
                SLICE,
                {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}},
            ),
        ),
        (
            "another Service.yaml",
            text(WEB, SLICE, {"apiVersion": "serving.knative.dev/v1", "kind": "Service"}),
        ),
    ],
    ids=lambda value: value if len(value) < 30 else "",
)
def test_ways_to_write_objects(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = scan(tmp_path)
    assert (found.problems, names(found), names(found, EndpointSlice)) == ([], ["web"], ["web-1"])


def test_a_typed_list_does_not_repeat_kind_and_version(tmp_path: Path) -> None:
    bare = {key: WEB[key] for key in ("metadata", "spec")}
    (tmp_path / "s.yaml").write_text(
        text({"apiVersion": "v1", "kind": "ServiceList", "items": [bare]})
    )
    assert names(scan(tmp_path)) == ["web"]


def test_plain_scalars_mean_what_they_mean_to_kubernetes() -> None:
    read = kubeyaml.documents(
        "{a: 2001:10:20:30:40:50:1:2, b: 2026-01-01, c: =, d: 08, e: 0o10, f: 1:30, g: 010, h: "
        "10.5}"
    )[0]
    assert read == {
        "a": "2001:10:20:30:40:50:1:2", "b": "2026-01-01", "c": "=", "d": "08", "e": "0o10",
        "f": "1:30", "g": 8, "h": 10.5,
    }  # fmt: skip


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "no mapping": (
        "x.yaml",
        "a: b: c",
        "line 1: not YAML: mapping values are not allowed in this context",
    ),
    "control character": (
        "x.yaml",
        "\x00",
        "not YAML: unacceptable character #x0000: control characters are not allowed",
    ),
    "a template": ("x.yaml", "{{ .Values.web }}", "line 1: not YAML: found unhashable key"),
    "a tag that makes objects": (
        "x.yaml",
        "a: !!python/object:os.system {}",
        "line 1: not YAML: could not determine a constructor for the tag",
    ),
    "deep nesting": ("x.yaml", "[" * 1000, "not YAML: nested more than 50 levels deep"),
    "half of JSON": (
        "x.json",
        "{",
        "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    "no text": ("x.yaml", b"\xff\xfe\xfd", "not UTF-8 text"),
    "words": ("x.yaml", "just words", "document 1: not a Kubernetes object: it has no kind"),
    "a list": ("x.yaml", "[]", "document 1: not a Kubernetes object: it has no kind"),
    "kind is a list": (
        "x.yaml",
        "kind: [Service]",
        "document 1: not a Kubernetes object: it has no kind",
    ),
    "no kind": (
        "x.yaml",
        text(WEB, {"metadata": {}}),
        "document 2: not a Kubernetes object: it has no kind",
    ),
    "an item that is no object": (
        "x.yaml",
        text({"apiVersion": "v1", "kind": "List", "items": [WEB, 7]}),
        "document 1, item 1: not a Kubernetes object: it has no kind",
    ),
    "no apiVersion": (
        "x.yaml",
        text(changed(WEB, "apiVersion", None)),
        "document 1: Service default/web: apiVersion: is missing",
    ),
    "no metadata": (
        "x.yaml",
        text(changed(WEB, "metadata", None)),
        "document 1: Service default/?: object missing required field `metadata`",
    ),
    "spec is a list": (
        "x.yaml",
        text(changed(WEB, "spec", [])),
        "document 1: Service default/web: spec: expected `object`, got `array`",
    ),
    "a name that would break the line": (
        "x.yaml",
        text(changed(WEB, "metadata.name", "a\n\x1b[31mb")),
        "document 1: Service 'default/a\\n\\x1b[31mb': metadata.name: has to be a DNS name",
    ),
    "impossible port": (
        "x.yaml",
        text(SLICE, changed(WEB, "spec.ports.0.port", 65536)),
        "document 2: Service default/web: spec.ports[0].port: expected `int` <= 65535",
    ),
    "port is a name": (
        "x.yaml",
        text(changed(WEB, "spec.ports.0.port", "http")),
        "document 1: Service default/web: spec.ports[0].port: expected `int`, got `str`",
    ),
    "unknown protocol": (
        "x.yaml",
        text(changed(WEB, "spec.ports.0.protocol", "ICMP")),
        "document 1: Service default/web: spec.ports[0].protocol: invalid enum value 'ICMP'",
    ),
    "impossible address": (
        "x.yaml",
        text(changed(WEB, "spec.clusterIP", "10.96.0.300")),
        "document 1: Service default/web: spec.clusterIP: '10.96.0.300' is not an IP address",
    ),
    "an address that is a star": (
        "x.yaml",
        text(changed(SLICE, "endpoints.0.addresses.0", "*")),
        (
            "document 1: EndpointSlice default/web-1: endpoints[0].addresses[0]: '*' is not an IP "
            "address"
        ),
    ),
    "impossible CIDR": (
        "x.yaml",
        text(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "k"},
                "spec": {"cidrs": ["10/8"]},
            }
        ),
        (
            "document 1: ServiceCIDR k: spec.cidrs[0]: '10/8' is not a CIDR such as 10.0.0.0/8 or "
            "fd00::/64"
        ),
    ),
    "defined twice": (
        "x.yaml",
        text(WEB, WEB),
        "document 2: Service default/web: is defined twice in this file; the first one counts",
    ),
}


@pytest.mark.parametrize(("name", "content", "problem"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_says_where(
    tmp_path: Path, name: str, content: str | bytes, problem: str
) -> None:
    (tmp_path / "good.yaml").write_text(text(changed(WEB, "metadata.name", "good")))
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = scan(tmp_path)
    (line,) = found.problems
    assert line.startswith(f"{path}: {problem}"), line
    assert "\n" not in line
    assert "good" in names(found), "the other objects keep working"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.dates()
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(data=st.data(), value=anything)
def test_whatever_stands_in_a_field_is_one_line_or_none(data: st.DataObject, value: Any) -> None:
    """Any field of a sound object holds anything else.

    The object is used, or each problem is a line that names it.
    """
    document = data.draw(st.sampled_from([WEB, SLICE]))
    path = data.draw(st.sampled_from(list(paths(document))))
    copy = changed(document, path, 0)
    *parents, last = path.split(".")
    place: Any = copy
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[int(last) if last.isdigit() else last] = value
    with TemporaryDirectory() as name:
        file = Path(name) / "x.yaml"
        file.write_text(yaml.safe_dump(copy, allow_unicode=True))
        found = scan(Path(name))
    assert all(
        problem.startswith(f"{file}: ") and "\n" not in problem for problem in found.problems
    ), found.problems


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """The path of every field, as `changed` takes it."""
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        if "." not in str(key):
            yield f"{prefix}{key}"
            yield from paths(inner, f"{prefix}{key}.")


@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass"))
)
def test_whatever_a_file_holds_is_told_in_lines(content: bytes) -> None:
    with TemporaryDirectory() as name:
        for file in ("x.yaml", "x.json"):
            (Path(name) / file).write_bytes(content)
        found = scan(Path(name))
    assert all("\n" not in problem for problem in found.problems)
    assert names(found) == []


def test_an_object_that_two_files_define_belongs_to_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text(WEB))
    (tmp_path / "b.yaml").write_text(text(changed(WEB, "spec.ports.0.port", 81)))
    found = scan(tmp_path)
    assert found.problems == [
        (
            f"{tmp_path}/b.yaml: Service default/web: is already defined in {tmp_path}/a.yaml, "
            "which counts"
        )
    ]
    assert [service.spec.ports[0].port for service in found.objects[Service]] == [80]  # type: ignore[union-attr, index]


def test_what_broke_keeps_its_last_good_version(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    manifests = Manifests([tmp_path])
    path.write_text(text(WEB, SLICE))
    assert manifests.scan().problems == []

    path.write_text(
        text(
            changed(WEB, "spec.ports.0.port", 0),
            changed(SLICE, "endpoints.0.addresses.0", "10.244.1.3"),
        )
    )
    found = manifests.scan()
    assert found.news == [
        (
            f"{path}: document 1: Service default/web: spec.ports[0].port: expected `int` >= 1; its "  # noqa: E501
            "last good version stays in use"
        )
    ]
    assert found.objects[Service][0].spec.ports[0].port == 80  # type: ignore[union-attr, index]
    assert found.objects[EndpointSlice][0].endpoints[0].addresses == ("10.244.1.3",)  # type: ignore[union-attr, index]

    path.write_text("not: [yaml")
    found = manifests.scan()
    assert [line.endswith("; its last good content stays in use") for line in found.news] == [True]
    assert (names(found), names(found, EndpointSlice)) == (["web"], ["web-1"])

    path.write_text(text(WEB))
    found = manifests.scan()
    assert (found.problems, found.mended, names(found), names(found, EndpointSlice)) == (
        [],
        1,
        ["web"],
        [],
    )


def test_a_problem_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("[")
    manifests = Manifests([tmp_path])
    assert len(manifests.scan().news) == 1
    again = manifests.scan()
    assert (len(again.problems), again.news) == (1, [])


def remove(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def replace_by_a_file(folder: Path) -> None:
    remove(folder)
    folder.write_text("kind: nothing")


@pytest.mark.parametrize("outage", [remove, replace_by_a_file])
def test_a_folder_that_goes_away_takes_nothing_with_it(
    tmp_path: Path, outage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.yaml").write_text(text(WEB))
    manifests = Manifests([folder])
    assert names(manifests.scan()) == ["web"]
    outage(folder)
    found = manifests.scan()
    assert names(found) == ["web"]
    (problem,) = found.problems
    assert problem.startswith(f"{folder}: ")
    assert problem.endswith("its last good content stays in use")


def test_a_file_in_a_folder_that_is_deleted_takes_its_objects_along(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text(WEB))
    manifests = Manifests([tmp_path])
    assert names(manifests.scan()) == ["web"]
    path.unlink()
    assert names(manifests.scan()) == []


def test_a_link_that_leads_nowhere_takes_nothing_with_it(tmp_path: Path, folder: Path) -> None:
    (folder / "a.yaml").write_text(text(WEB))
    link = tmp_path / "links" / "web.yaml"
    link.parent.mkdir()
    link.symlink_to(folder / "a.yaml")
    manifests = Manifests([link.parent])
    assert names(manifests.scan()) == ["web"]
    (folder / "a.yaml").unlink()
    found = manifests.scan()
    assert (names(found), found.problems) == (
        ["web"],
        [f"{link}: No such file or directory; its last good content stays in use"],
    )


def test_what_is_no_manifest_is_passed_over(tmp_path: Path) -> None:
    for name in ("README.md", ".hidden.yaml", "web.yaml~", ".web.yaml.swp"):
        (tmp_path / name).write_text("[")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")  # reading it would wait for ever
    assert scan(tmp_path).problems == []


def test_a_pipe_that_is_named_is_read_once() -> None:
    read, write = os.pipe()
    os.write(write, text(WEB).encode())
    os.close(write)
    manifests = Manifests([Path(f"/proc/self/fd/{read}")])
    manifests.check()
    assert names(manifests.scan()) == ["web"]
    assert names(manifests.scan()) == ["web"]
    os.close(read)


def test_a_file_that_is_rewritten_in_the_same_tick_with_the_same_size_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    path = tmp_path / "a.yaml"
    manifests = Manifests([tmp_path])
    for port in (81, 82, 83):
        path.write_text(text(changed(WEB, "spec.ports.0.port", port)))
        os.utime(path, ns=(now, now))
        assert manifests.scan().objects[Service][0].spec.ports[0].port == port  # type: ignore[union-attr, index]


@pytest.mark.parametrize("path", ["nowhere", "nowhere/a.yaml"])
def test_a_path_that_is_not_there_at_the_start_is_a_mistake(tmp_path: Path, path: str) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        Manifests([tmp_path / path]).check()


# --- following folders ----------------------------------------------------------------------------


@contextmanager
def open_in_place(path: Path, content: str) -> Any:
    """Write half of a file, and the rest when the block ends."""
    with path.open("w") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        yield
        file.write(content[len(content) // 2 :])


CHANGES: dict[str, Callable[[Path], object]] = {
    "written in place": lambda folder: (folder / "a.yaml").write_text("x"),
    "renamed into place": lambda folder: (folder / ".draft").replace(folder / "a.yaml"),
    "moved in from elsewhere": lambda folder: (folder.parent / "elsewhere.yaml").replace(
        folder / "b.yaml"
    ),
    "moved out": lambda folder: (folder / "a.yaml").replace(folder.parent / "gone.yaml"),
    "deleted": lambda folder: (folder / "a.yaml").unlink(),
    "linked": lambda folder: (folder / "b.yaml").symlink_to(folder / "a.yaml"),
    "hard linked": lambda folder: (folder / "b.yaml").hardlink_to(folder / "a.yaml"),
    "folder deleted": shutil.rmtree,
    "folder renamed": lambda folder: folder.rename(folder.parent / "moved"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a.yaml").write_text("before")
    (path / ".draft").write_text("after")
    (tmp_path / "elsewhere.yaml").write_text("after")
    return path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(folder: Path, change: Callable[[Path], object]) -> None:
    async def follow() -> None:
        with Folders([folder]) as folders:
            change(folder)
            await asyncio.wait_for(folders.changed(), 1)

    asyncio.run(follow())


@pytest.mark.parametrize("turns", range(5))
def test_a_change_does_not_swallow_the_end(folder: Path, turns: int) -> None:
    async def follow() -> None:
        with Folders([folder]) as folders:
            while True:
                await folders.changed()

    async def main() -> None:
        task = asyncio.create_task(follow())
        await asyncio.sleep(0.01)
        (folder / "a.yaml").write_text("after")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        assert await asyncio.wait({task}, timeout=5) == ({task}, set())

    asyncio.run(main())


def test_a_folder_that_comes_back_is_followed_again(folder: Path) -> None:
    async def follow() -> None:
        with Folders([folder]) as folders:
            folder.rename(folder.parent / "moved")
            await asyncio.wait_for(folders.changed(), 1)
            folder.mkdir()
            # Found by looking: a folder that is not there cannot be watched
            await asyncio.wait_for(folders.changed(), 3)
            (folder / "new.yaml").write_text("x")
            await asyncio.wait_for(folders.changed(), 1)

    asyncio.run(follow())


def test_a_file_that_is_being_written_is_not_read(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(text(WEB, SLICE))
    manifests = Manifests([folder])
    assert names(manifests.scan(), EndpointSlice) == ["web-1"]

    async def follow() -> None:
        with Folders([folder]) as folders:
            with open_in_place(
                path, text(WEB, changed(SLICE, "endpoints.0.addresses.0", "10.244.1.3"))
            ):
                (folder / "other.yaml").write_text(text(changed(WEB, "metadata.name", "other")))
                await asyncio.wait_for(folders.changed(), 1)
                assert folders.unfinished() == {path}
                found = manifests.scan(folders.unfinished)
                assert (found.problems, names(found), names(found, EndpointSlice)) == (
                    [],
                    ["web", "other"],
                    ["web-1"],
                )
            await asyncio.wait_for(folders.changed(), 1)
            assert folders.unfinished() == set()
            found = manifests.scan(folders.unfinished)
            assert found.objects[EndpointSlice][0].endpoints[0].addresses == ("10.244.1.3",)  # type: ignore[union-attr, index]

    asyncio.run(follow())


@pytest.mark.parametrize(
    "ends",
    [None, "between", "after"],
    ids=["goes on", "ends between the looks", "ends after the looks"],
)
def test_a_file_that_is_emptied_when_it_is_about_to_be_read(folder: Path, ends: str | None) -> None:
    """Somebody begins to write just after it was asked whether anybody does.

    What is read then is an empty file, and no answer.
    """
    path = folder / "a.yaml"
    path.write_text(text(WEB))
    manifests = Manifests([folder])
    assert names(manifests.scan()) == ["web"]
    path.write_text(text(changed(WEB, "metadata.name", "other")))

    async def follow() -> None:
        with Folders([folder]) as folders:
            looks: list[frozenset[Path]] = []
            file: Any = None

            def write(content: str) -> None:
                file.write(content)
                file.close()

            def unfinished() -> frozenset[Path]:
                nonlocal file
                if looks and ends == "between":
                    write(text(changed(WEB, "metadata.name", "new")))
                looks.append(folders.unfinished())
                if len(looks) == 1:
                    file = path.open("w")
                elif ends == "after":
                    write(text(changed(WEB, "metadata.name", "new")))
                return looks[-1]

            found = manifests.scan(unfinished)
            assert looks == [set(), set() if ends == "between" else {path}]
            assert (found.problems, names(found)) == ([], ["web"])
            if ends is None:
                write(text(changed(WEB, "metadata.name", "new")))
            await asyncio.wait_for(folders.changed(), 1)
            assert names(manifests.scan(folders.unfinished)) == ["new"]

    asyncio.run(follow())


def test_a_file_that_is_written_again_and_again_is_never_empty(folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_text(text(WEB))
    manifests = Manifests([folder])
    assert names(manifests.scan()) == ["web"]
    program = """
import sys
for _ in range(3000):
    with open(sys.argv[1], "w") as file:
        file.write(sys.argv[2])
"""

    async def follow() -> None:
        with Folders([folder]) as folders:
            writer = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, path, text(WEB)
            )
            while writer.returncode is None:
                assert names(await asyncio.to_thread(manifests.scan, folders.unfinished)) == ["web"]
            assert await writer.wait() == 0

    asyncio.run(follow())


@pytest.mark.parametrize("moment", [0, 2**32], ids=["long ago", "in the future"])
def test_a_file_that_is_emptied_keeps_its_objects(folder: Path, moment: int) -> None:
    """Somebody is about to write into it. After some time that is a mistake, and said so."""
    path = folder / "a.yaml"
    path.write_text(text(WEB))
    manifests = Manifests([folder])
    assert names(manifests.scan()) == ["web"]
    path.write_text("")
    found = manifests.scan()
    assert (found.problems, names(found)) == ([], ["web"])
    os.utime(path, (moment, moment))
    for news in (1, 0):
        found = manifests.scan()
        assert found.problems == [
            (
                f"{path}: is empty; its last good content stays in use; to remove its objects, "
                "delete the file"
            )
        ]
        assert (len(found.news), names(found)) == (news, ["web"])
    path.write_text(text(changed(WEB, "metadata.name", "other")))
    found = manifests.scan()
    assert (found.problems, found.mended, names(found)) == ([], 1, ["other"])
    path.write_text("# nothing\n")
    assert names(manifests.scan()) == []


def test_a_new_file_that_is_empty_is_about_to_be_written(folder: Path) -> None:
    """After some time that is no problem."""
    path = folder / "a.yaml"
    path.write_text("")
    found = scan(folder)
    assert (found.problems, found.unread) == ([], {path})
    assert Manifests([folder]).scan(lambda: {path}).unread == {path}
    os.utime(path, (0, 0))
    found = scan(folder)
    assert (found.problems, found.unread) == ([], set())


def test_a_file_that_is_emptied_and_written_in_one_tick(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time and size are as they were; what was read is not."""
    path = folder / "a.yaml"
    path.write_text(text(WEB))
    monkeypatch.setattr(Path, "read_bytes", lambda _: text(WEB)[:20].encode())
    found = Manifests([folder]).scan()
    assert (found.problems, found.unread) == ([], {path})


@pytest.mark.parametrize(
    ("seconds", "expected"), [(3600, "web"), (0, "other")], ids=["just now", "long ago"]
)
def test_a_file_that_stays_open_counts_as_written_when_it_was_long_ago(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: str
) -> None:
    monkeypatch.setattr(folders_module, "STALLED", seconds)
    path = folder / "a.yaml"
    path.write_text(text(WEB))
    manifests = Manifests([folder])
    assert names(manifests.scan()) == ["web"]

    async def follow() -> None:
        with Folders([folder]) as folders, path.open("w") as file:
            file.write(text(changed(WEB, "metadata.name", "other")))
            file.flush()
            assert names(manifests.scan(folders.unfinished)) == [expected]

    asyncio.run(follow())


def test_a_link_to_a_file_is_followed_to_where_it_is(tmp_path: Path, folder: Path) -> None:
    link = tmp_path / "links" / "web.yaml"
    link.parent.mkdir()
    link.symlink_to(folder / "a.yaml")
    assert Manifests([link]).folders() == {link.parent, folder}
