"""`opendcu model`: the meter models that come with the product, and the check of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_core.cli.detector_model import evaluate, inject, train, verify
from edge_core.cli.main import json_option
from edge_core.health.words import columns

if TYPE_CHECKING:
    from edge_core.config.models import Model


@click.group()
def model() -> None:
    """Meter models: what a kind of meter speaks, as TOML; and the model that finds anomalies.

    A new meter needs no code: copy the nearest model, name your document in `source`, and try it with
    `opendcu read METER`. `model = "./mine.toml"` in [[meters]] uses a file beside gateway.toml.

    The detector's model is a signed directory with model.onnx, model.json and model.sig: train, evaluate, inject, verify.
    """


@model.command("list")
@click.argument("search", default="")
@json_option
def list_(search: str, *, as_json: bool) -> int:
    """The models, or those whose name, maker or family holds SEARCH."""
    from edge_core.config.models import load_model, model_names

    rows = [about(load_model(name, strict=False)) for name in model_names()]
    wanted = search.lower()
    rows = [
        row
        for row in rows
        if wanted in json.dumps([row["model"], row["maker"], row["families"]]).lower()
    ]
    if as_json:
        click.echo(json.dumps({"models": rows}, ensure_ascii=False))
        return 0
    table = [
        (
            row["model"],
            row["protocol"],
            row["maker"],
            ", ".join(row["families"]),
            row["verified"],
            row["reads"],
        )
        for row in rows
    ]
    for line in columns(("MODEL", "PROTOCOL", "MAKER", "FAMILIES", "VERIFIED BY", "READS"), table):
        click.echo(line)
    click.echo(f"{len(rows)} models")
    return 0


def about(found: Model) -> dict[str, Any]:
    """A model in one row; `reads` says what is read of it."""
    from edge_core.config.models import DlmsModel

    if isinstance(found, DlmsModel):
        reads = ", ".join([*found.profiles, *(f"push {name}" for name in found.push)])
    else:
        reads = f"{len(found.points)} points"
    return {
        "model": found.name,
        "protocol": found.about.protocol,
        "maker": found.about.maker,
        "families": list(found.about.families),
        "verified": found.about.verified,
        "source": list(found.about.source),
        "reads": reads,
    }


@model.command()
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> int:
    """The TOML of a model; with --json as it was understood, every default filled in."""
    from edge_core.config.models import find_model, load_model

    if as_json:
        click.echo(
            json.dumps(
                msgspec.to_builtins(load_model(name, strict=False), enc_hook=str),
                ensure_ascii=False,
            )
        )
    else:
        click.echo(find_model(name).read_text(encoding="utf-8").rstrip("\n"))
    return 0


@model.command()
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
def check(file: str, *, as_json: bool) -> int:
    """Every mistake of the model in FILE at once."""
    from edge_core.config.models import load_model

    row = about(load_model(str(Path(file).absolute())))
    if as_json:
        click.echo(json.dumps({"ok": True} | row, ensure_ascii=False))
    else:
        click.echo(
            f"{file}: no mistakes: {row['maker']} {', '.join(row['families'])}, {row['protocol']}, {row['reads']}"
        )
    return 0


for command in (train, evaluate, inject, verify):
    model.add_command(command)
