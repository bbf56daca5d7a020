"""Meter models: what a kind of meter speaks, as data (`edge_core/acquisition/meters/<model>.toml`).

A model is either a `DlmsModel` or a `ModbusModel`, by `[model] protocol`. Both are frozen structs with every default
here, so a model file holds only what its document says. `load_model` finds a model by name or path, checks it whole
and raises all its mistakes at once. Names are `[a-z0-9-]+`; OBIS codes are six decimals with dots.

To add a key: add a field with its default and its line in the docstring to the table's struct, nothing else.
Source of the DLMS terms: DLMS UA Blue and Green Book; of the Modbus keys: the register maps' README of this project.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_core.config.history import History, history_of
from edge_core.config.tables import ConfigErrors, Findings, S, build, did_you_mean
from edge_core.domain.obis import obis_to_bytes
from edge_core.domain.units import UNITS
from edge_core.errors import ConfigError

SCHEMA = "opendcu.model/1"
FOLDER = Path(__file__).resolve().parent.parent / "acquisition" / "meters"
"""The models that come with the product."""

NAME = re.compile(r"[a-z0-9-]+")
EVENT_KIND = re.compile(r"events-[a-z0-9]+")
PROFILE_KINDS = ("interval", "midnight", "billing", "instantaneous", "nameplate")

Protection = Literal["none", "authenticated", "encrypted", "authenticated-encrypted"]
Octets8 = Annotated[
    str, msgspec.Meta(pattern=r"^([0-9A-Fa-f]{16})?$", extra={"says": "8 octets as 16 hex digits"})
]


class ObisCode(str):
    """Six decimals with dots, checked; behaves as the text it is."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> ObisCode:
        """The code; ValueError for anything else."""
        code = cls(value)
        obis_to_bytes(code)
        return code


class MaybeObis(ObisCode):
    """An OBIS code, or "" where there is none."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> MaybeObis:
        """The code or ""; ValueError for anything else."""
        return cls("") if value == "" else cls(ObisCode.parse(value))


class UnitName(str):
    """One of the units that payloads know."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> UnitName:
        """The unit; ValueError for anything else."""
        if not isinstance(value, str) or value not in UNITS:
            raise ValueError(
                f'{value!r} is no unit; known are {", ".join(sorted(UNITS - {""}))} and ""'
            )
        return cls(value)


class PushScale(str):
    """Scaler and unit of a pushed value: `1 Wh`, `-2 A`, `0`."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> PushScale:
        """The text; ValueError for anything else."""
        match = (
            re.fullmatch(r"(-?[0-9]{1,2})(?: (\S+))?", value) if isinstance(value, str) else None
        )
        if match is None or (match[2] or "") not in UNITS:
            raise ValueError(f'{value!r} is no scaler and unit; write "1 Wh", "-2 A" or "0"')
        return cls(value)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of a model file."""


class About(_Table, frozen=True, kw_only=True):
    """Table [model]: what it is and how sure we are.

    Attributes:
        maker: who makes it.
        families: names on the meters' labels.
        names: regular expressions; a logical device name or equipment identifier that fits one whole is of such a meter.
        models: type designations, where the family has several.
        protocol: dlms or modbus.
        source: documents, with version and page, or repositories with licence.
        verified: by what it was proven: the document alone, a simulator, a meter.
        sure: how many independent sources agree on a register map; standard = it is the standard's own.
        sure_note: where that differs inside the file.
        phases: 1, 3, or "1 to 3".
        connection: direct, CT ...
        notes: caveats for people.
        assumed: what no source says and no meter has shown; each is a thing to check at the first meter.
    """

    maker: str
    families: tuple[str, ...]
    names: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    protocol: Literal["dlms", "modbus"]
    source: tuple[str, ...]
    verified: Literal["document", "simulator", "meter"] = "document"
    sure: Literal["", "one", "two", "standard"] = ""
    sure_note: str = ""
    phases: int | str = 3
    connection: str = ""
    notes: str = ""
    assumed: tuple[str, ...] = ()


# DLMS -----------------------------------------------------------------------------------------------------------------


