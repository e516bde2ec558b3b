"""What a user asks about: a Service, an address with a port, a NodePort; and who asks. Pure."""

import re
from dataclasses import dataclass, replace

from nftproxy.address import Address, parse_address
from nftproxy.errors import AddressError, ConfigError
from nftproxy.model import ObjectName
from nftproxy.table.schema import PROTOCOLS

_SERVICE = re.compile(
    r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)(?::([-a-z0-9]{1,63}))?"
)
_ALONE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(?::[-a-z0-9]{1,63})?")
"""A Service without its namespace, which people forget."""
_WITH_PROTOCOL = re.compile(rf"(?:\*:)?(.*[0-9])/({'|'.join(PROTOCOLS)})")
"""An address or NodePort as `show` prints it: 10.96.0.10:80/tcp or *:30080/tcp."""
_HINT = (
    "name a Service as NAMESPACE/NAME or NAMESPACE/NAME:PORT, an address as ADDRESS:PORT or "
    "[ADDRESS]:PORT, or a NodePort by its number"
)


@dataclass(frozen=True, slots=True)
class AskedTarget:
    """What is asked about.

    A Service and perhaps its port by name or number, or an address, or a NodePort.
    """

    asked: str
    service: ObjectName | None = None
    port_name: str = ""
    address: Address | None = None
    port: int = 0
    protocol: str = ""  # empty: any

    @property
    def is_node_port(self) -> bool:
        """Whether only a number was given."""
        return self.service is None and self.address is None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked about, who asks (node, outside, or an address), and by which protocol.

    Empty: the Service's.
    """

    target: AskedTarget
    client: str = "node"
    protocol: str = ""
    interface: str = ""  # by which the client's packets come in, where routes to it say otherwise


def request(target: str, client: str = "node", protocol: str = "") -> Request:
    """Return what texts ask for; ConfigError when they mean nothing."""
    client, _, interface = client.partition("%")
    if client not in {"node", "outside"}:
        try:
            client = parse_address(client).text
        except AddressError:
            raise ConfigError(
                [f"--from {client[:80]!r} is neither an address nor node or outside"],
                hint="kubectl get pod -o wide shows a Pod's address",
            ) from None
    asked = parse_target(target)
    if protocol and asked.protocol and protocol != asked.protocol:
        raise ConfigError([f"{target[:80]!r} and --protocol {protocol} contradict each other"])
    return Request(asked, client, protocol or asked.protocol, interface)


def parse_target(text: str) -> AskedTarget:
    """Return what a text means; ConfigError when it means nothing."""
    if match := _WITH_PROTOCOL.fullmatch(text):
        return replace(parse_target(match[1]), asked=text, protocol=match[2])
    if text.isascii() and text.isdigit():
        return AskedTarget(text, port=_port(text))
    if match := _SERVICE.fullmatch(text):
        return AskedTarget(text, ObjectName(match[1], match[3]), match[5] or "")
    host, port = _split(text)
    try:
        return AskedTarget(text, address=parse_address(host), port=_port(port) if port else 0)
    except AddressError:
        hint = f"did you mean default/{text}? {_HINT}" if _ALONE.fullmatch(text) else _HINT
        raise ConfigError(
            [f"{text[:80]!r} is neither a Service nor an address"], hint=hint
        ) from None


def _split(text: str) -> tuple[str, str]:
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, ""


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ConfigError([f"{text[:20]!r} is not a port number from 1 to 65535"], hint=_HINT)
    return int(text)
