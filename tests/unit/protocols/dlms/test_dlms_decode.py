"""Captures of exchanges: sessions, block transfers, titles, keys, and what is said about what is missing."""

from __future__ import annotations

import json

import pytest

from edge_core.domain import Secret
from edge_core.errors import MalformedApdu, MalformedFrame, ProtocolError, TagInvalid
from edge_core.protocols.dlms import acse, apdu, axdr, ciphering, framing, services
from edge_core.protocols.dlms.axdr import DataType
from edge_core.protocols.dlms.codes import Conformance
from edge_core.protocols.dlms.cosem import (
    Attribute,
    CaptureObject,
    EntrySelector,
    Method,
    OtherSelector,
    RangeSelector,
)
from edge_core.protocols.dlms.decode import Keys, decode, to_json
from edge_core.protocols.dlms.mbus import MbusFrame
from edge_core.protocols.dlms.security import AUTHENTICATED, ENCRYPTED, SecurityContext
from edge_core.protocols.dlms.services import Block, GetResult
from edge_core.protocols.dlms.wrapper import wrap
from edge_core.protocols.hdlc.frame import (
    Frame,
    client_address,
    information_control,
    server_address,
)
from edge_core.protocols.hdlc.parameters import Parameters

GUEK, GAK = Secret(bytes(range(16))), Secret(bytes(range(0xD0, 0xE0)))
CONTEXT = SecurityContext(0, GUEK, GAK)
KEYS = [Keys(GUEK, GAK)]
CLIENT_TITLE, METER_TITLE = b"CLI00001", b"MTR00001"
COUNTER = Attribute(1, "0.0.43.1.3.255", 2)
REGISTER = Attribute(3, "1.0.1.8.0.255", 2)
GREEN = Conformance(0x001E1F)


def value_of(data: axdr.Data) -> bytes:
    return axdr.encode(data)


def hdlc(apdu_octets: bytes, number: int, *, meter: bool, llc: int = 1) -> bytes:
    client, server = client_address(16), server_address(1, 3875)
    source, destination = (server, client) if meter else (client, server)
    head = (b"\xe6\xe7\x00" if meter else b"\xe6\xe6\x00") * llc
    control = information_control(number, number + meter)
    return Frame(destination, source, control, head + apdu_octets).to_bytes()


def test_a_whole_session_of_a_public_client() -> None:
    """As an Indian meter speaks: four-octet addresses, LLC octets twice in the AARE, SNRM parameters in two octets."""
    client, server = client_address(16), server_address(1, 3875)
    aarq = acse.Aarq(1, acse.InitiateRequest(GREEN).to_bytes())
    aare = acse.Aare(1, 0, 0, acse.InitiateResponse(Conformance.GET, 560).to_bytes())
    frames = [
        Frame(server, client, 0x93, Parameters(128, 512).to_bytes()).to_bytes(),
        Frame(client, server, 0x73, Parameters().to_bytes()).to_bytes(),
        hdlc(aarq.to_bytes(), 0, meter=False),
        hdlc(aare.to_bytes(), 0, meter=True, llc=2),
        hdlc(services.GetRequest(Attribute(1, COUNTER.obis, 1)).to_bytes(), 1, meter=False),
        hdlc(
            services.GetResponse(
                0, value_of(axdr.octet_string(bytes.fromhex("00002b0103ff")))
            ).to_bytes(),
            1,
            meter=True,
        ),
        hdlc(services.GetRequest(COUNTER).to_bytes(), 2, meter=False),
        hdlc(
            services.GetResponse(0, value_of(axdr.double_long_unsigned(1715))).to_bytes(),
            2,
            meter=True,
        ),
        Frame(server, client, 0x53).to_bytes(),
    ]
    document = decode(frames)
    assert document.framing == "hdlc"
    assert document.apdus == [
        "snrm",
        "ua",
        "aarq",
        "aare",
        "get-request-normal",
        "get-response-normal",
        "get-request-normal",
        "get-response-normal",
        "disc",
    ]
    assert document.value == 1715
    assert [(r["obis"], r["value"]) for r in document.readings] == [("0.0.43.1.3.255", 1715)]
    assert decode([b"".join(frames)]) == document
    aare_alone = decode(frames[3:4])
    assert aare_alone.details["initiate"] == {
        "conformance": ["get"],
        "max_pdu": 560,
        "vaa_name": 7,
    }
    snrm = decode(frames[:1])
    assert (snrm.apdu, snrm.value, snrm.plain_apdu) == ("snrm", None, None)
    assert snrm.details["parameters"]["max_information_receive"] == 512
    assert snrm.details["destination"] == "1.3875"
    odd = decode([Frame(client, server, 0x73, b"\x81\x80\x05").to_bytes()])
    assert "HDLC parameters" in odd.details["parameters"]
    ready = decode([Frame(client, server, 0x71).to_bytes()])
    assert (ready.apdu, ready.details["receive_number"]) == ("rr", 3)


