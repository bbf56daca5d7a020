"""Counting what the lake holds: every reading of every raw envelope, by identity, the later `read_at` current.

Reads the objects themselves and shares no code with the function that wrote them, so that a mistake of the one is seen
by the other. Times and identity as in DESIGN section 6.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READ_KINDS = ("interval", "midnight", "billing", "instantaneous")


class Identity(NamedTuple):
    """What one reading is."""

    meter: str
    device: str
    profile: str
    at: int
    occurrence: int
    obis: str
    attribute: int


class Value(NamedTuple):
    """What a reading says; physical = value * 10**scaler."""

    value: int | str
    scaler: int
    unit: str


@dataclass(slots=True)
class Stored:
    """What the lake holds of one kind.

    Attributes:
        readings: current value by identity.
        messages: objects read.
        cells: readings in them, repetitions among them.
        conflicts: identities with different values, and all of these as (read_at, value).
    """

    readings: dict[Identity, Value] = field(default_factory=dict)
    messages: int = 0
    cells: int = 0
    conflicts: dict[Identity, list[tuple[int, Value]]] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        """Repetitions of a reading that say the same."""
        return self.cells - len(self.readings) - sum(len(v) - 1 for v in self.conflicts.values())


def stored(bucket: Path, kind: str) -> Stored:
    """Everything of one kind of reads in a bucket's folder."""
    out = Stored()
    read_at: dict[Identity, int] = {}
    readings = out.readings
    for envelope in envelopes(bucket, kind):
        out.messages += 1
        for identity, value, at in cells(envelope):
            out.cells += 1
            had = readings.setdefault(identity, value)
            if had is value:
                read_at[identity] = at
            elif had == value and identity not in out.conflicts:
                read_at[identity] = max(at, read_at[identity])
            else:
                seen = out.conflicts.setdefault(identity, [(read_at[identity], had)])
                seen.append((at, value))
    for identity, seen in out.conflicts.items():
        readings[identity] = max(seen, key=_rank)[1]
    return out


def envelopes(bucket: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The raw envelopes of one kind (`interval`, `outage`, `events`, ...)."""
    for path in bucket.glob(f"{kind}/day=*/dcu=*/*.json"):
        if not path.name.endswith(".meta.json"):
            yield msgspec.json.decode(path.read_bytes())


def cells(envelope: dict[str, Any]) -> Iterator[tuple[Identity, Value, int]]:
    """Every reading of an envelope with the time it was read at; nulls are no readings."""
    if "enc" in envelope:
        envelope = envelope | msgspec.json.decode(
            gzip.decompress(base64.b64decode(envelope["data"]))
        )
    layouts = envelope["layouts"]
    for block in envelope["blocks"]:
        layout = layouts[block["layout"]]
        times = (
            block["t"]
            if "t" in block
            else [block["t0"] + i * layout["period"] for i in range(block["rows"])]
        )
        occurrences = dict(map(tuple, block.get("occ", ())))
        meter, device, profile, read_at = (
            block["meter"],
            block["device"],
            layout["profile"],
            block["read_at"],
        )
        for (obis, unit, scaler, *attribute), column in zip(
            layout["cols"], block["values"], strict=True
        ):
            for row, value in enumerate(column):
                if value is not None:
                    identity = Identity(
                        meter,
                        device,
                        profile,
                        times[row],
                        occurrences.get(row, 0),
                        obis,
                        *(attribute or (2,)),
                    )
                    yield identity, Value(value, scaler, unit), read_at


def _rank(seen: tuple[int, Value]) -> tuple[int, str]:
    """The later read is current; two of one second are told apart by their text, not by the order of arrival."""
    return seen[0], json.dumps(seen[1], separators=(",", ":"), ensure_ascii=False)
