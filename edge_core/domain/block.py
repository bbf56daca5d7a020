"""The unit of everything: one meter, one profile, consecutive captured rows, columns of integers.

Invariants: every column has as many values as there are rows; times are UTC epoch seconds of the *end* of the
captured interval, in buffer order (oldest first unless the meter's clock went back); a (time, occurrence) pair is
there once. Values are the meter's raw integers (value * 10**scaler is the physical value), `None` = no reading,
text only in columns of unit "hex". Nothing on the path breaks a block into an object per reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_core.domain.obis import Obis, plain_text
from edge_core.domain.units import Unit

Values = npt.NDArray[np.int64] | Sequence[int | None] | Sequence[str | None]
"""A column: an int64 array for long blocks, else a list or tuple of int (any size), text or None."""

Times = npt.NDArray[np.int64] | Sequence[int]


class Column(msgspec.Struct, frozen=True):
    """What a column is: a capture object with its proven scaler and unit."""

    obis: Obis
    unit: Unit
    scaler: int
    attribute: int = 2

    def __post_init__(self) -> None:
        plain_text(self, "obis")
        plain_text(self, "unit")


class Layout(msgspec.Struct, frozen=True, dict=True):
    """Columns of a profile in meter order, without the clock and without the status column.

    Attributes:
        profile: logical name of the profile.
        period: capture period in seconds; 0 = irregular.
        cols: the columns.
    """

    profile: Obis
    period: int
    cols: tuple[Column, ...]

    def __post_init__(self) -> None:
        plain_text(self, "profile")

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change when any column, scaler, unit or the period changes."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive rows of one profile of one meter.

    Attributes:
        meter: the utility's meter number.
        device: serial from the nameplate.
        kind: interval, midnight, billing, instantaneous or events.
        layout: the columns.
        times: shape (rows,), UTC epoch seconds.
        columns: one sequence of shape (rows,) per column of the layout.
        occ: (row, k) for rows whose time stands in the meter's buffer before them, k = 1, 2, ... in buffer order.
        flags: (first row, count, bits) runs; see Flag.
        tz: minutes east of UTC of the meter's civil time.
        multiplier: CT x PT of the configuration, a check for the cloud; never applied here.
        read_at: UTC epoch seconds on our clock when the reply came.
        proven_at: UTC epoch seconds when capture objects and scalers were last proven.
        q: quality: clock offset, arrival, for samples {"at": epoch ms, "bound": [lo, hi]}; "relaid": rows above this
            time replace what was read under a layout that no longer holds; "doubt": rows that were read under such a
            layout and that the meter no longer holds, once more.
    """

    meter: str
    device: str
    kind: str
    layout: Layout
    times: Times
    columns: tuple[Values, ...]
    occ: tuple[tuple[int, int], ...] = ()
    flags: tuple[tuple[int, int, int], ...] = ()
    tz: int = 0
    multiplier: int = 1
    read_at: int = 0
    proven_at: int = 0
    q: dict[str, Any] | None = None

    @property
    def rows(self) -> int:
        """Number of captured rows."""
        return len(self.times)

    @property
    def readings(self) -> int:
        """Number of cells, None among them."""
        return len(self.times) * len(self.columns)

    def take(self, rows: Sequence[int]) -> Block:
        """The block of the given rows, in the given order, with their occurrences and flags."""
        occurrence = dict(self.occ)
        bits = [0] * self.rows
        for first, count, value in self.flags:
            for row in range(first, first + count):
                bits[row] |= value
        times = as_list(self.times)
        columns = [as_list(column) for column in self.columns]
        return msgspec.structs.replace(
            self,
            times=[times[r] for r in rows],
            columns=tuple([column[r] for r in rows] for column in columns),
            occ=tuple((i, occurrence[r]) for i, r in enumerate(rows) if r in occurrence),
            flags=runs_of([bits[r] for r in rows]),
        )


def as_list(values: Values | Times) -> list[Any]:
    """A column as Python integers (or text, or None), whatever holds it."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def runs_of(bits: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Flag bits per row as sparse (first row, count, bits) runs; rows without bits are left out."""
    out: list[tuple[int, int, int]] = []
    for row, value in enumerate(bits):
        if not value:
            continue
        if out and out[-1][0] + out[-1][1] == row and out[-1][2] == value:
            out[-1] = (out[-1][0], out[-1][1] + 1, value)
        else:
            out.append((row, 1, value))
    return tuple(out)
