"""A fleet of simulated meters, and drivers for them with real counters on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_core.acquisition.drivers import Driver, Site, open_driver
from edge_core.clock import Clock, SystemClock
from edge_core.config.keys import MeterKeys
from edge_core.config.models import load_model
from edge_core.config.schema import Line
from edge_core.config.schema import Meter as MeterConfig
from edge_core.domain import Block, Secret, as_list
from edge_core.journal import CounterStore
from simulators.dlms.meter import Meter
from simulators.dlms.suites import public
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec


class DictMemory(dict[str, Any]):
    """What a driver remembers, kept as JSON as the real one does."""

    def put(self, key: str, value: Any) -> None:
        self[key] = msgspec.json.decode(msgspec.json.encode(value))


def keys_of(meter: Meter) -> MeterKeys:
    """What the keys file of a gateway holds of a meter."""
    keys = meter.keys
    held = MeterKeys(
        guek=Secret(keys.guek),
        gak=Secret(keys.gak),
        password=Secret(keys.password.encode()),
        hls=Secret(keys.hls),
    )
    if not meter.suite:
        return held
    return msgspec.structs.replace(
        held,
        master=Secret(keys.master),
        sign=Secret(keys.client_sign),
        agree=Secret(keys.client_agree),
        meter_sign=Secret(public(meter.suite, keys.sign)),
        meter_agree=Secret(public(meter.suite, keys.agree)),
    )


class Bench:
    """A fleet, and what a gateway needs to read it."""

    def __init__(self, fleet: Fleet, folder: Path, clock: Clock) -> None:
        self.fleet, self.clock = fleet, clock
        self.site = Site(b"ODCtest1", "Asia/Kolkata")
        self.counters = CounterStore.open(folder / "counters.db", clock=clock)
        self.memories: dict[str, DictMemory] = {}
        self.frames: list[tuple[str, bytes]] = []

    @property
    def meter(self) -> Meter:
        return self.fleet.dlms[0]

    def driver(self, meter: Meter | None = None, **changes: Any) -> Driver:
        """A fresh session; `changes` replace fields of the meter's configuration, `keys`, `model`, `timeout_s`."""
        meter = meter or self.meter
        keys = changes.pop("keys", None) or keys_of(meter)
        model = changes.pop("model", None) or load_model(meter.model)
        line = changes.pop("line", None) or Line(
            id=meter.line,
            transport="tcp",
            framing=meter.framing,  # type: ignore[arg-type]
            timeout_s=changes.pop("timeout_s", 5.0),
        )
        config = MeterConfig(
            id=meter.id,
            line=meter.line,
            model=meter.model,
            address=meter.address,
            client=meter.client,
            security=meter.security,
        )  # type: ignore[arg-type]
        return open_driver(
            msgspec.structs.replace(config, **changes),
            line,
            model,
            keys,
            self.counters,
            self.memories.setdefault(meter.id, DictMemory()),
            self.clock,
            lambda direction, octets: self.frames.append((direction, octets)),
            site=self.site,
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes a Bench with one group of meters."""
    made: list[Bench] = []

    async def make(**group: Any) -> Bench:
        history_s = group.pop("history_s", 2 * 86_400)
        port = group.pop("port", 0)
        spec = FleetSpec(dlms=(DlmsGroup(**group),), history_s=history_s, port=port)
        fleet = Fleet(spec, tmp_path / "state", SystemClock())
        await fleet.open()
        made.append(Bench(fleet, tmp_path, SystemClock()))
        return made[-1]

    yield make
    for one in made:
        one.counters.close()
        await one.fleet.close()


def rows_of(blocks: list[Block]) -> list[tuple[Any, ...]]:
    """(time, occurrence, values by column) of every row, in order."""
    out = []
    for block in blocks:
        occurrence = dict(block.occ)
        names = [(c.obis, c.unit, c.scaler, c.attribute) for c in block.layout.cols]
        for row, at in enumerate(as_list(block.times)):
            cells = [as_list(column)[row] for column in block.columns]
            out.append((at, occurrence.get(row, 0), dict(zip(names, cells, strict=True))))
    return out


def truth_of(meter: Meter, kind: str, since: int = 0) -> list[tuple[Any, ...]]:
    """The same of what the meter holds."""
    truth = meter.device.truth(kind)
    occurrence = dict(truth["occ"])
    names = [tuple(c) for c in truth["cols"]]
    return [
        (
            at,
            occurrence.get(row, 0),
            {n: cells[row] for n, cells in zip(names, truth["values"], strict=True)},
        )
        for row, at in enumerate(truth["t"])
        if row >= truth["held_from"] and at >= since
    ]
