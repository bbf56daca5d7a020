"""Traps of docs/reference/dlms-traps.md that no other test walks into."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.protocols.dlms.association import Association
from edge_core.protocols.dlms.terms import Terms
from edge_core.protocols.hdlc.frame import FrameReader, Kind
from edge_core.transports import tcp
from simulators.dlms.lines import wrap
from tests.integration.dlms.conftest import Bench, rows_of, truth_of

Make = Callable[..., Awaitable[Bench]]


class Between:
    """A modem between gateway and meter that lets pushes of the meter, and APDUs of its other devices, come first."""

    def __init__(self, host: str, port: int) -> None:
        self._meter = host, port
        self.strays = 0

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(*self._meter)

        async def pipe(
            source: asyncio.StreamReader, to: asyncio.StreamWriter, *, disturb: bool
        ) -> None:
            try:
                while octets := await source.read(65_536):
                    if disturb:
                        to.write(wrap(1, 64, b"\x0f\x40\x00\x00\x01\x00\x00"))
                        to.write(wrap(2, 48, b"\xc4\x01\xc1\x00\x11\x07"))
                        self.strays += 2
                    to.write(octets)
            except ConnectionError:
                pass
            to.close()

        await asyncio.gather(pipe(reader, ours, disturb=False), pipe(theirs, writer, disturb=True))


async def test_pushes_and_other_devices_on_the_same_connection_are_no_answers(bench: Make) -> None:
    b = await bench(pdu=4096)
    b.meter.freeze()
    async with Between(b.meter.host, b.meter.port) as between:
        driver = b.driver(address=f"127.0.0.1:{between.port}")
        since = truth_of(b.meter, "interval")[-5][0]
        blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
        await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval", since)
    assert between.strays > 4


@pytest.mark.parametrize("ahead", [5 * 3600, -5 * 3600])
async def test_a_range_runs_on_the_clock_of_the_meter(bench: Make, ahead: int) -> None:
    """Up to the newest row is up to the newest row, also where the meter stamps it hours ahead of us."""
    b = await bench()
    b.meter.device.set_clock(b.clock.now(), int(b.clock.now()) + ahead)
    b.meter.freeze()
    truth = truth_of(b.meter, "interval")
    since = truth[-20][0]
    driver: Any = b.driver()
    await driver.clock_offset()
    found = rows_of(list(await driver.read_profile(ProfileRequest("interval", since=since))))
    await driver.close()
    assert [row for row in found if row[0] >= since] == truth_of(b.meter, "interval", since)
    assert found[-1] == truth[-1]


@pytest.mark.parametrize(
    ("told", "room"), [(0, 5000), (12, 8), (1024, 960)], ids=["no limit", "least", "usual"]
)
def test_a_request_has_the_size_that_the_meter_takes(told: int, room: int) -> None:
    association = Association(Terms())
    association.server_max_pdu = told
    assert association._room(5000) == room


async def test_lost_frames_of_an_hdlc_line_are_asked_for_with_rr(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seventh answer is lost on its way: nothing is asked twice, no counter is used twice."""
    connect = tcp.connect

    class Lossy:
        def __init__(self, stream: Any) -> None:
            self._stream, self._count = stream, 0

        async def read(self, timeout_s: float) -> bytes:
            octets = await self._stream.read(timeout_s)
            self._count += 1
            if self._count % 7 == 0:
                return bytes(await self._stream.read(timeout_s))
            return bytes(octets)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    async def lossy(*args: Any, **more: Any) -> Any:
        return Lossy(await connect(*args, **more))

    monkeypatch.setattr(tcp, "connect", lossy)
    b = await bench(framing="hdlc", pdu=512)
    b.meter.freeze()
    driver = b.driver(timeout_s=1.0)
    since = truth_of(b.meter, "interval")[-20][0]
    blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
    await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval", since)
    assert b.fleet.record.violations == 0
    reader = FrameReader()
    reader.feed(b"".join(octets for way, octets in b.frames if way == "send"))
    kinds: Counter[Kind] = Counter()
    while (frame := reader.next()) is not None:
        kinds[frame.kind] += 1
    assert kinds[Kind.RR] >= 2


class Dribble:
    """A line that gives one octet with each read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = b""

    async def read(self, timeout_s: float) -> bytes:
        if not self._left:
            self._left = await self._stream.read(timeout_s)
        octet, self._left = self._left[:1], self._left[1:]
        return octet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize("framing", ["wrapper", "hdlc"])
async def test_a_line_that_dribbles(
    bench: Make, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = tcp.connect

    async def dribbling(*args: Any, **more: Any) -> Any:
        return Dribble(await connect(*args, **more))

    monkeypatch.setattr(tcp, "connect", dribbling)
    b = await bench(framing=framing, pdu=300)
    b.meter.freeze()
    driver = b.driver()
    since = truth_of(b.meter, "interval")[-20][0]
    blocks = list(await driver.read_profile(ProfileRequest("interval", since=since)))
    await driver.close()
    assert rows_of(blocks) == truth_of(b.meter, "interval", since)
