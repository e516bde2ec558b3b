"""Which addresses, protocols and ports a target stands for on this node, and whose they are."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from nftproxy.address import Family, parse_address
from nftproxy.errors import ConfigError, MissingError, NftproxyError
from nftproxy.kernel.reader import Reader
from nftproxy.path.held import Held
from nftproxy.path.lookup import Lookup, look_up
from nftproxy.path.packet import PROTOCOLS, text
from nftproxy.path.request import AskedTarget
from nftproxy.routes import Frontend, Verdict
from nftproxy.table import schema

# ClusterIPs are the first to be tried
_KINDS = (
    "ClusterIP",
    "External",
    "LoadBalancer",
    "NodePort",
    "",
)
_MAPS = (schema.SERVICES, schema.NO_ENDPOINTS)


@dataclass(slots=True)
class Frontends:
    """What to look for, each with an address.

    `services` has name and kind by address, protocol and port.
    """

    wanted: dict[Family, list[Frontend]] = field(default_factory=dict)
    services: dict[tuple[str, int, int], tuple[str, str]] = field(default_factory=dict)

    def add(self, family: Family, frontend: Frontend, lookup: Lookup | None) -> None:
        """Look for a frontend, too; `lookup` is what the table says about it."""
        wanted = self.wanted.setdefault(family, [])
        if frontend not in wanted:
            wanted.append(frontend)
        if lookup:
            key = frontend.address, PROTOCOLS[frontend.proto], frontend.port
            self.services[key] = lookup.service, lookup.kind

    def kind(self, frontend: Frontend) -> str:
        """Return what the address of a frontend is."""
        key = frontend.address, PROTOCOLS[frontend.proto], frontend.port
        return self.services.get(key, ("", ""))[1]


def resolve(
    target: AskedTarget, reader: Reader, held: Held, addresses: Iterable[bytes]
) -> Frontends:
    """Return what a target stands for; NftproxyError when it is nothing."""
    if not reader.table_exists():
        if target.service or target.is_node_port:
            raise NftproxyError(
                "there is no table inet nftproxy here, so no service is programmed",
                hint="trace an address with its port, as 10.96.0.10:80",
            )
        return _of_address(target, None, [])
    own = [text(address) for address in addresses]
    if target.service:
        return _of_service(target, reader, held, own)
    if target.is_node_port:
        found = Frontends()
        _of_node_port(found, target, held, own)
        if not found.wanted:
            raise NftproxyError(
                f"no service has NodePort {target.port} on this node", hint="nftproxy show"
            )
        return found
    return _of_address(target, held, own)


def _of_address(target: AskedTarget, held: Held | None, own: list[str]) -> Frontends:
    if target.address is None or not target.port:
        raise ConfigError(
            [f"{target.asked!r} has no port"], hint="write ADDRESS:PORT or [ADDRESS]:PORT"
        )
    found = Frontends()
    family, address = target.address
    for protocol in _protocols(target):
        frontend = Frontend(address, protocol, target.port)
        lookup = look_up(held, family, frontend) if held else None
        if held and lookup is None and address in own:
            lookup = look_up(held, family, Frontend.node_port(protocol, target.port))
        found.add(family, frontend, lookup)
    return found


def _protocols(target: AskedTarget) -> Iterable[str]:
    return (target.protocol,) if target.protocol else PROTOCOLS


def _of_node_port(found: Frontends, target: AskedTarget, held: Held, own: list[str]) -> None:
    for family in Family:
        for protocol in _protocols(target):
            if lookup := look_up(held, family, Frontend.node_port(protocol, target.port)):
                _at_own(found, lookup, own)


def _at_own(found: Frontends, lookup: Lookup, own: list[str]) -> None:
    """Look for a NodePort at each address of this node."""
    for each in own:
        there = ip_address(each)
        if there.is_loopback or there.is_link_local:
            continue
        if parse_address(each).family is lookup.family:
            found.add(lookup.family, lookup.frontend._replace(address=each), lookup)


def _of_service(target: AskedTarget, reader: Reader, held: Held, own: list[str]) -> Frontends:
    name, known = str(target.service), set()
    found = Frontends()
    for family, frontend, service in _all(reader):
        known.add(service)
        if not _is_called(service, frontend, name, target.port_name):
            continue
        lookup = look_up(held, family, frontend)
        if lookup and frontend.is_node_port:
            _at_own(found, lookup, own)
        elif not frontend.is_node_port:
            found.add(family, frontend, lookup)
    for wanted in found.wanted.values():
        wanted.sort(key=lambda one: _KINDS.index(found.kind(one)))
    if not found.wanted:
        ports = sorted(one for one in known if one.partition(":")[0] == name)
        names = sorted({one.partition(":")[0] for one in known})
        same = [one for one in names if one.partition("/")[2] == name.partition("/")[2]]
        close = ports or same or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "nftproxy show lists all services"
        )
        raise NftproxyError(f"no service {target.asked!r} is programmed on this node", hint=hint)
    return found


def _is_called(service: str, frontend: Frontend, name: str, port: str) -> bool:
    own, _, port_name = service.partition(":")
    return own == name and (not port or port in {port_name, str(frontend.port)})


def _all(reader: Reader) -> Iterator[tuple[Family, Frontend, str]]:
    """Yield every frontend of the table with the service port it belongs to."""
    for family in Family:
        for declaration in _MAPS:
            for node_port in (False, True):
                with suppress(MissingError):
                    for element, _ in reader.counted(declaration.name(family, node_port=node_port)):
                        if isinstance(element.value, Verdict):
                            frontend = Frontend.of_key(element.key)
                            yield family, frontend, element.value.comment
