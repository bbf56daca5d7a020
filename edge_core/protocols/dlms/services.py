"""GET, SET and ACTION: requests and responses of logical name referencing, to structs and back.

Invariants: values stay octets (`data`, `parameters`, `block`): profiles are decoded by compiled layouts, not as trees,
and blocks are cut anywhere. Whoever needs a tree calls `axdr.decode_whole`, which also refuses trailing octets.
`invoke` is the whole invoke-id-and-priority octet: bits 0-3 the id, 6 confirmed, 7 high priority.
`from_bytes` gets a whole APDU whose tag is known; IndexError and struct.error from a cut one are turned into
MalformedApdu by `apdu.decode`, the one way in.
Source: DLMS UA Green Book ed. 9, clause 9.5.
"""

from __future__ import annotations

import struct
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
    read_selection,
)

INVOKE: Final = 0xC1
"""Invoke-id 1, confirmed, high priority: what a client with one request in flight writes."""

_U32: Final = struct.Struct(">I")


class Block(msgspec.Struct, frozen=True):
    """One block of a block transfer.

    Attributes:
        last: no block follows.
        number: from 1 on.
        data: a piece of what is transferred, cut anywhere.
    """

    last: bool
    number: int
    data: bytes

    def to_bytes(self) -> bytes:
        """last-block, block-number, raw-data."""
        return (b"\x01" if self.last else b"\x00") + _U32.pack(self.number) + _sized(self.data)


def _sized(octets: bytes) -> bytes:
    return axdr.encode_length(len(octets)) + octets


def _read_block(octets: bytes, at: int) -> Block:
    number = _U32.unpack_from(octets, at + 1)[0]
    data, end = axdr.read_octets(octets, at + 5)
    _at_end(octets, end)
    return Block(octets[at] != 0, number, data)


def _at_end(octets: bytes, at: int) -> None:
    if at != len(octets):
        raise MalformedApdu(f"{len(octets) - at} octets follow the APDU", at)


def _read_attributes(
    octets: bytes, at: int
) -> tuple[tuple[tuple[Attribute, Selector | None], ...], int]:
    count, at = axdr.read_length(octets, at)
    if count * (DESCRIPTOR_OCTETS + 1) > len(octets) - at:
        raise MalformedApdu(
            f"{count} attributes are announced, {len(octets) - at} octets are left", at
        )
    out = []
    for _ in range(count):
        attribute = Attribute(*read_descriptor(octets, at))
        selector, at = read_selection(octets, at + DESCRIPTOR_OCTETS)
        out.append((attribute, selector))
    return tuple(out), at


def _write_attributes(attributes: tuple[tuple[Attribute, Selector | None], ...]) -> bytes:
    return axdr.encode_length(len(attributes)) + b"".join(
        attribute.to_bytes() + encode_selection(selector) for attribute, selector in attributes
    )


def _read_values(octets: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    count, at = axdr.read_length(octets, at)
    if count > len(octets) - at:
        raise MalformedApdu(f"{count} values are announced, {len(octets) - at} octets are left", at)
    out = []
    for _ in range(count):
        end = axdr.skip(octets, at)
        out.append(octets[at:end])
        at = end
    return tuple(out), at


def _write_values(values: tuple[bytes, ...]) -> bytes:
    return axdr.encode_length(len(values)) + b"".join(values)


class GetResult(msgspec.Struct, frozen=True):
    """What GET gives for one attribute.

    Attributes:
        result: data-access-result; SUCCESS when there are data.
        data: the value as A-XDR, b"" without success.
    """

    result: int
    data: bytes = b""

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(DataAccessResult, self.result)

    def to_bytes(self) -> bytes:
        """Get-Data-Result."""
        return bytes((1, self.result)) if self.result else b"\x00" + self.data


def _read_get_result(octets: bytes, at: int) -> tuple[GetResult, int]:
    choice = octets[at]
    if choice == 0:
        end = axdr.skip(octets, at + 1)
        return GetResult(0, octets[at + 1 : end]), end
    if choice == 1:
        return GetResult(octets[at + 1]), at + 2
    raise MalformedApdu(f"Get-Data-Result {choice} is neither data nor a result", at)


class GetRequest(msgspec.Struct, frozen=True):
    """get-request-normal."""

    NAME: ClassVar[str] = "get-request-normal"
    attribute: Attribute
    selector: Selector | None = None
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC0, 1, self.invoke))
            + self.attribute.to_bytes()
            + encode_selection(self.selector)
        )


