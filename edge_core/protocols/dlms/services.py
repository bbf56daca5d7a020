"""GET, SET and ACTION: requests and responses of logical name referencing, to structs and back.

Invariants: values stay octets (`data`, `parameters`, `block`): profiles are decoded by compiled layouts, not as trees,
and blocks are cut anywhere. Whoever needs a tree calls `axdr.decode_whole`, which also refuses trailing octets.
`invoke` is the whole invoke-id-and-priority octet: bits 0-3 the id, 6 confirmed, 7 high priority.
The readers get a whole APDU whose tag is known; IndexError and struct.error from a cut one are turned into
MalformedApdu by `apdu.decode`, the one way in. This module is the one to import: ACTION lives in actions, what all
share in parts.
Source: DLMS UA Green Book ed. 9, clause 9.5.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.actions import (
    ActionMessage,
    ActionRequest,
    ActionRequestBlock,
    ActionRequestFirstBlock,
    ActionRequestList,
    ActionRequestListFirstBlock,
    ActionRequestNextBlock,
    ActionResponse,
    ActionResponseBlock,
    ActionResponseList,
    ActionResponseNextBlock,
    read_action_request,
    read_action_response,
)
from edge_core.protocols.dlms.codes import DataAccessResult, words
from edge_core.protocols.dlms.cosem import (
    DESCRIPTOR_OCTETS,
    Attribute,
    Selector,
    encode_selection,
    read_descriptor,
    read_selection,
)
from edge_core.protocols.dlms.parts import (
    INVOKE,
    U32,
    Block,
    BlockMessage,
    GetResult,
    NumberMessage,
    at_end,
    read_block,
    read_get_result,
    read_values,
    sized,
    write_values,
)

__all__ = [
    "INVOKE",
    "ActionMessage",
    "ActionRequest",
    "ActionRequestBlock",
    "ActionRequestFirstBlock",
    "ActionRequestList",
    "ActionRequestListFirstBlock",
    "ActionRequestNextBlock",
    "ActionResponse",
    "ActionResponseBlock",
    "ActionResponseList",
    "ActionResponseNextBlock",
    "Block",
    "GetMessage",
    "GetRequest",
    "GetRequestList",
    "GetRequestNext",
    "GetResponse",
    "GetResponseBlock",
    "GetResponseList",
    "GetResult",
    "SetMessage",
    "SetRequest",
    "SetRequestBlock",
    "SetRequestFirstBlock",
    "SetRequestList",
    "SetRequestListFirstBlock",
    "SetResponse",
    "SetResponseBlock",
    "SetResponseLastBlock",
    "SetResponseList",
    "read_action_request",
    "read_action_response",
    "read_get_request",
    "read_get_response",
    "read_set_request",
    "read_set_response",
]


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


class GetRequestNext(NumberMessage, frozen=True):
    """get-request-next: `number` is that of the block just received."""

    NAME: ClassVar[str] = "get-request-next"
    HEAD: ClassVar[bytes] = b"\xc0\x02"


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
            + U32.pack(block.number)
            + (bytes((1, self.result)) if self.result else b"\x00" + sized(block.data))
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


class SetRequestBlock(BlockMessage, frozen=True):
    """set-request-with-datablock."""

    NAME: ClassVar[str] = "set-request-with-datablock"
    HEAD: ClassVar[bytes] = b"\xc1\x03"


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
            + write_values(self.values)
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


class SetResponseBlock(NumberMessage, frozen=True):
    """set-response-datablock: block `number` has arrived, more are due."""

    NAME: ClassVar[str] = "set-response-datablock"
    HEAD: ClassVar[bytes] = b"\xc5\x02"


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
        return head + (sized(results) if self.with_list else results[:1]) + U32.pack(self.number)


class SetResponseList(msgspec.Struct, frozen=True):
    """set-response-with-list."""

    NAME: ClassVar[str] = "set-response-with-list"
    results: tuple[int, ...]
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((0xC5, 5, self.invoke)) + sized(bytes(self.results))


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


def read_get_request(octets: bytes) -> GetMessage:
    """C0."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        attribute = Attribute(*read_descriptor(octets, 3))
        selector, at = read_selection(octets, 3 + DESCRIPTOR_OCTETS)
        at_end(octets, at)
        return GetRequest(attribute, selector, invoke)
    if kind == 2:
        at_end(octets, 7)
        return GetRequestNext(U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        attributes, at = _read_attributes(octets, 3)
        at_end(octets, at)
        return GetRequestList(attributes, invoke)
    raise MalformedApdu(f"get-request of kind {kind}", 1)


def read_get_response(octets: bytes) -> GetMessage:
    """C4."""
    kind, invoke, choice = octets[1], octets[2], octets[3]
    if kind == 1:
        if choice == 0:
            return GetResponse(0, octets[4:], invoke)
        if choice == 1:
            at_end(octets, 5)
            return GetResponse(octets[4], b"", invoke)
        raise MalformedApdu(f"Get-Data-Result {choice} is neither data nor a result", 3)
    if kind == 2:
        number = U32.unpack_from(octets, 4)[0]
        if octets[8] == 0:
            data, at = axdr.read_octets(octets, 9)
            at_end(octets, at)
            return GetResponseBlock(Block(choice != 0, number, data), 0, invoke)
        if octets[8] == 1:
            at_end(octets, 10)
            return GetResponseBlock(Block(choice != 0, number, b""), octets[9], invoke)
        raise MalformedApdu(f"a block of kind {octets[8]} is neither data nor a result", 8)
    if kind == 3:
        count, at = axdr.read_length(octets, 3)
        if count > len(octets) - at:
            raise MalformedApdu(f"{count} results are announced", 3)
        results = []
        for _ in range(count):
            result, at = read_get_result(octets, at)
            results.append(result)
        at_end(octets, at)
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
        return SetRequestFirstBlock(attribute, read_block(octets, at), selector, invoke)
    if kind == 3:
        return SetRequestBlock(read_block(octets, 3), invoke)
    if kind in (4, 5):
        attributes, at = _read_attributes(octets, 3)
        if kind == 5:
            return SetRequestListFirstBlock(attributes, read_block(octets, at), invoke)
        values, at = read_values(octets, at)
        at_end(octets, at)
        return SetRequestList(attributes, values, invoke)
    raise MalformedApdu(f"set-request of kind {kind}", 1)


def read_set_response(octets: bytes) -> SetMessage:
    """C5."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        at_end(octets, 4)
        return SetResponse(octets[3], invoke)
    if kind == 2:
        at_end(octets, 7)
        return SetResponseBlock(U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        at_end(octets, 8)
        return SetResponseLastBlock(
            (octets[3],), U32.unpack_from(octets, 4)[0], with_list=False, invoke=invoke
        )
    if kind in (4, 5):
        results, at = axdr.read_octets(octets, 3)
        if kind == 5:
            at_end(octets, at)
            return SetResponseList(tuple(results), invoke)
        at_end(octets, at + 4)
        return SetResponseLastBlock(
            tuple(results), U32.unpack_from(octets, at)[0], with_list=True, invoke=invoke
        )
    raise MalformedApdu(f"set-response of kind {kind}", 1)
