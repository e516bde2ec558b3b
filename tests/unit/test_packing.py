"""Packing keys and values loses nothing.

The tests in tests/kernel/test_packing.py compare with what libnftables writes.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import Family, parse_address
from nftproxy.routes import Verdict
from nftproxy.table.packing import comment, pack_value, shape, unpack_comment, unpack_value

addresses4 = st.ip_addresses(v=4).map(lambda a: parse_address(str(a)).text)
addresses6 = (
    st.ip_addresses(v=6)
    .map(lambda a: parse_address(str(a)))
    .filter(lambda a: a.family is Family.IPv6)
    .map(lambda a: a.text)
)
ports = st.integers(0, 65535)
protocols = st.sampled_from(["tcp", "udp", "sctp"])


@given(st.data())
def test_packing_loses_nothing(data: st.DataObject) -> None:
    addresses = {"4": addresses4, "6": addresses6}[v := data.draw(st.sampled_from("46"))]
    rows: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
        f"cluster_ips{v}": (addresses,),
        f"services{v}": (addresses, protocols, ports),
        f"nodeport_services{v}": (protocols, ports),
        f"endpoints{v}-tcp": (addresses, ports, ports),
        f"nodeport_endpoints{v}-tcp": (ports, ports),
        f"hairpin{v}": (addresses, addresses, protocols, ports),
        f"allowed{v}-8": (addresses, protocols, ports, addresses),
        f"local_members{v}-ns/web/tcp/": (addresses, ports),
    }
    name = data.draw(st.sampled_from(sorted(rows)))
    key = data.draw(st.tuples(*rows[name]))
    held = shape(name)
    assert held is not None
    assert held.key.unpack(held.key.pack(key)) == key
    if held.value:
        value = data.draw(st.tuples(addresses, ports))
        assert unpack_value(pack_value(value, held.value), held.value) == value


@given(
    st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60
    )
)
def test_comments_lose_nothing(text: str) -> None:
    assert unpack_comment(comment(text)) == text


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Verdict("goto", "a"), Verdict("jump", "a")),
        (Verdict("goto", "a"), Verdict("goto", "b")),
        (Verdict("goto", "a"), Verdict("goto", "a", "comment")),
        (Verdict("drop"), Verdict("goto", "drop")),
    ],
    ids=["verb", "target", "comment", "drop"],
)
def test_different_verdicts_are_packed_differently(left: Verdict, right: Verdict) -> None:
    assert pack_value(left, None) != pack_value(right, None)
