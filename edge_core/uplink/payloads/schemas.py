"""JSON Schemas (2020-12) of every message, and the alarm vocabulary, generated from the structs into cloud/schemas/.

`python -m edge_core.uplink.payloads.schemas [DIRECTORY]` writes them; tests/contract/test_payloads.py fails when the
files differ from what would be written. Members that a schema does not name are allowed: fields are added, never
renamed.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from edge_core.domain import ALARM_KINDS
from edge_core.uplink.payloads.alarms import Alarms
from edge_core.uplink.payloads.down import Ack, Command
from edge_core.uplink.payloads.events import Events
from edge_core.uplink.payloads.notes import Anomalies, Completeness, Health, Reply
from edge_core.uplink.payloads.reads import Content, Reads

MESSAGES: dict[str, type[msgspec.Struct]] = {
    "reads": Reads,
    "reads-content": Content,
    "alarms": Alarms,
    "events": Events,
    "anomalies": Anomalies,
    "completeness": Completeness,
    "reply": Reply,
    "health": Health,
    "ack": Ack,
    "command": Command,
}

DIRECTORY = Path(__file__).resolve().parents[3] / "cloud" / "schemas"


def files() -> dict[str, str]:
    """Name to content of every generated file."""
    out = {f"{name}.v1.json": schema_text(name, struct) for name, struct in MESSAGES.items()}
    out["alarms.csv"] = vocabulary()
    return out


def schema_text(name: str, struct: type[msgspec.Struct]) -> str:
    """The schema of one message as indented JSON."""
    schema = msgspec.json.schema(struct)
    _tidy(schema)
    if struct is Reads:
        schema["$defs"]["Reads"]["oneOf"] = [
            {"required": ["layouts", "blocks"], "properties": {"enc": False, "data": False}},
            {"required": ["enc", "data"], "properties": {"layouts": False, "blocks": False}},
        ]
    if "BlockSpec" in schema.get("$defs", {}):
        schema["$defs"]["BlockSpec"]["oneOf"] = [{"required": ["t0"]}, {"required": ["t"]}]
    if "ColumnSpec" in schema.get("$defs", {}):
        schema["$defs"]["ColumnSpec"]["items"] = False
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"opendcu.{name}/1",
    } | schema
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def vocabulary() -> str:
    """The alarm codes as CSV: code, class, severity, iec61968, clears."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("code", "class", "severity", "iec61968", "clears"))
    table.writerows((code, *kind) for code, kind in ALARM_KINDS.items())
    return text.getvalue()


def _tidy(node: Any) -> None:
    """Docstrings without the indentation of the source."""
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            node["description"] = inspect.cleandoc(node["description"])
        for child in node.values():
            _tidy(child)
    elif isinstance(node, list):
        for child in node:
            _tidy(child)


def main() -> None:
    """Write every file into the directory named by the first argument, cloud/schemas/ without one."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (directory / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
