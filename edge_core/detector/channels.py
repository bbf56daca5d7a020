"""Which column of a load profile is what, by OBIS code: energy, voltages, currents.

OBIS value groups (DLMS UA Blue Book, part 6; metering/obis.csv): C = quantity and phase, D = processing: 8 = register
since the meter began (a difference of two rows is the energy), 29 = energy of the interval; 7, 27 and the like are
values of the moment or means. Tariff registers (E above 0) are parts of E = 0 and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_core.domain import Column, Layout

IMPORT, EXPORT, COMBINED, APPARENT = 1, 2, 15, 9
REGISTER, INTERVAL = 8, 29
_MEANS = (27, 24, 25, 7, 4, 5)
COARSE_SCALER = 2
"""Energy in steps of 100 Wh or more says little about half an hour of a household."""


@dataclass(frozen=True, slots=True)
class Energy:
    """A column of energy.

    Attributes:
        column: its index.
        cumulative: a register; else the energy of the interval.
        factor: Wh (or VAh) of one step.
    """

    column: int
    cumulative: bool
    factor: float


@dataclass(frozen=True, slots=True)
class Channels:
    """What a layout offers; None and 0.0 = not there.

    Attributes:
        volts, amps: (column, factor) of L1, L2, L3.
        neutral: (column, factor) of the neutral's current.
        coarse: energies come in steps too large for a shape.
    """

    energy: Energy | None
    export: Energy | None
    apparent: Energy | None
    volts: tuple[tuple[int, float] | None, ...]
    amps: tuple[tuple[int, float] | None, ...]
    neutral: tuple[int, float] | None
    coarse: bool


@lru_cache(maxsize=256)
def channels_of(layout: Layout) -> Channels:
    """The channels of a layout."""
    energies: dict[tuple[int, int], tuple[int, Column]] = {}
    means: dict[int, tuple[int, float]] = {}
    for index, column in enumerate(layout.cols):
        group = [int(g) for g in column.obis.split(".")]
        c, d, e = group[2], group[3], group[4]
        if column.attribute != 2 or group[0] != 1:
            continue
        if d in (REGISTER, INTERVAL) and e == 0 and column.unit in ("Wh", "VAh"):
            energies.setdefault((c, d), (index, column))
        elif d in _MEANS and column.unit in ("V", "A"):
            means.setdefault(c, (index, 10.0**column.scaler))

    def energy(c: int) -> Energy | None:
        for d in (INTERVAL, REGISTER):
            if (c, d) in energies:
                index, column = energies[c, d]
                return Energy(index, d == REGISTER, 10.0**column.scaler)
        return None

    active = energy(IMPORT) or energy(COMBINED)
    single = (means.get(12), means.get(11))  # group C of a single-phase meter: any phase
    return Channels(
        energy=active,
        export=energy(EXPORT),
        apparent=energy(APPARENT),
        volts=tuple(means.get(12 + 20 * phase) or (single[0] if phase == 1 else None) for phase in (1, 2, 3)),
        amps=tuple(means.get(11 + 20 * phase) or (single[1] if phase == 1 else None) for phase in (1, 2, 3)),
        neutral=means.get(91),
        coarse=active is not None and active.factor >= 10**COARSE_SCALER,
    )  # fmt: skip