class GetRequestNext(msgspec.Struct, frozen=True):
    """get-request-next: `block` is the number just received."""

    NAME: ClassVar[str] = "get-request-next"
    block: int
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC0, 2, self.invoke)) + _U32.pack(self.block)


class GetRequestList(msgspec.Struct, frozen=True):
    """get-request-with-list."""

    NAME: ClassVar[str] = "get-request-with-list"
    attributes: tuple[tuple[Attribute, Selector | None], ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC0, 3, self.invoke)) + _write_attributes(self.attributes)


class GetResponse(msgspec.Struct, frozen=True):
    """get-response-normal.

    Attributes:
        result: data-access-result; SUCCESS when there are data.
        data: the value as A-XDR up to the end of the APDU, b"" without success.
    """

    NAME: ClassVar[str] = "get-response-normal"
    result: int
    data: bytes = b""
    invoke: int = INVOKE

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(DataAccessResult, self.result)

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC4, 1, self.invoke)) + GetResult(self.result, self.data).to_bytes()


class GetResponseBlock(msgspec.Struct, frozen=True):
    """get-response-with-datablock.

    Attributes:
        block: its data are b"" when `result` is not SUCCESS.
        result: data-access-result that ends the transfer, or SUCCESS.
    """

    NAME: ClassVar[str] = "get-response-with-datablock"
    block: Block
    result: int = 0
    invoke: int = INVOKE

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(DataAccessResult, self.result)

    def to_bytes(self) -> bytes:
        """The APDU."""
        block = self.block
        return (
            bytes((0xC4, 2, self.invoke, block.last))
            + _U32.pack(block.number)
            + (bytes((1, self.result)) if self.result else b"\x00" + _sized(block.data))
        )


class GetResponseList(msgspec.Struct, frozen=True):
    """get-response-with-list."""

    NAME: ClassVar[str] = "get-response-with-list"
    results: tuple[GetResult, ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC4, 3, self.invoke))
            + axdr.encode_length(len(self.results))
            + b"".join(r.to_bytes() for r in self.results)
        )


class SetRequest(msgspec.Struct, frozen=True):
    """set-request-normal; `data` is the value as A-XDR."""

    NAME: ClassVar[str] = "set-request-normal"
    attribute: Attribute
    data: bytes
    selector: Selector | None = None
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC1, 1, self.invoke))
            + self.attribute.to_bytes()
            + encode_selection(self.selector)
            + self.data
        )


class SetRequestFirstBlock(msgspec.Struct, frozen=True):
    """set-request-with-first-datablock."""

    NAME: ClassVar[str] = "set-request-with-first-datablock"
    attribute: Attribute
    block: Block
    selector: Selector | None = None
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC1, 2, self.invoke))
            + self.attribute.to_bytes()
            + encode_selection(self.selector)
            + self.block.to_bytes()
        )


class SetRequestBlock(msgspec.Struct, frozen=True):
    """set-request-with-datablock."""

    NAME: ClassVar[str] = "set-request-with-datablock"
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC1, 3, self.invoke)) + self.block.to_bytes()


class SetRequestList(msgspec.Struct, frozen=True):
    """set-request-with-list; `values` are A-XDR, one per attribute."""

    NAME: ClassVar[str] = "set-request-with-list"
    attributes: tuple[tuple[Attribute, Selector | None], ...]
    values: tuple[bytes, ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC1, 4, self.invoke))
            + _write_attributes(self.attributes)
            + _write_values(self.values)
        )


class SetRequestListFirstBlock(msgspec.Struct, frozen=True):
    """set-request-with-list-and-first-datablock."""

    NAME: ClassVar[str] = "set-request-with-list-and-first-datablock"
    attributes: tuple[tuple[Attribute, Selector | None], ...]
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC1, 5, self.invoke))
            + _write_attributes(self.attributes)
            + self.block.to_bytes()
        )


