"""Logging: one JSON line per event for machines, one short line for people, and no secret in either.

Everything goes to standard error through the standard library, fields through `extra`; libraries arrive in the same
stream. `OPENDCU_LOG` is `<level>`, `<format>` or `<level>,<format>` (format: json, console, auto) and goes before the
configuration. Redaction is the last resort, not the plan (code never logs keys): fields with a telling name, runs of
hex digits and base64 as long as a key, and reprs of octets are masked, in tracebacks too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("json", "console", "auto")

SECRET_FIELD = re.compile(
    r"(^|_)(key|keys|guek|gak|gbek|kek|password|passwd|hls|lls|master|secret|token|challenge|ctos|stoc)($|_)"
)
_LONG_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}[ :]?){15,}[0-9A-Fa-f]{2}(?![0-9A-Za-z])")
_BASE64_KEY = re.compile(
    r"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{22}==|[A-Za-z0-9+/]{43}=)(?![A-Za-z0-9+/=])"
)
_OCTETS = re.compile(r"""\bb(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def set_up(
    level: str = "info",
    style: str = "auto",
    *,
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send every log of the process to `stream` (standard error), replacing earlier set-ups.

    Args:
        level: of LEVELS.
        style: of FORMATS; auto = console on a terminal, JSON lines else.

    Raises:
        ValueError: OPENDCU_LOG, level or style is none of these.
    """
    for word in filter(
        None, re.split(r"[,:\s]+", environment.get("OPENDCU_LOG", "").strip().lower())
    ):
        if word in LEVELS:
            level = word
        elif word in FORMATS:
            style = word
        else:
            known = ", ".join((*LEVELS, *FORMATS))
            raise ValueError(
                f"OPENDCU_LOG: {word!r} is none of {known}; as in OPENDCU_LOG=debug,json"
            )
    if level not in LEVELS or style not in FORMATS:
        raise ValueError(f"no such log level or format: {level!r}, {style!r}")
    handler = logging.StreamHandler(stream or sys.stderr)
    if style == "auto":
        style = "console" if handler.stream.isatty() else "json"
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # Libraries tell about every packet below warning; frames are shown by `opendcu read --trace` alone.
    for name in (
        "pymodbus",
        "paho",
        "asyncio",
        "uvicorn",
        "awscrt",
        "botocore",
        "urllib3",
    ):
        logging.getLogger(name).setLevel(max(logging.WARNING, LEVELS[level]))


def redact(text: str) -> str:
    """The text with everything masked that is shaped like a key."""
    if len(text) >= 22:
        text = _LONG_HEX.sub(lambda m: f"<{sum(c.isalnum() for c in m[0])} hex digits>", text)
        text = _BASE64_KEY.sub("<base64>", text)
    if "b'" in text or 'b"' in text:
        text = _OCTETS.sub("<octets>", text)
    return text


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given through `extra`, redacted and JSON-like."""
    return {
        name: "***" if SECRET_FIELD.search(name) else _json_like(value)
        for name, value in record.__dict__.items()
        if name not in _STANDARD and not name.startswith("_")
    }


def _json_like(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has neither NaN nor infinity
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} octets>"
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_like(item) for item in value]
    if isinstance(value, dict):
        return {
            str(key): "***" if SECRET_FIELD.search(str(key).lower()) else _json_like(item)
            for key, item in value.items()
        }
    return redact(str(value))


class JsonFormatter(logging.Formatter):
    """`{"at": ISO 8601 UTC, "level", "room": logger, "event": text, ...fields, "error": traceback}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("edge_core."),
            "event": redact(record.getMessage()),
        }
        line |= {name: value for name, value in fields_of(record).items() if name not in line}
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """`12:34:56 warning acquisition  text  field=value`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        room = record.name.removeprefix("edge_core.")
        fields = "".join(f"  {name}={value}" for name, value in fields_of(record).items())
        text = f"{at} {record.levelname.lower():7} {room}  {redact(record.getMessage())}{fields}"
        if record.exc_info:
            text += "\n" + redact(self.formatException(record.exc_info))
        return text
