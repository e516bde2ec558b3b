"""What people type to say what they ask about."""

import pytest

from nftproxy.address import parse_address
from nftproxy.errors import ConfigError
from nftproxy.model import ObjectName
from nftproxy.path.request import AskedTarget, parse_target, request

WEB = ObjectName("default", "web")


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("default/web", AskedTarget("default/web", WEB)),
        ("default/web:http", AskedTarget("default/web:http", WEB, "http")),
        ("default/web:80", AskedTarget("default/web:80", WEB, "80")),
        (
            "10.96.0.10:80",
            AskedTarget("10.96.0.10:80", address=parse_address("10.96.0.10"), port=80),
        ),
        ("[fd00::1]:80", AskedTarget("[fd00::1]:80", address=parse_address("fd00::1"), port=80)),
        ("fd00::1", AskedTarget("fd00::1", address=parse_address("fd00::1"))),
        ("30080", AskedTarget("30080", port=30080)),
        (
            "10.96.0.10:53/udp",
            AskedTarget(
                "10.96.0.10:53/udp",
                address=parse_address("10.96.0.10"),
                port=53,
                protocol="udp",
            ),
        ),
        (
            "[fd00::1]:53/udp",
            AskedTarget(
                "[fd00::1]:53/udp", address=parse_address("fd00::1"), port=53, protocol="udp"
            ),
        ),
        ("*:30080/tcp", AskedTarget("*:30080/tcp", port=30080, protocol="tcp")),
        ("30080/tcp", AskedTarget("30080/tcp", port=30080, protocol="tcp")),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_a_target_means(text: str, means: AskedTarget) -> None:
    assert parse_target(text) == means
    assert request(text).protocol == means.protocol


@pytest.mark.parametrize(
    "text",
    ["", "a b", "default/web:a:b", "10.96.0.10:99999", "0", "x/y/z", "default/WEB", "*:80", "/tcp"],
)
def test_what_means_nothing(text: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_target(text)
    assert "name a Service as NAMESPACE/NAME" in found.value.hint


@pytest.mark.parametrize("text", ["web", "web:http", "my-web.v1"])
def test_a_forgotten_namespace(text: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_target(text)
    assert found.value.hint.startswith(f"did you mean default/{text}? ")


def test_two_protocols() -> None:
    assert request("10.96.0.10:80/tcp", protocol="tcp").protocol == "tcp"
    with pytest.raises(ConfigError):
        request("10.96.0.10:80/tcp", protocol="udp")
