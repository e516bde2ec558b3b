"""Checks of other programs that write rules. Pure."""

import shlex
from collections.abc import Iterable

from nftproxy.doctor.facts import Barrier, Facts
from nftproxy.doctor.model import CheckState, Finding, bad, known, ok, warning

_TABLES = {"raw", "mangle", "filter", "security"}


def proxies(facts: Facts) -> Finding:
    """Judge whether another mode of kube-proxy left rules, or runs."""
    found = known(facts.leftovers)
    if not found:
        if found.problems:
            return warning(
                f"not everything could be read: {found.problems[0]}",
                "rules of another proxy may be here",
            )
        return ok("no rules of another Service proxy")
    cures = [f"nft delete table {family} {name}" for family, name in found.tables]
    others = found.rules or found.interface or found.ipsets or found.virtual_services
    return bad(
        "; ".join(found.lines()),
        "two proxies translate the same Services, and each undoes what the other does. If "
        "kube-proxy "
        "still runs here, remove it first; a start of nftproxy removes what it left",
        *cures,
        *((facts.restart,) if others else ()),
    )


def foreign(facts: Facts) -> Finding:
    """Judge whether chains of others stop what Services need."""
    return _barriers(
        [one for one in known(facts.barriers) if one.owner not in {"docker", "ufw", "firewalld"}],
        "no chain of another table stops packets to endpoints",
    )


def docker(facts: Facts) -> Finding:
    """Judge whether docker's rules stop packets to pods."""
    found = [one for one in known(facts.barriers) if one.owner == "docker"]
    if not found:
        return ok("no rules of docker stop packets to endpoints")
    cures = [f"{_iptables(one) or 'iptables'} -P {one.chain} ACCEPT" for one in found]
    return _barriers(
        found,
        "",
        cures,
        "docker drops what it does not know. It sets the policy again at each start unless "
        '/etc/docker/daemon.json has "ip-forward-no-drop": true',
    )


def ufw(facts: Facts) -> Finding:
    """Judge whether ufw stops packets to pods, now or from its next start on."""
    routed = "ufw default allow routed"
    meaning = (
        "ufw drops connections to pods, which this node forwards, and to endpoints on this node"
    )
    found = (
        [one for one in facts.barriers if one.owner == "ufw"]
        if isinstance(facts.barriers, tuple)
        else []
    )
    if found:
        cures = [routed if one.hook == "forward" else _allow(one) for one in found]
        return _barriers(found, "", cures, meaning)
    settings = known(facts.ufw)
    if settings.enabled and settings.forward != "ACCEPT":
        return warning(
            f"ufw is enabled, and DEFAULT_FORWARD_POLICY is {settings.forward}", meaning, routed
        )
    return ok("enabled, and forwards" if settings.enabled else "not enabled")


def firewalld(facts: Facts) -> Finding:
    """Judge whether firewalld stops packets, and what a reload forgets."""
    found = (
        [one for one in facts.barriers if one.owner == "firewalld"]
        if isinstance(facts.barriers, tuple)
        else []
    )
    if found:
        cures = dict.fromkeys(_trust(one) for one in found)
        return _barriers(found, "", [*cures, "firewall-cmd --reload"])
    settings = known(facts.firewalld)
    if settings.enabled and settings.flushes:
        return warning(
            "FlushAllOnReload is on",
            "firewall-cmd --reload forgets what was set without --permanent, such as the zone that "
            "a network plugin put an interface into; pods may be cut off then",
            f"sed -i 's/^#* *FlushAllOnReload *=.*/FlushAllOnReload=no/' {settings.file}",
        )
    return ok("enabled, and keeps its state on reload" if settings.enabled else "not enabled")


