"""`opendcu read`: one meter, one read, now. A running gateway does it on its own line; else this process does."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click
import msgspec

from edge_core.cli.main import config_option, json_option
from edge_core.domain import Flag
from edge_core.errors import GatewayAbsent, NotHere

if TYPE_CHECKING:
    from pathlib import Path

    from edge_core.clock import Clock
    from edge_core.config.schema import Config, Meter

READ_S = 180.0
SHOWN_ROWS = 48
WHATS = "interval, midnight, instantaneous, billing, events, nameplate, clock, or OBIS[:attribute]"


@click.command()
@click.argument("meter")
@config_option
@click.option("--what", default="interval", show_default=True, metavar="WHAT", help=f"{WHATS}.")
@click.option(
    "--from",
    "since",
    metavar="TIME",
    help="Rows from here on: 2026-11-24, 2026-11-24T06:00, -6h, -2d, epoch.",
)
@click.option("--to", "until", metavar="TIME", help="Rows up to here.")
@click.option("--trace", is_flag=True, help="Every frame on standard error, secrets masked.")
@click.option(
    "--second-opinion",
    is_flag=True,
    help="Decode what came with dlms-cosem 21.3.2 too, and compare.",
)
@json_option
def read(
    meter: str,
    *,
    config_file: str,
    what: str,
    since: str | None,
    until: str | None,
    trace: bool,
    second_opinion: bool,
    as_json: bool,
) -> int:
    """Read METER once, now, and show what it says.

    A running gateway is asked to do it between its own visits; without one this process takes the lock of the data
    directory, the counters and the line itself. Values are the meter's integers with scaler and unit in JSON, and
    scaled in the table.
    """
    from edge_core.clock import SystemClock
    from edge_core.config.load import load
    from edge_core.config.tables import did_you_mean
    from edge_core.journal.datadir import DataDirectory

    config = load(config_file)
    found = config.meters.get(meter)
    if found is None:
        hint = did_you_mean(meter, config.meters)
        raise click.UsageError(
            f"{config_file} has no meter {meter}" + (f" ({hint})" if hint else "")
        )
    clock = SystemClock.from_environment()
    zone = ZoneInfo(config.gateway.timezone)
    request = {
        "what": what,
        "from": instant(since, zone, clock, end=False),
        "to": instant(until, zone, clock, end=True),
        "trace": trace,
        "second_opinion": second_opinion,
    }
    directory = DataDirectory(config.data_dir)
    document = _by_gateway(directory.controls(), found.id, request)
    if document is None:
        document = asyncio.run(_by_ourselves(config, found, request, clock))
    for line in document.pop("trace", ()):
        click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        show(document, zone)
    return 1 if "error" in document or document.get("second_opinion", {}).get("differences") else 0


def instant(text: str | None, zone: ZoneInfo, clock: Clock, *, end: bool) -> int | None:
    """A moment of the command line as UTC epoch seconds; a date alone as its begin, or as `end` its last second.

    Raises:
        click.UsageError: it is none.
    """
    if text is None:
        return None
    spans = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    for unit in ("min", "s", "h", "d"):
        if text.startswith("-") and text.endswith(unit) and text[1 : -len(unit)].isdigit():
            return int(clock.now()) - int(text[1 : -len(unit)]) * spans[unit]
    if text.isdigit() and len(text) > 8:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{text!r} is no time; write 2026-11-24, 2026-11-24T06:00, 2026-11-24T06:00+05:30, -6h, -2d or epoch seconds"
        ) from None
    whole_day = len(text) <= 10
    if at.tzinfo is None:
        at = at.replace(tzinfo=zone)
    if whole_day and end:
        at += timedelta(days=1)
    return int(at.timestamp())


def _by_gateway(sockets: list[Path], meter: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the process that polls the meter on this data directory; None when none does."""
    from edge_core.transports.controls import ask_owner

    try:
        answer: dict[str, Any] = ask_owner(
            sockets,
            {"do": "read", "meter": meter, **request},
            READ_S,
        )
    except (GatewayAbsent, NotHere):
        return None
    return answer


