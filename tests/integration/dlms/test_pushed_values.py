"""Captured pushes of customer interfaces, through the listener into a real journal."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_core.acquisition import listener
from edge_core.acquisition.listener import Listener
from edge_core.clock import ManualClock
from edge_core.config.keys import KeyRing
from edge_core.config.load import load
from edge_core.domain import Block, Flag, as_list
from edge_core.journal import CounterStore, Journal
from edge_core.journal.datadir import DataDirectory, Memories
from edge_core.protocols.hdlc.frame import Frame
from simulators.dlms import codec
from simulators.dlms.lines import wrap

FRAMES = Path(__file__).parents[2] / "data" / "frames"


def capture(name: str) -> bytes:
    """The octets of a captured push as they stand on the line."""
    document = json.loads((FRAMES / f"{name}.json").read_text())
    octets = b"".join(bytes.fromhex(frame) for frame in document["frames"])
    if document["framing"] == "llc":  # the capture left the link layer out
        return Frame(b"\x41", b"\x08\x83", 0x13, octets).to_bytes()
    return octets


def keys_of(name: str) -> dict[str, str]:
    keys = json.loads((FRAMES / f"{name}.json").read_text()).get("keys", {})
    names = {"encryption": "guek", "authentication": "gak"}
    return {names[key]: value for key, value in keys.items()}


class Site:
    """A listener with one meter, and its journal."""

    def __init__(
        self, folder: Path, model: str, line: str, keys: dict[str, str], more: str = ""
    ) -> None:
        (folder / "keys.toml").write_text(
            "[M1]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items())
        )
        (folder / "keys.toml").chmod(0o600)
        (folder / "gateway.toml").write_text(
            f"""
[gateway]
id = "dcu-1"
data_dir = "{folder}/data"
timezone = "Europe/Oslo"
[push]
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
[[lines]]
id = "han"
{line}
[[meters]]
id = "M1"
line = "han"
model = "{model}"
{more}
"""
        )
        self.config = load(folder / "gateway.toml")
        self.clock = ManualClock()
        directory = DataDirectory(self.config.data_dir).prepare()
        self.journal = Journal.open(directory.journal(), clock=self.clock)
        self.counters = CounterStore.open(directory.counters, clock=self.clock)
        self.memories = Memories(directory, now=self.clock.now())
        self.listener = Listener(
            self.config,
            journal=self.journal,
            counters=self.counters,
            memories=self.memories,
            keys=KeyRing.open(self.config.keys),
            clock=self.clock,
        )

    async def blocks(self, count: int) -> list[Block]:
        """The blocks of the journal, when there are so many."""
        async with asyncio.timeout(10):
            while True:
                await asyncio.wrap_future(self.journal.flush())
                found = [
                    block
                    for segment in self.journal.segments(0, lane=None, limit=100)
                    for block in self.journal.blocks(segment.id)
                ]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)

    async def counted(self, what: str, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.listener.counts[what] < count:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.listener.close()
        self.memories.close()
        self.counters.close()
        self.journal.close(5)


Make = Callable[..., Awaitable[Site]]


@pytest.fixture
async def site(tmp_path: Path) -> Any:
    made: list[Site] = []

    async def make(
        model: str, line: str, keys: dict[str, str] | None = None, more: str = ""
    ) -> Site:
        made.append(Site(tmp_path, model, line, keys or {}, more))
        await made[-1].listener.start()
        if "serial" in line:
            await made[-1].counted("lines-opened")
        return made[-1]

    yield make
    for one in made:
        await one.close()


class Port:
    """A HAN adapter: a pseudo-terminal under a stable name."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "han-port"
        self.plug()

    def plug(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))

    def send(self, octets: bytes) -> None:
        os.write(self._master, octets)

    def pull(self) -> None:
        os.close(self._master)
        os.close(self._slave)

    @property
    def line(self) -> str:
        return f'transport = "serial"\nframing = "hdlc"\ndevice = "{self.path}"\nbaudrate = 2400\n'


