"""`opendcu demo`: the whole system at the desk, with faults and a count at the end."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_core.cli.main import json_option

if TYPE_CHECKING:
    from simulators.demo.town import Outcome


@click.command()
@click.option(
    "--meters",
    type=click.IntRange(2, 5000),
    default=70,
    show_default=True,
    help="DLMS and Modbus meters together; one in seven is Modbus.",
)
@click.option("--for", "run_for", default="", metavar="60s", help="End by itself and count.")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, another town.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME@T",
    help="Instead of the demo's own programme: uplink-cut, kill-gateway, gasp-storm, meter-silent, garbage, "
    "wrong-key, disk-full, clock-jump, power-cut, at T seconds; NAME@T/FOR says how long.",
)
@click.option(
    "--speed",
    type=click.FloatRange(1, 2000),
    default=240.0,
    show_default=True,
    help="Civil seconds per real second; everything but civil time is real.",
)
@click.option(
    "--history", default="2d", show_default=True, help="What the meters hold at the start."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything (logs, journal, lake, truth) in this folder.",
)
@json_option
def demo(
    meters: int,
    run_for: str,
    seed: int,
    faults: tuple[str, ...],
    speed: float,
    history: str,
    folder: Path | None,
    *,
    as_json: bool,
) -> int:
    """A simulated neighbourhood of meters, the local cloud and a real gateway; then faults.

    Everything runs as the real processes on loopback: no AWS account, no meter, no Debian package. With --for the demo
    ends by itself and compares three counts: what the meters captured, what the lake stores, what the table projects.
    Exit 1 if they do not agree.
    """
    from simulators.demo.plan import parse
    from simulators.demo.town import Options, Town, as_document
    from simulators.spec import span_s

    try:
        options = Options(
            meters=meters,
            run_s=float(span_s(run_for)) if run_for else None,
            seed=seed,
            faults=tuple(parse(fault) for fault in faults),
            speed=speed,
            history=history,
        )
        span_s(history)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    place = folder or Path(tempfile.mkdtemp(prefix="opendcu-demo-"))
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty: a demo begins with nothing")

    async def main() -> Outcome:
        return await Town(place.resolve(), options).run()

    outcome = asyncio.run(main())
    if as_json:
        click.echo(json.dumps(as_document(outcome)))
    else:
        click.echo(report(outcome))
    if outcome.disagreements:
        click.echo(f"logs and data are kept in {place}", err=True)
        return 1
    if folder is None:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def report(outcome: Outcome) -> str:
    """The reconciliation for people."""
    d = outcome.document
    meters, alarms, gateway, uplink = d["meters"], d["alarms"], d["gateway"], d["uplink"]
    lines = [
        "",
        f"{meters['dlms']} DLMS and {meters['modbus']} Modbus meters, {d['simulated_s'] / 3600:.1f} simulated hours "
        f"in {d['wall_s']:.0f} s, gateway killed {gateway['restarts']} times",
        "",
        f"  {'readings':12} {'captured by':>14} {'stored in':>14}",
        f"  {'':12} {'the meters':>14} {'the lake':>14}",
        *(
            f"  {kind:12} {d['captured'][kind]:>14,} {d['stored'][kind]:>14,}"
            for kind in d["captured"]
        ),
        "",
        f"  lost {d['lost']}   doubled {d['doubled']}   altered {d['altered']}   "
        f"(equal copies dropped by their identity: {d['repeated']:,})",
        f"  last gasps sent {alarms['sent']}, in the outage queue {alarms['queued']}, lost {alarms['lost']}; "
        f"datagram to queue p50 {d['gasp_ms']['p50']} ms, p99 {d['gasp_ms']['p99']} ms",
        f"  gateway: {gateway['rss_mb']} MB, {gateway['cpu_s']} s of one core; "
        f"uplink: {uplink['messages']} messages, {uplink['bytes']:,} bytes, {uplink['bytes_per_reading']} a reading",
        "",
        "All counts agree." if not outcome.disagreements else "THE COUNTS DO NOT AGREE:",
        *(f"  {line}" for line in outcome.disagreements),
    ]
    return "\n".join(lines)
