"""Checks of the kernel, its modules and its settings. Pure."""

import re
from collections.abc import Iterator

from nftproxy.doctor.facts import Facts, Failure
from nftproxy.doctor.model import CheckState, Finding, bad, known, ok, warning
from nftproxy.node.host import OLDEST_KERNEL

_BRIDGE = "net/bridge/bridge-nf-call-iptables"
_NOT_FORWARDED = "this node drops what it should pass on: Services with endpoints in pods fail"


def kernel(facts: Facts) -> Finding:
    """Judge the version of the kernel."""
    found = re.match(r"(\d+)\.(\d+)", facts.release)
    if found and (int(found[1]), int(found[2])) >= OLDEST_KERNEL:
        return ok(facts.release)
    return bad(
        f"{facts.release}, older than {'.'.join(map(str, OLDEST_KERNEL))}",
        "nftproxy refuses to start here: its rules need a later kernel",
        "apt-get install --only-upgrade linux-image-amd64 && reboot",
    )


def nf_tables(facts: Facts) -> Finding:
    """Judge whether the kernel has nf_tables."""
    answer = known(facts.netfilter)
    if isinstance(answer, Failure):
        return bad(answer.reason, "no rule can be written: no Service works", "modprobe nf_tables")
    return ok("the kernel answers")


def nf_conntrack(facts: Facts) -> Finding:
    """Judge whether the kernel has connection tracking."""
    if "net/netfilter/nf_conntrack_max" in facts.sysctls:
        return ok("loaded")
    return bad(
        "/proc/sys/net/netfilter/nf_conntrack_max does not exist",
        "no packet can be translated without connection tracking",
        "modprobe nf_conntrack",
    )


def library(facts: Facts) -> Finding:
    """Judge whether libnftables can be used."""
    if facts.library:
        return bad(
            facts.library.reason,
            "nftproxy cannot write its program",
            facts.library.hint or "apt-get install libnftables1",
        )
    return ok("libnftables can be loaded")


def program(facts: Facts) -> Finding:
    """Judge whether libnftables and the kernel know every expression of our program."""
    refused = known(facts.program)
    if refused and "not permitted" in refused.reason:
        return Finding(CheckState.UNCHECKED, "a rehearsal needs the capability NET_ADMIN")
    if refused:
        return bad(
            f"the program is refused: {refused.reason}",
            "the kernel lacks an expression, or libnftables is too old: nothing can be written",
            "modprobe -a nf_tables nft_fib_inet nft_numgen nft_nat nft_masq nft_reject_inet nft_ct",
            "apt-get install --only-upgrade libnftables1",
        )
    return ok("libnftables and the kernel take the whole program (rehearsed, not written)")


def ipv4_forwarding(facts: Facts) -> Finding:
    """Judge whether this node passes IPv4 packets on."""
    return _forwarding(facts, "net/ipv4/ip_forward", "net/ipv4/conf", "net.ipv4.ip_forward")


def ipv6_forwarding(facts: Facts) -> Finding:
    """Judge whether this node passes IPv6 packets on."""
    if not facts.uses_ipv6:
        return ok("no Service here has an IPv6 address")
    path = "net/ipv6/conf/all/forwarding"
    return _forwarding(facts, path, "net/ipv6/conf", "net.ipv6.conf.all.forwarding")


def _forwarding(facts: Facts, path: str, each: str, name: str) -> Finding:
    value = facts.sysctls.get(path)
    if value is None:
        return Finding(CheckState.UNCHECKED, f"/proc/sys/{path} cannot be read")
    if value == "0":
        return bad(f"{name} is 0", _NOT_FORWARDED, f"sysctl -w {name}=1")
    off = [
        interface.name
        for interface in known(facts.interfaces)
        if interface.addresses
        and interface.name != "lo"
        and facts.sysctls.get(f"{each}/{interface.name}/forwarding") == "0"
    ]
    if off and each.startswith("net/ipv4"):  # of IPv6 only the switch for all counts
        cures = (f"sysctl -w {each.replace('/', '.')}.{_dotted(one)}.forwarding=1" for one in off)
        return bad(
            f"{name} is 1, but forwarding is off on {', '.join(off)}", _NOT_FORWARDED, *cures
        )
    return ok(f"{name} is {value}")


def _dotted(interface: str) -> str:
    """Return the name of an interface as sysctl takes it: a dot in it stands as a slash."""
    return interface.replace(".", "/")


def rp_filter(facts: Facts) -> Finding:
    """Judge whether the kernel drops packets for where they came from."""
    strict = list(_strict(facts))
    if not strict:
        return ok("not strict on any interface")
    dropped = known(facts.filtered)
    if not dropped:
        return ok(f"strict on {_few(strict)}; no packet was dropped by it so far")
    return warning(
        f"strict on {_few(strict)}, and {dropped} packets were dropped by it",
        "packets are lost whose answer would leave by another interface than they came in by",
        "sysctl -w net.ipv4.conf.all.rp_filter=2",
    )


def _strict(facts: Facts) -> Iterator[str]:
    """Yield the interfaces on which the higher of both settings is 1."""
    everywhere = int(facts.sysctls.get("net/ipv4/conf/all/rp_filter", "0"))
    for interface in known(facts.interfaces):
        own = int(facts.sysctls.get(f"net/ipv4/conf/{interface.name}/rp_filter", "0"))
        if interface.name != "lo" and max(everywhere, own) == 1:
            yield interface.name


def bridge(facts: Facts) -> Finding:
    """Judge whether bridged packets pass netfilter, where pods are on a bridge."""
    interfaces = known(facts.interfaces)
    masters = {interface.master for interface in interfaces}
    bridges = [
        one.name
        for one in interfaces
        if one.kind == "bridge" and one.name in masters and one.addresses
    ]
    if not bridges:
        return ok("no bridge with ports and an address here")
    meaning = "answers between pods of one bridge bypass the rules: such connections hang"
    value = facts.sysctls.get(_BRIDGE)
    if value is None:
        return bad(
            f"br_netfilter is not loaded, and pods may be on {_few(bridges)}",
            meaning,
            "modprobe br_netfilter",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1",
        )
    six = (
        facts.sysctls.get(f"{_BRIDGE.removesuffix('iptables')}ip6tables")
        if facts.uses_ipv6
        else "1"
    )
    off = [
        f"net.bridge.bridge-nf-call-{name}"
        for name, setting in (("iptables", value), ("ip6tables", six))
        if setting == "0"
    ]
    if off:
        cures = (f"sysctl -w {name}=1" for name in off)
        found = f"{' and '.join(off)} is 0, and pods may be on {_few(bridges)}"
        return bad(found, meaning, *cures)
    return ok(f"packets on {_few(bridges)} pass netfilter")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
