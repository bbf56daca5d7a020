"""Rows that stand in the journal under a layout that a later proof disproved (DESIGN section 7, "What is new").

A meter that still holds them gives them again, under the layout of now. What it no longer holds can only be doubted: the
rows are published once more as they were read, every one flagged LAYOUT_DOUBT, with `q["doubt"]` for the ledger, which
else would drop them as known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_core.domain import Flag, as_list
from edge_core.domain.block import runs_of

if TYPE_CHECKING:
    from edge_core.domain import Block, Obis
    from edge_core.journal import Journal


def doubtful(
    journal: Journal,
    meter: str,
    device: str,
    profile: Obis,
    kind: str,
    before: int,
    again: set[int],
) -> list[Block]:
    """Rows of a profile captured since a proof that was disproved, but for those that were read again; flagged.

    Reads every segment that was written since: in a thread of its own.

    Args:
        journal: holds them, unless they were freed.
        meter, device, profile, kind: whose.
        before: when the disproved proof was made, UTC epoch seconds.
        again: times that were read again.
    """
    kind = "events" if kind.startswith("events") else kind
    latest: dict[tuple[int, int], tuple[Block, int]] = {}
    for block in journal.find(meter, kind=kind, since=before + 1, written_since=before):
        if (block.device, block.layout.profile) != (device, profile):
            continue
        occurrence = dict(block.occ)
        for row, at in enumerate(as_list(block.times)):
            latest[at, occurrence.get(row, 0)] = block, row
    found: dict[int, tuple[Block, list[int]]] = {}
    for (at, _), (block, row) in sorted(latest.items(), key=lambda item: item[0]):
        if at not in again and not (block.q or {}).get("doubt"):
            found.setdefault(id(block), (block, []))[1].append(row)
    return [_flagged(block.take(rows), before) for block, rows in found.values()]


def _flagged(block: Block, before: int) -> Block:
    bits = [int(Flag.LAYOUT_DOUBT)] * block.rows
    for first, count, value in block.flags:
        for row in range(first, first + count):
            bits[row] |= value
    quality = (block.q or {}) | {"relaid": before, "doubt": True}
    return msgspec.structs.replace(block, flags=runs_of(bits), q=quality)
