"""`opendcu model train|evaluate|inject|verify`: the detector's model, a signed directory (docs/explanation/anomalies.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import json_option

if TYPE_CHECKING:
    from edge_core.detector.replay import Judge

CURVES = Path(__file__).parents[2] / "simulators" / "loads" / "sgsc_households_30min.csv.gz"

key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="HEX",
    help="One more public key to believe; may be repeated.",
)


@click.command()
@click.argument(
    "readings", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The model directory to write.",
)
@click.option("--key", "key_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Ed25519 private key to sign with: 64 hex digits in a file; a new one is made without.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Every draw comes from it.")
@click.option(
    "--replicas",
    default=16,
    show_default=True,
    help="How often each training household is altered.",
)
@click.option("--rounds", default=200, show_default=True, help="How many trees.")
@click.option("--depth", default=4, show_default=True, help="Of a tree.")
@json_option
def train(readings: Path | None, *, out: Path, key_file: Path | None, seed: int, replicas: int, rounds: int, depth: int,
          as_json: bool) -> None:  # fmt: skip
    """Train the detector's model from READINGS (CSV or .csv.gz), measure it on households it never saw, and sign it.

    Without READINGS the load curves of a source checkout are taken. The same data and seed give the same model.onnx.
    A gateway believes models that are signed with the key of its own release, or with one of `[commands] signers`;
    written into a checkout's own edge_core/detector/builtin, the new model becomes that of the release.
    """
    import os

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_core.detector import model as directory
    from edge_core.detector.readings import read
    from edge_core.detector.train import train as run

    source = readings or CURVES
    if not source.exists():
        raise click.UsageError("name a file of READINGS: this installation brings no load curves")
    private = bytes.fromhex(key_file.read_text().strip()) if key_file else os.urandom(32)
    card, onnx, _ = run(
        read(source), source, seed=seed, replicas=replicas, rounds=rounds, depth=depth,
        say=lambda text: click.echo(text, err=True),
    )  # fmt: skip
    directory.write(out, card, onnx, private)
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
    if out.resolve() == directory.BUILTIN:
        directory.trust(public)
    if as_json:
        click.echo(json.dumps({"directory": str(out), "version": card.version, "key": public,
                               "thresholds": card.thresholds, "scores": card.scores}))  # fmt: skip
        return
    click.echo(f"{out}: {card.version}, signed with the key {public}")
    _figures("held-out households", card.scores)


@click.command()
@click.argument("readings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model", "model_dir", default="builtin", show_default=True, help="A model directory."
)
@click.option(
    "--false-alarms", default=0.03, show_default=True, help="Per meter-month; picks the threshold."
)
@key_option
@click.option("--baselines/--no-baselines", default=True, help="Compare with simple detectors.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with plots (HTML, everything in one file).",
)
@json_option
def evaluate(
    readings: Path,
    labels: Path,
    *,
    model_dir: str,
    false_alarms: float,
    keys: tuple[str, ...],
    baselines: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """How good the detector is on labelled READINGS, replayed day by day as the gateway would see them.

    READINGS: CSV or .csv.gz, first column interval_end (ISO 8601 with offset), one column per meter in Wh per interval,
    blank = missing. LABELS: CSV meter,kind,first_day,end_day,parameter; days from 0 at the first day of READINGS, end
    exclusive; only anomalous meters. Thresholds are those of the model, never taken from these readings.
    """
    from edge_core.detector import evaluate as figures
    from edge_core.detector import readings as files

    judge = load_judge(model_dir, false_alarms, keys)
    table = files.read(readings)
    result = figures.evaluate(table.wh, files.labels(labels, table), judge, compare=baselines)
    if report is not None:
        from edge_core.detector.report import page

        report.write_text(page(result, f"{readings.name}, model {model_dir}"), encoding="utf-8")
        click.echo(f"report: {report}", err=True)
    if as_json:
        click.echo(json.dumps(result))
        return
    _figures(f"{readings.name} with {model_dir}", result)
    for name, other in result.get("baselines", {}).items():
        _figures(f"{name}, threshold taken from these readings", other, brief=True)


@click.command()
@click.argument("readings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("labels", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seed", default=1, show_default=True)
@click.option("--share", default=0.5, show_default=True, help="Of the meters that get anomalies.")
def inject(readings: Path, out: Path, labels: Path, *, seed: int, share: float) -> None:
    """Put labelled patterns of theft and faults into READINGS: writes OUT (half hours) and LABELS."""
    import numpy as np

    from edge_core.detector import inject as patterns
    from edge_core.detector import readings as files

    table = files.read(readings)
    kinds = (*patterns.ATTACKS, *patterns.FAULTS)
    wh, found = patterns.scatter(table.wh, np.random.default_rng(seed), kinds=kinds, share=share)
    files.write(out, files.Readings(table.meters, wh, table.first))
    files.write_labels(labels, found, table.meters)
    click.echo(f"{out}: {len(table.meters)} meters, {len(found)} anomalies")


@click.command()
@click.argument("directory", default="builtin")
@key_option
@json_option
def verify(directory: str, *, keys: tuple[str, ...], as_json: bool) -> None:
    """Check signature, features and self test of a model DIRECTORY, and show what it says of itself."""
    import numpy as np

    from edge_core.detector import model as store

    path = store.BUILTIN if directory == "builtin" else Path(directory)
    card, onnx = store.load(path, store.trusted_keys(keys))
    from edge_core.detector.session import session_of

    got = session_of(onnx)(np.array(card.self_test.rows, np.float32))
    worst = float(np.abs(got - np.array(card.self_test.logits)).max())
    if worst > store.TOLERANCE:
        raise store.ModelRefused(f"{path}: its self test is off by {worst:.2g}")
    if as_json:
        click.echo(json.dumps({"directory": str(path), "version": card.version, "self_test": worst,
                               "thresholds": card.thresholds, "scores": card.scores, "data": card.data,
                               "licence": card.licence}))  # fmt: skip
        return
    click.echo(f"{path}: {card.version}, signature good, self test within {worst:.1e}")
    click.echo(f"  data     {card.data['attribution']}")
    click.echo(f"  licence  {card.licence}")
    _figures("  held-out households", card.scores)


def load_judge(model_dir: str, false_alarms: float, keys: tuple[str, ...] = ()) -> Judge:
    """A verified model, ready to judge.

    Raises:
        ModelRefused: it is not to be used.
    """
    from edge_core.detector import model as store
    from edge_core.detector.replay import Judge
    from edge_core.detector.session import session_of

    card, onnx = store.load(
        store.BUILTIN if model_dir == "builtin" else Path(model_dir), store.trusted_keys(keys)
    )
    return Judge(session_of(onnx), card.threshold(false_alarms), card.scales)


def _figures(title: str, result: dict[str, Any], *, brief: bool = False) -> None:
    """Figures for people."""

    def between(bounds: list[float] | None) -> str:
        return f" ({bounds[0]:g} to {bounds[1]:g})" if bounds else ""

    click.echo(f"{title}: {result['meters']} meters, {result['meter_months']:g} clean meter-months")
    click.echo(f"  found         {result['found']} of {result['anomalies']}: {result['found_rate']}"
               f"{between(result['found_rate_interval'])}, {result['late']} more findings just after an end")  # fmt: skip
    click.echo(f"  false alarms  {result['false_alarms']}: {result['false_alarms_per_meter_month']} per meter-month"
               f"{between(result['false_alarms_interval'])}")  # fmt: skip
    click.echo(f"  median delay  {result['median_delay_days']} days, AUC of days {result['auc']}")
    if not brief:
        for kind, own in result["by_kind"].items():
            click.echo(f"    {kind:14} {own['found']:3} of {own['anomalies']:3}  {own['found_rate']:.2f}"
                       f"{between(own['interval'])}, delay {own['median_delay_days']}")  # fmt: skip
