"""The segment codec: blocks of one group commit as compressed integer columns in one BLOB.

Layout of a body: version (1 octet) | CRC-32 of the rest (4, big endian) | raw deflate of the payload.
Payload: length of the head (4) | head (MessagePack array, `_Head`) | integer streams, in this order: the fixed fields of
the blocks, the times of irregular blocks, then per layout the columns. A stream is a width (1 octet) and the zigzag
integers as byte planes of that width; width 0 = all the same, followed by the one value (8 octets).

A column is stored as its first values per block and the differences along rows, or plain, whichever is smaller. What is no
64-bit integer (null, text, larger integers) stands in the head, its place in the stream repeats the value before it.
Meters, devices and layouts are numbers into tables of the journal file.

Limits: a body decodes to at most MAX_PAYLOAD octets. Release N reads every version up to its own.
"""

from __future__ import annotations

import zlib
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_core.domain import Block, as_list
from edge_core.errors import JournalDamaged, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edge_core.domain import Layout, Values

VERSION = 1
MAX_PAYLOAD = 64 << 20
LONG_ROWS = 32  # blocks from here on come back as numpy arrays

Ints = npt.NDArray[np.int64]

_FIXED = ("device", "layout", "rows", "t0", "tz", "multiplier", "read_at", "proven_at")


class Odd(msgspec.Struct, array_like=True):
    """Cells of a column that are no 64-bit integers, by position in the concatenated column.

    Attributes:
        nulls: (first, count) runs.
        texts: (position, text).
        big: (position, decimal text) of integers beyond 64 bits.
    """

    nulls: list[tuple[int, int]]
    texts: list[tuple[int, str]]
    big: list[tuple[int, str]]


class _Head(msgspec.Struct, array_like=True):
    kind: str
    blocks: int
    irregular: list[int]  # blocks whose times are a stream
    occ: list[tuple[int, tuple[tuple[int, int], ...]]]
    flags: list[tuple[int, tuple[tuple[int, int, int], ...]]]
    q: list[tuple[int, dict[str, Any]]]
    watermarks: list[tuple[int, int]]
    odd: list[tuple[int, int, Odd]]  # (layout number in order of appearance, column, cells)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


def check(block: Block) -> None:
    """Refuse what the codec could not give back, before the block is accepted.

    Raises:
        ValueError, TypeError: columns and rows disagree in number, or a cell or field is no integer, null or text.
    """
    rows = len(block.times)
    if len(block.columns) != len(block.layout.cols):
        raise ValueError(
            f"meter {block.meter}: {len(block.columns)} columns for a layout of {len(block.layout.cols)}"
        )
    array("q", as_list(block.times))
    array("q", (block.tz, block.multiplier, block.read_at, block.proven_at))
    for column in block.columns:
        if len(column) != rows:
            raise ValueError(
                f"meter {block.meter}: a column of {len(column)} values for {rows} rows"
            )
        if isinstance(column, np.ndarray):
            if column.dtype != np.int64:
                raise TypeError(f"meter {block.meter}: a column of {column.dtype}, not int64")
            continue
        try:
            array("q", column)  # type: ignore[type-var]
        except (TypeError, OverflowError):
            for cell in column:
                if cell is not None and not isinstance(cell, int | str):
                    raise TypeError(
                        f"meter {block.meter}: a {type(cell).__name__} among the values"
                    ) from None
    if block.q is not None:
        _encoder.encode(block.q)


def encode(
    blocks: Sequence[Block],
    devices: Sequence[int],
    layouts: Sequence[int],
    watermarks: Iterable[tuple[int, int]] = (),
) -> bytes:
    """Encode blocks of one kind.

    Args:
        devices: number of the device of each block.
        layouts: number of the layout of each block.
        watermarks: (block, watermark) where it is not the newest row of the block.
    """
    fixed: list[int] = []
    irregular: list[int] = []
    times: list[int] = []
    groups: dict[int, list[Block]] = {}
    for i, block in enumerate(blocks):
        rows, period, own = len(block.times), block.layout.period, as_list(block.times)
        t0 = own[0] if own else 0
        if not period or own != list(range(t0, t0 + rows * period, period)):
            irregular.append(i)
            times += own
        fixed += (devices[i], layouts[i], rows, t0, block.tz, block.multiplier)
        fixed += (block.read_at, block.proven_at)
        groups.setdefault(layouts[i], []).append(block)
    table = np.frombuffer(array("q", fixed), np.int64).reshape(-1, len(_FIXED))
    streams = [_pack(_steps(table[:, f])) for f in range(len(_FIXED))]
    streams.append(_pack(_steps(np.frombuffer(array("q", times), np.int64))))
    odd: list[tuple[int, int, Odd]] = []
    for g, group in enumerate(groups.values()):
        firsts = _starts([b.rows for b in group])
        for c in range(len(group[0].columns)):
            flat, cells = _flatten([b.columns[c] for b in group])
            if cells is not None:
                odd.append((g, c, cells))
            streams += _pack_column(flat, firsts)
    head = _encoder.encode(
        _Head(
            kind=blocks[0].kind,
            blocks=len(blocks),
            irregular=irregular,
            occ=[(i, tuple(b.occ)) for i, b in enumerate(blocks) if b.occ],
            flags=[(i, tuple(b.flags)) for i, b in enumerate(blocks) if b.flags],
            q=[(i, b.q) for i, b in enumerate(blocks) if b.q is not None],
            watermarks=list(watermarks),
            odd=odd,
        )
    )
    payload = b"".join((len(head).to_bytes(4, "big"), head, *streams))
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(payload) + packer.flush()
    return bytes((VERSION,)) + zlib.crc32(body).to_bytes(4, "big") + body


