"""What the simulated models offer: profiles and their columns, registers, nameplates, associations.

`is15959-3ph`, `-1ph` and `-ct` (India, IS 15959: energy per block, scaler profiles in another column order, deviation
from UTC to local), `idis`, `smr5` and `dsmr4` (cumulative registers with a status column, scalers in attribute 3 of each
register, deviation from local to UTC). `source` of a column says which of the meter's quantities fills it; `device` computes it.
Facts: /metering/obis.csv of the project's shared data; DLMS UA Blue Book for classes and units.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

UNIT_CODES = {
    "": 255, "count": 255, "min": 6, "s": 7, "degC": 9, "W": 27, "VA": 28, "var": 29, "Wh": 30, "VAh": 31, "varh": 32,
    "A": 33, "V": 35, "Hz": 44,
}  # fmt: skip

DAY = 86_400
CLOCK = "0.0.1.0.0.255"


@dataclass(frozen=True)
class Column:
    """One captured attribute.

    Attributes:
        source: `sum:<channel>`, `block:<channel>`, `volt:<phase>`, `amp:<phase>`, `status`, `code`, `max:<channel>`,
            `max-time:<channel>`, `date`: see `device`.
        width: octets of the value on the wire, sign and tag by `width`: 1 = unsigned, 2 = long-unsigned, 4 =
            double-long-unsigned, 12 = date-time in an octet-string.
    """

    obis: str
    unit: str
    scaler: int
    source: str
    width: int = 4
    attribute: int = 2
    class_id: int = 3


@dataclass(frozen=True)
class Profile:
    """One profile generic object.

    Attributes:
        period: seconds; 0 = by event or by calendar.
        capacity: entries; older ones are overwritten.
        scaler_profile: logical name of its IS 15959 scaler profile, "" = scalers in the registers.
        log: number of the event log, None for load profiles.
    """

    obis: str
    kind: str
    period: int
    columns: tuple[Column, ...]
    capacity: int
    scaler_profile: str = ""
    log: int | None = None


@dataclass(frozen=True)
class Association:
    """What a client may do: mechanism 0, 1 (LLS), 2 (HLS AES), 5 (HLS GMAC), ciphered or not, and its counter object."""

    mechanism: int
    ciphered: bool
    counter: str
    logical_name: str


@dataclass(frozen=True)
class Layout:
    """One meter model."""

    name: str
    profiles: tuple[Profile, ...]
    instantaneous: tuple[Column, ...]
    nameplate: dict[str, str | int]
    clients: dict[str, int]
    zone: str
    east: bool
    maker: bytes
    nameplate_profile: str = ""
    instantaneous_profile: str = ""
    instantaneous_scalers: str = ""
    event_scalers: str = ""
    object_names: dict[int, str] = field(default_factory=dict)
    counters: dict[int, str] = field(default_factory=dict)

    def profile(self, kind: str) -> Profile | None:
        """The profile of that kind."""
        return next((p for p in self.profiles if p.kind == kind), None)


def _energy(*rows: tuple[str, str, int, str]) -> tuple[Column, ...]:
    return tuple(Column(obis, unit, scaler, source) for obis, unit, scaler, source in rows)


_PHASES = (1, 2, 3)

_BLOCK_LOAD = (
    *(Column(f"1.0.{11 + 20 * p}.27.0.255", "A", -2, f"amp:{p - 1}") for p in _PHASES),
    *(Column(f"1.0.{12 + 20 * p}.27.0.255", "V", -1, f"volt:{p - 1}", 2) for p in _PHASES),
    *_energy(
        ("1.0.1.29.0.255", "Wh", 0, "block:import"),
        ("1.0.2.29.0.255", "Wh", 0, "block:export"),
        ("1.0.5.29.0.255", "varh", 0, "block:q1"),
        ("1.0.8.29.0.255", "varh", 0, "block:q4"),
        ("1.0.9.29.0.255", "VAh", 0, "block:vah"),
    ),
)

_DAILY = _energy(
    ("1.0.1.8.0.255", "Wh", 0, "sum:import"),
    ("1.0.2.8.0.255", "Wh", 0, "sum:export"),
    ("1.0.9.8.0.255", "VAh", 1, "sum:vah"),  # another scaler: a mixed-up scaler profile shows
    ("1.0.10.8.0.255", "VAh", 1, "sum:export"),
)

_BILLING = (
    Column("0.0.0.1.2.255", "", 0, "date", 12),
    *_energy(
        ("1.0.1.8.0.255", "Wh", 0, "sum:import"),
        ("1.0.9.8.0.255", "VAh", 1, "sum:vah"),
        ("1.0.5.8.0.255", "varh", 0, "sum:q1"),
        ("1.0.8.8.0.255", "varh", 0, "sum:q4"),
        ("1.0.2.8.0.255", "Wh", 0, "sum:export"),
    ),
    Column("1.0.1.6.0.255", "W", 0, "max:import", class_id=4),
    Column("1.0.1.6.0.255", "", 0, "max-time:import", 12, 5, 4),
)


def _event_log(log: int) -> Profile:
    columns = (
        Column(f"0.0.96.11.{log}.255", "", 0, "code", 2, class_id=1),
        Column("1.0.1.8.0.255", "Wh", 0, "sum:import"),
    )
    return Profile(
        f"0.0.99.98.{log}.255",
        f"events-{log}",
        0,
        columns,
        50 if log < 4 else 200,
        "1.0.94.91.7.255",
        log,
    )


_INSTANTANEOUS = (
    *(Column(f"1.0.{11 + 20 * p}.7.0.255", "A", -3, f"amp-now:{p - 1}") for p in _PHASES),
    *(Column(f"1.0.{12 + 20 * p}.7.0.255", "V", -1, f"volt-now:{p - 1}", 2) for p in _PHASES),
    Column("1.0.13.7.0.255", "", -3, "factor", 2),
    Column("1.0.14.7.0.255", "Hz", -2, "frequency", 2),
    Column("1.0.9.7.0.255", "VA", 0, "power:vah"),
    Column("1.0.1.7.0.255", "W", 0, "power:import"),
    Column("1.0.3.7.0.255", "var", 0, "power:q1"),
    *_energy(
        ("1.0.1.8.0.255", "Wh", 0, "sum:import"),
        ("1.0.2.8.0.255", "Wh", 0, "sum:export"),
        ("1.0.9.8.0.255", "VAh", 1, "sum:vah"),
        ("1.0.10.8.0.255", "VAh", 1, "sum:export"),
        ("1.0.5.8.0.255", "varh", 0, "sum:q1"),
        ("1.0.8.8.0.255", "varh", 0, "sum:q4"),
    ),
    Column("0.0.96.7.0.255", "count", 0, "failures", 2, class_id=1),
)

IS15959 = Layout(
    name="is15959-3ph",
    profiles=(
        Profile("1.0.99.1.0.255", "interval", 900, _BLOCK_LOAD, 35 * 96, "1.0.94.91.4.255"),
        Profile("1.0.99.2.0.255", "midnight", DAY, _DAILY, 100, "1.0.94.91.5.255"),
        Profile("1.0.98.1.0.255", "billing", 0, _BILLING, 13, "1.0.94.91.6.255"),
        *(_event_log(log) for log in range(7)),
    ),
    instantaneous=_INSTANTANEOUS,
    nameplate={
        "0.0.96.1.0.255": "{serial}",
        "0.0.96.1.2.255": "ODM{serial}",
        "0.0.96.1.1.255": "OPEN METERS",
        "1.0.0.2.0.255": "OM3.07",
        "0.0.94.91.9.255": 3,
        "0.0.94.91.11.255": "D2",
        "0.0.94.91.12.255": "10-60A",
        "0.0.96.1.4.255": 2024,
        "1.0.0.4.2.255": 1,
        "1.0.0.4.3.255": 1,
    },
    clients={"none": 16, "lls": 32, "hls5": 48, "hls2": 48},
    zone="330",
    east=True,
    maker=b"ODM",
    nameplate_profile="0.0.94.91.10.255",
    instantaneous_profile="1.0.94.91.0.255",
    instantaneous_scalers="1.0.94.91.3.255",
    event_scalers="1.0.94.91.7.255",
    object_names={16: "0.0.40.0.1.255", 32: "0.0.40.0.2.255", 48: "0.0.40.0.3.255"},
    counters={16: "0.0.43.1.1.255", 32: "0.0.43.1.2.255", 48: "0.0.43.1.3.255"},
)

_REGISTERS = _energy(
    ("1.0.1.8.0.255", "Wh", 0, "sum:import"),
    ("1.0.2.8.0.255", "Wh", 0, "sum:export"),
    ("1.0.3.8.0.255", "varh", 0, "sum:q1"),
    ("1.0.4.8.0.255", "varh", 0, "sum:q4"),
)


def _status(channel: int) -> Column:
    return Column(f"0.0.96.10.{channel}.255", "", 0, "status", 1, class_id=1)


IDIS = Layout(
    name="idis",
    profiles=(
        Profile("1.0.99.1.0.255", "interval", 900, (_status(1), *_REGISTERS), 960 * 4),
        Profile(
            "1.0.99.2.0.255",
            "midnight",
            DAY,
            (
                _status(2),
                Column("1.0.1.8.0.255", "Wh", 0, "sum:import"),
                Column("1.0.1.8.1.255", "Wh", 0, "sum:t1"),
                Column("1.0.1.8.2.255", "Wh", 0, "sum:t2"),
                Column("1.0.2.8.0.255", "Wh", 0, "sum:export"),
            ),
            370,
        ),
        Profile(
            "0.0.98.1.0.255",
            "billing",
            0,
            _energy(
                ("1.0.1.8.0.255", "Wh", 0, "sum:import"),
                ("1.0.1.8.1.255", "Wh", 0, "sum:t1"),
                ("1.0.1.8.2.255", "Wh", 0, "sum:t2"),
                ("1.0.2.8.0.255", "Wh", 0, "sum:export"),
            ),
            15,
        ),
        Profile(
            "0.0.99.98.0.255",
            "events-0",
            0,
            (Column("0.0.96.11.0.255", "", 0, "code", 1, class_id=1),),
            500,
            "",
            0,
        ),
        Profile(
            "0.0.99.98.1.255",
            "events-1",
            0,
            (Column("0.0.96.11.1.255", "", 0, "code", 1, class_id=1),),
            500,
            "",
            1,
        ),
    ),
    instantaneous=(
        *_REGISTERS,
        Column("1.0.1.8.1.255", "Wh", 0, "sum:t1"),
        Column("1.0.1.8.2.255", "Wh", 0, "sum:t2"),
        *(Column(f"1.0.{11 + 20 * p}.7.0.255", "A", -2, f"amp-now:{p - 1}", 2) for p in _PHASES),
        *(Column(f"1.0.{12 + 20 * p}.7.0.255", "V", 0, f"volt-now:{p - 1}", 2) for p in _PHASES),
        Column("1.0.1.7.0.255", "W", 0, "power:import"),
        Column("1.0.14.7.0.255", "Hz", -2, "frequency", 2),
    ),
    nameplate={
        "0.0.42.0.0.255": "ODI1{serial}",
        "0.0.96.1.0.255": "{serial}",
        "1.0.0.2.0.255": "ID2.14",
        "0.0.96.1.1.255": "OPEN METERS",
    },
    clients={"none": 16, "lls": 1, "hls5": 1, "hls2": 1},
    zone="Europe/Zurich",
    east=False,
    maker=b"ODI",
    object_names={16: "0.0.40.0.2.255", 1: "0.0.40.0.1.255"},
    counters={1: "0.0.43.1.0.255"},
)


def _indian(
    name: str,
    block_load: tuple[Column, ...],
    daily: tuple[Column, ...],
    billing: tuple[Column, ...],
    instantaneous: tuple[Column, ...],
    nameplate: dict[str, str | int],
) -> Layout:
    """A sibling of the three-phase meter of IS 15959-2."""
    own = {"interval": block_load, "midnight": daily, "billing": billing}
    return replace(
        IS15959,
        name=name,
        profiles=tuple(
            replace(p, columns=own[p.kind]) if p.kind in own else p for p in IS15959.profiles
        ),
        instantaneous=instantaneous,
        nameplate=IS15959.nameplate | nameplate,
    )


_ONE_PHASE = _indian(
    "is15959-1ph",
    (
        Column("1.0.12.27.0.255", "V", -1, "volt:0", 2),
        *_energy(
            ("1.0.1.29.0.255", "Wh", 0, "block:import"),
            ("1.0.9.29.0.255", "VAh", 0, "block:vah"),
            ("1.0.2.29.0.255", "Wh", 0, "block:export"),
        ),
    ),
    _energy(("1.0.1.8.0.255", "Wh", 0, "sum:import"), ("1.0.9.8.0.255", "VAh", 1, "sum:vah")),
    (
        Column("0.0.0.1.2.255", "", 0, "date", 12),
        *_energy(("1.0.1.8.0.255", "Wh", 0, "sum:import"), ("1.0.9.8.0.255", "VAh", 1, "sum:vah")),
        Column("1.0.1.6.0.255", "W", 0, "max:import", class_id=4),
        Column("1.0.1.6.0.255", "", 0, "max-time:import", 12, 5, 4),
    ),
    (
        Column("1.0.12.7.0.255", "V", -1, "volt-now:0", 2),
        Column("1.0.11.7.0.255", "A", -3, "amp-now:0"),
        Column("1.0.13.7.0.255", "", -3, "factor", 2),
        Column("1.0.14.7.0.255", "Hz", -2, "frequency", 2),
        Column("1.0.9.7.0.255", "VA", 0, "power:vah"),
        Column("1.0.1.7.0.255", "W", 0, "power:import"),
        *_energy(("1.0.1.8.0.255", "Wh", 0, "sum:import"), ("1.0.9.8.0.255", "VAh", 1, "sum:vah")),
        Column("0.0.96.7.0.255", "count", 0, "failures", 2, class_id=1),
    ),
    {"0.0.94.91.9.255": 1, "0.0.94.91.11.255": "D1"},
)

_TRANSFORMER = _indian(
    "is15959-ct",
    (
        *_BLOCK_LOAD[:6],
        *_energy(
            ("1.0.1.29.0.255", "Wh", 1, "block:import"),
            ("1.0.9.29.0.255", "VAh", 1, "block:vah"),
            ("1.0.2.29.0.255", "Wh", 1, "block:export"),
            ("1.0.10.29.0.255", "VAh", 1, "block:export"),
            ("1.0.5.29.0.255", "varh", 0, "block:q1"),
            ("1.0.6.29.0.255", "varh", 0, "block:zero"),
            ("1.0.7.29.0.255", "varh", 0, "block:zero"),
            ("1.0.8.29.0.255", "varh", 0, "block:q4"),
        ),
    ),
    _energy(
        ("1.0.1.8.0.255", "Wh", 1, "sum:import"),
        ("1.0.5.8.0.255", "varh", 0, "sum:q1"),
        ("1.0.8.8.0.255", "varh", 0, "sum:q4"),
        ("1.0.9.8.0.255", "VAh", 1, "sum:vah"),
    ),
    _BILLING,
    _INSTANTANEOUS,
    {
        "0.0.94.91.12.255": "-/5A",
        "1.0.0.4.2.255": 40,
        "1.0.0.4.3.255": 1,
    },
)
_TRANSFORMER = replace(  # no load switch, hence no control log
    _TRANSFORMER, profiles=tuple(p for p in _TRANSFORMER.profiles if p.log != 6)
)


def _dutch_log(log: int, width: int = 1) -> Profile:
    code = Column(f"0.0.96.11.{log}.255", "", 0, "code", width, class_id=1)
    return Profile(f"0.0.99.98.{log}.255", f"events-{log}", 0, (code,), 100, "", log)


_BY_TARIFF = _energy(
    ("1.0.1.8.1.255", "Wh", 0, "sum:t1"),
    ("1.0.1.8.2.255", "Wh", 0, "sum:t2"),
    ("1.0.2.8.1.255", "Wh", 0, "sum:export-t1"),
    ("1.0.2.8.2.255", "Wh", 0, "sum:export-t2"),
)


def _dutch(
    name: str, daily: int, billing: tuple[str, tuple[Column, ...]], *logs: Profile
) -> Layout:
    """A meter of the Dutch grid: totals each quarter of an hour, tariffs each day and month."""
    return replace(
        IDIS,
        name=name,
        profiles=(
            Profile("1.0.99.1.0.255", "interval", 900, (_status(2), *_REGISTERS[:2]), 960),
            Profile("1.0.99.2.0.255", "midnight", DAY, (_status(daily), *_BY_TARIFF), 40),
            Profile(billing[0], "billing", 0, billing[1], 13),
            *logs,
        ),
        instantaneous=(
            *_REGISTERS[:2],
            *_BY_TARIFF,
            *(c for c in IDIS.instantaneous if c.obis.split(".")[3] == "7"),
        ),
        nameplate={
            "0.0.42.0.0.255": "ODN{serial}",
            "0.0.96.1.0.255": "{serial}",
            "0.0.96.1.1.255": "E0051{serial}2024",  # 17 characters
            "1.0.0.2.0.255": "DN5.07",
            "1.0.0.2.8.255": "5A0C",
        },
        zone="Europe/Amsterdam",
        maker=b"ODN",
    )


SMR5 = _dutch(
    "smr5",
    4,
    ("1.0.98.1.0.255", (_status(6), *_BY_TARIFF)),
    *map(_dutch_log, (0, 1, 3, 4, 5)),
    _dutch_log(6, 2),
    *map(_dutch_log, (7, 8)),
)
DSMR4 = _dutch("dsmr4", 2, ("0.0.98.1.0.255", _BY_TARIFF), *map(_dutch_log, (0, 1, 3, 4)))

LAYOUTS = {layout.name: layout for layout in (IS15959, _ONE_PHASE, _TRANSFORMER, IDIS, SMR5, DSMR4)}

POWER_FAILED = {name: (2, 101) if layout.east else (0, 1) for name, layout in LAYOUTS.items()}
"""(log, code) of the event that a last gasp announces, by model."""
POWER_BACK = {name: (log, code + 1) for name, (log, code) in POWER_FAILED.items()}
