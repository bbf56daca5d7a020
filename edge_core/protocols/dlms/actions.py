"""ACTION: requests and responses to structs and back; see services for what holds for all of them.

Source: DLMS UA Green Book ed. 9, clause 9.5.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.codes import ActionResult, words
from edge_core.protocols.dlms.cosem import DESCRIPTOR_OCTETS, Method, read_descriptor
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
    write_values,
)


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


class ActionRequestNextBlock(NumberMessage, frozen=True):
    """action-request-next-pblock: `number` is that of the block just received."""

    NAME: ClassVar[str] = "action-request-next-pblock"
    HEAD: ClassVar[bytes] = b"\xc3\x02"


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
            + write_values(self.parameters)
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


class ActionRequestBlock(BlockMessage, frozen=True):
    """action-request-with-pblock."""

    NAME: ClassVar[str] = "action-request-with-pblock"
    HEAD: ClassVar[bytes] = b"\xc3\x06"


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


class ActionResponseBlock(BlockMessage, frozen=True):
    """action-response-with-pblock."""

    NAME: ClassVar[str] = "action-response-with-pblock"
    HEAD: ClassVar[bytes] = b"\xc7\x02"


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


class ActionResponseNextBlock(NumberMessage, frozen=True):
    """action-response-next-pblock: block `number` has arrived, more are due."""

    NAME: ClassVar[str] = "action-response-next-pblock"
    HEAD: ClassVar[bytes] = b"\xc7\x04"


def _write_action_result(result: int, returned: GetResult | None) -> bytes:
    return bytes((result,)) + (b"\x00" if returned is None else b"\x01" + returned.to_bytes())


def _read_action_result(octets: bytes, at: int) -> tuple[int, GetResult | None, int]:
    result = octets[at]
    at += 1
    if at == len(octets) or octets[at] == 0:  # some meters leave the optional part out altogether
        return result, None, min(at + 1, len(octets))
    if octets[at] != 1:
        raise MalformedApdu("return parameters are neither absent (00) nor present (01)", at)
    returned, at = read_get_result(octets, at + 1)
    return result, returned, at


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
            return ActionRequestFirstBlock(method, read_block(octets, at), invoke)
        if octets[at] > 1:
            raise MalformedApdu("parameters are neither absent (00) nor present (01)", at)
        if octets[at] == 0:
            at_end(octets, at + 1)
            return ActionRequest(method, None, invoke)
        return ActionRequest(method, octets[at + 1 :], invoke)
    if kind == 2:
        at_end(octets, 7)
        return ActionRequestNextBlock(U32.unpack_from(octets, 3)[0], invoke)
    if kind == 3:
        methods, at = _read_methods(octets, 3)
        parameters, at = read_values(octets, at)
        at_end(octets, at)
        return ActionRequestList(methods, parameters, invoke)
    if kind == 5:
        methods, at = _read_methods(octets, 3)
        return ActionRequestListFirstBlock(methods, read_block(octets, at), invoke)
    if kind == 6:
        return ActionRequestBlock(read_block(octets, 3), invoke)
    raise MalformedApdu(f"action-request of kind {kind}", 1)


def read_action_response(octets: bytes) -> ActionMessage:
    """C7."""
    kind, invoke = octets[1], octets[2]
    if kind == 1:
        result, returned, at = _read_action_result(octets, 3)
        at_end(octets, at)
        return ActionResponse(result, returned, invoke)
    if kind == 2:
        return ActionResponseBlock(read_block(octets, 3), invoke)
    if kind == 3:
        count, at = axdr.read_length(octets, 3)
        if count > len(octets) - at:
            raise MalformedApdu(f"{count} results are announced", 3)
        results = []
        for _ in range(count):
            result, returned, at = _read_action_result(octets, at)
            results.append((result, returned))
        at_end(octets, at)
        return ActionResponseList(tuple(results), invoke)
    if kind == 4:
        at_end(octets, 7)
        return ActionResponseNextBlock(U32.unpack_from(octets, 3)[0], invoke)
    raise MalformedApdu(f"action-response of kind {kind}", 1)
