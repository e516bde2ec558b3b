"""Why a packet does not get through, in words, with the commands that mend it. Pure."""

from nftproxy.path.evaluate import ChainOutcome
from nftproxy.path.hooks import Visit
from nftproxy.path.model import Cause
from nftproxy.path.packet import text
from nftproxy.path.ruleset import NftBaseChain

_PROGRAMS = {
    "firewalld": "firewalld",
    "ufw": "ufw",
    "docker": "docker",
    "f2b-table": "fail2ban",
    "libvirt_network": "libvirt",
}


def program_of(base: NftBaseChain, outcome: ChainOutcome) -> str:
    """Return the program that a table or chain belongs to, by its name; else the table."""
    table = base.chain.table
    if table.name in _PROGRAMS:
        return _PROGRAMS[table.name]
    names = {outcome.chain.name, base.chain.name}
    if any(name.startswith("ufw") for name in names):
        return "ufw"
    if any(name.startswith(("DOCKER", "docker")) for name in names):
        return "docker"
    if any(name.startswith("cali-") for name in names):
        return "Calico"
    if any(name.startswith("KUBE-") for name in names) or table.name == "kube-proxy":
        return "kube-proxy"
    return f"table {table}"


def stopped_by_others(visit: Visit, rule_text: str) -> Cause:
    """Return the cause for a packet that a foreign rule or policy stopped."""
    outcome, base = visit.outcome, visit.base
    program = program_of(base, outcome)
    verb = "Rejected" if outcome.reject else "Dropped"
    if outcome.rule is None:
        where = f"the policy of chain {base.chain.name} in table {base.chain.table}"
    else:
        said = f" `{rule_text}`" if rule_text else ""
        where = f"rule{said} (handle {outcome.rule.handle}) of chain {outcome.chain.name} in table {base.chain.table}"
    by = program if not program.startswith("table ") else "another table"
    code = "foreign-reject" if outcome.reject else "foreign-drop"
    return Cause(
        code, f"{verb} by {by}, not by nftproxy: {where}.", tuple(_openers(visit, program))
    )


def _openers(visit: Visit, program: str) -> list[str]:
    """Return the commands that let such packets pass, as the program wants them."""
    packet, base = visit.packet, visit.base
    family, hook = base.chain.table.family, base.hook
    if program == "firewalld":
        device = packet.iif or packet.oif
        return [f"firewall-cmd --zone=trusted --add-interface={device}"]
    if program == "ufw":
        if hook == "forward":
            return [f"ufw route allow in on {packet.iif} out on {packet.oif}"]
        return [f"ufw allow in on {packet.iif}" if packet.iif else f"ufw allow out on {packet.oif}"]
    if (
        visit.packet.tracked
        and visit.packet.tracked.original.destination != packet.ends.destination
    ):
        # Holds for the answers as well.
        if base.chain.name.isupper() and family in {"ip", "ip6"}:
            tool = "iptables" if family == "ip" else "ip6tables"
            return [f"{tool} -I {base.chain.name} -m conntrack --ctstate DNAT -j ACCEPT"]
        return [f"nft insert rule {base.chain.table} {base.chain.name} ct status dnat accept"]
    ip = "ip" if packet.size == 4 else "ip6"
    there = text(packet.ends.destination)
    lines = [f"nft insert rule {base.chain.table} {base.chain.name} {ip} daddr {there} accept"]
    if hook in {"forward", "prerouting"} and packet.tracked:
        lines.append(
            f"nft insert rule {base.chain.table} {base.chain.name} ct state established accept"
        )
    return lines


def translated_by_others(visit: Visit, rule_text: str) -> Cause:
    """Return the cause for a packet that another table sends somewhere else first."""
    outcome, base = visit.outcome, visit.base
    program = program_of(base, outcome)
    rule = outcome.rule
    handle = rule.handle if rule else 0
    to = text(outcome.packet.ends.destination)
    by = program if not program.startswith("table ") else "another table"
    said = f" `{rule_text}`" if rule_text else ""
    return Cause(
        "foreign-translation",
        f"Translated to {to}:{outcome.packet.ends.destination_port} by {by} before nftproxy is "
        f"asked: rule{said} (handle {handle}) "
        f"of chain {outcome.chain.name} in table {base.chain.table}.",
        (f"nft delete rule {base.chain.table} {outcome.chain.name} handle {handle}",),
    )


def no_route(why: str, address: str, iif: str, forwards: str) -> Cause:
    """Return the cause for a packet that the kernel has no way for."""
    six = ":" in address
    if forwards == "0":
        setting = "net.ipv6.conf.all.forwarding" if six else "net.ipv4.ip_forward"
        return Cause(
            "ip-forward",
            f"This node does not forward packets: {setting} is 0.",
            (f"sysctl -w {setting}=1",),
        )
    if why.startswith("rp_filter"):
        return Cause(
            "rp-filter",
            f"Packets from this client must not come in by {iif}: {why}.",
            (f"sysctl -w net.ipv4.conf.{iif}.rp_filter=0 net.ipv4.conf.all.rp_filter=0",),
        )
    return Cause(
        "no-route", f"This node has no route to {address}: {why}.", (f"ip route get {address}",)
    )