class Association(_Table, frozen=True, kw_only=True):
    """How an association is made.

    Attributes:
        client: client SAP.
        server: SAP of the logical device, where the address names none.
        security: authentication mechanism: none, lls, hls2 (AES-128), hls3 (MD5), hls4 (SHA-1), hls5 (GMAC), hls6
            (SHA-256), hls7 (ECDSA; suites 1 and 2).
        suite: security suite: 0 and 1 AES-128, 2 AES-256; 1 has P-256, 2 P-384.
        protection: least protection that answers must have; what we ask with.
        ciphering: service-specific global (glo) or dedicated (ded) tags, general-glo, general-ded, general-ciphering, or
            none.
        key_info: under which key general-ciphering goes: the global one without saying so (none) or saying so
            (identified), a fresh one wrapped under the master key, or one agreed on by one-pass Diffie-Hellman or the
            static unified model (suites 1 and 2).
        signed: requests are signed, answers must be (general-signing; suites 1 and 2).
        object: logical name of the association object that HLS passes 3 and 4 act on.
        counter: object that holds the meter's view of our invocation counter; "" = it has none.
        counter_client: client SAP that may read it without ciphering.
        max_pdu_size: octets we can receive, as proposed in the AARQ.
        system_title: ours, if this model demands another one than the gateway's.
        release: RLRQ plain, RLRQ with the ciphered InitiateRequest, or just close.
        keep_s: seconds that an association may stay open unused (wrapper over TCP), for meters that allow it: the next read
            needs no AARQ then; 0 = it is released after every visit.
        serial: object with the device serial.
        nameplate: other objects read at first contact, name to logical name.
    """

    client: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 48
    server: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 1
    security: Literal["none", "lls", "hls2", "hls3", "hls4", "hls5", "hls6", "hls7"] = "none"
    suite: Literal[0, 1, 2] = 0
    protection: Protection = "none"
    ciphering: Literal["none", "glo", "ded", "general-glo", "general-ded", "general-ciphering"] = (
        "none"
    )
    key_info: Literal["none", "identified", "wrapped", "one-pass", "static"] = "identified"
    signed: bool = False
    object: ObisCode = ObisCode("0.0.40.0.0.255")
    counter: MaybeObis = MaybeObis("")
    counter_client: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 16
    max_pdu_size: Annotated[int, msgspec.Meta(ge=12, le=65535)] = 65535
    system_title: Octets8 = ""
    release: Literal["rlrq", "rlrq-ciphered", "close"] = "rlrq"
    keep_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    serial: ObisCode = ObisCode("0.0.96.1.0.255")
    nameplate: dict[str, ObisCode] = {}


class MeterTime(_Table, frozen=True, kw_only=True):
    """How the meter writes time.

    Attributes:
        deviation: what the deviation counts: minutes from local time to UTC (Blue Book, IDIS: CET is -60) or from
            UTC to local time (India, Saudi Arabia, Italy: IST is +330).
        zone: IANA zone of stamps without a deviation; "" = the gateway's.
        deviation_holds_dst: the deviation moves with DST (CEST is -120); false = it stays, the DST bit adds an hour.
        clock: the clock object.
    """

    deviation: Literal["local-to-utc", "utc-to-local"] = "local-to-utc"
    zone: str = ""
    deviation_holds_dst: bool = True
    clock: ObisCode = ObisCode("0.0.1.0.0.255")


class Profile(_Table, frozen=True, kw_only=True):
    """Tables [profiles.<kind>]: one profile generic.

    Attributes:
        obis: its logical name.
        kind: energies of the interval (delta) or register values (cumulative).
        period_s: expected capture period in seconds; 0 = as the meter says, or irregular.
        scaler_profile: profile with the scalers, matched by capture object; "" = attribute 3 of each register.
        status: logical name of the status column; "" = none.
        status_bits: bit of the status octet (1 to 128, written as text) to name of the flag (DESIGN section 11).
        clock: column that times the rows, where no clock object is captured; "" = there always is one.
        epochs: columns that hold date-times beside those whose class says so.
        null_data: what a null value means: the same as in the row above, or no reading.
        range: what selective access by range gives: rows from `from` on (inclusive), after it (exclusive), it is
            broken and entries are read instead (entry), or it is ignored and everything comes (ignored).
        entry_base: selective access by entry: is entry 1 the oldest row or the newest one?
        code: for event logs: the column with the event code.
        log: for event logs: name of the vocabulary of its codes.
    """

    obis: ObisCode
    kind: Literal["delta", "cumulative"] = "cumulative"
    period_s: Annotated[int, msgspec.Meta(ge=0, le=31 * 86400)] = 0
    scaler_profile: MaybeObis = MaybeObis("")
    status: MaybeObis = MaybeObis("")
    status_bits: dict[str, str] = {}
    clock: MaybeObis = MaybeObis("")
    epochs: tuple[ObisCode, ...] = ()
    null_data: Literal["same", "absent"] = "same"
    range: Literal["inclusive", "exclusive", "entry", "ignored"] = "inclusive"
    entry_base: Literal["oldest", "newest"] = "oldest"
    code: MaybeObis = MaybeObis("")
    log: str = ""


