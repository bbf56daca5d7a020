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
        "query": query(running),
        "outputs": running.outputs,
    }


def query(running: LocalCloud) -> str:
    """A DuckDB statement over the raw envelopes of interval reads."""
    files = f"{running.bucket}/interval/day=*/dcu=*/*[0-9].json"
    return f"SELECT dcu, epoch, n, to_timestamp(sent) AS sent, enc FROM read_json('{files}') ORDER BY epoch, n"  # noqa: S608 text for a person to run


def text(running: LocalCloud) -> str:
    """Where everything is, for a person."""
    assert running.uplink is not None
    return f"""The local cloud runs until Ctrl-C.

  AWS endpoint  {running.ministack.endpoint}   (AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test)
  MQTT          {running.uplink.url}   (mutual TLS)
  REST API      {running.api}   e.g. /meters/GP1000001/latest
  lake          {running.bucket}
  log           {running.ministack.log}

Into gateway.toml of {running.dcu}:

{running.uplink.toml()}
What is in the lake, with DuckDB:

  {query(running)}
"""
