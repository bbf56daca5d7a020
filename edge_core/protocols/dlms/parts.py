"""What the messages of GET, SET and ACTION are made of: blocks, results, lists of values.

`at` is an offset into a whole APDU; IndexError and struct.error of a cut one are turned into MalformedApdu by
`apdu.decode`.
Source: DLMS UA Green Book ed. 9, clause 9.5.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.codes import DataAccessResult, words

INVOKE: Final = 0xC1
"""Invoke-id 1, confirmed, high priority: what a client with one request in flight writes."""

U32: Final = struct.Struct(">I")


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
        return (b"\x01" if self.last else b"\x00") + U32.pack(self.number) + sized(self.data)


class NumberMessage(msgspec.Struct, frozen=True):
    """A message about the block of that number: the next one is asked for, or this one has arrived."""

    HEAD: ClassVar[bytes]
    number: int
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return b"%b%c%b" % (self.HEAD, self.invoke, U32.pack(self.number))


class BlockMessage(msgspec.Struct, frozen=True):
    """A message that is one block."""

    HEAD: ClassVar[bytes]
    block: Block
    invoke: int = INVOKE

    def to_bytes(self) -> bytes:
        """The APDU."""
        return b"%b%c%b" % (self.HEAD, self.invoke, self.block.to_bytes())


def sized(octets: bytes) -> bytes:
    """Length-prefixed octets."""
    return axdr.encode_length(len(octets)) + octets


def read_block(octets: bytes, at: int) -> Block:
    """The block that fills the APDU from `at` on."""
    number = U32.unpack_from(octets, at + 1)[0]
    data, end = axdr.read_octets(octets, at + 5)
    at_end(octets, end)
    return Block(octets[at] != 0, number, data)


def at_end(octets: bytes, at: int) -> None:
    """Refuse what follows an APDU.

    Raises:
        MalformedApdu: something follows, or it is cut.
    """
    if at < len(octets):
        raise MalformedApdu(f"{len(octets) - at} octets follow the APDU", at)
    if at > len(octets):
        raise MalformedApdu("the APDU is cut", len(octets))


def read_values(octets: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """A list of values as A-XDR each, and the offset behind it."""
    count, at = axdr.read_length(octets, at)
    if count > len(octets) - at:
        raise MalformedApdu(f"{count} values are announced, {len(octets) - at} octets are left", at)
    out = []
    for _ in range(count):
        end = axdr.skip(octets, at)
        out.append(octets[at:end])
        at = end
    return tuple(out), at


def write_values(values: tuple[bytes, ...]) -> bytes:
    """A list of values."""
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


def read_get_result(octets: bytes, at: int) -> tuple[GetResult, int]:
    """Get-Data-Result, and the offset behind it."""
    choice = octets[at]
    if choice == 0:
        end = axdr.skip(octets, at + 1)
        return GetResult(0, octets[at + 1 : end]), end
    if choice == 1:
        return GetResult(octets[at + 1]), at + 2
    raise MalformedApdu(f"Get-Data-Result {choice} is neither data nor a result", at)
