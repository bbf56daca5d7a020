"""What every upward message begins with, and the rules that hold for all of them (DESIGN section 6).

Messages are put together from members that are JSON already: a block is encoded once, when it is packed, and never
again. Numbers are integers everywhere. Free-form members (`q`, `detail`, `explain`, health) may reach us with a float
in them; `exact` writes it as decimal text, so that no consumer meets a binary fraction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

Natural = Annotated[int, msgspec.Meta(ge=0)]
Instant = Annotated[int, msgspec.Meta(ge=0, description="UTC epoch seconds")]
Id16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
ObisText = Annotated[str, msgspec.Meta(pattern=r"^(\d{1,3}\.){5}\d{1,3}$")]

MAX_DEPTH = 16


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The members that every upward message has.

    Attributes:
        dcu: gateway id.
        epoch: rising; new when the journal or the numbering began anew.
        n: number of this transmission in its epoch. Health carries 0, which names no transmission and is not acked.
        sent: when the message was put together, on our clock.
    """

    dcu: Annotated[str, msgspec.Meta(min_length=1)]
    epoch: Natural
    n: Natural
    sent: Instant


def message(
    name: str,
    *,
    dcu: str,
    epoch: int,
    n: int,
    sent: int,
    kind: str,
    members: Iterable[tuple[str, bytes]],
) -> bytes:
    """One message: the envelope of schema `opendcu.<name>/1`, then the members, whose values are JSON already."""
    head = msgspec.json.encode(
        {
            "schema": f"opendcu.{name}/1",
            "dcu": dcu,
            "epoch": epoch,
            "n": n,
            "sent": sent,
            "kind": kind,
        }
    )
    parts = [head[:-1]]
    for key, value in members:
        parts += (b',"', key.encode(), b'":', value)
    parts.append(b"}")
    return b"".join(parts)


def exact(value: Any, depth: int = 0) -> Any:
    """The value without floats: whole ones as integers, others as decimal text, not-a-number as null.

    Raises:
        ValueError: nested deeper than MAX_DEPTH.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return int(value) if value.is_integer() else repr(value)
    if isinstance(value, dict):
        return {key: exact(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(item, depth + 1) for item in value]
    return value
