"""Alarms of the journal's room: each condition once, and again after it was over."""

from pathlib import Path
from typing import Any

from edge_core.gateway.room import RoomWatch
from edge_core.journal import JournalStatus

MIB = 1 << 20


def status(**fields: Any) -> JournalStatus:
    return JournalStatus(
        **{
            "path": Path("journal.db"), "epoch": 1, "head": 9, "segments_waiting": 5, "bytes_waiting": 400 * MIB,
            "alarms_waiting": 0, "notes_waiting": 0, "aside": 0, "used_bytes": 420 * MIB, "max_bytes": 512 * MIB,
            "reserve_bytes": 16 * MIB, "hours_left": 100.0, "full": False, "refused": 0, "commits": 1, "readings": 1,
            "conflicts": 0, "unreadable": 0, "damaged": None,
        }
        | fields
    )  # fmt: skip


def test_few_hours_are_told_once_until_there_were_many() -> None:
    room = RoomWatch()
    assert room.look(status()) == []
    assert room.look(status(hours_left=23.9)) == [
        ("disk", {"hours_left": 23, "used_bytes": 420 * MIB})
    ]
    assert room.look(status(hours_left=10.0)) == []
    assert room.look(status(hours_left=30.0)) == []  # neither few nor many
    assert room.look(status(hours_left=20.0)) == []
    assert room.look(status(hours_left=50.0)) == []
    assert [code for code, _ in room.look(status(hours_left=5.0))] == ["disk"]


def test_a_fast_start_in_an_empty_journal_is_no_reason() -> None:
    room = RoomWatch()
    assert room.look(status(hours_left=0.5, bytes_waiting=100 * MIB)) == []
    assert room.look(status(hours_left=None)) == []


def test_full_and_merged_and_room_again() -> None:
    room = RoomWatch()
    assert room.look(status(full=True)) == [
        ("journal-full", {"used_bytes": 420 * MIB, "merged_alarms": 0})
    ]
    assert room.look(status(full=True)) == []
    assert room.look(status(full=True, merged=7)) == [
        ("journal-full", {"used_bytes": 420 * MIB, "merged_alarms": 7})
    ]
    assert room.look(status(full=True, merged=9)) == []
    assert room.look(status(merged=9)) == []
    assert [code for code, _ in room.look(status(full=True, merged=9))] == ["journal-full"]
