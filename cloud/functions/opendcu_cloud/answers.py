"""What the REST API says: stored items as series of one register, commands for a gateway.

A series holds the rows of one register of one device: `[captured at, value, flags]`, raw integers as the meter gave
them. Only the meter master scales: with its multiplier known and equal to the one that the gateway carries, a series
says so and gives it; otherwise it says "scaled": false and nobody multiplies.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from opendcu_cloud import rows
from opendcu_cloud.envelope import READS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_SPAN_S = 62 * rows.DAY_S
MARGIN_S = 15 * 3600  # no civil time is further from UTC: keys are civil, questions are not
WHAT = (*READS, "events", "nameplate", "clock")
EXPIRES_S = 15 * 60
REPEAT_S = 30


class BadQuestion(ValueError):
    """A parameter that cannot be answered; the text is for the caller."""


def instant(text: str, name: str) -> int:
    """UTC epoch seconds of `1764000000` or `2026-06-18T00:00:00+05:30`.

    Raises:
        BadQuestion: neither of these, or a time without its zone.
    """
    if text.isascii() and text.isdigit() and len(text) <= 11:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadQuestion(
            f"{name} is {text[:40]!r}: UTC epoch seconds or ISO 8601 with a zone"
        ) from None
    if moment.tzinfo is None:
        raise BadQuestion(f"{name} is {text!r}: its zone is missing")
    return int(moment.timestamp())


def span(from_: str | None, to: str | None, now: int) -> tuple[int, int]:
    """The span asked for, by default the last day.

    Raises:
        BadQuestion: backwards, or longer than MAX_SPAN_S.
    """
    last = instant(to, "to") if to else now
    first = instant(from_, "from") if from_ else last - rows.DAY_S
    if not 0 <= last - first <= MAX_SPAN_S:
        raise BadQuestion(
            f"from {first} to {last}: at most {MAX_SPAN_S // rows.DAY_S} days, forwards"
        )
    return first, last


def key_span(kind: str, first: int, last: int) -> tuple[str, str]:
    """Sort keys around every item of `kind` that can hold a row between `first` and `last`.

    Raises:
        BadQuestion: a kind that there is not.
    """
    if kind not in READS:
        raise BadQuestion(f"kind is {kind[:40]!r}, not one of {', '.join(READS)}")
    low = max(0, first - MARGIN_S) // 3600
    high = min(last + MARGIN_S, 253_402_300_000) // 3600
    return rows.sort_key(kind, low, ""), rows.sort_key(kind, high, "~")


def series(
    items: Iterable[tuple[str, Mapping[str, str]]],
    first: int,
    last: int,
    register: str | None = None,
    master: int | None = None,
) -> list[dict[str, Any]]:
    """The rows between `first` and `last`, both included, by device, profile and register.

    Args:
        items: sort key and texts of stored items.
        register: an OBIS, or None for all.
        master: multiplier of the meter master, None when it is not known.
    """
    out: dict[tuple[Any, ...], list[tuple[int, int, int | str, int]]] = {}
    for sk, texts in items:
        profile = sk.rsplit("#", 1)[-1]
        for identity, reading in rows.readings(texts).items():
            if first <= identity.at <= last and register in (None, identity.obis):
                key = (
                    identity.device, profile, identity.obis, identity.attribute,
                    reading.unit, reading.scaler, reading.multiplier,
                )  # fmt: skip
                out.setdefault(key, []).append(
                    (identity.at, identity.occurrence, reading.value, reading.flags)
                )
    names = ("device", "profile", "obis", "attribute", "unit", "scaler", "multiplier")
    answer = []
    for key, found in sorted(out.items()):
        one = dict(zip(names, key, strict=True))
        one["scaled"] = master is not None and master == one["multiplier"]
        one["rows"] = [
            [at, value, flags] for at, _, value, flags in sorted(found, key=lambda r: r[:2])
        ]
        answer.append(one)
    return answer


def newest(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the last row of every series."""
    return [one | {"rows": one["rows"][-1:]} for one in found]


def read_command(request: str, meter: str, body: Mapping[str, Any], now: int) -> dict[str, Any]:
    """The command of an on-demand read; `what`, `from`, `to` of `body` become its arguments.

    Raises:
        BadQuestion: a `what` that no gateway knows, or times that are none.
    """
    what = body.get("what", "instantaneous")
    if what not in WHAT:
        raise BadQuestion(f"what is {str(what)[:40]!r}, not one of {', '.join(WHAT)}")
    args: dict[str, Any] = {"what": what}
    for name in ("from", "to"):
        if name in body:
            args[name] = instant(str(body[name]), name)
    return {
        "schema": "opendcu.command/1",
        "id": request,
        "do": "read",
        "meter": meter,
        "args": args,
        "expires": now + EXPIRES_S,
    }


def down_topic(prefix: str, dcu: str, command: str) -> str:
    """Where a gateway hears a command."""
    return f"{prefix}/{dcu}/down/commands/{command}"


def encode(document: object) -> str:
    """JSON text."""
    return msgspec.json.encode(document).decode()


def now_text(at: int) -> str:
    """An instant for people."""
    return datetime.fromtimestamp(at, UTC).isoformat()
