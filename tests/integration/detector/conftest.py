"""A journal on disk, meters that fill it day by day, and a detector that follows it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from edge_core.clock import ManualClock
from edge_core.config import schema
from edge_core.detector import Detector
from edge_core.detector.days import Calendar
from edge_core.detector.history import Store
from edge_core.domain import Block, Column, Layout
from edge_core.journal import Journal

ZONE = "Asia/Kolkata"
DELTA = Layout("1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 0),))
REGISTER = Layout(
    "1.0.99.1.0.255", 900, (Column("0.0.96.10.1.255", "bits", 0), Column("1.0.1.8.0.255", "Wh", 1))
)
POWERED = Layout(
    "1.0.99.1.0.255",
    900,
    (
        Column("1.0.31.27.0.255", "A", -2),
        Column("1.0.32.27.0.255", "V", -1),
        Column("1.0.1.29.0.255", "Wh", 0),
    ),
)


class Town:
    """Meters whose every day is written into a journal, and the detector beside it."""

    DELTA, REGISTER, POWERED = DELTA, REGISTER, POWERED

    def __init__(self, folder: Path) -> None:
        self.calendar = Calendar(ZoneInfo(ZONE))
        self.first = self.calendar.day_of(1_764_000_000)
        self.clock = ManualClock(civil=float(self.calendar.begin(self.first)))
        self.folder = folder
        self.config = schema.Config(
            gateway=schema.Gateway(id="dcu-1", data_dir=str(folder), timezone=ZONE)
        )
        self.journal = Journal.open(folder / "journal.db", clock=self.clock)
        self.rng = np.random.default_rng(7)
        self.registers: dict[str, int] = {}

    def day(self) -> np.ndarray:
        """Wh of 96 quarter hours of a lively day."""
        return self.rng.integers(40, 400, 96)

    def write(self, day: int, meter: str, layout: Layout, wh: np.ndarray, **more: object) -> None:
        """Append a day of a meter; registers go on from day to day in steps of 10 Wh."""
        begin = self.calendar.begin(day)
        columns: list[object]
        if layout is REGISTER:
            total = self.registers.get(meter, 0) + np.cumsum(wh)
            self.registers[meter] = int(total[-1])
            columns = [[0] * 96, (total // 10).tolist()]
        elif layout is POWERED:
            columns = [*more.pop("power"), wh.tolist()]  # type: ignore[misc]
        else:
            columns = [wh.tolist()]
        block = Block(
            meter=meter,
            device="d1",
            kind="interval",
            layout=layout,
            times=[begin + 900 * (k + 1) for k in range(96)],
            columns=tuple(columns),  # type: ignore[arg-type]
            tz=330,
            read_at=begin + 90_000,
            **more,  # type: ignore[arg-type]
        )
        self.journal.append(block)

    def half_hours(self, day: int, meter: str, wh: list[int | None]) -> None:
        """Append a day of 48 half hours of energy; None = no reading."""
        begin = self.calendar.begin(day)
        layout = Layout("1.0.99.1.0.255", 1800, (Column("1.0.1.29.0.255", "Wh", 0),))
        times = [begin + 1800 * (k + 1) for k in range(48)]
        self.journal.append(
            Block(
                meter=meter,
                device="d1",
                kind="interval",
                layout=layout,
                times=times,
                columns=(wh,),
                tz=330,
            )
        )

    def flush(self) -> None:
        self.journal.flush().result(10)

    def findings(self) -> list[dict]:
        """Every finding in the journal, in order."""
        return [
            f for n in self.journal.notes_waiting(limit=1000) if n.kind == "anomalies" for f in n.body["findings"]
        ]  # fmt: skip

    async def until(self, condition: Callable[[], object], within_s: float = 60.0) -> None:
        """Run a detector until the condition holds."""
        detector = Detector(self.config, self.journal, self.clock)
        task = asyncio.create_task(detector.run())
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    if task.done():
                        task.result()
                    self.journal.flush()
                    await asyncio.sleep(0.02)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def scored(self, day: int) -> bool:
        """Has everything up to and with `day` been scored?"""
        try:
            store = Store(self.folder / "detector.db", reader=True)
        except sqlite3.Error:
            return False  # it is being made
        with contextlib.closing(store):
            span = store.days()
            return span is not None and span[1] >= day and store.meta("pending") == "{}"


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path)
    yield town
    town.journal.close()
