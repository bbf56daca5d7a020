"""Pushes: last gasp and first breath, alarm descriptors, schemas, and what is recognised without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.config.models import load_model
from edge_core.domain import ALARM_KINDS, Secret
from edge_core.errors import LocalProtocolError, MalformedApdu, MalformedFrame, TagInvalid
from edge_core.protocols.dlms import apdu, axdr, bodies, ciphering, general, push
from edge_core.protocols.dlms.cosem import Attribute, CaptureObject
from edge_core.protocols.dlms.push import Alert, Cause, PushSchema
from edge_core.protocols.dlms.security import AUTHENTICATED, ENCRYPTED, SecurityContext
from edge_core.protocols.dlms.wrapper import wrap

FRAMES = Path(__file__).parents[3] / "data" / "frames"
GASP = json.loads((FRAMES / "gurux_last_gasp_push.json").read_text())
CONTEXT = SecurityContext(
    0,
    Secret(bytes.fromhex(GASP["keys"]["encryption"])),
    Secret(bytes.fromhex(GASP["keys"]["authentication"])),
)
TITLE = b"MTR00001"
INDIA = push.schemas_of(load_model("is15959-3ph").push)
CLOCK = bytes.fromhex("07e90601ff000f00fffeb600")
SETUP = bytes.fromhex("0004190900ff")


def esw(*bits: int) -> axdr.Data:
    return axdr.bits("".join("1" if i in bits else "0" for i in range(128)))


def notification(*elements: axdr.Data) -> bytes:
    body = axdr.encode(axdr.structure(*elements))
    return apdu.DataNotification(0xC0000002, b"", body).to_bytes()


def india(*bits: int) -> bytes:
    return notification(
        axdr.octet_string(b"DEV000000001"),
        axdr.octet_string(SETUP),
        axdr.octet_string(CLOCK),
        esw(*bits),
    )


@pytest.mark.parametrize("name", ["plain", "general_glo"])
def test_a_last_gasp_of_an_independent_stack(name: str) -> None:
    envelope = push.open_datagram(bytes.fromhex(GASP["frames"][name][0]))
    sealed = name == "general_glo"
    assert envelope.title == (TITLE if sealed else b"")
    assert envelope.counter == (7 if sealed else None)
    assert envelope.protection == ("authenticated-encrypted" if sealed else "none")
    assert (envelope.source, envelope.destination) == (1, 64)
    opened = envelope.open(CONTEXT)
    assert opened.authenticated == sealed
    found = push.read(opened.plain, INDIA)
    expected = GASP["expected_by_source"]
    assert (found.device_id, found.setup) == (expected["device_id"], expected["push_setup"])
    assert found.event_time == CLOCK
    word = found.get(push.EVENT_STATUS_WORD)
    assert word is not None
    assert push.status_bits(word) == (expected["esw_bit_set"],) == (push.LAST_GASP_BIT,)
    assert push.alerts(found, INDIA) == (Alert("last-gasp", (), 85, push.EVENT_STATUS_WORD),)


def test_first_breath_and_what_else_stands_in_the_word() -> None:
    found = push.read(india(0, 2, 7, 83, 86, 119), INDIA)
    assert [(a.code, a.phases) for a in push.alerts(found, INDIA)] == [
        ("phase-outage", ("L1",)),
        ("phase-outage", ("L3",)),
        ("current-reversed", ("L2",)),
        ("cover-open", ()),
        ("restore", ()),
    ]


def test_bits_are_not_event_ids() -> None:
    """Event 101 or 102 are power events in some logs; bit 101 of the word is nothing."""
    assert push.alerts(push.read(india(101, 102), INDIA), INDIA) == ()


def test_every_cause_of_every_model_is_in_the_vocabulary() -> None:
    for name in ("is15959-1ph", "is15959-3ph", "idis", "smr5"):
        for schema in push.schemas_of(load_model(name).push).values():
            for cause in schema.causes.values():
                assert cause.code in ALARM_KINDS


def test_the_words_of_the_event_status_word() -> None:
    words = push.event_status_word()
    assert words[85].meaning == "LAST GASP"
    assert words[86].meaning.startswith("FIRST BREATH")
    assert words[83].severity == "critical"
    assert all(0 <= bit < 128 for bit in words)


def test_tampering_is_seen_and_nothing_is_read() -> None:
    octets = bytearray.fromhex(GASP["frames"]["general_glo"][0])
    octets[-20] ^= 1
    envelope = push.open_datagram(bytes(octets))
    assert envelope.counter == 7  # a claim: the caller must not store it
    with pytest.raises(TagInvalid):
        envelope.open(CONTEXT)


@pytest.mark.parametrize("suite", [0, 1, 2])
@pytest.mark.parametrize("key_info", ["none", "identified"])
def test_a_push_by_general_ciphering_in_every_suite(suite: int, key_info: Any) -> None:
    keys = (Secret(bytes([n]) * (32 if suite == 2 else 16)) for n in (1, 2))
    context = SecurityContext(suite, *keys)
    head = general.header(b"\0" * 8, TITLE, b"")
    body = context.seal(TITLE, 9, india(85), more=head.octets)
    info = general.write_key_info(general.KeyInfo(key_info))
    sealed = b"\xdd" + head.octets + info + axdr.encode_octets(body)
    envelope = push.open_datagram(wrap(1, 64, sealed))
    assert (envelope.title, envelope.counter) == (TITLE, 9)
    assert envelope.protection == "authenticated-encrypted"
    assert envelope.open(context).plain == india(85)
    with pytest.raises(TagInvalid):
        push.open_datagram(wrap(1, 64, sealed.replace(b"\0" * 8, b"\1" * 8, 1))).open(context)


def test_a_sealed_push_needs_keys_and_a_title() -> None:
    sealed = ciphering.seal(CONTEXT, TITLE, 9, b"\xc2" + bytes(11), level=ENCRYPTED)
    envelope = push.open_datagram(wrap(1, 64, sealed))
    assert envelope.protection == "encrypted"
    assert envelope.title == b""
    assert envelope.open(CONTEXT, TITLE).plain[:1] == b"\xc2"
    with pytest.raises(LocalProtocolError):
        envelope.open(None)
    with pytest.raises(MalformedApdu, match="title"):
        envelope.open(CONTEXT)
    with pytest.raises(MalformedFrame):
        push.open_datagram(b"\0\1")
    assert push.protection(0x10) == "authenticated"
    assert push.protection(AUTHENTICATED | 1) == "authenticated"


def test_a_push_that_names_another_setup_than_any_schema() -> None:
    found = push.read(
        notification(axdr.octet_string(b"ID"), axdr.octet_string(bytes.fromhex("0009190900ff"))),
        INDIA,
    )
    assert found.setup == "0.9.25.9.0.255"
    assert push.alerts(found, INDIA) == ()


def test_more_or_fewer_elements_than_the_schema_are_said() -> None:
    alert = INDIA["0.4.25.9.0.255"]
    found = push.read(
        notification(axdr.octet_string(b"DEV1"), axdr.octet_string(SETUP)), {alert.obis: alert}
    )
    assert found.device_id == "DEV1"
    assert "2 elements came" in found.warnings[0]
    assert push.alerts(found, INDIA) == ()


ALARMS = {
    "0.0.25.9.0.255": PushSchema(
        "0.0.25.9.0.255",
        alert="0.0.97.98.20.255",
        causes={4: Cause("cover-open"), 1: Cause("battery-low"), 13: Cause("magnet")},
    )
}


def idis(mask: int, fields: int) -> bytes:
    """A push whose first element is its own object list, of four or (since 2014) six fields an entry."""

    def entry(thing: CaptureObject) -> axdr.Data:
        values = elements_of(thing.to_data())
        if fields == 6:
            restriction = axdr.structure(axdr.enum(0), axdr.NULL)
            values += (restriction, axdr.array([]))
        return axdr.structure(*values)

    objects = (
        CaptureObject(40, "0.0.25.9.0.255", 1),
        CaptureObject(1, "0.0.96.1.0.255", 2),
        CaptureObject(8, "0.0.1.0.0.255", 2),
        CaptureObject(1, "0.0.97.98.20.255", 2),
    )
    return notification(
        axdr.array(entry(o) for o in objects),
        axdr.octet_string(b"97600001951"),
        axdr.octet_string(CLOCK),
        axdr.double_long_unsigned(mask),
    )


def elements_of(data: axdr.Data) -> tuple[axdr.Data, ...]:
    assert isinstance(data.value, tuple)
    return data.value


@pytest.mark.parametrize("fields", [4, 6])
def test_alarm_descriptors_with_their_own_object_list(fields: int) -> None:
    found = push.read(idis(0x0012, fields), ALARMS)
    assert (found.device_id, found.setup, found.clock) == ("97600001951", "0.0.25.9.0.255", CLOCK)
    assert found.get("0.0.97.98.20.255") == axdr.double_long_unsigned(0x0012)
    assert [a.code for a in push.alerts(found, ALARMS)] == ["battery-low", "cover-open"]


def test_bit_zero_of_a_register_is_its_least_significant_one() -> None:
    """SMR 5: last gasp is bit 0 of alarm register 3."""
    smr = push.schemas_of(load_model("smr5").push)
    found = push.read(
        apdu.EventNotification(
            b"", Attribute(1, "0.0.97.98.2.255", 2), axdr.encode(axdr.double_long_unsigned(1))
        ).to_bytes(),
        smr,
    )
    assert found.service == "event-notification-request"
    assert push.alerts(found, smr) == (Alert("last-gasp", (), 0, "0.0.97.98.2.255"),)
    assert push.status_bits(axdr.double_long_unsigned(0x80000000)) == (31,)
    assert push.status_bits(axdr.octet_string(b"\x80\x01")) == (0, 15)
    assert push.status_bits(axdr.NULL) == ()


def test_event_codes_are_values_not_bits() -> None:
    schema = PushSchema(
        "0.0.25.9.0.255",
        columns=("", "0.0.96.11.0.255"),
        alert="0.0.96.11.0.255",
        causes={101: Cause("last-gasp"), 1: Cause("clock")},
        by_value=True,
    )
    schemas = {schema.obis: schema}
    found = push.read(notification(axdr.NULL, axdr.long_unsigned(101)), schemas)
    assert push.alerts(found, schemas) == (Alert("last-gasp", (), 101, "0.0.96.11.0.255"),)


def test_the_only_schema_holds_where_no_setup_is_named() -> None:
    schema = PushSchema("0.1.25.9.0.255", shape="triples", alert="0.0.97.98.0.255")
    body = axdr.array(
        [axdr.structure(axdr.octet_string(bytes.fromhex("0100010800ff")), axdr.unsigned(5))]
    )
    plain = apdu.DataNotification(1, b"", axdr.encode(body)).to_bytes()
    found = push.read(plain, {schema.obis: schema})
    assert (found.setup, found.get("1.0.1.8.0.255")) == (schema.obis, axdr.unsigned(5))
    assert push.alerts(found, {schema.obis: schema}) == ()


def test_the_header_time_stands_in_where_the_body_has_none() -> None:
    plain = apdu.DataNotification(1, CLOCK, axdr.encode(axdr.structure(axdr.NULL))).to_bytes()
    assert push.read(plain).event_time == CLOCK


@pytest.mark.parametrize(
    "octets", ["", "c401c1001105", "0fc0000001", "0fc00000010009", "0fc0000001000980"]
)
def test_no_pushes(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        push.read(bytes.fromhex(octets), INDIA)


def test_the_device_id_is_text_whatever_its_type() -> None:
    schema = PushSchema("0.0.25.9.0.255", columns=("0.0.96.1.0.255",))
    schemas = {schema.obis: schema}
    for value, text in (
        (axdr.visible_string("A1"), "A1"),
        (axdr.octet_string(b"A1\0\0"), "A1"),
        (axdr.unsigned(3), ""),
    ):
        assert push.read(notification(value), schemas).device_id == text


def test_a_push_setup_is_no_register() -> None:
    """Device id, push setup, clock: a guess would read the clock as the value of the push setup."""
    found = bodies.recognise(axdr.decode_whole(india(85), 6))
    assert found.readings == ()
    assert (found.setup, found.clock) == ("0.4.25.9.0.255", CLOCK)


@given(st.lists(st.integers(0, 127), min_size=1, max_size=3), st.integers(5, 60), st.data())
def test_pushes_by_tcp_cut_anywhere(bits: list[int], size: int, data: st.DataObject) -> None:
    """Whole, in general block transfers, and the stream cut at any octet."""
    octets = b""
    for bit in bits:
        sealed = ciphering.seal(CONTEXT, TITLE, bit, india(bit), general=True)
        octets += wrap(1, 64, sealed)
        pieces = [sealed[i : i + size] for i in range(0, len(sealed), size)]
        for n, piece in enumerate(pieces, 1):
            last = n == len(pieces)
            block = apdu.GeneralBlockTransfer(last, not last, 0, n, 0, piece)
            octets += wrap(1, 64, block.to_bytes())
    stream = push.PushStream()
    out = []
    at = 0
    while at < len(octets):
        step = data.draw(st.integers(1, len(octets) - at))
        out += stream.feed(octets[at : at + step])
        at += step
    found = [push.read(e.open(CONTEXT).plain, INDIA) for e in out]
    words = [push.status_bits(n.get(push.EVENT_STATUS_WORD) or axdr.NULL) for n in found]
    assert words == [(bit,) for bit in bits for _ in range(2)]


def test_a_stream_that_is_none() -> None:
    stream = push.PushStream(max_apdu=100)
    with pytest.raises(MalformedFrame):
        stream.feed(b"GET / HTTP/1.1")
    with pytest.raises(MalformedFrame):
        stream.feed(wrap(1, 64, india(85)))
    stream = push.PushStream(max_apdu=100)
    blocks = [apdu.GeneralBlockTransfer(False, True, 0, n, 0, bytes(60)) for n in (1, 2, 4)]
    assert stream.feed(wrap(1, 64, blocks[0].to_bytes())) == []
    with pytest.raises(MalformedApdu, match="or 100 octets"):
        stream.feed(wrap(1, 64, blocks[1].to_bytes()))
    stream = push.PushStream()
    stream.feed(wrap(1, 64, blocks[0].to_bytes()))
    with pytest.raises(MalformedApdu, match="block 4 came"):
        stream.feed(wrap(1, 64, blocks[2].to_bytes()))
