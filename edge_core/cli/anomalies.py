"""`opendcu anomalies`: what the detector found, why, and the days of a meter as a picture (text or SVG)."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import config_option, json_option

if TYPE_CHECKING:
    from edge_core.detector.history import Store

SHADES = " ▁▂▃▄▅▆▇█"
SHOWN_DAYS = 35


@click.command()
@click.argument("meter", required=False)
@config_option
@click.option(
    "--days",
    default=SHOWN_DAYS,
    show_default=True,
    type=click.IntRange(1, 70),
    help="How many days are drawn.",
)
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the days into this file."
)
@json_option
def anomalies(
    meter: str | None, *, config_file: str, days: int, svg: Path | None, as_json: bool
) -> int:
    """What was found on METER, why, and its days as a picture; without METER, what is going on anywhere.

    Reads the detector's own file, so it works beside a running gateway and without one. A finding is a reason to look,
    never a proof: docs/explanation/anomalies.md says how often they are right.
    """
    from edge_core.config.load import load
    from edge_core.detector.history import Store
    from edge_core.journal.datadir import DataDirectory

    config = load(config_file, strict=False)
    path = DataDirectory(config.data_dir).detector
    try:
        store = Store(path, reader=True)
    except sqlite3.Error:
        raise click.ClickException(
            f"{path} is not there or cannot be read: no detector ever ran on this data directory"
        ) from None
    try:
        if meter is None:
            return _overview(store, as_json=as_json)
        if meter not in store.meters:
            from edge_core.config.tables import did_you_mean

            hint = did_you_mean(meter, store.meters)
            raise click.UsageError(
                f"nothing is known of a meter {meter}" + (f" ({hint})" if hint else "")
            )
        picture = of_meter(store, meter, days)
    finally:
        store.close()
    if svg is not None:
        svg.write_text(drawn(picture), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(picture, ensure_ascii=False))
    else:
        _show(picture)
        if svg is not None:
            click.echo(f"drawn into {svg}")
    return 0


def _overview(store: Store, *, as_json: bool) -> int:
    from edge_core.health.words import columns

    found = [told(row, store.names) for row in store.findings(only_open=True)]
    if as_json:
        click.echo(json.dumps({"findings": found, "meters": len(store.meters)}, ensure_ascii=False))
        return 0
    head = ("METER", "KIND", "SINCE", "LAST DAY", "SCORE", "WHY")
    rows = [
        [f["meter"], f["kind"], f["since"], f["last_day"], f"{f['score']}/1000", f["why"]]
        for f in found
    ]
    for line in columns(head, rows) if rows else []:
        click.echo(line.rstrip())
    click.echo(f"{len(store.meters)} meters watched, {len(found)} findings going on")
    return 0


def told(row: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """A finding as it is shown."""
    body = row["body"]
    explain = body.get("explain", {})
    return {
        "id": row["id"],
        "meter": names[row["meter"]],
        "kind": row["kind"],
        "state": row["state"],
        "since": dt.date.fromordinal(row["first"]).isoformat(),
        "last_day": dt.date.fromordinal(row["last"]).isoformat(),
        "score": body.get("score"),
        "threshold": body.get("threshold"),
        "model": body.get("model"),
        "why": explain.get("why") or f"expected {explain.get('expected', '')}",
        "explain": explain,
    }


def of_meter(store: Store, meter: str, count: int) -> dict[str, Any]:
    """Findings and days of a meter: {"meter", "findings", "days": [{"day", "wh": [48], "total_wh", "score", "kinds"}]}."""
    import math

    from edge_core.detector.history import GROUP, decode

    number = store.meters[meter]
    part, row = divmod(number, GROUP)
    findings = store.findings(number)
    span = store.days()
    days: list[dict[str, Any]] = []
    if span is not None:
        first = max(span[0], span[1] - count + 1)
        wh = decode(store.window(part, first, span[1])[row : row + 1])[0]
        scores = store.scores(part, first, span[1])[row]
        for k, half_hours in enumerate(wh.tolist()):
            day = first + k
            known = [v for v in half_hours if not math.isnan(v)]
            days.append(
                {
                    "day": dt.date.fromordinal(day).isoformat(),
                    "wh": [None if math.isnan(v) else round(v) for v in half_hours],
                    "total_wh": round(sum(known)) if known else None,
                    "score": int(scores[k]) if scores[k] >= 0 else None,
                    "kinds": sorted(
                        {f["kind"] for f in findings if f["first"] <= day <= f["last"]}
                    ),
                }
            )
    return {"meter": meter, "findings": [told(f, store.names) for f in findings], "days": days}


def _top(picture: dict[str, Any]) -> float:
    """The energy of the darkest shade: the 99 % point, so that one spike does not bleach the rest."""
    values = sorted(v for day in picture["days"] for v in day["wh"] if v is not None)
    return max(1.0, float(values[int(0.99 * (len(values) - 1))])) if values else 1.0


def _show(picture: dict[str, Any]) -> None:
    click.echo(f"meter {picture['meter']}")
    if picture["days"]:
        top = _top(picture)
        click.echo(
            f"            0     3     6     9     12    15    18    21       kWh  score   darkest = {top:.0f} Wh"
        )
    for day in picture["days"]:
        cells = "".join(
            "·" if v is None else SHADES[min(8, -(-8 * v // max(1, round(top))))] for v in day["wh"]
        )
        total = "-" if day["total_wh"] is None else f"{day['total_wh'] / 1000:.2f}"
        score = "-" if day["score"] is None else str(day["score"])
        click.echo(
            f"{day['day']}  {cells} {total:>8} {score:>6}  {' '.join(day['kinds'])}".rstrip()
        )
    for finding in picture["findings"]:
        click.echo(
            f"\n{finding['kind']} since {finding['since']}, {finding['state']}, last on {finding['last_day']}: {finding['why']}"
        )
        click.echo(
            f"  score {finding['score']} of 1000, threshold {finding['threshold']}, {finding['model']}"
        )
        explain = finding["explain"]
        if "seen_wh" in explain:
            click.echo(f"  seen {explain['seen_wh']} Wh, expected {explain['expected_wh']} Wh")
        elif "seen" in explain:
            click.echo(f"  seen {explain['seen']} for {explain['seconds']} s")
        for feature in explain.get("features", ()):
            click.echo(f"  {feature['name']}: {feature['seen']}, usually {feature['usual']}")
    if not picture["findings"]:
        click.echo("nothing found")


def drawn(picture: dict[str, Any]) -> str:
    """The days as SVG: a row a day, a cell a half hour, bars of daily energy, red where a finding stands."""
    left, size, high, wide = 90, 12, 13, 160
    count = len(picture["days"])
    width, height = left + 48 * size + 20 + wide + 150, 60 + count * high
    top = _top(picture)
    most = max([day["total_wh"] or 0 for day in picture["days"]] or [1]) or 1
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="10" role="img" aria-label="Days of meter {escape(picture["meter"])}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="18" font-size="14">{escape(picture["meter"])}</text>',
        f'<text x="{left + 48 * size + 20}" y="42">kWh a day</text>',
    ]
    out += [f'<text x="{left + hour * 2 * size}" y="42">{hour}</text>' for hour in range(0, 24, 3)]
    for k, day in enumerate(picture["days"]):
        y = 48 + k * high
        colour = "#b00020" if day["kinds"] else "#222"
        out.append(f'<text x="8" y="{y + 10}" fill="{colour}">{day["day"]}</text>')
        for slot, value in enumerate(day["wh"]):
            if value is None:
                fill, opacity = "#ddd", 1.0
            else:
                fill, opacity = "#0b4f8a", min(1.0, value / top)
            out.append(
                f'<rect x="{left + slot * size}" y="{y}" width="{size - 1}" height="{high - 1}" fill="{fill}" fill-opacity="{opacity:.2f}"/>'
            )
        x = left + 48 * size + 20
        if day["total_wh"] is not None:
            bar = day["total_wh"] / most * wide
            out.append(
                f'<rect x="{x}" y="{y}" width="{bar:.1f}" height="{high - 1}" fill="{colour}" fill-opacity="0.6"/>'
            )
            out.append(
                f'<text x="{x + bar + 4:.1f}" y="{y + 10}">{day["total_wh"] / 1000:.1f} {escape(" ".join(day["kinds"]))}</text>'
            )
    out.append("</svg>")
    return "\n".join(out) + "\n"
