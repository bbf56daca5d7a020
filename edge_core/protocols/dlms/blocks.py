"""Block transfers put together: GET and ACTION with datablocks, and general-block-transfer; and values cut into blocks.

Invariants: blocks are cut anywhere, so pieces are only joined; a number that is not the next one is refused. Who reads
a capture passes over an exact repeat of the last block (a lost acknowledgement); who asked for the block does not.
Limits: MAX_OCTETS and MAX_BLOCKS of one transfer.
Source: DLMS UA Green Book ed. 9, clauses 9.4.6.3, 9.4.6.13; captures tests/data/frames/dlmsparser_hdlc_landis_gyr_e450
(streaming set, window 0) and get_response_with_block_*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms.parts import Block

if TYPE_CHECKING:
    from edge_core.protocols.dlms.apdu import GeneralBlockTransfer

MAX_OCTETS: Final = 8 << 20
MAX_BLOCKS: Final = 100_000


class BlockAssembler:
    """One transfer.

    Args:
        max_octets: longest result that is put together; MAX_OCTETS if not given.
        repeats: pass over an exact repeat of the last block.
    """

    __slots__ = ("_last", "_max", "_number", "_parts", "_repeats", "_size")

    def __init__(self, max_octets: int | None = None, *, repeats: bool = True) -> None:
        self._max = MAX_OCTETS if max_octets is None else max_octets
        self._repeats = repeats
        self._parts: list[bytes] = []
        self._size = 0
        self._number = 0
        self._last = b""

    @property
    def number(self) -> int:
        """Number of the last block that was taken; 0 before the first."""
        return self._number

    def take(self, block: Block | GeneralBlockTransfer) -> bytes | None:
        """The whole, once the last block came; None before.

        Raises:
            MalformedApdu: a block is missing or empty, or the whole is too long.
        """
        if (
            self._repeats
            and self._number
            and block.number == self._number
            and block.data == self._last
        ):
            return b"".join(self._parts) if block.last else None
        if block.number != self._number + 1:
            raise MalformedApdu(f"block {block.number} came, {self._number + 1} is due")
        if not block.data and not block.last:
            raise MalformedApdu(f"block {block.number} is empty")
        self._size += len(block.data)
        if self._size > self._max or block.number > MAX_BLOCKS:
            raise MalformedApdu(
                f"a block transfer of more than {MAX_BLOCKS} blocks or {self._max} octets"
            )
        self._number = block.number
        self._last = block.data
        self._parts.append(block.data)
        return b"".join(self._parts) if block.last else None


def cut(value: bytes, room: int) -> list[Block]:
    """A value as blocks of at most `room` octets, numbered from 1; an empty value is one empty block."""
    starts = range(0, max(1, len(value)), room)
    return [
        Block(number == len(starts), number, value[start : start + room])
        for number, start in enumerate(starts, 1)
    ]
