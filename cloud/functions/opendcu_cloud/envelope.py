"""Is this a message of ours, and what is in it? Strict where storage depends on it, deaf to fields it does not know.

`open_message` raises `Refused` and nothing else, whatever the octets are: bounded in size, depth and inflation. What
it returns is consistent: every block has as many columns as its layout, as many values as it has rows, times that
identify them. Types and ranges are checked by msgspec at C speed; a contract test holds this module against
cloud/schemas/*.json, so that what one accepts the other does.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

MAX_PAYLOAD = 128 * 1024  # IoT Core's own limit
MAX_INFLATED = 8 << 20  # a hundred thousand readings inflate to half of it
MAX_ROWS = 100_000

READS = ("interval", "midnight", "billing", "instantaneous")
ALARM_CLASSES = ("outage", "voltage", "tamper", "meter", "gateway")
SCHEMAS = {
    "reads": "opendcu.reads/1",
    "alarms": "opendcu.alarms/1",
    "events": "opendcu.events/1",
    "anomalies": "opendcu.anomalies/1",
    "completeness": "opendcu.completeness/1",
    "health": "opendcu.health/1",
    "replies": "opendcu.reply/1",
}

Obis = Annotated[str, Meta(pattern=r"^(\d{1,3}\.){5}\d{1,3}$")]
Text = Annotated[str, Meta(max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Seconds = Annotated[int, Meta(ge=0, le=1 << 33)]
Number = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Unit = Literal[
    "Wh", "varh", "VAh", "W", "var", "VA", "V", "A", "Hz", "s", "min", "h", "deg", "degC", "%", "count", "",
    "epoch", "bits", "hex",
]  # fmt: skip


class Refused(Exception):
    """A message that will never be stored as it is.

    Attributes:
        code: schema-invalid, dcu-mismatch, too-large or not-json: what `rejected` in the ack says.
        why: one line for a human.
        epoch, n: the message's number as far as it could be read; without it nothing can be acknowledged.
    """

    def __init__(self, code: str, why: str, epoch: int | None = None, n: int | None = None) -> None:
        super().__init__(f"{code}: {why}")
        self.code, self.why, self.epoch, self.n = code, why, epoch, n


class Column(Struct, frozen=True, array_like=True):
    """One column of a layout: `[obis, unit, scaler, attribute if not 2]`."""

    obis: Obis
    unit: Unit
    scaler: Annotated[int, Meta(ge=-128, le=127)]
    attribute: Annotated[int, Meta(ge=1, le=127)] = 2


class Layout(Struct, frozen=True):
    """Columns of a profile; period in seconds, 0 = irregular."""

    profile: Obis
    period: Annotated[int, Meta(ge=0, le=1 << 32)]
    cols: Annotated[tuple[Column, ...], Meta(min_length=1, max_length=256)]


class Block(Struct, frozen=True):
    """Consecutive rows of one profile of one meter, as on the wire; `times()` and `occurrences()` complete it."""

    meter: Name
    device: Text
    layout: Annotated[int, Meta(ge=0)]
    rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    values: list[list[int | str | None]]
    read_at: Seconds
    tz: Annotated[int, Meta(ge=-900, le=900)]
    t0: Seconds | UnsetType = UNSET
    t: list[Seconds] | UnsetType = UNSET
    occ: list[tuple[int, int]] = []
    flags: list[tuple[int, int, int]] = []
    multiplier: Annotated[int, Meta(ge=1)] = 1
    q: dict[str, msgspec.Raw] | UnsetType = UNSET

    def times(self, period: int) -> list[int]:
        """Captured times of the rows, UTC epoch seconds."""
        if isinstance(self.t, UnsetType):
            t0 = self.t0
            assert not isinstance(t0, UnsetType)
            return list(range(t0, t0 + period * self.rows, period)) if period else [t0]
        return self.t

    def occurrences(self) -> list[int]:
        """Occurrence of every row: 0 unless `occ` says otherwise."""
        out = [0] * self.rows
        for row, k in self.occ:
            out[row] = k
        return out

    def flag_bits(self) -> list[int]:
        """Flag bits of every row."""
        out = [0] * self.rows
        for first, count, bits in self.flags:
            for row in range(first, first + count):
                out[row] |= bits
        return out


class Head(Struct, frozen=True):
    """What every upward message starts with; health has no epoch and n of its own."""

    schema: str
    dcu: Name
    kind: Name
    sent: Seconds
    epoch: Seconds | UnsetType = UNSET
    n: Number | UnsetType = UNSET


class _Number(Struct):
    """The number alone, read first, so that a refusal can name it."""

    epoch: Any = None
    n: Any = None


class _Blocks(Struct):
    layouts: list[Layout]
    blocks: Annotated[list[Block], Meta(min_length=1)]


class _Reads(Struct):
    enc: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    layouts: msgspec.Raw | UnsetType = UNSET
    blocks: msgspec.Raw | UnsetType = UNSET


class Alarm(Struct, frozen=True):
    """One alarm as it travels; `class` in JSON."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    meter: Text
    class_: Text = msgspec.field(name="class")
    code: Annotated[str, Meta(pattern="^[a-z0-9-]{1,64}$")]
    at: int
    heard: int
    authenticated: bool
    inferred: bool
    phases: list[Literal["L1", "L2", "L3"]] = []
    iec61968: Text = ""
    detail: dict[str, Any] = {}


