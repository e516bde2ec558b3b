"""Health without sockets.

Who is healthy when, what is answered, and which Services have something to answer for.
"""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import Address, Family, parse_address, parse_network
from nftproxy.configuration.settings import ALL, NodePortNetworks
from nftproxy.model import EndpointSlice, Node, ObjectName, Service
from nftproxy.monitoring.proxyhealth import ProxyHealth, eligible
from nftproxy.monitoring.response import Response
from nftproxy.monitoring.servicehealth import ServiceCheck, Standing, answer, listen_on
from tests.support.objects import endpoint, endpoint_slice, service

V4, V6 = Family.IPv4, Family.IPv6
HERE = msgspec.convert({"metadata": {"name": "node1"}}, Node)
START = 1_800_000_000.0
WEB = ObjectName("default", "web")


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return START + self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> ProxyHealth:
    return ProxyHealth(30, clock=clock, wall=clock.wall)


def body(given_answer: Response) -> dict[str, Any]:
    return dict(json.loads(given_answer.body))


@pytest.mark.contract("7.1.3", "7.1.4", "7.1.5")
@pytest.mark.parametrize(
    ("story", "healthy"),
    [
        pytest.param(
            "start wait100000", True, id="nothing is asked of it, so it may be quiet for ever"
        ),
        pytest.param("start queue wait59.9", True, id="an update is due, but not for long"),
        pytest.param("start queue wait60", False, id="due for twice the sync period"),
        pytest.param(
            "start queue wait40 queue wait20", False, id="asking again does not start the wait anew"
        ),
        pytest.param("start queue wait59 update queue wait59", True, id="a success does"),
        pytest.param("start queue wait100 update", True, id="a success heals"),
        pytest.param("queue wait100", True, id="a family that has not started is not unhealthy"),
        pytest.param(
            "queue wait100 start", True, id="what was asked before the start does not count"
        ),
        pytest.param("queue wait30 start queue wait59", True, id="the wait begins after the start"),
        pytest.param(
            "start start6 queue wait30 update6 wait30",
            False,
            id="the other family's success does not help",
        ),
        pytest.param("start start6 queue6 wait60", False, id="one unhealthy family is enough"),
        pytest.param("start start6 queue queue6 wait60 update update6", True, id="both healed"),
    ],
)
def test_healthy(clock: Clock, health: ProxyHealth, story: str, *, healthy: bool) -> None:
    for step in story.split():
        family = V6 if step.endswith("6") and not step.startswith("wait") else V4
        if step.startswith("wait"):
            clock.now += float(step[4:])
        else:
            {"start": health.started, "queue": health.queued, "update": health.updated}[
                step.rstrip("6")
            ](family)
    assert health.healthy is healthy
    assert health.livez().code == (200 if healthy else 503)
    assert health.healthz(HERE).code == (200 if healthy else 503)
    assert body(health.livez())["healthy"] is healthy


@pytest.mark.contract("7.1.4")
@given(st.lists(st.tuples(st.sampled_from(["queue", "update"]), st.floats(0, 100)), max_size=12))
def test_unhealthy_exactly_when_the_oldest_request_waits_too_long(
    steps: list[tuple[str, float]],
) -> None:
    clock = Clock()
    health = ProxyHealth(30, clock=clock, wall=clock.wall)
    health.started(V4)
    waiting_since = None
    for step, seconds in steps:
        if step == "queue":
            health.queued(V4)
            waiting_since = clock.now if waiting_since is None else waiting_since
        else:
            health.updated(V4)
            waiting_since = None
        clock.now += seconds
        assert health.healthy == (waiting_since is None or clock.now - waiting_since < 60)


@pytest.mark.contract("7.1.9", "1.4.4")
@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param(None, False, id="never seen"),
        pytest.param({}, True, id="an ordinary node"),
        pytest.param(
            {"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
            False,
            id="being deleted",
        ),
        pytest.param(
            {
                "spec": {
                    "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
                }
            },
            False,
            id="going",
        ),
        pytest.param(
            {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}},
            False,
            id="whatever the effect",
        ),
        pytest.param(
            {"spec": {"taints": [{"key": "node.kubernetes.io/unschedulable"}]}},
            True,
            id="another taint",
        ),
    ],
)
def test_eligible(health: ProxyHealth, node: dict[str, Any] | None, *, expected: bool) -> None:
    seen = None if node is None else msgspec.convert({"metadata": {"name": "n"}, **node}, Node)
    assert eligible(seen) is expected
    assert health.healthz(seen).code == (200 if expected else 503)
    assert health.livez().code == 200, "the node's fate is none of livez's business"


