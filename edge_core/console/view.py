"""What the console needs to see of a running gateway, and its answer to "why is this meter silent?".

The gateway hands in an object that has these methods; each returns plain JSON-like values, changes nothing and is
called from the event loop; what another process must be asked for is awaited. A value that is not known is left out or None, and the page shows a dash.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from edge_core.health.words import lasting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

Row = dict[str, Any]


class View(Protocol):
    """Read-only looks into the rooms of one gateway. Times are civil UTC seconds."""

    def overview(self) -> Row:
        """The box: gateway, version, roles, civil, speed, timezone, uptime_s, memory_mb, clock, meters, journal, uplink."""
        ...

    def meters(self) -> Sequence[Row]:
        """A row a meter: meter, line, model, device, state, last_read, failures, error, error_class, clock_offset_s.

        `state` is ok, reading, silent, parked or not yet read.
        """
        ...

    def meter(self, meter: str) -> Row | Awaitable[Row]:
        """The row, with address, due (next reads by job) and `ledger`; KeyError for a meter that is not polled here."""
        ...

    def gaps(self, meter: str) -> Sequence[Row] | Awaitable[Sequence[Row]]:
        """The ledger of a meter: an entry a device and profile, with period, runs, holes, captured, missing."""
        ...

    def alarms(self) -> Sequence[Row]:
        """The latest alarms, newest first: as in an alarms message."""
        ...

    def events(self) -> Sequence[Row]:
        """What goes wrong now."""
        ...


CLOCK_OFF_S = 300
MOST = 0.5
"""Share of a line's meters that must be silent for the line to be suspected."""

CAUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "LineSilent": (
        "it does not answer, while others on its line do",
        (
            "Has the meter power? Look at its display.",
            "Is the address right, and does anything else answer there? `opendcu probe` tells.",
            "Over TCP: does a firewall or a second client hold the meter's only connection?",
            "On a bus: is the unit or HDLC address the one on the meter, and are speed and parity the line's?",
        ),
    ),
    "KeyRejected": (
        "it answers, but does not accept our key, password or counter",
        (
            "Compare the meter's keys with the head-end's: meters lock after a few wrong tries, so it is asked rarely.",
            "Was the meter replaced, or were its keys changed by another client?",
            "After correcting the keys file: reload, then unpark or read the meter.",
        ),
    ),
    "MeterRefused": (
        "it answers, and refuses what it is asked for",
        (
            "Does the client SAP of the model have the right to read this?",
            "Does the model fit? `opendcu probe` proposes one.",
            "Does another client hold the meter's only association?",
        ),
    ),
    "MalformedReply": (
        "it answers, and the answer cannot be understood",
        (
            "Do framing and model fit? `opendcu probe` proposes both.",
            "On a bus: noise, termination, two meters with one address?",
            "`opendcu read METER --trace` shows the frames; `opendcu decode` takes them apart.",
        ),
    ),
    "WrongMeter": (
        "another device than the configured one answers at its address",
        (
            "Was the meter exchanged? Then correct its serial in the configuration.",
            "Does its address belong to another meter?",
        ),
    ),
}


def why(row: Row, all_meters: Iterable[Row], civil: float) -> Row:
    """Why a meter is silent, in words.

    Args:
        row: the meter's row.
        all_meters: every row, to tell a line from a meter.
        civil: now, UTC seconds.

    Returns:
        `answer` (one sentence), `checks` (what to look at next), `error` (the last one), `line` {total, silent}.
    """
    mates = Counter(
        "silent" if _silent(m) else "heard"
        for m in all_meters
        if m["line"] == row["line"] and _asked(m)
    )
    total, silent = mates.total(), mates["silent"]
    checks: list[str] = []
    if row["state"] == "parked":
        answer = f"{row['meter']} is parked: it is left alone on purpose, and excused meanwhile."
        checks.append("Unpark it to have it read again.")
    elif not _silent(row):
        read = row.get("last_read")
        if read is None:
            answer = f"{row['meter']} has not been asked yet."
        else:
            answer = f"{row['meter']} is not silent: it was read {lasting(civil - read)} ago."
    elif total > 1 and silent == total:
        answer = (
            f"All {total} meters of line {row['line']} are silent: it is the line, not this meter."
        )
        checks += [
            "Power, antenna and cable of the modem, the converter or the switch that they share.",
            "The route to their subnet; on a bus: cable, polarity, termination, the port of the converter.",
            "An outage of the feeder: are there last gasps among the alarms?",
        ]
    elif total > 3 and silent >= MOST * total:
        answer = f"{silent} of {total} meters of line {row['line']} are silent: suspect the line, or a power cut."
        checks += [
            "Which transformer or segment do the silent ones share?",
            "Are there last gasps among the alarms?",
        ]
    else:
        text, more = CAUSES.get(row.get("error_class") or "", ("its last visit failed", ()))
        answer = f"{row['meter']}: {text}."
        if total > 1:
            answer += f" {total - silent} of {total} meters of line {row['line']} answer."
        checks += more
    offset = row.get("clock_offset_s")
    if offset is not None and abs(offset) > CLOCK_OFF_S:
        checks.append(
            f"Its clock is {lasting(abs(offset))} {'ahead' if offset > 0 else 'behind'}: rows may come late."
        )
    return {
        "answer": answer,
        "checks": checks,
        "error": row.get("error"),
        "line": {"total": total, "silent": silent},
    }


def _silent(row: Row) -> bool:
    return bool(row.get("failures")) or row["state"] == "silent"


def _asked(row: Row) -> bool:
    return _silent(row) or row.get("last_read") is not None
