"""A slave that misbehaves in every way: never a wrong value, never a hang, and an error that names the cause."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.drivers.modbus import reader
from edge_core.acquisition.drivers.modbus import rtu as rtu_line
from edge_core.acquisition.drivers.modbus import tcp as tcp_line
from edge_core.errors import LineSilent, MalformedReply, MeterError, MeterRefused

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def brisk(monkeypatch):
    """Short waits, so that the suite is; their proportions stay."""
    monkeypatch.setattr(tcp_line, "ANSWER_S", 0.4)
    monkeypatch.setattr(reader, "BUSY_FIRST_S", 0.02)
    for name, value in (
        ("ANSWER_DELAY_S", 0.2), ("FIRST_DELAY_S", 0.3), ("SPARE_S", 0.05), ("LATE_S", 0.6), ("QUIET_S", 0.2),
        ("DOUBT_S", 0.2), ("BABBLE_S", 0.5),
    ):  # fmt: skip
        monkeypatch.setattr(rtu_line, name, value)


def values(readings):
    return {r.name: (r.value, r.scaler, r.unit) for r in readings}


def decoy(slave, asked):
    """Another unit's values: what a mixed-up answer would bring."""
    return slave.pdu(
        type(asked)(asked.transaction, 2, asked.function, asked.address, asked.count, asked.raw)
    )


async def silence(slave, asked, send):
    pass


async def late(slave, asked, send):
    await asyncio.sleep(0.4)
    send(slave.frame(asked))


async def wrong_unit(slave, asked, send):
    send(slave.frame(asked, decoy(slave, asked), unit=2))


async def wrong_function(slave, asked, send):
    pdu = decoy(slave, asked)
    send(slave.frame(asked, bytes([pdu[0] ^ 7]) + pdu[1:]))


async def unknown_function(slave, asked, send):
    send(slave.frame(asked, bytes([0x63]) + decoy(slave, asked)[1:]))


async def fewer(slave, asked, send):
    pdu = decoy(slave, asked)
    send(slave.frame(asked, bytes([pdu[0], pdu[1] - 2]) + pdu[4:]))


async def half_frame(slave, asked, send):
    send(slave.frame(asked)[:7])


async def garbage(slave, asked, send):
    send(b"\x55\xaa\x00\x00\x13\x37" * 3)


async def reset(slave, asked, send):
    send(slave.frame(asked)[:6])
    await asyncio.sleep(0.01)
    slave.drop()


async def hang_up(slave, asked, send):
    slave.drop()


async def bad_crc(slave, asked, send):
    frame = bytearray(slave.frame(asked))
    frame[4] ^= 1
    send(bytes(frame))


async def noise_before(slave, asked, send):
    send(b"\x00\xff\xff")
    await asyncio.sleep(0.01)
    send(slave.frame(asked))


async def noise_after(slave, asked, send):
    send(slave.frame(asked) + b"\xff\x00\x01")


async def echo(slave, asked, send):
    send(asked.raw)
    send(slave.frame(asked))


async def in_pieces(slave, asked, send):
    for octet in slave.frame(asked):
        send(bytes([octet]))
        await asyncio.sleep(0.001)


async def twice(slave, asked, send):
    send(slave.frame(asked))
    send(slave.frame(asked))


async def stale_first(slave, asked, send):
    send(slave.frame(asked, decoy(slave, asked), transaction=(asked.transaction - 1) % 65536))
    send(slave.frame(asked))


async def other_protocol(slave, asked, send):
    send(slave.frame(asked, protocol=1))


def exception(code):
    async def refuse(slave, asked, send):
        send(slave.frame(asked, bytes([asked.function | 0x80, code])))

    return refuse


ON_ALL = (
    silence, late, wrong_unit, wrong_function, unknown_function, fewer, half_frame, garbage, in_pieces, twice,
    exception(5), exception(6),
)  # fmt: skip


@pytest.mark.parametrize("fault", ON_ALL, ids=lambda f: getattr(f, "__name__", "fault"))
async def test_one_fault_is_overcome(bench, truth, fault):
    """After the first contact one bad answer costs a repeat, never a wrong value."""
    bench.slave.faults = [None, None, None, fault]
    assert values(await bench.driver().read_registers("instantaneous")) == truth
    assert bench.slave.most_open <= 1


