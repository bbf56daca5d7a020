"""Write the reference pages from the code: `python docs/reference/generate.py`; tests/unit/test_docs.py compares.

configuration.md and models.md come from the structs of edge_core/config, their defaults and docstrings; meters.md from
the models that come with the product; cli.md from the click commands; events.md from edge_core/health/events.py.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import inspect as kinds

from edge_core.cli.main import COMMANDS, opendcu
from edge_core.config import history, models, schema
from edge_core.config.tables import fields_of
from edge_core.config.values import Duration, Schedule, Size
from edge_core.health import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parent
NOTE = "<!-- written by docs/reference/generate.py; do not edit -->\n"


def attributes(doc: str) -> dict[str, str]:
    """The Attributes section of a docstring: name to text."""
    found: dict[str, str] = {}
    name = ""
    _, _, section = inspect.cleandoc(doc).partition("Attributes:\n")
    for line in section.splitlines():
        match = re.match(r" {4}(\w+): (.*)", line)
        if match:
            name = match[1]
            found[name] = match[2]
        elif line.startswith("     ") and name:
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return found


def md(text: str) -> str:
    """Text for a cell or paragraph: no HTML outside of code, no column separators."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def summary(doc: str) -> str:
    """The text of a docstring before its sections."""
    text = re.split(r"\n\s*\n?(?:Attributes|Args|Raises|Returns):", inspect.cleandoc(doc))[0]
    return md(" ".join(text.split()))


def kind_of(kind: Any) -> str:
    """A type in the words of a person who writes TOML."""
    return _kind(kinds.type_info(kind))


def _kind(node: kinds.Type) -> str:
    extra: dict[str, Any] = {}
    if isinstance(node, kinds.Metadata):
        extra, node = node.extra or {}, node.type
    match node:
        case kinds.LiteralType(values=values):
            return " \\| ".join(f'`"{v}"`' if isinstance(v, str) else f"`{v}`" for v in values)
        case kinds.VarTupleType(item_type=item):
            return f"list of {_kind(item)}"
        case kinds.DictType(value_type=value):
            return f"table of {_kind(value)}"
        case kinds.UnionType(types=types):
            return " or ".join(_kind(t) for t in types if not isinstance(t, kinds.NoneType))
        case kinds.CustomType(cls=cls):
            words = {
                Size: "size",
                Duration: "duration",
                Schedule: "schedule",
                models.UnitName: "unit",
            }
            return words.get(cls, "OBIS code")
        case kinds.StructType(cls=cls):
            return "table: " + ", ".join(f"`{key}`" for key in fields_of(cls))
        case kinds.IntType() | kinds.FloatType():
            word = "whole number" if isinstance(node, kinds.IntType) else "number"
            low = (
                f"from {node.ge:g}"
                if node.ge is not None
                else f"above {node.gt:g}"
                if node.gt is not None
                else ""
            )
            high = f"to {node.le:g}" if node.le is not None else ""
            return " ".join(filter(None, (word, low, high)))
        case kinds.BoolType():
            return "`true` \\| `false`"
        case kinds.StrType():
            return "path" if extra.get("path") else extra.get("says", "text").replace("|", "\\|")
    raise TypeError(f"no words for {node}")


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """The default as TOML, or "needed"."""
    if field.required:
        return "needed"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
    return f"`{toml(value)}`" if value is not None else "none"


