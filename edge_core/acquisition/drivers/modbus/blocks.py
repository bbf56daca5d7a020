"""Blocks of a Modbus meter: samples, midnights that it kept, rows of its load profile, its last demand period.

Layouts and flags are made here, nothing is asked. A row that the meter did not keep itself is flagged SAMPLED.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edge_core.acquisition.profiles import profile_of
from edge_core.domain import Block, Column, Flag, Layout, Values
from edge_core.domain.block import runs_of
from edge_core.schedule.calendar import minutes_east

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from zoneinfo import ZoneInfo

    from edge_core.acquisition.drivers.modbus.history import LastPeriod, Portion
    from edge_core.acquisition.drivers.modbus.reader import Bulk
    from edge_core.config.history import PeriodHistory, WindowHistory
    from edge_core.config.models import ModbusModel
    from edge_core.config.schema import Meter
    from edge_core.domain import RegisterReading

CLOCK_DOUBT_S = 600  # a meter whose clock is further off dates its rows wrongly
REFRESH_S = 1.0  # meters renew their registers up to a second after the fact
ENERGY = {"W": "Wh", "var": "varh", "VA": "VAh"}


@dataclass(frozen=True, slots=True)
class Blocks:
    """Makes blocks of one meter.

    Attributes:
        meter: whose.
        model: its model.
        device: name of the device, or of the series of its counters.
        zone: civil time of the gateway.
        proven_at: when the model was last proven, UTC seconds.
    """

    meter: Meter
    model: ModbusModel
    device: str
    zone: ZoneInfo
    proven_at: int

    def sample(
        self,
        kind: str,
        time: int,
        readings: Sequence[RegisterReading],
        bulk: Bulk,
        rolled: Sequence[str],
    ) -> Block:
        """The sample of now under its nominal time; `q` says when it was really taken."""
        at = (bulk.sent_at + bulk.heard_at) / 2
        q: dict[str, Any] = {
            "at": round(at * 1000),
            "bound": [round((bulk.sent_at - REFRESH_S) * 1000), round(bulk.heard_at * 1000)],
        }
        if rolled:
            q["rolled"] = list(rolled)
        columns = [[r.value] for r in readings]
        flags = [int(Flag.SAMPLED)]
        return self._block(
            kind, self._layout(kind, readings), [time], columns, flags, bulk.heard_at, q
        )

    def midnights(
        self,
        times: Sequence[int],
        counters: Sequence[RegisterReading],
        columns: Sequence[Sequence[RegisterReading]],
        heard_at: float,
        offset_s: float,
    ) -> Block:
        """Midnights that the meter kept, dated by its own clock."""
        bits = [self._doubt(abs(offset_s))] * len(times)
        values = [[r.value for r in column] for column in columns]
        layout = self._layout("midnight", counters)
        q = {"clock_offset_s": round(offset_s)}
        return self._block("midnight", layout, times, values, bits, heard_at, q)

    def profile(self, history: WindowHistory, portion: Portion, read_at: float) -> Block:
        """Rows of a load profile."""
        units = {str(p.obis): str(p.unit) for p in self.model.points if p.obis}
        cols = tuple(Column(c.obis, units[c.obis], c.scaler) for c in portion.channels)
        layout = Layout(profile_of(self.model, "interval")[0], history.period_s, cols)
        rows, offset = portion.rows, portion.clock_offset_s
        doubt = self._doubt(offset or 0.0)
        return self._block(
            "interval",
            layout,
            rows.times,
            rows.columns,
            [bits | doubt for bits in rows.flags],
            read_at,
            None if offset is None else {"clock_offset_s": round(offset)},
            tuple(rows.occ),
        )

    def last_period(self, history: PeriodHistory, period: LastPeriod, read_at: float) -> Block:
        """The demand period that ended last."""
        powers = {p.name: p.unit for p in self.model.points}
        cols = tuple(
            Column(obis, ENERGY[powers[name]], history.resolution)
            for obis, name in history.columns.items()
        )
        layout = Layout(profile_of(self.model, "interval")[0], history.period_s, cols)
        q = {"clock_offset_s": round(period.clock_offset_s), "length_s": period.length_s}
        columns = [[value] for value in period.values]
        return self._block("interval", layout, [period.time], columns, [period.flags], read_at, q)

    def _doubt(self, offset_s: float) -> int:
        return int(Flag.CLOCK_INVALID) if offset_s > CLOCK_DOUBT_S else 0

    def _layout(self, kind: str, readings: Iterable[RegisterReading]) -> Layout:
        cols = tuple(Column(r.obis or "", r.unit, r.scaler) for r in readings)
        return Layout(*profile_of(self.model, kind), cols)

    def _block(
        self,
        kind: str,
        layout: Layout,
        times: Sequence[int],
        columns: Sequence[Sequence[Any]],
        bits: Sequence[int],
        read_at: float,
        q: dict[str, Any] | None,
        occ: tuple[tuple[int, int], ...] = (),
    ) -> Block:
        return Block(
            meter=self.meter.id,
            device=self.device,
            kind=kind,
            layout=layout,
            times=list(times),
            columns=tuple(cast("Values", list(column)) for column in columns),
            occ=occ,
            flags=runs_of(bits),
            tz=minutes_east(times[-1] if times else read_at, self.zone),
            multiplier=self.meter.multiplier,
            read_at=int(read_at),
            proven_at=self.proven_at,
            q=q,
        )