class PushSetup(_Table, frozen=True, kw_only=True):
    """Tables [push.<name>]: one push object list.

    Attributes:
        obis: logical name of the push setup.
        carries: what it brings: alarms (an alert bit-string or register), rows of values, or one event row.
        shape: how the body is built: the push object list's order, (OBIS, value) pairs, (OBIS, value, scaler_unit)
            triples, or positions that `columns` names.
        columns: logical names by position; "" = ignored.
        alert: logical name of the alert word in it; "" = none.
        alarms: bit of the alert word (as text, 0 = first) or value to alarm code, with its phases: phase-outage:L1.
        others: further alert words that may come in the same push, by logical name: the same as `alarms` for each.
        latches: bits stay set until somebody clears them at the meter: only those that the last push had not are news.
        protection: least protection; less is kept aside, shown and never published.
        scales: logical name to "scaler unit" of values whose scaler is not sent: "1 Wh", "-2 A".
        every_s: rows of values closer together than this many seconds are thinned out; 0 = all are kept.
        expected_s: the meter sends it at least this often; a meter that only speaks and misses several is silent. 0 =
            nobody knows when it comes.
    """

    obis: ObisCode
    carries: Literal["alarms", "values", "event"] = "alarms"
    shape: Literal["list", "pairs", "triples", "positions"] = "list"
    columns: tuple[str, ...] = ()
    alert: MaybeObis = MaybeObis("")
    alarms: dict[str, str] = {}
    others: dict[str, dict[str, str]] = {}
    latches: bool = False
    protection: Protection = "authenticated-encrypted"
    scales: dict[str, PushScale] = {}
    every_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    expected_s: Annotated[int, msgspec.Meta(ge=0, le=7 * 86_400)] = 0


class Quirks(_Table, frozen=True, kw_only=True):
    """Table [quirks]: where this meter leaves the standard.

    Attributes:
        bare_conformance: the conformance tag is 5F instead of 5F 1F.
        get_with_list: the meter has multiple-references; ask several attributes at once.
        second_in_range: selective access wants second 0 and the meter's own deviation style.
        bare_range_time: bounds of a range leave weekday, deviation and status unspecified.
        general_block_transfer: offer general-block-transfer; long answers then come in its blocks.
        hdlc_window: HDLC frames that the meter may send before we acknowledge; most meters know one alone.
        counter_restarts: the meter's own invocation counter begins anew with each association.
        link_pause_s: wait in seconds after closing before it accepts the next association.
    """

    bare_conformance: bool = False
    get_with_list: bool = False
    second_in_range: bool = False
    bare_range_time: bool = False
    general_block_transfer: bool = False
    hdlc_window: Annotated[int, msgspec.Meta(ge=1, le=7)] = 1
    counter_restarts: bool = False
    link_pause_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0


class DlmsModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of DLMS/COSEM meters; `profiles` and `push` by their names."""

    name: str
    about: About
    association: Association
    time: MeterTime
    profiles: dict[str, Profile]
    push: dict[str, PushSetup]
    quirks: Quirks


# Modbus ---------------------------------------------------------------------------------------------------------------


class SerialDefault(_Table, frozen=True, kw_only=True):
    """Factory setting of the serial port; `baud` in bits per second."""

    baud: Annotated[int, msgspec.Meta(ge=300, le=4_000_000)]
    data_bits: Literal[7, 8] = 8
    parity: Literal["E", "O", "N"] = "N"
    stop_bits: Literal[1, 2] = 1


class Link(_Table, frozen=True, kw_only=True):
    """Table [link]: what requests the meter takes.

    Attributes:
        transports: rtu, tcp.
        unit_id_default: factory setting.
        serial_default: factory setting of the serial port; absent = not known.
        serial_default_confidence: stated, assumed or unknown.
        read_function_codes: 3 = holding registers, 4 = input registers.
        max_registers_per_read: largest count to ask for.
        hole_policy: may a read cross undefined registers? unknown: not until probed.
        align_reads_to_values: a read must begin and end on value boundaries.
        word_order_selectable: the order is a setting of the meter: probe it.
        addressing: absolute, or offsets from a SunSpec model's ID register.
        load_profile: none, or what history there is, in words.
        gap_s: silence in seconds before a request, beyond 3.5 characters.
    """

    transports: tuple[Literal["rtu", "tcp"], ...]
    unit_id_default: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    serial_default: SerialDefault | None = None
    serial_default_confidence: str = ""
    read_function_codes: tuple[Literal[3, 4], ...] = (3,)
    max_registers_per_read: Annotated[int, msgspec.Meta(ge=1, le=125)] = 125
    hole_policy: Literal["tolerant", "do not cross", "unknown"] = "unknown"
    align_reads_to_values: bool = False
    word_order_selectable: bool = False
    addressing: Literal["absolute", "sunspec_model_relative"] = "absolute"
    load_profile: str = "none"
    gap_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


PointType = Literal[
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
    "acc32",
    "bitfield32",
    "sunssf",
    "bcd",
    "mod10k",
    "string",
    "bytes",
]


class Point(_Table, frozen=True, kw_only=True):
    """Tables [[points]]: one value; value in `unit` = raw x 10**scale.

    Attributes:
        name: field term.
        obis: its code; "" where none exists.
        address: zero-based protocol address.
        table: holding or input registers.
        type: how the registers are read; bcd, mod10k (four decimal digits a register), string and bytes have a
            `length` in registers.
        length: registers of a value whose type does not tell.
        form: how the number is to be understood: Schneider's four-quadrant power factor, a clock in vendor octets.
        modulus: raw count at which a counter begins at 0 again, where that is less than its width.
        word_order: big = most significant register first.
        scale: power of ten.
        scale_point: point whose value is added to the power of ten.
        resolution: floats: power of ten of the published integer; absent = by unit.
        unit: base unit.
        kind: cumulative, instantaneous, nameplate or status.
        sure: where it differs from the file: one, two, standard, unverified, conflict.
        optional: may be absent in a conforming meter.
        note: a remark.
    """

    name: str
    obis: MaybeObis = MaybeObis("")
    address: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    table: Literal["holding", "input"] = "holding"
    type: PointType
    form: Literal["", "schneider-4q", "schneider-datetime", "bcd-clock"] = ""
    modulus: Annotated[int, msgspec.Meta(ge=0)] = 0
    length: Annotated[int, msgspec.Meta(ge=1, le=125)] | None = None
    word_order: Literal["big", "little"] = "big"
    scale: Annotated[int, msgspec.Meta(ge=-12, le=12)] = 0
    scale_point: str = ""
    resolution: Annotated[int, msgspec.Meta(ge=-9, le=9)] | None = None
    unit: UnitName = UnitName("")
    kind: Literal["cumulative", "instantaneous", "nameplate", "status"] = "instantaneous"
    sure: Literal["", "one", "two", "standard", "unverified", "conflict"] = ""
    optional: bool = False
    note: str = ""


class Identify(_Table, frozen=True, kw_only=True):
    """Table [identify]: a register and the values that prove the model (value as text -> name)."""

    address: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    table: Literal["holding", "input"] = "holding"
    type: PointType = "uint16"
    word_order: Literal["big", "little"] = "big"
    values: dict[str, str] = {}


class Sampling(_Table, frozen=True, kw_only=True):
    """Tables [interval] and [midnight]: registers that are sampled at the boundary, for want of a load profile.

    Attributes:
        points: names of cumulative points or of sums in [derived]; each has an OBIS code.
        refused: why there are none, or none of some: whole kWh are no 15-minute energy.
        history: midnight only: counter to the points in which the meter keeps its value at 00:00 by its own clock,
            of today first, then of the days before.
    """

    points: tuple[str, ...] = ()
    refused: str = ""
    history: dict[str, tuple[str, ...]] = {}


class ModbusModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of Modbus meters; `derived`: point to the points whose sum it is; `sentinels`: patterns in words."""

    name: str
    about: About
    link: Link
    points: tuple[Point, ...]
    identify: Identify | None = None
    derived: dict[str, tuple[str, ...]] = {}
    sentinels: dict[str, str] = {}
    interval: Sampling = Sampling()
    midnight: Sampling = Sampling()
    history: History | None = None


