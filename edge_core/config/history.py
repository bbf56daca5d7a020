"""Table [history] of a Modbus meter model: what the meter remembers, and how it is asked for it.

Two kinds exist. `window`: request registers are written (which channel, from when), then a block of entries is read,
and the next block asked for. `last-period`: the meter shows the average power of the demand period that ended last,
until the next one ends. A model with this table has a load profile: its intervals are read, not sampled.

The registers that may ever be written are `WindowHistory.requests`, and a model in which one of them overlaps a point,
or a register that is read, is refused: nothing that a meter measures or is set up with can be written by mistake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec

from edge_core.config.tables import build, did_you_mean
from edge_core.domain.obis import obis_to_bytes
from edge_core.domain.status import Flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_core.config.tables import Findings

KINDS = ("window", "last-period")
Register = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Period = Annotated[int, msgspec.Meta(ge=60, le=86_400)]

CHANNEL_WORDS = (("quantity", 3), ("scaler", 1), ("interval", 2), ("data_type", 1))
ENTRY_WORDS = 8
"""Registers of an entry: time stamp 3, status 1, value 4."""


class WindowHistory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [history] with kind = "window": entries are read through a window that request registers move.

    Attributes:
        kind: window.
        period_s: seconds between entries; channels with another interval are left out.
        channels: how many channels there are, numbered from 1.
        channel: register that chooses the channel.
        start: first of three registers that choose the time to begin at: year of the century, month, day, hour, minute,
            second, one octet each, civil time.
        direction: register that chooses the direction: 1 = forward in time.
        next: register; a 1 brings the next block of entries.
        quantity: first of three registers with the OBIS code of the chosen channel.
        scaler: register with the power of ten of its values in the quantity's base unit.
        interval: first of two registers with its interval in minutes.
        data_type: register with the type of its values, one of `types`.
        types: code of a type, as text, to uint64 or int64.
        block: first register of the entries: time stamp 3 (the interval's end), status 1, value 4 registers; all bits one =
            no entry.
        entries: entries in a block.
        valid_bit: bit of the status that says that the entry holds a value.
        status_bits: other bits of the status, as text, to the name of the flag (DESIGN section 11).
        patience_s: how long the meter may search for the start before it answers.
        zone: IANA zone of the time stamps; "" = the gateway's. A meter whose clock knows no DST needs one without.
    """

    kind: Literal["window"]
    period_s: Period = 900
    channels: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    channel: Register
    start: Register
    direction: Register
    next: Register
    quantity: Register
    scaler: Register
    interval: Register
    data_type: Register
    types: dict[str, Literal["uint64", "int64"]]
    block: Register
    entries: Annotated[int, msgspec.Meta(ge=1, le=15)] = 15
    valid_bit: Annotated[int, msgspec.Meta(ge=0, le=15)] = 0
    status_bits: dict[str, str] = {}
    patience_s: Annotated[float, msgspec.Meta(ge=1, le=300)] = 75.0
    zone: str = ""

    @property
    def requests(self) -> tuple[tuple[int, int], ...]:
        """(first register, count) of each group that may be written: all that may ever be."""
        return ((self.channel, 1), (self.start, 3), (self.direction, 1), (self.next, 1))

    @property
    def reads(self) -> tuple[tuple[int, int], ...]:
        """(first register, count) of each group that is only read."""
        shown = [(getattr(self, name), count) for name, count in CHANNEL_WORDS]
        return (*shown, (self.block, ENTRY_WORDS * self.entries))


class PeriodHistory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table [history] with kind = "last-period": the demand period that ended last.

    Attributes:
        kind: last-period.
        period_s: seconds of a demand period; they end on its multiples, by the meter's clock.
        elapsed: point with the seconds since the period ended.
        length: point with the seconds that it really lasted.
        columns: OBIS code of the energy of the period to the point with its average power; energy = power x length.
        resolution: power of ten in which the energies are published.
    """

    kind: Literal["last-period"]
    period_s: Period = 900
    elapsed: str
    length: str
    columns: dict[str, str]
    resolution: Annotated[int, msgspec.Meta(ge=-6, le=3)] = -2


History = WindowHistory | PeriodHistory


def history_of(
    raw: object,
    spans: Mapping[str, tuple[str, int, int]],
    units: Mapping[str, str],
    findings: Findings,
    file: str,
) -> History | None:
    """The history that a model declares, or None after its mistakes were added.

    Args:
        raw: the parsed table.
        spans: name of each point to (table, first register, register after the last).
        units: name of each point to its unit.
    """
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        findings.mistake(file, "history", "kind", f"one of {', '.join(KINDS)} is needed", hint)
        return None
    if kind == "window":
        window = build(WindowHistory, raw, findings, file, "history")
        return window and _lawful_window(window, spans, findings, file)
    period = build(PeriodHistory, raw, findings, file, "history")
    return period and _lawful_period(period, units, findings, file)


def _lawful_window(
    window: WindowHistory,
    spans: Mapping[str, tuple[str, int, int]],
    findings: Findings,
    file: str,
) -> WindowHistory:
    taken: list[tuple[str, int, int]] = [
        (f"point {name}", first, end)
        for name, (table, first, end) in spans.items()
        if table == "holding"
    ]
    taken += [
        ("what is read of the history", first, first + count) for first, count in window.reads
    ]
    names = ("channel", "start", "direction", "next")
    for name, (first, count) in zip(names, window.requests, strict=True):
        for what, begin, end in taken:
            if first < end and begin < first + count:
                findings.mistake(
                    file, "history", name, f"register {first} is written, and belongs to {what}"
                )
        if first + count > 65_536:
            findings.mistake(file, "history", name, "beyond the last register")
        taken.append((f"`{name}`", first, first + count))
    try:
        ZoneInfo(window.zone or "UTC")
    except (ValueError, OSError, KeyError):
        findings.mistake(file, "history", "zone", f'"{window.zone}" is no IANA time zone')
    for bit, flag in window.status_bits.items():
        if not (bit.isdigit() and int(bit) < 16):
            findings.mistake(file, "history", "status_bits", f"{bit!r} is no bit of a register")
        if flag.upper().replace("-", "_") not in Flag.__members__:
            known = [f.lower().replace("_", "-") for f in Flag.__members__]
            findings.mistake(
                file, "history", "status_bits", f'no flag "{flag}"', did_you_mean(flag, known)
            )
    return window


def _lawful_period(
    period: PeriodHistory, units: Mapping[str, str], findings: Findings, file: str
) -> PeriodHistory:
    for key, name, allowed in [
        ("elapsed", period.elapsed, ("s",)),
        ("length", period.length, ("s",)),
        *(("columns", name, ("W", "var", "VA")) for name in period.columns.values()),
    ]:
        if name not in units:
            findings.mistake(file, "history", key, f'no point "{name}"', did_you_mean(name, units))
        elif units[name] not in allowed:
            findings.mistake(file, "history", key, f'"{name}" is in {units[name] or "no unit"}')
    for obis in period.columns:
        try:
            obis_to_bytes(obis)
        except ValueError as error:
            findings.mistake(file, "history", "columns", str(error))
    if not period.columns:
        findings.mistake(file, "history", "columns", "at least one is needed")
    return period


def flags_of(window: WindowHistory, status: int) -> int:
    """Flags of an entry, from its status register; NOT_VALID where it holds no value."""
    bits = 0 if status >> window.valid_bit & 1 else int(Flag.NOT_VALID)
    for bit, flag in window.status_bits.items():
        if status >> int(bit) & 1:
            bits |= int(Flag[flag.upper().replace("-", "_")])
    return bits
