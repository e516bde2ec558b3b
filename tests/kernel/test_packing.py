"""Keys and values packed by ourselves are, byte for byte, what libnftables writes and the kernel
returns.
"""

from typing import Any

import pytest

from nftproxy.address import Family
from nftproxy.model import Object
from nftproxy.routes import Key, Value
from nftproxy.table.packing import pack_value, shape
from nftproxy.table.schema import is_compared
from tests.support.objects import annotated, endpoint, endpoint_slice, service
from tests.support.tables import bare_table


def everything(family: Family) -> list[Object]:
    """Services of every kind, so that each map and set holds something."""
    four = family is Family.IPv4
    ip, pod, vip = (
        ("10.96.0.", "10.244.1.", "203.0.113.")
        if four
        else ("fd00:10:96::", "fd00:244:1::", "fd00:beef::")
    )
    allowed = ["198.51.100.0/24", "192.0.2.1/32"] if four else ["2001:db8::/32"]
    local = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    whole = {"nftproxy.io/affinity-scope": "service"}
    specs: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["node1", "node2", "node3"]),
        ({"protocol": "UDP", "node_port": 30001}, ["node1", "node2"]),
        ({"protocol": "SCTP", "vips": [f"{vip}1"], "loadBalancerSourceRanges": allowed}, ["node2"]),
        ({"vips": [f"{vip}2"], "node_port": 30003, **local}, ["node1", "node2"]),
        ({"vips": [f"{vip}3"], "node_port": 30004, **local}, ["node2"]),
        ({"externalIPs": [f"{vip}4"], "node_port": 30005}, []),
        ({"sessionAffinity": "ClientIP", "node_port": 30006}, ["node1", "node2"]),
        ({"sessionAffinity": "ClientIP", "vips": [f"{vip}5"], **local}, ["node1", "node2"]),
        (
            {"sessionAffinity": "ClientIP", "annotations": whole, "vips": [f"{vip}6"], **local},
            ["node1", "node2"],
        ),
        ({"scheduler": "source-hash", "node_port": 30007, **local}, ["node1", "node2"]),
    ]
    found: list[Object] = []
    for number, (spec, nodes) in enumerate(specs):
        members = [endpoint(f"{pod}{number}{place}", node) for place, node in enumerate(nodes)]
        protocol = spec.get("protocol", "TCP")
        scheduler = spec.pop("scheduler", None)
        item = service(f"web{number}", f"{ip}{number + 10}", **spec)
        found.append(annotated(item, scheduler=scheduler))
        found.append(endpoint_slice(f"web{number}", members, protocol=protocol, family=family))
    return found


@pytest.mark.parametrize("family", Family)
def test_the_kernel_packs_as_we_do(family: Family) -> None:
    """What libnftables wrote and the kernel returns is, byte for byte, what packing makes of the
    values.
    """
    with bare_table(families=[family]) as table:
        for item in everything(family):
            table.store.put(item)
        table.sync(family, [])
        filled = 0
        for where in table.kernel.sets:
            if is_compared(where, family):
                fields = shape(where)
                assert fields is not None
                elements: dict[Key, Value] = table.kernel.elements(where)
                packed = {
                    fields.key.pack(key): pack_value(value, fields.value)
                    for key, value in elements.items()
                }
                assert table.kernel.packed([where]) == {where: packed}
                filled += bool(packed)
        assert filled > 20
