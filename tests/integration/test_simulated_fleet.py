"""A fleet on real sockets: files for a gateway, orders, faults on the line, pushes, thousands of meters, the command."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import socket
import stat
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.clock import SystemClock
from edge_core.domain import alarm_id
from edge_core.errors import ConfigError
from simulators.dlms import codec
from simulators.dlms.meter import Meter
from simulators.fleet import Fleet
from simulators.spec import DlmsGroup, FleetSpec, ModbusGroup, load_spec, running_id, span_s
from tests.conftest import eventually

pytestmark = pytest.mark.integration
SAMPLE = Path(__file__).parents[2] / "simulators" / "sample.toml"
PUBLIC_AARQ = bytes.fromhex("601da109060760857405080101be10040e01000000065f1f0400401e5d0400")
SERIAL = b"\xc0\x01\xc1\x00\x01\x00\x00\x60\x01\x00\xff\x02\x00"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    spec = FleetSpec(
        dlms=(DlmsGroup(count=4), DlmsGroup(count=1, model="idis", line="feeder-2")),
        modbus=(ModbusGroup(count=2), ModbusGroup(count=1, model="abb-b23-b24", line="bus-2")),
    )
    made = Fleet(spec, tmp_path / "state", SystemClock())
    await made.open()
    yield made
    await made.close()


def wrapped(apdu: bytes, client: int = 16) -> bytes:
    return (
        b"\x00\x01" + client.to_bytes(2, "big") + b"\x00\x01" + len(apdu).to_bytes(2, "big") + apdu
    )


class Line:
    """A public client, one question at a time."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    async def __aenter__(self) -> Line:
        self.reader, self.writer = await asyncio.open_connection(self.meter.host, self.meter.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, apdu: bytes, within_s: float = 5) -> bytes:
        self.writer.write(wrapped(apdu))
        async with asyncio.timeout(within_s):
            head = await self.reader.readexactly(8)
            return await self.reader.readexactly(int.from_bytes(head[6:], "big"))


