"""A fleet of simulated meters in one process: it serves, misbehaves on order, and knows the truth.

`Fleet` opens the sockets, writes `meters.csv`, `keys.toml` and `lines.toml` for a gateway, and obeys orders: JSON
objects with a key `do`, answered by JSON objects (`{"error": ...}` when an order makes no sense). Orders:

  {"do": "fault", "meter": ID, "what": NAME, "for": 5.0}   see simulators.faults; seconds are real ones
  {"do": "step-back", "meter": ID, "periods": 2}           the meter's clock loses so many block periods
  {"do": "swap", "meter": ID}                              another device behind the same address; Modbus: counters at 0
  {"do": "event", "meter": ID, "log": 4, "code": 201}      a row in an event log
  {"do": "gasp", "meter": ID, "to": URL, "how": "genuine"} a last gasp; `restore`: a first breath, alike
  {"do": "alarm", "meter": ID, "to": URL, "descriptor": 16} an alarm descriptor of an IDIS meter
  {"do": "storm", "meters": [ID] or N, "to": URL, "within": 1.0}  last gasps of many, spread over so many seconds
  {"do": "outage", "meters": [ID], "to": URL, "for": 5.0}  last gasp, no power and no rows, then a first breath;
      both answer {"gasps": [reports]}, or write them into "file": PATH; reports as in simulators.dlms.push
  {"do": "freeze"}                                         nothing is captured from now on
  {"do": "truth", "file": PATH}                            every row ever captured, one JSON line a device and profile
  {"do": "modbus", "meter": ID, "points": [OBIS], "at": T} what points of a Modbus meter read at a civil second
  {"do": "verify", "file": PATH}                           samples of Modbus meters, checked against the truth: JSON
      lines {"meter", "obis" or "name", "value", "scaler", "from", "to"}, civil seconds; answers {"checked", "wrong": [...]}
  {"do": "status"}   {"do": "quit"}
"""

from __future__ import annotations

import asyncio
import csv
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from edge_core.clock import Clock, SystemClock
from edge_core.errors import ConfigError
from simulators import loads
from simulators.dlms.device import Device
from simulators.dlms.layouts import LAYOUTS
from simulators.dlms.lines import Lines
from simulators.dlms.meter import QUIRKS, SECURITIES, Keys, Meter
from simulators.dlms.push import FIRST_BREATH, LAST_GASP, push, push_alarm
from simulators.dlms.record import Record
from simulators.dlms.suites import public
from simulators.modbus.points import load_map
from simulators.modbus.server import ModbusLine
from simulators.modbus.units import Unit
from simulators.spec import DlmsGroup, FleetSpec, ModbusGroup, running_id

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from decimal import Decimal

FIRST_SERIAL = 70_000_001
FIRST_ID = "GP1000001"
CSV_COLUMNS = ("id", "line", "model", "address", "client", "security")
_SOCKETS_BESIDE = 256


