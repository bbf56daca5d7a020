"""One document of what several processes of a gateway say of themselves: health, overviews, daily figures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Document = dict[str, Any]
_SUMMED = ("due", "captured", "delivered", "excused")


def merged_health(documents: Sequence[Document]) -> Document:
    """Health bodies as one; the first is the uplink's, whose uptime, uplink and additions hold."""
    first = documents[0]
    out = dict(first)
    for key in ("depth", "memory_mb"):
        out[key] = sum(d.get(key) or 0 for d in documents)
    left = [d["hours_left"] for d in documents if d.get("hours_left") is not None]
    out["hours_left"] = min(left, default=None)
    out["meters"] = {
        key: sum(d.get("meters", {}).get(key, 0) for d in documents)
        for key in first.get("meters", ())
    }
    clocks = [d["clock"] for d in documents if "clock" in d]
    out["clock"] = {
        "synced": all(clock["synced"] for clock in clocks),
        "step_s": max((clock["step_s"] for clock in clocks), key=abs, default=0),
    }
    return out


def merged_overview(documents: Sequence[Document]) -> Document:
    """Overviews as one; the first is the uplink's, if it runs."""
    out = merged_health(documents)
    out["roles"] = [role for d in documents for role in d.get("roles", ())]
    journals = [d["journal"] for d in documents if "journal" in d]
    if journals:
        out["journal"] = merged_journal(journals)
    for key in ("polling", "pushes"):
        counts: Counter[str] = Counter()
        for document in documents:
            counts.update(document.get(key, {}))
        out[key] = dict(counts)
    return out


def merged_journal(documents: Sequence[Document]) -> Document:
    """Statuses of journals as one: octets and what waits are summed."""
    out = dict(documents[0])
    for key, value in documents[0].items():
        values = [d.get(key) for d in documents]
        if key == "hours_left":
            out[key] = min((v for v in values if v is not None), default=None)
        elif key == "full":
            out[key] = any(values)
        elif key == "damaged":
            out[key] = next((v for v in values if v), None)
        elif isinstance(value, int) and key not in ("epoch", "head"):
            out[key] = sum(v or 0 for v in values)
    return out


def merged_figures(documents: Sequence[Document]) -> Document:
    """Daily figures of one day, each of other meters, as one."""
    profiles: dict[str, Document] = {}
    for document in documents:
        for found in document.get("profiles", ()):
            total = profiles.setdefault(
                found["profile"], found | dict.fromkeys(_SUMMED, 0) | {"missing": {}}
            )
            for key in _SUMMED:
                total[key] += found[key]
            missing: Counter[str] = Counter(total["missing"])
            missing.update(found["missing"])
            total["missing"] = dict(sorted(missing.items()))
    return {**documents[0], "profiles": [profiles[name] for name in sorted(profiles)]}
