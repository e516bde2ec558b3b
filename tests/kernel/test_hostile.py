"""Objects that nobody should send.

Nothing may crash or stall the proxy, reach libnftables unchecked, or touch another service.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from nftproxy.kernel.library import Library
from nftproxy.lab.client import Answer
from nftproxy.model import KINDS, Object
from nftproxy.sources.manifests import Manifests
from nftproxy.sources.wire import JsonDecoder, WireError
from tests.support.checked import check_text
from tests.support.hostile import BAD, PLACES, Document, from_files, from_the_api, junk, spoilt
from tests.support.objects import endpoint, endpoint_slice, service
from tests.support.world import World

QUICK = (
    20.0  # seconds that a sync may take at most, on the slowest of machines; hundredths are usual
)

GOOD: list[Object] = [
    service(
        "good",
        ("10.96.0.10", "fd00:10:96::10"),
        node_port=30080,
        vips=["203.0.113.10"],
        created="2026-01-01T00:00:00Z",
    ),
    endpoint_slice("good", [endpoint("10.244.1.2", "node1")]),
]


@pytest.mark.parametrize(
    "text",
    [
        "table inet nftproxy {\nchain a b {\n}",
        "table inet nftproxy {\nchain a {\n};delete table inet x\n}",
        (
            '{"nftables": [{"add": {"element": {"family": "inet", "table": "nftproxy", "name": "x", '
            '"elem": ["localhost"]}}}]}'
        ),
        (
            '{"nftables": [{"add": {"element": {"family": "inet", "table": "nftproxy", "name": "x", '
            '"elem": [{"concat": ["TCP"]}]}}}]}'
        ),
        (
            '{"nftables": [{"add": {"element": {"family": "inet", "table": "nftproxy", "name": "x", '
            '"elem": ["fd00:0::1"]}}}]}'
        ),
        (
            '{"nftables": [{"add": {"element": {"family": "inet", "table": "nftproxy", "name": "x", '
            '"elem": [70000]}}}]}'
        ),
    ],
)
def test_the_check_itself_finds_what_is_wrong(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_text(text)


class Proxy:
    """A node whose table holds a good service, and nothing unchecked may get into it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.table = world.tables["node1"]
        world.apply(*GOOD)
        self.good = self.elements()
        assert len(self.good) > 8

    def elements(self) -> dict[tuple[str, object], object]:
        """All elements of the table that belong to the good service."""
        addresses = {"10.96.0.10", "fd00:10:96::10", "203.0.113.10"}
        found: dict[tuple[str, object], object] = {}
        for name in sorted(self.table.kernel.sets):
            if name.startswith(
                (
                    "services",
                    "endpoints",
                    "nodeport",
                    "no_endpoints",
                    "cluster_ips",
                    "firewall",
                    "new_clients",
                    "learn",
                )
            ):
                for key, value in self.table.kernel.elements(name).items():
                    if addresses & set(map(str, key)) or 30080 in key:
                        found[name, key] = value
        return found

    def owner(self, address: str) -> str:
        """The service port that an address belongs to, by the comment that people see.

        Empty if it belongs to none.
        """
        found = [
            value
            for (_, key), value in all_elements(self, "services").items()
            if address in map(str, cast("Any", key))
        ]
        return cast("Any", found[0]).comment if found else ""

    def suffer(self, *objects: Object) -> None:
        """Take objects in and give them up again.

        The kernel refuses nothing, nothing takes long, the good service stays.
        """
        for change in (self.world.apply, self.world.delete):
            begin = time.monotonic()
            change(*objects)
            assert time.monotonic() - begin < QUICK
            assert self.elements() == self.good


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    run = Library.run

    def checked(self: Library, text: str) -> None:
        check_text(text)
        run(self, text)

    with pytest.MonkeyPatch.context() as patch, World(lab={"nodes": 1, "pods": 2}) as world:
        patch.setattr(Library, "run", checked)
        logger.disable("nftproxy")
        yield Proxy(world)
        logger.enable("nftproxy")


# ---- every field of every wrong type ----


