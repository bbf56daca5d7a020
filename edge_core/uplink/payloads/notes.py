"""anomalies/1, completeness/1 and reply/1: journalled messages that are no blocks; and health/1, which is not journalled.

A note's body is what the room that wrote it put into the journal. It is converted to the struct here, so that a wrong
one is set aside with its reason before it leaves, and floats become text or thousandths by `exact`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from edge_core.uplink.payloads.envelope import Envelope, Natural, exact
from edge_core.uplink.payloads.reads import (  # noqa: TC001 a struct needs its types at run time
    BlockSpec,
    LayoutSpec,
)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding of the detector.

    Attributes:
        id: SHA-256 over meter, kind, from and model version; the highest rev of an id holds.
        from_, to: the window, UTC epoch seconds.
        score, threshold: integers in thousandths, or decimal text.
        model: version of the model.
        explain: what made the score.
    """

    id: Annotated[str, msgspec.Meta(min_length=1)]
    rev: Natural
    meter: Annotated[str, msgspec.Meta(min_length=1)]
    kind: str
    from_: int = msgspec.field(name="from")
    to: int
    score: int | str
    threshold: int | str
    model: str
    explain: dict[str, Any] = {}


class Anomalies(Envelope, frozen=True, kw_only=True):
    """Findings of the detector."""

    schema: Literal["opendcu.anomalies/1"]
    kind: Literal["anomalies"]
    findings: list[Finding]


class Completeness(Envelope, frozen=True, kw_only=True):
    """The daily figures: per day and profile what was due, captured, delivered, missing by cause, excused.

    Attributes:
        day: civil date, YYYY-MM-DD.
        stage: when this was counted: 05:00 of the next day, 24h or 72h after the day's end; the latest holds.
        profiles: one entry per profile.
    """

    schema: Literal["opendcu.completeness/1"]
    kind: Literal["completeness"]
    day: str = ""
    stage: str = ""
    profiles: tuple[ProfileFigures, ...] = ()


class ProfileFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one profile on one civil day, over all meters."""

    profile: str
    due: Natural = 0
    captured: Natural = 0
    delivered: Natural = 0
    missing: dict[str, Natural] = {}
    excused: Natural = 0


class ReplyError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command failed."""

    class_: str = msgspec.field(name="class")
    message: str


class Reply(Envelope, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a command; `kind` is the command's id, as the last level of the topic."""

    schema: Literal["opendcu.reply/1"]
    kind: str
    id: Annotated[str, msgspec.Meta(min_length=1)]
    state: Literal["accepted", "done", "failed"]
    error: ReplyError | UnsetType = UNSET
    nonce: str = ""
    layouts: tuple[LayoutSpec, ...] = ()
    blocks: tuple[BlockSpec, ...] = ()
    registers: tuple[dict[str, Any], ...] = ()


class Health(Envelope, frozen=True, kw_only=True):
    """How the box is; latest only, never journalled, n = 0."""

    schema: Literal["opendcu.health/1"]
    kind: Literal["health"]
    version: str
    nucleus: str = ""
    uptime_s: Natural
    depth: Natural
    hours_left: int | None = None
    meters: dict[str, Any]
    clock: dict[str, Any]
    uplink: dict[str, Any]
    memory_mb: Natural


HEALTH_DEFAULTS: dict[str, Any] = {
    "version": "",
    "nucleus": "",
    "uptime_s": 0,
    "depth": 0,
    "hours_left": None,
    "meters": {"total": 0, "silent": 0, "parked": 0},
    "clock": {"synced": True, "step_s": 0},
    "uplink": {"state": "connected", "in_flight": 0, "aside": 0},
    "memory_mb": 0,
}
INTEGER_FIGURES = ("uptime_s", "depth", "hours_left", "memory_mb")

SCHEMA_OF = {"replies": "reply"}
"""Name in `schema` where it differs from the kind of note."""

STRUCT_OF: dict[str, type[Envelope]] = {
    "anomalies": Anomalies,
    "completeness": Completeness,
    "replies": Reply,
    "health": Health,
}


def members(kind: str, sub: str, body: dict[str, Any]) -> list[tuple[str, bytes]]:
    """The members of a note's message, proven against its struct.

    Args:
        kind: anomalies, completeness, replies or health.
        sub: the command id for replies, else ignored.
        body: what the room put there; an `id` of replies may be absent.

    Raises:
        msgspec.ValidationError: the body is not what the schema says.
        ValueError: nested too deep, or an unknown kind.
        TypeError: something that JSON cannot carry.
    """
    if kind not in STRUCT_OF:
        raise ValueError(f"no message carries notes of kind {kind!r}")
    clean: dict[str, Any] = exact(body)
    if kind == "replies":
        clean = {"id": sub} | clean
    elif kind == "health":
        clean = health_body(body)
    elif kind == "anomalies":
        clean = clean | {"findings": [thousandths(f) for f in body.get("findings", [])]}
    envelope = {
        "schema": f"opendcu.{SCHEMA_OF.get(kind, kind)}/1",
        "dcu": "-",
        "epoch": 0,
        "n": 0,
        "sent": 0,
        "kind": sub if kind == "replies" else kind,
    }
    msgspec.convert(clean | envelope, STRUCT_OF[kind])
    return [
        (key, msgspec.json.encode(value)) for key, value in clean.items() if key not in envelope
    ]


def health_body(body: dict[str, Any]) -> dict[str, Any]:
    """Health with every member that the contract names, figures rounded to integers."""
    figures = {
        k: round(v) for k, v in body.items() if k in INTEGER_FIGURES and isinstance(v, float)
    }
    clean: dict[str, Any] = exact(HEALTH_DEFAULTS | body | figures)
    return clean


def thousandths(finding: dict[str, Any]) -> dict[str, Any]:
    """A finding whose score and threshold are integers: a float counts as a share and becomes thousandths."""
    figures = {
        key: round(value * 1000)
        for key in ("score", "threshold")
        if isinstance(value := finding.get(key), float)
    }
    clean: dict[str, Any] = exact(finding | figures)
    return clean