def toml(value: Any) -> str:
    """A value as it is written in a file."""
    if isinstance(value, Size):
        return f'"{value >> 20} MiB"' if value and value % (1 << 20) == 0 else f'"{int(value)}"'
    if isinstance(value, Duration):
        for word, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
            if value and value % size == 0:
                return f'"{int(value) // size}{word}"'
        return f'"{value:g}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict) or (
        type(value).__module__ != "builtins" and isinstance(value, msgspec.Struct)
    ):
        return "{}"
    return (
        f'"{value}"'
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def table(title: str, cls: type[msgspec.Struct]) -> str:
    """One table of a file as a section."""
    told = attributes(cls.__doc__ or "")
    lines = [
        f"## {title}\n",
        summary(cls.__doc__ or "") + "\n",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{key}` | {kind_of(f.type)} | {default_of(f)} | {md(told.get(key, ''))} |"
        for key, f in fields_of(cls).items()
    ]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """configuration.md."""
    parts = [
        "# Configuration\n",
        NOTE,
        "One file, `gateway.toml`. `opendcu check gateway.toml` reports every mistake at once and opens nothing else. "
        "Unknown keys are mistakes for `check`; `opendcu run` starts with them and raises the alarm `config-unknown-key`, "
        "so that the previous release starts on the next one's file. Relative paths are taken from the folder of the file.\n",
        '- **size**: `"512 MiB"`, `"100 kB"`, or a number of octets.',
        '- **duration**: a whole number with `ms`, `s`, `min`, `h` or `d`: `"15min"`, `"60d"`.',
        '- **schedule**: `"off"`, `"every 15min"` (`s`, `min`, `h`, `d`), or a civil time `"00:05"`.',
        "- **path**: relative ones start from the folder of `gateway.toml`.",
        "- Keys of meters are never values here, only references; `file:<path>` files have mode 0600.\n",
    ]
    parts += [table(f"[{name}]", cls) for name, cls in schema.TABLES.items()]
    parts += [table("[[lines]]", schema.Line), table("[[meters]]", schema.Meter)]
    parts.append(
        "## The fleet file\n\nUTF-8, RFC 4180, commas. The header holds keys of `[[meters]]`; `id`, `line`, `model` and "
        "`address` are needed; a blank cell is the default; an unknown column is a mistake.\n\n"
        "```csv\nid,line,model,address,multiplier,feeder\nGP1000001,feeder-12,is15959-3ph,10.1.0.11:4059,40,F12\n```\n\n"
        "## The keys file\n\nMode 0600 or refused. AES keys have 32 hex digits (64 in suite 2); private keys of suites 1 and 2 "
        "64 (P-256) or 96 (P-384). The meter's public keys are x and y (with `04` in front or not), or its certificate in "
        "DER, of which only the key is taken: no chain is followed.\n\n"
        '```toml\n[GP1000001]\nguek = "..."      # global unicast encryption key\ngak = "..."       # authentication key\n'
        'password = "..."  # low level security\nhls = "..."       # secret of the HLS mechanisms 2, 3, 4 and 6\n'
        'master = "..."    # key-encrypting key\n'
        'sign = "..."      # ours for signatures: HLS 7, general-signing, one-pass key agreement\n'
        'agree = "..."     # ours for key agreement\n'
        'meter_sign = "..."   # the meter\'s public key for signatures\n'
        'meter_agree = "..."  # the meter\'s public key for key agreement\n```\n\n'
        "## Environment\n\n| variable | meaning |\n|---|---|\n"
        "| `OPENDCU_CONFIG` | the configuration of commands without `-c` |\n"
        "| `OPENDCU_DATA_DIR` | goes before `gateway.data_dir` |\n"
        "| `OPENDCU_LOG` | level and format: `debug`, `json`, `info,console` |\n"
        "| `OPENDCU_CLOCK` | `<real0>:<sim0>:<speed>`: civil time of the desk |\n"
        '| `OPENDCU_KEY_<METER>_<GUEK\\|GAK\\|PASSWORD\\|HLS\\|MASTER\\|SIGN\\|AGREE\\|METER_SIGN\\|METER_AGREE>` | keys with `provider = "env"` |\n'
    )
    return "\n".join(parts)


def model_keys() -> str:
    """models.md."""
    parts = [
        "# Meter models\n",
        NOTE,
        'A model is `<name>.toml` with `schema = "opendcu.model/1"`, name in lower-case letters, digits and hyphens. '
        "`opendcu model list` shows those that come with the product, `opendcu model check FILE` checks one's own. "
        "OBIS codes are six decimals with dots.\n",
        table("[model]", models.About),
        "# DLMS/COSEM\n",
    ]
    dlms = (
        ("[association]", models.Association),
        ("[time]", models.MeterTime),
        ("[profiles.interval|midnight|billing|instantaneous|nameplate|events-k]", models.Profile),
        ("[push.name]", models.PushSetup),
        ("[quirks]", models.Quirks),
    )
    parts += [table(title, cls) for title, cls in dlms]
    parts.append("# Modbus\n")
    modbus = (
        ("[link]", models.Link),
        ("[[points]]", models.Point),
        ("[identify]", models.Identify),
        ("[interval], [midnight]", models.Sampling),
        ('[history] with kind = "window"', history.WindowHistory),
        ('[history] with kind = "last-period"', history.PeriodHistory),
    )
    parts += [table(title, cls) for title, cls in modbus]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before their members."""
    context = click.Context(opendcu)
    for name in opendcu.list_commands(context):
        command = opendcu.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for sub in sorted(command.commands):
                yield f"{name} {sub}", command.commands[sub]


def cli() -> str:
    """cli.md."""
    parts = [
        "# Command line\n",
        NOTE,
        "`opendcu` exits 0 on success, 1 on a failure that it names, 2 on wrong use or a configuration that cannot start. "
        "`--json` gives one machine-readable document (or JSON lines) on standard output; logs go to standard error.\n",
        "| command | does |\n|---|---|",
        *(
            f"| [`opendcu {n}`](#opendcu-{n}) | {COMMANDS[n].help} |"
            for n in opendcu.list_commands(click.Context(opendcu))
        ),
        "",
    ]
    for name, command in commands():
        with click.Context(command, info_name=f"opendcu {name}") as context:
            usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
            parts += [
                f"## opendcu {name}\n",
                f"```\n{usage}\n```\n",
                inspect.cleandoc(command.help or "") + "\n",
            ]
            records = [
                r
                for p in command.get_params(context)
                if (r := p.get_help_record(context)) and "--help" not in r[0]
            ]
            if records:
                parts += ["| option | meaning |", "|---|---|"]
                parts += [f"| {md(f'`{a}`')} | {md(b)} |" for a, b in records]
                parts.append("")
    return "\n".join(parts)


def event_functions() -> Iterator[Callable[..., None]]:
    """The functions of health/events.py that are events, in the order of the file."""
    for name, f in vars(events).items():
        if (
            inspect.isfunction(f)
            and f.__module__ == events.__name__
            and not name.startswith("_")
            and name != "summarise"
        ):
            yield f


def event_page() -> str:
    """events.md."""
    lines = [
        "# Events\n",
        NOTE,
        'Each event is one log line with `code`, and counts in `opendcu_gateway_events_total{event="<code>"}`. ERROR: data '
        "are lost or a human is needed. WARNING: unexpected, and healed or being healed. INFO: a state changed. Events of "
        f"meters beyond {events.SINGLE_LINES} a minute are summed up in one line.\n",
        "| code | level | meaning |",
        "|---|---|---|",
    ]
    for f in event_functions():
        source = inspect.getsource(f)
        code = re.search(r'"([a-z]+(?:-[a-z]+)*)"', source.partition('"""')[2].partition('"""')[2])
        level = next(
            name
            for name in ("ERROR", "WARNING", "INFO")
            if f"logging.{name}" in source or f"log.{name.lower()}" in source
        )
        assert code is not None, f.__name__
        assert hasattr(logging, level)
        lines.append(f"| `{code[1]}` | {level} | {summary(f.__doc__ or '')} |")
    return "\n".join(lines) + "\n"


PROVEN = {
    "document": "document",
    "simulator": "simulated meter",
    "meter": "meter",
}


def supported_meters() -> str:
    """meters.md: a row for each model that comes with the product."""
    found = [models.load_model(name) for name in models.model_names()]
    polled = [m for m in found if isinstance(m, models.DlmsModel) and m.profiles]
    pushed = [m for m in found if isinstance(m, models.DlmsModel) and not m.profiles]
    modbus = [m for m in found if isinstance(m, models.ModbusModel)]
    parts = [
        "# Supported meters\n",
        NOTE,
        f"{len(found)} models come with the product; each is one TOML file with its sources "
        "(`opendcu model show NAME`). *Proven by* says how far we went: the document alone, a simulated meter that "
        "is read whole in the tests, or a meter. A meter that is not here but speaks one of these protocols needs a "
        "model of its own and no code; `opendcu probe` finds out which model fits.\n",
        "## DLMS/COSEM, polled\n",
        "Profiles, registers, event logs, alerts; every model is read whole from a simulated meter of its kind.\n",
        _rows(
            ["model", "maker", "meters", "association", "profiles", "pushes", "proven by"],
            [
                [
                    f"`{m.name}`",
                    m.about.maker,
                    _families(m),
                    f"client {m.association.client}, {m.association.security}, suite {m.association.suite}",
                    ", ".join(m.profiles),
                    ", ".join(m.push),
                    PROVEN[m.about.verified],
                ]
                for m in polled
            ],
        ),
        "## DLMS/COSEM, push only\n",
        "Customer interfaces and HAN ports: only heard, never asked. Every model is read in the tests with frames that "
        "were captured from such meters.\n",
        _rows(
            ["model", "maker", "meters", "protection", "a row each", "notes"],
            [
                [
                    f"`{m.name}`",
                    m.about.maker,
                    _families(m),
                    ", ".join(dict.fromkeys(p.protection for p in m.push.values())),
                    ", ".join(dict.fromkeys(f"{p.every_s} s" for p in m.push.values())),
                    m.about.notes,
                ]
                for m in pushed
            ],
        ),
        "## What DLMS models assume\n",
        "What no source says and no meter has shown. Check it at the first meter of a kind, and write the answer into "
        "its model.\n",
        _rows(
            ["model", "assumed"],
            [
                [f"`{m.name}`", assumption]
                for m in (*polled, *pushed)
                for assumption in m.about.assumed
            ],
        ),
        "## Modbus\n",
        "Read over TCP, RTU, or RTU in a TCP stream (gateways convert). *Intervals*: sampled at the boundary, or read from "
        "what the meter remembers ([history] of its model).\n",
        _rows(
            [
                "model",
                "maker",
                "meters",
                "transports",
                "points",
                "phases",
                "intervals",
                "proven by",
            ],
            [
                [
                    f"`{m.name}`",
                    m.about.maker,
                    _families(m),
                    ", ".join(m.link.transports),
                    str(len(m.points)),
                    str(m.about.phases),
                    _intervals(m),
                    PROVEN[m.about.verified],
                ]
                for m in modbus
            ],
        ),
        "## What Modbus models assume\n",
        "What the register maps leave open, and how it is settled until a meter shows otherwise.\n",
        _rows(
            ["model", "assumed"],
            [[f"`{m.name}`", assumption] for m in modbus for assumption in m.about.assumed],
        ),
    ]
    return "\n".join(parts)


def _intervals(model: models.ModbusModel) -> str:
    if isinstance(model.history, history.WindowHistory):
        return "load profile"
    if model.history is not None:
        return "last demand period"
    return "sampled" if model.interval.points else "none: whole kWh"


def _families(model: models.Model) -> str:
    return "; ".join(model.about.families)


def _rows(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [
        "| " + " | ".join(cell if cell[:1] == "`" else md(cell) for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "models.md": model_keys,
    "meters.md": supported_meters,
    "cli.md": cli,
    "events.md": event_page,
}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{', '.join(PAGES)} written to {FOLDER}\n")


if __name__ == "__main__":
    main()