@pytest.mark.timeout(300)
@pytest.mark.contract("2.1.5", "2.7.1", "3.1.3", "3.1.5")
@settings(
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), junk), min_size=1, max_size=4))
def test_any_field_may_hold_anything(
    proxy: Proxy, tmp_path: Path, changes: list[tuple[tuple[str, tuple[str | int, ...]], Any]]
) -> None:
    documents = spoilt(changes)
    proxy.suffer(*from_the_api(documents))
    proxy.suffer(*from_files(documents, tmp_path / "bad.yaml"))


@pytest.mark.contract("3.1.5")
def test_no_message_is_as_long_as_what_it_quotes(tmp_path: Path) -> None:
    """A field with a list of values is the one whose value the decoder quotes."""
    documents = spoilt(
        [(("Service", ("status", "loadBalancer", "ingress", 0, "ipMode")), "x" * 100_000)]
    )
    [broken] = (
        JsonDecoder(KINDS["Service"])
        .page(json.dumps({"metadata": {}, "items": [documents[0]]}).encode())
        .broken
    )
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(documents[0]))
    [problem] = Manifests([tmp_path]).scan().problems
    for message in (str(broken), problem):
        assert len(message) < 1000
        assert (
            message.count("nvalid enum value 'xxx")
            == message.count("status.loadBalancer.ingress[0].ipMode")
            == 1
        )


@settings(max_examples=200)
@given(
    st.binary(max_size=60)
    | st.text(max_size=40).map(str.encode)
    | st.sampled_from([b"[" * 5000, b'{"items":' * 3000, b"null", b"[]"])
)
def test_an_answer_may_be_anything(answer: bytes) -> None:
    for kind in KINDS.values():
        for decode in (JsonDecoder(kind).page, JsonDecoder(kind).event):
            with contextlib.suppress(WireError):
                decode(answer)


# ---- particular things ----


def slice_at(address: str) -> Document:
    document = copy.deepcopy(BAD["EndpointSlice"])
    document["endpoints"].append({"addresses": [address]})
    document["addressType"] = "IPv6" if ":" in address and "ffff" not in address else "IPv4"
    return document


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", "224.0.0.1", "239.1.2.3", "255.255.255.255",  # noqa: S104
        "::ffff:127.0.0.1", "::", "::1", "fe80::1", "febf::1", "ff02::1", "localhost", "10.0.0.1 ",
        "10.0.0", "*", "", "::1.2.3.1_0",
        "::1.2.3.\u0664",
    ],
)  # fmt: skip
def test_endpoint_addresses_that_no_pod_has_are_refused(
    proxy: Proxy, tmp_path: Path, address: str
) -> None:
    """Over the API the endpoint is left out, and its slice goes on.

    A manifest is told what is wrong with it.
    """
    document = slice_at(address)
    items = from_the_api([BAD["Service"], document, BAD["Node"], BAD["ServiceCIDR"]])
    proxy.world.apply(*items)
    used = {value for (_, _), value in all_elements(proxy, "endpoints").items()}
    assert not any(str(value).startswith(f"('{address}'") for value in used)
    assert (("10.244.1.3", 8080) in used) == (document["addressType"] == "IPv4")
    proxy.world.delete(*items)
    assert proxy.elements() == proxy.good
    assert not from_files([document], tmp_path / "slice.yaml")


