"""Who asks: an address and the interface by which its packets come in.

Pure except for what it asks of `Node`.
"""

from nftproxy.address import Family, pack, parse_address
from nftproxy.errors import ConfigError
from nftproxy.path.aim import SOMEWHERE
from nftproxy.path.model import Client
from nftproxy.path.packet import text
from nftproxy.path.request import Request
from nftproxy.path.view import NodeView, Places

LOCAL = 2  # RTN_LOCAL


def family_of(client: str) -> Family | None:
    """Return the family of a client; None where it may be either."""
    return None if client in {"node", "outside"} else parse_address(client).family


def find(request: Request, destination: str, node: NodeView) -> Client:
    """Return who asks for a destination."""
    client, around = request.client, node.around
    if around is None:
        what = client if client in {"node", "outside"} else "pod"
        return Client("" if client == what else client, what)
    if client == "node":
        return Client(around.to(pack(destination)).source if destination else "", "node")
    if client == "outside":
        return _outside(destination, around)
    if around.address_type(pack(client), "") == LOCAL:
        return Client(client, "node")
    if request.interface:
        return _by(request, around)
    way = around.to(pack(client))
    if way.error:
        raise ConfigError(
            [
                (
                    f"--from {client}: this node has {way.error} to it, so its packets do not "
                    "come by "
                    "here"
                )
            ],
            hint="run explain on the client's own node",
        )
    default = around.to(pack(SOMEWHERE[parse_address(client).family])).device
    what = "outside" if way.device == default else "pod"
    return Client(client, what, _port(client, way.device, around))


def _by(request: Request, around: Places) -> Client:
    """Return a client whose packets come in by the interface that the user named."""
    if around.link(request.interface) is None:
        raise ConfigError(
            [f"--from: this node has no interface {request.interface!r}"],
            hint="ip -brief link lists them",
        )
    default = around.to(pack(SOMEWHERE[parse_address(request.client).family])).device
    what = "outside" if request.interface == default else "pod"
    return Client(request.client, what, request.interface)


def _port(address: str, device: str, around: Places) -> str:
    link = around.link(device)
    if link and link.kind == "bridge":
        return around.port_of(address, device) or device
    return device


def _outside(destination: str, around: Places) -> Client:
    family = Family.IPv6 if ":" in destination else Family.IPv4
    way = around.to(pack(SOMEWHERE[family]))
    if way.error or way.local:
        raise ConfigError(
            ["--from outside: this node has no default route, so nothing outside is known"],
            hint="give the client's address instead",
        )
    # An address of that network which is nobody's here: the router stands for all that is behind
    # it.
    return Client(way.gateway or text(pack(SOMEWHERE[family])), "outside", way.device)