class _Storm(Struct):
    """The compact columns of a storm of one code; all genuine, none inferred."""

    code: Annotated[str, Meta(pattern="^[a-z0-9-]{1,64}$")]
    at: list[int]
    meters: list[Text]
    ids: list[Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]]


class _Alarms(Struct):
    alarms: msgspec.Raw


class Event(Struct, frozen=True):
    """One row of a meter's event log."""

    meter: Name
    log: Obis
    code: int | None
    at: int
    k: Annotated[int, Meta(ge=0)]
    device: Text = ""
    severity: Text = ""
    iec61968: Text = ""
    flags: int = 0
    tz: int = 0
    read_at: int = 0
    values: list[list[int | str | None]] = []


class _Events(Struct):
    events: Annotated[list[Event], Meta(min_length=1)]


class Finding(Struct, frozen=True):
    """One finding of a detector; of one id the highest rev holds."""

    id: Name
    rev: Annotated[int, Meta(ge=0)]
    meter: Name
    kind: Text
    from_: int = msgspec.field(name="from")
    to: int
    score: int | Text
    threshold: int | Text
    model: Text
    explain: dict[str, Any] = {}


class _Findings(Struct):
    findings: list[Finding]


class ReplyError(Struct, frozen=True):
    """Why a command failed."""

    class_: Text = msgspec.field(name="class")
    message: str


class Reply(Struct, frozen=True):
    """An answer to a command."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9_.:-]{1,64}$")]
    state: Literal["accepted", "done", "failed"]
    error: ReplyError | UnsetType = UNSET
    nonce: Text = ""
    layouts: list[Layout] = []
    blocks: list[Block] = []
    registers: list[dict[str, Any]] = []


class Health(Struct, frozen=True):
    """How a box is."""

    version: Text
    uptime_s: Annotated[int, Meta(ge=0)]
    depth: Annotated[int, Meta(ge=0)]
    meters: dict[str, Any]
    clock: dict[str, Any]
    uplink: dict[str, Any]
    memory_mb: Annotated[int, Meta(ge=0)]
    nucleus: Text = ""
    hours_left: int | None = None


class ProfileFigures(Struct, frozen=True):
    """Rows of one profile on one civil day."""

    profile: Text
    due: Annotated[int, Meta(ge=0)] = 0
    captured: Annotated[int, Meta(ge=0)] = 0
    delivered: Annotated[int, Meta(ge=0)] = 0
    missing: dict[str, Annotated[int, Meta(ge=0)]] = {}
    excused: Annotated[int, Meta(ge=0)] = 0


class Completeness(Struct, frozen=True):
    """The daily figures of a gateway."""

    day: Text = ""
    profiles: list[ProfileFigures] = []


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is one.

    Attributes:
        group: reads, alarms, events, anomalies, completeness, health or replies: the third level of the topic.
        sub: the fourth level, "" without one.
        epoch, n: 0, 0 for health, which has no number and is not acknowledged.
        payload: the octets as they came.
    """

    dcu: str
    group: str
    sub: str
    epoch: int
    n: int
    sent: int
    payload: bytes
    layouts: list[Layout] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    completeness: Completeness | None = None
    reply: Reply | None = None

    @property
    def numbered(self) -> bool:
        """Is this a message that is stored under its number and acknowledged?"""
        return self.group != "health"


