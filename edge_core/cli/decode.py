"""`opendcu decode`: any HDLC, wrapper or M-Bus frame or APDU to JSON, offline (DESIGN section 4)."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge_core.cli.main import error_document, json_option
from edge_core.config.keys import keys_of, parse_file
from edge_core.config.tables import ConfigErrors, Findings
from edge_core.domain import Secret
from edge_core.errors import MalformedFrame, ProtocolError
from edge_core.protocols.dlms.decode import Keys
from edge_core.protocols.dlms.decode import decode as decode_capture
from edge_core.protocols.dlms.framing import MAX_OCTETS

if TYPE_CHECKING:
    from collections.abc import Sequence

_SEPARATORS = re.compile(r"0[xX]|[\s:,;_-]+")
_MAX_INPUT = 4 * MAX_OCTETS


@click.command()
@click.argument("capture", nargs=-1, metavar="[HEX|FILE|-]")
@click.option(
    "--keys",
    "keys_file",
    metavar="FILE|-",
    help="Keys by meter, as keys.toml (mode 0600); every meter's are tried.",
)
@click.option(
    "--guek", metavar="HEX", help="Global unicast encryption key. Shows in the process list."
)
@click.option("--gak", metavar="HEX", help="Global authentication key. Shows in the process list.")
@click.option(
    "--title",
    "titles",
    metavar="HEX",
    multiple=True,
    help="System title of the sender, where the capture names none; may be repeated.",
)
@click.option(
    "--deviation",
    type=click.Choice(["local-to-utc", "utc-to-local"]),
    default="local-to-utc",
    show_default=True,
    help="What deviations count: Blue Book, or as in India, Saudi Arabia and Italy.",
)
@json_option
def decode(
    capture: tuple[str, ...],
    keys_file: str | None,
    guek: str | None,
    gak: str | None,
    titles: tuple[str, ...],
    deviation: str,
    *,
    as_json: bool,
) -> int:
    """Decode frames or APDUs to JSON: framing, block transfer, deciphering, values, readings.

    The input is hex, one frame a line, the frames of one exchange together; from standard input without an argument.
    Spaces, colons and 0x are passed over, as is what follows a #.
    """
    keys = _keys(keys_file, guek, gak, capture)
    try:
        frames = _frames(capture)
        document = decode_capture(
            frames,
            keys,
            [_octets_of("--title", title, (8,)) for title in titles],
            utc_to_local=deviation == "utc-to-local",
        )
    except ProtocolError as error:
        _print(error_document(error), as_json=as_json)
        return 1
    _print(msgspec.structs.asdict(document), as_json=as_json)
    return 0


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def _keys(
    keys_file: str | None, guek: str | None, gak: str | None, capture: tuple[str, ...]
) -> list[Keys]:
    """What was given, the command line first.

    Raises:
        click.UsageError, ConfigErrors: it is no key; never with its value.
    """
    keys = []
    if guek or gak:
        click.echo(
            "opendcu: keys on the command line can be seen by every user of this machine; "
            "--keys FILE or --keys - keeps them",
            err=True,
        )
    if guek:
        authentication = Secret(_octets_of("--gak", gak, (16, 32))) if gak else None
        keys.append(Keys(Secret(_octets_of("--guek", guek, (16, 32))), authentication))
    elif gak:
        raise click.UsageError("--gak without --guek deciphers nothing")
    if keys_file == "-" and (not capture or capture == ("-",)):
        raise click.UsageError("--keys - and the frames cannot both come from standard input")
    if keys_file:
        keys.extend(_keys_from(keys_file))
    for key in keys:
        if key.authentication is not None and len(key.authentication) != len(key.encryption):
            raise click.UsageError("encryption and authentication key differ in length")
    return keys


def _keys_from(keys_file: str) -> list[Keys]:
    tables = _keys_from_stdin() if keys_file == "-" else parse_file(Path(keys_file))
    findings = Findings()
    keys = []
    for meter, table in tables.items():
        held = keys_of(table, findings, keys_file, meter)
        if held.guek is not None:
            keys.append(Keys(held.guek, held.gak))
    if findings.mistakes:
        raise ConfigErrors(findings.mistakes)
    return keys


def _keys_from_stdin() -> dict[str, Any]:
    try:
        return tomllib.loads(sys.stdin.buffer.read(_MAX_INPUT).decode())
    except (ValueError, RecursionError):  # the message would quote the keys
        raise click.UsageError("--keys -: standard input is not TOML") from None


def _octets_of(option: str, text: str, sizes: Sequence[int]) -> bytes:
    """Hex of a command line option; the error does not repeat it."""
    digits = _SEPARATORS.sub("", text)
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        raise click.UsageError(f"{option} is not hex") from None
    if len(octets) not in sizes:
        wanted = " or ".join(map(str, sizes))
        raise click.UsageError(f"{option} has {len(octets)} octets, {wanted} are due")
    return octets


def _frames(capture: tuple[str, ...]) -> list[bytes]:
    """The frames of the input.

    Raises:
        MalformedFrame: something that is not hex; `offset` is its character.
    """
    if len(capture) == 1 and capture[0] != "-":
        path = Path(capture[0])
        try:
            is_file = path.is_file()
        except OSError:  # a long hex string is no file name
            is_file = False
        if is_file:
            with path.open("rb") as stream:
                return _parse(stream.read(_MAX_INPUT + 1))
    if not capture or capture == ("-",):
        return _parse(sys.stdin.buffer.read(_MAX_INPUT + 1))
    return _parse(" ".join(capture).encode())


def _parse(content: bytes) -> list[bytes]:
    """Lines of hex, or the octets themselves where there is anything but text."""
    if len(content) > _MAX_INPUT:
        raise MalformedFrame(f"more than {_MAX_INPUT} characters", _MAX_INPUT)
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        return [content]
    frames = []
    start = 0
    for line in text.splitlines(keepends=True):
        digits = _SEPARATORS.sub("", line.partition("#")[0])
        try:
            octets = bytes.fromhex(digits)
        except ValueError:
            bad = next(
                (i for i, c in enumerate(line) if c not in "0123456789abcdefABCDEFxX \t\r\n:,;_-"),
                len(line.rstrip()),
            )
            raise MalformedFrame("not hex, or half an octet", start + bad) from None
        if octets:
            frames.append(octets)
        start += len(line)
    return frames
