"""Each error of line and protocol as a field engineer reads it: class, step, hint. No key is named by its value."""

from __future__ import annotations

import pytest

from edge_core import errors
from edge_core.acquisition.causes import refusal_of
from edge_core.acquisition.drivers.dlms.explaining import Visited, explained
from edge_core.protocols.dlms import refusals
from edge_core.protocols.dlms.codes import Mechanism

GMAC, ECDSA, HLS2, MD5 = (Mechanism(n) for n in (5, 7, 2, 3))


def visited(mechanism: Mechanism = GMAC, *, proven: bool = False, heard: bool = False) -> Visited:
    return Visited(
        "GP1", "line", "model-x", 48, mechanism, ciphered=mechanism is GMAC, proven=proven, heard=heard
    )  # fmt: skip


@pytest.mark.parametrize(
    ("who", "cause", "kind", "says", "counted"),
    [
        (visited(), TimeoutError("silence"), errors.LineSilent, "powered", ""),
        (visited(heard=True), ConnectionResetError("cut"), errors.LineSilent, "after a part", ""),
        (visited(), refusals.AssociationRefused("no", 13), errors.KeyRejected, "client SAP 48", ""),
        (visited(), refusals.AssociationRefused("no", 2), errors.MeterRefused, "model-x", ""),
        (visited(), refusals.ProofRefused("no", 3), errors.KeyRejected, "guek and gak", ""),
        (visited(ECDSA), refusals.ProofRefused("no"), errors.KeyRejected, "sign and meter_sign", ""),
        (visited(HLS2), refusals.ProofRefused("no"), errors.KeyRejected, "each maker's own", ""),
        (visited(MD5), refusals.ProofInvalid("no"), errors.KeyRejected, "hls of", "tag-invalid"),
        (visited(), refusals.AccessRefused("no", 3), errors.MeterRefused, "no", ""),
        (visited(), refusals.NotNegotiated("no ACCESS"), errors.MeterRefused, "no ACCESS", ""),
        (visited(), refusals.ExceptionAnswered("x", 6), errors.KeyRejected, "in the clear", ""),
        (visited(), refusals.ExceptionAnswered("x", 2), errors.MeterRefused, "in the clear", ""),
        (visited(), errors.CounterExhausted("end"), errors.KeyRejected, "Change the", ""),
        (visited(), errors.TagInvalid("tag"), errors.KeyRejected, "plays the meter", "tag-invalid"),
        (visited(proven=True), errors.TagInvalid("tag"), errors.MalformedReply, "altered", "tag-invalid"),
        (visited(), errors.Replayed("old"), errors.MalformedReply, "old answer", "replayed"),
        (visited(), errors.Downgraded("less"), errors.MalformedReply, "nothing of it", "downgraded"),
        (visited(), errors.Compressed("V.44"), errors.MeterRefused, "Switch compression", "compressed"),
        (visited(), errors.WrongInvokeId("other"), errors.MalformedReply, "other", "wrong-invoke-id"),
        (visited(), errors.MalformedApdu("cut"), errors.MalformedReply, "cut", "malformed"),
        (visited(), errors.LocalProtocolError("x"), errors.MeterRefused, "cannot be asked", "faults-of-protocol"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_what_a_field_engineer_reads(
    who: Visited,
    cause: OSError | errors.ProtocolError,
    kind: type[errors.MeterError],
    says: str,
    counted: str,
) -> None:
    error = explained(who, "GET 1.0.1.8.0.255:2", cause)
    assert type(error) is kind
    assert (error.meter, error.line) == ("GP1", "line")
    assert says in str(error)
    assert refusal_of(cause) == counted


def test_a_key_that_is_none_is_the_key_s_fault() -> None:
    error = explained(visited(), "keys", errors.LocalProtocolError("the key sign: out of range"))
    assert type(error) is errors.KeyRejected
    assert "[GP1] and the suite" in str(error)


def test_once_an_answer_verified_it_is_no_longer_the_aarq() -> None:
    error = explained(visited(proven=True), "AARQ", errors.MalformedApdu("cut"))
    assert error.during == "HLS passes 3 and 4"
