"""Read gateway.toml, the fleet file and the models into a `Config`, or say everything that is wrong with them.

Nothing is opened but these files: no socket, no device, no data directory. Relative paths are taken from the folder
of gateway.toml. The environment variable OPENDCU_DATA_DIR goes before `gateway.data_dir`.
"""

from __future__ import annotations

import csv
import os
import tomllib
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from edge_core.config.models import Model, load_model
from edge_core.config.schema import ROLES, TABLES, Config, Gateway, Line, Meter, Role
from edge_core.config.tables import (
    ConfigErrors,
    Findings,
    build,
    did_you_mean,
    fields_of,
    path_keys,
)
from edge_core.config.values import Address, parse_address, split_host_port
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["ConfigErrors", "load", "with_roles"]

S = TypeVar("S", bound=msgspec.Struct)

MAX_FILE_BYTES = 64 << 20
FRAMINGS = {
    "tcp": ("wrapper", "hdlc", "modbus-tcp", "modbus-rtu"),
    "udp": ("wrapper",),
    "serial": ("hdlc", "modbus-rtu"),
}
LISTS = ("lines", "meters")
LOOPBACK = ("localhost", "::1")


class _Found(NamedTuple):
    """A meter and where it stands."""

    meter: Meter
    file: str
    number: int
    listed: bool

    @property
    def place(self) -> str:
        return (
            f"meters[{self.number}] ({self.meter.id})"
            if self.listed
            else f"row {self.number} ({self.meter.id})"
        )