def test_register_and_scaler_make_one_reading() -> None:
    frames = [
        wrap(48, 1, services.GetRequest(REGISTER).to_bytes()),
        wrap(1, 48, services.GetResponse(0, value_of(axdr.double_long_unsigned(1234))).to_bytes()),
        wrap(48, 1, services.GetRequest(Attribute(3, REGISTER.obis, 3)).to_bytes()),
        wrap(
            1,
            48,
            services.GetResponse(
                0, value_of(axdr.structure(axdr.integer(-1), axdr.enum(30)))
            ).to_bytes(),
        ),
    ]
    assert decode(frames).readings == [
        {"obis": "1.0.1.8.0.255", "value": 1234, "scaler": -1, "unit": "Wh", "time": None}
    ]


def test_a_list_of_attributes() -> None:
    frames = [
        services.GetRequestList(((COUNTER, None), (REGISTER, None))).to_bytes(),
        services.GetResponseList(
            (GetResult(0, value_of(axdr.unsigned(5))), GetResult(4))
        ).to_bytes(),
    ]
    document = decode(frames)
    assert document.framing == "none"
    assert document.value == [5, None]
    assert document.details["results"] == ["success", "object-undefined"]
    assert [r["obis"] for r in document.readings] == ["0.0.43.1.3.255"]


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_get_blocks_are_joined(cut: int) -> None:
    data = value_of(axdr.array(axdr.long_unsigned(n) for n in range(30)))
    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    frames = [services.GetRequest(Attribute(7, "1.0.99.1.0.255", 2)).to_bytes()]
    for n, piece in enumerate(pieces, 1):
        block = Block(n == len(pieces), n, piece)
        frames.append(services.GetResponseBlock(block).to_bytes())
        if n < len(pieces):
            frames.append(services.GetRequestNext(n).to_bytes())
    document = decode(frames)
    assert document.plain_apdu == "c401c100" + data.hex()
    assert document.value == list(range(30))
    assert document.warnings == []
    unfinished = decode(frames[:-1])
    assert unfinished.value is None
    assert unfinished.warnings == [f"block {len(pieces) - 1} came, more are due"]
    if len(pieces) > 3:
        gap = decode(frames[:2] + frames[5:])
        assert "1 came, 2 is due" not in str(gap.warnings)
        assert "is due" in gap.warnings[0]


def test_set_and_action_blocks_are_joined() -> None:
    data = value_of(axdr.octet_string(bytes(40)))
    frames = [
        services.SetRequestFirstBlock(REGISTER, Block(False, 1, data[:9])).to_bytes(),
        services.SetResponseBlock(1).to_bytes(),
        services.SetRequestBlock(Block(True, 2, data[9:])).to_bytes(),
    ]
    assert decode(frames).plain_apdu == services.SetRequest(REGISTER, data).to_bytes().hex()
    method = Method(18, "0.0.44.0.0.255", 2)
    frames = [
        services.ActionRequestFirstBlock(method, Block(False, 1, data[:9])).to_bytes(),
        services.ActionRequestBlock(Block(True, 2, data[9:])).to_bytes(),
    ]
    assert decode(frames).plain_apdu == services.ActionRequest(method, data).to_bytes().hex()
    answer = services.ActionResponse(0, GetResult(0, data)).to_bytes()
    frames = [
        services.ActionResponseBlock(Block(False, 1, answer[3:20])).to_bytes(),
        services.ActionResponseBlock(Block(True, 2, answer[20:])).to_bytes(),
    ]
    assert decode(frames).plain_apdu == answer.hex()
    assert decode(frames).value == {"octets": bytes(40).hex()}


