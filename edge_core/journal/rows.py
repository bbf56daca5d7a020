"""Rows of a profile as the ledger keeps them: hashes, and how rows of one time are told apart. Pure."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from edge_core.domain import Block

HASH_OCTETS = 2
HASH = 0xFFFF


def row_hashes(block: Block, rows: Sequence[int]) -> list[int]:
    """16 bits for each of some rows (ascending) that change with a value or the layout.

    They are the same on every machine and in every release.
    """
    if not rows:
        return []
    first, last = rows[0], rows[-1] + 1
    columns = [
        c[first:last].tolist() if isinstance(c, np.ndarray) else c[first:last]
        for c in block.columns
    ]
    cells = list(zip(*columns, strict=True)) if columns else [()] * (last - first)
    if len(rows) != last - first:
        cells = [cells[row - first] for row in rows]
    seed = int(block.layout.digest[:8], 16)
    return [zlib.crc32(repr(row).encode(), seed) & HASH for row in cells]


def split(hashes: bytes) -> list[int]:
    """The hashes of a run of them."""
    return list(struct.unpack(f">{len(hashes) // HASH_OCTETS}H", hashes))


def join(values: Iterable[int]) -> bytes:
    """Hashes as octets, HASH_OCTETS each."""
    values = list(values)
    return struct.pack(f">{len(values)}H", *values)


def varints(values: Iterable[int]) -> bytes:
    """Non-negative integers, 7 bits an octet, low ones first."""
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def integers(octets: bytes) -> Iterator[int]:
    """What `varints` wrote."""
    value = shift = 0
    for octet in octets:
        value |= (octet & 127) << shift
        shift += 7
        if octet < 128:
            yield value
            value = shift = 0


def align(
    known: Sequence[int | None],
    values: Sequence[int],
    *,
    at_least: int,
    unproven_from: int,
    new_from: int,
) -> range | list[int]:
    """The occurrences of the rows of one time.

    Args:
        known: hashes of the known occurrences 0, 1, ...; None = forgotten.
        values: hashes of the rows, in buffer order.
        at_least: so many rows of this time stand before the first one, says the block.
        unproven_from: rows from this position on are new, unless a repeat proves that it is them.
        new_from: rows from this position on are new.
    """
    if not known:
        return range(at_least, at_least + len(values))
    fresh_from = min(unproven_from, new_from)
    best, best_score = -1, -1
    for start in range(at_least, max(len(known), at_least) + 1):
        if start >= len(known) and fresh_from and start > at_least:
            break  # the first row is one of the known, or in conflict with it
        score = 0
        for j, value in enumerate(values):
            place = start + j
            if place >= len(known):
                continue
            same = known[place] == value
            if j >= new_from or (j >= unproven_from and not (place and same)):
                break
            if not same and known[place] is not None:
                break
            score += same
        else:
            if score > best_score:
                best, best_score = start, score
    if best >= 0:
        return range(best, best + len(values))
    start = max(at_least, len(known) - len(values))
    return [
        start + j if j < fresh_from else max(start + j, len(known) + j - fresh_from)
        for j in range(len(values))
    ]
