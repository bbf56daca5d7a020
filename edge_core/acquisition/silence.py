"""Meters that only speak, and fall silent: told once when that is sure, and once when they are heard again.

How often such a meter sends stands in its model (`expected_s` of a push setup). It is silent after MISSED of these
periods, SILENT_MIN_S at least: an adapter that is plugged anew is no silence. What was told is remembered, so a restart
neither tells it twice nor forgets to tell that the meter is back.

Time here is real time at the speed of the civil clock: steps of the civil clock are no silence.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_core.clock import Clock
    from edge_core.config.models import DlmsModel

MISSED: Final = 3
SILENT_MIN_S: Final = 120.0
KEY: Final = "fell_silent"


def expected_of(model: DlmsModel) -> int:
    """How often a meter that only speaks is heard at least, in seconds; 0 = it is polled, or nobody knows."""
    periods = [setup.expected_s for setup in model.push.values() if setup.expected_s]
    return min(periods, default=0) if not model.profiles else 0


class Silences:
    """Who was heard when. Thread-safe.

    Args:
        expected: meter to the seconds within which it sends.
        get, put: the meters' memories.
        clock: measures; silence begins when this is made, at the earliest.
    """

    def __init__(
        self,
        expected: Mapping[str, int],
        get: Callable[[str, str], Any],
        put: Callable[[str, str, Any], None],
        clock: Clock,
    ) -> None:
        self._after = {m: max(SILENT_MIN_S, float(MISSED * s)) for m, s in expected.items() if s}
        self._put, self._clock = put, clock
        self._guard = threading.Lock()
        began = self._time()
        self._heard = dict.fromkeys(self._after, began)
        self._spoken: set[str] = set()
        self._silent = {m: float(at) for m in self._after if (at := get(m, KEY)) is not None}

    def _time(self) -> float:
        return self._clock.monotonic() * self._clock.speed

    @property
    def watched(self) -> bool:
        """Is there anybody to listen for?"""
        return bool(self._after)

    @property
    def silent(self) -> frozenset[str]:
        """The meters that were told to be silent."""
        with self._guard:
            return frozenset(self._silent)

    def quiet_s(self, meter: str) -> float | None:
        """Seconds since a meter was heard; None where it never was, or is not listened for."""
        with self._guard:
            if meter in self._silent:
                return max(0.0, self._clock.now() - self._silent[meter])
            return self._time() - self._heard[meter] if meter in self._spoken else None

    def heard(self, meter: str) -> float | None:
        """A meter spoke; how long it was silent in seconds if that had been told, else None."""
        if meter not in self._after:
            return None
        with self._guard:
            self._heard[meter] = self._time()
            self._spoken.add(meter)
            since = self._silent.pop(meter, None)
            if since is None:
                return None
            self._put(meter, KEY, None)
            return max(0.0, self._clock.now() - since)

    def overdue(self) -> list[tuple[str, float]]:
        """Who is silent since the last look, and for how long in seconds."""
        found = []
        now, civil = self._time(), self._clock.now()
        with self._guard:
            for meter, after in self._after.items():
                quiet = now - self._heard[meter]
                if quiet >= after and meter not in self._silent:
                    self._silent[meter] = civil - quiet
                    self._put(meter, KEY, round(civil - quiet))
                    found.append((meter, quiet))
        return found
