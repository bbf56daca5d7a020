"""Associations with a simulated meter: strict counters, protection, services, selection."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from simulators.dlms import codec
from simulators.dlms.meter import Meter
from simulators.dlms.session import Refused, Session
from simulators.fleet import Fleet
from tests.unit.simulators.conftest import TITLE, Client, ranged, whole

INTERVAL = "1.0.99.1.0.255"


@pytest.fixture
def meter(fleet_of: Callable[..., Fleet]) -> Meter:
    return fleet_of().dlms[0]


def record(meter: Meter) -> list[dict[str, object]]:
    return [json.loads(line) for line in meter.record.path.read_text().splitlines()]


def aarq(context: int, mechanism: int = 0, secret: bytes = b"", initiate: bytes = b"") -> bytes:
    body = codec.tlv(0xA1, b"\x06\x07\x60\x85\x74\x05\x08\x01" + bytes([context]))
    if mechanism:
        body += b"\x8a\x02\x07\x80" + codec.tlv(
            0x8B, b"\x60\x85\x74\x05\x08\x02" + bytes([mechanism])
        )
        body += codec.tlv(0xAC, codec.tlv(0x80, secret))
    initiate = initiate or bytes.fromhex("01000000065f1f0400401e5d0400")
    return codec.tlv(0x60, body + codec.tlv(0xBE, codec.tlv(4, initiate)))


def result(aare: bytes) -> tuple[int, int]:
    fields = codec.ber_fields(aare)
    return fields[0xA2][-1], fields[0xA3][-1]


def test_hls5_and_a_read(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    assert client.meter_title == meter.device.title
    assert client.initiate[:1] == b"\x08"
    assert client.value(1, "0.0.96.1.0.255") == meter.device.serial.encode()
    client.general = True
    assert client.value(3, "1.0.1.8.0.255", 3) == [0, 30]
    assert meter.contacts == 1
    assert meter.record.violations == 0


def test_blocks_are_put_together_whatever_the_pdu(meter: Meter) -> None:
    answers = []
    for counter, pdu in ((200_000, 64), (300_000, 200), (400_000, 0)):
        client = Client(meter, counter=counter)
        client.associate(pdu=pdu)
        answers.append(client.get(7, INTERVAL))
    assert answers[0] == answers[1] == answers[2]
    rows = whole(answers[0])
    assert isinstance(rows, list)
    assert len(rows) == 192
    truth = meter.device.truth("interval")
    assert [row[1:] for row in rows] == [list(r) for r in zip(*truth["values"], strict=True)]  # type: ignore[index]


def test_block_numbers_out_of_order_end_the_transfer(meter: Meter) -> None:
    client = Client(meter)
    client.associate(pdu=200)
    client.ask(b"\xc0\x01\xc1\x00\x07" + codec.logical_name(INTERVAL) + b"\x02\x00")
    assert client.ask(b"\xc0\x02\xc1\x00\x00\x03\xe7")[-1] == 0x13  # data-block-number-invalid


@pytest.mark.parametrize("kind", ["aarq", "request", "gmac"])
def test_a_counter_that_is_not_above_the_last_is_a_violation(meter: Meter, kind: str) -> None:
    client = Client(meter)
    client.associate()
    accepted = client.counter
    client.counter = accepted - 1
    if kind == "gmac":
        client.counter = accepted
        client.aarq()
    questions = {
        "aarq": client.aarq,
        "request": lambda: client.value(1, "0.0.96.1.0.255"),
        "gmac": lambda: client.reply_to_hls(token_counter=accepted),
    }
    with pytest.raises(Refused):
        questions[kind]()
    assert meter.record.violations == 1
    assert record(meter)[-1]["what"] == "counter-low"
    assert meter.counters().accepted() >= accepted


def test_one_nonce_for_gmac_and_action_is_recorded_and_let_through(meter: Meter) -> None:
    client = Client(meter)
    client.aarq()
    assert client.reply_to_hls(token_counter=client.counter + 1)[3] == 0
    assert [line["what"] for line in record(meter)] == ["nonce-repeated"]


def test_violations_and_counters_survive_a_restart(fleet_of: Callable[..., Fleet]) -> None:
    first = fleet_of()
    client = Client(first.dlms[0])
    client.associate()
    own = first.dlms[0].counters().next_own()
    with pytest.raises(Refused):
        Client(first.dlms[0], counter=5).associate()
    # no close: as after SIGKILL
    again = fleet_of()
    assert again.record.violations == 1
    meter = again.dlms[0]
    assert meter.counters().accepted() == client.counter
    assert meter.counters().next_own() == own + 1
    with pytest.raises(Refused):
        Client(meter, counter=client.counter - 1).associate()
    assert again.record.violations == 2


def test_forged_plain_and_weaker_requests_close_the_line(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    plain = b"\xc0\x01\xc1\x00\x01" + codec.logical_name("0.0.96.1.0.255") + b"\x02\x00"
    good = client.seal(plain)
    weak = codec.gmac(client.keys.guek, client.keys.gak, TITLE, client.next(), b"")
    for request in (
        plain,
        codec.tlv(0xC8, good[:-1] + bytes([good[-1] ^ 1])),
        codec.tlv(0xC8, weak),
        b"\xc8\x50" + good,
        codec.tlv(0xD0, good),
        b"\xdb\x08" + b"OTHERTTL" + codec.length(len(good)) + good,
        b"",
    ):
        with pytest.raises(Refused):
            client.session.handle(request)
    assert meter.record.violations == 0  # forgeries are nobody's violation
    assert (
        client.value(1, "0.0.96.1.0.255") == meter.device.serial.encode()
    )  # and do not move the counter


def test_wrong_key_is_refused_as_authentication_failure(meter: Meter) -> None:
    meter.faults.begin("wrong-key", meter.clock.monotonic() + 5)
    assert 0xAA not in Client(meter).aarq()
    aare = Client(meter).aarq()
    assert (aare[0xA2][-1], aare[0xA3][-1]) == (1, 13)
    assert {line["what"] for line in record(meter)} == {"tag-invalid"}
    meter.faults.end("wrong-key")
    Client(meter).associate()


def test_wrong_tag_starts_after_the_association(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    meter.faults.begin("wrong-tag", meter.clock.monotonic() + 5)
    with pytest.raises(codec.BadTag):
        client.value(1, "0.0.96.1.0.255")


def test_public_client_sees_little(meter: Meter) -> None:
    session = Session(meter, 16)
    assert result(session.handle(aarq(1))) == (0, 0)

    def read(class_id: int, obis: str, attribute: int = 2) -> bytes:
        name = class_id.to_bytes(2, "big") + codec.logical_name(obis)
        return session.handle(b"\xc0\x01\xc1" + name + bytes([attribute, 0]))

    assert read(1, "0.0.43.1.3.255")[4:] == codec.u32(meter.counters().accepted())
    assert read(1, "0.0.43.1.5.255")[4:] == codec.u32(0)
    assert read(8, "0.0.1.0.0.255")[4:6] == b"\x09\x0c"
    assert read(8, "0.0.1.0.0.255", 3)[4:] == codec.i16(330)
    for class_id, obis in ((3, "1.0.1.8.0.255"), (7, INTERVAL), (1, "1.0.0.2.0.255")):
        assert read(class_id, obis)[3:] == b"\x01\x03"  # read-write-denied
    assert read(15, "0.0.40.0.0.255")[3] == 0
    assert read(15, "0.0.40.0.9.255")[3:] == b"\x01\x04"
    assert (
        session.handle(
            b"\xc1\x01\xc1\x00\x08" + codec.logical_name("0.0.1.0.0.255") + b"\x02\x00\x00"
        )[0]
        == 0xD8
    )
    assert (
        session.handle(
            b"\xc3\x01\xc1\x00\x46" + codec.logical_name("0.0.96.3.10.255") + b"\x01\x00"
        )[:4]
        == b"\xc7\x01\xc1\x03"
    )
    assert session.handle(b"\x62\x03\x80\x01\x00")[0] == 0x63
    with pytest.raises(Refused):
        read(1, "0.0.96.1.0.255")


@pytest.mark.parametrize(
    ("client", "request_", "want"),
    [
        (16, aarq(3), (1, 2)),
        (16, aarq(1, 1, b"x"), (1, 11)),
        (48, aarq(1, 1, b"x"), (1, 11)),
        (48, aarq(1), (1, 11)),
        (48, aarq(1, 5, b"12345678"), (1, 2)),
        (48, aarq(3, 5, b"12345678"), (1, 13)),
        (7, aarq(1), (1, 13)),
        (32, aarq(1, 1, b"wrong"), (1, 13)),
    ],
)
def test_associations_that_are_refused(
    meter: Meter, client: int, request_: bytes, want: tuple[int, int]
) -> None:
    session = Session(meter, client)
    assert result(session.handle(request_)) == want
    with pytest.raises(Refused):
        session.handle(b"\xc0\x01\xc1\x00\x01" + bytes(8))


@pytest.mark.parametrize(
    "request_",
    [
        aarq(1, initiate=b"\x02"),
        aarq(1, initiate=bytes.fromhex("01000000055f1f0400401e5d0400")),
        aarq(1, initiate=bytes.fromhex("0101040102030400000600")),
        aarq(1, initiate=bytes.fromhex("01000000065f1f0400401e5d0020")),
        b"\x60\x30",
        b"\x60",
    ],
)
def test_malformed_associations_close_the_line(meter: Meter, request_: bytes) -> None:
    with pytest.raises(Refused):
        Session(meter, 16).handle(request_)
    assert record(meter)[-1]["what"] == "malformed-request"


def test_initiate_without_the_tag_of_the_conformance_block(meter: Meter) -> None:
    assert result(
        Session(meter, 16).handle(aarq(1, initiate=bytes.fromhex("01000000065f0400401e5d0400")))
    ) == (0, 0)


def test_lls(meter: Meter) -> None:
    session = Session(meter, 32)
    assert result(session.handle(aarq(1, 1, meter.keys.password.encode()))) == (0, 0)
    answer = session.handle(
        b"\xc0\x01\xc1\x00\x03" + codec.logical_name("1.0.1.8.0.255") + b"\x02\x00"
    )
    assert answer[4:] == codec.u32(int(meter.device.registers(meter.clock.now())["import"][0]))
    clock = codec.octet_string(codec.date_time(1_764_000_000, meter.device.zone, east=True))
    denied = session.handle(
        b"\xc1\x01\xc1\x00\x08" + codec.logical_name("0.0.1.0.0.255") + b"\x02\x00" + clock
    )
    assert denied == b"\xc5\x01\xc1\x03"


def test_set_clock_and_relay(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    name = codec.logical_name("0.0.1.0.0.255")
    now = int(meter.clock.now())
    clock = codec.octet_string(codec.date_time(now - 60, meter.device.zone, east=True))
    assert client.ask(b"\xc1\x01\xc1\x00\x08" + name + b"\x02\x00" + clock) == b"\xc5\x01\xc1\x00"
    assert meter.device.offset == -60
    assert client.ask(b"\xc1\x01\xc1\x00\x08" + name + b"\x02\x00\x00")[-1] == 12  # type-unmatched
    relay = codec.logical_name("0.0.96.3.10.255")
    assert client.ask(b"\xc3\x01\xc1\x00\x46" + relay + b"\x01\x01\x0f\x00")[3] == 0
    assert client.value(70, "0.0.96.3.10.255") is False
    assert client.ask(b"\xc3\x01\xc1\x00\x46" + relay + b"\x02\x01\x0f\x00")[3] == 0
    assert meter.relay_closed
    assert client.ask(b"\xc3\x01\xc1\x00\x08" + name + b"\x01\x00")[3] == 3


def test_get_with_list(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    items = [(1, "0.0.96.1.0.255", 2), (3, "1.0.9.9.9.255", 2), (3, "1.0.9.8.0.255", 3)]
    refs = b"".join(
        c.to_bytes(2, "big") + codec.logical_name(o) + bytes([a, 0]) for c, o, a in items
    )
    answer = client.ask(b"\xc0\x03\xc1\x03" + refs)
    serial = codec.octet_string(meter.device.serial.encode())
    assert answer == b"\xc4\x03\xc1\x03\x00" + serial + b"\x01\x04\x00" + codec.scaler_unit(1, 31)
    with pytest.raises(Refused):
        client.ask(b"\xc0\x03\xc1\x00")


def test_selection_by_range_and_entry(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    meter.capture()
    rows = meter.device.truth("interval")["t"]
    stamp = lambda t: codec.date_time(t, meter.device.zone, east=True)  # noqa: E731
    got = client.value(7, INTERVAL, 2, ranged(stamp(rows[10]), stamp(rows[20])))
    assert [row[0] for row in got] == [stamp(t) for t in rows[10:21]]  # type: ignore[union-attr,index]
    wanted = codec.array(
        [
            codec.structure(
                codec.u16(3),
                codec.octet_string(codec.logical_name("1.0.1.29.0.255")),
                codec.i8(2),
                codec.u16(0),
            )
        ]
    )
    energy = meter.device.truth("interval")["values"][6]
    assert client.value(7, INTERVAL, 2, ranged(stamp(rows[0]), stamp(rows[2]), wanted)) == [
        [e] for e in energy[:3]
    ]
    entries = b"\x01\x02\x02\x04" + codec.u32(3) + codec.u32(5) + codec.u16(1) + codec.u16(2)
    got = client.value(7, INTERVAL, 2, entries)
    assert [row[0] for row in got] == [stamp(t) for t in rows[2:5]]  # type: ignore[union-attr,index]
    assert all(len(row) == 2 for row in got)  # type: ignore[union-attr,arg-type]
    for broken in (
        b"\x01\x03\x00",
        b"\x01\x01\x02\x01\x00",
        b"\x01\x02\x02\x04\x00\x00\x00\x00",
        b"\x01\x01\x02\x04\x00\x00\x00\x00",
    ):
        answer = client.ask(
            b"\xc0\x01\xc1\x00\x07" + codec.logical_name(INTERVAL) + b"\x02" + broken
        )
        assert answer[3:] == b"\x01\x0c"
    too_wide = b"\x01\x02\x02\x04" + codec.u32(1) + codec.u32(1) + codec.u16(1) + codec.u16(99)
    assert (
        client.ask(b"\xc0\x01\xc1\x00\x07" + codec.logical_name(INTERVAL) + b"\x02" + too_wide)[3:]
        == b"\x01\x0c"
    )


def test_quirks(fleet_of: Callable[..., Fleet]) -> None:
    def rows(quirk: str) -> list[bytes]:
        meter = fleet_of(quirks=(quirk,)).dlms[0]
        client = Client(meter, counter=meter.counters().accepted() + 1)
        client.associate()
        meter.capture()
        t = meter.device.truth("interval")["t"]
        assert client.value(7, INTERVAL, 5) == (2 if quirk == "newest-first" else 1)
        z = meter.device.zone
        selection = ranged(codec.date_time(t[0], z, east=True), codec.date_time(t[4], z, east=True))
        return [row[0] for row in client.value(7, INTERVAL, 2, selection)]  # type: ignore[union-attr,index,misc]

    plain = rows("null-data")
    assert len(plain) == 5
    assert plain[1:] == [None] * 4
    assert len(rows("range-open")) == 4
    assert len(rows("no-selection")) == 192
    newest = rows("newest-first")
    assert newest == sorted(newest, reverse=True)
    meter = fleet_of(quirks=("service-glo-only",)).dlms[0]
    client = Client(meter, counter=950_000_000)
    client.associate()
    client.general = True
    with pytest.raises(Refused):
        client.value(1, "0.0.96.1.0.255")


def test_profiles_describe_themselves(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    for profile in meter.layout.profiles:
        objects = client.value(7, profile.obis, 3)
        assert len(objects) == len(profile.columns) + 1  # type: ignore[arg-type]
        assert client.value(7, profile.obis, 4) == profile.period
        assert client.value(7, profile.obis, 8) == profile.capacity
        assert client.value(7, profile.obis, 7) == len(meter.device.rows[profile.kind].times)
        assert client.get(7, profile.obis, 1) == codec.octet_string(
            codec.logical_name(profile.obis)
        )
        assert client.value(7, profile.obis, 6) == [0, bytes(6), 0, 0]
        scalers = client.value(7, profile.scaler_profile, 3)
        order = [o[1] for o in scalers]  # type: ignore[union-attr,index]
        units = {codec.logical_name(c.obis): c for c in profile.columns if c.unit}
        assert set(order) <= set(units)
        for obis, cell in zip(order, client.value(7, profile.scaler_profile)[0], strict=True):  # type: ignore[index,arg-type]
            assert cell[0] == units[obis].scaler
    interval = [o[1] for o in client.value(7, INTERVAL, 3)]  # type: ignore[union-attr,index]
    scaled = [o[1] for o in client.value(7, "1.0.94.91.4.255", 3)]  # type: ignore[union-attr,index]
    assert scaled == interval[:0:-1]  # another column order
    assert len(client.value(7, "1.0.94.91.0.255")[0]) == len(meter.layout.instantaneous) + 1  # type: ignore[index,arg-type]
    assert client.value(7, "0.0.94.91.10.255")[0][0] == meter.device.serial.encode()  # type: ignore[index]
    listed = client.value(15, "0.0.40.0.0.255")
    names = {codec.obis_text(o[2]) for o in listed}  # type: ignore[union-attr,index,arg-type]
    assert {p.obis for p in meter.layout.profiles} <= names
    for entry in listed:  # type: ignore[union-attr]
        assert client.get(int(entry[0]), codec.obis_text(entry[2]), 1)  # type: ignore[index,arg-type,call-overload]


def test_another_device_answers_no_old_session(meter: Meter) -> None:
    client = Client(meter)
    client.associate()
    meter.swap()
    with pytest.raises(Refused):
        client.value(1, "0.0.96.1.0.255")
    fresh = Client(meter)
    fresh.associate()
    assert fresh.value(1, "0.0.96.1.0.255") == meter.device.serial.encode()
    assert fresh.value(7, INTERVAL, 7) == 0
    assert meter.former[0].serial != meter.device.serial
