"""What Services hold in the table after reading back, if the kernel refuses their change.

Pure. Such a Service stays as it was, but nobody remembers how that was. So everything stays that
may belong to it: its frontends, unless another Service has them now; chains and sets with its name;
and what the table says of endpoints, whosever they are.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nftproxy.model import ObjectName
from nftproxy.routes import COMMENT, CUT, Element, Frontend, Key
from nftproxy.table import schema
from nftproxy.table.packing import comment_of, shape

Read = Mapping[str, Mapping[bytes, bytes]]
"""Packed elements, by set or map."""
_OF_ENDPOINTS = (schema.HAIRPIN, schema.MEMBERS)


class Holdings:
    """What may belong to Services whose change was refused."""

    def __init__(
        self,
        services: Iterable[ObjectName],
        wanted: Iterable[Frontend],
        owned: Collection[Frontend],
        read: Read,
    ) -> None:
        """`wanted` are the frontends that they want, `owned` those that others have now."""
        self._services = {str(service) for service in services}
        # A comment that was cut may end within the name
        self._cut = {f"{name}:"[:CUT] for name in self._services if len(name) >= CUT}
        self._read = read
        found = {*wanted, *self._named()}
        self.frontends = {frontend for frontend in found if frontend not in owned}
        self._addresses = {frontend.address for frontend in self.frontends}

    def __contains__(self, element: tuple[str, Key]) -> bool:
        """Whether an element, given by its set and key, may be one of theirs."""
        where, key = element
        place = schema.parse(where)
        if not self._services or place is None:
            return False
        match place.declaration.per:
            case schema.Per.SERVICE_PORT | schema.Per.GROUP:
                return is_named_after(where, self._services)
            case schema.Per.PROTOCOL:
                return Frontend.of_slot(key, place.detail) in self.frontends
        if place.declaration is schema.CLUSTER_IPS:
            return key[0] in self._addresses
        if place.declaration in _OF_ENDPOINTS:
            return True
        return Frontend.of_key(key if place.node_port else key[:3]) in self.frontends

    def of_several(self) -> Iterator[Element]:
        """Yield the elements that stay although no Service that is known may have them."""
        for where, packed in self._read.items() if self._services else ():
            held = shape(where)
            if held and schema.declaration(where) in (schema.CLUSTER_IPS, *_OF_ENDPOINTS):
                for key in map(held.key.unpack, packed):
                    if (where, key) in self:
                        yield Element(where, key)

    def _named(self) -> Iterator[Frontend]:
        """Yield the frontends whose comment names one of the Services."""
        for where, packed in self._read.items() if self._services else ():
            held = shape(where)
            if held and schema.declaration(where) in (schema.SERVICES, schema.NO_ENDPOINTS):
                for key, value in packed.items():
                    if self._is_named(comment_of(value)):
                        yield Frontend.of_key(held.key.unpack(key))

    def _is_named(self, comment: str) -> bool:
        """Whether a comment is that of a route of theirs: namespace/service:port, or without."""
        return (
            comment in self._services
            or comment.rpartition(":")[0] in self._services
            or (len(comment) == COMMENT and comment[:CUT] in self._cut)
        )


def is_named_after(name: str, services: Collection[str]) -> bool:
    """Whether a chain or set has the name of one of some Services in its own.

    It ends with namespace/service, with protocol and port name or with port numbers after that. So
    may that of another Service, whose namespace ends alike.
    """
    return any(
        end[place + 1 :] in services
        for end in (name, name.rsplit("/", 2)[0], name.rpartition("-")[0])
        for place, letter in enumerate(end)
        if letter == "-"
    )
