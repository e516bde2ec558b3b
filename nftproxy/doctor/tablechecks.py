"""Checks of our own table and of the process that keeps it. Pure."""

from datetime import datetime

from nftproxy.doctor.facts import Facts
from nftproxy.doctor.model import (
    CheckState,
    Finding,
    Unknown,
    UnknownError,
    bad,
    known,
    ok,
    warning,
)

_SYNC = "kubeproxy_sync_proxy_rules"
_PATIENCE = 60.0  # seconds that a change may wait


def present(facts: Facts) -> Finding:
    """Judge whether the table is there."""
    seen = known(facts.snapshot)
    if seen is None:
        return bad(
            "there is no table inet nftproxy",
            "this node serves no Service",
            facts.restart,
        )
    frontends = sum(len(port.frontends) for port in seen.services)
    return ok(f"{len(seen.services)} service ports, {frontends} frontends")


def program(facts: Facts) -> Finding:
    """Judge whether the rules are those of this version and configuration."""
    held = known(facts.programs)
    if not held:
        if known(facts.snapshot) is None:
            return Finding(CheckState.UNCHECKED, "there is no table")
        return bad(
            "the table names no program", "somebody else made it, or removed a chain", facts.restart
        )
    wanted = known(facts.wanted)
    if not wanted & set(held):
        return bad(
            f"the table holds program {', '.join(held)}; this version with this configuration has "
            f"{' or '.join(sorted(wanted))}",
            "the process that keeps the table is another version, or has another configuration",
            facts.restart,
        )
    return ok(f"program {', '.join(sorted(wanted & set(held)))}, as this version writes it")


def running(facts: Facts) -> Finding:
    """Judge whether a process keeps the table."""
    if known(facts.running):
        return ok("a process keeps the table")
    return bad(
        "no nftproxy runs in this network namespace",
        "no Service works here"
        if facts.snapshot is None
        else "the table stays as it is: Services work, but changes of endpoints have no effect",
        facts.restart,
    )


def health(facts: Facts) -> Finding:
    """Judge what the health server says."""
    answer = facts.health
    if isinstance(answer, Unknown):
        if facts.running is not True:
            raise UnknownError(answer.reason)
        return warning(
            answer.reason,
            "nftproxy runs, but load balancers and probes of kubelet get no answer; if it listens "
            "elsewhere, --config says where",
            facts.log,
        )
    if answer.code != 200 and not answer.eligible:
        return warning(
            f"/healthz: HTTP {answer.code}, the node is about to be removed",
            "load balancers send no new connections to this node",
            f"kubectl get node {facts.node_name}",
        )
    if answer.code != 200:
        return bad(
            f"/healthz: HTTP {answer.code}, no sync since {answer.updated}",
            "changes of Services and endpoints wait; the log names the error",
            facts.log,
            facts.restart,
        )
    if answer.limited:
        return warning(
            f"/healthz: limited, {answer.limited}",
            "some changes wait; the check `newer nft` says more",
        )
    return ok("/healthz: HTTP 200")


def sync(facts: Facts) -> Finding:
    """Judge whether changes are applied in time."""
    figures = known(facts.metrics)
    last = figures.get(f"{_SYNC}_last_timestamp_seconds", 0.0)
    queued = figures.get(f"{_SYNC}_last_queued_timestamp_seconds", 0.0)
    if not last:
        return bad(
            "no sync has succeeded yet", "this process has written nothing so far", facts.restart
        )
    waiting = facts.now - queued
    when = datetime.fromtimestamp(last).astimezone().isoformat(timespec="seconds")
    failures = int(figures.get(f"{_SYNC}_nftables_sync_failures_total", 0))
    if queued > last and waiting > _PATIENCE:
        return bad(
            f"a change has been waiting for {waiting:.0f} s; the last sync was at {when}",
            "changes of Services and endpoints have no effect; the log names the error",
            facts.log,
            facts.restart,
        )
    failed = f", {failures} failed before" if failures else ""
    return ok(f"the last sync was {max(0.0, facts.now - last):.0f} s ago{failed}, nothing waits")


def refused(facts: Facts) -> Finding:
    """Judge whether the kernel refuses single Services."""
    count = int(known(facts.metrics).get("nftproxy_services_refused", 0))
    if count:
        return bad(
            f"the kernel refuses {count} Services",
            "each stays as it was before; the log names it with the reason",
            _lines(facts, "the kernel refuses it"),
        )
    return ok("the kernel refuses no Service")


def repairs(facts: Facts) -> Finding:
    """Judge whether others write to our table."""
    count = int(known(facts.metrics).get("nftproxy_repairs_total", 0))
    if count:
        return warning(
            f"another program changed the table {count} times since the process started",
            "each time Services may have failed for a moment; the log names the program",
            _lines(facts, "somebody changed table"),
        )
    return ok("no other program changed the table")


def _lines(facts: Facts, text: str) -> str:
    """Return the command that finds lines in the log; empty where nobody knows the log."""
    return f"{facts.log} | grep '{text}'" if facts.log else ""