@pytest.mark.parametrize("segmented", [False, True])
def test_general_block_transfer_in_ui_frames(segmented: bool) -> None:
    """L+G: no S bit, LLC in the first frame only; streaming set, window 0. Ciphered as a whole."""
    push = apdu.DataNotification(1, b"", value_of(axdr.structure(axdr.unsigned(5)))).to_bytes()
    sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, push, general=True)
    pieces = [sealed[i : i + 20] for i in range(0, len(sealed), 20)]
    frames = []
    for n, piece in enumerate(pieces, 1):
        last = n == len(pieces)
        block = apdu.GeneralBlockTransfer(last, not last, 0, n, 0, piece).to_bytes()
        information = b"\xe6\xe7\x00" * (n == 1) + block
        if segmented:
            half = len(information) // 2
            frames.append(Frame(b"\xcf", b"\x03", 0x13, information[:half], True).to_bytes())
            information = information[half:]
        frames.append(Frame(b"\xcf", b"\x03", 0x13, information).to_bytes())
    document = decode(frames, KEYS)
    assert document.plain_apdu == push.hex()
    assert document.authenticated
    assert document.value == [5]
    unfinished = decode(frames[:-1], KEYS) if not segmented else decode(frames[:-2], KEYS)
    assert unfinished.apdu == "general-block-transfer"
    assert unfinished.details["last"] is False
    assert unfinished.plain_apdu is None


def test_acknowledgements_of_a_general_block_transfer_are_no_blocks() -> None:
    def block(last: bool, number: int, acknowledged: int, data: bytes) -> bytes:
        return apdu.GeneralBlockTransfer(last, False, 1, number, acknowledged, data).to_bytes()

    frames = [
        wrap(1, 48, block(False, 1, 0, PUSH[:4])),
        wrap(48, 1, block(True, 1, 1, b"")),
        wrap(1, 48, block(True, 2, 1, PUSH[4:])),
    ]
    assert decode(frames).value == [5]


def test_titles_come_from_the_association() -> None:
    initiate = ciphering.seal(
        CONTEXT, CLIENT_TITLE, 1, acse.InitiateRequest(GREEN, dedicated_key=b"K" * 16).to_bytes()
    )
    response = ciphering.seal(
        CONTEXT, METER_TITLE, 1, acse.InitiateResponse(GREEN, 1024).to_bytes()
    )
    frames = [
        wrap(48, 1, acse.Aarq(3, initiate, CLIENT_TITLE, 5, b"C" * 16).to_bytes()),
        wrap(1, 48, acse.Aare(3, 0, 14, response, METER_TITLE, 5, b"S" * 16).to_bytes()),
        wrap(
            48,
            1,
            ciphering.seal(CONTEXT, CLIENT_TITLE, 2, services.GetRequest(REGISTER).to_bytes()),
        ),
        wrap(
            1,
            48,
            ciphering.seal(
                CONTEXT, METER_TITLE, 2, services.GetResponse(0, b"\x11\x05").to_bytes()
            ),
        ),
    ]
    document = decode(frames, KEYS)
    assert (document.value, document.ciphered, document.authenticated) == (5, True, True)
    assert document.system_title == METER_TITLE.hex()
    assert document.readings[0]["obis"] == "1.0.1.8.0.255"
    text = json.dumps([decode(frames[:1], KEYS).details, decode(frames[1:2], KEYS).details])
    assert "16 octets, not shown" in text
    assert (b"K" * 16).hex() not in text
    assert (b"S" * 16).hex() in text  # a challenge is no secret
    alone = decode(frames[3:], KEYS, [CLIENT_TITLE, METER_TITLE])
    assert alone.value == 5
    with pytest.raises(MalformedApdu, match="title"):
        decode(frames[3:], KEYS)


def test_a_password_is_not_shown() -> None:
    aarq = acse.Aarq(
        1, acse.InitiateRequest(GREEN).to_bytes(), mechanism=1, authentication_value=b"hunter22"
    )
    details = json.dumps(decode([aarq.to_bytes()]).details)
    assert "8 octets, not shown" in details
    assert b"hunter22".hex() not in details
    assert "hunter22" not in details


PUSH = apdu.DataNotification(1, b"", value_of(axdr.structure(axdr.unsigned(5)))).to_bytes()


def test_without_a_key_the_envelope_is_told() -> None:
    sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, PUSH, general=True)
    document = decode([sealed])
    assert (document.apdu, document.ciphered, document.authenticated) == (
        "general-glo-ciphering",
        True,
        False,
    )
    assert (document.invocation_counter, document.system_title) == (9, METER_TITLE.hex())
    assert document.plain_apdu is None
    assert document.value is None
    assert "no key" in document.warnings[0]


