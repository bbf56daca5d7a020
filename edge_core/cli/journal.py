"""`opendcu journal`: status, list, verify and export of what waits on this box.

`status` asks the running gateway, and opens the journal's files as the gateway would where none runs. The others only
read: beside a running gateway as well as on a box brought home, and whatever they find, no file is changed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_core.cli.main import config_option, json_option
from edge_core.errors import DataDirectoryBusy, GatewayAbsent, JournalError
from edge_core.health.words import columns, lasting, octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_core.config.schema import Config
    from edge_core.journal import Journal
    from edge_core.journal.elsewhere import Elsewhere

STATUS_S = 10.0
LIST_LIMIT = 50


@click.group()
def journal() -> None:
    """What the journal holds, and whether it is sound.

    The journal keeps every reading until the cloud has stored it. Its files are in the data directory. Looking at them
    changes nothing and may be done while the gateway runs.
    """


@journal.command()
@config_option
@json_option
def status(*, config_file: str, as_json: bool) -> int:
    """How much waits, how much room is left, and the epoch."""
    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.controls import ask_all

    config = _load(config_file)
    try:
        sockets = DataDirectory(config.data_dir).controls()
        answers = ask_all(sockets, {"do": "journal-status"}, STATUS_S)
    except GatewayAbsent:
        answers = statuses(config)
    else:
        told = {Path(answer["path"]).name for answer in answers}
        with suppress(DataDirectoryBusy):  # of a process that does not answer
            answers += statuses(config, [path for path in files(config) if path.name not in told])
    if as_json:
        click.echo(json.dumps(answers[0] if len(answers) == 1 else answers, ensure_ascii=False))
        return 0
    for answer in answers:
        for line in described(answer):
            click.echo(line)
    return 0


def statuses(config: Config, paths: list[Path] | None = None) -> list[dict[str, Any]]:
    """The status of each journal file, opened by ourselves."""
    return [msgspec.to_builtins(each.status(), enc_hook=str) for each in opened(config, paths)]


def described(status: dict[str, Any]) -> list[str]:
    """A status in words."""
    left = status["hours_left"]
    room = "" if left is None else f", room for {lasting(left * 3600)} at this rate"
    lines = [
        f"{status['path']}: epoch {status['epoch']}, newest segment {status['head']}",
        f"  waiting   {status['segments_waiting']} segments, about {octets(status['bytes_waiting'])}; "
        f"{status['alarms_waiting']} alarms, {status['notes_waiting']} notes",
        f"  set aside {status['aside']}",
        f"  used      {octets(status['used_bytes'])} of {octets(status['max_bytes'])}, "
        f"{octets(status['reserve_bytes'])} of it for alarms and midnights{room}",
    ]
    if status["full"]:
        lines.append(
            f"  FULL      {status['refused']} appends refused: the meters' own memory is the buffer now"
        )
    if status["unreadable"]:
        lines.append(f"  {status['unreadable']} segments of a newer release are left pending")
    if status["damaged"]:
        lines.append(f"  DAMAGED   {status['damaged']}")
    return lines


@journal.command("list")
@config_option
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also what the cloud has acknowledged, while it is kept.",
)
@click.option("--after", default=0, help="Segments with a higher id.")
@click.option("--limit", default=LIST_LIMIT, show_default=True, help="At most so many.")
@json_option
def list_(*, config_file: str, everything: bool, after: int, limit: int, as_json: bool) -> int:
    """The segments that wait, oldest first: lane, kind, blocks, readings, octets."""
    rows: list[dict[str, Any]] = []
    for each in readers(_load(config_file)):
        page = each.segments(after, limit=limit, everything=everything)
        rows += [{"journal": each.path.name} | msgspec.to_builtins(segment) for segment in page]
    if as_json:
        click.echo(json.dumps({"segments": rows}))
        return 0
    head = ("JOURNAL", "SEGMENT", "LANE", "KIND", "BLOCKS", "READINGS", "OCTETS")
    keys = ("journal", "id", "lane", "kind", "blocks", "readings", "bytes")
    table = columns(head, [[row[key] for key in keys] for row in rows], right=head[1:2] + head[4:])
    click.echo("\n".join(table) if rows else "nothing waits")
    return 0


@journal.command()
@config_option
@json_option
def verify(*, config_file: str, as_json: bool) -> int:
    """Read everything and name what is wrong; exit 1 if something is. Changes nothing, and may run beside the gateway."""
    config = _load(config_file)
    results: list[dict[str, Any]] = []
    for path in files(config):
        result: dict[str, Any] = {"journal": str(path), "problems": damage(path)}
        if not result["problems"]:
            try:
                for each in readers(config, [path]):
                    result |= msgspec.to_builtins(each.verify())
            except JournalError as error:
                result["problems"] = [str(error)]
        results.append(result)
    others = [
        {"file": str(path), "problems": damage(path)}
        for name in ("uplink.db", "counters.db", "detector.db")
        if (path := config.data_dir / name).exists()
    ]
    wrong = any(result["problems"] for result in [*results, *others])
    if as_json:
        document = {"ok": not wrong, "journals": results, "others": others}
        click.echo(json.dumps(document, ensure_ascii=False))
        return int(wrong)
    for result in results:
        if not result["problems"]:
            counts = f"{result['segments']} segments, {result['readings']} readings, {result['alarms']} alarms"
            click.echo(f"{result['journal']}: sound: {counts}, {result['notes']} notes")
            continue
        click.echo(f"{result['journal']}: {len(result['problems'])} problems:")
        for problem in result["problems"]:
            click.echo(f"  {problem}")
        click.echo(
            "  At its next start the gateway sets the file aside, takes over what can be read, and goes on."
        )
    for other in others:
        verdict = "; ".join(other["problems"]) or "sound"
        click.echo(f"{other['file']}: {verdict}")
    return int(wrong)


@journal.command()
@config_option
@click.option(
    "--meter", "meters", multiple=True, metavar="METER", help="Only this one; may be repeated."
)
@click.option("--kind", default="", help="interval, midnight, billing, instantaneous, events-<k>.")
@click.option(
    "--from", "since", metavar="TIME", help="Rows from here on: 2026-11-24, -6h, -2d, epoch."
)
@click.option("--to", "until", metavar="TIME", help="Rows up to here.")
@click.option(
    "--parquet",
    type=click.Path(dir_okay=False, writable=True),
    help="Write this Parquet file instead, a row a reading.",
)
def export(
    *,
    config_file: str,
    meters: tuple[str, ...],
    kind: str,
    since: str | None,
    until: str | None,
    parquet: str | None,
) -> None:
    """Rows that the journal still holds, as JSON lines: one object with `layouts` and `blocks` a meter; or as Parquet."""
    from zoneinfo import ZoneInfo

    from edge_core.cli.read import instant
    from edge_core.clock import SystemClock

    config = _load(config_file)
    clock, zone = SystemClock.from_environment(), ZoneInfo(config.gateway.timezone)
    first, last = instant(since, zone, clock, end=False), instant(until, zone, clock, end=True)
    found = (
        (meter, blocks)
        for each in readers(config)
        for meter in meters or tuple(config.meters)
        if (blocks := list(each.find(meter, kind=kind, since=first, until=last)))
    )
    if parquet is not None:
        from edge_core.cli.parquet import write

        rows = write(parquet, (block for _, blocks in found for block in blocks))
        click.echo(f"{parquet}: {rows} readings")
        return
    from edge_core.acquisition.reading import blocks_document

    for meter, blocks in found:
        kinds = [block.kind for block in blocks]
        document = {"meter": meter, "kinds": kinds, **blocks_document(blocks)}
        click.echo(json.dumps(document, ensure_ascii=False))


# Files ----------------------------------------------------------------------------------------------------------------


def _load(config_file: str) -> Config:
    from edge_core.config.load import load

    return load(config_file, strict=False)


def files(config: Config) -> list[Path]:
    """The journal files of the data directory: one, or one a role.

    Raises:
        JournalError: there is none.
    """
    found = sorted(config.data_dir.glob("journal*.db"))
    if not found:
        raise JournalError(f"{config.data_dir} holds no journal: no gateway ever ran on it")
    return found


def opened(config: Config, paths: list[Path] | None = None) -> Iterator[Journal]:
    """The journals, opened as the gateway opens them, each closed before the next.

    Raises:
        DataDirectoryBusy: a gateway holds it.
        JournalError: there is none.
    """
    from edge_core.clock import SystemClock
    from edge_core.journal import Journal

    for path in files(config) if paths is None else paths:
        try:
            each = Journal.open(
                path,
                clock=SystemClock.from_environment(),
                max_bytes=int(config.journal.max_bytes),
                alarm_reserve_bytes=int(config.journal.alarm_reserve_bytes),
                keep_acked_s=float(config.journal.keep_acked),
                keep_long_s=float(config.journal.keep_long),
            )
        except DataDirectoryBusy:
            raise _busy(path) from None
        try:
            yield each
        finally:
            each.close()


def readers(config: Config, paths: list[Path] | None = None) -> Iterator[Elsewhere]:
    """The journals, to be read only, beside whoever writes them; each closed before the next.

    Raises:
        JournalError: there is none, or one cannot be read.
    """
    from edge_core.journal.elsewhere import Elsewhere

    for path in files(config) if paths is None else paths:
        each = Elsewhere(path)
        try:
            yield each
        finally:
            each.close()


def damage(path: Path) -> list[str]:
    """What SQLite finds wrong with a file, without changing it."""
    import sqlite3

    from edge_core.journal import store

    try:
        connection = store.connect(path, reader=True)
    except sqlite3.Error as error:
        return [f"file: {error}"]
    try:
        return [f"file: {problem}" for problem in store.quick_check(connection)]
    finally:
        connection.close()


def _busy(path: Path) -> DataDirectoryBusy:
    return DataDirectoryBusy(
        f"{path}: a running gateway holds it and does not answer at its control socket; stop it first"
    )
