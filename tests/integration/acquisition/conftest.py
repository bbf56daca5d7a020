"""A poller with a real journal, and a simulated fleet that it reads over sockets; both follow a clock of the test's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition.poller import Poller
from edge_core.clock import ManualClock
from edge_core.config.keys import KeyRing
from edge_core.config.load import load
from edge_core.domain import Alarm, as_list
from edge_core.journal import CounterStore, Hole, Journal, LedgerEntry
from edge_core.journal.datadir import DataDirectory, Memories
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec, ModbusGroup
from tests.conftest import eventually

T0 = 1_763_942_400  # a midnight in UTC, 05:30 in Kolkata

Identity = tuple[str, str, str, int, int, str, int]
"""meter, device, profile, time, occurrence, OBIS, attribute"""


class Plant:
    """A fleet and the acquisition side of a gateway, in this process; the gateway may be stopped and started."""

    def __init__(self, folder: Path, spec: FleetSpec, clock: ManualClock, **settings: Any) -> None:
        self.folder, self.clock, self.settings = folder, clock, settings
        self.fleet = Fleet(spec, folder / "state", clock)
        self.alarms: list[Alarm] = []
        self.visits: list[dict[str, Any]] = []

    async def open(self) -> None:
        await self.fleet.open()
        self.fleet.write_files(self.folder / "fleet")
        self.start()

    def write_config(self) -> Path:
        settings = self.settings
        lines = (self.folder / "fleet/lines.toml").read_text()
        for name, value in settings.get("line", {}).items():
            lines = lines.replace('transport = "tcp"', f'transport = "tcp"\n{name} = {value}')
        schedule = {
            "events": '"off"', "billing": '"off"', "clock_check": '"off"',
            **settings.get("schedule", {}),
        }  # fmt: skip
        config = self.folder / "gateway.toml"
        config.write_text(
            '[gateway]\nid = "dcu-0001"\ndata_dir = "data"\n'
            f'timezone = "{settings.get("timezone", "Asia/Kolkata")}"\n'
            '[uplink]\nkind = "file"\nurl = "sent"\n[schedule]\n'
            + "".join(f"{key} = {value}\n" for key, value in schedule.items())
            + f'[clock]\nset_meters = "{settings.get("set_meters", "off")}"\n'
            + '[fleet]\nfile = "fleet/meters.csv"\n[keys]\nfile = "fleet/keys.toml"\n'
            + lines
        )
        return config

    def start(self) -> None:
        """A gateway process begins."""
        config = load(self.write_config())
        directory = DataDirectory(config.data_dir).prepare()
        self.journal = Journal.open(
            directory.journal(), clock=self.clock, **self.settings.get("journal", {})
        )
        self.counters = CounterStore.open(directory.counters, clock=self.clock)
        self.memories = Memories(directory, now=self.clock.now())
        self.journal.on_alarm(self.alarms.append)
        self.poller = Poller(
            config,
            drivers=("dlms", "modbus"),
            journal=self.journal,
            counters=self.counters,
            memories=self.memories,
            keys=KeyRing.open(config.keys),
            clock=self.clock,
        )
        self.poller.on_block = self.visits.append
        self.running = asyncio.create_task(self.poller.run())

    async def stop(self) -> None:
        """It ends as on SIGTERM."""
        self.poller.stop()
        await self.running
        self.journal.close()
        self.counters.close()
        self.memories.close()

    async def restart(self) -> None:
        await self.stop()
        self.start()

    async def close(self) -> None:
        await self.stop()
        await self.fleet.close()

    # --- time

    async def settle(self, within_s: float = 15.0) -> None:
        """Wait until nothing is due any more at the present time."""
        self.poller._wake.set()

        def idle() -> bool:
            agenda = self.poller.agenda
            upcoming = agenda.next_time()
            due = upcoming is not None and upcoming <= self.clock.now()
            busy = any(s.busy or s.queued for s in self.poller.meters.values())
            if due:
                self.poller._wake.set()
            return not due and not busy

        await eventually(idle, within_s)
        await asyncio.wrap_future(self.journal.flush())

    async def advance(self, seconds: float, step_s: float = 900.0) -> None:
        """Let civil and monotonic time pass; what falls due is done at each step."""
        end = self.clock.now() + seconds
        while self.clock.now() < end - 1e-6:
            step = min(step_s - self.clock.now() % step_s, end - self.clock.now())
            self.clock.advance(step)
            await self.settle()

    async def all_read(self) -> None:
        """Nothing is captured any more, and everything is read."""
        self.fleet.freeze()
        await self.poller.sweep()
        await self.settle()

    # --- what is known

    def meter_id(self, index: int = 0) -> str:
        return self.fleet.all()[index].id

    def ledger(self, meter: str, kind: str = "interval") -> list[LedgerEntry]:
        return [entry for entry in self.journal.ledger(meter) if entry.kind == kind]

    def holes(self, meter: str, kind: str = "interval") -> list[Hole]:
        return [hole for entry in self.ledger(meter, kind) for hole in entry.holes]

    def missing(self, meter: str, kind: str = "interval") -> Counter[str]:
        """Missing rows by cause."""
        found: Counter[str] = Counter()
        for hole in self.holes(meter, kind):
            found[hole.cause] += hole.rows
        return found

    def stored(self, *, kinds: tuple[str, ...] = ("interval", "midnight")) -> Counter[Identity]:
        """How often every reading stands in the journal; values by `values`."""
        self.values: dict[Identity, Any] = {}
        found: Counter[Identity] = Counter()
        after = 0
        while page := self.journal.segments(after, limit=200):
            for segment in page:
                for block in self.journal.blocks(segment.id):
                    if block.kind not in kinds:
                        continue
                    occurrence = dict(block.occ)
                    for column, cells in zip(block.layout.cols, block.columns, strict=True):
                        for row, (at, cell) in enumerate(
                            zip(as_list(block.times), as_list(cells), strict=True)
                        ):
                            key = (
                                block.meter, block.device, block.layout.profile, at,
                                occurrence.get(row, 0), column.obis, column.attribute,
                            )  # fmt: skip
                            found[key] += 1
                            self.values[key] = cell
            after = page[-1].id
        return found

    def truth(
        self, *, kinds: tuple[str, ...] = ("interval", "midnight"), held: bool = False
    ) -> dict[Identity, Any]:
        """Every row that the DLMS meters ever captured; `held`: those of the meters that are still in their places."""
        out: dict[Identity, Any] = {}
        for entry in self.fleet.truth():
            if entry["kind"] not in kinds or (held and not entry["held"]):
                continue
            occurrence = dict(map(tuple, entry["occ"]))
            for (obis, _, _, attribute), cells in zip(entry["cols"], entry["values"], strict=True):
                for row, (at, cell) in enumerate(zip(entry["t"], cells, strict=True)):
                    key = (
                        entry["meter"], entry["device"], entry["profile"], at,
                        occurrence.get(row, 0), obis, attribute,
                    )  # fmt: skip
                    out[key] = cell
        return out

    def agrees(self, **more: Any) -> None:
        """The journal holds what the DLMS meters captured: each reading once, unaltered, and nothing else."""
        truth, stored = self.truth(**more), self.stored(**more)
        dlms = {m.id for m in self.fleet.dlms}
        ours = {key: n for key, n in stored.items() if key[0] in dlms}
        assert sorted(truth.keys() - ours.keys())[:5] == []
        assert sorted(ours.keys() - truth.keys())[:5] == []
        assert {key: n for key, n in ours.items() if n != 1} == {}
        assert [key for key in truth if truth[key] != self.values[key]][:5] == []

    def codes(self, meter: str | None = None) -> Counter[str]:
        """Alarms raised, by code."""
        return Counter(a.code for a in self.alarms if meter is None or a.meter == meter)

    def fault(self, meter: str, what: str, seconds: float) -> None:
        self.fleet._fault(self.fleet.find(meter), what, seconds)


Make = Callable[..., Awaitable[Plant]]


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a Plant: `dlms` and `modbus` are groups of meters (dicts), the rest are settings of the gateway."""
    made: list[Plant] = []

    async def make(
        *, dlms: int | dict[str, Any] | list[Any] = 0, modbus: int | dict[str, Any] = 0, history_s: int = 6 * 3600,
        began: float = T0, **settings: Any,
    ) -> Plant:  # fmt: skip
        def group(kind: Any, wanted: Any) -> tuple[Any, ...]:
            if not wanted:
                return ()
            groups = wanted if isinstance(wanted, list) else [wanted]
            return tuple(kind(**({"count": g} if isinstance(g, int) else g)) for g in groups)

        spec = FleetSpec(
            dlms=group(DlmsGroup, dlms), modbus=group(ModbusGroup, modbus), history_s=history_s
        )
        settings.setdefault("line", {"timeout_s": 0.4})
        made.append(Plant(tmp_path, spec, ManualClock(civil=began), **settings))
        await made[-1].open()
        return made[-1]

    yield make
    for one in made:
        await one.close()
