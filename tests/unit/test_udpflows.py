"""Where UDP flows may go, and when a clean-up is due: pure."""

from typing import Any

import pytest

from nftproxy.address import Address, Family, parse_address, parse_network
from nftproxy.configuration.settings import ALL, NodePortNetworks
from nftproxy.model import ObjectName
from nftproxy.node.udpflows import UdpFlows, nodeport_addresses, udp_frontends
from nftproxy.routes import Frontend
from nftproxy.selection import Endpoint
from tests.support.objects import endpoint, endpoint_slice, service

WEB = ObjectName("default", "web")
POD = Endpoint("10.244.1.2", 8080)
OTHER = Endpoint("10.244.2.2", 8080)


def udp(**spec: Any) -> Any:
    return service(**{"protocol": "UDP", "port": 53, **spec})


def slice_of(*endpoints: dict[str, Any], **options: Any) -> Any:
    return endpoint_slice(endpoints=endpoints, **{"protocol": "UDP", **options})


def at(address: str, port: int = 53) -> Frontend:
    return Frontend(address, "udp", port)


EVERYWHERE = {
    "cluster_ip": "10.96.0.10",
    "node_port": 30053,
    "vips": ["203.0.113.9"],
    "externalIPs": ["198.51.100.7"],
}


@pytest.mark.parametrize(
    ("spec", "frontends"),
    [
        pytest.param({}, [at("10.96.0.10")], id="a ClusterIP"),
        pytest.param(
            EVERYWHERE,
            [at("10.96.0.10"), at("198.51.100.7"), at("203.0.113.9"), at("", 30053)],
            id="every kind of frontend",
        ),
        pytest.param({"protocol": "TCP"}, [], id="TCP is none of our business"),
        pytest.param({"protocol": "SCTP"}, [], id="nor is SCTP"),
        pytest.param({"cluster_ip": "None"}, [], id="headless"),
        pytest.param({"cluster_ip": "fd00:10:96::10"}, [], id="another family"),
    ],
)
@pytest.mark.contract("6.2.3", "6.2.5")
def test_frontends(spec: dict[str, Any], frontends: list[Frontend]) -> None:
    found = udp_frontends(udp(**spec), [slice_of(endpoint("10.244.1.2"))], Family.IPv4)
    assert found == dict.fromkeys(frontends, frozenset({POD}))


def test_external_ips_can_be_switched_off() -> None:
    found = udp_frontends(udp(externalIPs=["198.51.100.7"]), [], Family.IPv4, external_ips=False)
    assert found == {at("10.96.0.10"): frozenset()}


@pytest.mark.parametrize(
    ("conditions", "stays"),
    [
        pytest.param({"ready": True, "serving": True}, True, id="ready"),
        pytest.param({"ready": False, "serving": True}, True, id="serving, not ready"),
        pytest.param(
            {"ready": False, "serving": True, "terminating": True}, True, id="serving, terminating"
        ),
        pytest.param({"ready": False, "serving": False}, False, id="not serving"),
        pytest.param(
            {"ready": False, "serving": False, "terminating": True},
            False,
            id="not serving, terminating",
        ),
        pytest.param(
            {"ready": True, "serving": False},
            False,
            id="published though not ready, beside one that serves",
        ),
        pytest.param({"ready": True, "zones": ["elsewhere"]}, True, id="hinted to another zone"),
    ],
)
@pytest.mark.contract("6.2.2")
def test_which_endpoints_flows_stay_with(conditions: dict[str, Any], stays: bool) -> None:
    slices = [slice_of(endpoint("10.244.1.2", **conditions), endpoint("10.244.2.2", "elsewhere"))]
    policies = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    found = udp_frontends(udp(**policies), slices, Family.IPv4)
    assert found == {at("10.96.0.10"): frozenset({OTHER, *([POD] if stays else [])})}


def test_published_endpoints_count_where_none_serves() -> None:
    found = udp_frontends(
        udp(), [slice_of(endpoint("10.244.1.2", ready=True, serving=False))], Family.IPv4
    )
    assert found == {at("10.96.0.10"): frozenset({POD})}, (
        "the table sends clients there, so their flows are healthy"
    )


@pytest.mark.parametrize(
    ("networks", "accepted"),
    [
        pytest.param((parse_network("192.168.50.0/24"),), {"192.168.50.11"}, id="some"),
        pytest.param(ALL, {"192.168.50.11", "10.244.1.1"}, id="all but loopback"),
    ],
)
def test_nodeport_addresses(networks: NodePortNetworks, accepted: set[str]) -> None:
    own: list[Address] = [
        parse_address(a) for a in ("192.168.50.11", "10.244.1.1", "127.0.0.1", "fd00:50::11")
    ]
    assert nodeport_addresses(Family.IPv4, networks, own) == accepted