@pytest.mark.contract("7.1.7", "7.1.8")
def test_body_when_all_is_well(clock: Clock, health: ProxyHealth) -> None:
    health.started(V4)
    clock.now = 10.5
    health.started(V6)
    clock.now = 20.25
    found = health.healthz(HERE)
    assert found.headers == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
    }
    assert body(found) == {
        "lastUpdated": "2027-01-15T08:00:20.250000Z",
        "currentTime": "2027-01-15T08:00:20.250000Z",
        "nodeEligible": True,
        "healthy": True,
        "status": {
            "IPv4": {"lastUpdated": "2027-01-15T08:00:00.000000Z", "healthy": True},
            "IPv6": {"lastUpdated": "2027-01-15T08:00:10.500000Z", "healthy": True},
        },
    }
    assert "nodeEligible" not in body(health.livez())


@pytest.mark.contract("7.1.8")
def test_body_when_a_family_lags(clock: Clock, health: ProxyHealth) -> None:
    health.started(V4)
    health.started(V6)
    health.queued(V4)
    clock.now = 61
    health.updated(V6)
    clock.now = 62
    found = body(health.livez())
    assert found["lastUpdated"] == "2027-01-15T08:01:01.000000Z", "the latest of any family"
    assert found["currentTime"] == "2027-01-15T08:01:02.000000Z"
    assert {family: each["healthy"] for family, each in found["status"].items()} == {
        "IPv4": False,
        "IPv6": True,
    }


@pytest.mark.contract("7.1.8", "7.1.9")
def test_body_before_the_start(health: ProxyHealth) -> None:
    live, ready = health.livez(), health.healthz(None)
    assert (live.code, ready.code) == (200, 503)
    assert "status" not in body(live)
    assert body(ready)["lastUpdated"] == "0001-01-01T00:00:00.000000Z"
    assert body(ready)["healthy"] is True, (
        "it is the node that is not eligible, not the proxy that is unhealthy"
    )


def local_balancer(**spec: Any) -> Service:
    options = {
        "vips": ["203.0.113.1"],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000,
        **spec,
    }
    return service(**options)


def local_slice(*endpoints: dict[str, Any], **options: Any) -> EndpointSlice:
    return endpoint_slice(endpoints=endpoints, **options)


