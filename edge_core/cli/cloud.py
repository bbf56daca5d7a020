"""`opendcu cloud`: the local cloud at the desk, and the template that both it and AWS are made from."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_core.cli.main import json_option

if TYPE_CHECKING:
    from simulators.cloud import LocalCloud

ALIVE_EVERY_S = 1.0


@click.group()
def cloud() -> None:
    """The cloud side: run it here, or print its CloudFormation template."""


@cloud.command()
def template() -> None:
    """Print the SAM template (for `sam deploy`, from the folder cloud/)."""
    from simulators.cloud import template_text

    click.echo(template_text(), nl=False)


@cloud.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for certificates, objects and logs; without it a temporary one, removed at the end.",
)
@click.option(
    "--dcu", default="dcu-0001", show_default=True, help="Gateway that gets the first certificate."
)
@click.option("--prefix", default="dcu", show_default=True, help="topic_prefix of the gateways.")
@json_option
def local(folder: Path | None, dcu: str, prefix: str, *, as_json: bool) -> int:
    """Run the cloud on this machine, until SIGTERM or Ctrl-C.

    The template is deployed into MiniStack on loopback and free ports: rules, queues, functions, bucket, table, API.
    A gateway connects to it as to AWS, with the printed [uplink] and a certificate of its own.
    """
    from simulators.cloud import CloudError, LocalCloud

    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    with (
        tempfile.TemporaryDirectory(prefix="opendcu-cloud-") as scratch,
        LocalCloud(folder or Path(scratch), dcu=dcu, prefix=prefix) as running,
    ):
        click.echo(json.dumps(document(running)) if as_json else text(running))
        while not stop.wait(ALIVE_EVERY_S):
            if not running.ministack.running():
                raise CloudError(f"MiniStack ended by itself: see {running.ministack.log}")
    return 0


@cloud.command()
@click.option(
    "--lake",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the bucket.",
)
@click.argument("sql")
@json_option
def query(lake: Path, sql: str, *, as_json: bool) -> None:
    """Ask a lake with DuckDB's SQL.

    The views are `readings` (of readings that differ, the one read later) and `arrived` (everything that was sent).
    """
    from simulators.cloud.work import ask

    names, rows = ask(lake, sql)
    if as_json:
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], default=str))
        return
    table = [names, *[["" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


@cloud.command()
@click.option(
    "--day", required=True, metavar="YYYY-MM-DD", help="UTC day on which the messages were sent."
)
@click.option("--stack", default="opendcu", show_default=True, help="The CloudFormation stack.")
@click.option(
    "--endpoint", help="Of a local cloud; without it AWS, with the credentials of the environment."
)
@json_option
def rebuild(day: str, stack: str, endpoint: str | None, *, as_json: bool) -> None:
    """Make one day of the table again from the lake. What is there already does not change."""
    from datetime import date

    try:
        date.fromisoformat(day)
    except ValueError:
        raise click.BadParameter(f"{day!r} is no date", param_hint="--day") from None
    from simulators.cloud.local import session
    from simulators.cloud.work import rebuild as again

    counts = again(session(local=endpoint is not None), stack, day, endpoint)
    if as_json:
        click.echo(json.dumps({"day": day, "messages": counts}))
    else:
        click.echo(
            f"{day}: "
            + (", ".join(f"{n} {kind}" for kind, n in counts.items()) or "nothing is stored")
        )


def document(running: LocalCloud) -> dict[str, object]:
    """Where everything is, for a program."""
    assert running.uplink is not None
    return {
        "endpoint": running.ministack.endpoint,
        "mqtt": running.uplink.url,
        "uplink": {
            "kind": "aws",
            "url": running.uplink.url,
            "ca_file": running.uplink.ca_file,
            "cert_file": running.uplink.cert_file,
            "key_file": running.uplink.key_file,
        },
        "api": running.api,
        "lake": str(running.bucket),
        "log": str(running.ministack.log),
        "query": question(running),
        "outputs": running.outputs,
    }


def question(running: LocalCloud) -> str:
    """A command that asks the lake with DuckDB."""
    sql = "SELECT meter, obis, unit, count(*) AS rows, max(captured_at) AS last FROM readings GROUP BY ALL ORDER BY ALL"
    return f'opendcu cloud query --lake {running.bucket} "{sql}"'


def text(running: LocalCloud) -> str:
    """Where everything is, for a person."""
    assert running.uplink is not None
    return f"""The local cloud runs until Ctrl-C.

  AWS endpoint  {running.ministack.endpoint}   (AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test)
  MQTT          {running.uplink.url}   (mutual TLS)
  REST API      {running.api}   signed as on AWS:
                curl --aws-sigv4 aws:amz:us-east-1:execute-api --user test:test {running.api}/meters/METER/latest
  lake          {running.bucket}
  log           {running.ministack.log}

Into gateway.toml of {running.dcu}:

{running.uplink.toml()}
What is in the lake, with DuckDB:

  {question(running)}
"""