_head = msgspec.json.Decoder(Head)
_number = msgspec.json.Decoder(_Number)
_reads = msgspec.json.Decoder(_Reads)
_blocks = msgspec.json.Decoder(_Blocks)
_layout_list = msgspec.json.Decoder(list[Layout])
_block_list = msgspec.json.Decoder(Annotated[list[Block], Meta(min_length=1)])
_alarms = msgspec.json.Decoder(_Alarms)
_alarm_list = msgspec.json.Decoder(Annotated[list[Alarm], Meta(min_length=1)])
_storm = msgspec.json.Decoder(_Storm)
_events = msgspec.json.Decoder(_Events)
_findings = msgspec.json.Decoder(_Findings)
_reply = msgspec.json.Decoder(Reply)
_health = msgspec.json.Decoder(Health)
_completeness = msgspec.json.Decoder(Completeness)

_HEX = re.compile("([0-9a-f]{2}){0,64}")


def split_topic(topic: str, prefix: str) -> tuple[str, str, str]:
    """Gateway, group and sub of an upward topic.

    Raises:
        Refused: no topic of DESIGN section 5.
    """
    levels = topic.split("/")
    if len(levels) in (3, 4) and levels[0] == prefix and levels[1]:
        dcu, group, sub = levels[1], levels[2], levels[3] if len(levels) == 4 else ""
        if (
            (group == "reads" and sub in READS)
            or (group == "alarms" and sub in ALARM_CLASSES)
            or (group == "replies" and sub)
            or (group in ("events", "anomalies", "completeness", "health") and not sub)
        ):
            return dcu, group, sub
    raise Refused("schema-invalid", f"topic {topic[:120]!r} carries nothing upward")


def open_message(topic: str, payload: bytes, prefix: str = "dcu") -> Message:
    """The message that `payload` is, published on `topic`.

    Raises:
        Refused: for every reason there is.
    """
    epoch, n = _number_of(payload)
    try:
        return _open(topic, payload, prefix)
    except Refused as refused:
        refused.epoch, refused.n = epoch, n
        raise
    except msgspec.ValidationError as error:
        raise Refused("schema-invalid", str(error), epoch, n) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("not-json", str(error), epoch, n) from None


def _number_of(payload: bytes) -> tuple[int | None, int | None]:
    try:
        number = _number.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, None
    usable = all(type(x) is int and 0 <= x < 1 << 53 for x in (number.epoch, number.n))
    return (number.epoch, number.n) if usable else (None, None)


def _open(topic: str, payload: bytes, prefix: str) -> Message:
    dcu, group, sub = split_topic(topic, prefix)
    if len(payload) > MAX_PAYLOAD:
        raise Refused("too-large", f"{len(payload)} octets, {MAX_PAYLOAD} are allowed")
    head = _head.decode(payload)
    if head.schema != SCHEMAS[group]:
        raise Refused(
            "schema-invalid", f"schema {head.schema!r} under {group}, not {SCHEMAS[group]!r}"
        )
    if head.dcu != dcu:
        raise Refused("dcu-mismatch", f"says it is of {head.dcu!r}, published by {dcu!r}")
    if head.kind != (sub or group):
        raise Refused("schema-invalid", f"kind {head.kind!r} under {group}/{sub}")
    if group == "health":
        _health.decode(payload)
        return Message(dcu, group, sub, 0, 0, head.sent, payload)
    if isinstance(head.epoch, UnsetType) or isinstance(head.n, UnsetType):
        raise Refused("schema-invalid", "Object missing required field `epoch` or `n`")
    layouts: list[Layout] = []
    blocks: list[Block] = []
    alarms: list[Alarm] = []
    events: list[Event] = []
    findings: list[Finding] = []
    completeness = None
    reply = None
    if group == "reads":
        layouts, blocks = _open_reads(payload)
        for i, block in enumerate(blocks):
            _check_block(block, layouts, f"blocks[{i}]", sub)
    elif group == "alarms":
        alarms = _open_alarms(payload, sub)
    elif group == "events":
        events = _events.decode(payload).events
    elif group == "anomalies":
        findings = _findings.decode(payload).findings
    elif group == "completeness":
        completeness = _completeness.decode(payload)
    elif group == "replies":
        reply = _reply.decode(payload)
        if reply.id != sub:
            raise Refused("schema-invalid", f"answers {reply.id!r} on the topic of {sub!r}")
        for i, block in enumerate(reply.blocks):
            _check_block(block, reply.layouts, f"blocks[{i}]", sub)
    return Message(
        dcu, group, sub, head.epoch, head.n, head.sent, payload,
        layouts, blocks, alarms, events, findings, completeness, reply,
    )  # fmt: skip


