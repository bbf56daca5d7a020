"""Units as the contract writes them, and the DLMS unit enumeration.

Source: DLMS UA Blue Book, class_id 3, enumeration of units; DESIGN section 3 for the spelling.
"""

from __future__ import annotations

Unit = str  # one of UNITS

PHYSICAL_UNITS = frozenset(
    "Wh varh VAh W var VA V A Hz s min h deg degC % count".split(" ") + [""]  # noqa: SIM905 a table
)
COLUMN_UNITS = frozenset(("epoch", "bits", "hex"))  # beside physical ones: DESIGN section 6
UNITS = PHYSICAL_UNITS | COLUMN_UNITS

DLMS_UNITS: dict[int, Unit] = {
    5: "h",
    6: "min",
    7: "s",
    8: "deg",
    9: "degC",
    27: "W",
    28: "VA",
    29: "var",
    30: "Wh",
    31: "VAh",
    32: "varh",
    33: "A",
    35: "V",
    44: "Hz",
    56: "%",
    255: "count",
}


def unit_from_dlms(code: int) -> Unit:
    """The unit of a scaler_unit structure; "" for units that the contract does not name."""
    return DLMS_UNITS.get(code, "")
