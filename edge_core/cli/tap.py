"""`opendcu tap`: what a running gateway captures and hears, as it happens, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any

import click

from edge_core.cli.main import config_option


@click.command()
@config_option
@click.option(
    "--meter", "meters", multiple=True, metavar="METER", help="Only this one; may be repeated."
)
@click.option("--alarms", "only_alarms", is_flag=True, help="Alarms alone.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
def tap(*, config_file: str, meters: tuple[str, ...], only_alarms: bool, count: int | None) -> None:
    """Show blocks and alarms of a running gateway as they come, as JSON lines, until interrupted.

    {"block": {...}} tells what a visit captured; {"alarm": {...}} is an alarm as it leaves. Nothing is held up for a
    slow reader: what does not fit its queue is left out.
    """
    from edge_core.config.load import load
    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.controls import stream_all

    config = load(config_file, strict=False)
    shown = 0
    for _, document in stream_all(DataDirectory(config.data_dir).controls(), {"do": "tap"}, 0):
        if wanted(document, meters, only_alarms=only_alarms):
            click.echo(json.dumps(document, ensure_ascii=False))
            shown += 1
            if shown == count:
                return


def wanted(document: dict[str, Any], meters: tuple[str, ...], *, only_alarms: bool) -> bool:
    """Does a document pass the filters?"""
    if only_alarms and "alarm" not in document:
        return False
    bodies = [body for body in document.values() if isinstance(body, dict)]
    return not meters or any(body.get("meter") in meters for body in bodies)
