"""Quotas of IoT Core, and the window."""

from __future__ import annotations

import asyncio

import pytest

from edge_core.clock import ManualClock, SystemClock
from edge_core.uplink.pacing import Quota, Window


def run(quota: Quota, clock: ManualClock, seconds: float, octets: int, *, alarm: bool) -> int:
    """How many publishes of so many octets get through in the time."""
    end, done = clock.elapsed + seconds, 0
    while clock.elapsed < end:
        wait = quota.delay(octets, alarm=alarm)
        if wait == 0.0:
            done += 1
        else:
            clock.advance(wait)
    return done


@pytest.mark.parametrize("alarm", [False, True])
def test_never_more_publishes_than_the_quota(alarm: bool) -> None:
    clock = ManualClock()
    done = run(Quota(clock), clock, 60.0, 100, alarm=alarm)
    assert 90 * 60 * 0.98 <= done <= 90 * 61


@pytest.mark.parametrize("octets", [1_000, 100_000, 131_072, 600_000])
def test_never_more_octets_than_the_quota(octets: int) -> None:
    clock = ManualClock()
    done = run(Quota(clock), clock, 60.0, octets, alarm=False)
    limit = 512 * 1024 * 61
    assert done * octets <= limit + octets
    assert done >= 1


def test_an_alarm_passes_while_the_rest_waits() -> None:
    clock = ManualClock()
    quota = Quota(clock)
    while quota.delay(50_000) == 0.0:
        pass
    assert quota.delay(50_000) > 0.0
    assert quota.delay(300, alarm=True) == 0.0
    assert quota.delay(50_000, alarm=True) == 0.0


async def test_take_waits_for_its_turn() -> None:
    quota = Quota(SystemClock(), publishes_per_s=200.0)
    began = asyncio.get_running_loop().time()
    for _ in range(140):
        await quota.take(10)
    assert asyncio.get_running_loop().time() - began >= 0.15


def test_window_grows_on_a_fast_link_and_shrinks_on_a_slow_one() -> None:
    window = Window(20)
    for _ in range(40):
        window.entered()
        window.left(0.01)
    assert window.size == 20
    for _ in range(10):
        window.entered()
        window.left(5.0)
    assert window.size == 1
    window.entered()
    assert not window.free
    window.left(None)
    assert window.free


def test_window_keeps_its_size_in_between() -> None:
    window = Window(20)
    window.entered()
    window.left(1.0)
    assert window.size == 4


def test_window_of_two_never_holds_three() -> None:
    window = Window(2)
    for _ in range(5):
        window.entered()
        window.left(0.0)
    window.entered()
    window.entered()
    assert not window.free


def test_no_second_holds_more_publishes_than_iot_core_takes() -> None:
    clock = ManualClock()
    quota = Quota(clock)
    taken: list[float] = []
    for _ in range(4_000):  # 4 s of asking every millisecond, alarms all of it
        while quota.delay(100, alarm=True) == 0.0:
            taken.append(clock.monotonic())
        clock.advance(0.001)
    busiest = max(sum(at <= other < at + 1.0 for other in taken) for at in taken)
    assert 90 <= busiest <= 100
    assert len(taken) >= 4 * 88
