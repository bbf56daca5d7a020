"""One frame of `opendcu top`, and the filters of `opendcu tap`."""

from __future__ import annotations

from typing import Any

from edge_core.cli.tap import wanted
from edge_core.cli.top import drawn
from edge_core.health.words import columns, lasting, octets

NOW = 1_764_000_000


def row(meter: str, state: str, **more: Any) -> dict[str, Any]:
    return {
        "meter": meter,
        "state": state,
        "line": "f1",
        "last_read": NOW - 300,
        "rows": 4,
        "failures": 0,
        "error": None,
    } | more


def test_a_frame_shows_the_worst_first_and_keeps_to_its_height() -> None:
    meters = [row(f"ok{i}", "ok") for i in range(20)]
    meters += [
        row("new", "not yet read", last_read=None),
        row("bad", "silent", failures=9, error="no answer"),
    ]
    meters += [row("worse", "silent", failures=12, error="key rejected")]
    frame = {
        "overview": {
            "gateway": "dcu-1",
            "civil": NOW,
            "meters": {"total": 23, "silent": 2, "parked": 0},
            "journal": {
                "segments_waiting": 3,
                "bytes_waiting": 2500,
                "max_bytes": 5 * 10**8,
                "full": True,
            },
            "uplink": {"state": "disconnected", "reason": "refused"},
        },
        "meters": meters,
    }
    lines = drawn(frame, 12)
    assert len(lines) == 12
    text = "\n".join(lines)
    assert "3 segments waiting (2.5 kB)" in text
    assert "500 MB used  FULL" in text
    assert "disconnected, 0 in flight, 0 not acknowledged, 0 set aside: refused" in text
    assert [line.split()[0] for line in lines[6:9]] == ["worse", "bad", "new"]
    assert "5 min ago" in lines[6]
    assert "never" in lines[8]
    assert lines[-1] == "... and 18 more"
    assert len(drawn({"overview": {}, "meters": []}, 40)) == 6


def test_filters_of_tap() -> None:
    block, alarm = (
        {"block": {"meter": "GP1", "rows": 4}},
        {"alarm": {"meter": "GP2", "code": "last-gasp"}},
    )
    assert wanted(block, (), only_alarms=False)
    assert not wanted(block, (), only_alarms=True)
    assert wanted(alarm, (), only_alarms=True)
    assert wanted(alarm, ("GP1", "GP2"), only_alarms=False)
    assert not wanted(alarm, ("GP1",), only_alarms=False)


def test_words() -> None:
    assert [lasting(s) for s in (-1, 0, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d",
    ]  # fmt: skip
    assert [octets(n) for n in (0, 999, 1000, 9_960, 12_345, 5e8, 3.2e12)] == [
        "0 B", "999 B", "1.0 kB", "10.0 kB", "12 kB", "500 MB", "3200 GB",
    ]  # fmt: skip
    assert columns(("A", "N"), [("x", 5), ("long", 123)], right=("N",)) == [
        "A       N",
        "x       5",
        "long  123",
    ]
