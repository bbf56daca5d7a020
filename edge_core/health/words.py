"""Figures as people read them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def lasting(seconds: float) -> str:
    """A duration: 40 s, 12 min, 5 h, 3 d."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{max(0, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400)} d"


def octets(count: float) -> str:
    """A size: 812 B, 1.5 MB, 88 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.1f} {unit}" if unit != "B" and count < 10 else f"{count:.0f} {unit}"


def columns(
    head: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> list[str]:
    """A table as lines, columns aligned, two blanks apart.

    Args:
        right: names of the head whose columns are aligned to the right.
    """
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in cells
    ]
