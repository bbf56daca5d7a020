"""events/1: rows of event logs, one object per row (they are few, and each is read on its own).

An event block carries the event code in a column of OBIS 0.0.96.11.x.255 (Blue Book: event codes), else in its first
column; what else was captured with the event travels in `values` as [obis, unit, scaler, value] and the attribute if it
is not 2. What a code means comes from the meter's model, through `describe`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec

from edge_core.domain import as_list
from edge_core.uplink.payloads.envelope import Envelope, Natural, ObisText

if TYPE_CHECKING:
    from edge_core.domain import Block


class Meaning(NamedTuple):
    """What an event code of a meter means; "" where nobody knows."""

    severity: str = ""
    iec61968: str = ""


Describe = Callable[[str, str, int], Meaning]
"""(meter, log, code) to its meaning."""


class EventSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One row of an event log.

    Attributes:
        device: serial of the device that holds the log.
        log: OBIS of the event log.
        code: the meter's own code; null when the row has none.
        at: event time on the meter's clock.
        k: 0 for the first row with this time in this log, then 1, 2, ... in buffer order.
        flags: flag bits of the row; absent = good.
        values: what was captured with it: [obis, unit, scaler, value] and the attribute if it is not 2.
    """

    meter: Annotated[str, msgspec.Meta(min_length=1)]
    device: str = ""
    log: ObisText
    code: int | None
    at: int
    k: Natural
    severity: str = ""
    iec61968: str = ""
    flags: int = 0
    tz: int = 0
    read_at: int = 0
    values: list[list[int | str | None]] = []


class Events(Envelope, frozen=True, kw_only=True):
    """Rows of event logs."""

    schema: Literal["opendcu.events/1"]
    kind: Literal["events"]
    events: Annotated[list[EventSpec], msgspec.Meta(min_length=1)]


def unknown(meter: str, log: str, code: int) -> Meaning:  # noqa: ARG001 the signature of Describe
    """Nobody knows what the code means."""
    return Meaning()


def code_column(block: Block) -> int:
    """Index of the column that holds the event code."""
    for index, column in enumerate(block.layout.cols):
        if column.obis.startswith("0.0.96.11."):
            return index
    return 0


def rows_json(block: Block, describe: Describe = unknown) -> list[bytes]:
    """Every row of an event block as one JSON object."""
    codes = code_column(block)
    cols = block.layout.cols
    columns = [as_list(column) for column in block.columns]
    occurrence = dict(block.occ)
    bits: dict[int, int] = {}
    for first, count, value in block.flags:
        for row in range(first, first + count):
            bits[row] = bits.get(row, 0) | value
    out = []
    for row, at in enumerate(as_list(block.times)):
        code = columns[codes][row]
        event: dict[str, Any] = {
            "meter": block.meter,
            "device": block.device,
            "log": block.layout.profile,
            "code": code if isinstance(code, int) else None,
            "at": at,
            "k": occurrence.get(row, 0),
        }
        meaning = (
            describe(block.meter, block.layout.profile, code)
            if isinstance(code, int)
            else Meaning()
        )
        event["severity"], event["iec61968"] = meaning
        if row in bits:
            event["flags"] = bits[row]
        event["tz"] = block.tz
        event["read_at"] = block.read_at
        event["values"] = [
            [c.obis, c.unit, c.scaler, columns[i][row]]
            + ([c.attribute] if c.attribute != 2 else [])
            for i, c in enumerate(cols)
            if i != codes
        ]
        out.append(msgspec.json.encode(event))
    return out


def members(rows: list[bytes]) -> list[tuple[str, bytes]]:
    """The members of an events message."""
    return [("events", b"[" + b",".join(rows) + b"]")]