class SetResponse(msgspec.Struct, frozen=True):
    """set-response-normal."""

    NAME: ClassVar[str] = "set-response-normal"
    result: int
    invoke: int = INVOKE

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(DataAccessResult, self.result)

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC5, 1, self.invoke, self.result))


class SetResponseBlock(msgspec.Struct, frozen=True):
    """set-response-datablock: block `number` has arrived, more are due."""

    NAME: ClassVar[str] = "set-response-datablock"
    number: int
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC5, 2, self.invoke)) + _U32.pack(self.number)


class SetResponseLastBlock(msgspec.Struct, frozen=True):
    """set-response-last-datablock, with one result, or with several after a list."""

    NAME: ClassVar[str] = "set-response-last-datablock"
    results: tuple[int, ...]
    number: int
    with_list: bool = False
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        head = bytes((0xC5, 4 if self.with_list else 3, self.invoke))
        results = bytes(self.results)
        return head + (_sized(results) if self.with_list else results[:1]) + _U32.pack(self.number)


class SetResponseList(msgspec.Struct, frozen=True):
    """set-response-with-list."""

    NAME: ClassVar[str] = "set-response-with-list"
    results: tuple[int, ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC5, 5, self.invoke)) + _sized(bytes(self.results))


class ActionRequest(msgspec.Struct, frozen=True):
    """action-request-normal; `parameters` is A-XDR, None = none."""

    NAME: ClassVar[str] = "action-request-normal"
    method: Method
    parameters: bytes | None = None
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        tail = b"\x00" if self.parameters is None else b"\x01" + self.parameters
        return bytes((0xC3, 1, self.invoke)) + self.method.to_bytes() + tail


class ActionRequestNextBlock(msgspec.Struct, frozen=True):
    """action-request-next-pblock: `block` is the number just received."""

    NAME: ClassVar[str] = "action-request-next-pblock"
    block: int
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC3, 2, self.invoke)) + _U32.pack(self.block)


class ActionRequestList(msgspec.Struct, frozen=True):
    """action-request-with-list; `parameters` are A-XDR, one per method."""

    NAME: ClassVar[str] = "action-request-with-list"
    methods: tuple[Method, ...]
    parameters: tuple[bytes, ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC3, 3, self.invoke))
            + _write_methods(self.methods)
            + _write_values(self.parameters)
        )


class ActionRequestFirstBlock(msgspec.Struct, frozen=True):
    """action-request-with-first-pblock."""

    NAME: ClassVar[str] = "action-request-with-first-pblock"
    method: Method
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC3, 4, self.invoke)) + self.method.to_bytes() + self.block.to_bytes()


class ActionRequestListFirstBlock(msgspec.Struct, frozen=True):
    """action-request-with-list-and-first-pblock."""

    NAME: ClassVar[str] = "action-request-with-list-and-first-pblock"
    methods: tuple[Method, ...]
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC3, 5, self.invoke)) + _write_methods(self.methods) + self.block.to_bytes()


class ActionRequestBlock(msgspec.Struct, frozen=True):
    """action-request-with-pblock."""

    NAME: ClassVar[str] = "action-request-with-pblock"
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC3, 6, self.invoke)) + self.block.to_bytes()


def _write_methods(methods: tuple[Method, ...]) -> bytes:
    return axdr.encode_length(len(methods)) + b"".join(m.to_bytes() for m in methods)


class ActionResponse(msgspec.Struct, frozen=True):
    """action-response-normal.

    Attributes:
        result: action-result.
        returned: what the method returned, or why not; None = nothing.
    """

    NAME: ClassVar[str] = "action-response-normal"
    result: int
    returned: GetResult | None = None
    invoke: int = INVOKE

    @property
    def words(self) -> str:
        """The result in the standard's words."""
        return words(ActionResult, self.result)

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC7, 1, self.invoke)) + _write_action_result(self.result, self.returned)


class ActionResponseBlock(msgspec.Struct, frozen=True):
    """action-response-with-pblock."""

    NAME: ClassVar[str] = "action-response-with-pblock"
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC7, 2, self.invoke)) + self.block.to_bytes()


