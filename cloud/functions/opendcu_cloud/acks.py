"""Acknowledgements: what one batch stored of one gateway and epoch, in messages of at most MAX_ACK octets.

Harmless when lost, repeated, late or reordered: each message says on its own which numbers are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_ACK = 1_000
MAX_WHY = 160


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Inclusive ranges `[first, last]`, ascending, that hold exactly these numbers."""
    out: list[list[int]] = []
    for n in sorted(set(numbers)):
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return out


def acks(
    dcu: str, epoch: int, stored: Iterable[int], refused: Sequence[tuple[int, str, str]], high: int
) -> list[bytes]:
    """The messages for `<p>/<dcu>/down/acks`.

    Args:
        stored: numbers whose octets are in the lake.
        refused: (number, code, why); `why` is cut to MAX_WHY ASCII characters.
        high: highest number stored for this epoch.
    """
    entries: list[tuple[bool, list[Any]]] = [(True, pair) for pair in ranges(stored)]
    for n, code, why in refused:
        entries.append((False, [n, code, why.encode("ascii", "replace").decode()[:MAX_WHY]]))
    room = MAX_ACK - len(_encode(dcu, epoch, [], high))
    out: list[bytes] = []
    some: list[tuple[bool, list[Any]]] = []
    used = 0
    for entry in entries:
        size = len(msgspec.json.encode(entry[1])) + 1
        if some and used + size > room:
            out.append(_encode(dcu, epoch, some, high))
            some, used = [], 0
        some.append(entry)
        used += size
    if some:
        out.append(_encode(dcu, epoch, some, high))
    return out


def _encode(dcu: str, epoch: int, entries: Sequence[tuple[bool, list[Any]]], high: int) -> bytes:
    return msgspec.json.encode(
        {
            "schema": "opendcu.ack/1",
            "dcu": dcu,
            "epoch": epoch,
            "acked": [entry for stored, entry in entries if stored],
            "rejected": [entry for stored, entry in entries if not stored],
            "high": high,
        }
    )
