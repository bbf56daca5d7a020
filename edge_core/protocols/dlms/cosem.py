"""What requests name: attributes, methods, and which rows of a profile.

Source: DLMS UA Green Book ed. 9, clause 9.5 (Cosem-Attribute-Descriptor, Selective-Access-Descriptor); Blue Book,
class_id 7 (range_descriptor, entry_descriptor).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import msgspec

from edge_core.domain import Obis, obis_from_bytes, obis_to_bytes
from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import Data, DataType

_DESCRIPTOR: Final = struct.Struct(">H6sb")
DESCRIPTOR_OCTETS: Final = _DESCRIPTOR.size

BY_RANGE: Final = 1
BY_ENTRY: Final = 2


class _Descriptor(msgspec.Struct, frozen=True):
    class_id: int
    obis: Obis
    index: int

    def to_bytes(self) -> bytes:
        """class-id, logical name, index: 9 octets."""
        return _descriptor(self.class_id, self.obis, self.index)

    def __str__(self) -> str:
        return f"{self.obis}:{self.index}"


class Attribute(_Descriptor, frozen=True):
    """An attribute of a COSEM object; index 0 = all of them."""


class Method(_Descriptor, frozen=True):
    """A method of a COSEM object."""


@lru_cache(maxsize=1024)
def _descriptor(class_id: int, obis: Obis, index: int) -> bytes:
    try:
        return _DESCRIPTOR.pack(class_id, obis_to_bytes(obis), index)
    except (ValueError, struct.error) as cause:
        raise LocalProtocolError(f"class {class_id}, {obis}, index {index}: {cause}") from None


def read_descriptor(octets: bytes, offset: int) -> tuple[int, Obis, int]:
    """class-id, logical name and index at `offset`.

    Raises:
        MalformedApdu: it is cut.
    """
    try:
        class_id, name, index = _DESCRIPTOR.unpack_from(octets, offset)
    except struct.error:
        raise MalformedApdu("a descriptor is cut", offset) from None
    return class_id, obis_from_bytes(name), index


class CaptureObject(msgspec.Struct, frozen=True):
    """A column of a profile as the meter names it; data_index 0 = the whole attribute, n = its nth element."""

    class_id: int
    obis: Obis
    attribute: int
    data_index: int = 0

    def to_data(self) -> Data:
        """structure(long-unsigned, octet-string, integer, long-unsigned)."""
        return axdr.structure(
            axdr.long_unsigned(self.class_id),
            axdr.octet_string(obis_to_bytes(self.obis)),
            axdr.integer(self.attribute),
            axdr.long_unsigned(self.data_index),
        )

    @classmethod
    def from_data(cls, data: Data) -> CaptureObject:
        """From a structure of at least four fields: push object lists have six since 2014.

        Raises:
            MalformedApdu: something else.
        """
        fields = data.plain()
        if (
            data.tag == DataType.STRUCTURE
            and len(fields) >= 4
            and isinstance(fields[0], int)
            and isinstance(fields[1], bytes)
            and len(fields[1]) == 6
            and isinstance(fields[2], int)
            and isinstance(fields[3], int)
        ):
            return cls(fields[0], obis_from_bytes(fields[1]), fields[2], fields[3])
        raise MalformedApdu("a capture object is (class, logical name, attribute, data index)")


class RangeSelector(msgspec.Struct, frozen=True):
    """Rows whose restricting object (usually the clock) lies between two values; some meters leave out `start` itself.

    Attributes:
        restricting: the column that is compared.
        start: first value, in the style that the meter compares (usually a date-time as octet-string).
        end: last value.
        columns: which columns; none = all.
    """

    restricting: CaptureObject
    start: Data
    end: Data
    columns: tuple[CaptureObject, ...] = ()

    def to_bytes(self) -> bytes:
        """Selector 1 and its parameters."""
        return b"".join(
            (
                bytes((BY_RANGE, DataType.STRUCTURE, 4)),
                _encoded(self.restricting),
                axdr.encode(self.start),
                axdr.encode(self.end),
                axdr.encode(axdr.array(column.to_data() for column in self.columns)),
            )
        )


@lru_cache(maxsize=64)
def _encoded(restricting: CaptureObject) -> bytes:
    """The clock of a model is asked for in every read."""
    return axdr.encode(restricting.to_data())


class EntrySelector(msgspec.Struct, frozen=True):
    """Rows by position, 1 = first in the sort order of the meter; 0 as last = to the end.

    Attributes:
        first: first row.
        last: last row; 0 = the last.
        first_column: first column.
        last_column: last column; 0 = the last.
    """

    first: int
    last: int = 0
    first_column: int = 1
    last_column: int = 0

    def to_bytes(self) -> bytes:
        """Selector 2 and its parameters."""
        return bytes((BY_ENTRY,)) + axdr.encode(
            axdr.structure(
                axdr.double_long_unsigned(self.first),
                axdr.double_long_unsigned(self.last),
                axdr.long_unsigned(self.first_column),
                axdr.long_unsigned(self.last_column),
            )
        )


class OtherSelector(msgspec.Struct, frozen=True):
    """A selector of another class, its parameters untouched."""

    number: int
    parameters: Data

    def to_bytes(self) -> bytes:
        """The selector and its parameters."""
        return bytes((self.number,)) + axdr.encode(self.parameters)


Selector = RangeSelector | EntrySelector | OtherSelector


def encode_selection(selector: Selector | None) -> bytes:
    """The optional selective access descriptor."""
    return b"\x00" if selector is None else b"\x01" + selector.to_bytes()


def read_selection(octets: bytes, offset: int) -> tuple[Selector | None, int]:
    """The optional selective access descriptor at `offset`, and the offset behind it.

    Raises:
        MalformedApdu: it is cut, or neither 00 nor 01.
    """
    present = octets[offset : offset + 2]
    if present[:1] == b"\x00":
        return None, offset + 1
    if len(present) < 2 or present[0] != 1:
        raise MalformedApdu("access selection is neither absent (00) nor present (01)", offset)
    return read_selector(octets, offset + 1)


def read_selector(octets: bytes, offset: int) -> tuple[Selector, int]:
    """The selector and its parameters at `offset`, and the offset behind them.

    Raises:
        MalformedApdu, IndexError: it is cut.
    """
    parameters, end = axdr.decode(octets, offset + 1)
    return _selector(octets[offset], parameters), end


def _selector(number: int, parameters: Data) -> Selector:
    fields = parameters.value
    if isinstance(fields, tuple) and len(fields) == 4:
        if number == BY_RANGE and isinstance(fields[3].value, tuple):
            try:
                return RangeSelector(
                    CaptureObject.from_data(fields[0]),
                    fields[1],
                    fields[2],
                    tuple(CaptureObject.from_data(column) for column in fields[3].value),
                )
            except MalformedApdu:
                return OtherSelector(number, parameters)
        numbers = parameters.plain()
        if number == BY_ENTRY and all(type(n) is int for n in numbers):
            return EntrySelector(*numbers)
    return OtherSelector(number, parameters)
