"""The last chapter of the demo.

Five ways to break a Service, each found and cured by `explain` alone.
"""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nftproxy.lab.client import Answer, Outcome
from nftproxy.lab.lab import Lab

_PATIENCE = 5.0  # seconds until a cure must work


@dataclass(frozen=True, slots=True)
class Riddle:
    """A broken Service: the commands that break it, who asks whom, and the cause's code."""

    title: str
    cause: str
    origin: str = "pod1-3"
    node: str = "node1"
    address: str = "10.96.0.10"
    port: int = 80
    broken: tuple[str, ...] = ()


RIDDLES = (
    Riddle(
        "A firewall that drops by default",
        "foreign-drop",
        broken=(
            "nft add table inet corporate",
            (
                "nft add chain inet corporate forward "
                "'{ type filter hook forward priority 10; policy drop; }'"
            ),
        ),
    ),
    Riddle(
        "A list of banned addresses that is wrong",
        "foreign-drop",
        broken=(
            "nft add table ip bans",
            "nft add set ip bans banned '{ typeof ip saddr; elements = { 10.244.1.4 }; }'",
            "nft add chain ip bans early '{ type filter hook prerouting priority -300; }'",
            "nft add rule ip bans early ip saddr @banned drop",
        ),
    ),
    Riddle(
        "A rule of somebody else that translates first",
        "foreign-translation",
        broken=(
            "nft add table ip shadow",
            "nft add chain ip shadow nat '{ type nat hook prerouting priority -101; }'",
            "nft add rule ip shadow nat ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.4:9",
        ),
    ),
    Riddle(
        "A node that does not forward",
        "ip-forward",
        broken=("sysctl -qw net.ipv4.ip_forward=0",),
    ),
    Riddle(
        "A client that is not in loadBalancerSourceRanges",
        "source-ranges",
        origin="pod2-3",
        node="node2",
        address="203.0.113.30",
        port=443,
    ),
)


class Stage(Protocol):
    """The part of the demo that riddles need."""

    lab: Lab
    folder: Path

    def address(self, place: str) -> str:
        """Return the IPv4 address of a place."""

    def patch(self, namespace: str, service: str, change: dict[str, Any]) -> None:
        """Change the spec of a Service in the manifests, as kubectl patch would."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Lines about a riddle, and whether all went as it should.

    A line is what was done or said, and the text.
    """

    lines: tuple[tuple[str, str], ...]
    right: bool


def solve(stage: Stage, riddle: Riddle) -> Solution:
    """Break a Service, ask it, explain it, run the cure, and ask again."""
    lines: list[tuple[str, str]] = []
    for command in riddle.broken:
        stage.lab.run(riddle.node, shlex.split(command))
        lines.append(("broken", command))
    before = _ask(stage, riddle)
    lines.append(("asked", _said(riddle, before)))
    cause = _explain(stage, riddle)
    lines.append(("explain", cause["text"]))
    for command in cause["commands"]:
        _cure(stage, riddle, command)
        lines.append(("cure", command))
    end = time.monotonic() + _PATIENCE
    while not isinstance(after := _ask(stage, riddle), Answer) and time.monotonic() < end:
        time.sleep(0.05)
    lines.append(("asked", _said(riddle, after)))
    right = (
        not isinstance(before, Answer)
        and cause["code"] == riddle.cause
        and isinstance(after, Answer)
    )
    return Solution(tuple(lines), right)


def walk_riddles(stage: Stage) -> Iterator[tuple[Riddle, Solution]]:
    """Solve all riddles, one after the other."""
    for riddle in RIDDLES:
        yield riddle, solve(stage, riddle)


def _ask(stage: Stage, riddle: Riddle) -> Outcome:
    return stage.lab.connect(riddle.origin, riddle.address, riddle.port, "TCP", timeout=0.5)


def _said(riddle: Riddle, outcome: Outcome) -> str:
    answer = f"{outcome.name} answers" if isinstance(outcome, Answer) else "no answer"
    return f"{riddle.origin} -> {riddle.address}:{riddle.port}/tcp: {answer}"


def _explain(stage: Stage, riddle: Riddle) -> Any:
    argv = [
        *(sys.executable, "-m", "nftproxy", "explain", f"{riddle.address}:{riddle.port}"),
        *("--from", stage.address(riddle.origin), "--output", "json"),
        *("--manifests", str(stage.folder), "--node-name", riddle.node),
    ]
    done = stage.lab.run(riddle.node, argv, check=False)
    causes = json.loads(done.stdout)["causes"] if done.stdout else []
    return causes[0] if causes else {"code": "", "text": done.stderr.strip(), "commands": []}


def _cure(stage: Stage, riddle: Riddle, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "kubectl" and "patch" in words:
        namespace, service, change = (
            words[words.index(each) + 1] for each in ("-n", "service", "-p")
        )
        stage.patch(namespace, service, json.loads(change)["spec"])
    else:
        stage.lab.run(riddle.node, words)
