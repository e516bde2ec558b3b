"""`nftproxy explain` as a user calls it.

Text, JSON, exit codes, bad input, no root, ten thousand Services.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nftproxy.address import Family
from nftproxy.kernel.channel import Channel
from nftproxy.lab import build
from nftproxy.lab.namespace import enter
from nftproxy.path.explanation import explain
from nftproxy.path.model import Reach
from nftproxy.path.node import LiveNode
from nftproxy.path.request import request
from nftproxy.path.view import Fill
from tests.support.objects import annotated, endpoint, endpoint_slice, service
from tests.support.paths import ROOT
from tests.support.tables import new_namespace, table_in
from tests.support.world import World

NFTPROXY = [sys.executable, "-m", "nftproxy"]
SCHEMA = json.loads((ROOT / "docs/path.schema.json").read_text())
EXAMPLES = str(ROOT / "examples")
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(lab={"pods": 2, "families": (Family.IPv4,)}) as world:
        world.apply(service(), world.endpoints("pod1-1", "pod2-1"))
        yield world


def call(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return world.lab.run("node1", [*NFTPROXY, "explain", *arguments], check=False, cwd=ROOT)


@pytest.mark.parametrize("scheduler", ["source-hash", "maglev"])
def test_which_endpoint_a_client_gets(world: World, scheduler: str) -> None:
    """It follows from the client's address, for rules and words alike, and is who answers."""
    item = annotated(service("hashed", "10.96.0.77"), scheduler=scheduler)
    piece = world.endpoints("pod1-1", "pod2-1", of="hashed")
    world.apply(item, piece)
    for place in ("pod1-1", "pod1-2"):
        source = world.address(place)
        done = call(world, "default/hashed:http", "--from", source)
        picked = re.search(rf"(\S+):8080 by the hash of {source}, one of 2 endpoints", done.stdout)
        assert picked, done.stdout
        assert f"{picked[1]}:8080  100%" in done.stdout
        assert world.ask(place, "10.96.0.77", 80).address == picked[1]
    world.delete(item, piece)


def test_text(world: World) -> None:
    done = call(world, "default/web:http", "--from", "10.244.1.3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "default/web:http  10.96.0.10:80/tcp  ClusterIP   asked by 10.244.1.3, "
    )
    assert "10.96.0.10 . tcp . 80 -> pick4-tcp-2: any of 2 endpoints" in done.stdout
    assert "10.244.2.2:8080  50%  via 192.168.50.12 dev eth0" in done.stdout
    assert "Reaches any of 2 endpoints. Nothing is wrong here." in lines
    assert "not checked" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("default/web:http", "--from", "10.244.1.3"), 0),
        (("default/web", "--from", "outside"), 0),
        (("10.96.0.10:80",), 0),
        (("10.96.0.10:81",), 1),
        (("default/wob",), 1),
        (("10.96.0.10", "--protocol", "icmp"), 1),
        (("31999",), 1),
        (("10.244.2.2:8080",), 1),
    ],
)
def test_json_keeps_to_its_schema(world: World, arguments: tuple[str, ...], code: int) -> None:
    done = call(world, *arguments, "--output", "json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert (document["reach"] == "yes") is (code == 0)
    assert document["causes"] or code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("web",),
        ("default/web:",),
        ("10.96.0.10:99999",),
        ("70000",),
        ("",),
        ("default/web", "--from", "somebody"),
        ("default/web", "--from", "10.244.1.3%nowhere"),
        ("[::1",),
        ("\x1b[31m/x",),
        ("a" * 5000,),
    ],
)
def test_bad_input_is_an_error_with_a_hint(world: World, arguments: tuple[str, ...]) -> None:
    done = call(world, *arguments)
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


POD = """
apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: default}
status: {podIP: 10.244.1.3, podIPs: [{ip: 10.244.1.3}, {ip: "fd00:244:1::3"}]}
"""