def test_the_key_that_fits_is_found() -> None:
    sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, PUSH, general=True)
    others = [Keys(Secret(bytes((n,)) * 16), GAK) for n in range(5)]
    assert decode([sealed], [*others, *KEYS]).value == [5]
    with pytest.raises(TagInvalid):
        decode([sealed], others)


def test_without_an_authentication_key_the_tag_is_not_verified_and_that_is_said() -> None:
    for level in (AUTHENTICATED, AUTHENTICATED | ENCRYPTED):
        sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, PUSH, general=True, level=level)
        document = decode([sealed], [Keys(GUEK)])
        assert document.value == [5]
        assert not document.authenticated
        assert "not verified" in document.warnings[0]
        if level & ENCRYPTED:
            with pytest.raises(TagInvalid, match="wrong key"):
                decode([sealed], [Keys(GAK)])


def test_encryption_without_a_tag() -> None:
    sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, PUSH, general=True, level=ENCRYPTED)
    document = decode([sealed], [Keys(GUEK)])
    assert document.value == [5]
    assert not document.authenticated
    assert "anybody" in document.warnings[0]
    with pytest.raises(TagInvalid, match="no APDU"):
        decode([sealed], [Keys(GAK)])
    for plain in (
        acse.InitiateRequest(GREEN).to_bytes(),
        services.GetResponse(0, b"\x11\x05").to_bytes(),
    ):
        sealed = ciphering.seal(CONTEXT, METER_TITLE, 9, plain, general=True, level=ENCRYPTED)
        assert decode([sealed], [Keys(GUEK)]).plain_apdu == plain.hex()


def test_a_tag_that_is_cut() -> None:
    sealed = b"\xdb\x08" + METER_TITLE + axdr.encode_octets(b"\x30\0\0\0\1" + bytes(11))
    for keys in (KEYS, [Keys(GUEK)]):
        with pytest.raises(MalformedApdu, match="without its tag"):
            decode([sealed], keys)


def test_a_sealed_association_without_a_key() -> None:
    initiate = ciphering.seal(CONTEXT, CLIENT_TITLE, 1, acse.InitiateRequest(GREEN).to_bytes())
    document = decode([acse.Aarq(3, initiate, CLIENT_TITLE).to_bytes()])
    assert document.ciphered
    assert "initiate" not in document.details
    assert "glo-initiate-request: no key" in document.warnings[0]


def test_suite_2() -> None:
    big = Keys(Secret(bytes(32)), Secret(bytes(range(32))))
    context = SecurityContext(2, big.encryption, big.authentication)
    sealed = ciphering.seal(context, METER_TITLE, 9, PUSH, general=True)
    assert decode([sealed], [*KEYS, big]).authenticated


def test_general_signing_is_read_and_not_believed() -> None:
    fields = (bytes(8), METER_TITLE, b"", b"", b"", PUSH, bytes(64))
    document = decode([b"\xdf" + b"".join(map(axdr.encode_octets, fields))])
    assert document.value == [5]
    assert not document.authenticated
    assert "not verified" in document.warnings[0]


def test_initiates_alone() -> None:
    request = decode([acse.InitiateRequest(GREEN).to_bytes()])
    assert (request.apdu, request.details["max_pdu"]) == ("initiate-request", 65535)
    sealed = ciphering.seal(CONTEXT, CLIENT_TITLE, 1, acse.InitiateRequest(GREEN).to_bytes())
    assert decode([sealed], KEYS, [CLIENT_TITLE]).apdu == "initiate-request"


