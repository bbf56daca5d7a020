"""PDUs of the functions that meters are read with: the request, and the strict check of an answer.

Function 3 reads holding registers, 4 input registers. Function 16 writes, and exists for one purpose: to tell a meter
which part of its history it is to show. `write_request` is the only maker of its octets and wants the registers that
the meter model declares for that (`config.history.WindowHistory.requests`): no other write can leave the product. An
answer is taken only if its function, octet count and length are exactly those of the request; that of a write repeats
address and count. Source: Modbus Application Protocol V1.1b3, sections 6.3, 6.4, 6.12 and 7.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from edge_core.errors import LocalProtocolError, MalformedApdu

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

WRITE = 16

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge: still working",
    6: "device busy",
    8: "memory parity error",
    10: "gateway: path not available",
    11: "gateway: the target did not respond",
}


class ModbusException(Exception):
    """The meter answered with an exception code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exception {code}, {EXCEPTIONS.get(code, 'of no standard meaning')}")
        self.code = code


def read_request(function: int, address: int, count: int) -> bytes:
    """The five octets of a read request.

    Raises:
        LocalProtocolError: another function than 3 and 4, or registers that do not exist.
    """
    if function not in (3, 4) or not 1 <= count <= 125 or not 0 <= address <= 65536 - count:
        raise LocalProtocolError(f"function {function}, {count} registers from {address}")
    return struct.pack(">BHH", function, address, count)


def read_answer(pdu: bytes, function: int, count: int) -> tuple[int, ...]:
    """Registers of an answer.

    Raises:
        ModbusException: the meter said no.
        MalformedApdu: another function, another count, a wrong length.
    """
    if len(pdu) == 2 and pdu[0] == function | 0x80:
        raise ModbusException(pdu[1])
    if not pdu or pdu[0] != function:
        raise MalformedApdu(f"function {pdu[0] if pdu else None} answered instead of {function}", 0)
    if len(pdu) < 2 or len(pdu) != 2 + pdu[1]:
        raise MalformedApdu(f"{len(pdu)} octets, the octet count says otherwise", 1)
    if pdu[1] != 2 * count:
        raise MalformedApdu(f"{pdu[1] // 2} registers answered instead of {count}", 1)
    return struct.unpack_from(f">{count}H", pdu, 2)


def write_request(
    address: int, words: Sequence[int], declared: Collection[tuple[int, int]]
) -> bytes:
    """A request to write registers that a history is asked with.

    Args:
        address: first register.
        words: what to write.
        declared: (first register, count) of each group of request registers in the meter model.

    Raises:
        LocalProtocolError: other registers than the declared groups, whole, or words that are none.
    """
    count = len(words)
    if (address, count) not in declared or not 1 <= count <= 123:
        raise LocalProtocolError(
            f"{count} registers from {address} are none that a history is asked with: not written"
        )
    try:
        return struct.pack(f">BHHB{count}H", WRITE, address, count, 2 * count, *words)
    except struct.error as error:
        raise LocalProtocolError(f"write {list(words)} to {address}: {error}") from None


def written(pdu: bytes, address: int, count: int) -> None:
    """Check the answer to a write.

    Raises:
        ModbusException: the meter said no.
        MalformedApdu: it is the answer to something else.
    """
    if len(pdu) == 2 and pdu[0] == WRITE | 0x80:
        raise ModbusException(pdu[1])
    if pdu != struct.pack(">BHH", WRITE, address, count):
        raise MalformedApdu(f"{pdu.hex(' ')} confirms another write", 0)
