"""Our own clock, watched: steps of civil time against monotonic time, and spans in which it was not to be believed. Pure.

Who slews does not step: a difference below STEP_S since the last look is drift and taken as such.
"""

from __future__ import annotations

STEP_S = 2.0
KEPT = 16


class ClockWatch:
    """Looks at civil and monotonic time together.

    Attributes:
        last_step_s: the last step, civil seconds, positive = ahead; 0 = none was seen.
        lost: (first, last) civil instants that the clock jumped over, or during which it was invalid.
    """

    def __init__(self, now: float, monotonic: float, speed: float, *, valid: bool) -> None:
        self._now, self._monotonic, self._speed = now, monotonic, speed
        self._valid, self._invalid_since = valid, monotonic
        self.last_step_s = 0.0
        self.lost: list[tuple[float, float]] = []

    def look(self, now: float, monotonic: float, *, valid: bool) -> float:
        """Compare with the last look; returns the step in civil seconds, 0 for none.

        What becomes valid does not step: nothing was stamped before.
        """
        passed = (monotonic - self._monotonic) * self._speed
        step = now - self._now - passed
        was_valid, self._valid = self._valid, valid
        self._now, self._monotonic = now, monotonic
        if not valid:
            if was_valid:
                self._invalid_since = monotonic
            return 0.0
        if not was_valid:
            self._lose(now - (monotonic - self._invalid_since) * self._speed, now)
            return 0.0
        if abs(step) < STEP_S * self._speed:
            return 0.0
        self.last_step_s = step
        if step > 0:
            self._lose(now - step, now)
        return step

    def _lose(self, first: float, last: float) -> None:
        self.lost = [*self.lost, (first, last)][-KEPT:]

    def explains(self, at: float) -> bool:
        """Is a boundary at `at` missing because of our clock?"""
        return any(first <= at <= last for first, last in self.lost)
