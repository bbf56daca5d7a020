"""The xDLMS APDUs: `decode` is the one way from octets to a message, whatever service it is.

Invariants: any octets decode or raise ProtocolError; values inside messages stay octets (see services). ACSE APDUs
(60 to 63) are decoded by `acse`, wrapped ones (glo-, general-...) are opened by `ciphering` first.
Source: DLMS UA Green Book ed. 9, clause 9.5.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import access, axdr, services
from edge_core.protocols.dlms.codes import (
    ServiceError,
    StateError,
    service_error_words,
    words,
)
from edge_core.protocols.dlms.cosem import DESCRIPTOR_OCTETS, Attribute, read_descriptor
from edge_core.protocols.dlms.parts import at_end

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIRMED_SERVICE_ERROR: Final = 0x0E
DATA_NOTIFICATION: Final = 0x0F
DATA_NOTIFICATION_CONFIRM: Final = 0x10
GET_REQUEST: Final = 0xC0
SET_REQUEST: Final = 0xC1
EVENT_NOTIFICATION: Final = 0xC2
ACTION_REQUEST: Final = 0xC3
GET_RESPONSE: Final = 0xC4
SET_RESPONSE: Final = 0xC5
ACTION_RESPONSE: Final = 0xC7
EXCEPTION_RESPONSE: Final = 0xD8
GENERAL_BLOCK_TRANSFER: Final = 0xE0

_DATE_TIME_OCTETS: Final = 12


class DataNotification(msgspec.Struct, frozen=True):
    """data-notification: a push.

    Attributes:
        long_invoke: long-invoke-id-and-priority, 32 bits.
        time: date-time octets of the header, b"" without.
        body: one value as A-XDR, undecoded.
    """

    NAME: ClassVar[str] = "data-notification"
    long_invoke: int
    time: bytes
    body: bytes

    @property
    def long_invoke_id(self) -> int:
        """The id alone, 24 bits."""
        return self.long_invoke & 0xFFFFFF

    def to_bytes(self) -> bytes:
        """The APDU."""
        head = bytes((DATA_NOTIFICATION,)) + self.long_invoke.to_bytes(4, "big")
        return head + axdr.encode_octets(self.time) + self.body


class DataNotificationConfirm(msgspec.Struct, frozen=True):
    """data-notification-confirm: our answer to a confirmed push."""

    NAME: ClassVar[str] = "data-notification-confirm"
    long_invoke: int
    time: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU."""
        head = bytes((DATA_NOTIFICATION_CONFIRM,)) + self.long_invoke.to_bytes(4, "big")
        return head + axdr.encode_octets(self.time)


class EventNotification(msgspec.Struct, frozen=True):
    """event-notification-request: how older meters alarm.

    Attributes:
        time: date-time octets, b"" without.
        attribute: what it is about.
        body: the value as A-XDR, undecoded.
    """

    NAME: ClassVar[str] = "event-notification-request"
    time: bytes
    attribute: Attribute
    body: bytes

    def to_bytes(self) -> bytes:
        """The APDU."""
        time = b"\x01" + axdr.encode_octets(self.time) if self.time else b"\x00"
        return bytes((EVENT_NOTIFICATION,)) + time + self.attribute.to_bytes() + self.body


class ExceptionResponse(msgspec.Struct, frozen=True):
    """exception-response. It may come in the clear: a hint, never an authenticated fact.

    Attributes:
        state: see StateError.
        service: see ServiceError.
        counter: the counter that the meter expects at least, with INVOCATION_COUNTER_ERROR.
    """

    NAME: ClassVar[str] = "exception-response"
    state: int
    service: int
    counter: int | None = None

    @property
    def words(self) -> str:
        """The error in the standard's words."""
        text = f"{words(StateError, self.state)}: {words(ServiceError, self.service)}"
        return text if self.counter is None else f"{text} {self.counter}"

    def to_bytes(self) -> bytes:
        """The APDU."""
        tail = b"" if self.counter is None else self.counter.to_bytes(4, "big")
        return bytes((EXCEPTION_RESPONSE, self.state, self.service)) + tail


class ConfirmedServiceError(msgspec.Struct, frozen=True):
    """confirmed-service-error, alone or inside a rejected association."""

    NAME: ClassVar[str] = "confirmed-service-error"
    service: int
    kind: int
    value: int

    @property
    def words(self) -> str:
        """The error in the standard's words."""
        return service_error_words(self.service, self.kind, self.value)

    def to_bytes(self) -> bytes:
        """The APDU."""
        return bytes((CONFIRMED_SERVICE_ERROR, self.service, self.kind, self.value))


class GeneralBlockTransfer(msgspec.Struct, frozen=True):
    """general-block-transfer: a piece of another APDU, which may be ciphered as a whole.

    Attributes:
        last: no block follows.
        streaming: more follow without an acknowledgement.
        window: blocks that the sender can take.
        number: of this block, from 1 on.
        acknowledged: number of the last block received in sequence.
        data: the piece.
    """

    NAME: ClassVar[str] = "general-block-transfer"
    last: bool
    streaming: bool
    window: int
    number: int
    acknowledged: int
    data: bytes = b""

    def to_bytes(self) -> bytes:
        """The APDU."""
        control = (0x80 if self.last else 0) | (0x40 if self.streaming else 0) | self.window
        head = _GBT.pack(GENERAL_BLOCK_TRANSFER, control, self.number, self.acknowledged)
        return head + axdr.encode_octets(self.data)


