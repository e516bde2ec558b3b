"""Why a packet does not get through, in words, with the commands that mend it. Pure."""

from collections.abc import Sequence

from nftproxy.path.evaluate import ChainOutcome
from nftproxy.path.hooks import Visit
from nftproxy.path.model import Cause
from nftproxy.path.packet import text
from nftproxy.path.ruleset import NftBaseChain, NftRule

_PROGRAMS = {
    "firewalld": "firewalld",
    "ufw": "ufw",
    "docker": "docker",
    "f2b-table": "fail2ban",
    "libvirt_network": "libvirt",
}


def program_of(base: NftBaseChain, outcome: ChainOutcome, jumps: Sequence[str] = ()) -> str:
    """Return the program that a table or chain belongs to, as far as names show; else the table."""
    table = base.chain.table
    if table.name in _PROGRAMS:
        return _PROGRAMS[table.name]
    names = {outcome.chain.name, base.chain.name}
    if outcome.rule is None:  # whoever adds chains to FORWARD often sets its policy, too
        names |= set(jumps)
    if any(name.startswith("ufw") for name in names):
        return "ufw"
    if any(name.startswith(("DOCKER", "docker")) for name in names):
        return "docker"
    if any(name.startswith("cali-") for name in names):
        return "Calico"
    if any(name.startswith("KUBE-") for name in names) or table.name == "kube-proxy":
        return "kube-proxy"
    return f"table {table}"


def stopped_by_others(visit: Visit, rule_text: str, jumps: Sequence[str] = ()) -> Cause:
    """Return the cause for a packet that a foreign rule or policy stopped.

    `jumps`: see `program_of`.
    """
    outcome, base = visit.outcome, visit.base
    program = program_of(base, outcome, jumps)
    verb = "Rejected" if outcome.reject else "Dropped"
    if outcome.rule is None:
        where = f"the policy of chain {base.chain.name} in table {base.chain.table}"
    else:
        said = f" `{rule_text}`" if rule_text else ""
        where = (
            f"rule{said} ({outcome.rule.place}) of chain {outcome.chain.name} in "
            f"table {base.chain.table}"
        )
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
        return [f"firewall-cmd --zone=trusted --change-interface={device}"]
    if program == "ufw":
        if hook == "forward":
            return [f"ufw route allow in on {packet.iif} out on {packet.oif}"]
        return [f"ufw allow in on {packet.iif}" if packet.iif else f"ufw allow out on {packet.oif}"]
    if base.chain.table.is_legacy:
        return [_opener(visit)]
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


def _opener(visit: Visit) -> str:
    """Return the command that lets such packets pass a chain of iptables-legacy."""
    packet, table = visit.packet, visit.base.chain.table
    tracked = packet.tracked
    if tracked and tracked.original.destination != packet.ends.destination:
        packets = "-m conntrack --ctstate DNAT"  # holds for the answers as well
    else:
        packets = f"-d {text(packet.ends.destination)}"
    return f"{table.family}-legacy -t {table.name} -I {visit.base.chain.name} {packets} -j ACCEPT"


def _deletion(rule: NftRule) -> str:
    """Return the command that deletes a rule."""
    table = rule.chain.table
    if table.is_legacy:
        return f"{table.family}-legacy -t {table.name} -D {rule.chain.name} {rule.handle}"
    return f"nft delete rule {table} {rule.chain.name} handle {rule.handle}"


