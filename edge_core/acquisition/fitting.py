"""Which DLMS models fit what a meter shows to anybody, and what tells those apart that fit alike. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from edge_core.config.models import DlmsModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edge_core.acquisition.probing import Found
    from edge_core.config.models import Model


class Fit(msgspec.Struct, frozen=True):
    """How well a model fits; `why` in words."""

    model: str
    score: int
    why: tuple[str, ...] = ()


def dlms_fits(found: Found, models: Iterable[Model]) -> list[Fit]:
    """The polled DLMS models that fit, best first.

    What counts: the counter object of the model's client, the sign of the clock's deviation, a name that only such
    meters have, objects of the model that the public client is shown, the maker.
    """
    fits = []
    for model in models:
        if not isinstance(model, DlmsModel) or not model.profiles:
            continue
        score, why = 0, []
        counter = model.association.counter
        if found.counters.get(counter):
            score += 3
            why.append(f"counts our requests in {counter}")
        elif counter and counter not in found.counters and found.counters:
            score -= 2
        sign = found.clock.get("sign")
        if sign:
            same = sign == model.time.deviation
            score += 3 if same else -3
            if same:
                why.append(f"writes its deviation {sign}")
        flag = bytes.fromhex(found.title)[:3].decode("ascii", "replace")
        if flag.strip() and any(flag in text for text in model.about.families):
            score += 1
            why.append(f"maker {flag}")
        for name in (found.name, found.equipment):
            if any(re.fullmatch(pattern, name) for pattern in model.about.names):
                score += 4
                why.append(f"is named {name}")
        shown = sorted(own_names(model) & set(found.objects))
        if shown:
            score += min(len(shown), 3)
            why.append(f"shows {', '.join(shown[:3])}")
        if score > 0:
            fits.append(Fit(model.name, score, tuple(why)))
    return sorted(fits, key=lambda fit: (-fit.score, fit.model))


def told_apart(names: Sequence[str], models: Iterable[Model]) -> list[str]:
    """What tells DLMS models apart that fit alike, in words: objects which only one of them has. [] for less than two."""
    tied = [m for m in models if m.name in names and isinstance(m, DlmsModel)]
    if len(tied) < 2:
        return []
    own = {model.name: own_names(model) for model in tied}
    words = []
    for name, objects in own.items():
        others = set().union(*(o for n, o in own.items() if n != name))
        if only := sorted(objects - others):
            words.append(f"only {name} has {' '.join(only[:3])}")
    what = "; ".join(words) or "they have the same objects"
    return [
        f"{', '.join(names)} fit alike: what a meter shows to anybody does not tell them apart. With keys the object "
        f"list does: {what}"
    ]


def own_names(model: DlmsModel) -> set[str]:
    """Logical names by which a meter of this model shows itself: profiles, scalers, status words, push setups."""
    names = {str(setup.obis) for setup in model.push.values()}
    for profile in model.profiles.values():
        names |= {str(n) for n in (profile.obis, profile.scaler_profile, profile.status) if n}
    return names
