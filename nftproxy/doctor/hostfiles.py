"""Files of the host that remove our table, or set up another firewall, at the start of a service.

`root` is where the host's files are: `/` on the host itself, elsewhere in a container.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from nftproxy.doctor.facts import Firewalld, Flush, Ufw
from nftproxy.doctor.model import Unknown

_UNITS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
_FLUSH = re.compile(r"^\s*flush\s+ruleset\b", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*include\s+"([^"]+)"', re.MULTILINE)
_COMMAND = re.compile(r"^Exec\w+=(.*)$", re.MULTILINE)
_FILE = re.compile(r"(?:-\w*f|--file)[ =]+(\S+)")
_NFT = re.compile(r"(?:^|[/@:+!\s-])nft\s")
_USUAL = "etc/nftables.conf"
_CONTAINER = (".dockerenv", "run/.containerenv")


class HostFiles:
    """The files below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def hidden(self) -> Unknown | None:
        """Why the host's files are not to be seen from here."""
        if self._root == Path("/") and (
            any((self._root / name).exists() for name in _CONTAINER)
            or Path("/var/run/secrets/kubernetes.io").exists()
        ):
            return Unknown("this is a container: mount the host's / and name it with --host-root")
        if not self._root.is_dir():
            return Unknown(f"{self._root} is no folder")
        return None

    @property
    def has_unit(self) -> bool:
        """Whether systemd starts nftproxy on this host."""
        return any((self._root / at / "nftproxy.service").exists() for at in _UNITS)

    def flushes(self) -> tuple[Flush, ...] | Unknown:
        """Return the files that remove all tables: of enabled services, and /etc/nftables.conf."""
        if self.hidden:
            return self.hidden
        found: dict[str, str] = {}
        for service, unit in self._enabled():
            for command in _COMMAND.findall(self._read(unit)):
                if not _NFT.search(f" {command} "):
                    continue
                if re.search(r"\bflush\s+ruleset\b", command):
                    found.setdefault(f"/{unit}", service)
                for name in _FILE.findall(command):
                    for file in self._flushing(name):
                        found[file] = service
        for file in self._flushing(f"/{_USUAL}"):
            found.setdefault(file, "")
        return tuple(Flush(file, service) for file, service in found.items())

    def firewalld(self) -> Firewalld | Unknown:
        """Return how firewalld is set up."""
        if self.hidden:
            return self.hidden
        name = "etc/firewalld/firewalld.conf"
        value = self._setting(name, "FlushAllOnReload") or "yes"
        enabled = any(service == "firewalld.service" for service, _ in self._enabled())
        return Firewalld(enabled, value.lower() not in {"no", "false"}, f"/{name}")

    def ufw(self) -> Ufw | Unknown:
        """Return how ufw is set up."""
        if self.hidden:
            return self.hidden
        enabled = self._setting("etc/ufw/ufw.conf", "ENABLED").lower() == "yes"
        return Ufw(enabled, self._setting("etc/default/ufw", "DEFAULT_FORWARD_POLICY") or "DROP")

    def _enabled(self) -> Iterator[tuple[str, str]]:
        """Yield the services that systemd starts, with the file of each."""
        for link in sorted((self._root / "etc/systemd/system").glob("*.wants/*.service")):
            unit = next((f"{at}/{link.name}" for at in _UNITS if self._exists(at, link)), "")
            if unit:
                yield link.name, unit

    def _exists(self, folder: str, link: Path) -> bool:
        return (self._root / folder / link.name).is_file()

    def _flushing(self, name: str, depth: int = 5) -> Iterator[str]:
        """Yield a file of nft, and those it includes, as far as they flush."""
        text = self._read(name.lstrip("/"))
        if _FLUSH.search(text):
            yield name
        if depth:
            for pattern in _INCLUDE.findall(text):
                at = pattern if pattern.startswith("/") else str(Path(name).parent / pattern)
                for path in sorted(self._root.glob(at.lstrip("/"))):
                    yield from self._flushing(f"/{path.relative_to(self._root)}", depth - 1)

    def _setting(self, name: str, key: str) -> str:
        """Return a value of a file of lines KEY=VALUE; empty without it."""
        found = re.findall(rf"^\s*{key}\s*=\s*(.*?)\s*$", self._read(name), re.MULTILINE)
        return str(found[-1]).strip("\"'") if found else ""

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text(errors="replace")
        except OSError:
            return ""
