"""The journal's room, watched: filling, full, merged alarms, room again. Says which alarms to raise; tells the events itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_core.health import events

if TYPE_CHECKING:
    from edge_core.journal import JournalStatus

FEW_HOURS = 24.0
ENOUGH_HOURS = 48.0
SHARE = 0.5
"""Of the room, that must wait unacked before few hours are believed: the first days' reading of a new fleet is fast."""


class RoomWatch:
    """Remembers what was told, so that each condition is told once."""

    def __init__(self) -> None:
        self._full = self._filling = False
        self._merged = 0

    def look(self, status: JournalStatus) -> list[tuple[str, dict[str, Any]]]:
        """(code, detail) of the alarms to raise now."""
        out: list[tuple[str, dict[str, Any]]] = []
        left = status.hours_left
        used = status.bytes_waiting > SHARE * (status.max_bytes - status.reserve_bytes)
        if left is not None and left < FEW_HOURS and used and not self._filling:
            self._filling = True
            events.journal_filling(int(left), status.used_bytes)
            out.append(("disk", {"hours_left": int(left), "used_bytes": status.used_bytes}))
        elif left is None or left > ENOUGH_HOURS or not used:
            self._filling = False
        if (status.full and not self._full) or (status.merged and not self._merged):
            events.journal_full(status.used_bytes, status.merged)
            detail = {"used_bytes": status.used_bytes, "merged_alarms": status.merged}
            out.append(("journal-full", detail))
        elif self._full and not status.full:
            events.journal_has_room()
        self._full, self._merged = status.full, status.merged
        return out