_GBT: Final = struct.Struct(">BBHH")

Apdu = (
    services.GetMessage
    | services.SetMessage
    | services.ActionMessage
    | access.AccessMessage
    | DataNotification
    | DataNotificationConfirm
    | EventNotification
    | ExceptionResponse
    | ConfirmedServiceError
    | GeneralBlockTransfer
)


def decode(octets: bytes) -> Apdu:
    """The message that an unprotected xDLMS APDU is.

    Raises:
        MalformedApdu: cut, an unknown tag or kind, or lengths that cannot be.
    """
    if not octets:
        raise MalformedApdu("an empty APDU", 0)
    read = _READERS.get(octets[0])
    if read is None:
        raise MalformedApdu(f"APDU {octets[0]:02X} is unknown here", 0)
    try:
        return read(octets)
    except (IndexError, struct.error):
        raise MalformedApdu("the APDU is cut", len(octets)) from None


def split_data_notification(octets: bytes) -> tuple[int, bytes, int]:
    """long-invoke-id, date-time octets and the offset of the body of a data-notification.

    The date-time is length-prefixed (00 or 0C); Kaifa writes it with the tag of an octet-string (09 0C), also accepted.

    Raises:
        MalformedApdu: cut, or a date-time of another length.
    """
    if len(octets) < 6:
        raise MalformedApdu("the APDU is cut", len(octets))
    long_invoke = int.from_bytes(octets[1:5], "big")
    at = 5
    if octets[at] == 0x09 and octets[at + 1 : at + 2] == b"\x0c":
        at += 1
    size = octets[at]
    at += 1
    if not size:
        return long_invoke, b"", at
    if size != _DATE_TIME_OCTETS:
        raise MalformedApdu(f"a date-time of {size} octets", at - 1)
    time = octets[at : at + size]
    if len(time) < size:
        raise MalformedApdu("the date-time is cut", at)
    return long_invoke, time, at + size


def _data_notification(octets: bytes) -> DataNotification:
    long_invoke, time, at = split_data_notification(octets)
    return DataNotification(long_invoke, time, octets[at:])


def _data_notification_confirm(octets: bytes) -> DataNotificationConfirm:
    long_invoke, time, at = split_data_notification(octets)
    at_end(octets, at)
    return DataNotificationConfirm(long_invoke, time)


def _event_notification(octets: bytes) -> EventNotification:
    time = b""
    at = 2
    if octets[1] == 1:
        time, at = axdr.read_octets(octets, 2)
    elif octets[1] == _DATE_TIME_OCTETS:  # the optional time without its presence octet
        time, at = axdr.read_octets(octets, 1)
    elif octets[1]:
        raise MalformedApdu("the time is neither absent (00) nor present (01)", 1)
    if len(time) not in (0, _DATE_TIME_OCTETS):
        raise MalformedApdu(f"a date-time of {len(time)} octets", 2)
    attribute = Attribute(*read_descriptor(octets, at))
    return EventNotification(time, attribute, octets[at + DESCRIPTOR_OCTETS :])


def _exception_response(octets: bytes) -> ExceptionResponse:
    counter = int.from_bytes(octets[3:7], "big") if len(octets) == 7 else None
    at_end(octets, 3 if counter is None else 7)
    return ExceptionResponse(octets[1], octets[2], counter)


def _confirmed_service_error(octets: bytes) -> ConfirmedServiceError:
    at_end(octets, 4)
    return ConfirmedServiceError(octets[1], octets[2], octets[3])


def _general_block_transfer(octets: bytes) -> GeneralBlockTransfer:
    _, control, number, acknowledged = _GBT.unpack_from(octets)
    data, at = axdr.read_octets(octets, _GBT.size)
    at_end(octets, at)
    return GeneralBlockTransfer(
        bool(control & 0x80), bool(control & 0x40), control & 0x3F, number, acknowledged, data
    )


_READERS: Final[dict[int, Callable[[bytes], Apdu]]] = {
    CONFIRMED_SERVICE_ERROR: _confirmed_service_error,
    DATA_NOTIFICATION: _data_notification,
    DATA_NOTIFICATION_CONFIRM: _data_notification_confirm,
    GET_REQUEST: services.read_get_request,
    SET_REQUEST: services.read_set_request,
    EVENT_NOTIFICATION: _event_notification,
    ACTION_REQUEST: services.read_action_request,
    GET_RESPONSE: services.read_get_response,
    SET_RESPONSE: services.read_set_response,
    ACTION_RESPONSE: services.read_action_response,
    EXCEPTION_RESPONSE: _exception_response,
    access.ACCESS_REQUEST: access.read_access_request,
    access.ACCESS_RESPONSE: access.read_access_response,
    GENERAL_BLOCK_TRANSFER: _general_block_transfer,
}
