"""Profile buffers of one skeleton, all rows alike: checked as a whole, taken apart as a whole.

Invariant: `fits` compares every tag, length and count of the buffer, in every row, before `decode` reads a value.
"""

from __future__ import annotations

import abc
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from edge_core.domain import Layout, Values
from edge_core.domain.block import Times, runs_of
from edge_core.protocols.dlms.layouts import INT, STRING, RowLayout, cell_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_core.protocols.dlms.profile import Plan

NUMPY_CODES: Final = {
    c: np.dtype(">" + n)
    for c, n in zip("bBhHiIq", ("i1", "u1", "i2", "u2", "i4", "u4", "i8"), strict=True)
}


class Rows(msgspec.Struct, frozen=True):
    """What a buffer decodes to; `edge_core.domain.Block` says what the fields mean.

    Attributes:
        layout: columns with the units that the octets confirmed.
        unplaced: rows left out, for their clock names no instant.
    """

    layout: Layout
    times: Times
    columns: tuple[Values, ...]
    occ: tuple[tuple[int, int], ...]
    flags: tuple[tuple[int, int, int], ...]
    tz: int
    unplaced: int


class Clocks(NamedTuple):
    """A clock column, decoded: kept by its octets."""

    times: Times
    occ: tuple[tuple[int, int], ...]
    flags: tuple[tuple[int, int, int], ...]
    bits: tuple[int, ...]  # the same per row, () when there are none
    tz: int
    keep: tuple[int, ...] | None  # rows in the order they are published; None = as in the buffer
    turned: bool  # the whole buffer is newest first
    unplaced: int


class Shape(abc.ABC):
    """A buffer of so many rows of one row layout: how it is checked and taken apart."""

    __slots__ = ("at", "convert", "header", "layout", "plan", "row", "rows")

    def __init__(self, plan: Plan, rows: int, at: int, row: RowLayout, header: bytes) -> None:
        self.plan, self.rows, self.at, self.row, self.header = plan, rows, at, row, header
        kinds = tuple(row.elements[i].kind for i in plan.values)
        self.layout = plan.layout_of(kinds)
        # columns that are not plain integers need one more step, by position in the block
        self.convert: tuple[tuple[int, Callable[[Any], Values]], ...] = tuple(
            (k, converter(plan, i, kind))
            for k, (i, kind) in enumerate(zip(plan.values, kinds, strict=True))
            if kind != INT
        )

    @abc.abstractmethod
    def fits(self, buffer: bytes) -> bool:
        """Does every tag, length and count of the buffer stand where this shape has it?"""

    @abc.abstractmethod
    def decode(self, buffer: bytes) -> Rows:
        """The rows of a buffer that fits."""

    def finish(self, clock: Clocks, columns: list[Any], status: Sequence[Any] | None) -> Rows:
        """Order, flags and conversions that the usual buffer does not need."""
        for k, convert in self.convert:
            columns[k] = convert(columns[k])
        if clock.keep is not None:
            columns = [[c[i] for i in clock.keep] for c in (list(c) for c in columns)]
        elif clock.turned:
            columns = [c[::-1] for c in columns]
        flags = clock.flags
        if status is not None:
            order = clock.keep if clock.keep is not None else range(self.rows)
            cells = list(status)[::-1] if clock.turned and clock.keep is None else status
            bits = clock.bits or (0,) * len(order)
            lookup = self.plan.status_flags
            flags = runs_of([b | lookup(cells[i]) for b, i in zip(bits, order, strict=True)])
        return Rows(
            self.layout, clock.times, tuple(columns), clock.occ, flags, clock.tz, clock.unplaced
        )


def converter(plan: Plan, index: int, kind: int) -> Callable[[Any], Values]:
    """What turns the raw cells of one column, as struct gives them, into what travels."""

    def convert(raw: Any) -> Values:
        return plan.convert(index, kind, [cell_of(kind, value) for value in raw])

    return convert


