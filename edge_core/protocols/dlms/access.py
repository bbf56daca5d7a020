"""ACCESS: several GET, SET and ACTION in one request, done in their order.

Invariants: a request has as many data as specifications, null-data where one needs none; a response has as many data and
results again. Values stay octets. `invoke` is the long-invoke-id-and-priority: bits 0-23 the id, 28 self-descriptive,
29 stop at the first error, 30 confirmed, 31 high priority.
Limits: MAX_SPECIFICATIONS; longer exchanges go by general-block-transfer.
Source: DLMS UA Green Book ed. 9, clauses 9.3.6 (ACCESS), 9.5.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.codes import ActionResult, DataAccessResult, words
from edge_core.protocols.dlms.cosem import (
    DESCRIPTOR_OCTETS,
    Attribute,
    Method,
    Selector,
    encode_selection,
    read_descriptor,
    read_selector,
)
from edge_core.protocols.dlms.parts import U32, at_end, read_values, write_values

ACCESS_REQUEST: Final = 0xD9
ACCESS_RESPONSE: Final = 0xDA
MAX_SPECIFICATIONS: Final = 255
INVOKE: Final = 0xC0000001
"""Id 1, confirmed, high priority."""
BREAK_ON_ERROR: Final = 1 << 29

_GET, _SET, _ACTION, _GET_SELECTED, _SET_SELECTED = 1, 2, 3, 4, 5
_NULL: Final = b"\x00"
_DATE_TIME_OCTETS: Final = 12


class Get(msgspec.Struct, frozen=True):
    """Read an attribute."""

    attribute: Attribute
    selector: Selector | None = None


class Set(msgspec.Struct, frozen=True):
    """Write an attribute; `data` is A-XDR."""

    attribute: Attribute
    data: bytes
    selector: Selector | None = None


class Act(msgspec.Struct, frozen=True):
    """Invoke a method; `parameters` is A-XDR, null-data for none."""

    method: Method
    parameters: bytes = _NULL


Specification = Get | Set | Act


class AccessRequest(msgspec.Struct, frozen=True):
    """access-request.

    Attributes:
        specifications: what to do, in this order.
        invoke: long-invoke-id-and-priority.
        time: date-time octets, b"" without.
    """

    NAME: ClassVar[str] = "access-request"
    specifications: tuple[Specification, ...]
    invoke: int = INVOKE
    time: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU."""
        return b"".join(
            (
                bytes((ACCESS_REQUEST,)),
                U32.pack(self.invoke),
                axdr.encode_octets(self.time),
                axdr.encode_length(len(self.specifications)),
                *(_write_specification(s) for s in self.specifications),
                write_values(tuple(_data_of(s) for s in self.specifications)),
            )
        )


class AccessResult(msgspec.Struct, frozen=True):
    """What came of one specification.

    Attributes:
        service: 1 GET, 2 SET, 3 ACTION.
        result: data-access-result, or action-result of an ACTION.
        data: what was read or returned as A-XDR, null-data for nothing.
    """

    service: int
    result: int
    data: bytes = _NULL

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(ActionResult if self.service == _ACTION else DataAccessResult, self.result)


class AccessResponse(msgspec.Struct, frozen=True):
    """access-response; the specifications, which a server may repeat, are not kept."""

    NAME: ClassVar[str] = "access-response"
    results: tuple[AccessResult, ...]
    invoke: int = INVOKE
    time: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU, without the specifications."""
        return b"".join(
            (
                bytes((ACCESS_RESPONSE,)),
                U32.pack(self.invoke),
                axdr.encode_octets(self.time),
                _NULL,
                write_values(tuple(r.data for r in self.results)),
                axdr.encode_length(len(self.results)),
                *(bytes((r.service, r.result)) for r in self.results),
            )
        )


AccessMessage = AccessRequest | AccessResponse


def service_of(specification: Specification) -> int:
    """1 GET, 2 SET, 3 ACTION: what a result must name."""
    if isinstance(specification, Get):
        return _GET
    return _SET if isinstance(specification, Set) else _ACTION


def read_access_request(octets: bytes) -> AccessRequest:
    """D9."""
    invoke, time, at = _read_head(octets)
    heads, at = _read_specifications(octets, at)
    data, at = read_values(octets, at)
    at_end(octets, at)
    if len(data) != len(heads):
        raise MalformedApdu(f"{len(data)} data for {len(heads)} specifications", at)
    return AccessRequest(tuple(map(_specification, heads, data)), invoke, time)


def read_access_response(octets: bytes) -> AccessResponse:
    """DA."""
    invoke, time, at = _read_head(octets)
    if octets[at] > 1:
        raise MalformedApdu("the specifications are neither absent (00) nor present (01)", at)
    if octets[at]:
        _, at = _read_specifications(octets, at + 1)
    else:
        at += 1
    data, at = read_values(octets, at)
    count, at = axdr.read_length(octets, at)
    if count != len(data) or count > MAX_SPECIFICATIONS:
        raise MalformedApdu(f"{count} results for {len(data)} data", at)
    at_end(octets, at + 2 * count)
    results = []
    for i, value in enumerate(data):
        service, result = octets[at + 2 * i], octets[at + 2 * i + 1]
        if service not in (_GET, _SET, _ACTION):
            raise MalformedApdu(f"the result of a service {service}", at + 2 * i)
        results.append(AccessResult(service, result, value))
    return AccessResponse(tuple(results), invoke, time)


def _read_head(octets: bytes) -> tuple[int, bytes, int]:
    invoke = U32.unpack_from(octets, 1)[0]
    time, at = axdr.read_octets(octets, 5)
    if len(time) not in (0, _DATE_TIME_OCTETS):
        raise MalformedApdu(f"a date-time of {len(time)} octets", 5)
    return invoke, time, at


_Head = tuple[int, Attribute | Method, Selector | None]


def _read_specifications(octets: bytes, at: int) -> tuple[list[_Head], int]:
    count, at = axdr.read_length(octets, at)
    if count > MAX_SPECIFICATIONS:
        raise MalformedApdu(f"{count} specifications, {MAX_SPECIFICATIONS} are allowed", at)
    heads: list[_Head] = []
    for _ in range(count):
        kind = octets[at]
        name = read_descriptor(octets, at + 1)
        at += 1 + DESCRIPTOR_OCTETS
        selector: Selector | None = None
        if kind in (_GET_SELECTED, _SET_SELECTED):
            selector, at = read_selector(octets, at)
        elif kind not in (_GET, _SET, _ACTION):
            raise MalformedApdu(f"a specification of kind {kind}", at)
        heads.append((kind, Method(*name) if kind == _ACTION else Attribute(*name), selector))
    return heads, at


def _specification(head: _Head, data: bytes) -> Specification:
    kind, target, selector = head
    if isinstance(target, Method):
        return Act(target, data)
    if kind in (_SET, _SET_SELECTED):
        return Set(target, data, selector)
    return Get(target, selector)


def _write_specification(specification: Specification) -> bytes:
    if isinstance(specification, Act):
        return bytes((_ACTION,)) + specification.method.to_bytes()
    selected = specification.selector is not None
    if isinstance(specification, Get):
        kind = _GET_SELECTED if selected else _GET
    else:
        kind = _SET_SELECTED if selected else _SET
    selection = encode_selection(specification.selector)[1:] if selected else b""
    return bytes((kind,)) + specification.attribute.to_bytes() + selection


def _data_of(specification: Specification) -> bytes:
    if isinstance(specification, Get):
        return _NULL
    return specification.data if isinstance(specification, Set) else specification.parameters
