"""What a meter model can give: the kinds of profiles, and where each stands.

A meter without a load profile (Modbus without [history]) is *sampled*: its cumulative registers are read at the
boundaries of SAMPLE_PERIOD_S, and travel under the logical names that a load profile would have.
"""

from __future__ import annotations

import math

from edge_core.config.history import PeriodHistory
from edge_core.config.models import DlmsModel, Model
from edge_core.domain import Obis

SAMPLE_PERIOD_S = 900
DAY_S = 86_400

LOAD_PROFILE = "1.0.99.1.0.255"
DAILY_PROFILE = "1.0.99.2.0.255"
INSTANTANEOUS_PROFILE = "1.0.94.91.0.255"

_SAMPLED = {
    "interval": (LOAD_PROFILE, SAMPLE_PERIOD_S),
    "midnight": (DAILY_PROFILE, DAY_S),
    "instantaneous": (INSTANTANEOUS_PROFILE, 0),
}
_PERIODS = {"interval": SAMPLE_PERIOD_S, "midnight": DAY_S}


def is_sampled(model: Model) -> bool:
    """Is this a protocol whose meters are sampled, unless they keep a kind of rows themselves: `keeps`?"""
    return not isinstance(model, DlmsModel)


def held_s(model: Model, kind: str) -> float:
    """For how many seconds a meter holds the newest row of a kind after its capture time: 0 = it is only sampled."""
    if isinstance(model, DlmsModel):
        return math.inf
    if kind == "interval" and model.history is not None:
        last_only = isinstance(model.history, PeriodHistory)
        return float(model.history.period_s) if last_only else math.inf
    return math.inf if kind == "midnight" and model.midnight.history else 0.0


def keeps(model: Model, kind: str) -> bool:
    """Does the meter keep the rows of this kind itself, so that they may be read late? Some Modbus meters do."""
    return held_s(model, kind) > 0


def kinds_of(model: Model) -> list[str]:
    """Kinds of profiles that may be read: interval, midnight, billing, instantaneous, events-<k>."""
    if isinstance(model, DlmsModel):
        return list(model.profiles)
    had = {
        "interval": bool(model.interval.points) or model.history is not None,
        "midnight": bool(model.midnight.points),
    }
    return [kind for kind in _SAMPLED if had.get(kind, True)]


def profile_of(model: Model, kind: str) -> tuple[Obis, int]:
    """Logical name and expected capture period in seconds (0 = irregular) of a kind.

    Raises:
        KeyError: the model has no such profile.
    """
    if isinstance(model, DlmsModel):
        profile = model.profiles[kind]
        # plain text: names of a model know where they were written, which no codec takes
        return Obis(str(profile.obis)), profile.period_s or _PERIODS.get(kind, 0)
    obis, period_s = _SAMPLED[kind]
    if kind == "interval" and model.history is not None:
        period_s = model.history.period_s
    return obis, period_s
