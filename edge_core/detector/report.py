"""The evaluation as one page: HTML with three drawn plots, no script, nothing loaded from anywhere.

Takes the document of `evaluate.evaluate`: found against false alarms for our detector and the baselines, share found by
kind with its 95 % interval, and how many days it took.
"""

from __future__ import annotations

from html import escape
from typing import Any

GOAL_FOUND, GOAL_FALSE = 0.75, 0.03
_COLOURS = ("#0b4f8a", "#b05a00", "#2e7d32", "#7b1fa2")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}figure{margin:1.5rem 0}"
    "figcaption{color:#555;font-size:.9rem}"
)


def page(result: dict[str, Any], title: str) -> str:
    """The page as text."""
    others = result.get("baselines", {})
    everyone = {"this detector": result, **others}
    rows = "".join(
        f"<tr><td>{escape(_named(name, own))}</td><td>{own['found']} of {own['anomalies']}</td>"
        f"<td>{_share(own['found_rate'])}{_between(own['found_rate_interval'], 100)}</td>"
        f"<td>{own['false_alarms']}</td><td>{own['false_alarms_per_meter_month']}{_between(own['false_alarms_interval'])}</td>"
        f"<td>{_or_dash(own['median_delay_days'])}</td><td>{_or_dash(own['auc'])}</td></tr>"
        for name, own in everyone.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1>"
        f"<p>{result['meters']} meters, {result['meter_months']} clean meter-months, {result['anomalies']} anomalies. "
        "Each baseline has the lowest threshold that costs no more false alarms than this detector on these very "
        "readings; this detector's own threshold comes from its model file. Intervals are 95 %.</p>"
        "<table><tr><th>detector</th><th>found</th><th>share</th><th>false alarms</th><th>per meter-month</th>"
        f"<th>median delay, days</th><th>AUC of days</th></tr>{rows}</table>"
        f"<figure>{_curves(everyone)}<figcaption>Found against false alarms as the threshold moves (an estimate: days of "
        "alarms are not kept out of the baseline here). The dot is what was counted; the dashed corner is the goal.</figcaption></figure>"
        f"<figure>{_kinds(result['by_kind'])}<figcaption>Share found by kind; the line is the interval.</figcaption></figure>"
        f"<figure>{_delays(result['delays_days'])}<figcaption>Days from the begin of an anomaly to its finding.</figcaption></figure>"
        "</html>\n"
    )


def _named(name: str, own: dict[str, Any]) -> str:
    return f"{name.replace('_', ' ')} ({own['by']})" if "by" in own else name.replace("_", " ")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _between(bounds: list[float] | None, times: float = 1) -> str:
    return f" ({bounds[0] * times:g} to {bounds[1] * times:g})" if bounds else ""


def _svg(width: int, height: int, label: str, body: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui,sans-serif" font-size="12">{"".join(body)}</svg>'
    )


def _curves(everyone: dict[str, dict[str, Any]]) -> str:
    left, top, wide, high, most = 50, 12, 520, 300, 0.1

    def at(false: float, found: float) -> str:
        return f"{left + min(1.0, false / most) * wide:.1f},{top + (1 - found) * high:.1f}"

    body = []
    for k in range(6):
        y, x = top + high * (1 - k / 5), left + wide * k / 5
        body.append(f'<path d="M{left} {y}h{wide}" stroke="#e4e4e4"/>')
        body.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{20 * k} %</text>')
        body.append(
            f'<text x="{x}" y="{top + high + 18}" text-anchor="middle">{most * k / 5:g}</text>'
        )
    corner = at(GOAL_FALSE, GOAL_FOUND)
    body.append(
        f'<polyline points="{at(0, GOAL_FOUND)} {corner} {at(GOAL_FALSE, 1)}" fill="none" stroke="#888" stroke-dasharray="4 4"/>'
    )
    for number, (name, own) in enumerate(everyone.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [at(false, found) for false, found in own["curve"] if false <= most]
        body.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        counted_at = at(own["false_alarms_per_meter_month"] or 0, own["found_rate"] or 0).split(",")
        body.append(f'<circle cx="{counted_at[0]}" cy="{counted_at[1]}" r="4.5" fill="{colour}"/>')
        height = top + 20 + 20 * number
        body.append(
            f'<path d="M{left + wide + 20} {height - 4}h22" stroke="{colour}" stroke-width="3"/>'
        )
        body.append(
            f'<text x="{left + wide + 48}" y="{height}">{escape(name.replace("_", " "))}</text>'
        )
    body.append(
        f'<text x="{left + wide / 2}" y="{top + high + 38}" text-anchor="middle">false alarms per meter-month</text>'
    )
    return _svg(left + wide + 190, top + high + 46, "found against false alarms", body)


def _kinds(by_kind: dict[str, dict[str, Any]]) -> str:
    left, wide, row = 90, 480, 24
    body = []
    for k in range(6):
        x = left + wide * k / 5
        body.append(f'<path d="M{x} 4v{row * len(by_kind)}" stroke="#e4e4e4"/>')
        body.append(
            f'<text x="{x}" y="{row * len(by_kind) + 20}" text-anchor="middle">{20 * k} %</text>'
        )
    for number, (kind, own) in enumerate(by_kind.items()):
        y = 4 + row * number
        low, high = own["interval"]
        body.append(
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(kind)}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{wide * own["found_rate"]:.1f}" height="{row - 8}" fill="#0b4f8a" fill-opacity="0.75"/>'
            f'<path d="M{left + wide * low:.1f} {y + row / 2}H{left + wide * high:.1f}" stroke="#1b1b1b" stroke-width="1.5"/>'
            f'<text x="{left + wide + 10}" y="{y + 16}">{own["found"]} of {own["anomalies"]}</text>'
        )
    return _svg(left + wide + 90, row * len(by_kind) + 28, "share found by kind", body)


def _delays(delays: list[int]) -> str:
    left, high, wide, most = 40, 160, 14, 40
    counts = [0] * (most + 1)
    for delay in delays:
        counts[min(delay, most)] += 1
    top = max(1, *counts)
    body = [f'<path d="M{left} {high + 10}h{wide * (most + 1)}" stroke="#888"/>']
    for day, count in enumerate(counts):
        x, tall = left + day * wide, high * count / top
        if count:
            body.append(
                f'<rect x="{x}" y="{10 + high - tall:.1f}" width="{wide - 2}" height="{tall:.1f}" fill="#0b4f8a" fill-opacity="0.75"/>'
                f'<text x="{x + wide / 2 - 1}" y="{high - tall + 7:.1f}" text-anchor="middle" font-size="9">{count}</text>'
            )
        if day % 5 == 0:
            label = f"{day}+" if day == most else str(day)
            body.append(
                f'<text x="{x + wide / 2 - 1}" y="{high + 26}" text-anchor="middle">{label}</text>'
            )
    return _svg(left + wide * (most + 1) + 20, high + 34, "days to the finding", body)
