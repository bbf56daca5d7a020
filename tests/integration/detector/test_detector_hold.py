"""`Journal.hold`: released segments wait for the detector's cursor, for 48 hours at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_core.clock import ManualClock
from edge_core.domain import Block, Column, Layout
from edge_core.journal import Journal

LAYOUT = Layout("1.0.99.1.0.255", 900, (Column("1.0.1.29.0.255", "Wh", 0),))


def kept(tmp_path: Path, *, cursor: int | None, hours: int) -> list[int]:
    """Segments that are there after `hours` of hourly rows that are acked at once and kept for 80 s."""
    clock = ManualClock()
    journal = Journal.open(tmp_path / "journal.db", clock=clock, keep_acked_s=80)
    try:
        if cursor is not None:
            journal.hold("detector", cursor)
        for hour in range(hours):
            time = 1_764_000_000 + 900 * (hour + 1)
            journal.append(
                Block(
                    meter="M",
                    device="d",
                    kind="interval",
                    layout=LAYOUT,
                    times=[time],
                    columns=([5],),
                )
            )
            journal.flush().result(10)
            journal.release(segments=[hour + 1])
            journal.flush().result(10)
            clock.advance(3700)
        return [s.id for s in journal.segments(0, everything=True)]
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("cursor", "hours", "oldest"), [(None, 9, 5), (0, 9, 1), (4, 9, 5), (10_000, 9, 5), (0, 60, 2)]
)
def test_what_the_detector_has_not_read_is_kept(
    tmp_path: Path, cursor: int | None, hours: int, oldest: int
) -> None:
    found = kept(tmp_path, cursor=cursor, hours=hours)
    if cursor == 0 and hours < 48:
        assert found[0] == 1, "nothing was read yet"
    elif cursor == 4:
        assert found[0] <= 5 <= found[-1]
        assert found[0] > 1
    elif cursor == 0:
        assert 60 - 52 <= found[0] <= 60 - 40, "48 hours at most"
    else:
        assert found[0] >= oldest
