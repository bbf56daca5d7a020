"""`opendcu keys`: seal a keys file under a key-encrypting key, so that the box keeps no key in the clear."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from edge_core.cli.main import json_option

WITH_KEY = ("auto", "host", "tpm2", "host+tpm2")


@click.group()
def keys() -> None:
    """The keys of the meters: sealed files.

    A sealed file holds each key wrapped (AES key wrap, RFC 5649) under a key-encrypting key, which systemd-creds
    keeps with the TPM or the host's key. `[keys] provider = "sealed"` reads it; it is what our components expect.
    """


@keys.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The sealed file.",
)
@click.option(
    "--kek",
    default="",
    metavar="SOURCE",
    help="Where the key-encrypting key is: creds:PATH, secret:ID or file:PATH, as `[keys] kek`; made there if it is"
    " not. Default: creds:opendcu-kek.cred beside OUT, which is where it is looked for.",
)
@click.option(
    "--with-key",
    default="auto",
    show_default=True,
    type=click.Choice(WITH_KEY),
    help="What systemd-creds encrypts a new key under: the TPM, the host's key, or both.",
)
@json_option
def seal(file: Path, *, out: Path, kek: str, with_key: str, as_json: bool) -> int:
    """Seal the keys in FILE (TOML, mode 0600) into OUT; shred FILE afterwards.

    \b
    opendcu keys seal keys.toml -o /etc/opendcu/keys.sealed
    shred -u keys.toml

    The key-encrypting key is made on this box and leaves it never: seal on the box, not at the desk. `file:` keeps
    it in the clear (mode 0600) and is INSECURE: whoever copies the disk has the keys.
    """  # noqa: D301 click's own mark for lines that are kept as they are
    from edge_core.config import sealing
    from edge_core.config.keys import keys_of, parse_file
    from edge_core.config.private import write_private
    from edge_core.config.tables import Findings

    tables = parse_file(file)
    findings = Findings()
    for meter, table in tables.items():
        keys_of(table, findings, str(file), meter)
    findings.raise_mistakes()
    source = kek or f"creds:{out.parent / sealing.CREDENTIAL}.cred"
    kind, _, place = source.partition(":")
    if kind not in sealing.SOURCES or not place:
        raise click.UsageError(f"--kek {source}: write creds:PATH, secret:ID or file:PATH")
    fresh = kind != "secret" and not Path(place).exists()
    secret = sealing.make_kek(source, with_key) if fresh else sealing.kek_of(source, os.environ)
    write_private(out, sealing.seal(tables, secret))
    if as_json:
        document = {
            "sealed": str(out), "meters": len(tables), "kek": source, "made": fresh,
            "insecure": sealing.insecure(source),
        }  # fmt: skip
        click.echo(json.dumps(document))
    else:
        click.echo(f"{out}: {len(tables)} meters sealed under {source}; shred {file}")
        if sealing.insecure(source):
            click.echo(
                f"INSECURE: {place} opens it, and whoever copies the disk has both", err=True
            )
    return 0