def flush(facts: Facts) -> Finding:
    """Judge whether a service removes all tables when it is started again."""
    found = known(facts.flushes)
    used = [one for one in found if one.service]
    if not used:
        idle = f"; {found[0].file} has it, but no enabled service reads it" if found else ""
        return ok(f"no enabled service flushes all tables{idle}")
    cures = [
        f"sed -i 's/^\\s*flush ruleset/#&/' {shlex.quote(one.file)}"
        if not one.file.endswith(".service")
        else f"systemctl disable {one.service}"
        for one in used
    ]
    return warning(
        "; ".join(f"{one.file} of {one.service} has `flush ruleset`" for one in used),
        "each start, stop or reload of that service removes all tables: ours is written again a "
        "moment later, network plugins' may not be. Begin the file with "
        "`destroy table FAMILY NAME` for each of its tables in place of it",
        *dict.fromkeys(cures),
    )


def library_neighbours(facts: Facts) -> Finding:
    """Judge whether libnftables survives what other programs wrote."""
    deadly = known(facts.deadly)
    if not deadly:
        return ok("libnftables can read the tables of all programs")
    return bad(
        f"a newer nft wrote {', '.join(deadly)}, which libnftables on this machine does not "
        "survive",
        "endpoints are still applied, but new kinds of rules wait, and a first start fails; nft on "
        "this machine crashes as well. libnftables 1.1.4 or later survives it, such as that in the "
        "image "
        "of nftproxy; or let the program that made the table remove it",
        "apt-get install --only-upgrade libnftables1",
    )


def lister(facts: Facts) -> Finding:
    """Judge whether the program nft can list our table."""
    failure = known(facts.lister)
    if failure is None:
        return ok("nft lists our table")
    if "not permitted" in failure.reason:
        return Finding(CheckState.UNCHECKED, "nft needs the capability NET_ADMIN")
    return warning(
        failure.reason,
        "Services work, but nobody can look at the table; nft 1.0.6 or later lists it",
        "apt-get install --only-upgrade nftables",
    )


def _barriers(
    found: list[Barrier], fine: str, cures: Iterable[str] | None = None, more: str = ""
) -> Finding:
    if not found:
        return ok(fine)
    listed = [
        f"{one.table} {one.chain} ({one.hook}) {'stops' if one.sure else 'may stop'} "
        f"{one.what}: {one.why}"
        for one in found
    ]
    text = "; ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
    commands = dict.fromkeys([_opening(one) for one in found] if cures is None else cures)
    meaning = "no accept of ours overrides a drop of another table. " + (
        more or "nftproxy explain SERVICE shows the whole way of a packet"
    )
    judge = bad if any(one.sure for one in found) else warning
    return judge(text, meaning, *commands)


def _opening(one: Barrier) -> str:
    """Return the command that lets packets pass which a Service translated."""
    program = _iptables(one)
    family, _, name = one.table.partition(" ")
    if program:
        option = "" if name == "filter" else f"-t {name} "
        return f"{program} {option}-I {one.chain} -m conntrack --ctstate DNAT -j ACCEPT"
    return (
        f"nft insert rule {family} {shlex.quote(name)} {shlex.quote(one.chain)} ct status "
        "dnat accept"
    )


def _allow(one: Barrier) -> str:
    """Return ufw's command for connections to this node: all of pods, others to one port."""
    if one.what.startswith("from pods"):
        return f"ufw allow in on {shlex.quote(one.pods)}"
    return f"ufw allow {one.port}"


def _trust(one: Barrier) -> str:
    """Return firewalld's command: pods are trusted, others may reach one port of this node."""
    if one.hook == "input" and not one.what.startswith("from pods"):
        return f"firewall-cmd --permanent --add-port={one.port}"
    device = shlex.quote(one.pods) if one.pods else "INTERFACE-OF-PODS"
    return f"firewall-cmd --permanent --zone=trusted --add-interface={device}"


def _iptables(one: Barrier) -> str:
    """Return the program whose table it is; empty for one of nft's own."""
    program, _, table = one.table.partition(" ")
    if program in {"ip", "ip6"} and table in _TABLES and one.chain == one.hook.upper():
        return f"{program}tables-nft"
    return f"{program}-legacy" if "tables" in program else ""
