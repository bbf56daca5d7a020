"""PDUs, RTU frames and MBAP headers: the answer is found whatever surrounds it, and nothing else is taken for it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.modbus import mbap, pdu, rtu

REGISTERS = st.lists(st.integers(0, 65535), min_size=1, max_size=125)


def answer_pdu(function: int, registers: list[int]) -> bytes:
    return bytes([function, 2 * len(registers)]) + struct.pack(f">{len(registers)}H", *registers)


def test_the_crc_of_the_standard():
    # Modbus over serial line V1.02, appendix B: 02 07 -> 41 12
    assert rtu.crc(b"\x02\x07") == b"\x41\x12"


@given(st.sampled_from([3, 4]), st.integers(1, 125), st.integers(0, 65000))
def test_requests(function, count, address):
    assert pdu.read_request(function, address, count) == struct.pack(
        ">BHH", function, address, count
    )


@pytest.mark.parametrize(
    ("function", "address", "count"),
    [(6, 0, 1), (16, 0, 1), (3, 0, 0), (3, 0, 126), (3, 65535, 2), (3, -1, 1)],
)
def test_nothing_but_reads_can_be_asked(function, address, count):
    with pytest.raises(LocalProtocolError):
        pdu.read_request(function, address, count)


@given(st.sampled_from([3, 4]), REGISTERS)
def test_answers(function, registers):
    assert pdu.read_answer(answer_pdu(function, registers), function, len(registers)) == tuple(
        registers
    )


@given(st.binary(max_size=260), st.sampled_from([3, 4]), st.integers(1, 125))
def test_any_octets_are_an_answer_an_exception_or_malformed(octets, function, count):
    try:
        registers = pdu.read_answer(octets, function, count)
    except (MalformedApdu, pdu.ModbusException):
        return
    assert len(registers) == count
    assert octets == answer_pdu(function, list(registers))


# --- writes: the request registers of a history, and nothing else


DECLARED = ((0x8700, 1), (0x8703, 1), (0x8704, 3), (0x8707, 1))


@given(st.integers(-1, 65536), st.lists(st.integers(0, 65535), max_size=125))
def test_nothing_but_declared_registers_can_be_written(address, words):
    if (address, len(words)) in DECLARED:
        return
    with pytest.raises(LocalProtocolError):
        pdu.write_request(address, words, DECLARED)


@pytest.mark.parametrize("words", [(65536,), (-1,)])
def test_words_that_are_none_are_not_written(words):
    with pytest.raises(LocalProtocolError):
        pdu.write_request(0x8703, words, DECLARED)


def test_a_write_is_function_16():
    # Modbus Application Protocol V1.1b3, section 6.12: two registers, 000A and 0102, from 1
    assert (
        pdu.write_request(1, (0x000A, 0x0102), ((1, 2),)).hex(" ")
        == "10 00 01 00 02 04 00 0a 01 02"
    )
    pdu.written(bytes.fromhex("10 00 01 00 02"), 1, 2)


@pytest.mark.parametrize(
    "answer",
    ["10 00 01 00 03", "10 00 02 00 02", "03 00 01 00 02", "10 00 01", "10 00 01 00 02 00", ""],
)
def test_another_confirmation_is_refused(answer):
    with pytest.raises(MalformedApdu):
        pdu.written(bytes.fromhex(answer), 1, 2)
    asked = mbap.Asked(7, 1, 16, 2, 1)
    body = b"\1" + bytes.fromhex(answer)
    frame = struct.pack(">HHH", 7, 0, len(body)) + body
    assert mbap.judge(frame, asked).why


def test_a_refused_write_is_an_exception():
    with pytest.raises(pdu.ModbusException) as refused:
        pdu.written(bytes([0x90, 6]), 1, 2)
    assert refused.value.code == 6
    assert not mbap.judge(bytes.fromhex("0007 0000 0003 01 90 06"), mbap.Asked(7, 1, 16, 2, 1)).why


@given(st.integers(1, 247), st.integers(0, 65000), st.integers(1, 123), st.binary(max_size=30))
def test_a_confirmation_is_found_in_noise_and_no_other_is(unit, address, count, noise):
    hunt = rtu.Hunt(unit, 16, count, address)
    frame = rtu.frame(unit, struct.pack(">BHH", 16, address, count))
    other = rtu.frame(unit, struct.pack(">BHH", 16, address + 1, count))
    assert hunt.size == len(frame)
    if hunt.find(noise) is None:
        assert hunt.find(noise + other + frame) == frame[1:-2]
        assert hunt.find(other) is None
    assert hunt.describe(other) == "another write was confirmed"


@given(REGISTERS, st.integers(1, 247), st.binary(max_size=10))
def test_two_answers_of_one_size_are_seen(registers, unit, between):
    hunt = rtu.Hunt(unit, 3, len(registers))
    frame = rtu.frame(unit, answer_pdu(3, registers))
    assert not hunt.twice(frame)
    assert hunt.twice(frame + between + frame)


def test_six_registers_for_ten_are_refused():
    with pytest.raises(MalformedApdu, match="6 registers"):
        pdu.read_answer(answer_pdu(3, [0] * 6), 3, 10)


def test_another_function_is_refused():
    with pytest.raises(MalformedApdu, match="function 4"):
        pdu.read_answer(answer_pdu(4, [1]), 3, 1)


# --- RTU


@given(
    REGISTERS,
    st.sampled_from([3, 4]),
    st.integers(1, 247),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_the_answer_is_found_in_noise(registers, function, unit, before, after):
    hunt = rtu.Hunt(unit, function, len(registers))
    frame = rtu.frame(unit, answer_pdu(function, registers))
    # what comes before may begin a frame of its own only with a right CRC: one in 65,536
    if hunt.find(before) is not None:
        return
    found = hunt.find(before + frame + after)
    assert found is not None
    assert found == answer_pdu(function, registers) or found[0] & 0x80


@given(REGISTERS, st.integers(1, 247))
def test_octet_by_octet_gives_the_same(registers, unit):
    hunt = rtu.Hunt(unit, 3, len(registers))
    frame = rtu.frame(unit, answer_pdu(3, registers))
    for cut in range(len(frame)):
        assert hunt.find(frame[:cut]) is None
    assert hunt.find(frame) == answer_pdu(3, registers)


@given(REGISTERS, st.integers(0, 2**16), st.integers(1, 255))
def test_a_changed_octet_is_never_taken(registers, place, change):
    frame = bytearray(rtu.frame(1, answer_pdu(3, registers)))
    frame[place % len(frame)] ^= change
    assert rtu.Hunt(1, 3, len(registers)).find(bytes(frame)) is None


@given(st.integers(1, 247), st.integers(0, 65000), st.integers(1, 125))
def test_an_echo_of_the_request_is_never_taken(unit, address, count):
    request = rtu.frame(unit, pdu.read_request(3, address, count))
    assert rtu.Hunt(unit, 3, count).find(request) is None


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "no answer"),
        (rtu.frame(2, answer_pdu(3, [1, 2])), "unit 2 answered instead of unit 1"),
        (rtu.frame(1, answer_pdu(4, [1, 2])), "function 4"),
        (rtu.frame(1, answer_pdu(3, [1])), "1 registers answered instead of 2"),
        (rtu.frame(1, answer_pdu(3, [1, 2]))[:6], "only 6 of 9 octets"),
        (b"\xff" * 12, "no frame with a right CRC"),
    ],
)
def test_what_came_instead_is_named(octets, words):
    assert words in rtu.Hunt(1, 3, 2).describe(octets)


@given(st.binary(max_size=600), st.integers(1, 247), st.integers(1, 125))
def test_any_octets_are_described(octets, unit, count):
    hunt = rtu.Hunt(unit, 3, count)
    assert hunt.describe(octets)
    found = hunt.find(octets)
    assert found is None or len(found) in (2, 2 + 2 * count)


def test_silence_between_frames():
    # facts section 3: 9,600 baud with 11-bit characters: 4.0 ms; above 19,200 fixed 1.75 ms
    assert rtu.silence_s(9600, rtu.character_s(9600, "E", 1)) == pytest.approx(0.00401, abs=1e-5)
    assert rtu.silence_s(38400, rtu.character_s(38400, "E", 1)) == 0.00175
    assert rtu.character_s(9600, "N", 1) == 10 / 9600
    assert rtu.character_s(9600, "N", 2) == 11 / 9600


# --- MBAP

ASKED = mbap.Asked(transaction=7, unit=1, function=3, count=2)


def adu(transaction: int, unit: int, body: bytes, protocol: int = 0) -> bytes:
    return struct.pack(">HHHB", transaction, protocol, len(body) + 1, unit) + body


GOOD = adu(7, 1, answer_pdu(3, [10, 20]))


def test_the_answer_is_complete_only_when_it_is_whole():
    for cut in range(len(GOOD)):
        assert mbap.judge(GOOD[:cut], ASKED) == mbap.Judged()
    assert mbap.judge(GOOD, ASKED) == mbap.Judged(True)


def test_older_answers_are_passed_over():
    stale = adu(6, 1, answer_pdu(3, [1, 2])) + adu(5, 9, b"\x99\x01")
    assert mbap.judge(stale + GOOD, ASKED) == mbap.Judged(True, len(stale))


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (adu(7, 2, answer_pdu(3, [1, 2])), "unit 2"),
        (adu(7, 1, answer_pdu(4, [1, 2])), "function 4"),
        (adu(7, 1, answer_pdu(3, [1])), "1 registers"),
        (adu(7, 1, answer_pdu(3, [1, 2])[:-1]), "octet count"),
        (adu(7, 1, b"\x83\x02\x00"), "exception of 3"),
        (adu(7, 1, b"\x63\x00\x00"), "function 99"),
        (adu(7, 1, answer_pdu(3, [1, 2]), protocol=5), "protocol id 5"),
        (struct.pack(">HHHB", 7, 0, 1, 1), "length 1"),
        (struct.pack(">HHHB", 7, 0, 9000, 1), "length 9000"),
    ],
)
def test_rubbish_is_named(octets, why):
    judged = mbap.judge(octets, ASKED)
    assert why in judged.why


def test_an_exception_is_an_answer():
    assert mbap.judge(adu(7, 1, b"\x83\x02"), ASKED) == mbap.Judged(True)


@given(st.binary(max_size=600))
def test_any_octets_are_judged(octets):
    judged = mbap.judge(octets, ASKED)
    assert 0 <= judged.stale <= len(octets)
