"""What Services hold in the table after reading back, if the kernel refuses their change.

Pure. Such a Service stays as it was, but nobody remembers how that was. So everything that may
belong to it stays: its frontends, which are those that it wants and those that bear its name in a
comment; and what the table says of endpoints of any Service.
"""

from collections.abc import Iterable, Mapping

from nftproxy.model import ObjectName
from nftproxy.routes import Frontend, Key
from nftproxy.table import schema
from nftproxy.table.packing import shape, unpack_comment_of_verdict

_OF_ENDPOINTS = (schema.HAIRPIN, schema.MEMBERS)


class Holdings:
    """The elements that may belong to Services whose change was refused."""

    def __init__(
        self,
        services: Iterable[ObjectName],
        frontends: Iterable[Frontend],
        elements: Mapping[str, Mapping[bytes, bytes]],
    ) -> None:
        """`frontends` are those that they want; `elements` are packed, by set."""
        self._names = {str(service) for service in services}
        self._cut_names = {schema.bounded(name) for name in self._names}
        self._frontends = {*frontends, *self._named(elements)}
        self._addresses = {frontend.address for frontend in self._frontends}

    def __contains__(self, element: tuple[str, Key]) -> bool:
        """Whether an element, given by its set and key, may be one of theirs."""
        where, key = element
        place = schema.parse(where)
        if not self._names or place is None:
            return False
        match place.declaration.per:
            case schema.Per.SERVICE_PORT:
                # namespace/service/protocol/port name
                return place.detail.rsplit("/", 2)[0] in self._names
            case schema.Per.GROUP:
                return place.service in self._cut_names
            case schema.Per.PROTOCOL:
                return Frontend.of_slot(key, place.detail) in self._frontends
        if place.declaration is schema.CLUSTER_IPS:
            return key[0] in self._addresses
        if place.declaration in _OF_ENDPOINTS:
            return True
        return Frontend.of_key(key if place.node_port else key[:3]) in self._frontends

    def _named(self, elements: Mapping[str, Mapping[bytes, bytes]]) -> Iterable[Frontend]:
        """Yield the frontends whose comment names one of the Services."""
        for where, packed in elements.items() if self._names else ():
            held = shape(where)
            if held and schema.declaration(where) in (schema.SERVICES, schema.NO_ENDPOINTS):
                for key, value in packed.items():
                    name = unpack_comment_of_verdict(value)
                    # namespace/service:port name, or without a colon
                    if name in self._names or name.rpartition(":")[0] in self._names:
                        yield Frontend.of_key(held.key.unpack(key))
