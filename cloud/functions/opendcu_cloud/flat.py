"""Readings as flat rows: what analysts query, and what a billing system is sent.

Raw and scaled stand side by side. `scaled` is value * 10**scaler * multiplier of the meter master, and null for as long
as the master is not known or the gateway carries another multiplier: a factor applied twice is the classic error.
"""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from opendcu_cloud.rows import meter_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opendcu_cloud.envelope import Message

COLUMNS = {
    "meter": "VARCHAR",
    "device": "VARCHAR",
    "profile": "VARCHAR",
    "captured_at": "BIGINT",
    "occurrence": "INTEGER",
    "obis": "VARCHAR",
    "attribute": "INTEGER",
    "unit": "VARCHAR",
    "scaler": "INTEGER",
    "value": "DECIMAL(38,0)",
    "text": "VARCHAR",
    "scaled": "DOUBLE",
    "multiplier": "BIGINT",
    "flags": "BIGINT",
    "civil_day": "VARCHAR",
    "read_at": "BIGINT",
    "dcu": "VARCHAR",
}
IDENTITY = ("meter", "device", "profile", "captured_at", "occurrence", "obis", "attribute")
CURRENT = (  # of readings that differ, the one read later
    f"SELECT * FROM arrived QUALIFY row_number() OVER (PARTITION BY {', '.join(IDENTITY)}"  # noqa: S608 constants
    " ORDER BY read_at DESC, value DESC, text DESC) = 1"
)
MAX_VALUE = 10**38  # what DECIMAL(38,0) holds; a meter's register has 64 bits

BILLING_KINDS = ("midnight", "billing")
BILLING_HEADER = "meter,device,captured_at,obis,unit,scaler,value,scaled,flags"
ROWS_PER_FILE = 100_000


def flat_rows(message: Message, masters: Mapping[str, int | None]) -> Iterator[dict[str, Any]]:
    """One mapping per reading of a message; nulls are no readings.

    Args:
        masters: multiplier of the meter master by partition (`meter_key`), None or absent when it is not known.
    """
    for block in message.blocks:
        layout = message.layouts[block.layout]
        master = masters.get(meter_key(block.meter))
        times, occurrences, bits = (
            block.times(layout.period),
            block.occurrences(),
            block.flag_bits(),
        )
        days = [civil_day(at, block.tz) for at in times]
        for column, values in zip(layout.cols, block.values, strict=True):
            factor = 10.0**column.scaler * master if master == block.multiplier else None
            for row, value in enumerate(values):
                if value is None:
                    continue
                number = value if isinstance(value, int) and abs(value) < MAX_VALUE else None
                yield {
                    "meter": block.meter,
                    "device": block.device,
                    "profile": layout.profile,
                    "captured_at": times[row],
                    "occurrence": occurrences[row],
                    "obis": column.obis,
                    "attribute": column.attribute,
                    "unit": column.unit,
                    "scaler": column.scaler,
                    "value": number,
                    "text": None if number is not None else str(value),
                    "scaled": None if number is None or factor is None else number * factor,
                    "multiplier": block.multiplier,
                    "flags": bits[row],
                    "civil_day": days[row],
                    "read_at": block.read_at,
                    "dcu": message.dcu,
                }


def civil_day(at: int, tz: int) -> str:
    """The civil date that a row captured at `at` (end of its interval) belongs to."""
    return datetime.fromtimestamp(at - 1 + tz * 60, UTC).date().isoformat()


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Rows as JSON lines."""
    encode = msgspec.json.Encoder().encode
    for row in rows:
        yield encode(row) + b"\n"


def curated_key(kind: str, day: str) -> str:
    """Where the rows of one kind are that gateways sent on one UTC day."""
    return f"curated/kind={kind}/day={day}/readings.parquet"


def billing_files(day: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """The files for the billing system: `BD_<date>_<batch>_<of>.csv` with a trailer, and the SHA-256 of each.

    Args:
        rows: current readings in a stable order, `scaled` null where nobody may multiply yet.
    """
    batches = [rows[i : i + ROWS_PER_FILE] for i in range(0, len(rows), ROWS_PER_FILE)]
    for number, batch in enumerate(batches, 1):
        out = io.StringIO()
        out.write(BILLING_HEADER + "\n")
        for row in batch:
            at = datetime.fromtimestamp(row["captured_at"], UTC).isoformat()
            scaled = "" if row["scaled"] is None else repr(row["scaled"])
            value = row["text"] if row["value"] is None else row["value"]
            cells = (
                row["meter"],
                row["device"],
                at,
                row["obis"],
                row["unit"],
                row["scaler"],
                value,
                scaled,
                row["flags"],
            )
            out.write(",".join(_cell(str(cell)) for cell in cells) + "\n")
        out.write(f"#,{len(batch)}\n")
        name = f"billing/BD_{day}_{number}_{len(batches)}.csv"
        octets = out.getvalue().encode()
        yield name, octets
        yield (
            f"{name}.sha256",
            f"{hashlib.sha256(octets).hexdigest()}  {name.rsplit('/', 1)[-1]}\n".encode(),
        )


def days_back(today: str, count: int) -> list[str]:
    """The `count` days before `today`."""
    start = datetime.fromisoformat(today).replace(tzinfo=UTC)
    return [(start - timedelta(days=i)).date().isoformat() for i in range(1, count + 1)]


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