Model = DlmsModel | ModbusModel

DLMS_TABLES = ("schema", "model", "association", "time", "profiles", "push", "quirks")
MODBUS_TABLES = (
    "schema",
    "model",
    "link",
    "points",
    "identify",
    "derived",
    "sentinels",
    "interval",
    "midnight",
    "history",
)


def model_names(folder: Path = FOLDER) -> list[str]:
    """Names of the models in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_model(name_or_path: str, base: Path | None = None) -> Path:
    """The file of a model: a name of ours, or a path (with a slash or .toml), relative to `base`.

    Raises:
        ConfigErrors: there is none; the hint names the nearest one.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = (base or Path.cwd()) / name_or_path
        if _is_file(path):
            return path
        raise ConfigErrors([ConfigError(name_or_path, "", "", "no such model file")])
    path = FOLDER / f"{name_or_path}.toml"
    if NAME.fullmatch(name_or_path) and _is_file(path):
        return path
    hint = did_you_mean(name_or_path, model_names()) or "opendcu model list shows all"
    raise ConfigErrors([ConfigError(name_or_path, "", "", "unknown meter model", hint)])


def _is_file(path: Path) -> bool:
    """Also for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def load_model(name_or_path: str, *, base: Path | None = None, strict: bool = True) -> Model:
    """A meter model, checked.

    Args:
        name_or_path: `is15959-3ph`, or a path.
        base: folder that a relative path starts from.
        strict: unknown keys are mistakes.

    Raises:
        ConfigErrors: the file is missing or has mistakes, all of them.
    """
    path = find_model(name_or_path, base)
    findings = Findings()
    model = None
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        findings.mistake(str(path), "", "", f"cannot be read: {error}")
    else:
        model = model_of(path.stem, raw, findings, str(path))
    findings.raise_mistakes(strict=strict)
    assert model is not None, "a model without mistakes was built"
    return model


def model_of(name: str, raw: dict[str, Any], findings: Findings, file: str) -> Model | None:
    """The model that a parsed file describes, or None after its mistakes were added."""
    if not NAME.fullmatch(name):
        findings.mistake(
            file, "", "", f'"{name}" is no model name', "lower-case letters, digits and hyphens"
        )
    if raw.get("schema") != SCHEMA:
        findings.mistake(file, "", "schema", f'expected "{SCHEMA}", got "{raw.get("schema", "")}"')
    if "model" not in raw:
        findings.mistake(file, "model", "", "the table is missing")
        return None
    about = build(About, raw["model"], findings, file, "model")
    if about is None:
        return None
    known = DLMS_TABLES if about.protocol == "dlms" else MODBUS_TABLES
    findings.unknown.extend(
        ConfigError(
            file, key, "", f"unknown table in a {about.protocol} model", did_you_mean(key, known)
        )
        for key in raw
        if key not in known
    )
    of = _dlms if about.protocol == "dlms" else _modbus
    return of(name, about, raw, findings, file)


def _dlms(
    name: str, about: About, raw: dict[str, Any], findings: Findings, file: str
) -> DlmsModel | None:
    association = build(Association, raw.get("association", {}), findings, file, "association")
    time = build(MeterTime, raw.get("time", {}), findings, file, "time")
    quirks = build(Quirks, raw.get("quirks", {}), findings, file, "quirks")
    profiles = _named(Profile, raw.get("profiles", {}), findings, file, "profiles")
    push = _named(PushSetup, raw.get("push", {}), findings, file, "push")
    for kind in profiles:
        if kind not in PROFILE_KINDS and not EVENT_KIND.fullmatch(kind):
            known = ", ".join((*PROFILE_KINDS, "events-<k>"))
            hint = did_you_mean(kind, PROFILE_KINDS)
            findings.mistake(
                file, f"profiles.{kind}", "", f"unknown kind of profile; known are {known}", hint
            )
    if association is None or time is None or quirks is None:
        return None
    if association.security in ("hls5",) and association.ciphering == "none":
        findings.mistake(
            file, "association", "ciphering", "hls5 needs ciphering", 'write ciphering = "glo"'
        )
    curved = association.security == "hls7" or association.signed
    curved |= association.ciphering == "general-ciphering" and association.key_info in (
        "one-pass",
        "static",
    )
    if curved and association.suite == 0:
        findings.mistake(
            file,
            "association",
            "suite",
            "hls7, signatures and agreed keys need suite 1 or 2",
            "write suite = 1",
        )
    return DlmsModel(
        name=name,
        about=about,
        association=association,
        time=time,
        profiles=profiles,
        push=push,
        quirks=quirks,
    )


def _modbus(
    name: str, about: About, raw: dict[str, Any], findings: Findings, file: str
) -> ModbusModel | None:
    link = build(Link, raw.get("link", {}), findings, file, "link")
    identify = (
        build(Identify, raw["identify"], findings, file, "identify") if "identify" in raw else None
    )
    points: dict[str, Point] = {}
    rows = raw.get("points", [])
    if not isinstance(rows, list):
        findings.mistake(file, "points", "", "expected tables [[points]]")
        rows = []
    for number, row in enumerate(rows, 1):
        label = row.get("name", "") if isinstance(row, dict) else ""
        table = f"points[{number}]" + (f" ({label})" if label else "")
        point = build(Point, row, findings, file, table)
        if point is None:
            continue
        if point.name in points:
            findings.mistake(file, table, "name", f'"{point.name}" is there twice')
        if point.type in ("bcd", "mod10k", "string", "bytes") and point.length is None:
            findings.mistake(
                file, table, "length", f"is missing: {point.type} has no length of its own"
            )
        points[point.name] = point
    for point in points.values():
        if point.scale_point and point.scale_point not in points:
            hint = did_you_mean(point.scale_point, points)
            findings.mistake(
                file,
                f"points ({point.name})",
                "scale_point",
                f'no point "{point.scale_point}"',
                hint,
            )
    derived = _texts(raw.get("derived", {}), findings, file, "derived")
    sentinels = _texts(raw.get("sentinels", {}), findings, file, "sentinels")
    for total, parts in derived.items():
        for part in parts:
            if part not in points:
                findings.mistake(
                    file, "derived", total, f'no point "{part}"', did_you_mean(part, points)
                )
    if not rows:
        findings.mistake(file, "points", "", "a Modbus model has at least one of [[points]]")
    interval = build(Sampling, raw.get("interval", {}), findings, file, "interval")
    midnight = build(Sampling, raw.get("midnight", {}), findings, file, "midnight")
    for table, sampling in (("interval", interval), ("midnight", midnight)):
        for sampled in (*sampling.points, *_history(sampling)) if sampling else ():
            if sampled not in points and sampled not in derived:
                hint = did_you_mean(sampled, (*points, *derived))
                findings.mistake(file, table, "points", f'no point "{sampled}"', hint)
    history = None
    if "history" in raw:
        spans = {p.name: (p.table, p.address, p.address + _size(p)) for p in points.values()}
        units = {p.name: str(p.unit) for p in points.values()}
        history = history_of(raw["history"], spans, units, findings, file)
    if link is None or interval is None or midnight is None:
        return None
    return ModbusModel(
        name=name,
        about=about,
        link=link,
        points=tuple(points.values()),
        identify=identify,
        derived=derived,
        sentinels={name: ", ".join(texts) for name, texts in sentinels.items()},
        interval=interval,
        midnight=midnight,
        history=history,
    )


def _size(point: Point) -> int:
    """Registers of a point; the largest type's where that is not told, which is a mistake of its own."""
    return point.length or (1 if "16" in point.type else 2 if "32" in point.type else 4)


def _history(sampling: Sampling) -> list[str]:
    """Every point that a history names."""
    return [name for counter, kept in sampling.history.items() for name in (counter, *kept)]


def _named(cls: type[S], raw: object, findings: Findings, file: str, table: str) -> dict[str, S]:
    """Structs of the sub-tables [table.<name>]."""
    if not isinstance(raw, dict):
        findings.mistake(file, table, "", "expected tables")
        return {}
    built = {key: build(cls, value, findings, file, f"{table}.{key}") for key, value in raw.items()}
    return {key: struct for key, struct in built.items() if struct is not None}


def _texts(raw: object, findings: Findings, file: str, table: str) -> dict[str, tuple[str, ...]]:
    """A table whose values are texts or lists of texts."""
    try:
        converted = msgspec.convert(raw, dict[str, tuple[str, ...] | str])
    except msgspec.ValidationError as error:
        findings.mistake(file, table, "", str(error))
        return {}
    return {key: (value,) if isinstance(value, str) else value for key, value in converted.items()}
