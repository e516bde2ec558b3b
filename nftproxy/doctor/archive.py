"""The archive for whoever helps: texts collected one by one, scrubbed, cut to a size, packed.

Collected is only what is named here: never a file of credentials, an environment, or the content of
other programs' tables. What could not be collected is listed with the reason.
"""

import io
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import msgspec

from nftproxy.configuration import configfile
from nftproxy.configuration.config import KubeProxyConfiguration
from nftproxy.doctor import process, rules
from nftproxy.doctor.facts import Facts
from nftproxy.doctor.gathering import Asked, Configured
from nftproxy.doctor.model import Unknown
from nftproxy.doctor.secrets import scrub
from nftproxy.errors import NftproxyError
from nftproxy.kernel.channel import Channel
from nftproxy.kernel.child import listing
from nftproxy.kernel.snapshot import Snapshot
from nftproxy.node import takeover
from nftproxy.path.live import LiveRuleset

LARGEST = 4 << 20  # bytes of one file
_MANY = 5_000  # frontends and endpoints: listing more takes libnftables 100 MB and seconds
_LOG_LINES = 5_000
_LOGS = "var/log/pods/kube-system_nftproxy-*/*/*.log"
_PROGRAMS = ("nft", "iptables", "conntrack", "firewall-cmd", "ufw", "docker")
_OURS = {"doctor.json", "show.json", "table.nft", "chains.txt", "metrics.txt"}
"""Parts without a word of anybody else's but names of Services, tables and chains."""

