"""The alarms lane: an alarm leaves alone and at once; in a storm those heard within `batch_ms` share messages.

A storm is more than AT_ONCE_PER_S alarms a second for longer than AT_ONCE_BURST of them (on a narrow link: the second
alarm within `batch_ms`): publishes are what the cloud's quota counts, and bulk needs its share of them.

An alarm comes from the journal's subscription, before its commit, and leaves in the same turn of the loop. What cannot
leave now (no connection, no number) is not kept here: it waits in the journal like every row, and `look` finds it. The
ids that are under way are known, so that the committed row does not follow at once a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_core.uplink.outbox import ALARM, Ref
from edge_core.uplink.packer import Draft
from edge_core.uplink.payloads import alarms as payload

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from edge_core.clock import Clock
    from edge_core.domain import Alarm
    from edge_core.uplink.outbox import Item
    from edge_core.uplink.topics import Topics

MOST_WAITING = 20_000
STORM_PER_S = 200  # above this, narrow links get compact columns
AT_ONCE_PER_S = 30.0
AT_ONCE_BURST = 10.0


class AlarmLane:
    """Collects alarms into drafts.

    Args:
        emit: sends a draft now; False when it cannot, then its alarms are left to `look`.
        knows: is the item under way, set aside or released lately?
        batch_s: how long alarms of a storm wait for each other.
        room: octets of a message without its envelope.
        narrow: compact columns in a storm (lite).
    """

    def __init__(
        self,
        topics: Topics,
        *,
        emit: Callable[[Draft], bool],
        knows: Callable[[Item], bool],
        clock: Clock,
        batch_s: float,
        room: int,
        narrow: bool = False,
    ) -> None:
        self._topics = topics
        self._emit = emit
        self._knows = knows
        self._clock = clock
        self._batch_s = batch_s
        self.room = room
        self._narrow = narrow
        self._waiting: dict[str, Alarm] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rate = 1 / max(batch_s, 0.001) if narrow else AT_ONCE_PER_S
        self._burst = self._tokens = 1.0 if narrow else AT_ONCE_BURST
        self._last = clock.monotonic()
        self.missed = True  # at the start the journal may hold some

    def heard(self, alarm: Alarm, loop: asyncio.AbstractEventLoop) -> None:
        """An alarm, perhaps for the second time."""
        if alarm.id in self._waiting or self._knows((ALARM, alarm.id)):
            return
        if len(self._waiting) >= MOST_WAITING:
            self.missed = True
            return
        self._waiting[alarm.id] = alarm
        if self._timer is None:
            now = self._clock.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
            self._last = now
            if self._tokens >= 1.0 or self._batch_s <= 0:
                self._tokens -= 1.0
                self.flush()
            else:
                self._timer = loop.call_later(self._batch_s, self.flush)

    def found(self, alarms: Iterable[Alarm]) -> None:
        """Alarms that wait in the journal: those that are not under way leave now."""
        for alarm in alarms:
            if not self._knows((ALARM, alarm.id)):
                self._waiting.setdefault(alarm.id, alarm)
        if self._waiting:
            self.flush()

    def flush(self) -> None:
        """Send what waits, in one message per class and size."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        by_class: dict[str, list[Alarm]] = {}
        for alarm in waiting.values():
            by_class.setdefault(alarm.class_, []).append(alarm)
        for class_, alarms in by_class.items():
            for draft in self._drafts(class_, alarms):
                if not self._emit(draft):
                    self.missed = True

    def _drafts(self, class_: str, alarms: list[Alarm]) -> list[Draft]:
        storm = len(alarms) > max(1, STORM_PER_S * self._batch_s)
        if self._narrow and storm:
            by_code: dict[str, list[Alarm]] = {}
            for alarm in alarms:
                if payload.fits_compact(alarm):
                    by_code.setdefault(alarm.code, []).append(alarm)
            alarms = [alarm for alarm in alarms if not payload.fits_compact(alarm)]
            out = [d for group in by_code.values() for d in self._compact(class_, group)]
        else:
            out = []
        texts: list[bytes] = []
        ids: list[str] = []
        octets = 16
        for alarm in alarms:
            text = self._encoded(alarm)
            if texts and octets + len(text) + 1 > self.room:
                out.append(self._draft(class_, ids, payload.members(texts)))
                texts, ids, octets = [], [], 16
            texts.append(text)
            ids.append(alarm.id)
            octets += len(text) + 1
        if texts:
            out.append(self._draft(class_, ids, payload.members(texts)))
        return out

    def _encoded(self, alarm: Alarm) -> bytes:
        """The alarm as JSON; without its detail where that is broken or alone too large."""
        try:
            text = payload.alarm_json(alarm)
        except (ValueError, TypeError):
            text = b""
        if not text or len(text) + 16 > self.room:
            text = payload.alarm_json(payload.without_detail(alarm))
        return text

    def _compact(self, class_: str, alarms: list[Alarm]) -> list[Draft]:
        """Columns of one code, cut so that they fit: about 60 octets an alarm and its meter number."""
        widest = max(len(alarm.meter.encode()) for alarm in alarms) + 60
        each = max(1, (self.room - 100) // widest)
        groups = [alarms[i : i + each] for i in range(0, len(alarms), each)]
        return [
            self._draft(class_, [a.id for a in group], payload.compact_members(group))
            for group in groups
        ]

    def _draft(self, class_: str, ids: list[str], members: list[tuple[str, bytes]]) -> Draft:
        refs = tuple(Ref(ALARM, id_, 0, 1, 1) for id_ in ids)
        return Draft(self._topics.alarms(class_), "alarms", class_, members, refs, "alarms")