@pytest.mark.contract("2.8.1", "3.5.1")
@pytest.mark.parametrize(
    ("spec", "slices", "expected"),
    [
        pytest.param({}, [local_slice()], ServiceCheck(31000, 0), id="no endpoint"),
        pytest.param({}, [], ServiceCheck(31000, 0), id="no slice"),
        pytest.param(
            {},
            [local_slice(endpoint("10.244.1.2", "node1"))],
            ServiceCheck(31000, 1),
            id="one local endpoint",
        ),
        pytest.param(
            {},
            [local_slice(endpoint("10.244.2.2", "node2"))],
            ServiceCheck(31000, 0),
            id="one elsewhere",
        ),
        pytest.param(
            {}, [local_slice(endpoint("10.244.1.2"))], ServiceCheck(31000, 0), id="one nowhere"
        ),
        pytest.param(
            {},
            [local_slice(endpoint("10.244.1.2", "node1", ready=False))],
            ServiceCheck(31000, 0),
            id="not ready",
        ),
        pytest.param(
            {},
            [
                local_slice(
                    endpoint("10.244.1.2", "node1", ready=False, serving=True, terminating=True)
                )
            ],
            ServiceCheck(31000, 0),
            id="terminating does not count, though it may get traffic",
        ),
        pytest.param(
            {},
            [
                local_slice(endpoint("10.244.1.2", "node1"), name="a"),
                local_slice(endpoint("10.244.1.2", "node1"), name="b"),
            ],
            ServiceCheck(31000, 1),
            id="the same address in two slices",
        ),
        pytest.param(
            {"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}]},
            [
                local_slice(
                    endpoint("10.244.1.2", "node1"),
                    endpoint("10.244.1.3", "node1"),
                    ports=[{"name": "http", "port": 8080}, {"name": "https", "port": 8443}],
                )
            ],
            ServiceCheck(31000, 2),
            id="addresses count, not ports",
        ),
        pytest.param(
            {"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}]},
            [
                local_slice(
                    endpoint("10.244.1.2", "node1"),
                    name="a",
                    ports=[{"name": "http", "port": 8080}],
                ),
                local_slice(
                    endpoint("10.244.1.3", "node1"),
                    name="b",
                    ports=[{"name": "https", "port": 8443}],
                ),
            ],
            ServiceCheck(31000, 2),
            id="over all ports",
        ),
        pytest.param(
            {},
            [local_slice(endpoint("fd00:244:1::2", "node1"), family="IPv6")],
            ServiceCheck(31000, 0),
            id="only of this family",
        ),
        pytest.param({"externalTrafficPolicy": "Cluster"}, [], None, id="policy Cluster"),
        pytest.param({"vips": (), "type": "NodePort"}, [], None, id="no load balancer"),
        pytest.param(
            {"clusterIP": "fd00:10:96::10", "clusterIPs": ["fd00:10:96::10"]},
            [],
            None,
            id="not of this family",
        ),
        pytest.param(
            {"vips": (), "type": "LoadBalancer"},
            [],
            ServiceCheck(31000, 0),
            id="the balancer has no address yet",
        ),
    ],
)
def test_check(
    spec: dict[str, Any], slices: list[EndpointSlice], expected: ServiceCheck | None
) -> None:
    standing = Standing(V4, "node1")
    notes: list[str] = []
    standing.look({WEB: (local_balancer(**spec), tuple(slices))}, notes)
    assert standing.checks.get(WEB) == expected
    assert not notes


@pytest.mark.contract("2.8.1")
def test_a_missing_port_is_noted() -> None:
    standing = Standing(V4, "node1")
    notes: list[str] = []
    standing.look({WEB: (local_balancer(healthCheckNodePort=0), ())}, notes)
    assert not standing.checks
    assert notes == [
        (
            "Service default/web: no spec.healthCheckNodePort: load balancers cannot ask for local "
            "endpoints"
        )
    ]


@pytest.mark.contract("7.2.6")
def test_changes_are_what_differs() -> None:
    standing = Standing(V4, "node1")
    here = local_slice(endpoint("10.244.1.2", "node1"))
    other = ObjectName("default", "other")

    assert standing.look({WEB: (local_balancer(), ()), other: (service("other"), ())}, []) == {
        WEB: ServiceCheck(31000, 0)
    }
    assert standing.look({WEB: (local_balancer(), ())}, []) == {}
    assert standing.look({WEB: (local_balancer(), (here,))}, []) == {WEB: ServiceCheck(31000, 1)}
    assert standing.look({WEB: (local_balancer(healthCheckNodePort=31001), (here,))}, []) == {
        WEB: ServiceCheck(31001, 1)
    }
    assert standing.look({other: (None, ())}, []) == {}, "a service that had none"
    assert standing.look({WEB: (local_balancer(externalTrafficPolicy="Cluster"), (here,))}, []) == {
        WEB: None
    }
    standing.look({WEB: (local_balancer(), (here,))}, [])
    assert standing.look({WEB: (None, ())}, []) == {WEB: None}
    assert not standing.checks


LOCAL_HERE, ELSEWHERE = endpoint("10.244.1.2", "node1"), endpoint("10.244.2.2", "node2")
GOING_HERE = endpoint("10.244.1.2", "node1", ready=False, serving=True, terminating=True)


@pytest.mark.contract("7.4.9")
@pytest.mark.parametrize(
    ("policies", "endpoints", "expected"),
    [
        pytest.param("ie", [ELSEWHERE], (1, 1), id="both Local, endpoints only elsewhere"),
        pytest.param("i", [ELSEWHERE], (1, 0), id="internal"),
        pytest.param("e", [ELSEWHERE], (0, 1), id="external"),
        pytest.param("", [ELSEWHERE], (0, 0), id="no policy Local"),
        pytest.param("ie", [ELSEWHERE, LOCAL_HERE], (0, 0), id="one here"),
        pytest.param(
            "ie", [ELSEWHERE, GOING_HERE], (0, 0), id="one here that terminates and still serves"
        ),
        pytest.param("ie", [], (0, 0), id="no endpoint anywhere"),
        pytest.param(
            "ie", [endpoint("10.244.2.2", "node2", ready=False)], (0, 0), id="none that can be used"
        ),
        pytest.param(
            "ie", [endpoint("10.244.2.2", "node2", zones=["else"])], (1, 1), id="whatever the hints"
        ),
    ],
)
def test_without_local_endpoints(
    policies: str, endpoints: list[dict[str, Any]], expected: tuple[int, int]
) -> None:
    standing = Standing(V4, "node1")
    spec = {
        "internalTrafficPolicy": "Local" if "i" in policies else "Cluster",
        "externalTrafficPolicy": "Local" if "e" in policies else "Cluster",
    }
    standing.look({WEB: (local_balancer(**spec), (local_slice(*endpoints),))}, [])
    assert standing.without_local_endpoints == expected
    standing.look({WEB: (None, ())}, [])
    assert standing.without_local_endpoints == (0, 0)


@pytest.mark.contract("7.4.9")
def test_external_policy_without_external_addresses() -> None:
    standing = Standing(V4, "node1")
    bare = local_balancer(vips=(), type="LoadBalancer")
    standing.look({WEB: (bare, (local_slice(ELSEWHERE),))}, [])
    assert standing.without_local_endpoints == (0, 0), "nobody can get there from outside"


def test_a_health_check_port_that_is_a_node_port_is_noted_once() -> None:
    standing, notes = Standing(V4, "node1"), list[str]()
    other = service("other", cluster_ip="10.96.0.11", node_port=31000)
    standing.look({WEB: (local_balancer(), ()), other.metadata.key: (other, ())}, notes)
    [note] = notes
    assert note.startswith(
        "Service default/web: its health check node port 31000 is also a NodePort of Service "
        "default/other"
    )
    assert note.endswith(
        "load balancers cannot ask for local endpoints; give one of them another port"
    )
    standing.look({WEB: (local_balancer(sessionAffinity="ClientIP"), ())}, notes)
    standing.look({other.metadata.key: (other, (local_slice(LOCAL_HERE),))}, notes)
    assert len(notes) == 1
    standing.look(
        {
            other.metadata.key: (
                service("other", cluster_ip="10.96.0.11", node_port=31000, protocol="UDP"),
                (),
            )
        },
        notes,
    )
    standing.look(
        {other.metadata.key: (service("other", cluster_ip="fd00::11", node_port=31000), ())}, notes
    )
    assert len(notes) == 1, "neither UDP nor the other family is in its way"
    standing.look({WEB: (None, ())}, notes)
    standing.look({other.metadata.key: (other, ())}, notes)
    assert len(notes) == 1
    standing.look({WEB: (local_balancer(), ())}, notes)
    assert len(notes) == 2


@pytest.mark.contract("7.2.3", "7.2.4", "7.2.5")
@pytest.mark.parametrize(
    ("endpoints", "healthy", "code"),
    [(0, True, 503), (1, True, 200), (7, True, 200), (7, False, 503), (0, False, 503)],
)
def test_answer(endpoints: int, code: int, *, healthy: bool) -> None:
    found = answer(WEB, endpoints, healthy=healthy)
    assert found.code == code
    assert found.headers == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(endpoints),
    }
    assert body(found) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    }


