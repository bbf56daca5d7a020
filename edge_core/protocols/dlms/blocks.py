"""Block transfers put together: GET and ACTION with datablocks, and general-block-transfer.

Invariants: blocks are cut anywhere, so pieces are only joined; a number that is not the next one is refused; an exact
repeat of the last block (a lost acknowledgement) is passed over.
Limits: `max_octets` in all.
Source: DLMS UA Green Book ed. 9, clauses 9.4.6.3, 9.4.6.13; captures tests/data/frames/dlmsparser_hdlc_landis_gyr_e450
(streaming set, window 0) and get_response_with_block_*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_core.errors import MalformedApdu

if TYPE_CHECKING:
    from edge_core.protocols.dlms.apdu import GeneralBlockTransfer
    from edge_core.protocols.dlms.services import Block

MAX_OCTETS: Final = 8 << 20


class BlockAssembler:
    """One transfer.

    Args:
        max_octets: longest result that is put together.
    """

    __slots__ = ("_last", "_max", "_number", "_parts", "_size")

    def __init__(self, max_octets: int = MAX_OCTETS) -> None:
        self._max = max_octets
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
            MalformedApdu: a block is missing, or the whole is too long.
        """
        if self._number and block.number == self._number and block.data == self._last:
            return b"".join(self._parts) if block.last else None
        if block.number != self._number + 1:
            raise MalformedApdu(f"block {block.number} came, {self._number + 1} is due")
        self._size += len(block.data)
        if self._size > self._max:
            raise MalformedApdu(f"a block transfer above {self._max} octets")
        self._number = block.number
        self._last = block.data
        self._parts.append(block.data)
        return b"".join(self._parts) if block.last else None