class ActionResponseList(msgspec.Struct, frozen=True):
    """action-response-with-list: (action-result, what was returned) per method."""

    NAME: ClassVar[str] = "action-response-with-list"
    results: tuple[tuple[int, GetResult | None], ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return (
            bytes((0xC7, 3, self.invoke))
            + axdr.encode_length(len(self.results))
            + b"".join(_write_action_result(*r) for r in self.results)
        )


class ActionResponseNextBlock(msgspec.Struct, frozen=True):
    """action-response-next-pblock: block `number` has arrived, more are due."""

    NAME: ClassVar[str] = "action-response-next-pblock"
    number: int
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC7, 4, self.invoke)) + _U32.pack(self.number)


def _write_action_result(result: int, returned: GetResult | None) -> bytes:
    return bytes((result,)) + (b"\x00" if returned is None else b"\x01" + returned.to_bytes())


def _read_action_result(octets: bytes, at: int) -> tuple[int, GetResult | None, int]:
    result = octets[at]
    at += 1
    if at == len(octets) or octets[at] == 0:  # some meters leave the optional part out altogether
        return result, None, min(at + 1, len(octets))
    if octets[at] != 1:
        raise MalformedApdu("return parameters are neither absent (00) nor present (01)", at)
    returned, at = _read_get_result(octets, at + 1)
    return result, returned, at


GetMessage = (
    GetRequest | GetRequestNext | GetRequestList | GetResponse | GetResponseBlock | GetResponseList
)
SetMessage = (
    SetRequest
    | SetRequestFirstBlock
    | SetRequestBlock
    | SetRequestList
    | SetRequestListFirstBlock
    | SetResponse
    | SetResponseBlock
    | SetResponseLastBlock
    | SetResponseList
)
ActionMessage = (
    ActionRequest
    | ActionRequestNextBlock
    | ActionRequestList
    | ActionRequestFirstBlock
    | ActionRequestListFirstBlock
    | ActionRequestBlock
    | ActionResponse
    | ActionResponseBlock
    | ActionResponseList
    | ActionResponseNextBlock
)


