"""What Modbus meters remember: the load profile behind ABB's window and Siemens' last demand period, with their traps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from edge_core.acquisition.drivers import ProfileRequest, Site
from edge_core.acquisition.drivers.modbus import Driver, history
from edge_core.clock import ManualClock
from edge_core.config.models import load_model
from edge_core.config.schema import Line, Meter
from edge_core.domain import Column, Flag, as_list
from edge_core.errors import LocalProtocolError, MeterRefused
from simulators.fleet import Fleet
from simulators.modbus.units import Unit
from simulators.modbus.window import Channel
from simulators.spec import FleetSpec, ModbusGroup
from tests.integration.modbus.conftest import Memory

pytestmark = pytest.mark.integration

NOW = 1_764_000_000 + 7 * 900 + 125
IMPORT, EXPORT = "1.0.1.8.0.255", "1.0.2.8.0.255"
REQUESTS = {0x8700: 1, 0x8703: 1, 0x8704: 3, 0x8707: 1}


class Town:
    """One simulated unit, and sessions with it."""

    def __init__(self, fleet: Fleet, clock: ManualClock, framing: str) -> None:
        self.fleet, self.clock = fleet, clock
        self.unit: Unit = fleet.modbus[0]
        self.memory = Memory()
        self.frames: list[tuple[str, bytes]] = []
        self._line = Line(id="line", transport="tcp", framing=framing, baudrate=115_200)
        self._drivers: list[Driver] = []

    @property
    def window(self) -> Any:
        assert self.unit.window is not None
        return self.unit.window

    def driver(self, zone: str = "Asia/Kolkata", model: Any = None) -> Driver:
        meter = Meter(id="M1", line="line", model=self.unit.model, address=self.unit.address)
        made = Driver(
            meter, self._line, model or load_model(self.unit.model), None, None, self.memory, self.clock,
            lambda kind, octets: self.frames.append((kind, octets)), site=Site(timezone=zone),
        )  # fmt: skip
        self._drivers.append(made)
        return made

    async def rows(
        self, since: float | None = None, until: int | None = None, **how: Any
    ) -> dict[int, tuple[list[Any], int]]:
        """Values and flags by time, in the order they came."""
        found: dict[int, tuple[list[Any], int]] = {}
        asked = None if since is None else int(since)
        for block in await self.driver(**how).read_profile(
            ProfileRequest("interval", asked, until)
        ):
            bits = [0] * block.rows
            for first, count, value in block.flags:
                for row in range(first, first + count):
                    bits[row] |= value
            columns = [as_list(column) for column in block.columns]
            for row, at in enumerate(as_list(block.times)):
                assert at not in found
                found[at] = [column[row] for column in columns], bits[row]
        return found

    def truth(self, times: list[int]) -> dict[int, tuple[list[Any], int]]:
        return {at: ([self.unit.kept(c, at) for c in (IMPORT, EXPORT)], 0) for at in times}

    async def close(self) -> None:
        for driver in self._drivers:
            await driver.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(float(NOW))


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EMPTY_LOOKS_S", (0.01, 0.01, 0.01))


@pytest.fixture
async def town_of(tmp_path: Any, clock: ManualClock) -> AsyncIterator[Callable[..., Any]]:
    opened: list[Town] = []

    async def make(model: str, framing: str = "modbus-tcp") -> Town:
        spec = FleetSpec(modbus=(ModbusGroup(model=model, count=1, framing=framing),))
        fleet = Fleet(spec, tmp_path / f"state{len(opened)}", clock)
        await fleet.open()
        opened.append(Town(fleet, clock, framing))
        return opened[-1]

    yield make
    for town in opened:
        await town.close()
        await town.fleet.close()


@pytest.fixture
async def abb(town_of: Any) -> Town:
    town: Town = await town_of("abb-a43-a44")
    town.window.depth_s = 2 * 86_400
    return town


# --- the window


@pytest.mark.parametrize("framing", ["modbus-tcp", "modbus-rtu"])
async def test_the_whole_load_profile_comes_oldest_first(town_of: Any, framing: str) -> None:
    town = await town_of("abb-a43-a44", framing)
    town.window.depth_s = 2 * 86_400
    rows = await town.rows()
    stored = town.window.stored(15, NOW)
    assert list(rows) == stored
    assert rows == town.truth(stored)
    assert len(rows) == 2 * 96 + 1
    assert {(at, len(words)) for at, words in town.window.writes} <= set(REQUESTS.items())


async def test_a_block_says_what_it_is(abb: Town) -> None:
    (block,) = await abb.driver().read_profile(ProfileRequest("interval", since=NOW - 3600))
    assert (block.kind, block.layout.profile, block.layout.period) == (
        "interval", "1.0.99.1.0.255", 900,
    )  # fmt: skip
    assert block.layout.cols == (Column(IMPORT, "Wh", 1), Column(EXPORT, "Wh", 1))
    assert block.q == {"clock_offset_s": 0}
    assert not block.flags
    assert block.tz == 330


async def test_only_what_was_asked_for_is_read(abb: Town) -> None:
    stored = abb.window.stored(15, NOW)
    assert list(await abb.rows(since=stored[-3])) == stored[-3:]
    assert list(await abb.rows(since=stored[20], until=stored[40])) == stored[20:41]
    assert await abb.rows(since=NOW + 3600) == {}


async def test_long_reads_come_in_portions_that_join_exactly(abb: Town) -> None:
    found, flags = [], []
    async for blocks, more in abb.driver().portions(ProfileRequest("interval")):
        flags.append(more)
        found += [at for block in blocks for at in as_list(block.times)]
        assert sum(block.rows for block in blocks) <= 15 * history.WINDOWS
    assert found == abb.window.stored(15, NOW)
    assert flags == [True, False]


async def test_a_busy_meter_is_waited_for(abb: Town) -> None:
    abb.window.busy = 3
    stored = abb.window.stored(15, NOW)
    assert list(await abb.rows(since=stored[-9])) == stored[-9:]


async def test_a_window_that_is_not_ready_is_looked_at_again(abb: Town) -> None:
    abb.window.not_ready = 2
    stored = abb.window.stored(15, NOW)
    assert list(await abb.rows(since=stored[-9])) == stored[-9:]


async def test_missing_entries_make_no_rows(abb: Town) -> None:
    stored = abb.window.stored(15, NOW)
    abb.window.missing = {stored[50], stored[64], stored[65], stored[66]}
    rows = await abb.rows()
    assert list(rows) == [at for at in stored if at not in abb.window.missing]
    assert rows == abb.truth(list(rows))


async def test_another_master_that_moves_the_window_is_noticed(abb: Town) -> None:
    abb.window.moved_at = {3, 9}
    stored = abb.window.stored(15, NOW)
    rows = await abb.rows(since=stored[10])
    assert rows == abb.truth(stored[10:])


async def test_a_window_that_was_moved_at_once_is_set_anew_and_not_read_from_there(
    abb: Town,
) -> None:
    abb.window.moved_at = {1}
    stored = abb.window.stored(15, NOW)
    assert await abb.rows(since=stored[-4]) == abb.truth(stored[-4:])
    assert abb.window.looks == 3  # the strange block, and one of each channel


async def test_a_meter_that_restarts_in_the_middle_is_asked_again(abb: Town) -> None:
    abb.window.restarted_at = {4, 12}
    stored = abb.window.stored(15, NOW)
    assert await abb.rows(since=stored[10]) == abb.truth(stored[10:])


async def test_a_window_that_never_stays_ends_the_read(abb: Town) -> None:
    abb.window.moved_at = set(range(2, 400))
    with pytest.raises(MeterRefused, match="does not stay where it was put") as refused:
        await abb.rows(since=abb.window.stored(15, NOW)[100])
    assert "another master" in refused.value.hint


async def test_the_status_of_an_entry_becomes_flags(abb: Town) -> None:
    stored = abb.window.stored(15, NOW)[-6:]
    abb.window.status = {
        stored[0]: 0b000011,
        stored[1]: 0b000101,
        stored[2]: 0b011001,
        stored[3]: 0b100001,
        stored[4]: 0b000000,
    }
    rows = await abb.rows(since=stored[0])
    assert [flags for _, flags in rows.values()] == [
        Flag.POWER_DOWN,
        Flag.CLOCK_ADJUSTED,
        Flag.PARTIAL | Flag.CLOCK_ADJUSTED,
        Flag.NOT_VALID,
        Flag.NOT_VALID,
        0,
    ]
    assert rows[stored[4]][0] == [None, None]  # no entry behind the stamp
    assert rows[stored[3]][0] == abb.truth([stored[3]])[stored[3]][0]  # doubtful, and said so


async def test_a_clock_that_is_ahead_is_told_by_the_newest_entry(abb: Town) -> None:
    abb.unit.set_clock(2 * 3600)
    (block,) = await abb.driver().read_profile(ProfileRequest("interval", since=NOW))
    newest = abb.window.stored(15, NOW)[-1] + 2 * 3600  # as the meter stamps it
    assert as_list(block.times)[-1] == newest
    assert block.q == {"clock_offset_s": newest - NOW}
    assert all(bits & Flag.CLOCK_INVALID for _, _, bits in block.flags)
    assert sum(count for _, count, _ in block.flags) == block.rows


async def test_a_clock_that_is_behind_is_told_too(abb: Town) -> None:
    abb.unit.set_clock(-3 * 3600)
    (block,) = await abb.driver().read_profile(ProfileRequest("interval", since=NOW - 4 * 3600))
    offset = block.q["clock_offset_s"]
    assert -3 * 3600 - 1 <= offset <= -3 * 3600 + 900


@pytest.mark.parametrize("since_h", [30, 13, 12.5, 12, 11.5, 11, 1])
async def test_the_hour_that_comes_twice_is_told_by_the_order(
    abb: Town, clock: ManualClock, since_h: float
) -> None:
    """Europe/Berlin, 2025-10-26: 02:00 to 03:00 twice, the second time from 01:00 UTC on."""
    clock.civil = 1_761_480_000.0 - 900 + 40  # 2025-10-26 11:45:40 UTC
    abb.window.zone = ZoneInfo("Europe/Berlin")
    stored = abb.window.stored(15, int(clock.civil))
    since = clock.civil - since_h * 3600
    rows = await abb.rows(since=since, zone="Europe/Berlin")
    due = [at for at in stored if at >= int(since)]
    assert list(rows) == due
    assert rows == abb.truth(due)


async def test_the_hour_that_is_left_out_is_no_gap(abb: Town, clock: ManualClock) -> None:
    clock.civil = 1_743_300_000.0 + 20  # 2025-03-30 02:00:20 UTC, an hour after the change
    abb.window.zone = ZoneInfo("Europe/Berlin")
    rows = await abb.rows(since=clock.civil - 6 * 3600, zone="Europe/Berlin")
    due = [at for at in abb.window.stored(15, int(clock.civil)) if at >= clock.civil - 6 * 3600 - 1]
    assert list(rows) == due


async def test_a_meter_without_dst_has_a_zone_of_its_own(abb: Town, clock: ManualClock) -> None:
    clock.civil = 1_761_480_000.0 + 40
    abb.window.zone = ZoneInfo("Etc/GMT-1")
    model = load_model("abb-a43-a44")
    model = msgspec.structs.replace(
        model, history=msgspec.structs.replace(model.history, zone="Etc/GMT-1")
    )
    since = int(clock.civil - 14 * 3600)
    rows = await abb.rows(since=since, zone="Europe/Berlin", model=model)
    assert list(rows) == [at for at in abb.window.stored(15, int(clock.civil)) if at >= since]


async def test_channels_that_store_something_else_are_left_out(abb: Town) -> None:
    abb.window.channels = [None, Channel("1.0.32.27.0.255", -1, 15), Channel(EXPORT, 1, 15)]
    (block,) = await abb.driver().read_profile(ProfileRequest("interval", since=NOW - 900))
    assert [c.obis for c in block.layout.cols] == [EXPORT]


async def test_channels_of_another_interval_only_are_refused_with_what_there_is(abb: Town) -> None:
    abb.window.channels = [Channel(IMPORT, 1, 30)]
    with pytest.raises(
        MeterRefused, match=r"every 900 s; there are 1\.0\.1\.8\.0\.255 every 30 min"
    ):
        await abb.rows()


async def test_channels_that_are_set_up_anew_are_noticed_and_learned_again(abb: Town) -> None:
    stored = abb.window.stored(15, NOW)
    await abb.rows(since=stored[-2])
    abb.window.channels = [None, None, Channel(IMPORT, 1, 15), Channel(EXPORT, 1, 15)]
    with pytest.raises(MeterRefused, match="set up anew"):
        await abb.rows(since=stored[-2])
    assert await abb.rows(since=stored[-2]) == abb.truth(stored[-2:])


async def test_a_channel_that_lacks_entries_gives_null(abb: Town) -> None:
    """The export channel was set up later than the import channel."""
    stored = abb.window.stored(15, NOW)[-20:]
    abb.window.channels[1] = Channel(EXPORT, 1, 15)
    plain = abb.window.stored
    begun = stored[10]

    def later(minutes: int, now: int) -> list[int]:
        times: list[int] = plain(minutes, now)
        late = abb.window._channel == 2
        return [at for at in times if not (late and at < begun)]

    abb.window.stored = later
    rows = await abb.rows(since=stored[0])
    assert list(rows) == stored
    assert [values[1] is None for values, _ in rows.values()] == [True] * 10 + [False] * 10


# --- nothing else is ever written


async def test_no_other_register_can_be_written(abb: Town) -> None:
    driver = abb.driver()
    await driver.identify()
    reader = driver._reader
    assert reader is not None
    frames = len(abb.frames)
    model: Any = load_model("abb-a43-a44")
    for address, words in (
        (0x8C21, (1, 2, 3)),  # the set-up of a channel
        (0x8704, (1, 2)),  # half a time
        (0x8703, (1, 2)),
        (20480, (0, 0, 0, 0)),  # the energy
        (0x8700, ()),
    ):
        with pytest.raises(LocalProtocolError):
            await reader.write(address, words, model.history.requests)
    assert len(abb.frames) == frames  # nothing left us
    assert not abb.window.writes


async def test_a_meter_without_a_window_is_never_written_to(town_of: Any) -> None:
    town = await town_of("siemens-pac4200")
    for kind in ("interval", "midnight", "instantaneous"):
        await town.driver().read_profile(ProfileRequest(kind))
    await town.driver().read_registers("nameplate")
    sent = [octets for kind, octets in town.frames if kind == "send"]
    assert {octets[7] for octets in sent} <= {3, 4}


# --- the demand period that ended last


@pytest.fixture
async def pac(town_of: Any) -> Town:
    town: Town = await town_of("siemens-pac4200")
    return town


def energy(unit: Unit, end: int) -> list[int]:
    """Energies of a quarter hour in hundredths, by the float that the meter holds."""
    powers = [unit.truth(f"{n}", end) for n in (
        "active_demand_import", "reactive_demand_import", "active_demand_export", "reactive_demand_export",
    )]  # fmt: skip
    return [round(power / 4 * 100) for power in powers if power is not None]


async def test_the_last_demand_period_is_a_row(pac: Town) -> None:
    (block,) = await pac.driver().read_profile(ProfileRequest("interval"))
    end = NOW - 125
    assert as_list(block.times) == [end]
    assert [(c.obis, c.unit, c.scaler) for c in block.layout.cols] == [
        ("1.0.1.29.0.255", "Wh", -2),
        ("1.0.3.29.0.255", "varh", -2),
        ("1.0.2.29.0.255", "Wh", -2),
        ("1.0.4.29.0.255", "varh", -2),
    ]
    assert [as_list(c)[0] for c in block.columns] == energy(pac.unit, NOW)
    sums = pac.unit.quantities.energies
    assert as_list(block.columns[0])[0] == 100 * (sums(end)["import"] - sums(end - 900)["import"])
    assert not block.flags
    assert block.q == {"clock_offset_s": 0, "length_s": 900}


async def test_a_late_poll_loses_no_interval(pac: Town, clock: ManualClock) -> None:
    seen = []
    for late in (3, 899, 450, 1):
        clock.civil = 1_764_000_000 + 900 * (len(seen) + 4) + late
        (block,) = await pac.driver().read_profile(ProfileRequest("interval"))
        seen += as_list(block.times)
        assert [as_list(c)[0] for c in block.columns] == energy(pac.unit, int(clock.civil))
    assert seen == [1_764_000_000 + 900 * (i + 4) for i in range(4)]


async def test_a_row_that_is_known_is_not_read_again(pac: Town) -> None:
    assert await pac.driver().read_profile(ProfileRequest("interval", since=NOW)) == []
    assert await pac.driver().read_profile(ProfileRequest("interval", until=NOW - 900)) == []


@pytest.mark.parametrize("offset", [40, -40])
async def test_a_clock_that_is_off_moves_the_interval_and_is_told(pac: Town, offset: int) -> None:
    pac.unit.set_clock(offset)
    (block,) = await pac.driver().read_profile(ProfileRequest("interval"))
    assert as_list(block.times) == [NOW - 125]  # what the meter calls the quarter hour
    assert abs(block.q["clock_offset_s"] - offset) <= 1
    assert [as_list(c)[0] for c in block.columns] == energy(pac.unit, NOW)


async def test_periods_that_end_between_the_quarter_hours_are_refused(pac: Town) -> None:
    pac.unit.set_clock(400)
    with pytest.raises(MeterRefused, match="demand periods end 400 s before") as refused:
        await pac.driver().read_profile(ProfileRequest("interval"))
    assert "synchronise" in refused.value.hint


@pytest.mark.parametrize(("length", "flag"), [(600, Flag.PARTIAL), (960, Flag.CLOCK_ADJUSTED)])
async def test_a_period_of_another_length_is_flagged(
    pac: Town, monkeypatch: pytest.MonkeyPatch, length: int, flag: Flag
) -> None:
    whole = pac.unit.quantities.value
    monkeypatch.setattr(
        pac.unit.quantities, "value",
        lambda name, at: type(whole("frequency", at))(length) if name == "demand_period" else whole(name, at),
    )  # fmt: skip
    (block,) = await pac.driver().read_profile(ProfileRequest("interval"))
    assert block.flags == ((0, 1, int(flag)),)
    assert block.q["length_s"] == length
    power = pac.unit.truth("active_demand_import", NOW)
    assert power is not None
    assert as_list(block.columns[0])[0] == round(power * length / 3600 * 100)


async def test_before_the_first_period_has_ended_there_is_no_row(
    pac: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pac.unit.quantities.value
    monkeypatch.setattr(
        pac.unit.quantities, "value",
        lambda name, at: type(whole("frequency", at))(0) if name == "demand_period" else whole(name, at),
    )  # fmt: skip
    assert await pac.driver().read_profile(ProfileRequest("interval")) == []


async def test_a_read_over_the_end_of_a_period_is_repeated(pac: Town, clock: ManualClock) -> None:
    clock.civil = 1_764_000_900.0  # elapsed 0: the period may have ended while it was read
    await pac.driver().identify()
    before = pac.unit.requests
    (block,) = await pac.driver().read_profile(ProfileRequest("interval"))
    assert as_list(block.times) == [1_764_000_900]
    assert pac.unit.requests - before >= 2
    await asyncio.sleep(0)
