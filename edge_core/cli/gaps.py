"""`opendcu gaps`: the gap ledger: what is known of each meter and profile, what is missing, and why."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from edge_core.cli.main import config_option, json_option
from edge_core.errors import GatewayAbsent, NotHere
from edge_core.health.words import columns

if TYPE_CHECKING:
    from edge_core.config.schema import Config

GAPS_S = 120.0
UNNAMED = "not named yet"


@click.command()
@click.argument("meters", nargs=-1, metavar="[METER]...")
@config_option
@click.option("--kind", help="Only this profile: interval, midnight, billing, events-<k>.")
@click.option("--cause", help="Only gaps of this cause; `unnamed` = those without one.")
@click.option("--all", "everything", is_flag=True, help="Complete profiles too.")
@json_option
def gaps(
    meters: tuple[str, ...],
    *,
    config_file: str,
    kind: str | None,
    cause: str | None,
    everything: bool,
    as_json: bool,
) -> int:
    """What is missing of METERs (all of them), and the cause of every gap.

    A row is missing when its time is due and the ledger does not hold it. Causes: line-silent, association-refused,
    key-rejected, counter-refused, meter-clock, no-such-row, meter-power-off, overwritten, gateway-off, gateway-clock,
    journal-full, link, cloud-refused. A gap that is not named yet is gone back for while the meter holds its rows.
    Asks the running gateway; without one it reads the journal's files itself.
    """
    from edge_core.config.load import load
    from edge_core.config.tables import did_you_mean

    config = load(config_file, strict=False)
    for meter in meters:
        if meter not in config.meters:
            hint = did_you_mean(meter, config.meters)
            raise click.UsageError(
                f"{config_file} has no meter {meter}" + (f" ({hint})" if hint else "")
            )
    ledger = ledger_of(config, meters)
    if kind:
        ledger = {
            meter: [e for e in entries if e["kind"] == kind] for meter, entries in ledger.items()
        }
    if cause:
        ledger = of_cause(ledger, "" if cause == "unnamed" else cause)
    if as_json:
        click.echo(json.dumps({"meters": ledger}, ensure_ascii=False))
    else:
        show(ledger, ZoneInfo(config.gateway.timezone), everything=everything)
    return 0


def ledger_of(config: Config, meters: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The ledger entries by meter, from the running gateway or from the journal's files."""
    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.controls import ask_all

    directory = DataDirectory(config.data_dir)
    names = meters or tuple(config.meters)
    requests = [{"do": "gaps", "meter": meter} for meter in meters] or [{"do": "gaps"}]
    ledger: dict[str, list[dict[str, Any]]] = {}
    for request in requests:
        try:
            for answer in ask_all(directory.controls(), request, GAPS_S):
                ledger |= answer
        except (GatewayAbsent, NotHere):
            continue
    missing = tuple(name for name in names if name not in ledger)
    if missing or not ledger:
        ledger |= _from_files(config, missing)
    return ledger


def _from_files(config: Config, names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The ledger of meters that no running process polls; files are only read."""
    import dataclasses
    from contextlib import closing

    from edge_core.cli.journal import files
    from edge_core.journal.elsewhere import Elsewhere

    found: dict[tuple[str, str, str], Any] = {}
    for path in files(config):
        with closing(Elsewhere(path)) as journal:
            for meter, device, profile, entry in journal.entries(names):
                known = found.get((meter, device, profile))
                if known is None or entry.captured > known.captured:  # the later of two files
                    found[meter, device, profile] = entry
    ledger: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for (meter, device, profile), entry in found.items():
        view = entry.view(meter, device, profile)
        ledger[meter].append(
            dataclasses.asdict(view) | {"missing": sum(hole.rows for hole in view.holes)}
        )
    return ledger


def of_cause(
    ledger: dict[str, list[dict[str, Any]]], cause: str
) -> dict[str, list[dict[str, Any]]]:
    """Entries with gaps of one cause, and only these gaps; `due` and `missing` still count everything.

    Raises:
        click.UsageError: there is no such cause.
    """
    from edge_core.acquisition.causes import CAUSES
    from edge_core.config.tables import did_you_mean

    if cause and cause not in CAUSES:
        hint = did_you_mean(cause, CAUSES)
        raise click.UsageError(f"{cause!r} is no cause of a gap" + (f" ({hint})" if hint else ""))
    found = {}
    for meter, entries in ledger.items():
        kept = [
            entry | {"holes": [hole for hole in entry["holes"] if hole["cause"] == cause]}
            for entry in entries
        ]
        if kept := [entry for entry in kept if entry["holes"]]:
            found[meter] = kept
    return found


def show(ledger: dict[str, list[dict[str, Any]]], zone: ZoneInfo, *, everything: bool) -> None:
    """The gaps as a table, the worst first, and a sum below it."""
    rows: list[tuple[int, list[object]]] = []
    causes: Counter[str] = Counter()
    known = 0
    for meter, entries in ledger.items():
        for entry in entries:
            known += entry["captured"]
            for hole in entry["holes"]:
                causes[hole["cause"] or UNNAMED] += hole["rows"]
                row = [
                    meter,
                    entry["kind"],
                    hole["rows"] or "?",
                    civil(hole["first"], zone),
                    civil(hole["last"], zone),
                ]
                rows.append((hole["rows"], [*row, hole["cause"] or UNNAMED]))
            if everything and not entry["holes"] and entry["runs"]:
                first, last = entry["runs"][0]["first"], entry["runs"][-1]["last"]
                rows.append(
                    (
                        -1,
                        [
                            meter,
                            entry["kind"],
                            0,
                            civil(first, zone),
                            civil(last, zone),
                            "complete",
                        ],
                    )
                )
    rows.sort(key=lambda row: -row[0])
    if rows:
        head = ("METER", "PROFILE", "MISSING", "FROM", "TO", "CAUSE")
        for line in columns(head, [row for _, row in rows], right=("MISSING",)):
            click.echo(line)
    never = sum(not entries for entries in ledger.values())
    missing = causes.total()
    click.echo(
        f"{len(ledger)} meters: {known} rows known, {missing} missing"
        + (f"; {never} never read" if never else "")
    )
    for cause, count in causes.most_common():
        click.echo(f"  {count:8}  {cause}")


def civil(at: int, zone: ZoneInfo) -> str:
    """A moment in civil time, to the minute."""
    return datetime.fromtimestamp(at, zone).strftime("%Y-%m-%d %H:%M")