def all_elements(proxy: Proxy, prefix: str) -> dict[tuple[str, object], object]:
    kernel = proxy.table.kernel
    return {
        (n, k): v
        for n in sorted(kernel.sets)
        if n.startswith(prefix)
        for k, v in kernel.elements(n).items()
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param((("Service", ("metadata", "name")), "x" * 300), "metadata.name",
        id="name-of-300"),
        pytest.param((("Service", ("metadata", "namespace")), "x" * 64), "metadata.namespace",
        id="namespace-of-64"),
        pytest.param((("Service", ("metadata", "name")), "web\n"), "metadata.name",
        id="newline-after-name"),
        pytest.param((("Service", ("metadata", "namespace")), "web\n"), "metadata.namespace",
        id="newline-after-namespace"),
        pytest.param((("Service", ("spec", "ports", 0, "name")), "http\n"), "spec.ports[0].name",
        id="newline-after-port-name"),
        pytest.param((("Service", ("spec", "ports", 0, "name")), 'a"; drop'), "spec.ports[0].name",
        id="nft-in-port-name"),
        pytest.param((("Service", ("spec", "ports", 0, "port")), 70000), "spec.ports[0].port",
        id="port-70000"),
        pytest.param((("Service", ("spec", "ports", 0, "port")), 0), "spec.ports[0].port",
        id="port-0"),
        pytest.param((("Service", ("spec", "ports", 0, "port")), "http"), "spec.ports[0].port",
        id="port-of-letters"),
        pytest.param((("Service", ("spec", "ports", 0, "nodePort")), -1), "spec.ports[0].nodePort",
        id="node-port-negative"),
        pytest.param((("Service", ("spec", "ports", 0, "protocol")), "tcp"),
        "spec.ports[0].protocol", id="protocol"),
        pytest.param(
            (("Service", ("spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds")), 86401),
            "timeoutSeconds", id="two-days",
        ),
        pytest.param((("Service", ("spec", "clusterIP")), "127.0.0.1"), "spec.clusterIP",
        id="loopback-cluster-ip"),
        pytest.param((("Service", ("spec", "externalIPs", 0)), "localhost"), "spec.externalIPs[0]",
        id="external-name"),
        pytest.param((("Service", ("status", "loadBalancer", "ingress", 0, "ip")), "224.0.0.1"),
        "ingress[0].ip", id="multicast-vip"),
        pytest.param((("Service", ("spec", "loadBalancerSourceRanges", 0)), "10.0.0.0/33"),
        "loadBalancerSourceRanges[0]", id="range"),
        pytest.param((("EndpointSlice", ("ports", 0, "port")), 70000), "ports[0].port",
        id="slice-port-70000"),
        pytest.param((("ServiceCIDR", ("spec", "cidrs", 0)), "0.0.0.0/0"), "spec.cidrs[0]",
        id="everything-is-a-service"),
    ],
)  # fmt: skip
def test_a_manifest_is_told_what_is_wrong(tmp_path: Path, change: Any, problem: str) -> None:
    kind = change[0][0]
    (tmp_path / "bad.yaml").write_text(
        yaml.safe_dump_all(d for d in spoilt([change]) if d["kind"] == kind)
    )
    scan = Manifests([tmp_path]).scan()
    assert not any(scan.objects.values())
    (told,) = scan.problems
    assert problem in told
    assert len(told) < 500


def named(name: str, cluster_ip: str, *, created: str, **spec: Any) -> list[Object]:
    """A service with an endpoint that only it has."""
    return [
        service(name, cluster_ip, created=f"{created}T00:00:00Z", **spec),
        endpoint_slice(name, [endpoint("10.244.1.3", "node1")], port=9376),
    ]


@pytest.mark.contract("2.2.3")
def test_two_services_that_claim_one_address_are_named_and_the_older_one_has_it(
    proxy: Proxy,
) -> None:
    messages: list[str] = []
    sink = logger.add(
        lambda message: messages.append(str(message)), level="ERROR", format="{message}"
    )
    logger.enable("nftproxy")
    world = proxy.world
    try:
        young = named("young", "10.96.0.20", created="2026-03-01", externalIPs=["203.0.113.5"])
        old = named(
            "old",
            "10.96.0.21",
            created="2026-02-01",
            vips=["203.0.113.5"],
            sessionAffinity="ClientIP",
        )
        world.apply(*young)
        assert not messages
        for _ in range(2):  # the second time nothing is new
            world.apply(*old)
        assert len(messages) == 1
        for part in ("default/old has 203.0.113.5:80/tcp", "default/young", "oldest"):
            assert part in messages[0]
        assert proxy.owner("203.0.113.5") == "default/old:http"
        world.apply(
            service(
                "young",
                "10.96.0.20",
                created="2026-03-01T00:00:00Z",
                externalIPs=["203.0.113.5"],
                port=80,
                node_port=30555,
            )
        )
        assert len(messages) == 1
        world.delete(*old)
        assert proxy.owner("203.0.113.5") == "default/young:http"
        world.delete(*young)
    finally:
        logger.remove(sink)
        logger.disable("nftproxy")
    assert proxy.elements() == proxy.good


