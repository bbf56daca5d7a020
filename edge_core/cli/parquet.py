"""Readings as a Parquet file: flat rows in the columns of the cloud's curated files, as far as the box knows them.

`value` is the meter's integer, to be multiplied by 10**scaler and, by the meter master alone, by its factor; `text` stands
where a cell is no integer. Written by DuckDB (extra `cloud`), which reads the rows from a temporary file: memory stays small.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_core.domain import as_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_core.domain import Block

COLUMNS = {
    "meter": "VARCHAR",
    "device": "VARCHAR",
    "kind": "VARCHAR",
    "profile": "VARCHAR",
    "captured_at": "BIGINT",
    "occurrence": "INTEGER",
    "obis": "VARCHAR",
    "attribute": "INTEGER",
    "unit": "VARCHAR",
    "scaler": "INTEGER",
    "value": "DECIMAL(38,0)",
    "text": "VARCHAR",
    "multiplier": "BIGINT",
    "flags": "BIGINT",
    "tz": "INTEGER",
    "read_at": "BIGINT",
}
_MAX_VALUE = 10**38


def write(path: str, blocks: Iterable[Block]) -> int:
    """Write the file; returns its rows.

    Raises:
        click.ClickException: DuckDB is not installed, or the file cannot be written.
    """
    try:
        import duckdb
    except ImportError:
        raise click.ClickException("Parquet needs DuckDB: pip install 'opendcu[cloud]'") from None
    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "rows.json")
        with lines.open("wb") as out:
            for block in blocks:
                out.writelines(encode(row) + b"\n" for row in flat(block))
        with duckdb.connect() as db:
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            db.execute(f"CREATE TABLE readings ({columns})")
            types = ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items())
            source = f"read_json($1, format = 'newline_delimited', columns = {{{types}}})"
            db.execute(f"INSERT INTO readings SELECT * FROM {source}", [str(lines)])  # noqa: S608 constants
            target = path.replace("'", "''")
            try:
                db.execute(f"COPY readings TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
            except duckdb.Error as error:
                raise click.ClickException(f"{path}: {error}") from None
            count = db.execute("SELECT count(*) FROM readings").fetchall()[0][0]
    return int(count)


def flat(block: Block) -> Iterator[dict[str, Any]]:
    """One mapping a reading; nulls are no readings."""
    occurrences, bits = dict(block.occ), [0] * block.rows
    for first, count, flags in block.flags:
        for row in range(first, first + count):
            bits[row] |= flags
    times = as_list(block.times)
    for column, cells in zip(block.layout.cols, block.columns, strict=True):
        for row, cell in enumerate(as_list(cells)):
            if cell is None:
                continue
            number = cell if isinstance(cell, int) and abs(cell) < _MAX_VALUE else None
            yield {
                "meter": block.meter,
                "device": block.device,
                "kind": block.kind,
                "profile": block.layout.profile,
                "captured_at": times[row],
                "occurrence": occurrences.get(row, 0),
                "obis": column.obis,
                "attribute": column.attribute,
                "unit": column.unit,
                "scaler": column.scaler,
                "value": number,
                "text": None if number is not None else str(cell),
                "multiplier": block.multiplier,
                "flags": bits[row],
                "tz": block.tz,
                "read_at": block.read_at,
            }
