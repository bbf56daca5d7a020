"""OBIS codes: six decimals with dots, everywhere. Six octets only on the wire of the meter."""

from __future__ import annotations

import msgspec

Obis = str  # "1.0.1.8.0.255"


def obis_from_bytes(octets: bytes) -> Obis:
    """Six octets of a logical name as text.

    Raises:
        ValueError: not six octets.
    """
    if len(octets) != 6:
        raise ValueError(f"a logical name has 6 octets, not {len(octets)}")
    return "%d.%d.%d.%d.%d.%d" % tuple(octets)


def obis_to_bytes(obis: Obis) -> bytes:
    """The six octets of an OBIS code.

    Raises:
        ValueError: not six decimals between 0 and 255 with dots.
    """
    parts = obis.split(".")
    if len(parts) != 6 or not all(p.isdigit() and int(p) < 256 for p in parts):
        raise ValueError(
            f"{obis!r} is no OBIS code: six decimals (0 to 255) with dots, as in 1.0.1.8.0.255"
        )
    return bytes(map(int, parts))


def plain_text(struct: msgspec.Struct, name: str) -> None:
    """Make a field plain `str`: codes from meter models are checked subtypes of it, which the encoders refuse."""
    value = getattr(struct, name)
    if isinstance(value, str) and type(value) is not str:
        msgspec.structs.force_setattr(struct, name, str(value))
