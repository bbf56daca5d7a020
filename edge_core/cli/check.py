"""`opendcu check`: every mistake of a configuration at once. Opens the files and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import json_option
from edge_core.config.keys import check_keys
from edge_core.config.load import ConfigErrors, load
from edge_core.detector.topology import measured

if TYPE_CHECKING:
    from edge_core.config.schema import Config


@click.command()
@click.argument(
    "file", default="gateway.toml", envvar="OPENDCU_CONFIG", type=click.Path(dir_okay=False)
)
@json_option
def check(file: str, *, as_json: bool) -> int:
    """Check FILE, its fleet file, its meter models and its keys: every mistake at once, offline.

    Nothing is opened but these files: no line, no broker, no data directory. Keys that this release does not know
    are mistakes here, while `opendcu run` starts with them and raises the alarm config-unknown-key.
    Exit 0: it can start. Exit 2: it cannot.
    """
    try:
        config = load(file)
    except ConfigErrors as refusal:
        return _refused(file, refusal, as_json=as_json)
    if mistakes := check_keys(config):
        return _refused(file, ConfigErrors(mistakes), as_json=as_json)
    document = summary(config)
    if as_json:
        click.echo(
            json.dumps({"file": file, "ok": True, "mistakes": []} | document, ensure_ascii=False)
        )
        return 0
    click.echo(f"{file}: no mistakes")
    click.echo(f"  gateway       {document['gateway']}, roles {' '.join(document['roles'])}")
    click.echo(
        f"  system title  {document['system_title']} (half of every nonce: never the same in two gateways)"
    )
    click.echo(f"  uplink        {document['uplink']}")
    click.echo(f"  lines         {document['lines']}")
    click.echo(f"  meters        {document['meters']}")
    for model, count in sorted(document["models"].items()):
        click.echo(f"    {count:6}  {model}")
    for name, below in document["transformers"].items():
        click.echo(f"  transformer   {name}: its meter is balanced against {below} below it")
    return 0


def summary(config: Config) -> dict[str, Any]:
    """What was understood."""
    return {
        "gateway": config.gateway.id,
        "system_title": config.gateway.title.hex(),
        "roles": list(config.gateway.roles),
        "uplink": f"{config.uplink.kind} {config.uplink.url}".strip(),
        "lines": len(config.lines),
        "meters": len(config.meters),
        "models": dict(Counter(meter.model for meter in config.meters.values())),
        "transformers": {name: len(below) for name, below in measured(config.meters).items()},
    }


def _refused(file: str, refusal: ConfigErrors, *, as_json: bool) -> int:
    if as_json:
        mistakes = [
            {"file": m.file, "table": m.table, "key": m.key, "problem": m.problem, "hint": m.hint}
            for m in refusal.errors
        ]
        document = {"file": file, "ok": False, "mistakes": mistakes, "left_out": refusal.left_out}
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        count = len(refusal.errors) + refusal.left_out
        click.echo(str(refusal), err=True)
        click.echo(f"{file}: {count} mistake{'s' if count > 1 else ''}", err=True)
    return 2
