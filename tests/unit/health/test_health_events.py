"""Every event logs and counts; lost meters are told once; thousands make one line."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest

from edge_core.clock import ManualClock
from edge_core.errors import LineSilent
from edge_core.health import events
from edge_core.health.events import EVENTS, FAILED_READS, SINGLE_LINES, MeterWatch

FUNCTIONS = [
    f
    for name, f in vars(events).items()
    if inspect.isfunction(f) and not name.startswith("_") and f.__module__ == events.__name__
]
VALUES: dict[str, Any] = {
    "str": "x",
    "int": 5,
    "float": 1.5,
    "Sequence[str]": ["a"],
    "BaseException": ValueError("x"),
}


def silent(meter: str) -> LineSilent:
    return LineSilent(meter, "feeder-1, tcp 10.0.0.1:4059", "AARQ", "no answer")


@pytest.mark.parametrize("event", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_event_is_documented_logs_and_counts(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert event.__doc__
    before = sum(EVENTS.series().values())
    with caplog.at_level(logging.DEBUG):
        event(*(VALUES[p.annotation] for p in inspect.signature(event).parameters.values()))
    assert sum(EVENTS.series().values()) == before + 1
    assert len(caplog.records) == 1
    code = caplog.records[0].code  # type: ignore[attr-defined]
    assert EVENTS.value(code) >= 1


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.code for r in caplog.records if r.levelno >= logging.INFO]  # type: ignore[attr-defined]


def test_a_lost_meter_is_told_once_and_once_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    clock = ManualClock()
    watch = MeterWatch(clock)
    failed = FAILED_READS.value("feeder-1", "LineSilent")
    watch.answered("GP1", "feeder-1")
    for _ in range(3):
        watch.failed("GP1", "feeder-1", silent("GP1"))
        clock.advance(600)
    assert watch.lost == 1
    watch.answered("GP1", "feeder-1")
    watch.answered("GP1", "feeder-1")
    assert watch.lost == 0
    assert codes(caplog) == ["meter-lost", "meter-back"]
    assert "AARQ: no answer" in caplog.records[0].message
    assert "back after 1800 s and 3 failed visits" in caplog.text
    assert FAILED_READS.value("feeder-1", "LineSilent") == failed + 3


def test_five_thousand_silent_meters_make_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clock = ManualClock()
    watch = MeterWatch(clock)
    counted = EVENTS.value("meter-lost")
    for number in range(5000):
        watch.failed(f"GP{number}", "feeder-1", silent(f"GP{number}"))
        clock.advance(0.001)
    assert codes(caplog) == ["meter-lost"] * SINGLE_LINES
    watch.tick()
    clock.advance(60)
    watch.tick()
    assert codes(caplog)[SINGLE_LINES:] == ["meters-summary"]
    assert caplog.records[-1].lost == 5000 - SINGLE_LINES  # type: ignore[attr-defined]
    assert caplog.records[-1].silent == 5000  # type: ignore[attr-defined]
    for number in range(5000):
        watch.answered(f"GP{number}", "feeder-1")
    clock.advance(60)
    watch.tick()
    assert caplog.records[-1].back == 5000 - SINGLE_LINES  # type: ignore[attr-defined]
    assert EVENTS.value("meter-lost") == counted + 5000
    clock.advance(600)
    watch.tick()
    assert codes(caplog).count("meters-summary") == 2, "nothing happened, nothing is told"
