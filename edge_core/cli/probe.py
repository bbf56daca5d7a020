"""`opendcu probe`: who is on this line, and which meter model fits. Asks what anybody may ask; tries no key."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_core.cli.main import config_option, json_option
from edge_core.errors import DataDirectoryBusy

if TYPE_CHECKING:
    from edge_core.acquisition.probing import Found, Target


@click.command()
@click.argument("target", metavar="HOST:PORT|DEVICE")
@config_option
@click.option(
    "--units", default="1-10", show_default=True, metavar="LIST", help="Modbus units: 1-10,33."
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="L[.P]",
    help="HDLC addresses instead of 1, 1.17, 1.16 and 1.1; a range as 1.16-1.40.",
)
@click.option(
    "--baud", "bauds", multiple=True, type=int, help="Speeds instead of 9,600 and 19,200."
)
@click.option("--udp", is_flag=True, help="Ask by UDP alone, not where TCP is refused.")
@click.option("--mode-e", is_flag=True, help="An optical head: begin with the sign-on at 300 baud.")
@click.option(
    "--wait", "wait_s", default=1.5, show_default=True, help="Longest wait for an answer, seconds."
)
@click.option(
    "--for", "budget_s", default=60.0, show_default=True, help="Longest time for all, seconds."
)
@click.option("--trace", is_flag=True, help="Every frame on standard error.")
@json_option
def probe(
    target: str,
    *,
    config_file: str,
    units: str,
    addresses: tuple[str, ...],
    bauds: tuple[int, ...],
    udp: bool,
    mode_e: bool,
    wait_s: float,
    budget_s: float,
    trace: bool,
    as_json: bool,
) -> int:
    """Find out who answers at HOST:PORT or on a serial DEVICE, and propose lines and meters for gateway.toml.

    DLMS meters are asked as public client, Modbus units for frequency and voltages; no password or key is ever tried,
    for meters lock out. A line that a running gateway of this configuration holds is refused.
    """
    from edge_core.acquisition import probing
    from edge_core.clock import SystemClock

    wanted = _target(target, units, addresses, bauds, mode_e=mode_e, udp=udp)
    _refuse_held(wanted, config_file)

    def tracer(direction: str, octets: bytes) -> None:
        click.echo(f"{direction:7} {octets.hex()}", err=True)

    def tell(text: str) -> None:
        if not as_json:
            click.echo(f"  trying {text}", err=True)

    found: list[Found] = []
    problem = ""
    try:
        found = asyncio.run(
            probing.probe(
                wanted,
                SystemClock.from_environment(),
                wait_s=wait_s,
                budget_s=budget_s,
                tell=tell,
                tracer=tracer if trace else None,
            )
        )
    except OSError as error:
        problem = str(error) or type(error).__name__
    document: dict[str, Any] = {
        "target": wanted.place,
        "found": msgspec.to_builtins(found),
        "toml": proposal(wanted, found),
    }
    if problem:
        document["error"] = problem
    if as_json:
        click.echo(json.dumps(document))
    else:
        _show(document, found)
    return 0 if found else 1


def _target(
    text: str,
    units: str,
    addresses: tuple[str, ...],
    bauds: tuple[int, ...],
    *,
    mode_e: bool,
    udp: bool,
) -> Target:
    from edge_core.acquisition import probing
    from edge_core.config.values import split_host_port

    host, port, device = "", 0, ""
    if text.startswith(("/", "./")):
        device = text
    else:
        try:
            host, port = split_host_port(text)
        except ValueError as error:
            raise click.UsageError(f"{error}; a serial device begins with /") from None
        if port == 0:
            raise click.UsageError(f"{text!r}: port 0 cannot be called")
    if mode_e and not device:
        raise click.UsageError("--mode-e is for serial devices")
    if udp and device:
        raise click.UsageError("--udp is for HOST:PORT")
    return probing.Target(
        host,
        port,
        device,
        bauds or probing.BAUDS,
        [pair for a in addresses for pair in _hdlc(a)] or probing.HDLC_ADDRESSES,
        _numbers(units, 247),
        mode_e,
        udp,
    )


def _hdlc(text: str) -> list[tuple[int, int | None]]:
    match = re.fullmatch(r"([0-9]{1,5})(?:\.([0-9]{1,5}(?:-[0-9]{1,5})?))?", text)
    if match is None or int(match[1]) > 16_383:
        raise click.UsageError(f"{text!r} is no HDLC address; write 1, 1.17 or 1.16-1.40")
    if match[2] is None:
        return [(int(match[1]), None)]
    return [(int(match[1]), physical) for physical in _numbers(match[2], 16_383)]


def _numbers(text: str, highest: int) -> list[int]:
    """`1-10,33` as numbers."""
    out: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high <= highest:
            raise click.UsageError(f"{part!r} is no number or range up to {highest}")
        out.extend(range(low, high + 1))
    return list(dict.fromkeys(out))


def _refuse_held(target: Target, config_file: str) -> None:
    """Two masters on one line disturb each other.

    Raises:
        DataDirectoryBusy: a running gateway holds the line.
    """
    if not Path(config_file).is_file():
        return
    from edge_core.config.load import load
    from edge_core.journal.datadir import DataDirectory

    config = load(config_file)
    directory = DataDirectory(config.data_dir)
    for meter in config.meters.values():
        line = config.lines[meter.line]
        if target.device:
            same = line.device and Path(line.device).resolve() == Path(target.device).resolve()
        else:
            address = config.address_of(meter)
            same = (address.host, address.port) == (target.host, target.port)
        if same and (holder := directory.holder(line.protocol)) is not None:
            raise DataDirectoryBusy(
                f"{target.place} is line {line.id} of the gateway that runs as process {holder} ({config_file}): two "
                "masters on one line disturb each other. Use `opendcu read`, or stop the gateway"
            )


def proposal(target: Target, found: list[Found]) -> str:
    """Lines and meters for gateway.toml, "" where nobody answered."""
    out = []
    lines: dict[str, str] = {}
    for number, one in enumerate(found, 1):
        settings = {
            "transport": "serial" if target.device else "tcp",
            "framing": one.framing,
            **one.line,
        }
        text = "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
        if text not in lines:
            lines[text] = f"line-{len(lines) + 1}"
            out.append(f"[[lines]]\nid = {_toml(lines[text])}\n{text}")
        best = one.best() if one.fits else []
        serial = one.serial if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", one.serial) else ""
        meter = {
            "id": serial or f"meter-{number}",
            "line": lines[text],
            "model": best[0] if best else "",
            "address": one.address,
            **({"serial": one.serial} if one.serial else {}),
            **({"title": one.title} if one.title else {}),
        }
        body = "".join(f"{key} = {_toml(value)}\n" for key, value in meter.items())
        if len(best) > 1:
            body += f"# fit alike: {', '.join(best)}\n"
        if not best:
            body += "# no known model fits: write one, see docs/howto\n"
        out.append(f"[[meters]] # `id` is the utility's meter number\n{body}")
    return "\n".join(out)


def _toml(value: object) -> str:
    return json.dumps(value)


def _show(document: dict[str, Any], found: list[Found]) -> None:
    for one in found:
        head = ", ".join(
            part
            for part in (
                f"{one.protocol} ({one.framing}) at {one.address}",
                one.name,
                f"serial {one.serial}" if one.serial else "",
                f"title {one.title}" if one.title else "",
            )
            if part
        )
        click.echo(head)
        for key, value in one.counters.items():
            if value:
                click.echo(f"  invocation counter {key} = {value}")
        if one.clock:
            sign = one.clock["sign"] or "sign unknown"
            off = f", {one.clock['off_s']:+g} s to ours" if "off_s" in one.clock else ""
            click.echo(f"  clock: deviation {one.clock['deviation_min']} min, {sign}{off}")
        for fit in one.fits[:5]:
            click.echo(f"  model {fit.model} ({fit.score}): {', '.join(fit.why)}")
        for note in one.notes:
            click.echo(f"  note: {note}")
    if found:
        click.echo("\n" + document["toml"].rstrip())
    else:
        why = document.get("error", "nobody answers in any framing that was tried")
        click.echo(f"opendcu: {document['target']}: {why}", err=True)
