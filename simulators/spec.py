"""The fleet file: which meters there are. `fleet.toml` is documented in docs by the structs below and in sample.toml.

Unknown keys are mistakes. Ids run on: a group whose `id` ends in digits counts up from there, without one it continues
after the group before it.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import msgspec

from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_SPANS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400}


class DlmsGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Like DLMS meters.

    Attributes:
        model: is15959-3ph, is15959-1ph, is15959-ct, idis, smr5 or dsmr4.
        security: none, lls, hls2 (AES), hls3 (MD5), hls4 (SHA-1), hls5 (GMAC), hls6 (SHA-256) or hls7 (ECDSA).
        suite: security suite, 0 to 2; hls7 needs 1 or 2.
        framing: wrapper or hdlc.
        transport: tcp, or udp for the wrapper.
        pdu: largest APDU of the meter, octets.
        quirks: see simulators.dlms.meter.QUIRKS.
        zone: IANA name or minutes east of UTC; "" = the model's.
        answer_ms: how long every answer takes (wrapper over TCP), as over a radio.
    """

    count: int = 1
    line: str = "feeder-1"
    model: str = "is15959-3ph"
    security: str = "hls5"
    suite: int = 0
    framing: str = "wrapper"
    transport: str = "tcp"
    id: str = ""
    pdu: int = 1024
    quirks: tuple[str, ...] = ()
    zone: str = ""
    answer_ms: int = 0


class ModbusGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Like Modbus meters on one line: units of one TCP server.

    Attributes:
        model: a meter model of edge_core/acquisition/meters, or a path to one.
        framing: modbus-tcp, or modbus-rtu (RTU frames in a TCP stream).
        unit: unit id of the first.
    """

    count: int = 1
    line: str = "bus-1"
    model: str = "eastron-sdm630"
    framing: str = "modbus-tcp"
    id: str = ""
    unit: int = 1


class FleetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole fleet.

    Attributes:
        seed: another seed is another town, with other keys.
        history_s: seconds of rows that the meters hold at the start.
        by_address: each DLMS meter has an address in 127.0.0.0/8 of its own and all share `port`; else ports differ.
        titles: write the system titles into meters.csv, so that pushes are known before the first association.
    """

    seed: int = 1
    history_s: int = 2 * 86_400
    host: str = "127.0.0.1"
    port: int = 0
    by_address: bool = False
    titles: bool = False
    dlms: tuple[DlmsGroup, ...] = ()
    modbus: tuple[ModbusGroup, ...] = ()


def span_s(text: str) -> int:
    """Seconds of `36h`, `2d`, `90min`, `10s`.

    Raises:
        ValueError: not a span.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h|d)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no span of time: a number and s, min, h or d, as in 2d")
    return int(float(match[1]) * _SPANS[match[2]])


def load_spec(path: Path) -> FleetSpec:
    """Read a fleet file.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or a key in it is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), "", "", str(error)) from error
    head = dict(document.pop("fleet", {}))
    if "history" in head:
        try:
            head["history_s"] = span_s(str(head.pop("history")))
        except ValueError as error:
            raise ConfigError(str(path), "fleet", "history", str(error)) from None
    try:
        return msgspec.convert({**head, **document}, FleetSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), "", "", str(error)) from None


def running_id(start: str, offset: int) -> str:
    """`GP1000001` and 4 give `GP1000005`; a start without digits gets them."""
    match = re.fullmatch(r"(.*?)(\d+)", start)
    if not match:
        return f"{start}{offset + 1}"
    return f"{match[1]}{int(match[2]) + offset:0{len(match[2])}d}"
