"""Counters from sample to sample: what rises goes on, what rolls over is noted, what falls begins a new series.

The rule: a fall from above 90 % to below 10 % of a known range is a roll-over; any other fall is a reset, another
meter, or energy that the meter lost in a power failure. A new series has a device name of its own (`<serial>/<k>`),
so that nobody ever forms a difference across the fall. Pure; the driver confirms a fall by a second reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

HIGH, LOW = 0.9, 0.1


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of a sample; `modulus` in the same scaler, 0 = not known."""

    name: str
    value: int
    scaler: int
    modulus: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sample is to the one before."""

    fallen: tuple[str, ...] = ()
    rolled: tuple[str, ...] = ()


@dataclass(slots=True)
class Series:
    """The counters of one device.

    Attributes:
        serial: of the device.
        number: how often its counters fell.
        last: newest value and scaler by name.
    """

    serial: str
    number: int = 0
    last: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, known: dict[str, Any] | None, serial: str) -> Series:
        """From what the driver remembers; what belongs to another device is forgotten."""
        if not known or known.get("serial") != serial:
            return cls(serial)
        last = {
            str(name): (int(value), int(scaler))
            for name, (value, scaler) in known["counters"].items()
        }
        return cls(serial, int(known["series"]), last)

    def save(self) -> dict[str, Any]:
        """To be remembered."""
        return {
            "serial": self.serial,
            "series": self.number,
            "counters": {name: list(pair) for name, pair in self.last.items()},
        }

    @property
    def device(self) -> str:
        """The device name of this series."""
        return f"{self.serial}/{self.number}" if self.number else self.serial

    def compare(self, counters: Iterable[Counter]) -> Verdict:
        """Which counters fell, and which rolled over; nothing changes."""
        fallen, rolled = [], []
        for counter in counters:
            before = self._before(counter)
            if before is None or counter.value >= before:
                continue
            top = counter.modulus
            if top and before > HIGH * top and counter.value < LOW * top:
                rolled.append(counter.name)
            else:
                fallen.append(counter.name)
        return Verdict(tuple(fallen), tuple(rolled))

    def take(self, counters: Iterable[Counter], verdict: Verdict) -> None:
        """Go on from this sample; after a fall as a new series."""
        if verdict.fallen:
            self.number += 1
            self.last.clear()
        for counter in counters:
            self.last[counter.name] = (counter.value, counter.scaler)

    def _before(self, counter: Counter) -> int | None:
        """The last value in the counter's scaler, rounded down: a coarser scaler must not look like a fall."""
        pair = self.last.get(counter.name)
        if pair is None:
            return None
        value, scaler = pair
        shift = scaler - counter.scaler
        power: int = 10 ** abs(shift)
        return value * power if shift >= 0 else value // power
