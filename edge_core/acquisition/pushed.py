"""Values that meters push, as blocks: one notification, one row of kind instantaneous.

A value needs a scaler and a unit: the push sends them (Aidon, Iskraemeco), the model has them (`scales`: Kamstrup,
Landis+Gyr), the protocol layer knows them (Kaifa's lists), or a profile that was read from the meter before proved
them. Texts, times and absent phases (null-data) are no values.

Invariants: a row carries the meter's own time where that is within CLOCK_NEAR_S of a valid clock of ours, else the
time at which it was heard, flagged CLOCK_INVALID; pushes that no key proves are flagged UNAUTHENTICATED; a block names
the device that the push, an earlier push or the configuration names, and without any of them there is none.
Limits: rows of one layout closer together than the model's `every_s` are thinned out: HAN ports speak each 2 s.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edge_core.acquisition.drivers.dlms.learned import remembered
from edge_core.domain import Block, Column, Flag, Layout
from edge_core.domain.units import UNITS
from edge_core.protocols.dlms.axdr import DataType
from edge_core.protocols.dlms.datetime import decode_datetime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import tzinfo

    from edge_core.config.models import DlmsModel, PushSetup
    from edge_core.config.schema import Meter
    from edge_core.protocols.dlms.bodies import Reading
    from edge_core.protocols.dlms.datetime import ClockRules
    from edge_core.protocols.dlms.push import Notification

CLOCK_NEAR_S: Final = 3600
SERIALS: Final = (
    "0.0.96.1.0.255",
    "1.1.0.0.5.255",
    "1.1.0.0.1.255",
    "0.0.96.1.2.255",
    "0.0.42.0.0.255",
)
"""Where pushes name their device, best first; 1.1.0.0.x are Kamstrup's."""

_INTEGERS: Final = frozenset(
    (
        DataType.INTEGER,
        DataType.LONG,
        DataType.DOUBLE_LONG,
        DataType.LONG64,
        DataType.UNSIGNED,
        DataType.LONG_UNSIGNED,
        DataType.DOUBLE_LONG_UNSIGNED,
        DataType.LONG64_UNSIGNED,
    )
)


class Scale(NamedTuple):
    """Power of ten and unit."""

    scaler: int
    unit: str


def scales_of(setup: PushSetup) -> dict[str, Scale]:
    """`scales` of a model, parsed; its texts were checked when it was loaded."""
    out = {}
    for obis, text in setup.scales.items():
        scaler, _, unit = text.partition(" ")
        out[obis] = Scale(int(scaler), unit)
    return out


def device_of(notification: Notification) -> str:
    """The device that a push names, "" without."""
    for obis in SERIALS:
        data = notification.get(obis)
        value = data.value if data is not None else None
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if isinstance(text, int) and not isinstance(text, bool):
            return str(text)
        if isinstance(text, str) and (text := text.strip("\0 ")) and text.isprintable():
            return text
    return ""


def _profile(setup: str, columns: Iterable[Column]) -> str:
    """Logical name that the rows travel under: the push setup's; with energy registers in them, that with E = 1.

    Hourly lists of energies carry the stamp of the full hour, and a momentary list may carry the same: of two rows
    of one profile and second only the first would be kept.
    """
    groups = setup.split(".")
    energies = any(column.obis.split(".")[3] == "8" for column in columns)
    return ".".join((*groups[:4], "1", groups[5])) if energies else setup


def _minutes_east(at: int, zone: tzinfo) -> int:
    offset = datetime.fromtimestamp(at, zone).utcoffset()
    return round(offset.total_seconds()) // 60 if offset is not None else 0


