"""An alarm: one event of one meter, the same id whichever way it was heard (DESIGN section 6)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.domain.alarm_codes import ALARM_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm as it travels.

    Attributes:
        id: see `alarm_id`.
        meter: the utility's meter number; "" for the gateway itself.
        class_: outage, voltage, tamper, meter or gateway; `class` in JSON.
        code: from cloud/schemas/alarms.csv: last-gasp, restore, ...
        phases: any of L1 L2 L3; empty for all or none.
        at: event time on the meter's clock, UTC epoch seconds.
        heard: when we heard it, UTC epoch seconds on our clock.
        authenticated: a tag was verified.
        inferred: concluded by us, not said by a meter.
        iec61968: end device event code, "" when the standard has none.
        detail: anything else worth knowing.
    """

    id: str
    meter: str
    class_: str = msgspec.field(name="class")
    code: str
    phases: tuple[str, ...] = ()
    at: int
    heard: int
    authenticated: bool
    inferred: bool = False
    iec61968: str = ""
    detail: dict[str, Any] = {}


def alarm_id(meter: str, code: str, phases: Sequence[str], at: int | str) -> str:
    """The id that a repeated push, an event-log row of the same event and a resend share.

    Args:
        at: event time in UTC seconds; only without a time the counter or long-invoke-id as text.
    """
    text = f"{meter}|{code}|{','.join(phases)}|{at}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_alarm(
    meter: str,
    code: str,
    *,
    at: int,
    heard: int,
    authenticated: bool,
    phases: tuple[str, ...] = (),
    inferred: bool = False,
    detail: dict[str, Any] | None = None,
    event_time: int | str | None = None,
) -> Alarm:
    """An alarm with its id, class and IEC code filled in from the vocabulary.

    Args:
        event_time: what the id is made from when it is not `at` (a counter, a start minute).

    Raises:
        KeyError: a code that the vocabulary does not know.
    """
    kind = ALARM_KINDS[code]
    return Alarm(
        id=alarm_id(meter, code, phases, at if event_time is None else event_time),
        meter=meter,
        class_=kind.class_,
        code=code,
        phases=phases,
        at=at,
        heard=heard,
        authenticated=authenticated,
        inferred=inferred,
        iec61968=kind.iec61968,
        detail=detail or {},
    )
