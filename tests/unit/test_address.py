"""Addresses and networks: many spellings, one canonical text (contract 2.1.5)."""

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import (
    Address,
    Family,
    Network,
    between,
    collapse,
    mask,
    pack,
    parse_address,
    parse_network,
)
from nftproxy.errors import AddressError

V4, V6 = Family.IPv4, Family.IPv6

ADDRESSES = {
    "10.20.3.4": Address(V4, "10.20.3.4"),
    "010.020.003.004": Address(V4, "10.20.3.4"),
    "08.09.0.000": Address(V4, "8.9.0.0"),  # decimal, not octal
    "255.255.255.255": Address(V4, "255.255.255.255"),
    "fd00::1": Address(V6, "fd00::1"),
    "FD00:0:0:0:0:0:0:1": Address(V6, "fd00::1"),
    "fd00:0000::0001": Address(V6, "fd00::1"),
    "2001:db8:0:1:1:1:1:1": Address(V6, "2001:db8:0:1:1:1:1:1"),
    "::": Address(V6, "::"),
    "::1": Address(V6, "::1"),
    "::ffff:192.0.2.1": Address(V4, "192.0.2.1"),
    "::FFFF:c000:0201": Address(V4, "192.0.2.1"),
    "::ffff:192.000.002.001": Address(V4, "192.0.2.1"),
    "::192.0.2.1": Address(V6, "::c000:201"),  # compatible, not mapped; never printed with dots
    "64:ff9b::192.0.2.33": Address(V6, "64:ff9b::c000:221"),
}

NO_ADDRESSES = [
    "",
    " ",
    " 10.0.0.1",
    "10.0.0.1 ",
    "10.0.0",
    "10.0.0.0.1",
    "10.0.0.256",
    "10.0.0.-1",
    "10.0.0.+1",
    "10.0.0.00001",
    "10.0.0.\uff11",
    "0x10.0.0.1",
    "10.1",
    "167772161",
    "1e1.0.0.1",
    "10.0.0.1/32",
    "localhost",
    "example.com",
    "*",
    "fd00::1%eth0",
    "[fd00::1]",
    "fd00::1::2",
    "fd00",
    ":",
    ":::",
    "fd00::g",
    "::ffff:256.0.0.1",
    "10.0.0.1\n",
    "10.0.0.1\0",
    "\ud800",
    "1" * 1000,
    "." * 3,
    "::" + "." * 3,
    "::1.2.3.x",
]


@pytest.mark.contract("2.1.5")
@pytest.mark.parametrize(("text", "expected"), ADDRESSES.items(), ids=ADDRESSES)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(expected.text) == expected


@pytest.mark.parametrize("text", NO_ADDRESSES, ids=ascii)
def test_what_is_no_address(text: str) -> None:
    """None of these may reach libnftables, which would ask DNS, or abort."""
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


NETWORKS = {
    "192.0.2.0/24": Network(V4, "192.0.2.0", 24),
    "192.0.2.000/024": Network(V4, "192.0.2.0", 24),
    "192.0.2.77/24": Network(V4, "192.0.2.0", 24),
    "10.1.2.3/0": Network(V4, "0.0.0.0", 0),  # noqa: S104 - the network, nothing is bound
    "10.1.2.3/32": Network(V4, "10.1.2.3", 32),
    "fd00::1/64": Network(V6, "fd00::", 64),
    "FD00:0:0:1::/61": Network(V6, "fd00::", 61),
    "::/0": Network(V6, "::", 0),
    "::ffff:10.1.2.3/104": Network(V4, "10.0.0.0", 8),
    "::ffff:0:0/96": Network(V4, "0.0.0.0", 0),  # noqa: S104 - see above
}

NO_NETWORKS = [
    "10.0.0.0",
    "10.0.0.0/",
    "/8",
    "10.0.0.0/33",
    "fd00::/129",
    "10.0.0.0/-1",
    "10.0.0.0/+8",
    "10.0.0.0/8.0",
    "10.0.0.0/255.0.0.0",
    "10.0.0.0/ 8",
    "10.0.0.0/8/8",
    "10.0.0.0/0000000008",
    "10.0.0.0/\uff18",
    "::ffff:10.0.0.0/8",
    "x/8",
    "",
]


