"""What `opendcu read --trace` says of a Modbus frame, in words; the octets stand beside it."""

from __future__ import annotations

from edge_core.protocols.modbus.pdu import EXCEPTIONS, WRITE
from edge_core.protocols.modbus.rtu import crc

TABLES = {3: "holding", 4: "input"}


def remark(framing: str, direction: str, octets: bytes) -> str:
    """A plan as it is; a frame as unit and meaning.

    Args:
        framing: modbus-tcp or modbus-rtu.
        direction: plan, send or receive.
        octets: the text of a plan, or what went over the line.
    """
    if direction == "plan":
        return octets.decode(errors="replace")
    head = ""
    if framing == "modbus-tcp":
        if len(octets) < 8:
            return f"{len(octets)} octets, no whole header"
        head = f"transaction {int.from_bytes(octets[:2], 'big')}, "
        body = octets[6:]
    else:
        if len(octets) < 4 or crc(octets[:-2]) != octets[-2:]:
            return f"{len(octets)} octets that are no single frame"
        body = octets[:-2]
    return f"{head}unit {body[0]}: {_meaning(direction, body[1:])}"


def _meaning(direction: str, pdu: bytes) -> str:
    function = pdu[0]
    if function & 0x80:
        code = pdu[1] if len(pdu) > 1 else 0
        return f"exception {code}, {EXCEPTIONS.get(code, 'of no standard meaning')}"
    if function == WRITE and len(pdu) >= 5:
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        words = " ".join(
            f"{int.from_bytes(pdu[i : i + 2], 'big'):04x}" for i in range(6, len(pdu), 2)
        )
        if direction == "send":
            return f"ask the history: {words} to {count} registers from {address}"
        return f"{count} registers from {address} written"
    table = TABLES.get(function, f"function {function}")
    if direction == "send" and len(pdu) == 5:
        address, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        return f"read {count} {table} registers from {address}"
    return f"{(len(pdu) - 2) // 2} {table} registers"
