"""Messages and octets in words, for `opendcu decode`: what a person wants to see, JSON-like.

Invariant: nothing here shows a password or a dedicated key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_core.domain import obis_from_bytes
from edge_core.errors import MalformedFrame
from edge_core.protocols.dlms import acse, apdu, bodies, services
from edge_core.protocols.dlms.axdr import DataType
from edge_core.protocols.dlms.codes import (
    ApplicationContext,
    DataAccessResult,
    Mechanism,
    ReleaseReason,
    words,
)
from edge_core.protocols.dlms.cosem import (
    CaptureObject,
    EntrySelector,
    RangeSelector,
    Selector,
)
from edge_core.protocols.dlms.datetime import STATUS_UNSPECIFIED, UNSPECIFIED_DEVIATION
from edge_core.protocols.hdlc.frame import Kind, split_address
from edge_core.protocols.hdlc.parameters import parse_parameters

if TYPE_CHECKING:
    from edge_core.protocols.hdlc.frame import Frame

_STATUS = {
    0x01: "invalid",
    0x02: "doubtful",
    0x04: "other-base",
    0x08: "invalid-status",
    0x80: "dst",
}


def iso_of(octets: bytes, *, utc_to_local: bool) -> str | None:
    """A date-time in ISO 8601, with an offset where the deviation is specified; None where it names no minute."""
    if not bodies.looks_like_datetime(octets):
        return None
    year, month, day = octets[0] << 8 | octets[1], octets[2], octets[3]
    hour, minute, second = octets[5], octets[6], octets[7]
    if year == 0xFFFF or month > 12 or day > 31 or hour > 23 or minute > 59:
        return None
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second if second < 60 else 0:02}"
    deviation = int.from_bytes(octets[9:11], "big", signed=True)
    if deviation == UNSPECIFIED_DEVIATION:
        return text
    east = deviation if utc_to_local else -deviation
    return f"{text}{'-' if east < 0 else '+'}{abs(east) // 60:02}:{abs(east) % 60:02}"


def octets_json(tag: DataType, octets: bytes, *, utc_to_local: bool = False) -> dict[str, Any]:
    """Octets in hex, and what they were recognised as."""
    out: dict[str, Any] = {"octets": octets.hex()}
    if tag == DataType.DATE:
        out["date"] = _date(octets)
    elif tag == DataType.TIME:
        out["time"] = _time(octets)
    elif len(octets) == 12 and bodies.looks_like_datetime(octets):
        out["datetime"] = iso_of(octets, utc_to_local=utc_to_local) or (
            f"{_date(octets[:5])} {_time(octets[5:9])}"
        )
        deviation = int.from_bytes(octets[9:11], "big", signed=True)
        out["deviation"] = None if deviation == UNSPECIFIED_DEVIATION else deviation
        status = octets[11]
        if status == STATUS_UNSPECIFIED:
            out["status"] = None
        else:
            out["status"] = [name for bit, name in _STATUS.items() if status & bit]
    elif len(octets) == 6 and octets[5] == 0xFF:
        out["obis"] = obis_from_bytes(octets)
    elif bodies.is_descriptor(octets):
        out |= {
            "class": int.from_bytes(octets[:2], "big"),
            "obis": obis_from_bytes(octets[2:8]),
            "attribute": octets[8],
        }
    elif (text := bodies.printable(octets)) is not None:
        out["text"] = text
    return out


def _date(octets: bytes) -> str:
    """year-month-day of a date, ? for what is unspecified."""
    year = octets[0] << 8 | octets[1]
    special_month = {0xFD: "dst-end", 0xFE: "dst-begin", 0xFF: "??"}
    special_day = {0xFD: "last-but-one", 0xFE: "last", 0xFF: "??"}
    return "-".join(
        (
            "????" if year == 0xFFFF else f"{year:04}",
            special_month.get(octets[2], f"{octets[2]:02}"),
            special_day.get(octets[3], f"{octets[3]:02}"),
        )
    )


def _time(octets: bytes) -> str:
    return ":".join("??" if o == 0xFF else f"{o:02}" for o in octets[:3])


def link_details(frame: Frame) -> dict[str, Any]:
    """An HDLC frame without an APDU."""
    out: dict[str, Any] = {
        "source": _address(frame.source),
        "destination": _address(frame.destination),
    }
    kind = frame.kind
    if kind in (Kind.SNRM, Kind.UA):
        try:
            parameters = parse_parameters(frame.information)
        except MalformedFrame as error:
            out["parameters"] = str(error)
        else:
            out["parameters"] = {
                name: getattr(parameters, name) for name in parameters.__struct_fields__
            }
    elif kind in (Kind.RR, Kind.RNR, Kind.I):
        out["receive_number"] = frame.receive_number
    if kind is Kind.I:
        out["send_number"] = frame.send_number
    return out


def _address(octets: bytes) -> str:
    upper, lower = split_address(octets)
    return str(upper) if lower is None else f"{upper}.{lower}"


def details_of(
    message: apdu.Apdu | acse.AcseApdu | acse.Initiate, *, utc_to_local: bool = False
) -> dict[str, Any]:
    """What a message says beside its value."""
    out: dict[str, Any] = {}
    if hasattr(message, "invoke"):
        invoke: int = message.invoke
        out["invoke_id"] = invoke & 0x0F
        out["confirmed"] = bool(invoke & 0x40)
        out["high_priority"] = bool(invoke & 0x80)
    match message:
        case acse.Aarq():
            hidden = message.mechanism == Mechanism.LLS
            out |= {
                "context": words(ApplicationContext, message.context),
                "mechanism": acse.mechanism_words(message.mechanism),
                "title": message.title.hex() or None,
                "authentication_value": f"{len(message.authentication_value)} octets, not shown"
                if hidden
                else message.authentication_value.hex() or None,
            }
        case acse.Aare():
            out |= {
                "context": words(ApplicationContext, message.context),
                "result": message.words,
                "mechanism": acse.mechanism_words(message.mechanism),
                "title": message.title.hex() or None,
                "authentication_value": message.authentication_value.hex() or None,
            }
        case acse.Rlrq() | acse.Rlre():
            out["reason"] = None if message.reason is None else words(ReleaseReason, message.reason)
        case acse.InitiateRequest():
            out |= {
                "conformance": message.conformance.words,
                "max_pdu": message.max_pdu,
                "dedicated_key": f"{len(message.dedicated_key)} octets, not shown"
                if message.dedicated_key
                else None,
            }
        case acse.InitiateResponse():
            out |= {
                "conformance": message.conformance.words,
                "max_pdu": message.max_pdu,
                "vaa_name": message.vaa_name,
            }
        case apdu.ConfirmedServiceError() | apdu.ExceptionResponse():
            out["error"] = message.words
            if isinstance(message, apdu.ExceptionResponse) and message.counter is not None:
                out["expected_counter"] = message.counter
        case apdu.DataNotification():
            out["long_invoke_id"] = message.long_invoke_id
            out["time"] = _when(message.time, utc_to_local=utc_to_local)
        case apdu.EventNotification():
            out["time"] = _when(message.time, utc_to_local=utc_to_local)
            out["attribute"] = _thing(message.attribute.class_id, str(message.attribute))
        case apdu.GeneralBlockTransfer():
            out |= {"block": message.number, "last": message.last, "streaming": message.streaming}
        case services.GetRequest() | services.SetRequest() | services.SetRequestFirstBlock():
            out["attribute"] = _thing(message.attribute.class_id, str(message.attribute))
            if message.selector is not None:
                out["selector"] = _selector(message.selector, utc_to_local=utc_to_local)
        case services.GetRequestList() | services.SetRequestList():
            out["attributes"] = [_thing(a.class_id, str(a)) for a, _ in message.attributes]
        case services.ActionRequest() | services.ActionRequestFirstBlock():
            out["method"] = _thing(message.method.class_id, str(message.method))
        case services.GetRequestNext() | services.ActionRequestNextBlock():
            out["block"] = message.number
        case services.GetResponse() | services.SetResponse():
            out["result"] = message.words
        case services.GetResponseBlock():
            out["result"] = message.words
            out |= {"block": message.block.number, "last": message.block.last}
        case services.GetResponseList():
            out["results"] = [r.words for r in message.results]
        case services.SetResponseList() | services.SetResponseLastBlock():
            out["results"] = [words(DataAccessResult, r) for r in message.results]
        case services.ActionResponse():
            out["result"] = message.words
            if message.returned is not None:
                out["returned"] = message.returned.words
        case _:
            pass
    return out


def _when(octets: bytes, *, utc_to_local: bool) -> dict[str, Any] | None:
    if not octets:
        return None
    return octets_json(DataType.DATE_TIME, octets, utc_to_local=utc_to_local)


def _thing(class_id: int, text: str) -> str:
    return f"class {class_id}, {text}"


def _column(column: CaptureObject) -> str:
    index = f"[{column.data_index}]" if column.data_index else ""
    return _thing(column.class_id, f"{column.obis}:{column.attribute}{index}")


def _selector(selector: Selector, *, utc_to_local: bool) -> dict[str, Any]:
    if isinstance(selector, RangeSelector):
        bounds = [
            octets_json(bound.tag, bound.value, utc_to_local=utc_to_local)
            if isinstance(bound.value, bytes)
            else str(bound.plain())
            for bound in (selector.start, selector.end)
        ]
        return {
            "by": "range",
            "of": _column(selector.restricting),
            "from": bounds[0],
            "to": bounds[1],
            "columns": [_column(c) for c in selector.columns],
        }
    if isinstance(selector, EntrySelector):
        return {
            "by": "entry",
            "from": selector.first,
            "to": selector.last,
            "first_column": selector.first_column,
            "last_column": selector.last_column,
        }
    return {"by": selector.number}
