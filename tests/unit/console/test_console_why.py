"""Why is this meter silent? The answer in words, from the rows of all meters."""

from __future__ import annotations

from typing import Any

import pytest

from edge_core.console.view import CAUSES, why
from edge_core.errors import MeterError

NOW = 1_764_000_000


def row(meter: str, state: str = "ok", line: str = "feeder-1", **more: Any) -> dict[str, Any]:
    silent = state == "silent"
    return {
        "meter": meter,
        "line": line,
        "state": state,
        "last_read": None if silent else NOW - 300,
        "failures": 3 if silent else 0,
        "error": f"meter {meter}: AARQ: no answer" if silent else None,
        "error_class": "LineSilent" if silent else None,
        "clock_offset_s": None,
    } | more


def answer(of: dict[str, Any], *others: dict[str, Any]) -> str:
    return why(of, [of, *others], NOW)["answer"]


def test_a_meter_that_is_not_silent() -> None:
    assert answer(row("m1")) == "m1 is not silent: it was read 5 min ago."
    assert answer(row("m1", "not yet read", last_read=None)) == "m1 has not been asked yet."
    assert "parked" in answer(row("m1", "parked"))


def test_the_line_is_told_from_the_meter() -> None:
    silent = [row(f"s{i}", "silent") for i in range(5)]
    heard = [row(f"h{i}") for i in range(4)]
    elsewhere = [row(f"e{i}", line="feeder-2") for i in range(20)]
    assert (
        answer(*silent, *elsewhere)
        == "All 5 meters of line feeder-1 are silent: it is the line, not this meter."
    )
    assert answer(*silent, *heard).startswith(
        "5 of 9 meters of line feeder-1 are silent: suspect the line"
    )
    found = why(silent[0], [silent[0], *heard, row("n", "not yet read", last_read=None)], NOW)
    assert (
        found["answer"]
        == "s0: it does not answer, while others on its line do. 4 of 5 meters of line feeder-1 answer."
    )
    assert found["line"] == {"total": 5, "silent": 1}
    assert found["error"] == "meter s0: AARQ: no answer"
    assert found["checks"]
    assert answer(silent[0]) == "s0: it does not answer, while others on its line do."


@pytest.mark.parametrize("cls", [cls.__name__ for cls in MeterError.__subclasses__()])
def test_every_error_of_a_meter_has_an_answer(cls: str) -> None:
    found = why(row("m1", "silent", error_class=cls), [row("m2")], NOW)
    assert found["answer"].startswith(f"m1: {CAUSES[cls][0]}.")
    assert found["checks"] == list(CAUSES[cls][1])
    assert (
        why(row("m1", "silent", error_class=None), [], NOW)["answer"]
        == "m1: its last visit failed."
    )


def test_a_wrong_clock_is_mentioned() -> None:
    assert why(row("m1", clock_offset_s=7200), [], NOW)["checks"] == [
        "Its clock is 2 h ahead: rows may come late."
    ]
    assert "behind" in why(row("m1", clock_offset_s=-400), [], NOW)["checks"][0]
    assert why(row("m1", clock_offset_s=20), [], NOW)["checks"] == []
