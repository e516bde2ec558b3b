"""The attributes of nf_tables' expressions by name, and their values.

Pure. Each enumeration has the kernel's name for it, such as NFTA_CMP_*, and the members that a
reader of rules needs.
"""

import enum


class VerdictCode(enum.IntEnum):
    """NF_* and NFT_*: the verdict of a rule on a packet."""

    DROP = 0
    ACCEPT = 1
    STOLEN = 2
    QUEUE = 3
    CONTINUE = -1
    BREAK = -2
    JUMP = -3
    GOTO = -4
    RETURN = -5


class Immediate(enum.IntEnum):
    """NFTA_IMMEDIATE_*."""

    TO = 1
    DATA = 2


class Bitwise(enum.IntEnum):
    """NFTA_BITWISE_*."""

    FROM = 1
    TO = 2
    LENGTH = 3
    MASK = 4
    XOR = 5
    OPERATION = 6
    DATA = 7
    FROM_2 = 8


class BitwiseOperation(enum.IntEnum):
    """NFT_BITWISE_*."""

    MASK_XOR = 0
    LEFT = 1
    RIGHT = 2
    AND = 3
    OR = 4
    XOR = 5


class Byteorder(enum.IntEnum):
    """NFTA_BYTEORDER_*."""

    FROM = 1
    TO = 2
    LENGTH = 4
    SIZE = 5


class Compare(enum.IntEnum):
    """NFTA_CMP_*."""

    FROM = 1
    OPERATION = 2
    DATA = 3


class Operation(enum.IntEnum):
    """NFT_CMP_*."""

    EQUAL = 0
    UNEQUAL = 1
    LESS = 2
    AT_MOST = 3
    MORE = 4
    AT_LEAST = 5


class Range(enum.IntEnum):
    """NFTA_RANGE_*."""

    FROM = 1
    OPERATION = 2
    LOWEST = 3
    HIGHEST = 4


class LookupExpression(enum.IntEnum):
    """NFTA_LOOKUP_*."""

    SET = 1
    FROM = 2
    TO = 3
    FLAGS = 5


class Dynamic(enum.IntEnum):
    """NFTA_DYNSET_*."""

    SET = 1
    OPERATION = 3
    KEY = 4
    VALUE = 5
    EXPRESSION = 7
    EXPRESSIONS = 10


class Payload(enum.IntEnum):
    """NFTA_PAYLOAD_*."""

    TO = 1
    BASE = 2
    OFFSET = 3
    LENGTH = 4
    FROM = 5


class Base(enum.IntEnum):
    """NFT_PAYLOAD_*_HEADER."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2
    INNER = 3


class Header(enum.IntEnum):
    """NFTA_EXTHDR_*."""

    TO = 1
    FLAGS = 5
    OPERATION = 6
    FROM = 7


class HeaderOperation(enum.IntEnum):
    """NFT_EXTHDR_OP_*."""

    IPV6 = 0
    TCP_OPTION = 1
    IPV4 = 2


class MetaExpression(enum.IntEnum):
    """NFTA_META_*."""

    TO = 1
    KEY = 2
    FROM = 3


class MetaKey(enum.IntEnum):
    """NFT_META_*."""

    PROTOCOL = 1
    MARK = 3
    IIF = 4
    OIF = 5
    IIF_NAME = 6
    OIF_NAME = 7
    IIF_TYPE = 8
    OIF_TYPE = 9
    USER = 10
    GROUP = 11
    TRACE = 12
    NF_PROTOCOL = 15
    L4_PROTOCOL = 16
    BRIDGE_IIF_NAME = 17
    BRIDGE_OIF_NAME = 18
    PACKET_TYPE = 19
    IIF_GROUP = 21
    OIF_GROUP = 22
    CGROUP = 23
    IIF_KIND = 26
    OIF_KIND = 27
    TIME = 30


class Ct(enum.IntEnum):
    """NFTA_CT_*."""

    TO = 1
    KEY = 2
    DIRECTION = 3
    FROM = 4


class CtKey(enum.IntEnum):
    """NFT_CT_*."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    MARK = 3
    HELPER = 6
    L3_PROTOCOL = 7
    SOURCE = 8
    DESTINATION = 9
    PROTOCOL = 10
    PROTOCOL_SOURCE = 11
    PROTOCOL_DESTINATION = 12
    LABELS = 13
    PACKETS = 14
    BYTES = 15
    ZONE = 17
    SOURCE_4 = 19
    DESTINATION_4 = 20
    SOURCE_6 = 21
    DESTINATION_6 = 22


class Limit(enum.IntEnum):
    """NFTA_LIMIT_*."""

    RATE = 1
    UNIT = 2


class Reject(enum.IntEnum):
    """NFTA_REJECT_*."""

    TYPE = 1
    CODE = 2


class RejectType(enum.IntEnum):
    """NFT_REJECT_*."""

    ICMP = 0
    TCP_RESET = 1
    ICMPX = 2


class Nat(enum.IntEnum):
    """NFTA_NAT_*."""

    TYPE = 1
    ADDRESS = 3
    ADDRESS_END = 4
    PORT = 5
    PORT_END = 6
    FLAGS = 7


class NatType(enum.IntEnum):
    """NFT_NAT_*."""

    SOURCE = 0
    DESTINATION = 1


class Redirect(enum.IntEnum):
    """NFTA_REDIR_*."""

    PORT = 1


class Numgen(enum.IntEnum):
    """NFTA_NG_*."""

    TO = 1
    MODULUS = 2
    OFFSET = 4


class Hash(enum.IntEnum):
    """NFTA_HASH_*."""

    FROM = 1
    TO = 2
    LENGTH = 3
    MODULUS = 4
    SEED = 5
    OFFSET = 6


class Fib(enum.IntEnum):
    """NFTA_FIB_*."""

    TO = 1
    RESULT = 2
    FLAGS = 3


class FibResult(enum.IntEnum):
    """NFT_FIB_RESULT_*."""

    OIF = 1
    OIF_NAME = 2
    ADDRESS_TYPE = 3


class FibFlag(enum.IntFlag):
    """NFTA_FIB_F_*."""

    SOURCE = 1
    DESTINATION = 2
    MARK = 4
    IIF = 8
    OIF = 16
    PRESENT = 32


class SocketExpression(enum.IntEnum):
    """NFTA_SOCKET_*."""

    TO = 2


class RouteExpression(enum.IntEnum):
    """NFTA_RT_*."""

    TO = 1


class Object(enum.IntEnum):
    """NFTA_OBJREF_*."""

    TYPE = 1
    NAME = 2
    FROM = 3
    SET = 4


class ObjectType(enum.IntEnum):
    """NFT_OBJECT_*."""

    COUNTER = 1
    QUOTA = 2
    HELPER = 3
    LIMIT = 4
    CONNECTIONS = 5
    TIMEOUT = 7
    SECURITY_MARK = 8
    EXPECTATION = 9
    SYN_PROXY = 10


class Extension(enum.IntEnum):
    """NFTA_MATCH_* and NFTA_TARGET_*: the parts of xtables in iptables-nft."""

    NAME = 1
    REVISION = 2
    INFO = 3
