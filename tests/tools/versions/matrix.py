"""`make test-versions`, its second half: what each release wrote, each other reads.

Exit code 1 when one cannot.

For each pair of releases, nftproxy with the libnftables of the one fills a table with everything it
may hold, on a node of a lab, while the other's `nft monitor` watches. Then the other's nft lists
the table and works beside it, and the other's nftproxy shows it, takes it over and removes it. A
library that cannot read what another stored ends with signal 11, which is exit code 139.
"""

import argparse
import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from nftproxy.address import Family
from nftproxy.errors import NftproxyError
from nftproxy.lab.client import Answer
from nftproxy.lab.lab import Lab
from nftproxy.lab.namespace import enter
from nftproxy.lab.plan import CLUSTER_CIDRS, SERVICE_CIDRS
from nftproxy.model import Object
from tests.support.objects import endpoint, endpoint_slice, node, service, service_cidr
from tests.support.process import everything
from tests.support.world import unique_name
from tests.tools.versions.folder import Folder
from tests.tools.versions.libraries import RELEASES, library_version, made

# In every folder: the manifests, and a file for each pair whose table is written
_SHARED = "project/matrix"
_NODE = (
    "--manifests", f"/{_SHARED}/manifests", "--node-name", "node1", "--cluster-cidr",
    ",".join(CLUSTER_CIDRS.values()),
)  # fmt: skip
_RUN = """\
nftproxy run "$@" >/tmp/log 2>&1 &
tries=0
until [ "$(grep -c 'read back' /tmp/log)" = 2 ] || [ $tries = 600 ] || ! kill -0 $! 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.1
done
kill -TERM $! 2>/dev/null
wait $!
code=$?
cat /tmp/log
exit $code
"""
_WATCH = """\
nft monitor &
sleep 0.5
echo watching
until [ -e "$1" ] || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
sleep 0.5
kill -TERM $! 2>/dev/null
wait $!
code=$?
[ $code = 143 ] || exit $code
"""
_API = {"EndpointSlice": "discovery.k8s.io/v1", "ServiceCIDR": "networking.k8s.io/v1"}
_CLIENTS = ("affinity4", "affinity6", "local_affinity4", "local_affinity6")


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it prints when it does its work."""

    argv: Sequence[str]
    wanted: Sequence[str] = ()


def _nft(*argv: str, wanted: Sequence[str] = ()) -> Step:
    return Step(("nft", *argv), wanted)


def _taking_over(*options: str) -> Step:
    return Step(("sh", "-c", _RUN, "sh", *_NODE, *options), ("IPv4: in step", "IPv6: in step"))


_WHOLE = ("services4", "affinity4", "allowed6", "nodeport_learn6", "local_endpoints6-sctp")
STEPS: Mapping[str, Step] = {
    "nft list ruleset": _nft("list", "ruleset", wanted=_WHOLE),
    "nft -j list ruleset": _nft("-j", "list", "ruleset", wanted=_WHOLE),
    "nft list tables": _nft("list", "tables", wanted=("table inet nftproxy",)),
    "nft list sets": _nft("list", "sets", wanted=("set cluster_ips4", "set allowed6")),
    "nft list maps": _nft("list", "maps", wanted=("map services4", "map affinity4")),
    "nft list hooks": _nft("list", "hooks"),
    "nft add table other": _nft(
        "add table ip other; add chain ip other c; add set ip other s { typeof ip saddr; }"
    ),
    "nft add element other": _nft("add element ip other s { 192.0.2.1 }"),
    "nft insert rule other": _nft("insert rule ip other c ip saddr @s counter"),
    "nft delete table other": _nft("delete table ip other"),
    "nftproxy show": Step(("nftproxy", "show"), ("default/cart4", "default/cart6")),
    "nftproxy diff": Step(("nftproxy", "diff", *_NODE)),
    "nftproxy run, as it was": _taking_over(),
    "nftproxy run, another program": _taking_over("--masquerade-bit", "20"),
}
WATCH, BACK, CLEANUP = "nft monitor", "nft list ruleset by the writer", "nftproxy cleanup"
ALL = (WATCH, *STEPS, BACK, CLEANUP)


def main() -> int:
    """Try all pairs and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--release", action="append", choices=RELEASES, help="only this one (may be repeated)"
    )
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folders = []
        for release in given.release or RELEASES:
            folder = Folder(release)
            stack.enter_context(folder.held())
            if problem := made(folder):
                print(f"{release} left out: {problem}")
            else:
                folders.append(folder)
        versions = {folder.release: library_version(folder) for folder in folders}
        for folder in folders:
            _write_manifests(folder)
        pairs = [(writer, reader) for writer in folders for reader in folders]
        started = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            results = list(workers.map(lambda pair: try_pair(*pair), pairs))
    found = {
        (writer.release, reader.release): result
        for (writer, reader), result in zip(pairs, results, strict=True)
    }
    print("\n".join(_table(versions, found)))
    failed = sum(cell != "0" for cells in found.values() for cell in cells.values())
    print(
        f"{len(pairs)} pairs, {len(pairs) * len(ALL)} exit codes, {failed} failed; "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


def try_pair(writer: Folder, reader: Folder) -> dict[str, str]:
    """Let one release write and another read.

    Return what became of each step, "0" where all went well.
    """
    found: dict[str, str] = {}
    with Lab(unique_name()) as lab:
        where = lab.place("node1").namespace
        flag = f"{_SHARED}/{lab.name}"

        def do(name: str, folder: Folder, step: Step, say: threading.Event | None = None) -> None:
            lines: list[str] = []

            def hear(line: str) -> None:
                lines.append(line)
                if say:
                    say.set()

            with enter(where):
                code = folder.run(step.argv, hear, network=True)
            text = "\n".join(lines)
            missing = [wanted for wanted in step.wanted if wanted not in text]
            found[name] = f"{128 - code if code < 0 else code}" if code or not missing else "lacks"
            if found[name] != "0":
                print(
                    f"{writer.release} -> {reader.release}: {name}: exit code {found[name]} "
                    f"{missing or ''}\n{text[-2000:]}"
                )

        watching = threading.Event()
        watch = Step(
            ("sh", "-c", _WATCH, "sh", f"/{flag}"),
            ("watching", "add element inet nftproxy services6"),
        )
        watcher = threading.Thread(target=do, args=(WATCH, reader, watch, watching))
        watcher.start()
        watching.wait(30)
        do("written", writer, _taking_over())
        (reader.path / flag).touch()
        watcher.join()
        if found.pop("written") != "0":
            return dict.fromkeys(ALL, "unwritten")
        _be_remembered(lab)
        full = everything(where)
        if empty := sorted(name for name, held in full.items() if not held):
            raise NftproxyError(
                f"the matrix proves nothing about sets without elements: {', '.join(empty)}"
            )
        for name, step in STEPS.items():
            do(name, reader, step)
        now = everything(where)
        if forgotten := [
            name for name in full if name.startswith(_CLIENTS) and full[name] != now.get(name)
        ]:
            print(
                f"{writer.release} -> {reader.release}: clients forgotten: {', '.join(forgotten)}"
            )
            found["nftproxy run, as it was"] = "forgot"
        do(BACK, writer, STEPS["nft list ruleset"])
        do(CLEANUP, reader, Step(("nftproxy", "cleanup"), ("removed table inet nftproxy",)))
        print(f"{writer.release} -> {reader.release}: done", flush=True)
    return found


def objects() -> Iterator[Object]:
    """Yield Services with every kind of element among them, for the node node1 of a lab."""
    yield node("node1", ("192.168.50.11", "fd00:50::11"))
    yield service_cidr("kubernetes", *SERVICE_CIDRS.values())
    for family, ip, vip, outside, pods in (
        (Family.IPv4, "10.96.0.", "203.0.113.", "192.168.50.0/24", "10.244.{}.2"),
        (Family.IPv6, "fd00:10:96::", "fd00:beef::", "fd00:50::/64", "fd00:244:{}::2"),
    ):
        digit = int(family.digit)
        both = [endpoint(pods.format(number), f"node{number}") for number in (1, 2)]
        wires = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
        for number, (protocol, name) in enumerate(wires.items(), 1):
            web = f"{name}{digit}"
            ports: dict[str, Any] = {
                "protocol": protocol,
                "node_port": 30000 + 10 * number + digit,
                "vips": [f"{vip}{number}"],
            }
            yield service(web, f"{ip}{number}", externalTrafficPolicy="Local", **ports)
            yield endpoint_slice(web, both, family=family, protocol=protocol)
        limits: dict[str, Any] = {
            "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": [outside],
        }
        cart = f"cart{digit}"
        yield service(
            cart,
            f"{ip}10",
            sessionAffinity="ClientIP",
            node_port=30100 + digit,
            vips=[f"{vip}10"],
            **limits,
        )
        yield endpoint_slice(cart, both, family=family)
        yield service(f"idle{digit}", f"{ip}11", node_port=30110 + digit)


def _write_manifests(folder: Folder) -> None:
    shared = folder.path / _SHARED
    shutil.rmtree(shared, ignore_errors=True)
    (shared / "manifests").mkdir(parents=True)
    for number, item in enumerate(objects()):
        kind = type(item).__name__
        document = {**msgspec.to_builtins(item), "apiVersion": _API.get(kind, "v1"), "kind": kind}
        (shared / f"manifests/{number}.yaml").write_bytes(msgspec.json.encode(document))


def _be_remembered(lab: Lab) -> None:
    """Connect to the Services with ClientIP affinity, so that the table remembers clients by both
    lists of both families.
    """
    for where, address in (
        ("pod1-3", "10.96.0.10"), ("pod1-3", "fd00:10:96::10"), ("client", "203.0.113.10"),
        ("client", "fd00:beef::10"),
    ):  # fmt: skip
        if where == "client":
            lab.route(where, address, "node1")
        answer = lab.connect(where, address, 80, timeout=5)
        if not isinstance(answer, Answer):
            raise NftproxyError(f"{where} -> {address}:80: {answer}")


def _table(
    versions: Mapping[str, str], found: Mapping[tuple[str, str], Mapping[str, str]]
) -> Iterator[str]:
    """Lay out the exit codes: a row for each step, a column for each pair."""
    rows = [
        ["written by", *(versions[writer] for writer, _ in found)],
        ["read by", *(versions[reader] for _, reader in found)],
        *([name, *(cells.get(name, "-") for cells in found.values())] for name in ALL),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NftproxyError as error:
        sys.exit(f"{error}\n{error.hint}".strip())
