"""From an error of line or protocol to the MeterError that a field engineer reads: who, where, during what, what next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edge_core.errors import (
    Compressed,
    CounterExhausted,
    Downgraded,
    KeyRejected,
    LineSilent,
    LocalProtocolError,
    MalformedReply,
    MeterError,
    MeterRefused,
    ProtocolError,
    Replayed,
    TagInvalid,
)
from edge_core.protocols.dlms.codes import Mechanism, UserDiagnostic
from edge_core.protocols.dlms.refusals import (
    AssociationRefused,
    ExceptionAnswered,
    NotNegotiated,
    ProofInvalid,
    ProofRefused,
    Refused,
    is_counter_error,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS_AT_FAULT = (
    UserDiagnostic.AUTHENTICATION_FAILURE,
    UserDiagnostic.AUTHENTICATION_MECHANISM_NAME_NOT_RECOGNISED,
    UserDiagnostic.AUTHENTICATION_MECHANISM_NAME_REQUIRED,
)


class Visited(NamedTuple):
    """Who was visited, and how far one came.

    Attributes:
        meter: the utility's meter number.
        place: line and address.
        model: name of the meter model.
        client: client SAP.
        mechanism: authentication.
        ciphered: the association is ciphered.
        proven: an answer verified: the keys are right.
        heard: a part of the answer came.
    """

    meter: str
    place: str
    model: str
    client: int
    mechanism: Mechanism
    ciphered: bool
    proven: bool
    heard: bool


def explained(who: Visited, during: str, cause: OSError | ProtocolError) -> MeterError:
    """The MeterError for what went wrong in a step.

    Args:
        who: the meter.
        during: the step, in the standard's terms; `keys` before the line is opened.
        cause: what went wrong.
    """
    text = str(cause) or type(cause).__name__
    if who.proven and during == "AARQ":
        during = "HLS passes 3 and 4"
    if isinstance(cause, OSError):
        if isinstance(cause, TimeoutError):
            hint = "Is the meter powered, is the address right?"
            return LineSilent(who.meter, who.place, during, text, hint)
        part = " after a part of the answer" if who.heard else ""
        return LineSilent(who.meter, who.place, during, f"{text}{part}")
    if isinstance(cause, Refused):
        return _said_no(who, during, cause, text)
    return _not_believed(who, during, cause, text)


def _said_no(who: Visited, during: str, cause: Refused, text: str) -> MeterError:
    meter, place = who.meter, who.place
    if isinstance(cause, AssociationRefused):
        text = f"association refused: {text}"
        if cause.code in _KEYS_AT_FAULT:
            hint = f"Check the password or keys that [{meter}] holds, the security and the client SAP {who.client}"
            return KeyRejected(meter, place, during, text, hint, code=cause.code)
        hint = f"Check the client SAP {who.client} and the meter model {who.model}"
        return MeterRefused(meter, place, during, text, hint, code=cause.code)
    if isinstance(cause, ProofRefused):
        return KeyRejected(meter, place, "pass 3 of HLS", text, _keys(who), code=cause.code)
    if isinstance(cause, ExceptionAnswered):
        hint = "" if cause.authenticated else "This answer came in the clear: a hint, no proof"
        if is_counter_error(cause):
            return KeyRejected(meter, place, during, text, hint, code=cause.code)
        text = f"{cause.service}: {text}"
        return MeterRefused(meter, place, during, text, hint, code=cause.code)
    if isinstance(cause, NotNegotiated):
        return MeterRefused(meter, place, during, text)
    return MeterRefused(meter, place, during, text, code=cause.code)


def _not_believed(who: Visited, during: str, cause: ProtocolError, text: str) -> MeterError:
    meter, place = who.meter, who.place
    if isinstance(cause, CounterExhausted):
        return KeyRejected(meter, place, during, text, "Change the global keys of this meter")
    if isinstance(cause, ProofInvalid) or (isinstance(cause, TagInvalid) and not who.proven):
        text = f"{text}: whoever answers does not prove that it knows the key"
        hint = f"{_keys(who)}; with the right keys somebody plays the meter"
        return KeyRejected(meter, place, during, text, hint)
    if isinstance(cause, Compressed):
        hint = "Switch compression (V.44) off in the meter's security setup"
        return MeterRefused(meter, place, during, text, hint)
    if isinstance(cause, LocalProtocolError):
        if during == "keys":
            hint = f"Check the keys of [{meter}] and the suite of the model"
            return KeyRejected(meter, place, during, text, hint)
        return MeterRefused(meter, place, during, f"cannot be asked: {text}")
    hint = next((hint for kind, hint in _HINTS.items() if isinstance(cause, kind)), "")
    return MalformedReply(meter, place, during, text, hint)


_HINTS: Mapping[type[ProtocolError], str] = {
    TagInvalid: "The answer was altered on its way",
    Replayed: "An old answer was sent again",
    Downgraded: "The answer was refused, nothing of it is used",
}


def _keys(who: Visited) -> str:
    """Which keys the proofs of HLS, or the ciphering around them, hang on."""
    if who.mechanism is Mechanism.HLS7_ECDSA:
        return f"Check sign and meter_sign of [{who.meter}]"
    if who.mechanism is Mechanism.HLS2:
        return (
            f"Check hls of [{who.meter}]; mechanism 2 is each maker's own, and this is AES-128 of the challenge, as "
            "IS 15959 meters do it"
        )
    if who.ciphered or who.mechanism is Mechanism.HLS5_GMAC:
        return f"Check guek and gak of [{who.meter}]"
    return f"Check hls of [{who.meter}]"
