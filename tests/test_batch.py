"""Elements packed by ourselves are the elements that nft would have written; and the kernel's word on what it refuses arrives."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftproxy.address import Family, parse_address
from nftproxy.batch import Add, Remove, encode
from nftproxy.compiler import Affinity, Key, Value, Verdict
from nftproxy.errors import ExistsError, KernelError, MissingError
from nftproxy.kernel import Kernel
from nftproxy.lab import namespace
from nftproxy.lab.namespace import enter
from nftproxy.packing import comment, pack_value, shape, unpack_comment, unpack_value
from nftproxy.preview import line
from nftproxy.program import Program
from nftproxy.selection import Endpoint
from tests.world import settings, unique_name

LOCAL = "10.96.0.10", "fd00:10:96::10"
ENDPOINT = "10.244.1.2", "fd00:244:1::2"
GOTO = Verdict("goto", "reject-new", "default/web:http")

# Set or map (without its family) -> elements with the addresses of a family filled in.
ELEMENTS: dict[str, dict[tuple[Any, ...], Any]] = {
    "cluster_ips": {("{ip}",): None},
    "nodeport_ips": {("{ip}",): None},
    "hairpin": {("{pod}", "{pod}", "sctp", 8080): None},
    "firewall": {("{ip}", "tcp", 80): Verdict("goto", "allowed{v}")},
    "allowed{v}-24": {("{ip}", "udp", 53, "{ip}"): None},
    "services": {("{ip}", "tcp", 80): GOTO, ("{ip}", "udp", 53): Verdict("goto", "reject-new")},
    "internal": {("{ip}", "sctp", 65535): Verdict("jump", "reject-new", "x" * 127)},
    "no_endpoints": {("{ip}", "tcp", 1): Verdict("drop", "", "default/web")},
    "nodeport_services": {("tcp", 30080): GOTO},
    "nodeport_no_endpoints": {("udp", 30080): Verdict("drop")},
    "endpoints{v}-tcp": {("{ip}", 80, 0): Endpoint("{pod}", 8080), ("{ip}", 80, 258): Endpoint("{pod}", 1)},
    "local_endpoints{v}-udp": {("{ip}", 53, 65535): Endpoint("{pod}", 65535)},
    "nodeport_endpoints{v}-sctp": {(30080, 1): Endpoint("{pod}", 8080)},
    "cluster_members{v}-default/web/tcp/http": {("{pod}", 8080): None},
    "affinity{v}-default/web/tcp/http-8080": {("{ip}",): "{pod}"},
}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A kernel with our program, an allowed set and a ClientIP service port in it, in a namespace of its own."""
    name = f"{unique_name()}.batch"
    namespace.create(name)
    with enter(name):
        found = Kernel()
    try:
        with found:
            program = Program(settings())
            found.load(program)
            for family in Family:
                endpoints = (Endpoint(ENDPOINT[family is Family.IPv6], 8080),)
                affinity = Affinity("default/web/tcp/http", family, "tcp", 10800, endpoints, ())
                found.ensure_for(_delta(family), program, [affinity])
            yield found
    finally:
        namespace.delete(name)


def _delta(family: Family) -> Any:
    from nftproxy.difference import Delta

    delta = Delta()
    delta.added[f"allowed{family.digit}-24"] = {}
    return delta


def _filled(where: str, family: Family) -> tuple[str, dict[Key, Value]]:
    v = family.digit
    second = family is Family.IPv6

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.format(v=v, ip=LOCAL[second], pod=ENDPOINT[second])
        return type(value)(*map(fill, value)) if isinstance(value, Verdict | Endpoint) else value

    name = where.format(v=v) if "{v}" in where else where + v
    return name, {tuple(map(fill, key)): fill(value) for key, value in ELEMENTS[where].items()}


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("where", ELEMENTS)
def test_what_is_sent_is_read_back_and_goes_again(kernel: Kernel, where: str, family: Family) -> None:
    name, elements = _filled(where, family)
    kernel._send([Add(name, elements)])
    assert kernel.elements(name) == elements
    kernel._send([Remove(name, elements)])
    assert kernel.elements(name) == {}


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("where", ELEMENTS)
def test_nft_would_have_written_the_same(kernel: Kernel, where: str, family: Family) -> None:
    """Adding an element with nft and then by ourselves changes nothing and is no error; with another value it would be one."""
    name, elements = _filled(where, family)
    rows = ",\n".join(line(*item) for item in elements.items())
    kernel._run(f"add element inet nftproxy {name} {{\n{rows}\n}}")
    kernel._send([Add(name, elements)])
    read = kernel.elements(name)
    kernel._send([Remove(name, elements)])
    assert read == elements


