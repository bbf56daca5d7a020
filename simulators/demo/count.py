"""Three independent counts: what the meters captured, what the lake stores, what the table projects.

`captured` comes from the simulated meters (for Modbus: the samples that the gateway's journal committed, whose values
the simulated meters judge), `stored` from the objects in the lake, and the table is read as the API reads it. Nothing
here uses the gateway's own counters.
"""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from simulators.cloud import Identity, Stored, Value, lake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = ("interval", "midnight")


@dataclass(slots=True)
class Account:
    """The outcome of one kind.

    Attributes:
        captured: readings that the meters hold.
        stored: of these, how many are in the lake, each once.
        lost: captured and not stored.
        doubled: identities with more than one value, or in the table and not in the lake.
        altered: stored with another value, scaler or unit than the meter's, or held by no meter.
        repeated: equal copies that came again and were dropped by their identity.
    """

    captured: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    altered: int = 0
    repeated: int = 0
    examples: list[str] = field(default_factory=list)

    def complain(self, what: str, identity: Identity, detail: object = "") -> None:
        """Keep the first few for people."""
        if len(self.examples) < 5:
            self.examples.append(f"{what}: {' '.join(map(str, identity))} {detail}".strip())


def truth_of(path: Path, kind: str) -> Iterator[tuple[Identity, Value]]:
    """Every reading of one kind in a truth file of the fleet."""
    with path.open("rb") as lines:
        for line in lines:
            entry = msgspec.json.decode(line)
            if entry["kind"] != kind:
                continue
            occurrences = dict(map(tuple, entry["occ"]))
            meter, device, profile = entry["meter"], entry["device"], entry["profile"]
            for (obis, unit, scaler, attribute), cells in zip(
                entry["cols"], entry["values"], strict=True
            ):
                for row, (at, cell) in enumerate(zip(entry["t"], cells, strict=True)):
                    if cell is not None:
                        identity = Identity(
                            meter, device, profile, at, occurrences.get(row, 0), obis, attribute
                        )
                        yield identity, Value(cell, scaler, unit)


def dlms_account(truth: Path, kind: str, stored: Stored, modbus: set[str]) -> Account:
    """The DLMS meters' rows of one kind, cell by cell."""
    account = Account(repeated=stored.duplicates)
    expected = dict(truth_of(truth, kind))
    account.captured = len(expected)
    for identity, value in expected.items():
        had = stored.readings.get(identity)
        if had is None:
            account.lost += 1
            account.complain("lost", identity)
        else:
            account.stored += 1
            if had != value:
                account.altered += 1
                account.complain("altered", identity, f"{had} for {value}")
    for identity in stored.conflicts:
        account.doubled += 1
        account.complain("two values", identity, stored.conflicts[identity])
    for identity, had in stored.readings.items():
        if identity.meter not in modbus and identity not in expected:
            account.altered += 1
            account.complain("no meter held", identity, had)
    return account


def samples_of(bucket: Path, kind: str, modbus: set[str]) -> Iterator[dict[str, Any]]:
    """Stored samples with the span in which each was taken, for the fleet to judge."""
    for envelope in lake.envelopes(bucket, kind):
        opened = envelope
        if "enc" in envelope:
            opened = msgspec.json.decode(gzip.decompress(base64.b64decode(envelope["data"])))
        for block in opened["blocks"]:
            if block["meter"] not in modbus or "at" not in block.get("q", {}):
                continue
            low, high = block["q"]["bound"]
            columns = opened["layouts"][block["layout"]]["cols"]
            for column, cells in zip(columns, block["values"], strict=True):
                for cell in cells:
                    if cell is not None:
                        yield {
                            "meter": block["meter"],
                            "obis": column[0],
                            "value": cell,
                            "scaler": column[2],
                            "from": low / 1000,
                            "to": high / 1000,
                        }


def committed_samples(journal: Path, meters: set[str]) -> dict[str, dict[tuple[str, str], int]]:
    """Rows that the journal committed: kind -> (meter, profile) -> rows. The gateway must have ended."""
    from edge_core.clock import SystemClock
    from edge_core.journal import Journal

    rows: dict[str, dict[tuple[str, str], int]] = {kind: {} for kind in KINDS}
    opened = Journal.open(journal, clock=SystemClock.from_environment())
    try:
        for meter in meters:
            for entry in opened.ledger(meter):
                if entry.kind in rows:
                    key = meter, entry.profile
                    rows[entry.kind][key] = rows[entry.kind].get(key, 0) + entry.captured
    finally:
        opened.close()
    return rows


def add_modbus(
    account: Account, committed: dict[tuple[str, str], int], stored: Stored, modbus: set[str]
) -> None:
    """Committed samples of Modbus meters against what is stored of them; values are judged by the fleet."""
    columns: dict[tuple[str, str], set[str]] = {}
    cells: dict[tuple[str, str], int] = {}
    for identity in stored.readings:
        if identity.meter in modbus:
            key = identity.meter, identity.profile
            columns.setdefault(key, set()).add(identity.obis)
            cells[key] = cells.get(key, 0) + 1
    for key, rows in committed.items():
        width = len(columns.get(key, ())) or 1
        captured, there = rows * width, cells.get(key, 0)
        account.captured += captured
        account.stored += min(captured, there)
        account.lost += max(0, captured - there)
        if captured != there and len(account.examples) < 5:
            account.examples.append(
                f"meter {key[0]} {key[1]}: {captured} committed, {there} stored"
            )
        account.doubled += max(0, there - captured)
