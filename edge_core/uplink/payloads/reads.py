"""reads/1: blocks of one kind, their layouts once per message, as gzip+base64 above 4,000 octets.

A block is encoded when it is packed into a `Piece`: all but the index of its layout, which is written when the message
is put together. A piece never exceeds the room that it was cut for, so that a message with a single piece always fits; a
block with more rows is cut by rows. Deflate is deterministic (no time stamp), so the same pieces give the same octets.

Members of a block stand in the order that compresses best (benchmarks/bytes_per_reading.py): what neighbours have in
common first, then what differs in its last digits, the values last. Together with Z_FILTERED, which does not spend a
reference on three or four equal digits, that saves a tenth.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from edge_core.domain import as_list
from edge_core.uplink.payloads.envelope import Envelope, Instant, Natural, ObisText, exact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_core.domain import Block, Layout

Kind = Literal["interval", "midnight", "billing", "instantaneous"]
KINDS: tuple[str, ...] = ("interval", "midnight", "billing", "instantaneous")

PLAIN_LIMIT = 4_000  # octets of layouts and blocks that travel as they are
ALWAYS_TIMED = frozenset(("midnight", "billing"))  # daily and monthly rows always carry t


class ColumnSpec(msgspec.Struct, frozen=True, array_like=True):
    """`[obis, unit, scaler]`, and the attribute if it is not 2."""

    obis: ObisText
    unit: Literal[
        "Wh", "varh", "VAh", "W", "var", "VA", "V", "A", "Hz", "s", "min", "h", "deg", "degC", "%", "count", "",
        "epoch", "bits", "hex",
    ]  # fmt: skip
    scaler: Annotated[int, msgspec.Meta(ge=-128, le=127)]
    attribute: Annotated[int, msgspec.Meta(ge=-128, le=127)] = 2


class LayoutSpec(msgspec.Struct, frozen=True):
    """Columns of a profile in meter order; `period` in seconds, 0 = irregular."""

    profile: ObisText
    period: Natural
    cols: Annotated[list[ColumnSpec], msgspec.Meta(min_length=1)]


class BlockSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Consecutive rows of one profile of one meter.

    Attributes:
        layout: index into `layouts`.
        t0: capture time of the first row, the end of its interval; row i was captured at t0 + i * period.
        t: capture time of every row; exactly one of t0 and t is there.
        rows: number of rows.
        values: one list per column, each with one integer (text in a column of unit hex) or null per row.
        occ: [row, k] for rows whose time stands in the buffer before them.
        flags: [first row, count, bits] runs; absent = good.
        tz: minutes east of UTC.
        multiplier: CT x PT as configured: a check, never applied by the gateway.
        read_at: when the reply came.
        q: quality: clock offset, arrival; samples: {"at": epoch ms, "bound": [lo, hi]}.
    """

    meter: Annotated[str, msgspec.Meta(min_length=1)]
    device: str
    layout: Natural
    t0: Instant | UnsetType = UNSET
    t: list[Instant] | UnsetType = UNSET
    rows: Annotated[int, msgspec.Meta(ge=1)]
    tz: Annotated[int, msgspec.Meta(ge=-900, le=900)]
    multiplier: int = 1
    read_at: Instant
    occ: list[tuple[int, int]] = []
    flags: list[tuple[int, int, int]] = []
    values: Annotated[list[list[int | str | None]], msgspec.Meta(min_length=1)]
    q: dict[str, Any] | UnsetType = UNSET


class Content(msgspec.Struct, frozen=True):
    """What `data` decodes to."""

    layouts: list[LayoutSpec]
    blocks: Annotated[list[BlockSpec], msgspec.Meta(min_length=1)]