@pytest.mark.parametrize(
    ("message", "key", "text"),
    [
        (apdu.ExceptionResponse(2, 6, 1716), "error", "invocation-counter-error 1716"),
        (apdu.ConfirmedServiceError(1, 6, 1), "error", "dlms-version-too-low"),
        (services.GetResponse(4), "result", "object-undefined"),
        (services.SetResponse(3), "result", "read-write-denied"),
        (services.ActionResponse(0, GetResult(250)), "returned", "other-reason"),
        (services.GetRequestNext(7), "block", "7"),
        (services.ActionRequest(Method(15, "0.0.40.0.0.255", 1)), "method", "0.0.40.0.0.255:1"),
        (services.GetRequest(REGISTER, EntrySelector(2, 9)), "selector", "'from': 2, 'to': 9"),
        (
            services.GetRequest(
                REGISTER,
                RangeSelector(CaptureObject(3, "1.0.1.8.0.255", 2, 1), axdr.unsigned(7), axdr.NULL),
            ),
            "selector",
            "'of': 'class 3, 1.0.1.8.0.255:2[1]', 'from': '7'",
        ),
        (services.GetRequest(REGISTER, OtherSelector(9, axdr.NULL)), "selector", "9"),
        (services.SetResponseList((0, 1)), "results", "hardware-fault"),
        (services.GetResponseBlock(Block(True, 3, b""), 19), "result", "data-block-number-invalid"),
        (acse.Rlrq(), "reason", "normal"),
        (
            apdu.EventNotification(b"", Attribute(1, "0.0.97.98.0.255", 2), b"\x11\x05"),
            "attribute",
            "class 1, 0.0.97.98.0.255:2",
        ),
    ],
)
def test_messages_in_words(message: apdu.Apdu | acse.Rlrq, key: str, text: str) -> None:
    document = decode([message.to_bytes()])
    assert document.apdu == message.NAME
    assert text in str(document.details[key])


def test_llc_and_noise_and_flags_left_out() -> None:
    exchange = [
        b"\xe6\xe6\x00" + services.GetRequest(REGISTER).to_bytes(),
        b"\xe6\xe7\x00" + services.GetResponse(0, b"\x11\x05").to_bytes(),
    ]
    document = decode(exchange)
    assert (document.framing, document.value) == ("llc", 5)
    assert document.readings[0]["obis"] == REGISTER.obis
    frame = hdlc(PUSH, 0, meter=True)
    assert decode([frame[1:-1]]).value == [5]
    damaged = bytearray(frame)
    damaged[-3] ^= 1
    document = decode([bytes(damaged) + frame])
    assert document.value == [5]
    assert "FCS" in document.warnings[0]
    document = decode([frame + frame[:20]])
    assert "not complete" in document.warnings[0]


def test_gateway_headers_are_passed_over() -> None:
    apdu_octets = b"\xe7\x01\x04" + b"ADDR" + PUSH
    assert decode([wrap(1, 64, apdu_octets)]).value == [5]


def test_one_apdu_over_several_lines() -> None:
    assert decode([PUSH[:5], PUSH[5:]]).value == [5]


def test_bare_data() -> None:
    data = value_of(axdr.array([axdr.structure(axdr.unsigned(1), axdr.unsigned(2))]))
    assert (decode([data]).apdu, decode([data]).value) == ("data", [[1, 2]])
    assert decode([b"\0" + data]).apdu == "get-data-result"


@pytest.mark.parametrize(
    ("frames", "error", "offset"),
    [
        ([], MalformedFrame, 0),
        ([b""], MalformedFrame, 0),
        ([b"\x99\x01"], MalformedApdu, 0),
        ([bytes.fromhex("0001003000010009c001")], MalformedFrame, 6),
        ([bytes.fromhex("0001003000010000")], MalformedApdu, 0),
        ([bytes.fromhex("7ea0070321930f")], MalformedFrame, 7),
        ([bytes.fromhex("7ea0070321930f027e")], MalformedFrame, 6),
        ([bytes.fromhex("6805056853ff1001020016")], MalformedFrame, 9),
        ([bytes.fromhex("6805056853ff10010200")], MalformedFrame, 10),
        ([bytes.fromhex("0fc00000010009")], MalformedApdu, 7),
        ([bytes.fromhex("e6e700")], MalformedApdu, 0),
        ([bytes.fromhex("a0030102030405")], MalformedApdu, 0),
        ([bytes.fromhex("a0070321930f02")], MalformedApdu, 0),
        ([bytes.fromhex("0001ffff")], MalformedFrame, 6),
        ([bytes(framing.MAX_OCTETS + 1)], MalformedFrame, framing.MAX_OCTETS),
    ],
)
def test_what_cannot_be_decoded_says_where(
    frames: list[bytes], error: type[ProtocolError], offset: int
) -> None:
    with pytest.raises(error) as caught:
        decode(frames)
    assert caught.value.offset == offset


def test_a_missing_segment_is_told() -> None:
    first = Frame(b"\xcf", b"\x03", 0x13, b"\xe6\xe7\x00" + PUSH[:4], True).to_bytes()
    with pytest.raises(MalformedFrame, match="segment is missing"):
        decode([first])
    other = Frame(b"\xcf", b"\x05", 0x13, b"\xe6\xe7\x00" + PUSH).to_bytes()
    document = decode([first, other])
    assert document.value == [5]
    assert "segment is missing" in document.warnings[0]