def read_get_request(octets: bytes) -> GetMessage:
    """C0."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        attribute = Attribute(*read_descriptor(octets, 3))
        selector, at = read_selection(octets, 3 + DESCRIPTOR_OCTETS)
        _at_end(octets, at)
        return GetRequest(attribute, selector, invoke)
    if kind == 2:
        _at_end(octets, 7)
        return GetRequestNext(_U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        attributes, at = _read_attributes(octets, 3)
        _at_end(octets, at)
        return GetRequestList(attributes, invoke)
    raise MalformedApdu(f"get-request of kind {kind}", 1)


def read_get_response(octets: bytes) -> GetMessage:
    """C4."""
    kind, invoke, choice = octets[1], octets[2], octets[3]
    if kind == 1:
        if choice == 0:
            return GetResponse(0, octets[4:], invoke)
        if choice == 1:
            _at_end(octets, 5)
            return GetResponse(octets[4], b"", invoke)
        raise MalformedApdu(f"Get-Data-Result {choice} is neither data nor a result", 3)
    if kind == 2:
        number = _U32.unpack_from(octets, 4)[0]
        if octets[8] == 0:
            data, at = axdr.read_octets(octets, 9)
            _at_end(octets, at)
            return GetResponseBlock(Block(choice != 0, number, data), 0, invoke)
        if octets[8] == 1:
            _at_end(octets, 10)
            return GetResponseBlock(Block(choice != 0, number, b""), octets[9], invoke)
        raise MalformedApdu(f"a block of kind {octets[8]} is neither data nor a result", 8)
    if kind == 3:
        count, at = axdr.read_length(octets, 3)
        if count > len(octets) - at:
            raise MalformedApdu(f"{count} results are announced", 3)
        results = []
        for _ in range(count):
            result, at = _read_get_result(octets, at)
            results.append(result)
        _at_end(octets, at)
        return GetResponseList(tuple(results), invoke)
    raise MalformedApdu(f"get-response of kind {kind}", 1)


def read_set_request(octets: bytes) -> SetMessage:
    """C1."""
    kind, invoke = octets[1], octets[2]
    if kind in (1, 2):
        attribute = Attribute(*read_descriptor(octets, 3))
        selector, at = read_selection(octets, 3 + DESCRIPTOR_OCTETS)
        if kind == 1:
            return SetRequest(attribute, octets[at:], selector, invoke)
        return SetRequestFirstBlock(attribute, _read_block(octets, at), selector, invoke)
    if kind == 3:
        return SetRequestBlock(_read_block(octets, 3), invoke)
    if kind in (4, 5):
        attributes, at = _read_attributes(octets, 3)
        if kind == 5:
            return SetRequestListFirstBlock(attributes, _read_block(octets, at), invoke)
        values, at = _read_values(octets, at)
        _at_end(octets, at)
        return SetRequestList(attributes, values, invoke)
    raise MalformedApdu(f"set-request of kind {kind}", 1)


def read_set_response(octets: bytes) -> SetMessage:
    """C5."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        _at_end(octets, 4)
        return SetResponse(octets[3], invoke)
    if kind == 2:
        _at_end(octets, 7)
        return SetResponseBlock(_U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        _at_end(octets, 8)
        return SetResponseLastBlock(
            (octets[3],), _U32.unpack_from(octets, 4)[0], with_list=False, invoke=invoke
        )
    if kind in (4, 5):
        results, at = axdr.read_octets(octets, 3)
        if kind == 5:
            _at_end(octets, at)
            return SetResponseList(tuple(results), invoke)
        _at_end(octets, at + 4)
        return SetResponseLastBlock(
            tuple(results), _U32.unpack_from(octets, at)[0], with_list=True, invoke=invoke
        )
    raise MalformedApdu(f"set-response of kind {kind}", 1)


def _read_methods(octets: bytes, at: int) -> tuple[tuple[Method, ...], int]:
    count, at = axdr.read_length(octets, at)
    end = at + count * DESCRIPTOR_OCTETS
    if end > len(octets):
        raise MalformedApdu(f"{count} methods are announced", at)
    return tuple(
        Method(*read_descriptor(octets, i)) for i in range(at, end, DESCRIPTOR_OCTETS)
    ), end


def read_action_request(octets: bytes) -> ActionMessage:
    """C3."""
    kind, invoke = octets[1], octets[2]
    if kind in (1, 4):
        method = Method(*read_descriptor(octets, 3))
        at = 3 + DESCRIPTOR_OCTETS
        if kind == 4:
            return ActionRequestFirstBlock(method, _read_block(octets, at), invoke)
        if octets[at] > 1:
            raise MalformedApdu("parameters are neither absent (00) nor present (01)", at)
        if octets[at] == 0:
            _at_end(octets, at + 1)
            return ActionRequest(method, None, invoke)
        return ActionRequest(method, octets[at + 1 :], invoke)
    if kind == 2:
        _at_end(octets, 7)
        return ActionRequestNextBlock(_U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        methods, at = _read_methods(octets, 3)
        parameters, at = _read_values(octets, at)
        _at_end(octets, at)
        return ActionRequestList(methods, parameters, invoke)
    if kind == 5:
        methods, at = _read_methods(octets, 3)
        return ActionRequestListFirstBlock(methods, _read_block(octets, at), invoke)
    if kind == 6:
        return ActionRequestBlock(_read_block(octets, 3), invoke)
    raise MalformedApdu(f"action-request of kind {kind}", 1)


def read_action_response(octets: bytes) -> ActionMessage:
    """C7."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        result, returned, at = _read_action_result(octets, 3)
        _at_end(octets, at)
        return ActionResponse(result, returned, invoke)
    if kind == 2:
        return ActionResponseBlock(_read_block(octets, 3), invoke)
    if kind == 3:
        count, at = axdr.read_length(octets, 3)
        if count > len(octets) - at:
            raise MalformedApdu(f"{count} results are announced", 3)
        results = []
        for _ in range(count):
            result, returned, at = _read_action_result(octets, at)
            results.append((result, returned))
        _at_end(octets, at)
        return ActionResponseList(tuple(results), invoke)
    if kind == 4:
        _at_end(octets, 7)
        return ActionResponseNextBlock(_U32.unpack_from(octets, 3)[0], invoke)
    raise MalformedApdu(f"action-response of kind {kind}", 1)
