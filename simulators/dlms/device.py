"""One physical meter: its serial, its clock, and the rows that it has captured.

Invariants
  * A row is its position in a buffer in order of capture; its values are a function of the instants between which it was
    captured, so whoever knows the rows knows every value (`Rows.truth`). Nothing is stored but times and exceptions.
  * The meter captures by its own clock (civil time + `offset`). A clock set back repeats capture times: occurrence 1, 2.
  * Energy flows by real civil time and not while the meter has no power; registers never fall.
Limits: capture is lazy, it happens when somebody looks; event logs hold what `note_event` was told.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_core.domain import Flag
from simulators.civil import zone
from simulators.dlms import codec
from simulators.dlms.layouts import UNIT_CODES, Column, Layout, Profile
from simulators.loads import CHANNELS, Load

Ints = npt.NDArray[np.int64]

STATUS_FLAGS = {
    0x80: Flag.POWER_DOWN, 0x20: Flag.CLOCK_ADJUSTED, 0x08: Flag.DST,
    0x04: Flag.NOT_VALID, 0x02: Flag.CLOCK_INVALID, 0x01: Flag.CRITICAL,
}  # fmt: skip
_PHASE_SHARE = (41, 33, 26)
_HEAD = {1: b"\x11", 2: b"\x12", 4: b"\x06", 12: b"\x09\x0c"}


class Rows:
    """The buffer of one profile.

    Attributes:
        times: capture times on the meter's clock, UTC epoch seconds.
        occ: row -> occurrence, where it is not 0.
        shifts: (first row, meter clock minus civil time) in order.
        starts: row -> begin of the captured interval in civil time, where it is not one period before.
        status: row -> status octet, where it is not 0.
        codes: event codes, of event logs.
    """

    __slots__ = (
        "codes",
        "highest",
        "occ",
        "profile",
        "shifts",
        "starts",
        "status",
        "ticked",
        "ticked_civil",
        "times",
    )

    def __init__(self, profile: Profile, born: int) -> None:
        self.profile = profile
        self.times = array("q")
        self.codes = array("H")
        self.occ: dict[int, int] = {}
        self.shifts: list[tuple[int, int]] = [(0, 0)]
        self.starts: dict[int, int] = {}
        self.status: dict[int, int] = {}
        self.highest = self.ticked = self.ticked_civil = born

    @property
    def oldest(self) -> int:
        """Position of the oldest row that is not overwritten."""
        return max(0, len(self.times) - self.profile.capacity)

    def add(self, at: int) -> int:
        """Hold one more row; returns its position."""
        row = len(self.times)
        if at <= self.highest:
            recent = self.times[-2_000:]
            if count := recent.count(at):
                self.occ[row] = count
        else:
            self.highest = at
        self.times.append(at)
        return row

    def at(self, rows: Ints) -> Ints:
        """Capture times of the given positions."""
        return np.frombuffer(self.times, np.int64)[rows] if len(rows) else np.zeros(0, np.int64)

    def span(self, rows: Ints) -> tuple[Ints, Ints]:
        """Begin and end of the captured intervals in civil time."""
        firsts = np.array([first for first, _ in self.shifts])
        offsets = np.array([offset for _, offset in self.shifts])
        ends = self.at(rows) - offsets[np.searchsorted(firsts, rows, side="right") - 1]
        begins = ends - self.profile.period
        if self.starts:
            for k, row in enumerate(rows.tolist()):
                begins[k] = self.starts.get(row, begins[k])
        return begins, ends


class Device:
    """One meter.

    Args:
        number: the serial number; eight digits.
        index: which load curve.
        born: civil time since which it captures.
    """

    __slots__ = (
        "born",
        "index",
        "layout",
        "load",
        "number",
        "off_since",
        "offset",
        "outages",
        "rows",
        "zone",
    )

    def __init__(
        self, layout: Layout, number: int, index: int, seed: int, born: int, zone_name: str = ""
    ) -> None:
        self.layout, self.number, self.index, self.born = layout, number, index, born
        self.zone = zone(zone_name or layout.zone)
        self.load = Load(index, seed, self.zone.standard_min)
        self.rows = {p.kind: Rows(p, born) for p in layout.profiles}
        self.offset = 0
        self.outages: list[tuple[int, int]] = []
        self.off_since: int | None = None

    @property
    def serial(self) -> str:
        return f"{self.number:08d}"

    @property
    def title(self) -> bytes:
        """System title: three letters of the maker, five octets of the serial number."""
        return self.layout.maker + self.number.to_bytes(5, "big")

    @property
    def device_id(self) -> str:
        """0.0.96.1.2.255, the first element of a push."""
        return (self.layout.maker.decode() + self.serial) if self.layout.east else self.serial

    # --- capturing

    def capture(self, civil: float, *, missing: bool = False) -> None:
        """Bring all buffers up to the meter's clock; `missing`: what falls due is lost instead of stored."""
        clock = int(civil) + self.offset
        for rows in self.rows.values():
            if rows.profile.log is not None or rows.ticked >= clock:
                continue
            period = rows.profile.period
            if period and period < 86_400:
                shift = self.zone.standard_min * 60
                first = ((rows.ticked + shift) // period + 1) * period - shift
                due: Any = range(first, clock + 1, period)
            else:
                due = list(self._calendar(rows, clock))
            if not due:
                continue
            if not (missing or self.off_since is not None):
                irregular = rows.ticked_civil != rows.ticked - self.offset
                place = len(rows.times)
                if due[0] > rows.highest and not irregular:
                    rows.times.extend(due)
                    rows.highest = due[-1]
                else:
                    for at in due:
                        rows.add(at)
                if irregular:
                    rows.starts[place] = rows.ticked_civil
            rows.ticked, rows.ticked_civil = due[-1], due[-1] - self.offset

    def set_clock(self, civil: float, new_clock: int) -> None:
        """The meter's clock is set; what was due is captured first, repeated boundaries are captured again."""
        self.capture(civil)
        before = int(civil) + self.offset
        if new_clock == before:
            return
        self.offset += new_clock - before
        for rows in self.rows.values():
            if rows.profile.log is None:
                rows.shifts.append((len(rows.times), self.offset))
                rows.ticked = new_clock  # boundaries that were jumped over are never captured, others come again
                if rows.profile.kind == "interval":
                    rows.status[len(rows.times)] = 0x20
        if self.layout.east:
            self.note_event(3, 151, int(civil))

    def power_off(self, civil: float) -> None:
        """The supply fails: nothing is captured and no energy flows until `power_on`."""
        if self.off_since is None:
            self.capture(civil)
            self.off_since = int(civil)

    def power_on(self, civil: float) -> None:
        """The supply is back; the running interval begins here."""
        if self.off_since is None:
            return
        self.capture(civil)
        self.outages.append((self.off_since, int(civil)))
        if self.layout.east:
            self.note_event(2, 101, self.off_since)
            self.note_event(2, 102, int(civil))
        self.off_since = None
        for rows in self.rows.values():
            if rows.profile.log is None:
                rows.starts[len(rows.times)] = int(civil)
                if rows.profile.kind == "interval":
                    rows.status[len(rows.times)] = rows.status.get(len(rows.times), 0) | 0x80

    def note_event(self, log: int, code: int, civil: int) -> None:
        """Write a row into an event log; codes: IS 15959 event tables, or the IDIS ones."""
        rows = self.rows[f"events-{log}"]
        rows.shifts.append((len(rows.times), self.offset))
        rows.add(civil + self.offset)
        rows.codes.append(code)

    def _calendar(self, rows: Rows, clock: int) -> list[int]:
        due, at = [], rows.ticked
        while (at := self.zone.midnight_after(at)) <= clock:
            local = np.datetime64(at + int(self.zone.offset_min(at)) * 60, "s")
            if rows.profile.period or local == local.astype("datetime64[M]"):
                due.append(at)
        return due

    # --- values

    def registers(self, civil: npt.ArrayLike) -> dict[str, Ints]:
        """Cumulative registers by channel at civil instants."""
        at = np.atleast_1d(np.asarray(civil, np.int64))
        sums = self.load.cumulative(at)
        for begin, end in [
            *self.outages,
            *([(self.off_since, 1 << 40)] if self.off_since is not None else []),
        ]:
            edges = np.stack([np.minimum(at, begin), np.minimum(at, end)], axis=1)
            if (edges[:, 0] != edges[:, 1]).any():
                flowed = self.load.cumulative(edges.reshape(-1)).reshape(len(at), 2, -1)
                sums = sums - (flowed[:, 1] - flowed[:, 0])
        found = dict(zip(CHANNELS, sums.T, strict=True))
        found["t2"] = found["import"] - found["t1"]
        found["export-t1"] = found["export"] * 3 // 5
        found["export-t2"] = found["export"] - found["export-t1"]
        found["zero"] = np.zeros_like(found["export"])
        return found

    def values(self, kind: str, positions: npt.ArrayLike) -> list[Ints]:
        """Columns of the rows at the given positions, raw integers; dates as UTC epoch seconds."""
        rows, where = self.rows[kind], np.asarray(positions, np.int64)
        if not len(where):
            return [np.zeros(0, np.int64) for _ in rows.profile.columns]
        begins, ends = rows.span(where)
        registers = self.registers(ends)
        sources = {c.source.partition(":")[0] for c in rows.profile.columns}
        before = self.registers(begins) if sources & {"block", "amp"} else {}
        volts = self.load.voltage(ends) if sources & {"volt", "amp"} else np.zeros((0, 3), np.int64)
        peaks = self._peaks(rows, where) if "max" in sources else np.zeros((2, 0), np.int64)
        out = []
        for column in rows.profile.columns:
            what, _, which = column.source.partition(":")
            if what == "sum":
                cells = registers[which] // 10**column.scaler
            elif what == "block":
                unit = 10**column.scaler
                cells = registers[which] // unit - before[which] // unit
            elif what == "volt":
                cells = volts[:, int(which)]
            elif what == "amp":
                power = (registers["vah"] - before["vah"]) * 3600
                cells = (
                    power
                    * _PHASE_SHARE[int(which)]
                    * 10
                    // (np.maximum(ends - begins, 1) * volts[:, int(which)])
                )
            elif what == "status":
                cells = np.array([rows.status.get(row, 0) for row in where.tolist()], np.int64)
                cells = cells | self.zone.summer(rows.at(where)) * 8
            elif what == "code":
                cells = np.frombuffer(rows.codes, np.uint16)[where].astype(np.int64)
            elif what == "date":
                cells = rows.at(where)
            else:
                cells = peaks[0 if what == "max" else 1]
            out.append(cells)
        return out

    def encode(
        self,
        kind: str,
        positions: npt.ArrayLike,
        chosen: list[int] | None,
        *,
        nulls: bool = False,
        packed: bool = False,
        deltas: bool = False,
    ) -> list[bytes]:
        """The rows as A-XDR structures.

        Args:
            chosen: columns to send, 0 = the clock, in this order; None = all.
            nulls: compress as IDIS meters may: null-data for a clock one period later and for an unchanged value.
            packed: without tags, as a compact-array holds them.
            deltas: integers as difference to the row above, where that is shorter.
        """
        rows, where = self.rows[kind], np.asarray(positions, np.int64)
        if not len(where):
            return []
        columns, cells = rows.profile.columns, self.values(kind, where)
        stamps = rows.at(where)
        parts: list[npt.NDArray[np.uint8]] = []
        for k in range(len(columns) + 1) if chosen is None else chosen:
            width = columns[k - 1].width if k else 12
            if width == 12:
                body = codec.clock_octets(
                    cells[k - 1] if k else stamps, self.zone, east=self.layout.east
                )
            else:
                body = cells[k - 1].astype(f">u{width}").view(np.uint8).reshape(-1, width)
            head = np.frombuffer(_HEAD[width][packed:], np.uint8)
            parts.append(np.hstack([np.broadcast_to(head, (len(where), len(head))), body]))
        lead = b"" if packed else b"\x02" + codec.length(len(parts))
        if deltas:
            lines = [[part[r].tobytes() for part in parts] for r in range(len(where))]
            return [
                lead + b"".join(map(_delta, row, above))
                for row, above in zip(lines, [[b""] * len(parts), *lines], strict=False)
            ]
        if not nulls:
            block = np.hstack(
                [np.broadcast_to(np.frombuffer(lead, np.uint8), (len(where), len(lead))), *parts]
            )
            return [row.tobytes() for row in block]
        out, previous = [], [b""] * len(parts)
        for r in range(len(where)):
            row = [part[r].tobytes() for part in parts]
            steady = (
                r > 0
                and rows.profile.period > 0
                and stamps[r] - stamps[r - 1] == rows.profile.period
            )
            sent = [
                codec.NULL
                if cell == old or (steady and (chosen[k] if chosen else k) == 0)
                else cell
                for k, (cell, old) in enumerate(zip(row, previous, strict=True))
            ]
            out.append(lead + b"".join(sent))
            previous = row
        return out

    def now_value(self, column: Column, civil: float) -> int:
        """A register read now."""
        at, (what, _, which) = int(civil), column.source.partition(":")
        if what == "sum":
            return int(self.registers(at)[which][0] // 10**column.scaler)
        power = self.load.power(at)
        volts = self.load.voltage(at)[0]
        if what == "power":
            return power[which] // 1000
        if what == "volt-now":
            return (
                int(volts[int(which)])
                if column.scaler == -1
                else (int(volts[int(which)]) + 5) // 10
            )
        if what == "amp-now":
            milliamperes = self.load.current(power["vah"], int(volts[int(which)]), int(which))
            return int(milliamperes // 10 ** (3 + column.scaler))
        if what == "factor":
            return power["import"] * 1000 // power["vah"] if power["vah"] else 1000
        if what == "frequency":
            return 4_990 + at // 7 % 21
        if what == "failures":
            return len(self.outages)
        kind = next(kind for kind, rows in self.rows.items() if column in rows.profile.columns)
        held = len(self.rows[kind].times)
        place = self.rows[kind].profile.columns.index(column)
        return int(self.values(kind, [held - 1])[place][0]) if held else 0

    def truth(self, kind: str) -> dict[str, Any]:
        """Every row ever captured in that profile, as columns; `held_from` = position of the oldest one still held."""
        rows = self.rows[kind]
        where = np.arange(len(rows.times))
        flags = []
        cols, values = [], []
        for column, cells in zip(rows.profile.columns, self.values(kind, where), strict=True):
            if column.source == "status":
                known = [
                    (row, 1, sum(flag for bit, flag in STATUS_FLAGS.items() if status & bit))
                    for row, status in enumerate(cells.tolist())
                    if status
                ]
                flags = [list(run) for run in known]
                continue
            unit = "epoch" if column.width == 12 else column.unit
            cols.append([column.obis, unit, column.scaler, column.attribute])
            values.append(cells.tolist())
        return {
            "device": self.serial,
            "kind": kind,
            "profile": rows.profile.obis,
            "period": rows.profile.period,
            "cols": cols,
            "t": list(rows.times),
            "occ": sorted([row, k] for row, k in rows.occ.items()),
            "values": values,
            "flags": flags,
            "held_from": rows.oldest,
        }

    def _peaks(self, rows: Rows, where: Ints) -> Ints:
        """Highest quarter-hour demand of each billing month and when it ended, shape (2, n)."""
        out = np.zeros((2, len(where)), np.int64)
        for k, row in enumerate(where.tolist()):
            end = int(rows.times[row])
            begin = (
                int(rows.times[row - 1]) if row else max(self.born // 900 * 900, end - 31 * 86_400)
            )
            edges = np.arange(begin, end + 1, 900)
            if len(edges) > 1:
                demand = np.diff(self.registers(edges)["import"]) * 4
                out[:, k] = demand.max(), edges[1 + int(demand.argmax())]
        return out


def unit_code(column: Column) -> int:
    """The DLMS unit enumeration of a column."""
    return UNIT_CODES[column.unit]


def _delta(cell: bytes, above: bytes) -> bytes:
    """An unsigned integer as a delta type, where it is one and that is shorter."""
    if not above or cell[:1] not in (b"\x06", b"\x12"):
        return cell
    step = int.from_bytes(cell[1:], "big") - int.from_bytes(above[1:], "big")
    for tag, size, signed in ((31, 1, False), (28, 1, True), (32, 2, False), (29, 2, True)):
        low, high = (-(1 << 8 * size - 1), 1 << 8 * size - 1) if signed else (0, 1 << 8 * size)
        if low <= step < high and size < len(cell) - 1:
            return bytes([tag]) + step.to_bytes(size, "big", signed=signed)
    return cell
