"""`opendcu keys`: seal a keys file under a key-encrypting key, so that the box keeps no key in the clear."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from edge_core.cli.main import json_option


@click.group()
def keys() -> None:
    """The keys of the meters: sealed files.

    A sealed file holds each key wrapped (AES key wrap, RFC 5649) under a key-encrypting key, which systemd-creds or
    a TPM keeps for the service alone. `[keys] provider = "sealed"` reads it.
    """


@keys.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--kek",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="16 or 32 octets, mode 0600; afterwards `systemd-creds encrypt --name=opendcu-kek KEK ...` and shred it.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The sealed file.",
)
@json_option
def seal(file: Path, *, kek: Path, out: Path, as_json: bool) -> int:
    """Seal the keys in FILE (TOML, mode 0600) into OUT; shred FILE afterwards.

    \b
    head -c 32 /dev/urandom > kek && chmod 600 kek
    opendcu keys seal keys.toml --kek kek -o keys.sealed
    systemd-creds encrypt --name=opendcu-kek kek /etc/credstore.encrypted/opendcu-kek
    shred -u kek keys.toml
    """  # noqa: D301 click's own mark for lines that are kept as they are
    from edge_core.config.keys import keys_of, parse_file, read_private
    from edge_core.config.keys import seal as wrapped
    from edge_core.config.tables import Findings

    tables = parse_file(file)
    findings = Findings()
    for meter, table in tables.items():
        keys_of(table, findings, str(file), meter)
    findings.raise_mistakes()
    secret = read_private(kek)
    if len(secret) not in (16, 32):
        raise click.UsageError(
            f"{kek} holds {len(secret)} octets; a key-encrypting key has 16 or 32"
        )
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(wrapped(tables, secret))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(out)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    if as_json:
        click.echo(json.dumps({"sealed": str(out), "meters": len(tables)}))
    else:
        click.echo(
            f"{out}: {len(tables)} meters sealed; shred {file} and {kek} once systemd-creds holds the key"
        )
    return 0