class ShortShape(Shape):
    """A few rows: one comparison of the whole buffer, one `struct.unpack`."""

    __slots__ = ("columns", "mask", "skeleton", "take_clock", "take_status", "unpack")

    def __init__(self, plan: Plan, rows: int, at: int, row: RowLayout, header: bytes) -> None:
        super().__init__(plan, rows, at, row, header)
        row_mask = row.mask.to_bytes(row.size, "big")
        row_skeleton = row.skeleton.to_bytes(row.size, "big")
        self.mask = int.from_bytes(b"\xff" * at + row_mask * rows, "big")
        self.skeleton = int.from_bytes(header + row_skeleton * rows, "big")
        self.unpack = struct.Struct(f">{at}x" + row.format() * rows).unpack
        step = len(row.elements)
        self.take_clock = slice(plan.clock, None, step)
        self.take_status = slice(plan.status, None, step) if plan.status >= 0 else None
        self.columns = tuple(slice(i, None, step) for i in plan.values)

    def fits(self, buffer: bytes) -> bool:
        return int.from_bytes(buffer, "big") & self.mask == self.skeleton

    def decode(self, buffer: bytes) -> Rows:
        flat = self.unpack(buffer)
        cells = flat[self.take_clock]
        clock = self.plan.known_clocks.get(cells) or self._clocks_of(cells)
        status = flat[self.take_status] if self.take_status is not None else None
        if status is not None and not any(status):
            status = None
        if self.convert or clock.keep is not None or clock.turned or status is not None:
            return self.finish(clock, [flat[c] for c in self.columns], status)
        return Rows(
            self.layout,
            clock.times,
            tuple([flat[c] for c in self.columns]),
            clock.occ,
            clock.flags,
            clock.tz,
            clock.unplaced,
        )

    def _clocks_of(self, cells: tuple[Any, ...]) -> Clocks:
        if all(isinstance(c, bytes) for c in cells):
            return self.plan.clocks(cells, self.rows)
        return self.plan.place([None] * self.rows)


class LongShape(Shape):
    """Many rows: each tag octet is compared in all rows at once, columns are strided views."""

    __slots__ = ("clock", "groups", "order", "others", "status", "tags")

    def __init__(self, plan: Plan, rows: int, at: int, row: RowLayout, header: bytes) -> None:
        super().__init__(plan, rows, at, row, header)
        self.tags = tuple(
            (slice(at + i, None, row.size), octet * rows) for i, octet in row.masked_octets
        )
        clock = row.elements[plan.clock]
        width = struct.calcsize(clock.code) if clock.kind == STRING else 0
        self.clock = (np.dtype(f"V{width}"), at + clock.offset) if width else None
        # integer columns of one type at equal distances become one two-dimensional view
        self.groups: list[
            tuple[np.dtype[Any], int, int, int]
        ] = []  # type, columns, offset, distance
        self.others: list[tuple[int, struct.Struct | None, int]] = []
        self.order: list[int] = []
        for k, i in enumerate(plan.values):
            e = row.elements[i]
            dtype = NUMPY_CODES.get(e.code) if e.kind == INT else None
            if dtype is None:
                self.others.append((k, None, i))
                continue
            self.order.append(k)
            start = at + e.offset
            if self.groups:
                last, count, first, distance = self.groups[-1]
                step = start - (first + (count - 1) * distance)
                if last == dtype and (count == 1 or step == distance):
                    self.groups[-1] = (last, count + 1, first, step if count == 1 else distance)
                    continue
            self.groups.append((dtype, 1, start, 0))
        e = row.elements[plan.status] if plan.status >= 0 else row.elements[plan.clock]
        self.status = (
            slice(at + e.offset, None, row.size) if plan.status >= 0 and e.code == "B" else None
        )

    def fits(self, buffer: bytes) -> bool:
        if not buffer.startswith(self.header):
            return False
        return all(buffer[where] == octets for where, octets in self.tags)

    def decode(self, buffer: bytes) -> Rows:
        rows, size = self.rows, self.row.size
        columns: list[Any] = []
        for dtype, count, offset, distance in self.groups:
            if count == 1:
                columns.append(np.ndarray((rows,), dtype, buffer, offset, (size,)).astype(np.int64))
            else:
                columns.extend(
                    np.ndarray((count, rows), dtype, buffer, offset, (distance, size)).astype(
                        np.int64
                    )
                )
        plan = self.plan
        status: Sequence[Any] | None = None
        if self.status is not None:
            status = buffer[self.status]
            if status.count(0) == rows:
                status = None
        elif plan.status >= 0:
            status = self._cells(buffer, plan.status)
        if self.others:
            integers = columns
            columns = [None] * len(plan.values)
            for k, column in zip(self.order, integers, strict=True):
                columns[k] = column
            for k, _, i in self.others:
                columns[k] = self._cells(buffer, i)
        if self.clock is None:
            clock = plan.place([None] * rows)
        else:
            octets = np.ndarray((rows,), self.clock[0], buffer, self.clock[1], (size,)).tobytes()
            clock = plan.known_clocks.get(octets) or plan.clocks(octets, rows)
        if self.convert or clock.keep is not None or clock.turned or status is not None:
            return self.finish(clock, columns, status)
        return Rows(
            self.layout,
            clock.times,
            tuple(columns),
            clock.occ,
            clock.flags,
            clock.tz,
            clock.unplaced,
        )

    def _cells(self, buffer: bytes, index: int) -> list[Any]:
        """The raw cells of one column, whatever its type."""
        e = self.row.elements[index]
        unpack = struct.Struct(">" + e.code).unpack_from
        start = self.at + e.offset
        return [unpack(buffer, start + r * self.row.size)[0] for r in range(self.rows)]
