"""Time, passed in: nothing else in the product asks the system what time it is.

Civil time (stamps, schedules, calendars) may be scaled for the desk by
`OPENDCU_CLOCK=<real0>:<sim0>:<speed>` (DESIGN section 4): civil = sim0 + (real - real0) * speed.
Durations (timeouts, back-off, commit windows) are monotonic and never scaled.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Clock(Protocol):
    """What the product may know about time."""

    def now(self) -> float:
        """Civil time, UTC epoch seconds."""
        ...

    def monotonic(self) -> float:
        """Real seconds that only rise; for durations."""
        ...

    @property
    def speed(self) -> float:
        """Civil seconds per real second; 1.0 outside the desk."""
        ...

    def synchronised(self) -> bool:
        """Is civil time to be believed? Nothing is stamped by a clock that is not."""
        ...


EARLIEST_BELIEVABLE = 1_704_067_200  # 2024-01-01: an RTC without battery wakes up before this


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The system's clock, scaled when the desk asks for it."""

    real0: float = 0.0
    sim0: float = 0.0
    speed: float = 1.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> SystemClock:
        """The clock that `OPENDCU_CLOCK` describes; real time without it.

        Raises:
            ValueError: the variable is set and is not `<real0>:<sim0>:<speed>`.
        """
        text = environment.get("OPENDCU_CLOCK", "")
        if not text:
            return cls()
        try:
            real0, sim0, speed = (float(part) for part in text.split(":"))
        except ValueError:
            raise ValueError(f"OPENDCU_CLOCK is {text!r}, not <real0>:<sim0>:<speed>") from None
        if not speed > 0:
            raise ValueError(f"OPENDCU_CLOCK: speed {speed} is not above 0")
        return cls(real0, sim0, speed)

    def now(self) -> float:
        return self.sim0 + (time.time() - self.real0) * self.speed  # noqa: TID251 the one place

    def monotonic(self) -> float:
        return time.monotonic()

    def synchronised(self) -> bool:
        return self.now() > EARLIEST_BELIEVABLE


@dataclass(slots=True)
class ManualClock:
    """A clock that moves when it is told to, for tests."""

    civil: float = 1_764_000_000.0
    elapsed: float = 0.0
    speed: float = 1.0
    valid: bool = True

    def now(self) -> float:
        return self.civil

    def monotonic(self) -> float:
        return self.elapsed

    def synchronised(self) -> bool:
        return self.valid

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self.civil += seconds
        self.elapsed += seconds
