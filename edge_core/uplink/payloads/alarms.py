"""alarms/1: alarms of one class. In a storm on a narrow link the value of `alarms` is compact columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edge_core.uplink.payloads.envelope import Envelope, Id16, exact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Alarm

Class = Literal["outage", "voltage", "tamper", "meter", "gateway"]
CLASSES: tuple[str, ...] = ("outage", "voltage", "tamper", "meter", "gateway")


class AlarmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm; see edge_core/domain/alarm.py."""

    id: Id16
    meter: str
    class_: Class = msgspec.field(name="class")
    code: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]+$")]
    phases: list[Literal["L1", "L2", "L3"]] = []
    at: int
    heard: int
    authenticated: bool
    inferred: bool
    iec61968: str = ""
    detail: dict[str, Any] = {}


class Compact(msgspec.Struct, frozen=True):
    """Alarms of one code without phases, all genuine: three columns of one length."""

    code: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]+$")]
    at: list[int]
    meters: list[str]
    ids: list[Id16]


class Alarms(Envelope, frozen=True, kw_only=True):
    """Alarms of the class that `kind` and the topic name."""

    schema: Literal["opendcu.alarms/1"]
    kind: Class
    alarms: Annotated[list[AlarmSpec], msgspec.Meta(min_length=1)] | Compact


def alarm_json(alarm: Alarm) -> bytes:
    """One alarm as JSON; floats in its detail become text.

    Raises:
        ValueError: the detail is nested too deep.
    """
    if alarm.detail:
        alarm = msgspec.structs.replace(alarm, detail=exact(alarm.detail))
    return msgspec.json.encode(alarm)


def without_detail(alarm: Alarm) -> Alarm:
    """The alarm whose detail cannot travel: the alarm must."""
    return msgspec.structs.replace(alarm, detail={"left_out": "too large or broken"})


def members(alarms: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """The members of an alarms message from alarms that are JSON already."""
    return [("alarms", b"[" + b",".join(alarms) + b"]")]


def fits_compact(alarm: Alarm) -> bool:
    """Does the alarm lose nothing that an outage desk needs when only code, time, meter and id travel?"""
    return alarm.authenticated and not alarm.inferred and not alarm.phases and bool(alarm.meter)


def compact_members(alarms: Sequence[Alarm]) -> list[tuple[str, bytes]]:
    """The members of an alarms message in columns; all alarms have one code."""
    return [
        (
            "alarms",
            msgspec.json.encode(
                Compact(
                    alarms[0].code,
                    [a.at for a in alarms],
                    [a.meter for a in alarms],
                    [a.id for a in alarms],
                )
            ),
        )
    ]
