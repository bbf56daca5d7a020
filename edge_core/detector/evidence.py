"""What single rows of a load profile prove: physics that does not hold. Pure numpy over the rows of one block.

Thresholds are those of facts/anomaly.md section 1 (EN 50160: 230 V +- 10 %). A kind becomes a finding when it lasted
`LASTING_S[kind]` within one civil day; one row alone is a transient or a disturbed measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

NOMINAL_V = (63.5, 120.0, 230.0)
LOAD_A = 0.5
IMBALANCE = 0.05
"""Of the mean of three voltages; EN 50160 allows 2 % (3 % in places) of negative sequence."""
LASTING_S = {
    "voltage-low": 4 * 3600,
    "voltage-high": 2 * 3600,
    "current-without-voltage": 1800,
    "neutral-loss": 1800,
    "voltage-imbalance": 2 * 3600,
    "neutral-current": 2 * 3600,
    "current-without-energy": 3600,
    "current-reversed": 2 * 3600,
    "power-factor": 6 * 3600,
    "register-fell": 1,
}
EXPECTED = {
    "voltage-low": "at least 90 % of the nominal voltage",
    "voltage-high": "at most 110 % of the nominal voltage",
    "current-without-voltage": "no current on a phase without voltage",
    "neutral-loss": "phases that move together",
    "voltage-imbalance": "three voltages within 5 % of their mean",
    "neutral-current": "the current of the phase in the neutral too, of three phases no more than their sum",
    "current-without-energy": "energy as voltage and current say",
    "current-reversed": "no export at night",
    "power-factor": "at least half of the apparent energy as active energy",
    "register-fell": "a register that only rises",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one block on one civil day, all of shape (rows,); not-a-number = not there.

    Attributes:
        seconds: length of the interval of each row.
        wh, export_wh, vah: energy of each interval.
        volts, amps: per phase, None for a channel that does not exist.
        hour: civil hour at the end of each row.
        fell: rows at which a register fell.
        scaled: registers and currents may be of different sides of the instrument transformers.
    """

    seconds: Floats
    wh: Floats
    export_wh: Floats | None
    vah: Floats | None
    volts: Sequence[Floats | None]
    amps: Sequence[Floats | None]
    neutral: Floats | None
    hour: Floats
    fell: Mask
    scaled: bool


def nominal(volts: Sequence[Floats | None]) -> float | None:
    """The nominal voltage that these voltages belong to; None when they fit none."""
    known = np.concatenate(
        [v[np.isfinite(v) & (v > 20)] for v in volts if v is not None] or [np.empty(0)]
    )
    if not len(known):
        return None
    middle = float(np.median(known))
    nearest = min(NOMINAL_V, key=lambda n: abs(np.log(middle / n)))
    return nearest if 0.72 < middle / nearest < 1.3 else None  # fmt: skip


def look(rows: Rows) -> dict[str, tuple[Mask, float]]:
    """By kind: the rows that show it, and the extreme value seen (V, A, Wh or a ratio)."""
    out: dict[str, tuple[Mask, float]] = {}

    def found(kind: str, mask: Mask, extreme: Any) -> None:
        if mask.any():
            out[kind] = (mask, float(extreme(mask)))

    with np.errstate(invalid="ignore", divide="ignore"):
        _voltages(rows, found)
        _currents(rows, found)
        if rows.fell.any():
            out["register-fell"] = (rows.fell, 0.0)
        if rows.export_wh is not None:
            night = (rows.hour >= 22) | (rows.hour < 4)
            back = night & (rows.export_wh > 0) & ~(rows.wh > 0)
            found("current-reversed", back, lambda m: np.nansum(rows.export_wh[m]))
        if rows.vah is not None:
            factor = rows.wh / rows.vah
            weak = (rows.vah * 3600 / rows.seconds > 500) & (factor < 0.5)
            if rows.export_wh is not None:
                weak &= rows.export_wh == 0
            found("power-factor", weak, lambda m: factor[m].min())
    return out


def _voltages(rows: Rows, found: Any) -> None:
    volts = [v for v in rows.volts if v is not None]
    middle = nominal(rows.volts)
    if middle is None:
        return
    phases = np.stack(volts)
    live = phases > 0.5 * middle
    low = (live & (phases < 0.9 * middle)).any(axis=0)
    high = (phases > 1.1 * middle).any(axis=0)
    if len(volts) == 3:
        parted = low & high & live.all(axis=0)
        found("neutral-loss", parted, lambda m: np.nanmax(phases[:, m]))
        low, high = low & ~parted, high & ~parted
        mean = phases.mean(axis=0)
        apart = np.abs(phases - mean).max(axis=0) / mean
        uneven = live.all(axis=0) & (apart > IMBALANCE) & ~parted & ~low & ~high
        found("voltage-imbalance", uneven, lambda m: apart[m].max())
    found("voltage-low", low, lambda m: np.nanmin(np.where(live, phases, np.nan)[:, m]))
    found("voltage-high", high, lambda m: np.nanmax(phases[:, m]))
    for volt, amp in zip(rows.volts, rows.amps, strict=True):
        if volt is not None and amp is not None:
            dead = (volt < 0.5 * middle) & (np.abs(amp) > LOAD_A)
            found("current-without-voltage", dead, lambda m, a=amp: np.abs(a[m]).max())


def _currents(rows: Rows, found: Any) -> None:
    pairs = [
        (v, a) for v, a in zip(rows.volts, rows.amps, strict=True) if v is not None and a is not None
    ]  # fmt: skip
    if pairs and nominal(rows.volts) is not None:
        apparent = sum(v * np.abs(a) for v, a in pairs) * rows.seconds / 3600
        flowing = np.any([np.abs(a) > LOAD_A for _, a in pairs], axis=0) & (apparent > 50)
        counted = rows.wh if rows.export_wh is None else rows.wh + rows.export_wh
        share = 0.0 if rows.scaled else 0.2
        missing = flowing & (counted <= share * apparent)
        found("current-without-energy", missing, lambda m: apparent[m].max())
    amps = [a for a in rows.amps if a is not None]
    if rows.neutral is not None and len(amps) == 1:
        phase = np.abs(amps[0])
        apart = np.abs(np.abs(rows.neutral) - phase)
        leak = (apart > 0.1 * phase) & (apart > LOAD_A)
        found("neutral-current", leak, lambda m: apart[m].max())
    elif rows.neutral is not None and len(amps) == 3:
        most = np.abs(np.stack(amps)).sum(axis=0)  # all in one direction: more cannot come back
        beyond = np.abs(rows.neutral) - most
        leak = (beyond > 0.1 * most) & (beyond > LOAD_A)
        found("neutral-current", leak, lambda m: beyond[m].max())