@pytest.fixture
def port(tmp_path: Path) -> Any:
    one = Port(tmp_path)
    yield one
    one.pull()


def values(block: Block) -> dict[str, tuple[int, int, str]]:
    return {
        c.obis: (as_list(column)[0], c.scaler, c.unit)  # type: ignore[misc]
        for c, column in zip(block.layout.cols, block.columns, strict=True)
    }


CASES = [
    (
        "han-aidon", "amshan_aidon_no_list_2", "7359992892587665", 9,
        {"1.0.1.7.0.255": (0x118, 0, "W"), "1.0.31.7.0.255": (13, -1, "A"), "1.0.32.7.0.255": (0x8E2, -1, "V")},
    ),
    (
        "han-kaifa", "amshan_kaifa_no_list_3", "6970631402614476", 14,
        {"1.0.1.7.0.255": (0x1328, 0, "W"), "1.0.31.7.0.255": (0x38EB, -3, "A"), "1.0.1.8.0.255": (0x04BE76E8, 0, "Wh")},
    ),
    (
        "han-kamstrup", "amshan_kamstrup_se_hdlc", "5706567326590407", 10,
        {"1.1.1.7.0.255": (0x33A, 0, "W"), "1.1.31.7.0.255": (0xED, -2, "A"), "1.1.32.7.0.255": (0xE8, 0, "V")},
    ),
    (
        "at-customer", "dlmsparser_mbus_netz_noe_p1", "181220000009", 11,
        {"1.0.1.8.0.255": (12937, 0, "Wh"), "1.0.32.7.0.255": (2337, -1, "V"), "1.0.13.7.0.255": (1000, -3, "count")},
    ),
    (
        "ch-lg-e450", "dlmsparser_hdlc_landis_gyr_e450", "LGZ-1", 16,
        {"1.0.1.8.0.255": (4408736, 0, "Wh"), "1.0.1.7.0.255": (2893, 0, "W"), "1.0.3.8.1.255": (1358750, 0, "varh")},
    ),
    (
        "ch-iskra-am550", "dlmsparser_hdlc_iskra550", "84895126", 14,
        {"1.0.1.7.0.255": (0xB6, 0, "W"), "1.0.1.8.0.255": (0x3FF27, 0, "Wh"), "1.0.31.7.0.255": (0x3F, -2, "A")},
    ),
    ("dk-kamstrup", "dlmsparser_hdlc_kamstrup_omnipower", "12343400", 30, {"1.1.1.7.0.255": (1083, 0, "W"), "1.1.31.7.0.255": (57, -2, "A"), "1.1.13.7.0.255": (83, -2, "")}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name", "device", "columns", "expected"), CASES, ids=[c[0] for c in CASES]
)
async def test_a_captured_push_is_a_row(
    site: Make,
    port: Port,
    model: str,
    name: str,
    device: str,
    columns: int,
    expected: dict[str, Any],
) -> None:
    more = 'address = "1"\n' + ('serial = "LGZ-1"\n' if device == "LGZ-1" else "")
    s = await site(model, port.line, keys_of(name), more)
    octets = capture(name)
    port.send(octets[len(octets) // 3 :])  # the port was opened in the middle of a telegram
    for at in range(0, len(octets), 50):
        port.send(octets[at : at + 50])
    (block,) = await s.blocks(1)
    assert (block.meter, block.kind, block.rows) == ("M1", "instantaneous", 1)
    assert block.device == device or not device
    found = values(block)
    assert len(found) == columns
    assert {obis: found[obis] for obis in expected} == expected
    ((first, count, flags),) = block.flags
    assert (first, count) == (0, 1)
    assert flags & Flag.SAMPLED
    proven = model in ("ch-lg-e450", "dk-kamstrup")
    assert bool(flags & Flag.UNAUTHENTICATED) is not proven
    assert abs(as_list(block.times)[0] - s.clock.now()) < 60, "an old stamp is not believed"


async def test_a_list_without_a_device_waits_for_one_that_names_it(site: Make, port: Port) -> None:
    s = await site("han-aidon", port.line, more='address = "1"')
    port.send(capture("amshan_aidon_no_list_1"))
    await s.counted("no-device")
    port.send(capture("amshan_aidon_no_list_2"))
    await s.counted("values")
    s.clock.advance(2.5)
    port.send(capture("amshan_aidon_no_list_1"))
    blocks = await s.blocks(2)
    assert {b.device for b in blocks} == {"7359992892587665"}
    assert {b.tz for b in blocks} == {60}, (
        "no stamp was sent: the civil time of the model, in November"
    )
    assert sorted(len(b.columns) for b in blocks) == [1, 9]
    assert s.memories.get("M1", "identity")["serial"] == "7359992892587665"


async def test_a_port_that_speaks_often_is_thinned(site: Make, port: Port) -> None:
    s = await site("han-kaifa", port.line, more='address = "1"\nserial = "6970631402614476"')
    for _ in range(10):
        port.send(capture("amshan_kaifa_no_list_1"))
    await s.counted("heard", 10)
    assert s.listener.counts["values"] + s.listener.counts["thinned"] == 10
    assert s.listener.counts["values"] == 1
    s.clock.advance(60)
    port.send(capture("amshan_aidon_no_list_1"))
    await s.counted("values", 2)


async def test_another_device_than_the_configured_one(site: Make, port: Port) -> None:
    s = await site("han-aidon", port.line, more='address = "1"\nserial = "1"')
    port.send(capture("amshan_aidon_no_list_2"))
    await s.counted("wrong-meter")
    assert s.listener.counts["values"] == 0


async def test_a_repeated_counter_and_a_broken_tag(site: Make, port: Port) -> None:
    name = "dlmsparser_hdlc_kamstrup_omnipower"
    s = await site("dk-kamstrup", port.line, keys_of(name), 'address = "1"')
    port.send(capture(name))
    await s.counted("values")
    port.send(capture(name))
    await s.counted("replayed")
    damaged = bytearray(capture(name))
    damaged[200] ^= 1
    port.send(bytes(damaged))
    await s.counted("malformed")  # the frame check sequence finds it before the tag could


async def test_a_model_that_wants_a_tag_takes_no_push_without(site: Make, port: Port) -> None:
    s = await site("ch-lg-e450", port.line, {"guek": "00" * 16}, 'address = "1"\nserial = "1"')
    port.send(capture("dlmsparser_hdlc_iskra550"))
    await s.counted("downgraded")
    assert s.listener.counts["values"] == 0


async def test_a_port_is_opened_again_by_its_path(site: Make, port: Port) -> None:
    s = await site("han-aidon", port.line, more='address = "1"')
    port.send(capture("amshan_aidon_no_list_2"))
    await s.counted("values")
    port.pull()
    port.plug()
    await s.counted("lines-opened", 2)
    s.clock.advance(2.5)
    port.send(capture("amshan_aidon_no_list_1"))
    await s.blocks(2)


async def test_a_serial_server_is_called_and_called_again(site: Make) -> None:
    """HAN frames in a TCP stream: the converter listens, we connect."""
    connections: list[asyncio.StreamWriter] = []
    sites: list[Site] = []

    async def converter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(capture("amshan_aidon_no_list_2"))
        await writer.drain()
        if len(connections) == 1:
            writer.close()
            return
        sites[0].clock.advance(2.5)
        writer.write(capture("amshan_aidon_no_list_1"))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(converter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    s = await site(
        "han-aidon", 'transport = "tcp"\nframing = "hdlc"\n', more=f'address = "127.0.0.1:{port}/1"'
    )
    sites.append(s)
    assert {len(b.columns) for b in await s.blocks(2)} == {1, 9}
    assert len(connections) == 2
    await s.listener.close()
    server.close()


async def test_frames_that_a_converter_sends_to_our_port(site: Make) -> None:
    """HDLC and M-Bus frames by TCP and by UDP, from the meter's address."""
    s = await site(
        "ch-iskra-am550",
        'transport = "tcp"\nframing = "wrapper"\n',
        more='address = "127.0.0.1:4059"',
    )
    udp, tcp = s.listener.ports
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(capture("dlmsparser_hdlc_iskra550"), ("127.0.0.1", udp))
    await s.counted("values")
    _, writer = await asyncio.open_connection("127.0.0.1", tcp)
    writer.write(capture("dlmsparser_hdlc_iskra550"))
    await writer.drain()
    async with asyncio.timeout(5):
        while s.listener.counts["values"] + s.listener.counts["thinned"] < 2:
            await asyncio.sleep(0.01)
    writer.close()
    await writer.wait_closed()


async def test_hourly_energies_meet_no_momentary_row(site: Make, port: Port) -> None:
    """List 3 is stamped with the full hour; list 2 of the same second is a row of its own."""
    s = await site("han-kaifa", port.line, more='address = "1"')
    s.clock.valid = False  # the stamps of the meter are taken as they are
    three = capture("amshan_kaifa_no_list_3")
    same = bytes.fromhex("07e40119060e000aff800000")
    octets = json.loads((FRAMES / "amshan_kaifa_no_list_2.json").read_text())["frames"][0]
    moved = bytes.fromhex(octets).replace(bytes.fromhex("07e40119060d091eff800000"), same)
    assert moved != bytes.fromhex(octets)
    port.send(Frame(b"\x41", b"\x08\x83", 0x13, moved).to_bytes())
    port.send(three)
    blocks = await s.blocks(2)
    assert len({as_list(b.times)[0] for b in blocks}) == 1
    assert {b.layout.profile for b in blocks} == {"0.0.25.9.0.255", "0.0.25.9.1.255"}


# --- silence of a meter that only speaks


async def test_a_port_that_falls_silent_is_told_once_and_once_that_it_is_back(
    site: Make, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOOK_S", 0.01)
    s = await site("han-aidon", port.line, more='address = "1"')
    frame = capture("amshan_aidon_no_list_2")
    port.send(frame)
    await s.blocks(1)
    s.clock.advance(100)  # ten pushes late: an adapter may be plugged anew
    port.send(frame)
    await s.counted("heard", 2)
    assert s.listener.silences.silent == frozenset()
    s.clock.advance(25)
    assert s.listener.silences.quiet_s("M1") == 25
    s.clock.advance(100)
    await s.counted("silent")
    assert s.listener.silences.quiet_s("M1") == 125
    s.clock.advance(10_000)
    port.send(frame)
    await s.counted("back")
    port.send(frame)
    await s.counted("heard", 4)
    async with asyncio.timeout(10):
        while len(alarms := s.journal.alarms_waiting(10)) < 2:
            await asyncio.sleep(0.01)
    assert [(a.code, a.meter) for a in alarms] == [("meter-silent", "M1"), ("meter-back", "M1")]
    assert "nothing was heard for 125 s" in alarms[0].detail["cause"]
    assert alarms[1].detail["silent_s"] == 10_125
    assert s.listener.counts["silent"] == 1


async def test_a_silence_outlives_a_restart(
    site: Make, port: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOOK_S", 0.01)
    s = await site("han-aidon", port.line, more='address = "1"')
    s.clock.advance(200)
    await s.counted("silent")
    again = Listener(
        s.config,
        journal=s.journal,
        counters=s.counters,
        memories=s.memories,
        keys=KeyRing.open(s.config.keys),
        clock=s.clock,
    )
    assert again.silences.silent == {"M1"}
    s.clock.advance(500)
    assert again.silences.overdue() == [], "it was told before the restart"
    assert again.silences.heard("M1") == 700
    assert again.silences.heard("M1") is None


# --- EventNotification: how Dutch meters raise their alarm registers

TITLE = bytes.fromhex("4f444e0000000001")
GUEK, GAK = bytes(range(16)), bytes(range(16, 32))


def event_notification(register: str, value: int) -> bytes:
    """event-notification-request without a time: class 1, the alarm register, attribute 2."""
    return b"\xc2\x00\x00\x01" + codec.logical_name(register) + b"\x02" + codec.u32(value)


def sealed(plain: bytes, counter: int) -> bytes:
    body = codec.seal(GUEK, GAK, TITLE, counter, plain)
    return wrap(1, 64, b"\xdb\x08" + TITLE + codec.length(len(body)) + body)


async def dutch(site: Make) -> Site:
    return await site(
        "smr5",
        'transport = "tcp"\nframing = "wrapper"\n',
        {"guek": GUEK.hex(), "gak": GAK.hex()},
        f'address = "127.0.0.1:4059"\ntitle = "{TITLE.hex()}"',
    )


@pytest.mark.parametrize(
    ("register", "value", "codes"),
    [
        ("0.0.97.98.0.255", 1 << 28 | 1 << 1, {("battery-low", ()), ("phase-outage", ("L1",))}),
        ("0.0.97.98.1.255", 1 << 4, {("over-voltage", ("L2",))}),
        ("0.0.97.98.2.255", 1, {("last-gasp", ())}),
    ],
)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_event_notifications_are_alarms(
    site: Make, transport: str, register: str, value: int, codes: set[Any]
) -> None:
    s = await dutch(site)
    udp, tcp = s.listener.ports
    octets = sealed(event_notification(register, value), 7)
    if transport == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(octets, ("127.0.0.1", udp))
    else:
        _, writer = await asyncio.open_connection("127.0.0.1", tcp)
        writer.write(octets)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(10):  # the thread of the socket counts before it hands over
        while len(alarms := s.journal.alarms_waiting(10)) < len(codes):
            await asyncio.sleep(0.01)
    assert {(a.code, tuple(a.phases)) for a in alarms} == codes
    assert all(a.meter == "M1" for a in alarms)


async def test_what_is_wrong_with_an_event_notification_is_counted_by_name(site: Make) -> None:
    s = await dutch(site)
    gasp = event_notification("0.0.97.98.2.255", 1)
    good = sealed(gasp, 7)
    s.listener.hear(good, "127.0.0.1")
    s.listener.hear(good, "127.0.0.1")
    s.listener.hear(good[:-1] + bytes((good[-1] ^ 1,)), "127.0.0.1")
    s.listener.hear(wrap(1, 64, gasp), "127.0.0.1")
    s.listener.hear(good[:-1], "127.0.0.1")
    s.listener.hear(sealed(event_notification("0.0.97.98.0.255", 1 << 31), 8), "127.0.0.1")
    s.listener.hear(sealed(gasp, 9), "127.0.0.9")  # the title, not the address, tells who it is
    counts = s.listener.counts
    for name in ("replayed", "tag-invalid", "downgraded", "malformed", "no-alert"):
        assert counts[name] == 1, (name, counts)
    assert counts["alarms"] == 2


EQUIPMENT = "E0051012345672024"


def register_push(register: int, *words: int) -> bytes:
    """An SMR 5 alarm in the clear: equipment identifier, push setup, alarm registers."""
    setup = "0.3.25.9.0.255" if register == 3 else "0.1.25.9.0.255"
    body = codec.structure(
        codec.octet_string(EQUIPMENT.encode()),
        codec.octet_string(codec.logical_name(setup)),
        *(codec.u32(word) for word in words),
    )
    return wrap(1, 64, b"\x0f\x40\x00\x00\x01\x00" + body)


async def codes(s: Site, count: int) -> list[tuple[str, tuple[str, ...]]]:
    async with asyncio.timeout(10):
        while len(alarms := s.journal.alarms_waiting(20)) < count:
            await asyncio.sleep(0.01)
    assert all(a.meter == "M1" and not a.authenticated for a in alarms)
    return sorted((a.code, tuple(a.phases)) for a in alarms)


async def test_an_alarm_in_the_clear_is_found_by_the_device_that_it_names(site: Make) -> None:
    """SMR 5 meters push from a pre-established association without ciphering, and from addresses that change."""
    s = await dutch(site)
    octets = register_push(1, 1 << 1 | 1 << 31, 1 << 3)
    s.listener.hear(octets, "10.9.8.7")
    assert s.listener.counts["unknown-sender"] == 1
    s.clock.advance(1)
    identity = {"title": TITLE.hex(), "serial": "1234567", "nameplate": {"equipment": EQUIPMENT}}
    s.memories.put("M1", "identity", identity)
    s.listener.hear(octets, "10.9.8.7")
    assert await codes(s, 2) == [("battery-low", ()), ("over-voltage", ("L1",))]
    s.listener.hear(register_push(3, 1), "10.9.8.8")
    assert ("last-gasp", ()) in await codes(s, 3)
    s.listener.hear(register_push(3, 2), "10.9.8.8")  # a test of the last gasp
    assert s.listener.counts["no-alert"] == 1


async def test_bits_that_latch_are_told_once(site: Make) -> None:
    s = await dutch(site)
    s.listener.hear(register_push(1, 1 << 1, 0), "127.0.0.1")
    s.clock.advance(60)
    s.listener.hear(register_push(1, 1 << 1 | 1 << 29, 1 << 0), "127.0.0.1")
    assert s.listener.counts["alarms"] == 3, "the battery is no news"
    assert await codes(s, 3) == [
        ("battery-low", ()),
        ("phase-outage", ("L2",)),
        ("under-voltage", ("L1",)),
    ]
    s.clock.advance(60)
    s.listener.hear(register_push(1, 1 << 1, 0), "127.0.0.1")
    assert s.listener.counts["alarms"] == 4, "nothing is new, yet it was sent for a reason"
    s.clock.advance(60)
    s.listener.hear(register_push(1, 0, 0), "127.0.0.1")  # somebody cleared the register
    s.clock.advance(60)
    s.listener.hear(register_push(1, 1 << 1, 0), "127.0.0.1")
    assert s.listener.counts["alarms"] == 5


def in_blocks(apdu: bytes, size: int) -> list[bytes]:
    """A general-block-transfer as Landis+Gyr pushes it: streamed, window 0; one block a datagram."""
    pieces = [apdu[i : i + size] for i in range(0, len(apdu), size)]
    return [
        wrap(
            1,
            64,
            bytes((0xE0, 0x40 | 0x80 * (number == len(pieces))))
            + number.to_bytes(2, "big")
            + bytes(2)
            + codec.length(len(piece))
            + piece,
        )
        for number, piece in enumerate(pieces, 1)
    ]


async def test_a_push_in_blocks_by_datagrams(site: Make) -> None:
    s = await dutch(site)
    gasp = event_notification("0.0.97.98.2.255", 1)
    blocks = in_blocks(sealed(gasp, 7)[8:], 20)
    assert len(blocks) > 2
    for block in blocks:
        s.listener.hear(block, "127.0.0.1")
    assert s.listener.counts["alarms"] == 1
    lossy = in_blocks(sealed(gasp, 8)[8:], 20)
    for block in [lossy[0], *lossy[2:]]:  # one datagram is lost: the push is, and no other
        s.listener.hear(block, "127.0.0.1")
    assert s.listener.counts["alarms"] == 1
    assert s.listener.counts["malformed"] >= 1
    first, second = in_blocks(sealed(gasp, 9)[8:], 20), in_blocks(sealed(gasp, 10)[8:], 20)
    for mine, theirs in zip(first, second, strict=True):  # two senders at once are kept apart
        s.listener.hear(mine, "127.0.0.1")
        s.listener.hear(theirs, "127.0.0.2")
    assert s.listener.counts["alarms"] == 3
    for n in range(1000):
        s.listener.hear(blocks[0], f"10.0.{n // 256}.{n % 256}")
    assert len(s.listener._pieces) <= 256
