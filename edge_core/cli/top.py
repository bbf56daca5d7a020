"""`opendcu top`: a running gateway at a glance, refreshed each second: the box, then its meters, the worst first."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import config_option, json_option
from edge_core.health.merging import merged_overview
from edge_core.health.words import columns, lasting, octets

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDER = ("silent", "reading", "not yet read", "ok", "parked")
HOME, CLEAR_BELOW, ALTERNATE, NORMAL = (
    "\x1b[H",
    "\x1b[J",
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?1049l\x1b[?25h",
)


@click.command()
@config_option
@click.option(
    "--every", "every_s", default=1.0, show_default=True, help="Seconds between two frames."
)
@click.option("--once", is_flag=True, help="One frame, then end; also without a terminal.")
@json_option
def top(*, config_file: str, every_s: float, once: bool, as_json: bool) -> None:
    """Live view of a running gateway, until interrupted.

    Meters that fail come first, with their reasons; then those that are read now. The console shows the same on a
    page, and says why a meter is silent.
    """
    from edge_core.config.load import load
    from edge_core.journal.datadir import DataDirectory
    from edge_core.transports.controls import ask_all

    config = load(config_file, strict=False)
    sockets = DataDirectory(config.data_dir).controls

    def frames() -> Iterator[dict[str, Any]]:
        """What all processes say together, again and again."""
        while True:
            overviews = ask_all(sockets(), {"do": "overview"})
            rows = [row for rows in ask_all(sockets(), {"do": "meters"}) for row in rows]
            yield {"overview": merged_overview(overviews), "meters": rows}
            time.sleep(min(60.0, max(0.2, every_s)))

    full_screen = sys.stdout.isatty() and not once and not as_json
    entered = False
    try:
        for frame in frames():
            if as_json:
                click.echo(json.dumps(frame, ensure_ascii=False))
            elif full_screen:
                size = shutil.get_terminal_size()
                lines = [
                    line[: size.columns].ljust(size.columns)
                    for line in drawn(frame, size.lines - 1)
                ]
                click.echo(
                    ("" if entered else ALTERNATE) + HOME + "\n".join(lines) + CLEAR_BELOW, nl=False
                )
                entered = True
            else:
                click.echo("\n".join(drawn(frame, 40)))
            if once or not (full_screen or as_json):
                return
    except KeyboardInterrupt:
        return
    finally:
        if entered:
            click.echo(NORMAL, nl=False)


def drawn(frame: dict[str, Any], height: int) -> list[str]:
    """A frame as at most `height` lines."""
    box, meters = frame["overview"], frame["meters"]
    civil = box.get("civil", 0)
    journal, uplink, counts = box.get("journal", {}), box.get("uplink", {}), box.get("meters", {})
    head = [
        f"{box.get('gateway', '')}  OpenDCU {box.get('version', '')}  up {lasting(box.get('uptime_s', 0))}  "
        f"{box.get('memory_mb', 0)} MB  roles {' '.join(box.get('roles', ()))}",
        f"meters   {counts.get('total', 0)}, {counts.get('silent', 0)} silent, {counts.get('parked', 0)} parked",
        f"journal  {journal.get('segments_waiting', 0)} segments waiting ({octets(journal.get('bytes_waiting', 0))}), "
        f"{journal.get('alarms_waiting', 0)} alarms, {octets(journal.get('used_bytes', 0))} of "
        f"{octets(journal.get('max_bytes', 0))} used" + ("  FULL" if journal.get("full") else ""),
        f"uplink   {uplink.get('state', 'off')}, {uplink.get('in_flight', 0)} in flight, "
        f"{uplink.get('unacked', 0)} not acknowledged, {uplink.get('aside', 0)} set aside"
        + (f": {uplink['reason']}" if uplink.get("reason") else ""),
        "",
    ]
    rank = {state: number for number, state in enumerate(ORDER)}
    rows = sorted(
        meters, key=lambda m: (rank.get(m["state"], 9), -(m.get("failures") or 0), m["meter"])
    )
    room = max(0, height - len(head) - 2)
    table = columns(
        ("METER", "STATE", "LINE", "LAST READ", "ROWS", "WHY"),
        [
            (
                m["meter"],
                m["state"],
                m["line"],
                f"{lasting(civil - m['last_read'])} ago" if m.get("last_read") else "never",
                m.get("rows", 0),
                m.get("error") or "",
            )
            for m in rows[:room]
        ],
        right=("ROWS",),
    )
    left = len(rows) - room
    return head + table + ([f"... and {left} more"] if left > 0 else [])