INTERFACES = [
    parse_address(a)
    for a in ("127.0.0.1", "192.168.50.11", "10.1.2.3", "::1", "fd00:50::11", "fe80::1")
]
NETWORKS = (parse_network("127.0.0.0/8"), parse_network("192.168.0.0/16"))


@pytest.mark.contract("7.2.2")
@pytest.mark.parametrize(
    ("family", "networks", "interfaces", "expected"),
    [
        pytest.param(V4, ALL, INTERFACES, ("0.0.0.0",), id="all, IPv4"),  # noqa: S104
        pytest.param(V6, ALL, INTERFACES, ("::",), id="all, IPv6"),
        pytest.param(
            V4,
            NETWORKS,
            INTERFACES,
            ("127.0.0.1", "192.168.50.11"),
            id="those listed, loopback too",
        ),
        pytest.param(V6, (parse_network("fd00:50::/64"),), INTERFACES, ("fd00:50::11",), id="IPv6"),
        pytest.param(
            V6, (parse_network("fe80::/10"),), INTERFACES, (), id="link-local cannot be bound"
        ),
        pytest.param(V4, (parse_network("172.16.0.0/12"),), INTERFACES, (), id="none matches"),
        pytest.param(V4, NETWORKS, None, ("0.0.0.0",), id="the look-up failed"),  # noqa: S104
    ],
)
def test_listen_on(
    family: Family,
    networks: NodePortNetworks,
    interfaces: list[Address] | None,
    expected: tuple[str, ...],
) -> None:
    assert listen_on(family, networks, interfaces) == expected