def decode(
    body: bytes,
    device: Callable[[int], tuple[str, str]],
    layout: Callable[[int], Layout],
) -> tuple[list[Block], list[tuple[int, int]]]:
    """The blocks of a body, and its (block, watermark) pairs.

    Args:
        device: (meter, device) of a device number.
        layout: layout of a layout number.

    Raises:
        JournalDamaged: the body does not decode, or names what does not exist.
        JournalError: written by a newer release.
    """
    if body[:1] and body[0] > VERSION:
        raise JournalError(f"segment codec {body[0]} is newer than ours ({VERSION})")
    if (
        len(body) < 5
        or body[0] != VERSION
        or zlib.crc32(body[5:]) != int.from_bytes(body[1:5], "big")
    ):
        raise JournalDamaged("a segment's checksum is wrong")
    try:
        return _decode(body, device, layout)
    except (ValueError, KeyError, IndexError, zlib.error, msgspec.MsgspecError) as error:
        raise JournalDamaged(f"a segment does not decode: {error!r}") from error


def devices(body: bytes) -> set[int]:
    """Numbers of the devices that a body has rows of; empty when it does not decode."""
    try:
        payload = zlib.decompressobj(-15).decompress(body[5:], MAX_PAYLOAD)
        end = 4 + int.from_bytes(payload[:4], "big")
        blocks = _decoder.decode(payload[4:end]).blocks
        return set(_Reader(payload, end).take(blocks).cumsum().tolist())
    except (ValueError, zlib.error, msgspec.MsgspecError):
        return set()


def _decode(
    body: bytes, device: Callable[[int], tuple[str, str]], layout: Callable[[int], Layout]
) -> tuple[list[Block], list[tuple[int, int]]]:
    unpacker = zlib.decompressobj(-15)
    payload = unpacker.decompress(body[5:], MAX_PAYLOAD)
    if not unpacker.eof:
        raise ValueError("the payload is too long or cut off")
    end = 4 + int.from_bytes(payload[:4], "big")
    head = _decoder.decode(payload[4:end])
    reader = _Reader(payload, end)
    table = [reader.take(head.blocks).cumsum().tolist() for _ in _FIXED]
    layouts, rows = table[1], table[2]
    stamps = reader.take(sum(rows[i] for i in head.irregular)).cumsum()
    times: dict[int, Ints] = {}
    at = 0
    for i in head.irregular:
        times[i] = stamps[at : at + rows[i]]
        at += rows[i]
    columns = _columns(reader, layouts, rows, layout, head.odd)
    occ, flags, q = dict(head.occ), dict(head.flags), dict(head.q)
    blocks = []
    for i, (number, kind_of, n, t0, tz, multiplier, read_at, proven_at) in enumerate(
        zip(*table, strict=True)
    ):
        meter, serial = device(number)
        columns_of = layout(kind_of)
        own = times.get(i)
        if own is None:
            stop = t0 + n * columns_of.period
            long = n >= LONG_ROWS
            stamp: Any = (np.arange if long else range)(t0, stop, columns_of.period)
        else:
            stamp = own
        blocks.append(
            Block(
                meter=meter,
                device=serial,
                kind=head.kind,
                layout=columns_of,
                times=stamp if isinstance(stamp, np.ndarray) and n >= LONG_ROWS else as_list(stamp),
                columns=columns[i],
                occ=occ.get(i, ()),
                flags=flags.get(i, ()),
                tz=tz,
                multiplier=multiplier,
                read_at=read_at,
                proven_at=proven_at,
                q=q.get(i),
            )
        )
    return blocks, head.watermarks


def _columns(
    reader: _Reader,
    layouts: list[int],
    rows: list[int],
    layout: Callable[[int], Layout],
    odd: list[tuple[int, int, Odd]],
) -> list[tuple[Values, ...]]:
    """The columns of every block, in the order of the blocks."""
    groups: dict[int, list[int]] = {}
    for i, number in enumerate(layouts):
        groups.setdefault(number, []).append(i)
    cells = {(g, c): o for g, c, o in odd}
    out: list[tuple[Values, ...]] = [()] * len(layouts)
    for g, (number, members) in enumerate(groups.items()):
        counts = [rows[i] for i in members]
        firsts = _starts(counts)
        whole: list[tuple[Ints, list[Any]]] = []
        strange: set[int] = set()
        for c in range(len(layout(number).cols)):
            flat = reader.column(sum(counts), firsts)
            values = flat.tolist()
            if (g, c) in cells:
                _restore(values, cells[g, c])
                strange.add(c)
            whole.append((flat, values))
        for i, first in zip(members, accumulate([0, *counts[:-1]]), strict=True):
            last = first + rows[i]
            out[i] = tuple(
                flat[first:last]
                if rows[i] >= LONG_ROWS and c not in strange
                else values[first:last]
                for c, (flat, values) in enumerate(whole)
            )
    return out


