"""`opendcu provision`: the gateway's own certificate from AWS IoT Core, by a claim certificate; what it has; renewal."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_core.cli.main import config_option, json_option

if TYPE_CHECKING:
    from edge_core.config.schema import Config
    from edge_core.uplink.certificates import Certificates


@click.command()
@config_option
@click.option(
    "--claim-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Claim certificate of the factory, PEM; with it the gateway asks for its first certificate.",
)
@click.option(
    "--claim-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The claim certificate's key, PEM, mode 0600.",
)
@click.option(
    "--template",
    default="",
    help="Provisioning template. Default: opendcu-fleet, to renew opendcu-renewal.",
)
@click.option(
    "--renew",
    is_flag=True,
    help="Renew now, with the certificate in use; else that happens at two thirds of its life.",
)
@json_option
def provision(
    config_file: str,
    *,
    claim_cert: Path | None,
    claim_key: Path | None,
    template: str,
    renew: bool,
    as_json: bool,
) -> int:
    """Obtain this gateway's certificate, renew it, or show it.

    \b
    opendcu provision -c gateway.toml --claim-cert claim.crt --claim-key claim.key
    opendcu provision -c gateway.toml            # what is in use, and when it is renewed
    opendcu provision -c gateway.toml --renew    # now; ask a running gateway to do it

    `[uplink]` names the endpoint, ca_file, and where cert_file and key_file shall be. The key is made here and never
    leaves; certificate and key change in one step, and only after the new one has connected. A running gateway with a
    certificate from here renews it by itself.
    """  # noqa: D301 click's own mark for lines that are kept as they are
    from edge_core.config.load import load
    from edge_core.config.private import read_private
    from edge_core.uplink.certificates import Certificates, Pair

    config = load(Path(config_file), strict=False)
    uplink = config.uplink
    if uplink.kind != "aws" or not uplink.cert_file or not uplink.key_file:
        raise click.UsageError(
            '[uplink] needs kind = "aws", url, and the paths cert_file and key_file where the certificate shall be'
        )
    if bool(claim_cert) != bool(claim_key):
        raise click.UsageError("--claim-cert and --claim-key go together")
    certificates = Certificates(uplink.cert_file, uplink.key_file)
    done = "shown"
    if claim_cert is not None and claim_key is not None:
        if certificates.current is not None:
            raise click.UsageError(
                f"{uplink.cert_file} is there already: renew it with --renew, or move it away first"
            )
        read_private(claim_key)
        asyncio.run(_claim(config, certificates, Pair(claim_cert, claim_key), template))
        done = "obtained"
    elif certificates.current is None and certificates.next is None:
        raise click.UsageError(
            f"{uplink.cert_file} is not there yet: --claim-cert and --claim-key obtain it"
        )
    elif renew:
        done = _renew(config, certificates, template)
    _show(config, certificates, done, as_json=as_json)
    return 0


async def _claim(config: Config, certificates: Certificates, pair: Any, template: str) -> None:
    from edge_core.uplink import provisioning

    if certificates.next is None:  # else the last attempt obtained one and was cut off
        await provisioning.claim(
            config, certificates, pair, template or provisioning.CLAIM_TEMPLATE
        )
    await provisioning.prove(config, certificates)


def _renew(config: Config, certificates: Certificates, template: str) -> str:
    """By the running gateway, which holds the connection under its name; else by ourselves."""
    from edge_core import errors
    from edge_core.transports.control import ask

    try:
        ask(config.data_dir / "control.sock", {"do": "renew"}, 60.0)
    except errors.GatewayAbsent:
        asyncio.run(_renew_here(config, certificates, template))
        return "renewed"
    return "obtained by the running gateway, which tries it at its next connection"


async def _renew_here(config: Config, certificates: Certificates, template: str) -> None:
    from edge_core.uplink import provisioning

    if certificates.next is None:
        await provisioning.renew(config, certificates, template or provisioning.RENEWAL_TEMPLATE)
    await provisioning.prove(config, certificates)


def _show(config: Config, certificates: Certificates, done: str, *, as_json: bool) -> None:
    life = certificates.life()
    if life is None:
        return
    document = {
        "gateway": config.gateway.id, "certificate": config.uplink.cert_file, "done": done, "serial": life.serial,
        "begins": life.begins, "ends": life.ends, "renew_at": life.renew_at, "next": certificates.next is not None,
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(document))
        return
    ends, renewed = (dt.datetime.fromtimestamp(at, dt.UTC) for at in (life.ends, life.renew_at))
    click.echo(
        f"{config.gateway.id}: {done}: {config.uplink.cert_file}, serial {life.serial}, until {ends:%Y-%m-%d %H:%M} UTC,"
        f" renewed from {renewed:%Y-%m-%d} on"
    )
    if certificates.next is not None:
        click.echo("a new one is there and has not connected yet; until then this one stays")