async def _by_ourselves(
    config: Config, meter: Meter, request: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    """Take lock, counters and line, read, and give all back."""
    from edge_core.acquisition import reading
    from edge_core.acquisition.drivers import Site, open_driver
    from edge_core.acquisition.tracing import Trace
    from edge_core.config.keys import KeyRing
    from edge_core.journal import CounterStore
    from edge_core.journal.datadir import DataDirectory, Memories

    wanted = msgspec.convert(request, reading.Reading)
    model, line = config.models[meter.model], config.lines[meter.line]
    directory = DataDirectory(config.data_dir).prepare()
    with directory.lock([model.about.protocol]):
        memories = Memories(directory, now=clock.now())
        counters = CounterStore.open(directory.counters, clock=clock)
        try:
            keys = (
                KeyRing.open(config.keys).get(meter.id) if model.about.protocol == "dlms" else None
            )
            driver = open_driver(
                meter,
                line,
                model,
                keys,
                counters,
                memories.of(meter.id),
                clock,
                Trace(line.framing, _tell) if wanted.trace else None,
                site=Site(config.gateway.title, config.gateway.timezone),
            )
            try:
                async with asyncio.timeout(READ_S):
                    return await reading.read(driver, wanted, meter=meter, model=model, clock=clock)
            finally:
                await driver.close()
        finally:
            counters.close()
            memories.close()


def _tell(text: str) -> None:
    click.echo(text, err=True)


# --- for people


def show(document: dict[str, Any], zone: ZoneInfo) -> None:
    """The document as tables."""
    click.echo(f"meter {document['meter']}, device {document['device']}, model {document['model']}")
    for register in document["registers"]:
        name = register["name"] or register["obis"]
        code = register["obis"] or ""
        click.echo(
            f"  {name:32} {code:20} {_value(register['value'], register['scaler'], register['unit'], zone)}"
        )
    for block in document["blocks"]:
        _show_block(block, document["layouts"][block["layout"]], zone)
    if not document["registers"] and not document["blocks"]:
        click.echo("  no rows in this range")
    if "second_opinion" in document:
        opinion = document["second_opinion"]
        click.echo(f"second opinion: {opinion['compared']} answers compared with {opinion['by']}, "
                   f"{len(opinion['differences'])} differ")  # fmt: skip
        for difference in opinion["differences"]:
            click.echo(f"  {difference}")
    if "error" in document:
        click.echo(
            f"opendcu: {document['during']}: {document['message']}. {document['hint']}", err=True
        )


def _show_block(block: dict[str, Any], layout: dict[str, Any], zone: ZoneInfo) -> None:
    rows = block["rows"]
    times = block.get("t") or [block["t0"] + i * layout["period"] for i in range(rows)]
    flags = [0] * rows
    for first, count, bits in block.get("flags", ()):
        for row in range(first, first + count):
            flags[row] |= bits
    columns = layout["cols"]
    click.echo(f"\nprofile {layout['profile']}, {rows} rows, period {layout['period']} s")
    heads = [
        f"{c[0].removesuffix('.255')}{f':{c[3]}' if len(c) > 3 else ''} {c[1]}".strip()
        for c in columns
    ]
    skipped = max(0, rows - SHOWN_ROWS)
    if skipped:
        click.echo(f"  the newest {SHOWN_ROWS} rows; {skipped} older ones with --json or --from")
    table = [["time", *heads, ""]]
    for row in range(skipped, rows):
        cells = [
            _value(block["values"][k][row], c[2], "" if c[1] != "epoch" else "epoch", zone)
            for k, c in enumerate(columns)
        ]
        table.append([_time(times[row], zone), *cells, _flags(flags[row])])
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        click.echo(
            "  "
            + "  ".join(
                cell.rjust(width) for cell, width in zip(line, widths, strict=True)
            ).rstrip()
        )


def _value(value: Any, scaler: int, unit: str, zone: ZoneInfo) -> str:
    """A value as people read it: scaled, with its unit."""
    if value is None:
        return "-"
    if unit == "epoch":
        return _time(value, zone)
    text = (
        str(value) if isinstance(value, str) or not scaler else f"{Decimal(value).scaleb(scaler):f}"
    )
    return f"{text} {unit}".rstrip()


def _time(at: int, zone: ZoneInfo) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return str(at)


def _flags(bits: int) -> str:
    return " ".join((flag.name or "").lower().replace("_", "-") for flag in Flag if flag & bits)
