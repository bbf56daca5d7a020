"""Flat rows in DuckDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opendcu_cloud import flat

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb


def load(db: duckdb.DuckDBPyConnection, arrived: Path) -> None:
    """The table `arrived` from JSON lines, every column of the type that flat.COLUMNS gives it."""
    columns = ", ".join(f"'{name}': '{type_}'" for name, type_ in flat.COLUMNS.items())
    source = f"read_json('{arrived}', format='newline_delimited', columns={{{columns}}})"
    db.execute(f"CREATE TABLE arrived AS SELECT * FROM {source}")  # noqa: S608 a path of our own and constants