async def test_files_for_a_gateway(fleet: Fleet, tmp_path: Path) -> None:
    fleet.write_files(tmp_path / "out")
    with (tmp_path / "out/meters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == [f"GP{1_000_001 + k}" for k in range(8)]
    assert rows[0] == {
        "id": "GP1000001",
        "line": "feeder-1",
        "model": "is15959-3ph",
        "address": f"127.0.0.1:{fleet.dlms[0].port}",
        "client": "48",
        "security": "hls5",
    }
    assert rows[5]["address"].endswith("/1")
    assert rows[6]["address"].endswith("/2")
    keys = tmp_path / "out/keys.toml"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    document = tomllib.loads(keys.read_text())
    assert bytes.fromhex(document["GP1000003"]["guek"]) == fleet.dlms[2].keys.guek
    assert set(document["GP1000003"]) == {"guek", "gak", "password", "hls"}
    lines = tomllib.loads((tmp_path / "out/lines.toml").read_text())["lines"]
    assert [(line["id"], line["framing"]) for line in lines] == [
        ("feeder-1", "wrapper"),
        ("feeder-2", "wrapper"),
        ("bus-1", "modbus-tcp"),
        ("bus-2", "modbus-tcp"),
    ]


async def test_faults_on_the_line(fleet: Fleet) -> None:
    meter = fleet.dlms[0]

    async def fault(what: str) -> None:
        assert await fleet.obey({"do": "fault", "meter": meter.id, "what": what, "for": 60})
        assert (await fleet.obey({"do": "status"}))["faults"] == {meter.id: [what]}

    await fault("silent")
    async with Line(meter) as line:
        with pytest.raises(TimeoutError):
            await line.ask(PUBLIC_AARQ, 0.2)
        meter.faults.end("silent")
        assert (await line.ask(SERIAL))[4:] == codec.octet_string(
            b"70000001"
        )  # heard and counted all the same
    await fault("refuse")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        async with Line(meter) as line:
            await line.ask(PUBLIC_AARQ)
    meter.faults.end("refuse")
    for what in ("garbage", "cut"):
        async with Line(meter) as line:
            await line.ask(PUBLIC_AARQ)
            await fault(what)
            line.writer.write(wrapped(SERIAL))
            got = await asyncio.wait_for(line.reader.read(), 5)  # until the meter closes
            whole = wrapped(b"\xc4\x01\xc1\x00" + codec.octet_string(b"70000001"), 1)
            assert len(got) == (len(whole) if what == "garbage" else len(whole) // 2)
            assert got != whole
            meter.faults.end(what)
    await fault("slow")
    async with Line(meter) as line:
        start = asyncio.get_running_loop().time()
        await line.ask(PUBLIC_AARQ)
        assert asyncio.get_running_loop().time() - start > 0.1
    meter.faults.end("slow")
    async with Line(fleet.dlms[1]) as line:  # neighbours answer
        await line.ask(PUBLIC_AARQ)


async def test_broken_frames_close_the_line(fleet: Fleet) -> None:
    for octets in (
        b"\x00\x02\x00\x10\x00\x01\x00\x01\xc0",
        b"\x00\x01\x00\x10\x00\x09\x00\x01\xc0",
        wrapped(b"\xc0"),
    ):
        async with Line(fleet.dlms[0]) as line:
            line.writer.write(octets)
            assert await asyncio.wait_for(line.reader.read(), 5) == b""
    async with Line(fleet.dlms[0]) as line:
        for client in range(100, 106):  # more clients than a line bears
            line.writer.write(wrapped(PUBLIC_AARQ, client))
        await asyncio.wait_for(line.reader.read(), 5)


async def test_orders_that_make_no_sense(fleet: Fleet) -> None:
    for order, why in (
        ({"do": "dance"}, "no order"),
        ({}, "do is missing"),
        ({"do": "fault", "meter": "GP1", "what": "silent", "for": 1}, "no meter"),
        ({"do": "fault", "meter": 99, "what": "silent", "for": 1}, "no meter"),
        ({"do": "fault", "meter": 0, "what": "lazy", "for": 1}, "no fault"),
        ({"do": "fault", "meter": 0, "what": "silent"}, "for is missing"),
        ({"do": "gasp", "meter": 0, "to": "http://x"}, "neither udp"),
        ({"do": "gasp", "meter": 0, "to": "udp://127.0.0.1:9", "how": "loud"}, "no way"),
        ({"do": "gasp", "meter": 0, "to": "udp://127.0.0.1:9", "how": "replay"}, "nothing yet"),
        ({"do": "gasp", "meter": 4, "to": "udp://127.0.0.1:9"}, "no last gasp"),
        ({"do": "step-back", "meter": "GP1000006"}, "is a Modbus meter"),
        ({"do": "modbus", "meter": "GP1000001", "points": []}, "is a DLMS meter"),
        ({"do": "truth", "file": "/nonexistent/truth"}, "No such file"),
    ):
        answer = await fleet.obey(order)
        assert why in answer["error"], order


class Listener(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.heard: list[tuple[bytes, tuple[str, int]]] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append((data, addr))


@pytest.fixture
async def listener() -> AsyncIterator[tuple[Listener, str]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Listener, local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    yield protocol, f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    transport.close()


def opened(meter: Meter, datagram: bytes) -> list[Any]:
    """Body of a ciphered notification of that meter: device id, push setup, clock octets, status word."""
    assert datagram[:2] + datagram[4:6] == b"\x00\x01\x00\x40"
    apdu = datagram[8:]
    assert apdu[:2] == b"\xdb\x08"
    size, at = codec.read_length(apdu, 10)
    plain = codec.unseal(meter.keys.guek, meter.keys.gak, apdu[2:10], codec.take(apdu, at, size)[0])
    assert plain[0] == 0x0F
    assert plain[5] == 0  # no date-time
    assert plain[6:8] == b"\x02\x04"
    out, at = [], 8
    for _ in range(3):
        value, at = codec.parse(plain, at)
        out.append(value)
    assert plain[at : at + 3] == b"\x04\x81\x80"
    return [*out, plain[at + 3 :]]


async def test_last_gasps_genuine_and_forged(fleet: Fleet, listener: tuple[Listener, str]) -> None:
    heard, to = listener
    meter = fleet.dlms[0]
    reports = {}
    for how, count in (
        ("genuine", 1),
        ("retry", 2),
        ("duplicate", 3),
        ("replay", 1),
        ("plain", 1),
        ("forged-tag", 1),
        ("forged-key", 1),
    ):
        heard.heard.clear()
        report = await fleet.obey({"do": "gasp", "meter": meter.id, "to": to, "how": how})
        await eventually(lambda count=count: len(heard.heard) == count)
        reports[how] = (report, [d for d, _ in heard.heard])
        assert report["datagrams"] == count
        assert report["genuine"] == (how in ("genuine", "retry", "duplicate"))
        assert all(
            addr == (meter.host, meter.port) for _, addr in heard.heard
        )  # the meter's own address
    report, (datagram,) = reports["genuine"]
    device_id, setup, clock, word = opened(meter, datagram)
    assert device_id == meter.device.device_id.encode()
    assert setup == codec.logical_name("0.4.25.9.0.255")
    assert codec.read_clock(clock, meter.device.zone, east=True, default=0) == report["at"]
    assert int.from_bytes(word, "big") == 1 << (127 - 85)
    assert report["id"] == alarm_id(meter.id, "last-gasp", (), report["at"])
    retry = reports["retry"][1]
    assert retry[0] != retry[1]
    assert len(set(reports["duplicate"][1])) == 1
    assert reports["replay"][1][0] == reports["duplicate"][1][0]
    with pytest.raises(codec.BadTag):
        opened(meter, reports["forged-tag"][1][0])
    with pytest.raises(codec.BadTag):
        opened(meter, reports["forged-key"][1][0])
    assert reports["plain"][1][0][8] == 0x0F
    codes = meter.device.truth("events-2")
    assert codes["values"][0] == [101] * 3  # one row an event that really was
    assert codes["t"][0] == report["at"]
    assert len(fleet.gasps) == 3


async def test_idis_alarm_descriptor(fleet: Fleet, listener: tuple[Listener, str]) -> None:
    heard, to = listener
    meter = fleet.dlms[4]
    report = await fleet.obey({"do": "alarm", "meter": meter.id, "to": to, "descriptor": 16})
    await eventually(lambda: heard.heard)
    apdu = heard.heard[0][0][8:]
    size, at = codec.read_length(apdu, 10)
    plain = codec.unseal(meter.keys.guek, meter.keys.gak, apdu[2:10], codec.take(apdu, at, size)[0])
    assert plain[5] == 12
    assert codec.read_clock(plain[6:18], meter.device.zone, east=False, default=0) == report["at"]
    assert codec.parse(plain, 18) == (
        [codec.logical_name("0.4.25.9.0.255"), b"ODI170000005", 16],
        len(plain),
    )
    for order, why in (
        ({"meter": fleet.dlms[0].id, "descriptor": 16}, "no alarm descriptor"),
        ({"meter": meter.id, "descriptor": 0}, "32 bits"),
    ):
        assert why in (await fleet.obey({"do": "alarm", "to": to, **order}))["error"]


async def test_first_breath_by_tcp(fleet: Fleet) -> None:
    meter, got = fleet.dlms[1], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    to = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    report = await fleet.obey({"do": "restore", "meter": meter.id, "to": to})
    await eventually(lambda: got)
    assert int.from_bytes(opened(meter, got[0])[3], "big") == 1 << (127 - 86)
    assert report["code"] == "restore"
    assert meter.device.truth("events-2")["values"][0] == [102]
    server.close()


async def test_outage_silences_and_breathes_again(
    fleet: Fleet, listener: tuple[Listener, str]
) -> None:
    heard, to = listener
    meter = fleet.dlms[2]
    answer = await fleet.obey({"do": "outage", "meters": [meter.id], "to": to, "for": 0.4})
    assert [g["code"] for g in answer["gasps"]] == ["last-gasp"]
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        async with Line(meter) as line:
            await line.ask(PUBLIC_AARQ)
    await eventually(lambda: len(heard.heard) == 2)
    assert int.from_bytes(opened(meter, heard.heard[1][0])[3], "big") == 1 << (127 - 86)
    async with Line(meter) as line:
        await line.ask(PUBLIC_AARQ)
    assert [g["code"] for g in fleet.gasps] == ["last-gasp", "restore"]
    assert meter.device.outages


async def test_storm_of_a_thousand_meters(tmp_path: Path, listener: tuple[Listener, str]) -> None:
    heard, to = listener
    spec = FleetSpec(
        dlms=(DlmsGroup(count=1_000),), history_s=900, by_address=True, port=0, titles=True
    )
    fleet = Fleet(spec, tmp_path / "state", SystemClock())
    await fleet.open()
    assert len({m.host for m in fleet.dlms}) == 1_000
    fleet.write_files(tmp_path)
    with (tmp_path / "meters.csv").open(newline="") as file:
        assert [bytes.fromhex(r["title"]) for r in csv.DictReader(file)] == [
            m.device.title for m in fleet.dlms
        ]
    answer = await fleet.obey(
        {"do": "storm", "to": to, "within": 0.5, "file": str(tmp_path / "gasps.json")}
    )
    assert answer["count"] == 1_000
    await eventually(lambda: len(heard.heard) == 1_000)
    reports = json.loads((tmp_path / "gasps.json").read_text())
    assert len({r["id"] for r in reports}) == 1_000
    assert {a[0] for _, a in heard.heard} == {m.host for m in fleet.dlms}
    assert reports[-1]["sent"] - reports[0]["sent"] > 0.4
    await fleet.close()


async def test_truth_counts_and_freeze(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.obey({"do": "freeze"})
    status = await fleet.obey({"do": "status"})
    assert status["frozen_at"] > 0
    written = await fleet.obey({"do": "truth", "file": str(tmp_path / "truth.jsonl")})
    entries = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert sum(len(e["t"]) for e in entries) == written["rows"]
    for kind in ("interval", "midnight"):
        cells = sum(len(e["t"]) * len(e["cols"]) for e in entries if e["kind"] == kind)
        assert status["captured"][kind] == cells
    assert status["captured"]["interval"] == 4 * 192 * 11 + 192 * 4
    for e in entries:
        assert all(len(column) == len(e["t"]) for column in e["values"])
    before = fleet.dlms[0].device.rows["interval"].times.tolist()
    fleet.dlms[0].device.capture  # noqa: B018 the fleet, not the device, is frozen
    fleet.dlms[0].capture()
    assert fleet.dlms[0].device.rows["interval"].times.tolist() == before


async def test_step_back_swap_and_events(fleet: Fleet) -> None:
    meter = fleet.dlms[3]
    await fleet.obey({"do": "step-back", "meter": meter.id, "periods": 2})
    assert meter.device.offset == -1_800
    await fleet.obey({"do": "event", "meter": meter.id, "log": 4, "code": 201})
    assert meter.device.truth("events-4")["values"][0] == [201]
    await fleet.obey({"do": "swap", "meter": meter.id})
    assert meter.former[0].serial == "70000004"
    held = {(t["device"], t["held"]) for t in fleet.truth() if t["meter"] == meter.id}
    assert held == {("70000004", False)}  # the new one has captured nothing yet
    unit = fleet.modbus[0]
    await fleet.obey({"do": "swap", "meter": unit.id})
    assert unit.truth("1.0.1.8.0.255", int(fleet.clock.now())) in (0, 1)


async def test_rows_missing_for_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock(SystemClock().now(), 1_764_000_000.0, 3_600.0)  # an hour a second
    fleet = Fleet(FleetSpec(dlms=(DlmsGroup(count=1),)), tmp_path / "state", clock)
    await fleet.open()
    meter = fleet.dlms[0]
    await fleet.obey({"do": "fault", "meter": meter.id, "what": "rows-missing", "for": 0.8})
    begin = len(meter.device.rows["interval"].times)
    await eventually(lambda: not meter.has("rows-missing"))
    later = clock.now()
    await eventually(lambda: clock.now() > later + 1_900)
    meter.capture()
    times = meter.device.rows["interval"].times
    gap = times[begin] - times[begin - 1]
    assert 3 * 900 <= gap <= 6 * 900
    assert all(b - a == 900 for a, b in zip(times[begin:], times[begin + 1 :], strict=False))
    await fleet.close()


def test_fleet_files(tmp_path: Path) -> None:
    spec = load_spec(SAMPLE)
    assert sum(g.count for g in spec.dlms) == 30
    assert spec.history_s == 2 * 86_400
    for text, why in (
        ("[fleet]\nhistory = 'long'", "no span"),
        ("[fleet]\ncolour = 1", "colour"),
        ("[[dlms]]\nmodell = 'x'", "modell"),
        ("[[dlms", "array declaration"),
        ("[[dlms]]\ncount = 'many'", "int"),
    ):
        (tmp_path / "fleet.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_spec(tmp_path / "fleet.toml")
        assert why in str(caught.value)
    with pytest.raises(ConfigError):
        load_spec(tmp_path / "none.toml")
    assert [span_s(t) for t in ("36h", "2d", "90min", "10s", "1.5h")] == [
        129_600,
        172_800,
        5_400,
        10,
        5_400,
    ]
    with pytest.raises(ValueError, match="no span"):
        span_s("2 weeks")
    assert running_id("GP0099", 1) == "GP0100"
    assert running_id("meter-", 0) == "meter-1"


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (FleetSpec(dlms=(DlmsGroup(model="linky"),)), "model"),
        (FleetSpec(dlms=(DlmsGroup(security="rot13"),)), "security"),
        (FleetSpec(dlms=(DlmsGroup(framing="smoke"),)), "framing"),
        (FleetSpec(dlms=(DlmsGroup(quirks=("tired",)),)), "quirks"),
        (FleetSpec(dlms=(DlmsGroup(id="A1"), DlmsGroup(id="A1"))), "id"),
        (FleetSpec(modbus=(ModbusGroup(model="abacus"),)), "model"),
        (FleetSpec(modbus=(ModbusGroup(framing="wrapper"),)), "framing"),
        (FleetSpec(modbus=(ModbusGroup(unit=250),)), "unit"),
        (FleetSpec(modbus=(ModbusGroup(), ModbusGroup(id="B1"))), "unit"),
        (
            FleetSpec(modbus=(ModbusGroup(), ModbusGroup(id="B1", unit=5, framing="modbus-rtu"))),
            "framing",
        ),
    ],
)
def test_fleets_that_cannot_be(tmp_path: Path, spec: FleetSpec, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Fleet(spec, tmp_path / "state", SystemClock())
    assert caught.value.key == key


class Command:
    """`opendcu simulate` as a process."""

    @classmethod
    async def start(cls, *arguments: str, **environment: str) -> Command:
        self = cls()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_core.cli.main",
            "simulate",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        return self

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout
        async with asyncio.timeout(20):
            text = await self.process.stdout.readline()
        if not text:
            assert self.process.stderr
            pytest.fail((await self.process.stderr.read()).decode())
        return json.loads(text)

    async def order(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.line()

    async def end(self) -> int:
        """Close the orders and wait; the exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        async with asyncio.timeout(10):
            await self.process.communicate()
        return self.process.returncode or 0


async def test_the_command_obeys_and_follows_the_scaled_clock(tmp_path: Path) -> None:
    real = SystemClock().now()
    command = await Command.start(
        "-c",
        str(SAMPLE),
        "--out",
        str(tmp_path),
        "--history",
        "6h",
        OPENDCU_CLOCK=f"{real}:1764000000:240",
    )
    ready = await command.line()
    assert (ready["ready"], ready["dlms"], ready["modbus"], ready["history_s"]) == (
        True,
        30,
        8,
        21_600,
    )
    assert Path(ready["meters_csv"]).exists()
    with Path(ready["meters_csv"]).open(newline="") as file:
        host, _, port = next(csv.DictReader(file))["address"].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(wrapped(PUBLIC_AARQ) + wrapped(SERIAL))
    async with asyncio.timeout(5):
        for end in (b"\x04\x00\x00\x07", b"70000001"):  # the initiate response, the serial number
            head = await reader.readexactly(8)
            assert (await reader.readexactly(int.from_bytes(head[6:], "big"))).endswith(end[-4:])
    writer.close()
    first = (await command.order(do="status"))["captured"]["interval"]
    assert 30 * 4 * 24 <= first <= 30 * 11 * 26

    async def captured_more() -> bool:
        return (await command.order(do="status"))["captured"]["interval"] > first

    await eventually(captured_more)  # 15 minutes are 3.75 s
    frozen = await command.order(do="freeze")
    assert frozen["at"] > 1_764_000_000
    assert (await command.order(do="nonsense"))["error"]
    assert command.process.stdin
    command.process.stdin.write(b"no json\n")
    assert (await command.line())["do"] is None
    assert (await command.order(do="quit")) == {"do": "quit", "ok": True}
    assert await command.end() == 0


@pytest.mark.parametrize("how", ["sigterm", "end of orders"])
async def test_the_command_ends(tmp_path: Path, how: str) -> None:
    command = await Command.start("--meters", "2", "--out", str(tmp_path))
    assert (await command.line())["ready"]
    if how == "sigterm":
        command.process.send_signal(signal.SIGTERM)
    assert await command.end() == 0


@pytest.mark.parametrize("arguments", [("-c", "/nonexistent.toml"), ("--history", "soon")])
async def test_the_command_refuses_wrong_use(tmp_path: Path, arguments: tuple[str, str]) -> None:
    command = await Command.start(*arguments, "--out", str(tmp_path / "out"))
    assert command.process.stderr
    async with asyncio.timeout(20):
        message = (await command.process.stderr.read()).decode()
    assert arguments[1] in message
    assert await command.end() == 2
