"""Readings and labels as files: CSV (or .csv.gz) into half hours by civil day, and which days are labelled.

READINGS: first column `interval_end` (ISO 8601 with offset), one column per meter in Wh per interval, blank = missing.
LABELS: `meter,kind,first_day,end_day,parameter`, days counted from 0 at the first day of READINGS, end exclusive; only
anomalous meters are listed. Days are civil days of the offset of the first row.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_core.detector.days import SLOT_S, SLOTS
from edge_core.errors import OpenDCUError

if TYPE_CHECKING:
    from pathlib import Path

Floats = npt.NDArray[np.floating[Any]]
DAY_S = 86_400
MAX_BYTES = 512 << 20


class ReadingsRefused(OpenDCUError):
    """A file that is not what it should be; says where."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Half hours of some meters.

    Attributes:
        meters: names in the order of the first axis.
        wh: shape (meters, days, 48); not-a-number = missing.
        first: date of day 0, ISO.
    """

    meters: list[str]
    wh: Floats
    first: str


@dataclass(frozen=True, slots=True)
class Label:
    """One anomaly: days first to end (exclusive) of a meter (index)."""

    meter: int
    kind: str
    first: int
    end: int
    parameter: str


def read(path: Path) -> Readings:
    """Read a file of readings.

    Raises:
        ReadingsRefused: it cannot be read, or is not of that form.
    """
    lines = _lines(path)
    if not lines or not lines[0].startswith("interval_end,"):
        raise ReadingsRefused(f"{path}: the first column is not interval_end")
    meters = lines[0].split(",")[1:]
    if len(set(meters)) != len(meters):
        raise ReadingsRefused(f"{path}: a meter stands in two columns")
    ends = np.empty(len(lines) - 1, np.int64)
    cells = np.empty((len(lines) - 1, len(meters)), np.float32)
    offset = 0
    for row, line in enumerate(lines[1:]):
        parts = line.split(",")
        if len(parts) != len(meters) + 1:
            raise ReadingsRefused(
                f"{path}: line {row + 2}: {len(parts)} cells, not {len(meters) + 1}"
            )
        try:
            stamp = datetime.fromisoformat(parts[0])
            cells[row] = [float(p) if p else np.nan for p in parts[1:]]
        except ValueError as error:
            raise ReadingsRefused(f"{path}: line {row + 2}: {error}") from None
        shift = stamp.utcoffset()
        if shift is None:
            raise ReadingsRefused(f"{path}: line {row + 2}: {parts[0]} has no offset")
        offset = int(shift.total_seconds()) if row == 0 else offset
        ends[row] = int(stamp.timestamp())
    if len(ends) < 2:
        raise ReadingsRefused(f"{path}: fewer than two rows")
    steps = np.diff(ends)
    period = int(np.median(steps))
    if (steps <= 0).any() or not (SLOT_S % period == 0 or period == 2 * SLOT_S):
        raise ReadingsRefused(
            f"{path}: rows do not rise, or a period of {period} s does not fit half hours"
        )
    local = ends + offset
    # A first row stamped 00:00 is the end of the day before: day 0 is the day that begins with it.
    zero = int(local[0] // DAY_S) if local[0] % DAY_S == 0 else int((local[0] - 1) // DAY_S)
    slot = (local - 1) // SLOT_S - zero * SLOTS
    count = int((slot.max() // SLOTS + 1) * SLOTS)
    wh = _half_hours(cells, slot, count, period)
    first = datetime.fromtimestamp(zero * DAY_S, tz=UTC).date().isoformat()
    return Readings(meters, wh.reshape(len(meters), -1, SLOTS), first)


def labels(path: Path, readings: Readings) -> list[Label]:
    """Read a file of labels.

    Raises:
        ReadingsRefused: it cannot be read, is not of that form, or names a meter that READINGS lacks.
    """
    number = {name: k for k, name in enumerate(readings.meters)}
    out = []
    reader = csv.DictReader(_lines(path))
    for line, row in enumerate(reader, start=2):
        try:
            label = Label(
                number[row["meter"]],
                row["kind"],
                int(row["first_day"]),
                int(row["end_day"]),
                row.get("parameter") or "",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReadingsRefused(f"{path}: line {line}: {error!r}") from None
        if not 0 <= label.first < label.end:
            raise ReadingsRefused(f"{path}: line {line}: days {label.first} to {label.end}")
        out.append(label)
    return out


def write(path: Path, readings: Readings, offset: str = "+00:00") -> None:
    """Write half hours as a file that `read` takes, gzipped where the name says so."""
    begin = datetime.fromisoformat(f"{readings.first}T00:00{offset}")
    flat = readings.wh.reshape(len(readings.meters), -1)
    lines = ["interval_end," + ",".join(readings.meters)]
    for slot in range(flat.shape[1]):
        end = begin + timedelta(seconds=(slot + 1) * SLOT_S)
        cells = ("" if np.isnan(v) else f"{v:g}" for v in flat[:, slot].tolist())
        lines.append(f"{end.isoformat(timespec='minutes')}," + ",".join(cells))
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def write_labels(path: Path, found: list[Label], meters: list[str]) -> None:
    """Write labels as a file that `labels` takes."""
    lines = ["meter,kind,first_day,end_day,parameter"]
    lines += [f"{meters[f.meter]},{f.kind},{f.first},{f.end},{f.parameter}" for f in found]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _half_hours(cells: Floats, slot: npt.NDArray[np.int64], count: int, period: int) -> Floats:
    """Rows as half hours, shape (meters, count): quarters are summed where all are there, hours are halved."""
    out = np.full((count, cells.shape[1]), np.nan, np.float32)
    if period == 2 * SLOT_S:
        for back in (1, 0):
            at = slot - back
            out[at[at >= 0]] = cells[at >= 0] / 2
        return out.T.copy()
    inside = slot >= 0
    total = np.zeros((count, cells.shape[1]), np.float64)
    known = np.zeros((count, cells.shape[1]), np.int32)
    np.add.at(total, slot[inside], np.nan_to_num(cells[inside]))
    np.add.at(known, slot[inside], np.isfinite(cells[inside]))
    full = known == SLOT_S // period
    out[full] = total[full]
    return out.T.copy()


def _lines(path: Path) -> list[str]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ReadingsRefused(f"{path}: {error}") from None
    if len(content) > MAX_BYTES:
        raise ReadingsRefused(f"{path}: more than {MAX_BYTES} octets")
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ReadingsRefused(f"{path}: {error}") from None