class Values:
    """Turns notifications into blocks.

    Args:
        remember: (meter, key) -> what a driver or we remembered of a meter.
        put: remembers.
    """

    def __init__(
        self,
        remember: Callable[[str, str], Any],
        put: Callable[[str, str, Any], None],
    ) -> None:
        self._remember, self._put = remember, put
        self._last: dict[tuple[str, str], int] = {}
        self._devices: dict[str, str] = {}

    def block(
        self,
        meter: Meter,
        model: DlmsModel,
        setup: PushSetup,
        notification: Notification,
        rules: ClockRules,
        *,
        now: float,
        synchronised: bool,
        authenticated: bool,
    ) -> tuple[Block | None, str]:
        """The block of a push, or None and why there is none: no-values, no-device, wrong-meter, thinned."""
        columns, values = self._columns(meter.id, model, setup, notification.readings)
        if not columns:
            return None, "no-values"
        device = self._device(meter, notification)
        if not device:
            return None, "no-device"
        if meter.serial and device != meter.serial:
            return None, "wrong-meter"
        layout = Layout(_profile(str(setup.obis), columns), 0, tuple(columns))
        heard = int(now)
        moment = (
            decode_datetime(notification.event_time, rules) if notification.event_time else None
        )
        at, flags, east = heard, int(Flag.SAMPLED), _minutes_east(heard, rules.zone)
        if moment is not None and moment.at is not None:
            east = moment.east_min
            near = abs(moment.at - heard) <= CLOCK_NEAR_S or not synchronised
            at = moment.at if near else heard
            flags |= moment.flags if near else int(Flag.CLOCK_INVALID)
        if not authenticated:
            flags |= int(Flag.UNAUTHENTICATED)
        if self._thinned(meter.id, layout.digest, at, setup.every_s):
            return None, "thinned"
        block = Block(
            meter=meter.id,
            device=device,
            kind="instantaneous",
            layout=layout,
            times=[at],
            columns=tuple([value] for value in values),
            flags=((0, 1, flags),),
            tz=east,
            multiplier=meter.multiplier,
            read_at=heard,
            proven_at=heard,
            q={"at": round(now * 1000), "push": str(setup.obis)},
        )
        return block, ""

    def _columns(
        self, meter: str, model: DlmsModel, setup: PushSetup, readings: Iterable[Reading]
    ) -> tuple[list[Column], list[int]]:
        columns: list[Column] = []
        values: list[int] = []
        seen: set[tuple[str, int]] = set()
        scales = scales_of(setup)
        learned: dict[str, Scale] | None = None
        for reading in readings:
            key = (reading.obis, reading.attribute)
            value = reading.value.value
            if key in seen or reading.value.tag not in _INTEGERS or not isinstance(value, int):
                continue
            if reading.obis in SERIALS:
                continue
            seen.add(key)
            if reading.obis in scales:
                scaler, unit = scales[reading.obis]
            elif reading.scaler is not None and reading.unit is not None:
                scaler, unit = reading.scaler, reading.unit
            else:
                if learned is None:
                    learned = self._learned(meter, model)
                scaler, unit = learned.get(reading.obis, Scale(0, ""))
            columns.append(
                Column(reading.obis, unit if unit in UNITS else "", scaler, reading.attribute)
            )
            values.append(value)
        return columns, values

    def _learned(self, meter: str, model: DlmsModel) -> dict[str, Scale]:
        """Scalers that were read from the meter with its profiles."""
        out: dict[str, Scale] = {}
        for kind in model.profiles:
            known = remembered(lambda key: self._remember(meter, key), kind)
            for obis, attribute, scaler, unit in known.scalers if known is not None else ():
                if attribute == 2:
                    out[obis] = Scale(scaler, unit)
        return out

    def _device(self, meter: Meter, notification: Notification) -> str:
        """Serial of the device: named now, by an earlier push, by its nameplate, or in the configuration."""
        known = self._devices.get(meter.id, "")
        if not known:
            identity = self._remember(meter.id, "identity")
            known = str(identity.get("serial", "")) if isinstance(identity, dict) else ""
        named = device_of(notification)
        polled = bool(known) and self._devices.get(meter.id) is None
        if named and named != known and not polled:
            self._devices[meter.id] = named
            self._put(meter.id, "identity", {"title": "", "serial": named, "nameplate": {}})
            return named
        return known or meter.serial

    def _thinned(self, meter: str, digest: str, at: int, every_s: int) -> bool:
        """Did this layout come so lately that this row may go?"""
        if not every_s:
            return False
        slot = at // every_s
        if self._last.get((meter, digest)) == slot:
            return True
        self._last[meter, digest] = slot
        return False
