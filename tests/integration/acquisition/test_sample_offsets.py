"""Samples of meters that remember nothing: each meter stands at its own offset in every sweep, and `q.bound` holds.

Real time passes within a sweep; between two sweeps the clock jumps. The slave's counters follow a load that moves, and
are renewed up to a second after the fact, as real registers are.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import struct
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_core.acquisition.poller import Poller
from edge_core.config.keys import KeyRing
from edge_core.config.load import load
from edge_core.config.models import load_model
from edge_core.domain import Block, as_list
from edge_core.journal import CounterStore, Journal
from edge_core.journal.datadir import DataDirectory, Memories
from tests.conftest import eventually
from tests.integration.modbus.conftest import MODEL, TRUTH, Asked, Slave

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

BOUNDARY = 1_763_942_400
PERIOD = 900
METERS, SWEEPS = 10, 6
EARLY_S = 0.2  # the jump ends that long before a boundary
ALLOWED_S = 1.8  # 0.2 % of 15 minutes: facts of the domain, at constant load
COUNTER = 100  # register of active_energy_import


@dataclass
class JumpingClock:
    """Real time that can be made to skip the waiting between two sweeps, civil and monotonic alike."""

    skipped: float = 0.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def now(self) -> float:
        return BOUNDARY - EARLY_S + time.monotonic() - self.began + self.skipped

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def synchronised(self) -> bool:
        return True

    def jump_before(self, boundary: int) -> None:
        self.skipped += max(0.0, boundary - EARLY_S - self.now())


def energy(unit: int, at: float) -> float:
    """Wh that a unit has counted at a civil instant, under a load that swings by half within minutes; it only rises."""
    t = at - BOUNDARY + 10_000
    return 1000.0 * t + 500.0 * 60 * math.sin(t / 60 + unit)


class Counting(Slave):
    """Units whose counters rise; they answer after a time of their own, and some do not answer at all."""

    clock: JumpingClock
    silent: set[int]
    rng: random.Random

    async def _react(self, asked: Asked, send: Callable[[bytes], None]) -> None:
        if asked.unit in self.silent:
            self.asked.append(asked)
            return
        await asyncio.sleep(0.005 + 0.002 * asked.unit + self.rng.uniform(0, 0.005))
        if asked.address <= COUNTER < asked.address + asked.count:
            latched = self.clock.now() - self.rng.uniform(0.2, 0.9)
            raw = struct.pack(">I", int(energy(asked.unit, latched)))
            high, low = struct.unpack(">HH", raw)
            self.registers[asked.unit] |= {COUNTER: high, COUNTER + 1: low}
        await super()._react(asked, send)


class Row:
    """One sample as it was published."""

    def __init__(self, block: Block) -> None:
        (self.time,) = as_list(block.times)
        self.value = as_list(block.columns[0])[0]
        q = block.q or {}
        self.delay = q["at"] / 1000 - self.time
        self.first, self.last = (at / 1000 for at in q["bound"])


class Panel:
    """A line of meters, and the acquisition side of a gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, JumpingClock()
        self.slave = Counting(rtu=True)
        self.slave.clock, self.slave.silent = self.clock, set()
        self.slave.rng = random.Random(5)
        self.lags: list[float] = []

    async def open(self) -> None:
        model = self.folder / "probe.toml"
        model.write_text(textwrap.dedent(MODEL).replace("scale = 1,", "scale = 0,"))
        for unit in range(1, METERS + 1):
            self.slave.hold(
                unit, load_model(str(model)), {**TRUTH, "meter_serial_number": 100 + unit}
            )
        port = await self.slave.serve()
        (self.folder / "keys.toml").touch(0o600)
        text = (
            '[gateway]\nid = "dcu-1"\ndata_dir = "data"\ntimezone = "Asia/Kolkata"\n'
            '[uplink]\nkind = "file"\nurl = "sent"\n[schedule]\ninstantaneous = "off"\n'
            '[[lines]]\nid = "panel"\ntransport = "tcp"\nframing = "modbus-rtu"\nbaudrate = 19200\ntimeout_s = 0.3\n'
        )
        for unit in range(1, METERS + 1):
            text += f'[[meters]]\nid = "M{unit}"\nline = "panel"\nmodel = "probe.toml"\naddress = "127.0.0.1:{port}/{unit}"\n'
        file = self.folder / "gateway.toml"
        file.write_text(text)
        config = load(file)
        directory = DataDirectory(config.data_dir).prepare()
        self.journal = Journal.open(directory.journal(), clock=self.clock)
        self.counters = CounterStore.open(directory.counters, clock=self.clock)
        self.memories = Memories(directory, now=self.clock.now())
        self.poller = Poller(
            config, drivers=("modbus",), journal=self.journal, counters=self.counters, memories=self.memories,
            keys=KeyRing.open(config.keys), clock=self.clock,
        )  # fmt: skip
        self.running = asyncio.create_task(self.poller.run())

    async def close(self) -> None:
        self.poller.stop()
        await self.running
        self.journal.close()
        self.counters.close()
        self.memories.close()
        await self.slave.stop()

    async def sweep(self, number: int, *, without: int = 0) -> None:
        """Jump to a boundary and wait until every meter that answers is sampled."""
        boundary = BOUNDARY + PERIOD * number
        self.lags.append(0.0)
        watch = asyncio.create_task(self._watch())
        self.clock.jump_before(boundary)
        self.poller._wake.set()
        try:
            await eventually(
                lambda: (
                    sum(boundary in rows for rows in self.rows().values()) == METERS - without
                    and not any(s.busy or s.queued for s in self.poller.meters.values())
                )
            )
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """How much later than it wanted somebody else on this loop came to his turns in a sweep: not our doing."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            self.lags[-1] += max(0.0, loop.time() - due - 0.002)

    @property
    def busy_s(self) -> float:
        """What a busy machine may have added to the delay of a sample."""
        return max(self.lags)

    def rows(self) -> dict[str, dict[int, Row]]:
        """Meter -> boundary -> sample."""
        found: dict[str, dict[int, Row]] = {}
        after = 0
        while page := self.journal.segments(after, lane=None, limit=200):
            for segment in page:
                for block in self.journal.blocks(segment.id):
                    row = Row(block)
                    mine = found.setdefault(block.meter, {})
                    assert row.time not in mine
                    mine[row.time] = row
            after = page[-1].id
        return found


@pytest.fixture
async def panel(tmp_path: Path) -> AsyncIterator[Panel]:
    made = Panel(tmp_path)
    await made.open()
    yield made
    await made.close()


def spread(values: Iterable[float]) -> float:
    known = list(values)
    return max(known) - min(known)


def check_bounds(unit: int, rows: list[Row]) -> None:
    """Every row and every interval lies within what its bounds allow."""
    for row in rows:
        assert row.first <= row.time + row.delay <= row.last
        assert energy(unit, row.first) - 1 <= row.value <= energy(unit, row.last) + 1
    for a, b in itertools.pairwise(rows):
        true = energy(unit, b.time) - energy(unit, a.time)
        error = b.value - a.value - true
        low_a, high_a = (energy(unit, at) - energy(unit, a.time) for at in (a.first, a.last))
        low_b, high_b = (energy(unit, at) - energy(unit, b.time) for at in (b.first, b.last))
        assert low_b - high_a - 2 <= error <= high_b - low_a + 2


async def test_every_meter_keeps_its_offset_and_the_bounds_hold(panel: Panel) -> None:
    for number in range(SWEEPS):
        await panel.sweep(number)
    rows = panel.rows()
    usual = []
    for unit in range(1, METERS + 1):
        mine = list(rows[f"M{unit}"].values())
        assert [row.time for row in mine] == [BOUNDARY + PERIOD * n for n in range(SWEEPS)]
        # the first visit proves the model, which costs a few requests; the others are alike
        assert spread(row.delay for row in mine[1:]) < 0.5 + panel.busy_s, unit
        assert spread(row.delay for row in mine) < ALLOWED_S + panel.busy_s
        assert all(0 <= row.delay < 5 + panel.busy_s for row in mine)
        usual.append(mine[-1].delay)
        check_bounds(unit, mine)
    assert spread(usual) > 1.0  # they do stand at different places


async def test_a_dead_unit_moves_its_neighbours_less_than_the_error_allowed(panel: Panel) -> None:
    for number in range(3):
        await panel.sweep(number)
    panel.slave.silent = {3, 7}
    for number in range(3, SWEEPS):
        await panel.sweep(number, without=2)
    rows = panel.rows()
    for unit in set(range(1, METERS + 1)) - panel.slave.silent:
        mine = list(rows[f"M{unit}"].values())
        assert [row.time for row in mine] == [BOUNDARY + PERIOD * n for n in range(SWEEPS)]
        assert spread(row.delay for row in mine) < ALLOWED_S + panel.busy_s, unit
        check_bounds(unit, mine)
    asked = [a for a in panel.slave.asked if a.unit in panel.slave.silent]
    assert asked  # they were asked, and cost time
