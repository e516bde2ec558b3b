"""`explain` as its users run it: output, exit codes, bad input, and without the right to read the table."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from nftproxy.address import Family
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.paths import ROOT
from tests.support.process import network, nftproxy
from tests.support.tables import table_in
from tests.tools.schema import FILE, text

EXAMPLES = ("--manifests", ROOT / "examples", "--node-name", "node1")
BARE = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
SCHEMA = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """A namespace with a table and no route."""
    with network() as name:
        objects = (service(), endpoint_slice(endpoints=[endpoint("10.244.1.2")]))
        with table_in(name, *objects) as table:
            table.sync(Family.IPv4, [])
        yield name


def test_the_schema_is_that_of_the_code() -> None:
    """`python -m tests.tools.schema` writes it."""
    assert FILE.read_text() == text()


def test_without_any_right_the_manifests_are_explained() -> None:
    done = nftproxy("explain", "default/web:http", *EXAMPLES, before=BARE)
    assert done.stderr == ""
    assert done.returncode == 1, "it may get through, but nobody looked"
    assert "services4      10.96.0.10 . tcp . 80 -> pick4-tcp-3: any of 3 endpoints" in done.stdout
    assert "left out       10.244.2.3:8080  not ready" in done.stdout
    assert "not checked  the table, other programs' rules, routes and neighbours" in done.stdout
    assert "NET_ADMIN" in done.stdout


def test_without_any_right_and_without_manifests() -> None:
    done = nftproxy("explain", "default/web", before=BARE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: run as root or with the capability NET_ADMIN" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("default/web:http",),
        ("default/web", "--from", "node"),
        ("10.96.0.10:80", "--protocol", "TCP"),
        ("10.96.0.10",),
        ("10.96.0.10:81",),
        ("default/none",),
        ("30000",),
        ("[fd00::1]:80",),
    ],
)
def test_json_is_as_the_schema_says(where: str, arguments: tuple[str, ...]) -> None:
    done = nftproxy("explain", *arguments, "--output", "json", where=where)
    assert done.stderr == ""
    path = json.loads(done.stdout)
    jsonschema.validate(path, SCHEMA)
    assert path["version"] == 1
    assert done.returncode == (0 if path["reach"] == "yes" else 1)
    assert path["causes"][0]["text"]


def test_json_of_manifests_is_as_the_schema_says(where: str) -> None:
    done = nftproxy("explain", "default/batch", *EXAMPLES, "--output", "json", before=BARE)
    path = json.loads(done.stdout)
    jsonschema.validate(path, SCHEMA)
    assert path["causes"][0]["code"] == "not-ready"
    assert where


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("",), "'' is neither a Service nor an address"),
        (("web",), "'web' is neither a Service nor an address"),
        (("default/web:a b",), "is neither a Service nor an address"),
        (("10.96.0.10:0",), "'0' is not a port number from 1 to 65535"),
        (("10.96.0.10:99999",), "'99999' is not a port number"),
        (("1.2.3.4.5:80",), "is neither a Service nor an address"),
        (("[fd00::zz]:80",), "is neither a Service nor an address"),
        (("default/web;reboot",), "is neither a Service nor an address"),
        (("x" * 5000,), "is neither a Service nor an address"),
        (("default/web", "--protocol", "icmp"), "--protocol: 'icmp' is not tcp, udp or sctp"),
        (
            ("default/web", "--from", "my-pod"),
            "--from: 'my-pod' is neither an address, node nor outside",
        ),
        (("default/web", "--from", "fd00::1"), "--from: fd00::1 is IPv6, but 10.96.0.10 is IPv4"),
        (("default/web", "--from", "10.9.9.9"), "--from: this node has no route back to 10.9.9.9"),
        (
            ("default/web", "--from", "outside"),
            "this node has no interface for IPv4 to the outside",
        ),
        (("default/web", "--manifests", "/nowhere"), "/nowhere"),
    ],
)
def test_bad_input_gets_a_line_and_a_hint(
    where: str, arguments: tuple[str, ...], said: str
) -> None:
    done = nftproxy("explain", *arguments, where=where)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr


def test_nothing_is_changed(where: str, tmp_path: Path) -> None:
    before = nftproxy("show", "--output", "json", where=where).stdout
    nftproxy(
        "explain", "default/web", where=where, cwd=tmp_path, env={"PATH": "/usr/bin:/usr/sbin"}
    )
    assert nftproxy("show", "--output", "json", where=where).stdout == before
    assert list(tmp_path.iterdir()) == []
