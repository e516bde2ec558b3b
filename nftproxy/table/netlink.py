"""The format of netlink messages: headers, attributes, and the numbers of nf_tables by name.

Pure. Every reader and writer of netlink here builds and parses its messages with this, and no other
module knows a number.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
ATTRIBUTE: Final = struct.Struct("=HH")  # length with these four bytes, kind
NETFILTER: Final = 12  # NETLINK_NETFILTER
SOL_NETLINK, ADD_MEMBERSHIP, CAP_ACK = 270, 1, 10
SO_ATTACH_FILTER, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 26, 32, 33
REQUEST, ACK, DUMP, CREATE, APPEND = 1, 4, 0x300, 0x400, 0x800
DUMP_INTERRUPTED = 0x10
ERROR, DONE = 2, 3
NESTED = 0x8000
KIND = 0x3FFF  # of an attribute, without its flags
BATCH_BEGIN, BATCH_END = 16, 17
NFTABLES: Final = 10  # NFNL_SUBSYS_NFTABLES
LOG: Final = 4  # NFNL_SUBSYS_ULOG
COPY_PACKETS: Final = 2  # NFULNL_COPY_PACKET
CHANGES_OF_NFTABLES: Final = 7  # the group NFNLGRP_NFTABLES
TRACES_OF_NFTABLES: Final = 9  # the group NFNLGRP_NFTRACE
UNSPECIFIED, INET = 0, 1
FAMILIES: Final = {"inet": INET, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
FAMILY_NAMES: Final = {number: name for name, number in FAMILIES.items()}


class Message(enum.IntEnum):
    """NFT_MSG_*: the kind of a message of nf_tables."""

    NEW_TABLE = 0
    GET_TABLE = 1
    DELETE_TABLE = 2
    NEW_CHAIN = 3
    GET_CHAIN = 4
    NEW_RULE = 6
    GET_RULE = 7
    NEW_SET = 9
    GET_SET = 10
    NEW_ELEMENTS = 12
    GET_ELEMENTS = 13
    DELETE_ELEMENTS = 14
    NEW_GENERATION = 15
    GET_GENERATION = 16
    TRACE = 17


class TableAttribute(enum.IntEnum):
    """NFTA_TABLE_*."""

    NAME = 1
    FLAGS = 2


class ChainAttribute(enum.IntEnum):
    """NFTA_CHAIN_*; `HOOK` holds Hook."""

    TABLE = 1
    NAME = 3
    HOOK = 4
    POLICY = 5
    TYPE = 7


class Trace(enum.IntEnum):
    """NFTA_TRACE_*: what a packet met; `VERDICT` holds Verdict.

    Headers and interfaces come with the first report of a base chain.
    """

    TABLE = 1
    CHAIN = 2
    RULE = 3
    TYPE = 4
    VERDICT = 5
    ID = 6
    NETWORK_HEADER = 8
    TRANSPORT_HEADER = 9
    IIF = 10
    OIF = 12
    POLICY = 16


class Hook(enum.IntEnum):
    """NFTA_HOOK_*; `DEVICES` holds a list of names."""

    NUMBER = 1
    PRIORITY = 2
    DEVICE = 3
    DEVICES = 4


class RuleAttribute(enum.IntEnum):
    """NFTA_RULE_*; `EXPRESSIONS` holds a list of Expression."""

    TABLE = 1
    CHAIN = 2
    HANDLE = 3
    EXPRESSIONS = 4


class Set(enum.IntEnum):
    """NFTA_SET_*."""

    TABLE = 1
    NAME = 2
    FLAGS = 3
    KEY_TYPE = 4
    KEY_LENGTH = 5
    DATA_TYPE = 6
    DATA_LENGTH = 7
    DESCRIPTION = 9
    ID = 10
    TIMEOUT = 11
    USER_DATA = 13


class Elements(enum.IntEnum):
    """NFTA_SET_ELEM_LIST_*; `LIST` holds one Element after the other."""

    TABLE = 1
    SET = 2
    LIST = 3


class ElementAttribute(enum.IntEnum):
    """NFTA_SET_ELEM_*; `KEY` and `DATA` hold Data, `EXPRESSION` an Expression."""

    KEY = 1
    DATA = 2
    FLAGS = 3
    TIMEOUT = 4
    USER_DATA = 6
    EXPRESSION = 7
    OBJECT = 9
    KEY_END = 10
    EXPRESSIONS = 11


class Data(enum.IntEnum):
    """NFTA_DATA_*; `VERDICT` holds Verdict."""

    VALUE = 1
    VERDICT = 2


class VerdictAttribute(enum.IntEnum):
    """NFTA_VERDICT_*."""

    CODE = 1
    CHAIN = 2


class ExpressionAttribute(enum.IntEnum):
    """NFTA_EXPR_*: `NAME` determines the meaning of `DATA`."""

    NAME = 1
    DATA = 2


class NumgenAttribute(enum.IntEnum):
    """NFTA_NG_*."""

    MODULUS = 2


class HashAttribute(enum.IntEnum):
    """NFTA_HASH_*."""

    MODULUS = 4


class LookupAttribute(enum.IntEnum):
    """NFTA_LOOKUP_*."""

    SET = 1


class ImmediateAttribute(enum.IntEnum):
    """NFTA_IMMEDIATE_*; `DATA` holds Data."""

    DATA = 2


class Counter(enum.IntEnum):
    """NFTA_COUNTER_*."""

    PACKETS = 2


class Generation(enum.IntEnum):
    """NFTA_GEN_*: the last transaction and its author."""

    ID = 1
    PROCESS = 2
    PROCESS_NAME = 3


class LogMessage(enum.IntEnum):
    """NFULNL_MSG_*: the kind of a message of NFLOG."""

    PACKET = 0
    CONFIG = 1


class LogSetting(enum.IntEnum):
    """NFULA_CFG_*; `COMMAND` holds LogCommand."""

    COMMAND = 1
    MODE = 2
    THRESHOLD = 5


class LogCommand(enum.IntEnum):
    """NFULNL_CFG_CMD_*."""

    BIND = 1


class LogPart(enum.IntEnum):
    """NFULA_*: the parts of a logged packet."""

    PAYLOAD = 9
    PREFIX = 10


class IpSet(enum.IntEnum):
    """IPSET_ATTR_*."""

    PROTOCOL = 1
    NAME = 2
    FLAGS = 6


class InterfaceAddress(enum.IntEnum):
    """IFA_*; `LOCAL` is the own end of a point-to-point link, and IPv6 has no other."""

    ADDRESS = 1
    LOCAL = 2


GET_ADDRESSES: Final = 22  # RTM_GETADDR
ADDRESS_HEADER: Final = struct.Struct("=BBBBI")  # ifaddrmsg, which begins with the family
LIST_IP_SETS: Final = 6 << 8 | 7  # NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
OLDEST_IP_SETS: Final = 6  # IPSET_PROTOCOL_MIN
BIG_ENDIAN: Final = 0x4000  # NLA_F_NET_BYTEORDER
ONLY_NAMES: Final = 1 << 1  # IPSET_FLAG_LIST_SETNAME
LIST_ITEM: Final = 1  # NFTA_LIST_ELEM
ENDS_INTERVAL: Final = 1  # NFT_SET_ELEM_INTERVAL_END
CATCHES_ALL: Final = 2  # NFT_SET_ELEM_CATCHALL
DORMANT: Final = 1  # NFT_TABLE_F_DORMANT
OWNED: Final = (
    2  # NFT_TABLE_F_OWNER: the kernel deletes the table when the socket that made it is closed
)

Place = tuple[int, int]  # from, to


def attributes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Place]]:
    """Yield number and place of each whole attribute between two positions."""
    end = len(data) if end is None else end
    unpack = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4:
            return
        yield kind & KIND, (start + 4, start + length)
        start += (length + 3) & ~3


def parts(data: bytes, place: Place | None = None) -> dict[int, bytes]:
    """Return the attributes at a place, by number."""
    return {kind: data[start:end] for kind, (start, end) in attributes(data, *(place or (0, None)))}


def attribute(kind: int, payload: bytes) -> bytes:
    """Return an attribute, padded."""
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, payload: bytes) -> bytes:
    """Return an attribute with others inside."""
    return attribute(kind | NESTED, payload)


def named(kind: int, text: str) -> bytes:
    """Return an attribute with a text and its end."""
    return attribute(kind, text.encode() + b"\0")


def text(data: bytes) -> str:
    """Return the text in an attribute."""
    return data.rstrip(b"\0").decode(errors="replace")


def messages(data: bytes) -> Iterator[tuple[int, int, int, Place]]:
    """Yield kind, flags, sequence number and place of the body of each message in a reading."""
    start = 0
    while start + 20 <= len(data):  # a header, and the four bytes that every body here begins with
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, start)
        if length < 20:
            return
        yield kind, flags, sequence, (start + 16, start + length)
        start += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a whole message."""
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def nf_tables(
    kind: int, flags: int, sequence: int, attributes_of_it: bytes, family: int = INET
) -> bytes:
    """Return a message to nf_tables."""
    return message(
        NFTABLES << 8 | kind,
        REQUEST | flags,
        sequence,
        struct.pack("=BBH", family, 0, 0) + attributes_of_it,
    )


def batch(kind: int, sequence: int) -> bytes:
    """Return the start or the end of a transaction of nf_tables."""
    return message(kind, REQUEST, sequence, struct.pack(">BBH", 0, 0, NFTABLES))