@pytest.mark.contract("2.2.2", "2.2.3", "2.6.9")
def test_the_nodes_own_address_as_external_ip_takes_that_port_alone(proxy: Proxy) -> None:
    world = proxy.world
    world.lab.listen("node1", [80, 2222])
    bad = named(
        "bad", "10.96.0.66", created="2026-03-01", externalIPs=["192.168.50.11", "10.244.1.1"]
    )
    world.apply(*bad)
    try:
        for source in ("client", "pod1-1", "node1"):
            assert world.ask(source, "192.168.50.11", 80).name == "pod1-2"
            assert world.ask(source, "192.168.50.11", 2222).name == "node1"
            assert world.ask(source, "192.168.50.11", 30080).name == "pod1-1"
            assert world.ask(source, "10.96.0.10", 80).name == "pod1-1"
    finally:
        world.delete(*bad)
    assert world.ask("client", "192.168.50.11", 80).name == "node1"
    assert proxy.elements() == proxy.good


def ranges(count: int) -> list[str]:
    """Different networks, some inside others."""
    return [
        f"{1 + n % 200}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/{32 - n % 9}" for n in range(count)
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "objects",
    [
        pytest.param(
            [
                service("bad", "10.96.0.66", 443, vips=["203.0.113.66"], loadBalancerSourceRanges=ranges(100_000)),
                endpoint_slice("bad", [endpoint("10.244.1.3", "node1")]),
            ],
            id="100000-source-ranges",
            marks=pytest.mark.contract("2.7.7"),
        ),
        pytest.param(
            [
                service("bad", "10.96.0.66", 443, vips=["203.0.113.66"], node_port=30066,
                externalTrafficPolicy="Local"),
                endpoint_slice("bad", [endpoint(f"10.245.{n // 250}.{n % 250 + 1}", "node1") for n in range(5000)]),
            ],
            id="5000-endpoints",
        ),
        pytest.param(
            [
                service("bad", "10.96.0.66", vips=["203.0.113.66"], ports=[{"port": 1000 + n, "name": f"p{n}"} for n in range(1000)]),
                endpoint_slice("bad", [endpoint("10.244.1.3", "node1")], ports=[{"port": 8080, "name": f"p{n}"} for n in range(1000)]),
            ],
            id="1000-ports",
        ),
        pytest.param(
            [
                service("bad", "10.96.0.66", sessionAffinity="ClientIP", node_port=30066),
                *(endpoint_slice("bad", [endpoint(f"10.244.1.{n}")], name=f"bad-{n}", port=1000 + n) for n in range(3, 103)),
            ],
            id="a-hundred-endpoint-ports-with-affinity",
            marks=pytest.mark.contract("2.4.1"),
        ),
        pytest.param(
            [
                service(
                    "x" * 253, "10.96.0.66", sessionAffinity="ClientIP", port_name="y" * 63,
                    externalTrafficPolicy="Local", node_port=30066,
                ),
                endpoint_slice("x" * 253, [endpoint("10.244.1.3", "node1")], name="bad",
                port_name="y" * 63),
            ],
            id="longest-names",
        ),
    ],
)  # fmt: skip
def test_a_large_service_is_served_and_holds_up_nobody(proxy: Proxy, objects: list[Object]) -> None:
    world = proxy.world
    begin = time.monotonic()
    world.apply(*objects)
    assert time.monotonic() - begin < 3 * QUICK
    assert proxy.elements() == proxy.good
    assert proxy.owner("10.96.0.66")
    begin = time.monotonic()
    other = named("other", "10.96.0.30", created="2026-03-01")
    world.apply(*other)
    assert time.monotonic() - begin < QUICK / 4
    assert isinstance(world.connect("pod1-1", "10.96.0.30", 80), Answer)
    world.delete(*other)
    world.delete(*objects)
    assert proxy.elements() == proxy.good