def _flatten(columns: Sequence[Values]) -> tuple[Ints, Odd | None]:
    """One column of all blocks, one after the other, and its cells that are no 64-bit integers."""
    if all(isinstance(c, np.ndarray) for c in columns):
        return np.concatenate(columns), None  # type: ignore[arg-type]
    flat: list[Any] = []
    for column in columns:
        flat += column.tolist() if isinstance(column, np.ndarray) else column
    try:
        return np.frombuffer(array("q", flat), np.int64), None
    except (TypeError, OverflowError):
        pass
    odd = Odd([], [], [])
    before = 0
    for i, cell in enumerate(flat):
        if cell is None:
            if odd.nulls and sum(odd.nulls[-1]) == i:
                odd.nulls[-1] = (odd.nulls[-1][0], odd.nulls[-1][1] + 1)
            else:
                odd.nulls.append((i, 1))
        elif isinstance(cell, str):
            odd.texts.append((i, cell))
        elif not -(1 << 63) <= cell < 1 << 63:
            odd.big.append((i, str(cell)))
        else:
            before = cell
        flat[i] = before
    return np.frombuffer(array("q", flat), np.int64), odd


def _restore(values: list[Any], odd: Odd) -> None:
    for first, count in odd.nulls:
        values[first : first + count] = [None] * count
    for i, text in odd.texts:
        values[i] = text
    for i, digits in odd.big:
        values[i] = int(digits)


def _starts(counts: list[int]) -> npt.NDArray[np.int64]:
    """Positions of the first rows of blocks with at least one row."""
    ends = list(accumulate(counts, initial=0))
    return np.array([at for at, n in zip(ends, counts, strict=False) if n], np.int64)


def _pack_column(flat: Ints, firsts: Ints) -> list[bytes]:
    """Either plain (marker 0) or first values and differences (marker 1)."""
    steps = _steps(flat)
    steps[firsts] = 0
    if _weight(steps) >= _weight(flat):
        return [b"\x00", _pack(flat)]
    return [b"\x01", _pack(flat[firsts]), _pack(np.delete(steps, firsts))]


def _steps(values: Ints) -> Ints:
    """First value, then the differences; they wrap around as the running sum does."""
    out = values.copy()
    out[1:] -= values[:-1]
    return out


def _weight(values: Ints) -> int:
    """About how many bits the values need."""
    return int(np.log2(np.abs(values.astype(np.float64)) + 1).sum())


def _pack(values: Ints) -> bytes:
    if not len(values):
        return b""
    if (values == values[0]).all():
        return b"\x00" + int(values[0]).to_bytes(8, "little", signed=True)
    zigzag = ((values << 1) ^ (values >> 63)).astype("<i8").view("<u8")
    width = max(1, (int(zigzag.max()).bit_length() + 7) // 8)
    planes = np.ascontiguousarray(zigzag).view(np.uint8).reshape(-1, 8)[:, :width].T
    return bytes((width,)) + planes.tobytes()


class _Reader:
    """Walks over the integer streams; every length is checked against the payload."""

    def __init__(self, payload: bytes, at: int) -> None:
        self._payload, self._at = payload, at

    def octets(self, count: int) -> bytes:
        out = self._payload[self._at : self._at + count]
        if count < 0 or len(out) != count:
            raise ValueError("a stream runs past the payload")
        self._at += count
        return out

    def take(self, count: int) -> Ints:
        if not count:
            return np.empty(0, np.int64)
        if count < 0 or count > MAX_PAYLOAD:
            raise ValueError(f"a stream of {count} values")
        width = self.octets(1)[0]
        if not width:
            return np.full(count, int.from_bytes(self.octets(8), "little", signed=True), np.int64)
        if width > 8:
            raise ValueError(f"integers of {width} octets")
        planes = np.zeros((count, 8), np.uint8)
        planes[:, :width] = (
            np.frombuffer(self.octets(width * count), np.uint8).reshape(width, count).T
        )
        zigzag = planes.view("<u8").reshape(-1)
        odd = (zigzag & np.uint64(1)).astype(np.bool_)
        half = (zigzag >> np.uint64(1)).view(np.int64)
        out: Ints = np.where(odd, ~half, half)
        return out

    def column(self, count: int, firsts: Ints) -> Ints:
        if self.octets(1) == b"\x00":
            return self.take(count)
        heads = self.take(len(firsts))
        steps = self.take(count - len(firsts))
        out = np.empty(count, np.int64)
        inner = np.ones(count, np.bool_)
        inner[firsts] = False
        out[inner] = steps
        # a running sum over everything, with each block's head made relative to the sum before it
        out[firsts] = 0
        running = out.cumsum()
        lengths = np.diff(np.append(firsts, count))
        running += np.repeat(heads - running[firsts], lengths)
        return running