class Reads(Envelope, frozen=True, kw_only=True, omit_defaults=True):
    """Either layouts and blocks, or `enc` and `data`."""

    schema: Literal["opendcu.reads/1"]
    kind: Kind
    layouts: list[LayoutSpec] | UnsetType = UNSET
    blocks: Annotated[list[BlockSpec], msgspec.Meta(min_length=1)] | UnsetType = UNSET
    enc: Literal["gzip+base64"] | UnsetType = UNSET
    data: str | UnsetType = UNSET

    def content(self) -> Content:
        """Layouts and blocks, whichever way they travelled.

        Raises:
            ValueError: neither way is complete, or `data` is no gzip of at most 64 MiB.
            msgspec.ValidationError: the content is not what the schema says.
        """
        if self.data is UNSET:
            if self.layouts is UNSET or self.blocks is UNSET:
                raise ValueError("neither layouts and blocks nor data")
            return Content(self.layouts, self.blocks)
        engine = zlib.decompressobj(31)
        try:
            octets = engine.decompress(base64.b64decode(self.data, validate=True), 64 << 20)
        except zlib.error as error:
            raise ValueError(f"data: {error}") from error
        if not engine.eof:
            raise ValueError("data: cut short, or more than 64 MiB")
        return msgspec.json.decode(octets, type=Content)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one block as JSON, but for the index of its layout.

    Attributes:
        kind: kind of reads.
        layout: the columns.
        sort_key: pieces that resemble each other stand together; that compresses better.
        tail: what follows on `{"layout":<index>`, from the comma on.
    """

    kind: str
    layout: Layout
    sort_key: tuple[str, str, int]
    tail: bytes

    @property
    def size(self) -> int:
        """Octets in the message, with the comma before it, before compression."""
        return len(self.tail) + 15


def layout_json(layout: Layout) -> dict[str, Any]:
    """The layout as it travels: attributes that are not 2 as a fourth member."""
    return {
        "profile": layout.profile,
        "period": layout.period,
        "cols": [
            [c.obis, c.unit, c.scaler]
            if c.attribute == 2
            else [c.obis, c.unit, c.scaler, c.attribute]
            for c in layout.cols
        ],
    }


def layout_size(layout: Layout) -> int:
    """Octets that the layout adds to a message, before compression."""
    return len(msgspec.json.encode(layout_json(layout))) + 1


def block_json(block: Block, layout: int) -> dict[str, Any]:
    """The block as a member of `blocks`."""
    times = as_list(block.times)
    out: dict[str, Any] = {"layout": layout, "rows": len(times), "tz": block.tz}
    if block.multiplier != 1:
        out["multiplier"] = block.multiplier
    if steady(block):
        out["t0"] = times[0]
    else:
        out["t"] = times
    out["read_at"] = block.read_at
    out["meter"] = block.meter
    out["device"] = block.device
    if block.q:
        out["q"] = exact(block.q)
    if block.occ:
        out["occ"] = block.occ
    if block.flags:
        out["flags"] = block.flags
    out["values"] = [as_list(column) for column in block.columns]
    return out


def steady(block: Block) -> bool:
    """May the times travel as t0 alone?"""
    period = block.layout.period
    if block.kind in ALWAYS_TIMED or period <= 0:
        return False
    times = block.times
    if isinstance(times, np.ndarray):
        return bool((np.diff(times) == period).all())
    return all(later - earlier == period for earlier, later in itertools.pairwise(times))


def piece_of(block: Block) -> Piece:
    """Encode one block.

    Raises:
        ValueError: what `q` holds is nested too deep.
        TypeError: a value is neither an integer, text nor None.
    """
    whole = msgspec.json.encode(block_json(block, 0))
    return Piece(
        block.kind,
        block.layout,
        (block.layout.digest, block.meter, int(block.times[0])),
        whole.removeprefix(b'{"layout":0'),
    )


def members(pieces: Sequence[Piece]) -> list[tuple[str, bytes]]:
    """The members of a reads message: layouts and blocks, or enc and data."""
    ordered = sorted(pieces, key=lambda piece: piece.sort_key)
    index: dict[str, int] = {}
    layouts: list[dict[str, Any]] = []
    blocks: list[bytes] = []
    for piece in ordered:
        digest = piece.layout.digest
        if digest not in index:
            index[digest] = len(layouts)
            layouts.append(layout_json(piece.layout))
        blocks.append(b'{"layout":%d%b' % (index[digest], piece.tail))
    plain_layouts = msgspec.json.encode(layouts)
    plain_blocks = b"[" + b",".join(blocks) + b"]"
    if len(plain_layouts) + len(plain_blocks) > PLAIN_LIMIT:
        text = b'{"layouts":%b,"blocks":%b}' % (plain_layouts, plain_blocks)
        data = base64.b64encode(gzip(text))
        if len(data) + 30 < len(text):
            return [("enc", b'"gzip+base64"'), ("data", b'"%b"' % data)]
    return [("layouts", plain_layouts), ("blocks", plain_blocks)]


def gzip(octets: bytes) -> bytes:
    """Deflate in a gzip frame without time stamp: the same octets give the same octets."""
    engine = zlib.compressobj(9, zlib.DEFLATED, 31, 8, zlib.Z_FILTERED)
    return engine.compress(octets) + engine.flush()
