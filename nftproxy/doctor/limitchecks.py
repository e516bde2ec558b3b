"""Checks of limits: how full conntrack is, and what it lost. Pure."""

from nftproxy.doctor.facts import Facts
from nftproxy.doctor.model import Finding, Unknown, bad, known, ok, warning

_HIGH, _FULL = 0.75, 0.95


def conntrack(facts: Facts) -> Finding:
    """Judge how full the table of connections is."""
    count, limit = known(facts.fill)
    if not limit:
        return ok(f"{count} connections, without a limit")
    found = f"{count} of {limit} connections ({100 * count // limit} %)"
    cure = f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"
    keep = "in the configuration, conntrack.min keeps it"
    if count >= _FULL * limit:
        return bad(found, f"new connections are dropped, of Services and others; {keep}", cure)
    if count >= _HIGH * limit:
        return warning(found, f"at the limit, new connections are dropped; {keep}", cure)
    return ok(found)


def drops(facts: Facts) -> Finding:
    """Judge whether conntrack dropped packets for want of room or memory."""
    before, after = known(facts.tracking)
    lost, early = after.without_room, after.early_drop
    found = f"{lost} packets dropped, {early} connections ended early to make room"
    if lost > before.without_room or early > before.early_drop:
        limit = 0 if isinstance(facts.fill, Unknown) else facts.fill.limit
        return bad(
            f"{found}, more every second",
            "the table of connections is full: clients see time-outs",
            *([f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"] if limit else []),
        )
    if lost or early:
        return warning(
            f"{found}, none in the last second",
            "the table was full once since this machine started; if the figures stay, it is over",
            "conntrack -S",
        )
    return ok("no packet dropped, no connection ended early")


def insert_failed(facts: Facts) -> Finding:
    """Judge whether connections collide."""
    before, after = known(facts.tracking)
    failed = after.insert_failed
    if failed > before.insert_failed:
        return warning(
            f"{failed} collisions (insert_failed), more every second",
            "packets are lost where two connections want the same addresses and ports, such as "
            "DNS requests for A and AAAA from one socket",
            "conntrack -S",
        )
    if failed:
        return ok(f"{failed} collisions (insert_failed) since the start, none in the last second")
    return ok("no collision")