class Fleet:
    """All simulated meters of one process.

    Args:
        spec: which meters.
        state: folder of counters and violations.
        clock: civil time of the meters.
    """

    def __init__(self, spec: FleetSpec, state: Path, clock: Clock) -> None:
        self.spec, self.clock = spec, clock
        self.real = SystemClock()
        self.record = Record(state, self.real)
        self.dlms: list[Meter] = []
        self.modbus: list[Unit] = []
        self.frozen_at: float | None = None
        self.gasps: list[dict[str, Any]] = []
        self._lines = Lines(spec.seed)
        self._modbus_lines: list[ModbusLine] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_id, self._next_number = FIRST_ID, 0
        try:
            self._make(spec)
        except ConfigError:
            self.record.close()
            raise
        self._by_id = {meter.id: meter for meter in self.all()}

    # --- life

    async def open(self) -> None:
        """Listen for every meter."""
        _allow_sockets(len(self.dlms) + _SOCKETS_BESIDE)
        loads.curves()
        for meter in self.dlms:
            if self.spec.by_address:
                k = meter.index
                meter.host = f"127.{1 + k // 62_500}.{k // 250 % 250}.{1 + k % 250}"
            port = self.spec.port
            if port and not self.spec.by_address:
                port += meter.index
            await self._lines.open(meter, port)
        for name in dict.fromkeys(unit.line for unit in self.modbus):
            line = ModbusLine([u for u in self.modbus if u.line == name], self.spec.seed)
            await line.open(self.spec.host, 0)
            self._modbus_lines.append(line)

    async def close(self) -> None:
        """Stop everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lines.close()
        for line in self._modbus_lines:
            await line.close()
        self.record.close()

    def ready(self, folder: Path) -> dict[str, Any]:
        """The line that `opendcu simulate` prints when all meters listen; the meters stand in the files in `folder`."""
        return {
            "ready": True,
            "dlms": len(self.dlms),
            "modbus": len(self.modbus),
            "seed": self.spec.seed,
            "history_s": self.spec.history_s,
            "meters_csv": str(folder / "meters.csv"),
            "keys_toml": str(folder / "keys.toml"),
            "lines_toml": str(folder / "lines.toml"),
            "record": str(self.record.path),
        }

    # --- files for a gateway

    def write_files(self, folder: Path) -> None:
        """`meters.csv`, `keys.toml` (mode 0600) and `lines.toml`, a snippet for gateway.toml."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "meters.csv").open("w", newline="", encoding="utf-8") as file:
            self._write_csv(file)
        keys = "".join(
            f'[{m.id}]\nguek = "{m.keys.guek.hex()}"\ngak = "{m.keys.gak.hex()}"\n'
            f'password = "{m.keys.password}"\nhls = "{m.keys.hls.hex()}"\n{_curve_keys(m)}\n'
            for m in self.dlms
        )
        handle = os.open(folder / "keys.toml", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(keys)
        (folder / "lines.toml").write_text(self._lines_toml(), encoding="utf-8")

    def _write_csv(self, file: TextIO) -> None:
        rows = csv.writer(file)
        rows.writerow([*CSV_COLUMNS, "title"] if self.spec.titles else CSV_COLUMNS)
        titles = {m.id: m.device.title.hex() for m in self.dlms}
        for row in self._rows():
            rows.writerow([*row, titles.get(str(row[0]), "")] if self.spec.titles else row)

    def _rows(self) -> Iterable[list[str | int]]:
        for m in self.dlms:
            yield [m.id, m.line, m.model, m.address, m.client, m.security]
        for u in self.modbus:
            yield [u.id, u.line, u.model, u.address, "", ""]

    def _lines_toml(self) -> str:
        lines: dict[str, tuple[str, str]] = {}
        for m in self.all():
            lines.setdefault(m.line, (getattr(m, "transport", "tcp"), m.framing))
        return "".join(
            f'[[lines]]\nid = "{name}"\ntransport = "{transport}"\nframing = "{framing}"\n\n'
            for name, (transport, framing) in lines.items()
        )

    # --- orders

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order; never raises for a wrong one."""
        try:
            return await self._obey(order)
        except (KeyError, ValueError, TypeError, OSError) as error:
            why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            return {"do": order.get("do"), "error": why}

    async def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        do = order["do"]
        done: dict[str, Any] = {"do": do, "ok": True}
        match do:
            case "fault":
                self._fault(self.find(order["meter"]), str(order["what"]), float(order["for"]))
            case "step-back":
                meter = self.meter(order["meter"])
                meter.capture()
                now = self.clock.now()
                back = int(order.get("periods", 1)) * 900
                meter.device.set_clock(now, int(now) + meter.device.offset - back)
            case "swap":
                found = self.find(order["meter"])
                if isinstance(found, Meter):
                    found.swap()
                else:
                    found.reset()
            case "event":
                meter = self.meter(order["meter"])
                meter.device.note_event(
                    int(order["log"]), int(order["code"]), int(self.clock.now())
                )
            case "gasp" | "restore":
                bit = LAST_GASP if do == "gasp" else FIRST_BREATH
                done |= self._push(
                    self.meter(order["meter"]), order["to"], order.get("how", "genuine"), bit
                )
            case "alarm":
                meter = self.meter(order["meter"])
                done |= push_alarm(meter, order["to"], int(order["descriptor"]), self.real)
            case "storm":
                done |= _reports(await self._storm(order), order)
            case "outage":
                done |= _reports(self._outage(order), order)
            case "freeze":
                self.freeze()
                done["at"] = self.frozen_at
            case "truth":
                done |= self.write_truth(Path(order["file"]))
            case "modbus":
                unit = self.unit(order["meter"])
                at = int(order.get("at", self.clock.now()))
                done |= {"at": at, "values": {p: _text(unit.truth(p, at)) for p in order["points"]}}
            case "verify":
                done |= self.verify(Path(order["file"]))
            case "status":
                done |= self.status()
            case "quit":
                pass
            case _:
                raise ValueError(f"no order {do!r}")
        return done

    def all(self) -> list[Meter | Unit]:
        """Every meter, DLMS first."""
        return [*self.dlms, *self.modbus]

    def find(self, who: str | int) -> Meter | Unit:
        """A meter by id, or a DLMS meter by its position.

        Raises:
            ValueError: there is none.
        """
        if isinstance(who, int):
            found: Meter | Unit | None = self.dlms[who] if 0 <= who < len(self.dlms) else None
        else:
            found = self._by_id.get(who)
        if found is None:
            raise ValueError(f"no meter {who!r}")
        return found

    def meter(self, who: str | int) -> Meter:
        """The same for DLMS meters alone."""
        found = self.find(who)
        if not isinstance(found, Meter):
            raise ValueError(f"{found.id} is a Modbus meter")  # noqa: TRY004 the order is wrong, not the program
        return found

    def unit(self, who: str) -> Unit:
        """The same for Modbus meters alone."""
        found = self.find(who)
        if isinstance(found, Meter):
            raise ValueError(f"{found.id} is a DLMS meter")  # noqa: TRY004 the order is wrong, not the program
        return found

    def freeze(self) -> None:
        """Capture what is due now, and nothing from here on."""
        if self.frozen_at is None:
            for meter in self.dlms:
                meter.freeze()
            self.frozen_at = self.clock.now()

    def _fault(self, meter: Meter | Unit, what: str, for_s: float) -> None:
        if isinstance(meter, Meter):
            meter.capture()
        meter.faults.begin(what, self.clock.monotonic() + for_s)
        if what == "rows-missing" and isinstance(meter, Meter):
            self._later(for_s - 0.02, meter.capture)  # the last rows of the window are lost too

    def _later(self, delay_s: float, call: Any) -> None:
        async def wait() -> None:
            await asyncio.sleep(max(0.0, delay_s))
            call()

        task = asyncio.get_running_loop().create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _push(self, meter: Meter, to: str, how: str, bit: int) -> dict[str, Any]:
        if not meter.layout.east:
            raise ValueError(f"meter {meter.id}: an {meter.model} meter sends no last gasp")
        report = push(meter, to, how, bit, self.real)
        if report["genuine"]:
            self.gasps.append(report)
        return report

    def _many(self, who: Any) -> list[Meter]:
        able = [m for m in self.dlms if m.layout.east]
        if who is None:
            return able
        return able[:who] if isinstance(who, int) else [self.meter(w) for w in who]

    async def _storm(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        meters, within = self._many(order.get("meters")), float(order.get("within", 1.0))
        start, reports = self.clock.monotonic(), []
        for k, meter in enumerate(meters):
            due = start + within * k / max(1, len(meters))
            if (wait := due - self.clock.monotonic()) > 0.002:
                await asyncio.sleep(wait)
            reports.append(self._push(meter, order["to"], order.get("how", "genuine"), LAST_GASP))
            if k % 50 == 49:
                await asyncio.sleep(0)
        return reports

    def _outage(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        meters, to, reports = self._many(order.get("meters")), order["to"], []
        for meter in meters:
            reports.append(self._push(meter, to, "genuine", LAST_GASP))
            meter.device.power_off(self.clock.now())

        def back() -> None:
            for meter in meters:
                meter.device.power_on(self.clock.now())
                if self.frozen_at is None:
                    self._push(meter, to, "genuine", FIRST_BREATH)

        self._later(float(order["for"]), back)
        return reports

    # --- truth

    def _devices(self) -> Iterable[tuple[Meter, Device]]:
        for meter in self.dlms:
            meter.capture()
            for device in (*meter.former, meter.device):
                yield meter, device

    def captured(self) -> dict[str, int]:
        """Readings that all devices have ever captured, per kind; status columns are no readings."""
        counts: dict[str, int] = {}
        for _, device in self._devices():
            for kind, rows in device.rows.items():
                cells = sum(c.source != "status" for c in rows.profile.columns)
                counts[kind] = counts.get(kind, 0) + len(rows.times) * cells
        return counts

    def truth(self) -> Iterable[dict[str, Any]]:
        """Every row ever captured: one object per device and profile that has rows, columns as in DESIGN section 6."""
        for meter, device in self._devices():
            for kind, rows in device.rows.items():
                if len(rows.times):
                    yield {"meter": meter.id, "held": device is meter.device, **device.truth(kind)}

    def write_truth(self, path: Path) -> dict[str, Any]:
        """The truth as JSON lines; returns what was written."""
        encode, rows, readings = msgspec.json.encode, 0, 0
        with path.open("wb") as file:
            for entry in self.truth():
                file.write(encode(entry) + b"\n")
                rows += len(entry["t"])
                readings += len(entry["t"]) * len(entry["cols"])
        return {"rows": rows, "readings": readings}

    def verify(self, path: Path) -> dict[str, Any]:
        """Judge samples of Modbus meters; up to 20 wrong ones are returned, with what was true at the ends."""
        checked, wrong = 0, []
        with path.open("rb") as lines:
            for line in lines:
                sample = msgspec.json.decode(line, type=_Sample)
                unit, what = self.unit(sample.meter), sample.obis or sample.name
                checked += 1
                if not unit.agrees(what, sample.value, sample.scaler, sample.from_, sample.to):
                    ends = [_text(unit.truth(what, int(at))) for at in (sample.from_, sample.to)]
                    wrong.append({**msgspec.to_builtins(sample), "true": ends})
        return {"checked": checked, "wrong_count": len(wrong), "wrong": wrong[:20]}

    def status(self) -> dict[str, Any]:
        """Figures of the whole fleet."""
        now = self.clock.monotonic()
        return {
            "meters": {"dlms": len(self.dlms), "modbus": len(self.modbus)},
            "captured": self.captured(),
            "violations": self.record.violations,
            "contacts": sum(m.contacts for m in self.dlms),
            "silent": sum(m.contacts == 0 for m in self.dlms),
            "modbus_requests": sum(u.requests for u in self.modbus),
            "faults": {m.id: on for m in self.all() if (on := m.faults.active(now))},
            "gasps": len(self.gasps),
            "frozen_at": self.frozen_at,
        }

    # --- making meters

    def _make(self, spec: FleetSpec) -> None:
        for group in spec.dlms:
            self._add_dlms(group)
        for bus in spec.modbus:
            self._add_modbus(bus)
        if len({meter.id for meter in self.all()}) < len(self.all()):
            raise ConfigError("fleet", "dlms, modbus", "id", "two groups make the same ids")

    def _add_dlms(self, group: DlmsGroup) -> None:
        checks: list[tuple[str, str, Container[str]]] = [
            ("model", group.model, LAYOUTS),
            ("security", group.security, SECURITIES),
            ("framing", group.framing, ("wrapper", "hdlc")),
            (
                "transport",
                group.transport,
                ("tcp", "udp") if group.framing == "wrapper" else ("tcp",),
            ),
            *(("quirks", quirk, QUIRKS) for quirk in group.quirks),
            (
                "suite",
                str(group.suite),
                ("1", "2") if group.security == "hls7" else ("0", "1", "2"),
            ),
        ]
        for key, value, known in checks:
            if value not in known:
                raise ConfigError("fleet", "dlms", key, f"no {value!r}")
        layout = LAYOUTS[group.model]
        start = group.id or self._next_id
        born = int(self.clock.now()) - self.spec.history_s
        for k in range(group.count):
            index = self._next_number + k
            name = running_id(start, k)
            self.dlms.append(
                Meter(
                    id=name,
                    line=group.line,
                    layout=layout,
                    index=index,
                    seed=self.spec.seed,
                    security=group.security,
                    keys=Keys.derive(name, self.spec.seed, group.suite),
                    suite=group.suite,
                    clock=self.clock,
                    record=self.record,
                    device=Device(
                        layout, FIRST_SERIAL + index, index, self.spec.seed, born, group.zone
                    ),
                    framing=group.framing,
                    transport=group.transport,
                    max_pdu=group.pdu,
                    quirks=frozenset(group.quirks),
                    host=self.spec.host,
                    zone_name=group.zone,
                    answer_s=group.answer_ms / 1000,
                    own_start=(int(self.real.now()) - 1_500_000_000) << 2,
                )
            )
        self._next_number += group.count
        self._next_id = running_id(start, group.count)

    def _add_modbus(self, group: ModbusGroup) -> None:
        if group.framing not in ("modbus-tcp", "modbus-rtu"):
            raise ConfigError("fleet", "modbus", "framing", f"no {group.framing!r}")
        meter_map = load_map(group.model)
        start = group.id or self._next_id
        for k in range(group.count):
            index = self._next_number + k
            self.modbus.append(
                Unit(
                    id=running_id(start, k),
                    line=group.line,
                    map=meter_map,
                    index=index,
                    seed=self.spec.seed,
                    unit=group.unit + k,
                    clock=self.clock,
                    number=FIRST_SERIAL + index,
                    framing=group.framing,
                )
            )
        mine = [u for u in self.modbus if u.line == group.line]
        if len({u.unit for u in mine}) < len(mine) or not all(1 <= u.unit <= 247 for u in mine):
            raise ConfigError(
                "fleet", "modbus", "unit", f"line {group.line}: unit ids are 1 to 247, each once"
            )
        if len({u.framing for u in mine}) > 1:
            raise ConfigError(
                "fleet", "modbus", "framing", f"line {group.line}: one framing a line"
            )
        self._next_number += group.count
        self._next_id = running_id(start, group.count)


def _reports(reports: list[dict[str, Any]], order: dict[str, Any]) -> dict[str, Any]:
    """The reports of many pushes, in the answer or in the file that the order names."""
    if "file" not in order:
        return {"gasps": reports}
    Path(order["file"]).write_bytes(msgspec.json.encode(reports))
    return {"count": len(reports), "file": order["file"]}


class _Sample(msgspec.Struct, frozen=True):
    """A published sample of a Modbus meter; `from` and `to` are the civil seconds between which it was read."""

    meter: str
    value: int
    scaler: int
    from_: float = msgspec.field(name="from")
    to: float
    obis: str = ""
    name: str = ""


def _text(value: Decimal | None) -> str | None:
    return None if value is None else f"{value:f}"


def _allow_sockets(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count * 3:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count * 3)), hard))


def _curve_keys(meter: Meter) -> str:
    """What suites 1 and 2 add to a meter's table of the keys file: the client's private keys, the meter's public ones."""
    if not meter.suite:
        return ""
    keys = meter.keys
    named = {
        "master": keys.master,
        "sign": keys.client_sign,
        "agree": keys.client_agree,
        "meter_sign": public(meter.suite, keys.sign),
        "meter_agree": public(meter.suite, keys.agree),
    }
    return "".join(f'{name} = "{octets.hex()}"\n' for name, octets in named.items())