@pytest.mark.parametrize("fault", [bad_crc, noise_before, noise_after, echo])
async def test_one_fault_of_a_serial_line_is_overcome(rtu_bench, truth, fault):
    rtu_bench.slave.faults = [None, fault, None, fault]
    assert values(await rtu_bench.driver().read_registers("instantaneous")) == truth


@pytest.mark.parametrize("fault", [reset, hang_up, stale_first, other_protocol])
async def test_one_fault_of_a_connection_is_overcome(tcp_bench, truth, fault):
    tcp_bench.slave.faults = [None, fault, None, fault]
    assert values(await tcp_bench.driver().read_registers("instantaneous")) == truth
    assert tcp_bench.slave.most_open == 1


@pytest.mark.parametrize("fault", [noise_before, noise_after, echo, in_pieces, twice])
async def test_lines_that_always_do_so_are_read_all_the_same(rtu_bench, truth, fault):
    rtu_bench.slave.faults = [fault] * 50
    assert values(await rtu_bench.driver().read_registers("instantaneous")) == truth


async def test_an_announced_echo_is_dropped(rtu_bench, truth):
    rtu_bench.line = msgspec.structs.replace(rtu_bench.line, echo=True)
    rtu_bench.slave.faults = [echo] * 50
    assert values(await rtu_bench.driver().read_registers("instantaneous")) == truth


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (silence, LineSilent, "no answer"),
        (wrong_unit, MalformedReply, "unit 2 answered instead of unit 1"),
        (wrong_function, MalformedReply, "function 3 answered instead of 4"),
        (fewer, MalformedReply, "1 registers answered instead of 2"),
        (half_frame, MalformedReply, "only"),
        (exception(1), MeterRefused, "illegal function"),
        (exception(4), MeterRefused, "device failure"),
        (exception(6), MeterRefused, "busy"),
        (exception(10), LineSilent, "path not available"),
        (exception(11), LineSilent, "did not respond"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
async def test_a_lasting_fault_is_named_with_meter_and_step(bench, fault, error, words):
    bench.slave.faults = [fault] * 50
    with pytest.raises(error, match=words) as raised:
        await bench.driver().read_registers("instantaneous")
    assert raised.value.meter == "M1"
    assert raised.value.during == "read 2 input registers from 200"
    assert raised.value.hint


async def test_a_dead_unit_costs_its_neighbour_one_time_out(bench, truth):
    bench.slave.hold(3, bench.model, {})
    del bench.slave.registers[3]
    dead, alive = bench.driver(3, memory=type(bench.memory)()), bench.driver(1)

    async def fail():
        with pytest.raises(LineSilent):
            await dead.read_registers("instantaneous")

    (_, found) = await asyncio.gather(fail(), alive.read_registers("instantaneous"))
    assert values(found) == truth
    assert [a.unit for a in bench.slave.asked].count(3) == 1
    assert bench.slave.most_open <= 1


async def test_a_late_answer_is_never_another_registers_value(rtu_bench):
    """Trap 1 of the library: register 100's answer, late, taken for register 102's."""

    async def very_late(slave, asked, send):
        await asyncio.sleep(0.45)
        send(slave.frame(asked))

    driver = rtu_bench.driver()
    await driver.identify()
    for _ in range(3):
        rtu_bench.slave.faults = [very_late, None]
        for name, due in (("active_energy_import", 4_000_000), ("active_energy_export", 77)):
            (reading,) = await driver.read_registers(name)
            assert reading.value == due


def held_back():
    """A pair of faults: an answer that never came in time comes with the next request, in front of its own answer."""
    kept = []

    async def keep(slave, asked, send):
        kept.append(slave.frame(asked))

    async def bring(slave, asked, send):
        send(kept[0])
        send(slave.frame(asked))

    async def bring_alone(slave, asked, send):
        send(kept[0])

    return keep, bring, bring_alone


async def test_what_is_asked_after_a_lost_answer_has_another_size(rtu_bench):
    """However late it comes, the answer for register 100 fits no request for register 102."""
    driver = rtu_bench.driver()
    await driver.identify()
    rtu_bench.slave.asked.clear()
    keep, bring, _ = held_back()
    rtu_bench.slave.faults = [keep, bring]
    (reading,) = await driver.read_registers("active_energy_import")
    assert reading.value == 4_000_000
    rtu_bench.slave.faults = [bring]
    (reading,) = await driver.read_registers("active_energy_export")
    assert reading.value == 77
    first, *others = [(a.address, a.count) for a in rtu_bench.slave.asked]
    assert first == (100, 2)
    assert set(others) == {(100, 4)}


async def test_a_late_answer_in_place_of_the_right_one_is_not_taken(rtu_bench):
    driver = rtu_bench.driver()
    await driver.identify()
    keep, _, bring_alone = held_back()
    rtu_bench.slave.faults = [keep, bring_alone]
    (reading,) = await driver.read_registers("active_energy_export")
    assert reading.value == 77


async def test_two_answers_where_no_other_size_can_be_asked_are_not_believed(rtu_bench):
    """The frequency stands alone: its late answer is told by the second one."""
    driver = rtu_bench.driver()
    await driver.identify()
    rtu_bench.slave.asked.clear()
    keep, bring, _ = held_back()
    rtu_bench.slave.faults = [keep, bring]
    (reading,) = await driver.read_registers("frequency")
    assert reading.value == 5002
    assert [(a.address, a.count) for a in rtu_bench.slave.asked] == [(8, 2)] * 3


async def test_a_neighbour_that_is_refused_is_left_out_again(rtu_bench):
    driver = rtu_bench.driver()
    await driver.identify()
    rtu_bench.slave.refused = {102, 103}
    rtu_bench.slave.faults = [silence]
    (reading,) = await driver.read_registers("active_energy_import")
    assert reading.value == 4_000_000


async def test_a_late_answer_of_a_sibling_counter_never_enters_an_interval(rtu_bench, monkeypatch):
    """Import and export have one size; their answers are mixed up as thoroughly as a line can."""
    monkeypatch.setattr(reader, "RETRIES", 8)  # a busy machine loses answers of its own
    for _ in range(3):
        driver = rtu_bench.driver()
        await driver.identify()
        keep, bring, _ = held_back()
        rtu_bench.slave.faults = [keep, bring]
        (block,) = await driver.read_profile(ProfileRequest("interval"))
        await driver.close()
        assert [list(c) for c in block.columns] == [[4_000_000], [77]]


async def test_a_cancelled_read_leaves_nothing_behind(rtu_bench):
    driver = rtu_bench.driver()
    await driver.identify()

    async def slow(slave, asked, send):
        await asyncio.sleep(0.3)
        send(slave.frame(asked))

    rtu_bench.slave.faults = [slow]
    task = asyncio.create_task(driver.read_registers("active_energy_import"))
    while not rtu_bench.slave.asked or rtu_bench.slave.asked[-1].address != 100:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (reading,) = await driver.read_registers("active_energy_export")
    assert reading.value == 77


async def test_a_line_that_babbles_ends_the_request(rtu_bench):
    rtu_bench.line = msgspec.structs.replace(
        rtu_bench.line, turnaround_ms=400
    )  # of silence are due
    stop = asyncio.Event()

    async def babble(slave, asked, send):
        while not stop.is_set():
            send(b"\xa5" * 4)
            await asyncio.sleep(0.0005)

    rtu_bench.slave.faults = [None, babble]
    with pytest.raises(MeterError, match="never falls silent"):
        await rtu_bench.driver().read_registers("instantaneous")
    stop.set()


async def test_after_the_gateway_was_away_reading_goes_on(tcp_bench, truth):
    driver = tcp_bench.driver()
    await driver.identify()
    tcp_bench.slave.drop()
    assert values(await driver.read_registers("instantaneous")) == truth
    assert tcp_bench.slave.most_open == 1


async def test_fifty_units_behind_a_dead_gateway_do_not_each_cost_an_attempt(
    tcp_bench, monkeypatch
):
    tcp_bench.place = "127.0.0.1:9/{}"
    attempts = []
    connect = tcp_line.AsyncModbusTcpClient.connect

    async def counted(client):
        attempts.append(client)
        return await connect(client)

    monkeypatch.setattr(tcp_line.AsyncModbusTcpClient, "connect", counted)
    for unit in range(1, 51):
        with pytest.raises(LineSilent):
            await tcp_bench.driver(unit, memory=type(tcp_bench.memory)()).identify()
    assert 1 <= len(attempts) < 10  # pauses of 0.2, 0.4, 0.8 ... s between them
