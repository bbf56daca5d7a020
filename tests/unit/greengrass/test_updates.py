"""Every update notice gets its answer, from a thread that nothing can block."""

from __future__ import annotations

import threading

from edge_core.clock import ManualClock
from edge_core.greengrass.updates import CAP_S, STEP_S, Notice, Updates
from tests.conftest import eventually_sync


class Busy:
    """What the loop says."""

    def __init__(self, why: str = "") -> None:
        self.why = why

    def __call__(self, limit_s: float) -> str:
        return self.why


def test_an_idle_gateway_lets_the_update_go() -> None:
    updates = Updates(Busy(), ManualClock())
    assert updates.decide("d1") == (0.0, "")
    updates.close()


def test_a_busy_one_puts_it_off_in_steps_until_the_cap() -> None:
    clock, busy = ManualClock(), Busy("a midnight run is open")
    updates = Updates(busy, clock)
    waited = 0.0
    while (answer := updates.decide("d1"))[0] > 0:
        assert answer == (min(STEP_S, CAP_S - waited), "a midnight run is open")
        clock.advance(answer[0])
        waited += answer[0]
    assert waited == CAP_S
    assert updates.decide("d2")[0] == STEP_S  # another deployment has its own cap
    busy.why = ""
    assert updates.decide("d2")[0] == 0.0
    updates.close()


def test_every_notice_is_answered_also_when_the_loop_stands_still() -> None:
    def stuck(limit_s: float) -> str:
        raise TimeoutError

    answers: list[tuple[str, int, str]] = []
    updates = Updates(stuck, ManualClock())
    for i in range(3):
        updates.noticed(Notice(f"d{i}", lambda *a: answers.append(a)))
    eventually_sync(lambda: len(answers) == 3)
    assert answers == [(f"d{i}", 0, "") for i in range(3)]
    updates.close()


def test_an_answer_that_cannot_be_given_does_not_stop_the_next() -> None:
    answered = threading.Event()

    def broken(*_: object) -> None:
        raise RuntimeError("the connection is closed")

    updates = Updates(Busy("busy"), ManualClock())
    updates.noticed(Notice("d1", broken))
    updates.noticed(Notice("d2", lambda *_: answered.set()))
    assert answered.wait(5)
    assert updates.deferred == 2
    updates.close()
    eventually_sync(lambda: not any(t.name == "updates" for t in threading.enumerate()))