_NEVER = (
    "credentials: kubeconfig files, tokens, certificates and keys are not read",
    "the environment of any process",
    "the rules of other programs' tables: only names of tables and chains",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the archive."""

    name: str
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Collected:
    """The parts, and what is missing, with the reason."""

    parts: tuple[Part, ...]
    missing: tuple[str, ...]


def collect(
    asked: Asked,
    facts: Facts,
    configured: Configured,
    judged: Sequence[Part],
    logs: Sequence[Path],
) -> Collected:
    """Collect all parts; `judged` are those of `doctor`. What fails is named, and stops nothing."""
    parts = list(judged)
    missing: list[str] = []
    sources: list[tuple[str, str, Callable[[], str]]] = [
        ("show.json", "the Services in the table, as `nftproxy show`", lambda: _show(facts)),
        ("table.nft", "our table as nft prints it", lambda: _table(facts)),
        ("chains.txt", "names of tables and chains of all programs", _chains),
        ("configuration.yaml", "the effective configuration", lambda: _configuration(facts)),
        ("versions.txt", "versions of programs and libraries", lambda: _versions(asked.host_root)),
        ("metrics.txt", "what /metrics serves", lambda: _served(configured.metrics, "/metrics")),
        ("healthz.json", "what /healthz serves", lambda: _served(configured.health, "/healthz")),
        ("livez.json", "what /livez serves", lambda: _served(configured.health, "/livez")),
    ]
    sources += [
        (f"log-{number}.txt", f"the end of {path}", partial(_tail, path))
        for number, path in enumerate(logs or _known_logs(asked.host_root), 1)
    ]
    if not any(name.startswith("log-") for name, _, _ in sources):
        write = f"`{facts.log} > FILE` writes one, " if facts.log else ""
        missing.append(f"log: no file is known; {write}--log FILE adds it")
    for name, what, source in sources:
        text = rules.attempt(source)
        if isinstance(text, Unknown):
            missing.append(f"{name}: {text.reason}")
        else:
            parts.append(Part(name, what, text))
    whole = tuple(
        Part(part.name, part.what, bounded(scrub(part.text, by_name=part.name not in _OURS)))
        for part in parts
    )
    return Collected(whole, (*missing, *_NEVER))


def pack(collected: Collected, folder: str, now: float) -> bytes:
    """Return the archive: a folder with a file for each part, and README.txt."""
    readme = "\n".join(
        [
            "What `nftproxy report` collected on a node:",
            "",
            *(f"  {part.name:<20} {part.what}" for part in collected.parts),
            "",
            "Not in here:",
            "",
            *(f"  {line}" for line in collected.missing),
            "",
            "It has names and addresses of Services, endpoints and this node.",
            "",
        ]
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in (("README.txt", readme), *((p.name, p.text) for p in collected.parts)):
            data = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def bounded(text: str, largest: int = LARGEST) -> str:
    """Return a text of limited size: what is too long loses its middle."""
    if len(text) <= largest:
        return text
    cut = f"\n... {len(text) - largest} characters left out ...\n"
    return text[: largest // 2] + cut + text[-largest // 2 :]


def _show(facts: Facts) -> str:
    packed = msgspec.json.encode(_snapshot(facts))
    readable = msgspec.json.format(packed)
    return (readable if len(readable) <= LARGEST else packed).decode()


def _snapshot(facts: Facts) -> Snapshot:
    if isinstance(facts.snapshot, Unknown):
        raise NftproxyError(facts.snapshot.reason)
    if facts.snapshot is None:
        raise NftproxyError("there is no table inet nftproxy")
    return facts.snapshot


def _table(facts: Facts) -> str:
    seen = _snapshot(facts)
    size = sum(
        1 + len(shown.cluster) + len(shown.local)
        for port in seen.services
        for shown in port.frontends
    )
    if size <= _MANY:
        return listing()
    return f"# {size} frontends and endpoints: elements are in show.json only\n" + listing(
        terse=True
    )


def _chains() -> str:
    lines = []
    with closing(Channel()) as channel:
        hooks = {
            (str(base.chain.table), base.chain.name): f"{base.kind}, {base.hook}, priority "
            f"{base.priority}, policy {'drop' if base.drops else 'accept'}"
            for base in LiveRuleset(channel).base_chains()
        }
        for table, names in sorted(rules.chains(channel).items()):
            lines.append(f"table {table}")
            for name in names:
                hook = hooks.get((table, name))
                lines.append(f"  {name}{f'  ({hook})' if hook else ''}")
    for program, saved in takeover.saved_tables():
        if "-nft" not in program:
            lines.append(f"{program} table {saved.table}")
            lines += [f"  {name}  (policy {policy})" for name, policy in saved.policies.items()]
            lines += [f"  {name}" for name in saved.chains]
    return "\n".join([*lines, ""])


def _configuration(facts: Facts) -> str:
    config = facts.configuration
    if not isinstance(config, KubeProxyConfiguration):
        raise NftproxyError(config.reason)
    return configfile.to_yaml(config)


def _versions(root: Path) -> str:
    lines = [
        f"nftproxy {metadata.version('nftproxy')}",
        f"Python {platform.python_version()}",
        f"Linux {platform.release()} {platform.machine()}",
        *_system(root),
        *_libraries(),
        *(line for name in _PROGRAMS if (line := _version_of(name))),
    ]
    for requirement in sorted(metadata.requires("nftproxy") or ()):
        if "extra ==" not in requirement:
            name = requirement.split(";")[0].split(">")[0].split("=")[0].strip()
            lines.append(f"{name} {metadata.version(name)}")
    return "\n".join([*lines, ""])


def _system(root: Path) -> Iterator[str]:
    try:
        text = (root / "etc/os-release").read_text()
    except OSError:
        return
    for line in text.splitlines():
        if line.startswith("PRETTY_NAME="):
            yield line.partition("=")[2].strip('"')


def _libraries() -> Iterator[str]:
    for folder in ("/usr/local/lib", "/usr/lib", "/usr/lib64", "/lib"):
        for pattern in ("libnftables.so.1", "*/libnftables.so.1"):
            for path in sorted(Path(folder).glob(pattern)):
                yield f"libnftables {path.resolve().name}"
                return


def _version_of(program: str) -> str:
    if not shutil.which(program):
        return ""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"{program}: {(done.stdout or done.stderr).strip().partition(chr(10))[0]}"


def _served(address: str, path: str) -> str:
    if not address:
        raise NftproxyError("the configuration switches this server off")
    answer = process.get(address, path)
    if isinstance(answer, Unknown):
        raise NftproxyError(answer.reason)
    return answer[1].decode(errors="replace")


def _known_logs(root: Path) -> Iterable[Path]:
    return sorted(root.glob(_LOGS))[-4:]


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - LARGEST))
        text = file.read(LARGEST).decode(errors="replace")
    return "\n".join([*text.splitlines()[-_LOG_LINES:], ""])
