"""Associations: Green Book examples, long lengths, rejections in words, and secrets that stay out of sight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import acse
from edge_core.protocols.dlms.apdu import ConfirmedServiceError
from edge_core.protocols.dlms.codes import Conformance, Mechanism

FRAMES = Path(__file__).parents[3] / "data" / "frames"
PROPOSED = Conformance(0x007E1F)


def frame(name: str) -> bytes:
    return bytes.fromhex(json.loads((FRAMES / f"{name}.json").read_text())["frames"][0])


def test_aarq_lowest_security() -> None:
    raw = frame("greenbook_aarq_no_ciphering_no_sercurity")
    aarq = acse.decode(raw)
    assert isinstance(aarq, acse.Aarq)
    assert (aarq.context, aarq.mechanism, aarq.title) == (1, None, b"")
    initiate = acse.decode_initiate(aarq.user_information)
    assert initiate == acse.InitiateRequest(PROPOSED, 0x04B0)
    assert initiate.to_bytes() == aarq.user_information
    assert aarq.to_bytes() == raw


@pytest.mark.parametrize(
    ("name", "mechanism", "value"),
    [
        ("greenbook_aarq_no_ciphering_low_security", Mechanism.LLS, b"12345678"),
        ("greenbook_aarq_hls", Mechanism.HLS2, b"12345678"),
        ("greenbook_aarq_no_ciphering_high_security", Mechanism.HLS5_GMAC, b"K56iVagY"),
        ("greenbook_aarq_ciphered_low_security", Mechanism.LLS, b"12345678"),
    ],
)
def test_aarq_with_authentication(name: str, mechanism: Mechanism, value: bytes) -> None:
    raw = frame(name)
    aarq = acse.decode(raw)
    assert isinstance(aarq, acse.Aarq)
    assert (aarq.mechanism, aarq.authentication_value) == (mechanism, value)
    assert aarq.to_bytes() == raw


def test_aare_accepted_with_authentication_required_is_no_refusal() -> None:
    raw = frame("greenbook_aare_no_ciher_hls_ok")
    aare = acse.decode(raw)
    assert isinstance(aare, acse.Aare)
    assert aare.accepted
    assert aare.words == "accepted: authentication-required"
    assert aare.mechanism == Mechanism.HLS5_GMAC
    assert aare.authentication_value == bytes.fromhex("503677524a323146")
    initiate = acse.decode_initiate(aare.user_information)
    assert initiate == acse.InitiateResponse(Conformance(0x00501F), 500)
    assert initiate.to_bytes() == aare.user_information
    assert aare.to_bytes() == raw


def test_aare_negotiated() -> None:
    aare = acse.decode(frame("greenbook_aare_no_cipher_no_auth_conformance"))
    assert isinstance(aare, acse.Aare)
    initiate = acse.decode_initiate(aare.user_information)
    assert isinstance(initiate, acse.InitiateResponse)
    assert (initiate.max_pdu, int(initiate.conformance)) == (1224, 0x001E1D)
    assert Conformance.GET in initiate.conformance
    assert Conformance.EVENT_NOTIFICATION not in initiate.conformance


def test_rejections_in_words() -> None:
    aare = acse.decode(frame("greenbook_aare_no_ciphering_no_security_app_context_name_wrong"))
    assert isinstance(aare, acse.Aare)
    assert not aare.accepted
    assert aare.words == "rejected-permanent: application-context-name-not-supported"
    raw = frame("greenbook_aare_no_cipher_no_security_incorrect_dlms_version")
    aare = acse.decode(raw)
    assert isinstance(aare, acse.Aare)
    error = acse.decode_initiate(aare.user_information)
    assert error == ConfirmedServiceError(1, 6, 1)
    assert "dlms-version-too-low" in error.words
    assert aare.to_bytes() == raw


def test_a_diagnostic_of_the_provider() -> None:
    aare = acse.Aare(1, 2, 2, by_provider=True)
    assert acse.decode(aare.to_bytes()) == aare
    assert aare.words == "rejected-transient: no-common-acse-version"


def test_lengths_in_ber_long_form() -> None:
    """Kamstrup Omnia answers so."""
    raw = frame("greenbook_aare_no_ciphering_no_security_ok_association")
    fields = raw[2:]
    long = b"\x61\x81" + bytes((len(fields),)) + fields
    assert acse.decode(long) == acse.decode(raw)
    wide = fields.replace(b"\xbe\x10\x04\x0e", b"\xbe\x81\x11\x04\x81\x0e")
    assert acse.decode(b"\x61\x82\x00" + bytes((len(wide),)) + wide) == acse.decode(raw)


def test_long_fields_are_written_in_long_form() -> None:
    aarq = acse.Aarq(3, bytes(300), title=bytes(8), mechanism=7, certificate=bytes(200), user_id=5)
    raw = aarq.to_bytes()
    assert raw[1] == 0x82
    assert acse.decode(raw) == aarq


def test_the_bare_conformance_tag_of_hdlc_meters() -> None:
    response = acse.InitiateResponse(Conformance(0x00501F), 500).to_bytes()
    assert acse.decode_initiate(response.replace(b"\x5f\x1f", b"\x5f")) == acse.decode_initiate(
        response
    )


def test_initiate_request_with_everything() -> None:
    request = acse.InitiateRequest(
        PROPOSED, 0x04B0, bytes.fromhex("00112233445566778899aabbccddeeff"), False, 3
    )
    assert acse.decode_initiate(request.to_bytes()) == request
    plain = bytes.fromhex("01011000112233445566778899aabbccddeeff0000065f1f0400007e1f04b0")
    assert acse.decode_initiate(plain).to_bytes() == plain
    response = acse.InitiateResponse(PROPOSED, 100, quality=1)
    assert acse.decode_initiate(response.to_bytes()) == response


@pytest.mark.parametrize("release", [acse.Rlrq(), acse.Rlrq(None), acse.Rlrq(0, b"\x21\x00")])
def test_release(release: acse.Rlrq) -> None:
    assert acse.decode(release.to_bytes()) == release
    answer = acse.Rlre(release.reason, release.user_information)
    assert acse.decode(answer.to_bytes()) == answer


def test_an_aare_with_a_certificate() -> None:
    aare = acse.Aare(3, 0, 14, b"\x28\x00", b"MTR00001", 7, b"S" * 32, certificate=bytes(200))
    assert acse.decode(aare.to_bytes()) == aare


def test_a_bare_release() -> None:
    assert acse.decode(b"\x62\x00") == acse.Rlrq(None)
    assert acse.decode(b"\x62\x03\x80\x01\x00") == acse.Rlrq(0)


def test_conformance_counts_from_the_most_significant_bit() -> None:
    """Bit 19 of the standard is GET, bit 23 ACTION, bit 11 block transfer with GET."""
    for bit, flag in (
        (1, Conformance.GENERAL_PROTECTION),
        (2, Conformance.GENERAL_BLOCK_TRANSFER),
        (8, Conformance.ATTRIBUTE0_SET),
        (9, Conformance.PRIORITY_MGMT),
        (10, Conformance.ATTRIBUTE0_GET),
        (11, Conformance.BLOCK_TRANSFER_GET),
        (12, Conformance.BLOCK_TRANSFER_SET),
        (13, Conformance.BLOCK_TRANSFER_ACTION),
        (14, Conformance.MULTIPLE_REFERENCES),
        (16, Conformance.DATA_NOTIFICATION),
        (17, Conformance.ACCESS),
        (19, Conformance.GET),
        (20, Conformance.SET),
        (21, Conformance.SELECTIVE_ACCESS),
        (22, Conformance.EVENT_NOTIFICATION),
        (23, Conformance.ACTION),
    ):
        assert int(flag) == 1 << (23 - bit), flag
    assert Conformance(0x00501F).words == [
        "priority-mgmt",
        "block-transfer-get",
        "get",
        "set",
        "selective-access",
        "event-notification",
        "action",
    ]


def test_secrets_stay_out_of_repr() -> None:
    aarq = acse.Aarq(1, b"", mechanism=1, authentication_value=b"top-secret")
    request = acse.InitiateRequest(PROPOSED, dedicated_key=b"0123456789abcdef")
    for text in (repr(aarq), str(aarq), f"{[aarq]}", repr(request)):
        assert "secret" not in text
        assert "0123" not in text
        assert b"top-secret".hex() not in text


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "60",
        "6080",
        "6005a109060760",  # cut
        "6100",  # an AARE that says nothing
        "6129a109060760857405080101a203020100a305a103020100be10040e0800065f1f040000501f01f4000700",
        "6112a109060760857405080101a203020100a30000",  # no diagnostic inside
        "610ba10906076085740508010161",
        "6016a109060760857405080101a109060760857405080101",  # a field twice
        "600ba109060760857405080201",  # a mechanism where a context is due
        "6010a109060760857405080101ac03820141",  # an unknown form of authentication value
        "600ea109060760857405080101ac028000",  # cut inside
        "6114a109060760857405080101a203020100a302a900",  # a diagnostic of nobody
        "6114a109060760857405080101a203020100a302a100",  # a diagnostic without a value
        "6205800300000000",
        "620780050000000000",  # a reason of five octets
        "6102a200",  # a result that holds nothing
    ],
)
def test_malformed(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        acse.decode(bytes.fromhex(octets + "0" * (len(octets) % 2)))


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "01",
        "0800065f1f0500",
        "0800",
        "0102",
        "08000600",
        "0800065f1f0400",
        "0800065f1f040000501f01f40007ff",
        "01000000065f1f0400007e1f04b0ff",
        "0e0106",
        "0e01060100",
        "99",
    ],
)
def test_malformed_initiate(octets: str) -> None:
    with pytest.raises(MalformedApdu):
        acse.decode_initiate(bytes.fromhex(octets))


def test_mechanisms_in_words() -> None:
    assert acse.mechanism_words(5) == "hls5-gmac"
    assert acse.mechanism_words(None) == "none"
