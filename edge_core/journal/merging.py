"""Alarms when even the reserve is full: duplicates and restores of one meter that still wait become one.

What the cloud needs most is how each meter is now. So of what waits for one meter, event and phases the newest alarm stays;
`last-gasp` and `restore` are one event here, as is every code and the one that clears it. The newest tells in its `detail`
what it stands for: how many were merged, by code, and since when. Pure: no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.domain.alarm_codes import ALARM_KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Alarm

Event = tuple[str, str, tuple[str, ...]]  # meter, code, phases


def event_of(alarm: Alarm) -> Event:
    """What an alarm is about: alarms of one event may be merged."""
    kind = ALARM_KINDS.get(alarm.code)
    code = kind.clears if kind is not None and kind.clears else alarm.code
    return alarm.meter, code, alarm.phases


def merged(alarms: Sequence[Alarm]) -> Alarm:
    """One for all alarms of an event: the last of them, `detail["merged"]` = {"alarms", "since", "codes"} of the others."""
    newest = alarms[-1]
    since, codes = newest.at, dict(_earlier(newest)["codes"])
    for alarm in alarms:
        earlier = _earlier(alarm)
        since = min(since, alarm.at, earlier["since"])
        if alarm is not newest:
            for code, number in [(alarm.code, 1), *earlier["codes"].items()]:
                codes[code] = codes.get(code, 0) + number
    note = {"alarms": sum(codes.values()), "since": since, "codes": codes}
    return msgspec.structs.replace(newest, detail=newest.detail | {"merged": note})


def _earlier(alarm: Alarm) -> dict[str, Any]:
    """What an alarm already stands for beside itself."""
    note = alarm.detail.get("merged")
    return note if isinstance(note, dict) else {"since": alarm.at, "codes": {}}