def _open_reads(payload: bytes) -> tuple[list[Layout], list[Block]]:
    reads = _reads.decode(payload)
    if isinstance(reads.enc, UnsetType):
        if isinstance(reads.layouts, UnsetType) or isinstance(reads.blocks, UnsetType):
            raise Refused("schema-invalid", "Object missing required field `layouts` or `blocks`")
        return _layout_list.decode(reads.layouts), _block_list.decode(reads.blocks)
    if reads.enc != "gzip+base64":
        raise Refused("schema-invalid", f"enc {reads.enc[:32]!r}, not 'gzip+base64'")
    if isinstance(reads.data, UnsetType):
        raise Refused("schema-invalid", "Object missing required field `data`")
    if not isinstance(reads.layouts, UnsetType) or not isinstance(reads.blocks, UnsetType):
        raise Refused("schema-invalid", "plain and encoded blocks in one message")
    inner = _blocks.decode(inflate(reads.data))
    return inner.layouts, inner.blocks


def inflate(data: str) -> bytes:
    """The octets behind base64 and gzip, at most MAX_INFLATED of them.

    Raises:
        Refused: not base64, not gzip, cut short, followed by something, or too much.
    """
    try:
        zipped = base64.b64decode(data, validate=True)
        unzip = zlib.decompressobj(wbits=31)
        out = unzip.decompress(zipped, MAX_INFLATED)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise Refused("schema-invalid", f"data: {error}") from None
    if unzip.unconsumed_tail:
        raise Refused("too-large", f"data inflates to more than {MAX_INFLATED} octets")
    if not unzip.eof or unzip.unused_data:
        raise Refused("schema-invalid", "data: cut short, or more follows")
    return out


def _check_block(block: Block, layouts: list[Layout], where: str, kind: str) -> None:
    def need(condition: object, problem: str) -> None:
        if not condition:
            raise Refused("schema-invalid", f"{problem} - at `$.{where}`")

    need(block.layout < len(layouts), f"layout {block.layout} of {len(layouts)}")
    layout, rows = layouts[block.layout], block.rows
    need(
        isinstance(block.t, UnsetType) != isinstance(block.t0, UnsetType),
        "exactly one of t and t0 is needed",
    )
    if isinstance(block.t, UnsetType):
        need(layout.period or rows == 1, "t0 without a period")
        need(kind not in ("midnight", "billing"), "daily and monthly rows carry t")
    else:
        need(len(block.t) == rows, f"{len(block.t)} times for {rows} rows")
    for row, k in block.occ:
        need(0 <= row < rows and k > 0, f"occ {[row, k]}")
    for first, count, bits in block.flags:
        need(
            first >= 0 and 0 < count <= rows - first and 0 < bits < 1 << 31,
            f"flags {[first, count, bits]}",
        )
    if block.occ or not isinstance(block.t, UnsetType):
        stamps = set(zip(block.times(layout.period), block.occurrences(), strict=True))
        need(len(stamps) == rows, "two rows with one time and occurrence")
    need(
        len(block.values) == len(layout.cols),
        f"{len(block.values)} columns, {len(layout.cols)} in the layout",
    )
    for column, values in zip(layout.cols, block.values, strict=True):
        need(len(values) == rows, f"{len(values)} values of {column.obis} for {rows} rows")
        if column.unit == "hex":
            fine = all(v is None or (type(v) is str and _HEX.fullmatch(v)) for v in values)
            need(fine, f"{column.obis} is hex: at most 64 octets in lower case")
        else:
            need(
                not any(type(v) is str for v in values),
                f"{column.obis} holds text, its unit is {column.unit!r}",
            )


def _open_alarms(payload: bytes, class_: str) -> list[Alarm]:
    raw = bytes(_alarms.decode(payload).alarms)
    if raw.lstrip()[:1] == b"{":
        storm = _storm.decode(raw)
        if not len(storm.at) == len(storm.meters) == len(storm.ids) > 0:
            raise Refused("schema-invalid", "compact alarms of different lengths, or none")
        return [
            Alarm(
                id=id_,
                meter=meter,
                class_=class_,
                code=storm.code,
                at=at,
                heard=at,
                authenticated=True,
                inferred=False,
            )
            for at, meter, id_ in zip(storm.at, storm.meters, storm.ids, strict=True)
        ]
    alarms: list[Alarm] = _alarm_list.decode(raw)
    for i, alarm in enumerate(alarms):
        if alarm.class_ != class_:
            raise Refused(
                "schema-invalid",
                f"class {alarm.class_!r} under alarms/{class_} - at `$.alarms[{i}]`",
            )
    return alarms
