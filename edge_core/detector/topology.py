"""Which meters stand below which transformer meter: read from `transformer` of [[meters]].

The meter whose id is the name of a transformer measures that transformer; nothing else needs to be said. It may itself
stand under another one (a feeder's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_core.config.schema import Meter


def measured(meters: Mapping[str, Meter]) -> dict[str, list[str]]:
    """By the id of a transformer's own meter: the meters below it. Transformers without one are left out."""
    below: dict[str, list[str]] = {}
    for meter in meters.values():
        if meter.transformer in meters and meter.transformer != meter.id:
            below.setdefault(meter.transformer, []).append(meter.id)
    return below