class TestDue:
    def test_tcp_alone_never_makes_it_due(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (service(), (endpoint_slice(endpoints=[endpoint("10.244.1.2")]),))})
        assert not flows.due

    @pytest.mark.contract("6.2.1")
    def test_an_endpoint_change_makes_it_due_until_cleaned(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        assert not flows.due
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.2.2")),))})
        assert flows.due
        flows.saw({})
        assert flows.due, "a sync in between that looked at nothing forgets nothing"
        flows.cleaned()
        assert not flows.due
        assert flows.expected() == {at("10.96.0.10"): {OTHER}}

    @pytest.mark.parametrize(
        "after",
        [
            pytest.param(
                (udp(node_port=30053), (slice_of(endpoint("10.244.1.2")),)), id="a new NodePort"
            ),
            pytest.param((udp(), ()), id="scaled to zero"),
            pytest.param((None, ()), id="the Service is gone"),
            pytest.param(
                (service(), (slice_of(endpoint("10.244.1.2")),)), id="the UDP port is gone"
            ),
        ],
    )
    def test_other_changes_make_it_due(self, after: Any) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        flows.saw({WEB: after})
        assert flows.due

    def test_what_is_gone_is_expected_nowhere_until_cleaned(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(node_port=30053), (slice_of(endpoint("10.244.1.2")),))})
        flows.saw({WEB: (udp(node_port=30054), (slice_of(endpoint("10.244.1.2")),))})
        flows.saw({WEB: (None, ())})
        assert flows.expected() == dict.fromkeys(
            [at("10.96.0.10"), at("", 30053), at("", 30054)], frozenset()
        )
        flows.cleaned()
        assert flows.expected() == {}

    def test_what_comes_back_is_expected_again(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.saw({WEB: (None, ())})
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.2.2")),))})
        assert flows.expected() == {at("10.96.0.10"): {OTHER}}

    def test_a_frontend_that_passes_to_another_service_is_not_gone(self) -> None:
        flows = UdpFlows(Family.IPv4)
        other = udp(name="other", cluster_ip="10.96.0.11", externalIPs=["198.51.100.7"])
        flows.saw(
            {
                WEB: (udp(externalIPs=["198.51.100.7"]), (slice_of(endpoint("10.244.1.2")),)),
                other.metadata.key: (other, (slice_of(endpoint("10.244.2.2"), of="other"),)),
            }
        )
        assert flows.expected()[at("198.51.100.7")] == {OTHER}, "`other` comes before `web`"
        flows.saw({WEB: (None, ())})
        assert flows.expected()[at("198.51.100.7")] == {OTHER}

    def test_a_cluster_ip_that_was_an_external_address_leads_to_its_own_service(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(externalIPs=["10.96.0.11"]), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        other = udp(name="young", cluster_ip="10.96.0.11", created="2026-01-02T00:00:00Z")
        flows.saw({other.metadata.key: (other, (slice_of(endpoint("10.244.2.2"), of="young"),))})
        assert flows.due
        assert flows.expected()[at("10.96.0.11")] == {OTHER}

    def test_addresses_that_come_and_go_make_it_due(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(node_port=30053), (slice_of(endpoint("10.244.1.2")),))})
        flows.accept_nodeports_on(["192.0.2.1", "192.0.2.2"])
        flows.cleaned()
        flows.accept_nodeports_on(["192.0.2.2", "192.0.2.1"])
        assert not flows.due
        flows.accept_nodeports_on(["192.0.2.1", "192.0.2.3"])
        assert flows.due
        assert flows.here == {"192.0.2.1", "192.0.2.3"}
        assert flows.expected()[at("192.0.2.2", 30053)] == frozenset(), (
            "what was translated there leads nowhere"
        )
        assert at("192.0.2.3", 30053) not in flows.expected()
        flows.accept_nodeports_on(["192.0.2.1", "192.0.2.2"])
        assert flows.expected().keys() == {at("10.96.0.10"), at("", 30053), at("192.0.2.3", 30053)}
        flows.cleaned()
        assert flows.expected() == {at("10.96.0.10"): {POD}, at("", 30053): {POD}}

    def test_addresses_matter_to_nodeports_alone(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        flows.accept_nodeports_on(["192.0.2.1"])
        assert not flows.due

    def test_what_was_not_there_when_everything_was_looked_at_is_gone(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        flows.saw({}, everything=True)
        assert flows.due
        assert flows.expected() == {at("10.96.0.10"): frozenset()}

    def test_what_the_kernel_refused_stays_as_it_was(self) -> None:
        flows = UdpFlows(Family.IPv4)
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.1.2")),))})
        flows.cleaned()
        flows.saw({WEB: (udp(), (slice_of(endpoint("10.244.2.2")),))}, refused={WEB})
        assert not flows.due
        assert flows.expected() == {at("10.96.0.10"): {POD}}
