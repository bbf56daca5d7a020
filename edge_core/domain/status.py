"""Flags of a row: DESIGN section 11. Absent = good."""

from __future__ import annotations

from enum import IntFlag


class Flag(IntFlag):
    """Bits of `flags` in a block."""

    POWER_DOWN = 1
    CLOCK_ADJUSTED = 2
    DST = 4
    NOT_VALID = 8
    CLOCK_INVALID = 16
    CRITICAL = 32
    PARTIAL = 64
    SAMPLED = 128
    INTERPOLATED = 256
    UNAUTHENTICATED = 512
    LAYOUT_DOUBT = 1024
    CLOCK_LATE = 2048