def test_a_client_by_the_name_of_its_pod(world: World, tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD)
    options = ("--manifests", str(tmp_path), "--manifests", EXAMPLES, "--node-name", "node1")
    done = call(world, "default/web", "--from", "default/shell", *options)
    assert "asked by 10.244.1.3, a pod on this node" in done.stdout, done.stderr
    done = call(world, "default/web", "--from", "default/shel", *options)
    assert done.returncode == 2
    assert "did you mean default/shell?" in done.stderr
    assert call(world, "default/web", "--from", "default/shell").returncode == 2


def test_without_a_table() -> None:
    with new_namespace() as netns, enter(netns), LiveNode("node1") as live:
        path = explain(request("10.96.0.10:80"), live)
    assert path.reach is Reach.NO
    assert path.causes[0].code == "no-table"


def unprivileged(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WITHOUT_RIGHTS, *NFTPROXY, "explain", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def test_without_root_objects_are_explained() -> None:
    options = ("--manifests", EXAMPLES, "--node-name", "node1", "--output", "json")
    done = unprivileged("default/web:http", *options)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["reach"] == "may"
    assert document["notChecked"][0].endswith("reading them needs the capability NET_ADMIN")
    assert any(each["reason"] == "not ready" for each in document["candidates"])
    refused = json.loads(unprivileged("default/batch", *options).stdout)
    assert refused["reach"] == "no"
    assert refused["causes"][0]["code"] == "not-ready"


def test_without_root_and_objects_the_error_names_the_capability() -> None:
    done = unprivileged("default/web")
    assert done.returncode == 2
    assert "NET_ADMIN" in done.stderr
    assert "--manifests" in done.stderr


MANY = 300


def test_single_elements_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many Services there are.

    No map is listed, and the number of elements asked for stays the same.
    """
    asked: list[int] = []
    with new_namespace() as netns:
        build.batch(
            "ip",
            netns,
            [
                "link add nodes type veth peer name far",
                "link set far up",
                "link set nodes up",
                "addr add 192.168.50.11/24 dev nodes",
                "route add default via 192.168.50.1",
            ],
        )
        for number in (3, MANY):
            objects = [
                each
                for one in range(number)
                for each in (
                    service(f"s{one}", f"10.96.{one // 250}.{one % 250 + 1}"),
                    endpoint_slice(f"s{one}", [endpoint("10.244.1.2"), endpoint("10.244.1.3")]),
                )
            ]
            with table_in(netns, *objects) as table:
                table.sync(Family.IPv4, [])
            asked.append(counted(netns, monkeypatch))
    assert asked[0] == asked[1] < 40


def counted(netns: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many elements are asked for; a dump of elements fails."""
    from nftproxy.table.netlink import Message

    number = 0
    get, dump = Channel.get, Channel.dump

    def count(self: Channel, kind: int, *rest: bytes, **options: Any) -> list[bytes]:
        nonlocal number
        number += kind == Message.GET_ELEMENTS
        return get(self, kind, *rest, **options)

    def list_(self: Channel, kind: int, *rest: bytes, **options: Any) -> Iterator[bytes]:
        named = rest[0] if rest else b""
        small = b"nodeport_ips" in named  # as many as this node has addresses
        assert kind != Message.GET_ELEMENTS or small, named
        return dump(self, kind, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "get", count)
        patch.setattr(Channel, "dump", list_)
        with enter(netns), LiveNode("node1") as live:
            path = explain(request("10.96.0.1:80"), live)
    assert [each.used for each in path.candidates] == [True, True]
    return number


def test_a_full_conntrack_table(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """The limit belongs to the whole machine, so the full table is said, not made."""
    monkeypatch.setattr(LiveNode, "fill", lambda _: Fill(1000, 1000))
    with enter(world.lab.place("node1").namespace), LiveNode("node1") as live:
        path = explain(request("default/web", "10.244.1.3"), live)
    assert path.reach is Reach.NO
    assert path.causes[0].code == "conntrack-full"
    assert "1000 of 1000" in path.causes[0].text
    assert path.causes[0].commands == ("sysctl -w net.netfilter.nf_conntrack_max=2000",)
