"""Every event logs and counts; lost meters are told once; thousands make one line."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest

from edge_core.clock import ManualClock
from edge_core.errors import LineSilent
from edge_core.health import events
from edge_core.health.events import EVENTS, LOST, SINGLE_LINES, WINDOW_S, Burst

FUNCTIONS = [
    f
    for name, f in vars(events).items()
    if inspect.isfunction(f)
    and name != "summarise"
    and not name.startswith("_")
    and f.__module__ == events.__name__
]
VALUES: dict[str, Any] = {
    "str": "x",
    "int": 5,
    "float": 1.5,
    "Sequence[str]": ["a"],
    "BaseException": ValueError("x"),
    "MeterError": LineSilent("GP1", "feeder-1", "AARQ", "no answer"),
}


def silent(meter: str) -> LineSilent:
    return LineSilent(meter, "feeder-1, tcp 10.0.0.1:4059", "AARQ", "no answer")


@pytest.mark.parametrize("event", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_event_is_documented_logs_and_counts(
    event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert event.__doc__
    before = sum(EVENTS.series().values())
    arguments = {
        name: Burst(ManualClock()) if name == "burst" else VALUES[p.annotation]
        for name, p in inspect.signature(event).parameters.items()
    }
    with caplog.at_level(logging.DEBUG):
        event(**arguments)
    assert sum(EVENTS.series().values()) == before + 1
    assert len(caplog.records) == 1
    code = caplog.records[0].code  # type: ignore[attr-defined]
    assert EVENTS.value(code) >= 1


def codes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.code for r in caplog.records]  # type: ignore[attr-defined]


def test_a_meter_is_told_when_it_is_lost_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    burst = Burst(ManualClock())
    counted = LOST.value("LineSilent")
    events.meter_lost("GP1", silent("GP1"), burst=burst)
    events.meter_back("GP1", 1800.4, 3, burst=burst)
    assert codes(caplog) == ["meter-lost", "meter-back"]
    assert "AARQ: no answer" in caplog.records[0].message
    assert "back after 1800 s and 3 failed visits" in caplog.text
    assert LOST.value("LineSilent") == counted + 1


def test_five_thousand_silent_meters_make_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    clock = ManualClock()
    burst = Burst(clock)
    counted = EVENTS.value("meter-lost")
    for number in range(5000):
        events.meter_lost(f"GP{number}", silent(f"GP{number}"), burst=burst)
        clock.advance(0.001)
    assert codes(caplog) == ["meter-lost"] * SINGLE_LINES
    events.summarise(burst)
    clock.advance(WINDOW_S)
    events.summarise(burst)
    assert codes(caplog)[SINGLE_LINES:] == ["summary"]
    assert caplog.records[-1].message == "within 65 s also 4980 times meter-lost"
    assert EVENTS.value("meter-lost") == counted + 5000
    for number in range(5000):
        events.meter_back(f"GP{number}", 5, 1, burst=burst)
    clock.advance(WINDOW_S)
    events.meter_lost("GP1", silent("GP1"), burst=burst)
    assert codes(caplog)[-2:] == ["summary", "meter-lost"], "the next window tells again"
    clock.advance(WINDOW_S)
    events.summarise(burst)
    assert codes(caplog).count("summary") == 2, "nothing was left out, nothing is summed up"