def translated_by_others(visit: Visit, rule_text: str) -> Cause:
    """Return the cause for a packet that another table sends somewhere else first."""
    outcome, base = visit.outcome, visit.base
    program = program_of(base, outcome)
    to = text(outcome.packet.ends.destination)
    by = program if not program.startswith("table ") else "another table"
    said = f" `{rule_text}`" if rule_text else ""
    return Cause(
        "foreign-translation",
        f"Translated to {to}:{outcome.packet.ends.destination_port} by {by} before nftproxy is "
        f"asked: rule{said} ({outcome.rule.place if outcome.rule else 'unknown'}) "
        f"of chain {outcome.chain.name} in table {base.chain.table}.",
        (_deletion(outcome.rule),) if outcome.rule else (),
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


def link_down(name: str) -> Cause:
    """Return the cause for packets that leave by an interface that is down."""
    return Cause("link-down", f"The interface {name} is down.", (f"ip link set {name} up",))


def neighbour_failed(address: str, device: str, *, is_router: bool) -> Cause:
    """Return the cause for packets to a neighbour that does not answer."""
    what = "the next router or node" if is_router else "the endpoint"
    said = f"{address}, {what}, did not answer when this node last asked for its hardware address"
    command = f"ip neigh flush to {address} dev {device}"
    return Cause(
        "neighbour-failed", f"{said} on {device}: it is gone or not connected.", (command,)
    )


def untracked(rule: NftRule | None, rule_text: str) -> Cause:
    """Return the cause for packets that conntrack never sees, so that nothing translates them."""
    if rule is None:
        return Cause("untracked", "Not translated: conntrack does not track this packet.")
    said = f"`{rule_text}` " if rule_text else ""
    where = f"rule {said}({rule.place}) of chain {rule.chain.name}"
    whole = f"Not tracked, so not translated: {where} in table {rule.chain.table}."
    command = _deletion(rule)
    return Cause("untracked", whole, (command,))


def bridge_bypass(bridge: str, *, six: bool) -> Cause:
    """Return the cause for answers that cross a bridge without meeting netfilter."""
    setting = f"net.bridge.bridge-nf-call-{'ip6' if six else 'ip'}tables"
    said = f"Client and endpoint are both on {bridge}, and {setting} is not 1"
    whole = f"{said}: the answer crosses the bridge untranslated, and the client does not know it."
    return Cause("bridge-nf-call", whole, (f"sysctl -w {setting}=1",))


def passes_by(client: str, endpoint: str) -> Cause:
    """Return the cause for an answer that need not come back through this node."""
    said = f"The source stays {client}, and {endpoint} is on another machine: its answer may go"
    whole = f"{said} straight to {client}, past this node, untranslated."
    how = "Check the cluster CIDR, which must hold the Pods' addresses and no others, and"
    return Cause(
        "asymmetric-return", f"{whole} {how} --no-masquerade-cidrs.", ("nftproxy run --help",)
    )


def conntrack_full(count: int, limit: int) -> Cause:
    """Return the cause for connections that conntrack has no room for."""
    said = f"The conntrack table is full: {count} of {limit} entries. New connections are dropped."
    return Cause("conntrack-full", said, (f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}",))


def stale_entry(source: str, answerer: str, protocol: str, address: str, port: int) -> Cause:
    """Return the cause for a flow that goes on to a former endpoint."""
    said = f"conntrack still sends the flow of {source} to {answerer}, which is no endpoint now."
    family = "ipv6" if ":" in address else "ipv4"
    command = f"conntrack -D -f {family} -p {protocol} --orig-dst {address} --dport {port}"
    return Cause("stale-entry", said, (command,))


def gone_endpoint(source: str, answerer: str) -> Cause:
    """Return the remark that an open connection ends, where --reset-gone-endpoints is on."""
    said = (
        f"The open connection of {source} to {answerer} is reset with its next packet, because "
        "that endpoint is gone; new connections reach others."
    )
    return Cause("gone-endpoint", said)


def endpoint_silent(endpoint: str) -> Cause:
    """Return the cause for an endpoint that was asked and has not answered."""
    said = (
        f"{endpoint} was sent a packet of this Service, and no answer came back through this node."
    )
    return Cause("endpoint-silent", said, (f"ping -c 1 {endpoint.rpartition(':')[0].strip('[]')}",))


def small_mtu(mtu: int, device: str, sent: int, interface: str) -> Cause:
    """Return the remark that long packets may not fit."""
    said = f"The smallest MTU known on the way is {mtu} ({device}); {interface} takes {sent}"
    whole = f"{said}: long packets vanish where ICMP errors are filtered."
    return Cause("mtu", whole, (f"ip link set {interface} mtu {mtu}",))


def two_claims(frontend: str, owner: str, others: Sequence[str]) -> Cause:
    """Return the cause for a frontend that more than one Service wants."""
    said = (
        f"{frontend} is claimed by {', '.join(others)}, too; {owner} has it, being the older one."
    )
    return Cause("two-claims", said)


def two_proxies(found: Sequence[str]) -> Cause:
    """Return the cause for a node with another Service proxy's rules."""
    said = f"Another proxy's rules are on this node beside nftproxy's: {', '.join(found)}."
    tables = [one for one in found if one.endswith(" kube-proxy")]
    return Cause("two-proxies", said, tuple(f"nft delete table {table}" for table in tables))


def behind(what: str, trouble: str) -> Cause:
    """Return the cause for a table that does not hold what the objects ask for."""
    said = f"The table of this node is behind the objects: {what}."
    return Cause("behind", f"{said} {trouble}".strip(), ("journalctl -u nftproxy -n 50",))
