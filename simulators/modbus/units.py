"""One Modbus unit: what its registers hold at any instant, and what a sample of it may say.

Truth is a function of (unit, point, second): `Unit.words` encodes it for the wire, `Unit.truth` is the exact number that
a right decoder gets back, `Unit.agrees` judges a published sample against every second of a window.
"""

from __future__ import annotations

import datetime as dt
import struct
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

from simulators.faults import Faults
from simulators.loads import Load
from simulators.modbus.points import SUNSPEC_COMMON, SUNSPEC_MARK, Map, Point
from simulators.modbus.quantities import Quantities
from simulators.modbus.window import Channel, HistoryWindow

if TYPE_CHECKING:
    from edge_core.clock import Clock

_FLOATS = {"float32": ">f", "float64": ">d"}
_SIGNED = frozenset(("int16", "int32", "int64", "sunssf"))
_EXPONENTS = {"scale_a_sf": -2, "scale_v_sf": -1, "scale_hz_sf": -2, "scale_pf_sf": -1}
_LONGEST_WINDOW_S = 900


@dataclass
class Unit:
    """One meter on a line.

    Attributes:
        unit: the unit id.
        requests: read requests that were answered.
        window: its history, where it keeps one behind a window.
    """

    id: str
    line: str
    map: Map
    index: int
    seed: int
    unit: int
    clock: Clock
    number: int
    framing: str = "modbus-tcp"
    host: str = "127.0.0.1"
    port: int = 0
    faults: Faults = field(default_factory=Faults)
    requests: int = 0
    resets: int = 0

    def __post_init__(self) -> None:
        self.quantities = Quantities(Load(self.index, self.seed), self.map.phases)
        self.fixed = dict(self._identification())
        self.window = self._history()
        self.defined = {
            (p.table, a) for p in self.map.points for a in range(p.address, p.end)
        } | set(self.fixed)
        if self.window is not None:
            self.defined |= {("holding", at) for at in self.window.registers}

    @property
    def model(self) -> str:
        return self.map.name

    @property
    def address(self) -> str:
        """As `[[meters]]` writes it."""
        return f"{self.host}:{self.port}/{self.unit}"

    def has(self, fault: str) -> bool:
        return self.faults.has(fault, self.clock.monotonic())

    def reset(self) -> None:
        """The counters begin at 0, as after a replacement or a lost memory."""
        self.resets += 1
        offset_s = self.quantities.clock_offset_s
        self.quantities = Quantities(
            Load(self.index, self.seed), self.map.phases, int(self.clock.now())
        )
        self.quantities.clock_offset_s = offset_s

    def set_clock(self, offset_s: int) -> None:
        """Let the meter's own clock be off: its demand periods and its history go by it."""
        self.quantities.clock_offset_s = offset_s
        if self.window is not None:
            self.window.clock_offset_s = offset_s

    def _history(self) -> HistoryWindow | None:
        """Import and export every quarter hour; an average and an hourly channel beside them, which are no intervals."""
        if self.map.history.get("kind") != "window":
            return None
        energies = [p for p in self.map.points if p.obis in ("1.0.1.8.0.255", "1.0.2.8.0.255")]
        channels: list[Channel | None] = [Channel(p.obis, p.scale, 15) for p in energies]
        channels += [Channel("1.0.32.27.0.255", -1, 15), Channel("1.0.1.8.0.255", 1, 60), None]
        zone = dt.timezone(dt.timedelta(seconds=self.quantities.load.tz_s))
        return HistoryWindow(self.map.history, channels, self.kept, zone)

    def kept(self, obis: str, at: int) -> int:
        """What the counter of a code read at a second, as a raw integer."""
        points = self.map.find(obis)
        return int(self._raw(points[0], at)) if points else 2301

    # --- registers

    def words(self, point: Point, at: int) -> list[int]:
        """The registers of a point, in address order."""
        octets = self._octets(point, at)
        words = list(struct.unpack(f">{len(octets) // 2}H", octets))
        little = point.word_order == "little" and point.type not in (
            "string",
            "bytes",
            "bcd",
            "mod10k",
        )
        return words[::-1] if little else words

    def _octets(self, point: Point, at: int) -> bytes:
        size = 2 * point.size
        if point.type == "string":
            text = self._text(point).encode()
            if self.map.sparse_text:
                return b"".join(bytes([0, c]) for c in text[: point.size].ljust(point.size, b"\0"))
            return text[:size].ljust(size, b"\0")
        if point.form in ("bcd-clock", "schneider-datetime"):
            now = dt.datetime.fromtimestamp(
                at, dt.timezone(dt.timedelta(seconds=self.quantities.load.tz_s))
            )
            if point.form == "bcd-clock":
                pairs = (now.year % 100, now.month, 0, now.day, now.hour, now.minute, 0, now.second)
                return bytes.fromhex("".join(f"{pair:02d}" for pair in pairs))[:size]
            return struct.pack(
                ">HBBBBH",
                now.year - 2000,
                now.month,
                now.day,
                now.hour,
                now.minute,
                now.second * 1000,
            )
        raw = self._raw(point, at)
        if point.type in _FLOATS:
            return struct.pack(_FLOATS[point.type], float(raw))
        whole = int(raw)
        if point.type == "bcd":
            return bytes.fromhex(str(abs(whole) % 10 ** (2 * size)).zfill(2 * size))
        if point.type == "mod10k":
            return b"".join(
                (whole // 10_000**k % 10_000).to_bytes(2, "big")
                for k in reversed(range(point.size))
            )
        return (whole & ((1 << 8 * size) - 1)).to_bytes(size, "big")

    def _raw(self, point: Point, at: int) -> Decimal:
        """The number that stands in the registers, a whole one unless the type is a float."""
        if point.type == "sunssf":
            return Decimal(_EXPONENTS.get(point.name, 0))
        if self.map.sunspec and point.name in ("model_id", "model_length"):
            return Decimal(self._model()[point.name == "model_length"])
        if point.name == "meter_serial_number":
            return Decimal(self.number)
        value = self.quantities.value(point.name, at)
        if value is None:
            value = Decimal(self.number % 900 + 100)
            if point.kind == "cumulative":
                value += (at - 1_700_000_000) // {"h": 3600, "min": 60}.get(point.unit, 1)
            elif point.kind == "status":
                value = Decimal(0)
        raw = value.scaleb(-self._exponent(point)) * (100 if point.unit == "%" else 1)
        if point.type in _FLOATS:
            return raw
        raw = raw.to_integral_value(ROUND_HALF_EVEN)
        if point.modulus:
            raw %= point.modulus
        return raw if point.type in _SIGNED else abs(raw)

    def _exponent(self, point: Point) -> int:
        return point.scale + (_EXPONENTS.get(point.scale_point, 0) if point.scale_point else 0)

    def _text(self, point: Point) -> str:
        return (
            f"{self.number:08d}"
            if point.name == "meter_serial_number"
            else f"{point.name[-8:]}-{self.unit}"
        )

    def _model(self) -> tuple[int, int]:
        last = max(point.end for point in self.map.points)
        first = min(point.address for point in self.map.points)
        return 213 if "211" in self.map.name else 203, last - first - 2

    def _identification(self) -> list[tuple[tuple[str, int], int]]:
        """Registers beside the points: the model's proof, the chain of SunSpec."""
        fixed: list[tuple[tuple[str, int], int]] = []
        if self.map.sunspec:
            words = [0x5375, 0x6E53, 1, SUNSPEC_COMMON]
            for text, size in (
                ("OpenMeters", 16),
                (self.map.name, 16),
                ("", 8),
                ("1.0", 8),
                (f"{self.number:08d}", 16),
            ):
                words += struct.unpack(
                    f">{size}H", text.encode()[: 2 * size].ljust(2 * size, b"\0")
                )
            words += [self.unit, 0x8000]
            fixed += [(("holding", SUNSPEC_MARK + i), word) for i, word in enumerate(words)]
            end = max(point.end for point in self.map.points)
            fixed += [(("holding", end), 0xFFFF), (("holding", end + 1), 0)]
        if self.map.identify:
            table, address, identity = self.map.identify
            one_table = len(self.map.functions) > 1  # then both codes read the same registers
            mine = [p for p in self.map.points if one_table or p.table == table]
            taken = {a for p in mine for a in range(p.address, p.end)}
            fixed += [
                ((table, address + i), word)
                for i, word in enumerate(identity)
                if address + i not in taken
            ]
        return fixed

    # --- truth

    def truth(self, what: str, at: int) -> Decimal | None:
        """What a point (or a sum of points) reads at a civil second, in its unit; what its registers resolve.

        Args:
            what: an OBIS code or a name of the map.
        """
        points = self.map.find(what)
        if not points:
            return None
        return sum((self._number(point, at) for point in points), Decimal(0))

    def _number(self, point: Point, at: int) -> Decimal:
        raw = self._raw(point, at)
        if point.type in _FLOATS:
            form = _FLOATS[point.type]
            raw = Decimal(struct.unpack(form, struct.pack(form, float(raw)))[0])
        scaled = raw.scaleb(self._exponent(point))
        return scaled / 100 if point.unit == "%" else scaled

    def agrees(self, what: str, value: int, scaler: int, first: float, last: float) -> bool:
        """Did the point read `value` x 10**scaler at some second between two instants?

        Windows above 15 minutes are judged by the values at both ends, which holds for counters only.
        """
        step = Decimal(1).scaleb(scaler)
        published = Decimal(value) * step
        seconds = range(int(first), int(last) + 1)
        if len(seconds) > _LONGEST_WINDOW_S:
            ends = [self.truth(what, s) for s in (seconds[0], seconds[-1])]
            return (
                ends[0] is not None
                and ends[1] is not None
                and ends[0] - step <= published <= ends[1] + step
            )
        for second in seconds:
            true = self.truth(what, second)
            if true is not None and true.quantize(step, ROUND_HALF_EVEN) == published:
                return True
        return False
