"""Another program's table as a newer nft writes it.

A set that an older libnftables does not survive reading.
"""

import contextlib
import sys
from collections.abc import Iterator

from nftproxy.kernel.channel import Channel, Modification
from nftproxy.lab.namespace import enter
from nftproxy.table import netlink
from nftproxy.table.netlink import FAMILIES, Message, RuleAttribute, Set, TableAttribute

_DELETE_RULE = 8  # NFT_MSG_DELRULE, which the program has no use for
CONSTANT, PAYLOAD = 4, 7  # what a set is declared by: `type`, and `typeof ip saddr`


def user_data(expression: int, kind: int = 3) -> bytes:
    """How a set's key was declared; kind 4: its data."""
    typeof = bytes((0, 4)) + expression.to_bytes(4, sys.byteorder) + bytes((1, 0))
    return bytes((kind, len(typeof))) + typeof


@contextlib.contextmanager
def writing(netns: str) -> Iterator[Channel]:
    """A channel in a namespace."""
    with enter(netns):
        channel = Channel()
    with contextlib.closing(channel):
        yield channel


def move_in(netns: str, table: str = "other", name: str = "s", data: bytes | None = None) -> None:
    """Make `table ip other { set s { type ipv4_addr; } }` as libnftables 1.1.2 and later do."""
    attributes = [
        netlink.named(Set.TABLE, table),
        netlink.named(Set.NAME, name),
        netlink.attribute(Set.FLAGS, bytes(4)),
        netlink.attribute(Set.KEY_TYPE, (7).to_bytes(4)),
        netlink.attribute(Set.KEY_LENGTH, (4).to_bytes(4)),
        netlink.attribute(Set.ID, (1).to_bytes(4)),
        netlink.attribute(Set.USER_DATA, user_data(CONSTANT) if data is None else data),
    ]
    family = FAMILIES["ip"]
    with writing(netns) as channel:
        channel.transact(
            [
                Modification(
                    Message.NEW_TABLE,
                    netlink.named(TableAttribute.NAME, table),
                    netlink.CREATE,
                    family,
                ),
                Modification(Message.NEW_SET, b"".join(attributes), netlink.CREATE, family),
            ]
        )


def move_out(netns: str, table: str = "other") -> None:
    """Delete it."""
    with writing(netns) as channel:
        channel.transact(
            [
                Modification(
                    Message.DELETE_TABLE,
                    netlink.named(TableAttribute.NAME, table),
                    family=FAMILIES["ip"],
                )
            ]
        )


def flush_chain(netns: str, name: str) -> None:
    """Delete the rules of a chain of our table.

    The nft of this machine may not survive the neighbour.
    """
    chain = netlink.named(RuleAttribute.TABLE, "nftproxy") + netlink.named(
        RuleAttribute.CHAIN, name
    )
    with writing(netns) as channel:
        channel.transact([Modification(_DELETE_RULE, chain)])  # type: ignore[arg-type]