@pytest.mark.contract("2.1.5", "2.7.1")
@pytest.mark.parametrize(("text", "expected"), NETWORKS.items(), ids=NETWORKS)
def test_networks(text: str, expected: Network) -> None:
    assert parse_network(text) == expected
    assert parse_network(str(expected)) == expected


@pytest.mark.parametrize("text", NO_NETWORKS, ids=ascii)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(AddressError):
        parse_network(text)


numbers = {V4: st.integers(0, (1 << 32) - 1), V6: st.integers(0, (1 << 128) - 1)}
families = st.sampled_from(list(Family))
KINDS: dict[Family, type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]] = {
    V4: ipaddress.IPv4Address,
    V6: ipaddress.IPv6Address,
}


@given(st.data(), families)
def test_any_address_in_any_spelling(data: st.DataObject, family: Family) -> None:
    """The standard library agrees, and packing is what the kernel gets."""
    reference: ipaddress.IPv4Address | ipaddress.IPv6Address = KINDS[family](
        data.draw(numbers[family])
    )
    found = parse_address(
        data.draw(
            st.sampled_from([reference.compressed, reference.exploded, reference.exploded.upper()])
        )
    )
    mapped = reference.ipv4_mapped if isinstance(reference, ipaddress.IPv6Address) else None
    assert ipaddress.ip_address(found.text) == (mapped or reference)
    assert found.family is (V4 if mapped else family)
    assert pack(found.text) == (mapped or reference).packed
    assert "." not in found.text or found.family is V4


@given(st.data(), families)
def test_masks(data: st.DataObject, family: Family) -> None:
    number, length = data.draw(numbers[family]), data.draw(st.integers(0, family.bits))
    address = parse_address(str(KINDS[family](number)))
    if address.family is not family:
        return
    expected = ipaddress.ip_network(f"{address.text}/{length}", strict=False)
    assert ipaddress.ip_address(mask(address, length).text) == expected.network_address
    other = parse_address(str(KINDS[family](data.draw(numbers[family]))))
    network = Network(family, mask(address, length).text, length)
    assert network.contains(address)
    assert network.contains(other) == (
        other.family is family and ipaddress.ip_address(other.text) in expected
    )


@given(st.text())
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    for parse in (parse_address, parse_network):
        with contextlib.suppress(AddressError):  # anything else fails the test
            assert parse(str(parse(text)[1] if parse is parse_address else parse(text))) == parse(
                text
            )


@given(
    st.lists(
        st.builds(
            lambda n, p: parse_network(f"{ipaddress.IPv4Address(n << 24)}/{p}"),
            st.integers(0, 255),
            st.integers(0, 12),
        )
    )
)
def test_collapsed_networks_do_not_overlap_and_hold_the_same(networks: list[Network]) -> None:
    found = collapse(networks)
    assert found == sorted(found, key=lambda network: pack(network.text))
    for number in range(256):
        address = Address(V4, f"{number}.0.0.1")
        assert sum(n.contains(address) for n in found) == any(n.contains(address) for n in networks)


@pytest.mark.contract("1.5.1", "2.5.7")
@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("10.96.0.0", "10.96.255.255", ["10.96.0.0/16"]),
        ("10.95.0.0", "10.96.255.255", ["10.95.0.0/16", "10.96.0.0/16"]),
        ("0.0.0.0", "255.255.255.255", ["0.0.0.0/0"]),  # noqa: S104 - see above
        ("10.0.0.5", "10.0.0.9", ["10.0.0.5/32", "10.0.0.6/31", "10.0.0.8/31"]),
        ("10.0.0.5", "10.0.0.5", ["10.0.0.5/32"]),
        ("fd00::", "fd00::ffff", ["fd00::/112"]),
        ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ["::/0"]),
    ],
)
def test_networks_between_two_addresses(first: str, last: str, expected: list[str]) -> None:
    low, high = (int(ipaddress.ip_address(text)) for text in (first, last))
    assert [
        str(network) for network in between(low, high + 1, parse_address(first).family)
    ] == expected
