"""What may reach libnftables.

Texts and JSON in exactly the forms that we give everything, nothing else.

libnftables resolves names by DNS, takes integers for addresses and aborts the process on `*`: the
check does not repeat how our code writes, it says what every text has to look like.
"""

import ipaddress
import json
import re
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_./-]{1,255}")
_COMMENT = re.compile(r"[A-Za-z0-9_./:-]{1,127}")
_WORDS = "type|typeof|size|flags|counter|ct|ip|ip6|meta|tcp|udp|sctp|th|dnat|goto|jump|fib|reject|drop|iifname|masquerade|update"  # noqa: E501
_LINE = re.compile(
    r"(add|delete|flush) (table|chain|set|map) inet nftproxy( [A-Za-z0-9_./-]{1,255})?|table "
    r"inet nftproxy \{"
    r"|(chain|set|map) [A-Za-z0-9_./-]{1,255} \{|\}|(" + _WORDS + r")\b[ -~]*"
    r"|(add (map|table)|delete table) inet nftproxy-probe[ -~]*|"
)


def check_text(text: str) -> None:
    """Raise when something goes to libnftables that is not in the form which we give everything."""
    if not text.startswith("{"):
        for line in text.splitlines():
            assert _LINE.fullmatch(re.sub(r"\s*#.*", "", line).strip()), line
        assert text.isascii()
        return
    for command in json.loads(text)["nftables"]:
        ((verb, what),) = command.items()
        assert verb in {"add", "delete", "flush"}, command
        ((_, target),) = what.items()
        assert (target["family"], target["table"]) == ("inet", "nftproxy")
        assert _NAME.fullmatch(target["name"]), target["name"]
        for element in target.get("elem", ()):
            _check_element(element)


def _check_element(element: Any) -> None:
    key, value = element if isinstance(element, list) else (element, None)
    if isinstance(key, dict) and "elem" in key:
        assert _COMMENT.fullmatch(key["elem"]["comment"]), key
        key = key["elem"]["val"]
    if isinstance(key, dict) and "prefix" in key:
        assert str(ipaddress.ip_network(f"{key['prefix']['addr']}/{key['prefix']['len']}"))
        return
    for part in key["concat"] if isinstance(key, dict) else [key]:
        _check_part(part)
    if isinstance(value, dict) and "concat" not in value:
        ((verb, target),) = value.items()
        assert verb in {"goto", "jump", "drop"}, value
        assert target is None or _NAME.fullmatch(target["target"]), value
    elif value is not None:
        for part in value["concat"] if isinstance(value, dict) else [value]:
            _check_part(part)


def _check_part(part: object) -> None:
    if isinstance(part, str) and part not in {"tcp", "udp", "sctp"}:
        assert str(ipaddress.ip_address(part)) == part, part
    elif not isinstance(part, str):
        assert type(part) is int, part
        assert 0 <= part <= 65535, part