def test_damage_among_mbus_and_wrapper_frames() -> None:
    good = MbusFrame(0x53, 0xFF, 0x10, b"\1\2" + PUSH).to_bytes()
    bad = bytearray(good)
    bad[-2] ^= 1
    document = decode([good, bytes(bad), MbusFrame(0x53, 0xFF, 0x00, b"\1\2x").to_bytes()])
    assert document.value == [5]
    assert len(document.warnings) == 2
    document = decode([wrap(1, 64, PUSH), bytes.fromhex("000200")])
    assert document.value == [5]
    assert document.warnings
    document = decode([wrap(1, 64, PUSH), bytes.fromhex("0002000000000000")])
    assert "version" in document.warnings[0]


def test_noise_makes_no_million_warnings() -> None:
    damaged = bytearray(hdlc(PUSH, 0, meter=True))
    damaged[-3] ^= 1
    document = decode([bytes(damaged) * 1000 + hdlc(PUSH, 0, meter=True)])
    assert document.value == [5]
    assert len(document.warnings) == 21


def test_values_as_json() -> None:
    clock = bytes.fromhex("07e901020304050607ffc481")
    assert to_json(axdr.date_time(clock)) == {
        "octets": clock.hex(),
        "datetime": "2025-01-02T04:05:06+01:00",
        "deviation": -60,
        "status": ["invalid", "dst"],
    }
    unspecified = bytes.fromhex("fffffefdffffffffff8000ff")
    assert to_json(axdr.octet_string(unspecified)) == {
        "octets": unspecified.hex(),
        "datetime": "????-dst-begin-last-but-one ??:??:??",
        "deviation": None,
        "status": None,
    }
    assert to_json(axdr.Data(DataType.DATE, bytes.fromhex("07e90102ff"))) == {
        "octets": "07e90102ff",
        "date": "2025-01-02",
    }
    assert to_json(axdr.Data(DataType.TIME, bytes.fromhex("0a0b0cff")))["time"] == "10:11:12"
    assert to_json(axdr.bits("0101")) == {"bits": "0101", "set": [1, 3]}
    assert to_json(axdr.octet_string(b"AB12")) == {"octets": "41423132", "text": "AB12"}
    assert to_json(axdr.octet_string(bytes.fromhex("0100010800ff")))["obis"] == "1.0.1.8.0.255"
    assert to_json(axdr.octet_string(b"\x01\x02")) == {"octets": "0102"}
    assert to_json(axdr.octet_string(b"")) == {"octets": "", "text": ""}
    assert to_json(axdr.float32(float("inf")))["value"] is None
    assert to_json(axdr.boolean(True)) is True
    assert to_json(axdr.float64(1.5)) == 1.5
    kind = axdr.TypeDescription(DataType.UNSIGNED)
    assert to_json(axdr.compact_array(kind, [axdr.unsigned(1)])) == [1]


def test_indian_deviations_are_doubted_once_and_then_obeyed() -> None:
    clock = bytes.fromhex("07e90601ff000f00ff014a00")
    push = apdu.DataNotification(1, clock, value_of(axdr.structure(axdr.unsigned(5)))).to_bytes()
    document = decode([push])
    assert document.details["time"]["datetime"] == "2025-06-01T00:15:00-05:30"
    assert "--deviation utc-to-local" in document.warnings[0]
    document = decode([push], utc_to_local=True)
    assert document.details["time"]["datetime"] == "2025-06-01T00:15:00+05:30"
    assert document.warnings == []


def test_readings_of_every_type() -> None:
    obis = axdr.octet_string(bytes.fromhex("0100010800ff"))
    body = axdr.array(
        axdr.structure(obis, value)
        for value in (
            axdr.float32(1.5),
            axdr.bits("01"),
            axdr.boolean(True),
            axdr.octet_string(b"\1"),
            axdr.NULL,
            axdr.octet_string(bytes.fromhex("07e901020304050607ffc400")),
        )
    )
    document = decode([apdu.DataNotification(1, b"", value_of(body)).to_bytes()])
    assert [r["value"] for r in document.readings] == [
        "1.5",
        "01",
        1,
        "01",
        "2025-01-02T04:05:06+01:00",
    ]