def load(
    path: str | Path,
    *,
    strict: bool = True,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """The configuration in `path`.

    Args:
        strict: keys that this release does not know are mistakes; without it they stand in `Config.warnings`.
        overrides: table, key, value: these go before the file; numbers and booleans may be text (a Greengrass
            component's configuration).

    Raises:
        ConfigErrors: all mistakes of gateway.toml, the fleet file and the models used.
    """
    findings = Findings()
    file = str(path)
    raw = _toml(file, findings)
    if raw is None:
        raise ConfigErrors(findings.mistakes)
    folder = Path(path).absolute().parent
    for key in raw:
        if key not in TABLES and key not in LISTS:
            hint = did_you_mean(key, (*TABLES, *LISTS))
            findings.unknown.append(ConfigError(file, key, "", "unknown table", hint))

    given = overrides or {}
    for name, keys in given.items():
        if isinstance(raw.setdefault(name, {}), dict):
            raw[name] |= keys
    if "gateway" not in raw:
        findings.mistake(
            file, "gateway", "", "the table is missing", 'it needs at least id = "..."'
        )
        raw["gateway"] = {"id": "missing"}
    tables: dict[str, Any] = {}
    for name, cls in TABLES.items():
        built = build(cls, raw.get(name, {}), findings, file, name, text=name in given)
        if built is not None:
            tables[name] = _absolute(built, folder)
    if (override := environment.get("OPENDCU_DATA_DIR")) and "gateway" in tables:
        tables["gateway"] = msgspec.structs.replace(
            tables["gateway"], data_dir=str(Path(override).absolute())
        )

    lines = _lines(raw.get("lines", []), findings, file, folder)
    found = list(_meters(raw.get("meters", []), findings, file))
    if "fleet" in tables and tables["fleet"].file:
        found.extend(_fleet(tables["fleet"].file, findings, file))
    models = _models(found, findings, folder)
    _check_meters(found, lines, models, findings)
    _check_tables(tables, findings, file, folder)
    if "gateway" in tables:
        _check_titles(found, tables["gateway"], findings)
    findings.raise_mistakes(strict=strict)
    return Config(
        **tables,
        lines={line.id: line for line in lines.values()},
        meters={f.meter.id: f.meter for f in found},
        models={name: model for name, model in models.items() if model is not None},
        file=Path(path).absolute(),
        warnings=tuple(str(error) for error in findings.unknown),
    )


def with_roles(config: Config, roles: Iterable[str]) -> Config:
    """The configuration with other roles, as `--roles` asks.

    Raises:
        ConfigErrors: a role that does not exist.
    """
    wanted: list[Role] = []
    errors = []
    for name in roles:
        role = next((r for r in ROLES if r == name), None)
        if role is None:
            errors.append(
                ConfigError("--roles", "", name, f"no such role; known are {', '.join(ROLES)}")
            )
        elif role not in wanted:
            wanted.append(role)
    if errors or not wanted:
        raise ConfigErrors(
            errors or [ConfigError("--roles", "", "", "at least one role is needed")]
        )
    return msgspec.structs.replace(
        config, gateway=msgspec.structs.replace(config.gateway, roles=tuple(wanted))
    )


def _toml(file: str, findings: Findings) -> dict[str, Any] | None:
    """The parsed file, or None after what is wrong with it was added."""
    try:
        path = Path(file)
        if path.stat().st_size > MAX_FILE_BYTES:
            findings.mistake(file, "", "", f"is larger than {MAX_FILE_BYTES >> 20} MiB")
            return None
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        findings.mistake(file, "", "", "no such file")
    except OSError as error:
        findings.mistake(file, "", "", f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        findings.mistake(file, "", "", f"is not UTF-8 at octet {error.start}")
    except tomllib.TOMLDecodeError as error:
        findings.mistake(file, "", "", f"is not TOML: {error}")
    except RecursionError:
        findings.mistake(file, "", "", "is nested too deeply")
    return None


def _absolute(table: S, folder: Path) -> S:
    """The table with its relative paths taken from the folder."""
    changed = {
        key: str(folder / value)
        for key in path_keys(type(table))
        if (value := getattr(table, key)) and value[0] != "/"
    }
    return msgspec.structs.replace(table, **changed) if changed else table


def _reference(text: str, folder: Path) -> str:
    """`file:<path>` with the path made absolute; anything else as it is."""
    return f"file:{folder / text[5:]}" if text.startswith("file:") else text


# Lines and meters -----------------------------------------------------------------------------------------------------


def _rows(raw: object, findings: Findings, file: str, name: str) -> Iterator[tuple[int, str, Any]]:
    """Number, place and table of each of [[name]]."""
    if not isinstance(raw, list):
        findings.mistake(file, name, "", f"expected tables, each begun with [[{name}]]")
        return
    for number, row in enumerate(raw, 1):
        label = row.get("id") if isinstance(row, dict) else None
        yield number, f"{name}[{number}]" + (f" ({label})" if isinstance(label, str) else ""), row


def _lines(raw: object, findings: Findings, file: str, folder: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    devices: dict[str, str] = {}
    for _number, place, row in _rows(raw, findings, file, "lines"):
        line = build(Line, row, findings, file, place)
        if line is None:
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                lines.setdefault(
                    row["id"], _UNKNOWN_LINE
                )  # its meters have no mistake of their own
            continue
        if line.id in lines:
            findings.mistake(file, place, "id", f'"{line.id}" is there twice')
        fitting = FRAMINGS[line.transport]
        if line.framing not in fitting:
            findings.mistake(
                file,
                place,
                "framing",
                f"{line.framing} does not run over {line.transport}",
                f"use {', '.join(fitting)}",
            )
        if line.transport == "serial":
            if not line.device:
                findings.mistake(
                    file, place, "device", "is missing", 'as in "/dev/serial/by-path/..."'
                )
            elif "://" not in line.device:
                line = msgspec.structs.replace(line, device=str(folder / line.device))
            if line.concurrency != 1:
                findings.mistake(
                    file,
                    place,
                    "concurrency",
                    "a serial line has one session at a time",
                    "leave it out",
                )
            if line.address:
                findings.mistake(
                    file, place, "address", "a serial line has a device, no host", "leave it out"
                )
            if line.device in devices:
                findings.mistake(
                    file, place, "device", f"{line.device} is line {devices[line.device]} already"
                )
            if line.device:
                devices[line.device] = line.id
        else:
            for key in ("device", "mode_e"):
                if getattr(line, key):
                    findings.mistake(
                        file, place, key, f"only for serial lines; this one is {line.transport}"
                    )
            if line.address:
                _endpoint(line.address, findings, file, place, "address")
        if line.mode_e and line.framing != "hdlc":
            findings.mistake(file, place, "mode_e", "only with framing hdlc")
        lines[line.id] = line
    return lines


_UNKNOWN_LINE = Line(id="x", transport="tcp", framing="wrapper")
"""Stands for a line that is there and has mistakes."""


def _meters(raw: object, findings: Findings, file: str) -> Iterator[_Found]:
    for number, place, row in _rows(raw, findings, file, "meters"):
        meter = build(Meter, row, findings, file, place)
        if meter is not None:
            yield _Found(meter, file, number, listed=True)


def _fleet(path: str, findings: Findings, named_in: str) -> Iterator[_Found]:
    """The meters of a CSV file; its mistakes name file and row (row 1 is the header, as editors count)."""
    columns = fields_of(Meter)
    shown = os.path.relpath(path) if len(os.path.relpath(path)) < len(path) else path
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            findings.mistake(
                named_in, "fleet", "file", f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB"
            )
            return
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            text = stream.read()
    except FileNotFoundError:
        findings.mistake(named_in, "fleet", "file", f"no such file: {path}")
        return
    except OSError as error:
        findings.mistake(named_in, "fleet", "file", f"{path} cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError as error:
        findings.mistake(
            shown, "", "", f"is not UTF-8 at octet {error.start}", "export it as CSV UTF-8"
        )
        return
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if not header:
            findings.mistake(
                shown, "row 1", "", "the header is missing", f"it names {', '.join(columns)}"
            )
            return
        usable = True
        for column in header:
            if header.count(column) > 1:
                findings.mistake(shown, "row 1", column, "the column is there twice")
                usable = False
                break
            if column not in columns:
                hint = did_you_mean(column, columns)
                if len(header) == 1 and ";" in column:
                    hint = "columns are parted by commas, not by semicolons"
                findings.unknown.append(ConfigError(shown, "row 1", column, "unknown column", hint))
        missing = [key for key, f in columns.items() if f.required and key not in header]
        for key in missing:
            findings.mistake(shown, "row 1", key, "the column is missing")
        if missing or not usable:
            return
        known = [(i, column) for i, column in enumerate(header) if column in columns]
        width = len(header)
        for row in rows:
            if not row:
                continue
            if len(row) != width:
                label = f" ({row[header.index('id')]})" if len(row) > header.index("id") else ""
                findings.mistake(
                    shown,
                    f"row {rows.line_num}{label}",
                    "",
                    f"{len(row)} cells, the header has {width}",
                )
                continue
            cells = {column: row[i] for i, column in known if row[i]}
            try:
                yield _Found(
                    msgspec.convert(cells, Meter, strict=False), shown, rows.line_num, listed=False
                )
            except msgspec.ValidationError:
                build(
                    Meter,
                    cells,
                    findings,
                    shown,
                    f"row {rows.line_num} ({cells.get('id', '')})",
                    text=True,
                )
    except csv.Error as error:
        findings.mistake(shown, f"row {rows.line_num}", "", f"is not CSV: {error}")


def _models(found: list[_Found], findings: Findings, folder: Path) -> dict[str, Model | None]:
    """Every model that is used; None for those with mistakes, which are told once."""
    models: dict[str, Model | None] = {}
    for f in found:
        name = f.meter.model
        if name in models:
            continue
        models[name] = None
        try:
            models[name] = load_model(name, base=folder, strict=False)
        except ConfigErrors as refusal:
            first = refusal.errors[0]
            if first.file == name:  # there is none
                findings.mistake(f.file, f.place, "model", f'{first.problem} "{name}"', first.hint)
            else:
                findings.mistakes.extend(refusal.errors)
    return models


def _check_meters(
    found: list[_Found], lines: dict[str, Line], models: dict[str, Model | None], findings: Findings
) -> None:
    ids: dict[str, _Found] = {}
    addresses: dict[tuple[str, Address], _Found] = {}
    for f in found:
        meter = f.meter
        first = ids.setdefault(meter.id, f)
        if first is not f:
            findings.mistake(
                f.file, f.place, "id", f'"{meter.id}" is there twice: {first.file}: {first.place}'
            )
        line = lines.get(meter.line)
        if line is None:
            hint = did_you_mean(meter.line, lines) or "each line is a table [[lines]]"
            findings.mistake(f.file, f.place, "line", f'no line "{meter.line}"', hint)
            continue
        if line is _UNKNOWN_LINE:
            continue
        model = models.get(meter.model)
        if model is not None and model.about.protocol != line.protocol:
            findings.mistake(
                f.file,
                f.place,
                "model",
                f"{meter.model} speaks {model.about.protocol}, line {line.id} is {line.framing}",
            )
        if line.protocol == "modbus":
            for key in ("client", "security", "title"):
                if getattr(meter, key):
                    findings.mistake(
                        f.file, f.place, key, "only for DLMS meters; this line is Modbus"
                    )
        try:
            address = parse_address(
                meter.address, transport=line.transport, framing=line.framing, shared=line.address
            )
        except ValueError as error:
            findings.mistake(f.file, f.place, "address", str(error))
            continue
        first = addresses.setdefault((line.device or line.transport, address), f)
        if first is not f and meter.id != first.meter.id:
            findings.mistake(
                f.file,
                f.place,
                "address",
                f"{meter.address} is the address of {first.meter.id} ({first.file}) too",
            )


def _check_titles(found: list[_Found], gateway: Gateway, findings: Findings) -> None:
    """No system title twice: half of every GCM nonce."""
    titles: dict[bytes, str] = {gateway.title: "this gateway"}
    for f in found:
        if f.meter.title:
            title = bytes.fromhex(f.meter.title)
            if title in titles:
                findings.mistake(
                    f.file, f.place, "title", f"is the system title of {titles[title]} too"
                )
            titles.setdefault(title, f.meter.id)


# Single tables --------------------------------------------------------------------------------------------------------


def _check_tables(tables: dict[str, Any], findings: Findings, file: str, folder: Path) -> None:
    """What one key means for another; completes the paths that are written inside other texts."""
    if gateway := tables.get("gateway"):
        try:
            zoneinfo.ZoneInfo(gateway.timezone)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            hint = (
                did_you_mean(gateway.timezone, zoneinfo.available_timezones())
                or 'as in "Asia/Kolkata"'
            )
            findings.mistake(
                file, "gateway", "timezone", f'"{gateway.timezone}" is no time zone', hint
            )
        for role in sorted({r for r in gateway.roles if gateway.roles.count(r) > 1}):
            findings.mistake(file, "gateway", "roles", f'"{role}" is there twice')
        if not gateway.roles:
            findings.mistake(
                file,
                "gateway",
                "roles",
                "at least one role is needed",
                f"known are {', '.join(ROLES)}",
            )
    if uplink := tables.get("uplink"):
        tables["uplink"] = _check_uplink(uplink, findings, file, folder)
    if (journal := tables.get("journal")) and journal.alarm_reserve_bytes * 2 > journal.max_bytes:
        findings.mistake(file, "journal", "alarm_reserve_bytes", "is more than half of max_bytes")
    if keys := tables.get("keys"):
        if keys.provider == "command" and not keys.command:
            findings.mistake(file, "keys", "command", "is missing", 'as in ["/usr/bin/vault-read"]')
        if keys.provider == "secret" and not keys.secret:
            findings.mistake(file, "keys", "secret", "is missing", "the name or ARN of the secret")
        kind, _, place = keys.kek.partition(":")
        if kind in ("creds", "file"):
            tables["keys"] = msgspec.structs.replace(keys, kek=f"{kind}:{folder / place}")
    if (power := tables.get("power")) and power.provider != "none":
        if not power.source:
            findings.mistake(file, "power", "source", f"is missing for provider {power.provider}")
        elif power.provider != "gpio":
            tables["power"] = msgspec.structs.replace(power, source=str(folder / power.source))
    for url in tables["push"].listen if "push" in tables else ():
        scheme, _, place = url.partition("://")
        if scheme not in ("udp", "tcp"):
            findings.mistake(file, "push", "listen", f'"{url}" is no udp:// or tcp:// address')
        else:
            _endpoint(place, findings, file, "push", "listen")
    if detector := tables.get("detector"):
        if detector.model != "builtin":
            detector = msgspec.structs.replace(detector, model=str(folder / detector.model))
        if detector.shadow:
            detector = msgspec.structs.replace(detector, shadow=str(folder / detector.shadow))
        tables["detector"] = detector
    if console := tables.get("console"):
        host = _endpoint(console.listen, findings, file, "console", "listen")
        if console.token and not console.token.startswith(("file:", "env:")):
            findings.mistake(
                file,
                "console",
                "token",
                "is a value",
                'write a reference: "file:<path>" or "env:<NAME>"',
            )
        elif host is not None and not is_loopback(host) and not console.token:
            hint = 'add token = "file:..." or listen on 127.0.0.1'
            findings.mistake(
                file,
                "console",
                "token",
                f"{console.listen} is not loopback and needs a token",
                hint,
            )
        tables["console"] = msgspec.structs.replace(
            console, token=_reference(console.token, folder)
        )


def is_loopback(host: str) -> bool:
    """Does the host name only this machine?"""
    return host in LOOPBACK or host.startswith("127.")


def _check_uplink(uplink: Any, findings: Findings, file: str, folder: Path) -> Any:
    def mistake(key: str, problem: str, hint: str = "") -> None:
        findings.mistake(file, "uplink", key, problem, hint)

    url = uplink.url
    if uplink.kind == "file":
        if not url or "://" in url:
            mistake("url", f'"{url}" is no directory', 'for kind "file" the url is a path')
        else:
            url = str(folder / url)
    elif uplink.kind in ("mqtt", "aws"):
        parts = urlsplit(url if "://" in url else f"mqtts://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if uplink.kind == "mqtt" and "://" not in url:
            mistake("url", f'"{url}" has no scheme', "mqtt://host:port or mqtts://host:port")
        elif parts.scheme not in ("mqtt", "mqtts") or (
            uplink.kind == "aws" and parts.scheme != "mqtts"
        ):
            expected = (
                "mqtt://host:port or mqtts://host:port"
                if uplink.kind == "mqtt"
                else "the IoT endpoint"
            )
            mistake("url", f'"{url}" cannot be used for kind "{uplink.kind}"', expected)
        elif not parts.hostname or port in (-1, 0):
            mistake("url", f'"{url}" names no host or a wrong port')
        if parts.username or parts.password:
            mistake("url", "holds a user name or a password", "use username and password")
    if bool(uplink.cert_file) != bool(uplink.key_file):
        mistake(
            "key_file" if uplink.cert_file else "cert_file",
            "is missing: mutual TLS needs cert_file and key_file",
        )
    if uplink.kind == "aws" and not uplink.cert_file:
        mistake("cert_file", 'is missing: kind "aws" needs cert_file and key_file')
    if uplink.password and not uplink.password.startswith(("file:", "env:")):
        mistake("password", "is a value", 'write a reference: "file:<path>" or "env:<NAME>"')
    if uplink.proxy and urlsplit(uplink.proxy).scheme != "http":
        mistake("proxy", f'"{uplink.proxy}" is no http://host:port')
    if uplink.alpn443 and not uplink.cert_file:
        mistake("alpn443", "needs cert_file and key_file")
    return msgspec.structs.replace(
        uplink,
        url=url,
        username=_reference(uplink.username, folder),
        password=_reference(uplink.password, folder),
    )


def _endpoint(text: str, findings: Findings, file: str, table: str, key: str) -> str | None:
    """The host of host:port, or None after a mistake was added."""
    try:
        return split_host_port(text)[0]
    except ValueError as error:
        findings.mistake(file, table, key, str(error))
        return None
