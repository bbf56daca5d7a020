"""What the codes in event logs mean: severity, and which rows raise an alarm. Data in event_codes.csv, with its source.

A vocabulary is named by `log` of a profile in the meter model (is15959, idis, dsmr). The id of an alarm made here is that of a
push about the same event, so consumers see one event whichever way it came.
"""

from __future__ import annotations

import csv
import importlib.resources
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from edge_core.config.models import DlmsModel
from edge_core.domain import as_list, make_alarm
from edge_core.domain.alarm_codes import ALARM_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_core.config.models import Model, Profile
    from edge_core.domain import Alarm, Block

ALARM_AGE_S = 86_400
"""Older rows are history when they are read for the first time: they travel as events, but raise no alarm."""


class EventCode(NamedTuple):
    """A row of event_codes.csv; `alarm` is "" when the event raises none.

    After an event that is `relayout` (new firmware, another configuration) profiles may hold other columns or scalers.
    """

    meaning: str
    severity: str
    alarm: str
    phases: tuple[str, ...]
    relayout: bool = False

    @property
    def iec61968(self) -> str:
        """End device event code of the alarm, "" where none is known."""
        return ALARM_KINDS[self.alarm].iec61968 if self.alarm else ""


@lru_cache(maxsize=1)
def vocabulary() -> dict[tuple[str, int], EventCode]:
    """Everything in event_codes.csv by (log, code)."""
    file = importlib.resources.files("edge_core.acquisition") / "event_codes.csv"
    return {
        (row["log"], int(row["code"])): EventCode(
            row["meaning"],
            row["severity"],
            row["alarm"],
            tuple(row["phases"].split()),
            row["layout"] == "may-change",
        )
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    }


def describe(model: Model, log: str, code: int) -> EventCode | None:
    """What a code in an event log (by its OBIS) of a model means; None where nobody knows."""
    profile = _profile(model, log)
    return None if profile is None else vocabulary().get((profile.log, code))


def _profile(model: Model, obis: str) -> Profile | None:
    if not isinstance(model, DlmsModel):
        return None
    return next((p for p in model.profiles.values() if p.obis == obis), None)


def _codes(block: Block, profile: Profile) -> Iterator[tuple[int, int]]:
    """(time, code) of each row of an event block."""
    column = next((i for i, c in enumerate(block.layout.cols) if c.obis == profile.code), 0)
    for at, code in zip(as_list(block.times), as_list(block.columns[column]), strict=True):
        if isinstance(code, int):
            yield at, code


def relaid_at(block: Block, model: Model) -> int | None:
    """The time of the last row of an event block after which profiles may hold other things, None without."""
    profile = _profile(model, block.layout.profile)
    if profile is None or not profile.log:
        return None
    times = [
        at
        for at, code in _codes(block, profile)
        if (known := vocabulary().get((profile.log, code))) is not None and known.relayout
    ]
    return max(times, default=None)


def alarms_of(block: Block, model: Model, now: float, *, authenticated: bool) -> Iterator[Alarm]:
    """The alarms of the rows of an event block that happened within ALARM_AGE_S before `now`."""
    profile = _profile(model, block.layout.profile)
    if profile is None or not profile.log:
        return
    for at, code in _codes(block, profile):
        known = vocabulary().get((profile.log, code))
        if known is None or not known.alarm or at < now - ALARM_AGE_S:
            continue
        yield make_alarm(
            block.meter,
            known.alarm,
            at=at,
            heard=int(now),
            authenticated=authenticated,
            phases=known.phases,
            detail={"log": block.layout.profile, "event": code, "meaning": known.meaning},
        )


def power_of(block: Block, model: Model) -> list[tuple[int, bool]]:
    """(time, is the supply back?) of the rows of an event block that tell of a power cut of the whole meter, ascending."""
    profile = _profile(model, block.layout.profile)
    if profile is None or not profile.log:
        return []
    found = []
    for at, code in _codes(block, profile):
        known = vocabulary().get((profile.log, code))
        if known is not None and known.alarm in ("last-gasp", "restore"):
            found.append((at, known.alarm == "restore"))
    return sorted(found)
