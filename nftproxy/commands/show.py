"""`nftproxy show`: the Services in the table, read from the kernel alone."""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence

import click
import msgspec

from nftproxy import columns
from nftproxy.configuration.flags import CONTEXT_SETTINGS
from nftproxy.errors import NftproxyError
from nftproxy.kernel.reader import Reader
from nftproxy.kernel.snapshot import (
    AddressKind,
    Listed,
    Shown,
    ShownServicePort,
    Snapshot,
    take_snapshot,
)
from nftproxy.model import Scheduler
from nftproxy.node import memory
from nftproxy.selection import Endpoint
from nftproxy.table.schema import Policy

_POLICIES = {
    Policy.CLUSTER: "any endpoint",
    Policy.LOCAL: "endpoints on this node only (policy Local)",
    Policy.EXTERNAL: "any endpoint, masqueraded",
    Policy.PRESERVE: "endpoints on this node; pods and this node get any (policy Local)",
}

_NAMED = 10  # gone endpoints that are named

_SCHEDULERS = {
    Scheduler.SOURCE_HASH: "by the client's address (source-hash)",
    Scheduler.MAGLEV: "by the client's address (maglev)",
}

_EXAMPLES = """\b
For example:
  nftproxy show
  nftproxy show default/web
  nftproxy show default/web:http --output json
"""


@click.command(context_settings=CONTEXT_SETTINGS, epilog=_EXAMPLES)
@click.argument("name", metavar="[NAMESPACE/SERVICE[:PORT]]", default="")
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
def show(name: str, output: str) -> None:
    """Show the Services in the table, read from the kernel.

    Without a name: a line for each frontend. With one: its frontends, both endpoint lists, and how
    often each endpoint was picked. External is an external IP or a load-balancer address; the table
    does not distinguish these unless the Service limits their sources.

    Counters start with the last rewrite of their element: a frontend's when its number of endpoints
    or its policy changes, an endpoint's when it is added. A connection that ClientIP affinity sends
    to the client's previous endpoint counts for its frontend only.
    """
    memory.collect_seldom()
    seen = _read()
    chosen = _choose(seen.services, name) if name else seen.services
    if output == "json":
        click.echo(
            msgspec.json.format(
                msgspec.json.encode(msgspec.structs.replace(seen, services=tuple(chosen)))
            )
        )
    elif name:
        for service in chosen:
            _detail(service)
    else:
        _overview(seen)


def _read() -> Snapshot:
    reader = Reader()
    try:
        seen = take_snapshot(reader)
    finally:
        reader.close()
    if seen is None:
        raise NftproxyError(
            "there is no table inet nftproxy here, so no service is programmed",
            hint="nftproxy run makes it; in a lab: nftproxy lab demo",
        )
    return seen


def _choose(services: Sequence[ShownServicePort], name: str) -> list[ShownServicePort]:
    """Return the service ports of that name; the error without any suggests others."""
    chosen = [service for service in services if service.is_called(name)]
    if chosen:
        return chosen
    known = list(
        dict.fromkeys([s.name.partition(":")[0] for s in services] + [s.name for s in services])
    )
    same = [full for full in known if full.partition("/")[2] == name]
    close = same or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "nftproxy show lists all services"
    raise NftproxyError(f"no service {name!r} is programmed on this node", hint=hint)


def _overview(seen: Snapshot) -> None:
    rows = [
        (
            service.name,
            _place(shown),
            _kind(shown),
            str(shown.connections),
            _endpoints(shown),
            "; ".join(_words(shown)),
        )
        for service in seen.services
        for shown in service.frontends
    ]
    if rows:
        columns.show(
            ("SERVICE", "FRONTEND", "KIND", "CONNECTIONS", "ENDPOINTS", "WHAT HAPPENS"), rows
        )
    else:
        click.echo("the table is there, but no service is in it")
    for family, addresses in seen.nodeport_addresses.items():
        where = (
            "all addresses of this machine except loopback"
            if addresses == "all"
            else ", ".join(addresses) or "no address"
        )
        click.echo(f"NodePorts are accepted on, {family}: {where}")
    if seen.service_cidrs:
        click.echo(
            f"Other addresses in {', '.join(seen.service_cidrs)} are dropped: no service has them."
        )
    if seen.gone_endpoints:
        named = ", ".join(seen.gone_endpoints[:_NAMED])
        more = len(seen.gone_endpoints) - _NAMED
        click.echo(
            f"Connections to endpoints that are gone are reset: {named}"
            f"{f' and {more} more' if more > 0 else ''}"
        )