def test_order_within_a_transaction(kernel: Kernel) -> None:
    key, other = ("10.96.0.1", 80, 0), Endpoint("10.244.1.9", 80)
    kernel._send([Add("endpoints4-tcp", {key: Endpoint("10.244.1.1", 80)})])
    kernel._send([Remove("endpoints4-tcp", [key]), Add("endpoints4-tcp", {key: other})])
    assert kernel.elements("endpoints4-tcp") == {key: other}
    kernel._send([Add("endpoints4-tcp", {key: other}), Remove("endpoints4-tcp", [key])])
    assert kernel.elements("endpoints4-tcp") == {}


def test_a_transaction_larger_than_a_message(kernel: Kernel) -> None:
    elements: dict[Key, Value] = {(f"10.96.{n >> 8}.{n & 255}", 80, 0): Endpoint("10.244.1.1", 80) for n in range(20_000)}
    assert len(encode([Add("endpoints4-tcp", elements)])) > 10
    kernel._send([Add("endpoints4-tcp", elements)])
    assert kernel._reader.count("endpoints4-tcp") == 20_000
    kernel._send([Remove("endpoints4-tcp", elements)])
    assert kernel._reader.count("endpoints4-tcp") == 0


def test_nothing_is_no_transaction(kernel: Kernel) -> None:
    assert encode([]) == encode([Add("services4", {}), Remove("services4", ())]) == []
    kernel._send([])


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        (Remove("endpoints4-tcp", [("10.96.0.9", 80, 7)]), MissingError, "endpoints4-tcp: 10.96.0.9 . 80 . 7: No such file"),
        (Remove("cluster_ips4", [("10.96.0.9",)]), MissingError, "cluster_ips4: 10.96.0.9: No such file"),
        (
            Add("services4", {("10.96.0.9", "tcp", 80): Verdict("goto", "no-such-chain")}),
            MissingError,
            "services4: 10.96.0.9 . tcp . 80: No such file",
        ),
        (
            Add("endpoints4-tcp", {("10.96.0.200", 80, 0): Endpoint("10.244.9.9", 1)}),
            ExistsError,
            "10.96.0.200 . 80 . 0: File exists",
        ),
        (Add("allowed4-31", {("10.96.0.9", "tcp", 80, "10.0.0.0"): None}), MissingError, "No such file"),
        (Add("none-of-ours", {}), KernelError, "none-of-ours"),
        (Add("services4", {("10.96.0.9", "tcp", 80): Verdict("goto", "nat-prerouting")}), KernelError, "10.96.0.9 . tcp . 80"),
    ],
    ids=[
        "no such slot",
        "no such address",
        "no such chain",
        "another value",
        "no such set",
        "not of the program",
        "a base chain",
    ],
)
def test_what_is_refused_is_named_and_nothing_happens(
    kernel: Kernel, command: Add | Remove, error: type[KernelError], says: str
) -> None:
    standing: dict[Key, Value] = {("10.96.0.200", 80, 0): Endpoint("10.244.1.1", 80)}
    others: dict[Key, Value] = {(f"10.96.9.{n}", 80, 0): Endpoint("10.244.1.1", 80) for n in range(200)}
    kernel._send([Add("endpoints4-tcp", standing)])
    try:
        with pytest.raises(error, match=says):
            kernel._send([Add("endpoints4-tcp", others), command])
        assert kernel.elements("endpoints4-tcp") == standing
    finally:
        kernel._send([Remove("endpoints4-tcp", standing)])


def test_a_loop_is_refused_when_it_closes(kernel: Kernel) -> None:
    """What only the whole transaction shows comes without the name of an element."""
    with pytest.raises(KernelError, match="links"):
        kernel._send([Add("services4", {("10.96.0.9", "tcp", 80): Verdict("jump", "services4")})])
    assert kernel.elements("services4") == {}


def test_without_permission() -> None:
    code = """
import os
from nftproxy.batch import Add, Sender
os.setuid(65534)
Sender().send([Add("cluster_ips4", {("10.96.0.9",): None})])
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "KernelError: Operation not permitted" in done.stderr, done


addresses4 = st.ip_addresses(v=4).map(lambda a: parse_address(str(a)).text)
addresses6 = (
    st.ip_addresses(v=6).map(lambda a: parse_address(str(a))).filter(lambda a: a.family is Family.IPv6).map(lambda a: a.text)
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


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_comments_lose_nothing(text: str) -> None:
    assert unpack_comment(comment(text)) == text
