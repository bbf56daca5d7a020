"""What a Modbus meter measures at one second: names of the register maps to exact numbers in base units.

Energies are those of the load curve in whole Wh, split to phases and tariffs so that each part only rises (the parts
may miss the total by some Wh, as rounded registers do). Powers, currents and voltages are those of the second.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from simulators.loads import CHANNELS, Load

_SHARES = {1: (100,), 3: (41, 33, 26)}
_MILLI = Decimal("0.001")
DEMAND_S = 900


class Quantities:
    """All quantities of one meter.

    Args:
        phases: 1 or 3.
        reset_at: civil second at which its counters began at 0, None = they never did.
    """

    def __init__(self, load: Load, phases: int, reset_at: int | None = None) -> None:
        self.load, self.shares = load, _SHARES.get(phases, _SHARES[3])
        self.clock_offset_s = 0  # of the meter's own clock, which ends its demand periods
        self._zero = dict.fromkeys(CHANNELS, 0)
        if reset_at is not None:
            self._zero = self._sums(reset_at)
        self.energies = lru_cache(maxsize=8)(self._energies)
        self.power = lru_cache(maxsize=8)(load.power)

    def _sums(self, at: int) -> dict[str, int]:
        return dict(zip(CHANNELS, self.load.cumulative(at)[0].tolist(), strict=True))

    def _energies(self, at: int) -> dict[str, int]:
        return {name: value - self._zero[name] for name, value in self._sums(at).items()}

    def value(self, name: str, at: int) -> Decimal | None:
        """The quantity at a civil second, in its base unit; None for names without physics."""
        if match := re.fullmatch(r"midnight_active_energy_(import|export)_(today|yesterday)", name):
            midnight = (at + self.load.tz_s) // 86_400 * 86_400 - self.load.tz_s
            return Decimal(self.energies(midnight - 86_400 * (match[2] == "yesterday"))[match[1]])
        if match := re.fullmatch(r"(active|reactive|apparent)_energy(?:_(.+))?", name):
            return Decimal(self._counter(match[1], match[2].split("_") if match[2] else [], at))
        if match := re.fullmatch(r"(active|reactive|apparent)_demand_(\w+)", name):
            return self._demand(match[1], match[2], at)
        if match := re.fullmatch(r"voltage_l([123])_l([123])", name):
            a, b = (self._volts(int(k) - 1, at) for k in match.groups())
            return (a * a + b * b + a * b).sqrt().quantize(_MILLI)
        if match := re.fullmatch(r"(voltage|current|power_factor|\w+_power)_l([123])", name):
            return self._of_phase(match[1], int(match[2]) - 1, at)
        return self._whole(name, at)

    def _counter(self, quantity: str, words: list[str], at: int) -> int:
        sums = self.energies(at)
        ways = {
            "active": {"import": sums["import"], "export": sums["export"]},
            "reactive": {"import": sums["q1"], "export": sums["q4"]},
            "apparent": {"import": sums["vah"], "export": sums["export"]},
        }[quantity]
        if quadrant := next((w for w in words if re.fullmatch(r"q[1-4]", w)), ""):
            total = sums.get(quadrant, 0)
        elif "inductive" in words or "capacitive" in words:
            total = sums["q1" if "inductive" in words else "q4"]
        elif "net" in words:
            total = ways["import"] - ways["export"]
        elif "import" in words or "export" in words:
            total = ways["import" if "import" in words else "export"]
        else:
            total = ways["import"] + ways["export"]
        if "dg" in words:
            return 0
        if "partial" in words:
            total -= total // 2
        for word in words:
            if match := re.fullmatch(r"l([123])", word):
                share = self.shares[int(match[1]) - 1] if int(match[1]) <= len(self.shares) else 0
                total = total * share // 100
            elif re.fullmatch(r"t[1-4]", word):
                total = total * {"t1": 60, "t2": 40}.get(word, 0) // 100
        return total

    def _demand(self, quantity: str, way: str, at: int) -> Decimal:
        """Average power of the demand period that ended last."""
        end = at - (at + self.clock_offset_s) % DEMAND_S
        energy = self._counter(quantity, [way], end) - self._counter(
            quantity, [way], end - DEMAND_S
        )
        return Decimal(energy * 3600) / DEMAND_S

    def _volts(self, phase: int, at: int) -> Decimal:
        return Decimal(int(self.load.voltage(at)[0][phase])) / 10

    def _power(self, quantity: str, at: int) -> Decimal:
        power = self.power(at)
        if quantity == "active":
            return (power["import"] - power["export"]) * _MILLI
        return (power["q1"] - power["q4"] if quantity == "reactive" else power["vah"]) * _MILLI

    def _of_phase(self, stem: str, phase: int, at: int) -> Decimal | None:
        if phase >= len(self.shares):
            return Decimal(0)
        if stem == "voltage":
            return self._volts(phase, at)
        share = Decimal(self.shares[phase]) / 100
        if stem == "current":
            return (self._power("apparent", at) * share / self._volts(phase, at)).quantize(_MILLI)
        if stem == "power_factor":
            return self._factor(at)
        quantity = stem.removesuffix("_power")
        return (
            (self._power(quantity, at) * share).quantize(_MILLI)
            if quantity in ("active", "reactive", "apparent")
            else None
        )

    def _factor(self, at: int) -> Decimal:
        apparent = self._power("apparent", at)
        return (
            min((abs(self._power("active", at)) / apparent).quantize(_MILLI), Decimal(1))
            if apparent
            else Decimal(1)
        )

    def _whole(self, name: str, at: int) -> Decimal | None:
        phases = range(len(self.shares))
        match name:
            case "voltage" | "voltage_ln_average":
                return (
                    sum((self._volts(k, at) for k in phases), Decimal(0)) / len(phases)
                ).quantize(_MILLI)
            case "voltage_ll_average":
                return self.value("voltage_l1_l2", at)
            case "current" | "current_sum" | "current_average":
                total = sum(
                    (self._of_phase("current", k, at) or Decimal(0) for k in phases), Decimal(0)
                )
                return (
                    total if name != "current_average" else (total / len(phases)).quantize(_MILLI)
                )
            case "current_neutral":
                return Decimal("0.120")
            case "active_power" | "active_power_fast" | "reactive_power" | "apparent_power":
                return self._power(name.partition("_")[0], at)
            case "active_power_import" | "active_power_export":
                power = self._power("active", at)
                return max(power if name.endswith("import") else -power, Decimal(0))
            case "power_factor":
                return self._factor(at)
            case "frequency":
                return Decimal(4_990 + at // 7 % 21) / 100
            case "demand_period":
                return Decimal(DEMAND_S)
            case "demand_period_elapsed":
                return Decimal((at + self.clock_offset_s) % DEMAND_S)
        return None