def _detail(service: ShownServicePort) -> None:
    click.secho(service.name, bold=True)
    frontends = [
        (_place(s), _kind(s), str(s.connections), "; ".join(_words(s))) for s in service.frontends
    ]
    columns.show(("FRONTEND", "KIND", "CONNECTIONS", "WHAT HAPPENS"), frontends, indent=2)
    remembered = {
        e: n for s in service.frontends if s.affinity for e, n in s.affinity.clients.items()
    }
    sticky = any(shown.affinity for shown in service.frontends)
    weighed = any(one.slots > 1 for s in service.frontends for one in (*s.cluster, *s.local))
    rows = []
    for title, lists in (
        ("cluster", [shown.cluster for shown in service.frontends]),
        ("local", [shown.local for shown in service.frontends]),
    ):
        shares = _shares(lists)
        for endpoint, connections in _added_up(lists).items():
            rows.append(
                (
                    title,
                    str(endpoint),
                    *((f"{shares[endpoint]:.1%}",) if weighed else ()),
                    str(connections),
                    *((str(remembered.get(str(endpoint), 0)),) if sticky else ()),
                )
            )
    if rows:
        header = ("LIST", "ENDPOINT", *(("SHARE",) if weighed else ()), "CONNECTIONS")
        header += ("CLIENTS REMEMBERED",) if sticky else ()
        columns.show(header, rows, indent=2)
    click.echo()


def _added_up(lists: Sequence[Sequence[Listed]]) -> Counter[Endpoint]:
    """Return the endpoints of all lists, each with its connections in all of them."""
    total: Counter[Endpoint] = Counter()
    for each in lists:
        for listed in each:
            total[listed.endpoint] += listed.connections
    return total


def _shares(lists: Sequence[Sequence[Listed]]) -> dict[Endpoint, float]:
    """Return the share of new clients or connections that each endpoint has of its list."""
    found: dict[Endpoint, float] = {}
    for each in lists:
        total = sum(listed.slots for listed in each)
        found.update((listed.endpoint, listed.slots / total) for listed in each)
    return found


def _place(shown: Shown) -> str:
    return str(shown.frontend)


def _kind(shown: Shown) -> str:
    return (
        f"{shown.kind} {shown.family}" if shown.kind is AddressKind.NODE_PORT else str(shown.kind)
    )


def _endpoints(shown: Shown) -> str:
    """Count the endpoints of the lists that the policy uses."""
    if shown.policy is Policy.PRESERVE:
        return f"{len(shown.cluster)}, here {len(shown.local)}"
    return f"here {len(shown.local)}" if shown.policy is Policy.LOCAL else str(len(shown.cluster))


def _words(shown: Shown) -> Iterator[str]:
    """Describe which clients get which endpoints, and which are refused."""
    if shown.policy:
        yield _POLICIES[shown.policy]
    if shown.scheduler in _SCHEDULERS:
        yield _SCHEDULERS[shown.scheduler]
    if shown.refused:
        what = "dropped" if shown.refused.verdict == "drop" else "rejected"
        whom = f"{shown.refused.packets} packets {what}" if shown.refused.packets else what
        yield f"{shown.refused.reason}: {whom}"
    if shown.affinity:
        clients = sum(shown.affinity.clients.values())
        scope = " on all ports of the Service" if shown.affinity.shared else ""
        yield (
            f"a client keeps its endpoint{scope} for {shown.affinity.timeout_seconds} s ({clients} "
            "remembered)"
        )
    if shown.sources is not None:
        yield f"only from {', '.join(shown.sources) or 'nowhere'}"
