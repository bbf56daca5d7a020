"""The trace shows what passed, and masks what must not be seen."""

from __future__ import annotations

import pytest

from edge_core.acquisition.tracing import Trace
from edge_core.domain import Secret
from edge_core.protocols.dlms import acse, axdr, ciphering, curves, general
from edge_core.protocols.dlms.apdu import ExceptionResponse
from edge_core.protocols.dlms.codes import ApplicationContext, Mechanism
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.dlms.wrapper import wrap
from edge_core.protocols.hdlc.frame import (
    Frame,
    client_address,
    information_control,
    server_address,
)


def lines_of(framing: str, *frames: tuple[str, bytes]) -> list[str]:
    out: list[str] = []
    trace = Trace(framing, out.append)
    for direction, octets in frames:
        trace(direction, octets)
    return out


def test_a_password_is_masked() -> None:
    aarq = acse.Aarq(
        context=ApplicationContext.LN,
        user_information=b"\x01\x00\x00\x00\x06\x5f\x1f\x04\x00\x00\x7e\x1f\xff\xff",
        mechanism=Mechanism.LLS,
        authentication_value=b"open sesame",
    ).to_bytes()
    (line,) = lines_of("wrapper", ("send", wrap(32, 1, aarq)))
    assert "AARQ lls" in line
    assert "11 octets masked" in line
    assert "sesame" not in line
    assert b"sesame".hex() not in line.replace(" ", "")


def test_protected_octets_are_masked() -> None:
    key = Secret(bytes(range(16)))
    context = SecurityContext(0, key, key)
    sealed = ciphering.seal(context, b"ODCtest1", 77, b"\xc0\x01\xc1" + bytes(10))
    (line,) = lines_of("wrapper", ("send", wrap(48, 1, sealed)))
    assert "glo-get-request" in line
    assert "counter 77" in line
    assert sealed[7:].hex() not in line.replace(" ", "")


def test_signed_octets_say_what_they_hold() -> None:
    key = curves.ephemeral_key(1, bytes(40))
    head = general.header(b"12345678", b"ODCtest1", b"MTR00001")
    get = b"\xc0\x01\xc1\x00\x08\x00\x00\x01\x00\x00\xff\x02\x00"
    signed = general.sign(head, get, key)
    (line,) = lines_of("wrapper", ("send", wrap(48, 1, signed)))
    assert "general-signing of get-request-normal 0.0.1.0.0.255:2" in line
    (line,) = lines_of("wrapper", ("send", wrap(48, 1, general.sign(head, signed, key))))
    assert "signed again" in line


@pytest.mark.parametrize("mechanism", [Mechanism.HLS2, Mechanism.HLS3_MD5])
def test_the_passes_of_hls_in_the_clear_are_masked(mechanism: Mechanism) -> None:
    aarq = acse.Aarq(
        ApplicationContext.LN, b"\x01", mechanism=mechanism, authentication_value=bytes(16)
    )
    proof = bytes(range(0x60, 0x70))
    pass3 = b"\xc3\x01\xc1\x00\x0f\x00\x00\x28\x00\x00\xff\x01\x01" + axdr.encode(
        axdr.octet_string(proof)
    )
    pass4 = b"\xc7\x01\xc1\x00\x01\x00" + axdr.encode(axdr.octet_string(proof))
    out = lines_of(
        "wrapper",
        ("send", wrap(48, 1, aarq.to_bytes())),
        ("send", wrap(48, 1, pass3)),
        ("receive", wrap(1, 48, pass4)),
        ("receive", wrap(1, 48, ExceptionResponse(1, 2).to_bytes())),
    )
    assert "pass 3 of HLS, masked" in out[1]
    assert "pass 4 of HLS, masked" in out[2]
    assert proof.hex() not in "".join(out).replace(" ", "")
    assert "service-not-allowed" in out[3]


def test_frames_cut_anywhere_and_garbage() -> None:
    frame = wrap(16, 1, b"\xc0\x01\xc1\x00\x08\x00\x00\x01\x00\x00\xff\x02\x00")
    (line,) = lines_of("wrapper", ("send", frame[:5]), ("send", frame[5:]))
    assert "get-request-normal 0.0.1.0.0.255:2" in line
    (line,) = lines_of("wrapper", ("receive", b"\xde\xad\xbe\xef" * 4))
    assert "no frame" in line
    (line,) = lines_of("modbus-tcp", ("send", b"\x00\x01\x00\x00\x00\x06\x01\x03\x00\x00\x00\x02"))
    assert "00 01 00 00" in line


def test_hdlc_frames() -> None:
    information = b"\xe6\xe6\x00\xc0\x01\xc1\x00\x08\x00\x00\x01\x00\x00\xff\x02\x00"
    frame = Frame(server_address(1, 17), client_address(16), information_control(0, 0), information)
    (line,) = lines_of("hdlc", ("send", frame.to_bytes()))
    assert "I S0 R0: get-request-normal 0.0.1.0.0.255:2" in line
