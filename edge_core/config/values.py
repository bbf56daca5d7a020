"""Values that configuration files write as text: sizes, durations, schedules and addresses.

Each is an immutable int, float, str or struct, so that it compares and prints like the plain value; each parses its
whole text or raises `ValueError` with the problem and what to write instead. Pure: nothing is opened or resolved.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

SIZES: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
DURATIONS: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MAX_EVERY_S: Final = 366 * 86400.0


class Size(int):
    """Octets, written as `"512 MiB"`, `"4,800 B"` or a plain number."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """The size that an integer or a text says; ValueError with a hint for anything else."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = (
            re.fullmatch(r"([0-9][0-9_,]*)\s*([kKMG]?i?B?)", value)
            if isinstance(value, str)
            else None
        )
        if match is None or match[2] not in SIZES:
            raise ValueError(
                f'{value!r} is no size; write "512 MiB", "100 kB" or a number of octets'
            )
        return cls(int(re.sub("[_,]", "", match[1])) * SIZES[match[2]])


class Duration(float):
    """Seconds, written as `"60d"`, `"15min"`, `"200ms"` or `"0"`."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """The duration that a text says; ValueError with a hint for anything else."""
        if value in ("0", 0) and not isinstance(value, bool):
            return cls(0)
        match = re.fullmatch(r"([0-9]{1,9})\s*([a-z]+)", value) if isinstance(value, str) else None
        if match is None or match[2] not in DURATIONS:
            raise ValueError(
                f'{value!r} is no duration; write a whole number with ms, s, min, h or d, as in "15min"'
            )
        return cls(int(match[1]) * DURATIONS[match[2]])


class Schedule(str):
    """When something is done: `off`, `every <n>(s|min|h|d)` or `HH:MM` in civil time.

    Attributes:
        every_s: the period in seconds, or None.
        at_s: seconds after civil midnight, or None.
    """

    __slots__ = ("at_s", "every_s")
    every_s: float | None
    at_s: int | None

    def __new__(cls, text: str) -> Schedule:
        """Parse the text; ValueError with the grammar for anything else."""
        self = super().__new__(cls, text)
        self.every_s = self.at_s = None
        if text == "off":
            return self
        if clock := re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])", text):
            self.at_s = int(clock[1]) * 3600 + int(clock[2]) * 60
            return self
        if every := re.fullmatch(r"every\s+([0-9]{1,9})\s*(s|min|h|d)", text):
            self.every_s = int(every[1]) * DURATIONS[every[2]]
            if 0 < self.every_s <= MAX_EVERY_S:
                return self
        raise ValueError(
            f'{text!r} is no schedule; write "off", "every 15min" (s, min, h or d) or a civil time "00:05"'
        )

    @classmethod
    def parse(cls, value: object) -> Schedule:
        """As the constructor, for any TOML value."""
        if not isinstance(value, str):
            raise ValueError(f'{value!r} is no schedule; write "off", "every 15min" or "00:05"')  # noqa: TRY004 a value
        return cls(value)

    @property
    def off(self) -> bool:
        """Never done."""
        return self == "off"


class Address(msgspec.Struct, frozen=True):
    """Where a meter answers.

    Attributes:
        host: name or address; "" on a serial line.
        port: TCP or UDP port; 0 on a serial line.
        unit: Modbus unit; None for DLMS.
        logical: DLMS logical device, the SAP of the server; None for Modbus.
        physical: HDLC lower address; None when there is none.
    """

    host: str = ""
    port: int = 0
    unit: int | None = None
    logical: int | None = None
    physical: int | None = None

    def __str__(self) -> str:
        device = (
            str(self.unit)
            if self.unit is not None
            else f"{self.logical}.{self.physical}"
            if self.physical is not None
            else str(self.logical)
        )
        return f"{join_host_port(self.host, self.port)}/{device}" if self.host else device


def join_host_port(host: str, port: int) -> str:
    """`host:port`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; port 0 is allowed (the system chooses one)."""
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text
    )
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is no host:port, as in 10.1.0.11:4059")
    return match[1] or match[2], int(match[3])


def _number(text: str, highest: int, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > highest:
        raise ValueError(f"{text!r} is no {what} (0 to {highest})")
    return int(text)


def parse_address(text: str, *, transport: str, framing: str, shared: str = "") -> Address:
    """The address of a meter on a line.

    Args:
        text: `host:port` (wrapper), `host:port/unit` or `unit` (Modbus), `[host:port/]logical[.physical]` (HDLC);
            a wrapper address may name another logical device than 1 after a slash.
        transport: tcp, udp or serial.
        framing: wrapper, hdlc, modbus-tcp or modbus-rtu.
        shared: the line's own host:port, for meters that give only their unit or HDLC address.

    Raises:
        ValueError: the text does not fit; says what was expected.
    """
    place, slash, device = text.rpartition("/")
    if transport == "serial":
        if slash or ":" in text:
            raise ValueError(
                f"{text!r} has a host, but the line is serial; write the {_device_term(framing)} alone"
            )
        place = ""
    elif not slash:
        if ":" in text and not text.replace(".", "").isdigit():
            place, device = text, ""
        else:
            place, device = shared, text
            if not shared:
                raise ValueError(f"{text!r} has no host; write {_example(framing)}")
    host, port = split_host_port(place) if place else ("", 0)
    if place and port == 0:
        raise ValueError(f"{text!r}: port 0 cannot be called")
    if framing.startswith("modbus"):
        if not device:
            raise ValueError(f"{text!r} has no unit; write {_example(framing)}")
        unit = _number(device, 255, "Modbus unit")
        if framing == "modbus-rtu" and not 1 <= unit <= 247:
            raise ValueError(f"unit {unit}: RTU units are 1 to 247 (0 is broadcast)")
        return Address(host, port, unit=unit)
    if framing == "wrapper":
        return Address(
            host, port, logical=_number(device, 65535, "logical device") if device else 1
        )
    if not device:
        raise ValueError(f"{text!r} has no HDLC address; write {_example(framing)}")
    logical, dot, physical = device.partition(".")
    return Address(
        host,
        port,
        logical=_number(logical, 16383, "HDLC logical address"),
        physical=_number(physical, 16383, "HDLC physical address") if dot else None,
    )


def _device_term(framing: str) -> str:
    return "unit" if framing.startswith("modbus") else "logical.physical address"


def _example(framing: str) -> str:
    return {
        "wrapper": '"10.1.0.11:4059"',
        "hdlc": '"10.1.0.11:4059/1.17"',
    }.get(framing, '"10.1.0.11:502/1"')


def decode(target: type, value: Any) -> Any:
    """The `dec_hook` of every conversion in this package."""
    parse = getattr(target, "parse", None)
    if parse is None:
        raise ValueError(f"{target.__name__} cannot be written in a file")
    return parse(value)
