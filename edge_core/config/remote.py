"""Configuration from the cloud, for a gateway without a nucleus: a map of `"<table>.<key>": scalar` before gateway.toml.

A document is `{"schema": "opendcu.configuration/1", "set": {"alarms.batch_ms": 200, ...}}`; its `set` replaces the one
before whole. Only what cannot cut off the way back or hand out power may be set: neither who we are, nor the uplink,
keys, signers and commands, nor anything that listens. The map in use is kept in `<data_dir>/remote.json` and holds at
the next start.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from edge_core.config.load import load
from edge_core.config.private import write_private
from edge_core.config.schema import TABLES
from edge_core.config.tables import ConfigErrors, did_you_mean, fields_of
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edge_core.config.schema import Config

log = logging.getLogger(__name__)

SCHEMA = "opendcu.configuration/1"
SETTABLE = ("schedule", "clock", "alarms", "outage", "journal", "health", "logs")
SETTABLE_KEYS = {("uplink", "byte_budget_per_day"), ("detector", "false_alarms")}
NOT_SETTABLE = {("alarms", "rules")}  # a path
MOST_KEYS = 100
MOST_TEXT = 200
FILE = "remote.json"

Set = dict[str, Any]


def set_of(document: object) -> Set:
    """The map of a document, checked for its shape and for what may be set.

    Raises:
        ConfigErrors: every mistake.
    """
    if not isinstance(document, dict):
        raise ConfigErrors([_mistake("", "is no JSON object")])
    mistakes = [
        _mistake(str(key), "unknown member", "schema and set are known")
        for key in document
        if key not in ("schema", "set")
    ]
    if document.get("schema") != SCHEMA:
        mistakes.append(_mistake("schema", f"is not {SCHEMA}"))
    wanted = document.get("set")
    if not isinstance(wanted, dict) or len(wanted) > MOST_KEYS:
        mistakes.append(_mistake("set", f"is no map of at most {MOST_KEYS} keys"))
        wanted = {}
    for dotted, value in wanted.items():
        table, _, key = str(dotted).partition(".")
        if table not in TABLES or key not in fields_of(TABLES[table]):
            known = [f"{name}.{k}" for name, cls in TABLES.items() for k in fields_of(cls)]
            mistakes.append(_mistake(dotted, "unknown", did_you_mean(dotted, known)))
        elif (table, key) in NOT_SETTABLE or (
            table not in SETTABLE and (table, key) not in SETTABLE_KEYS
        ):
            mistakes.append(_mistake(dotted, "may not be set from the cloud"))
        elif not isinstance(value, str | int | float | bool) or len(str(value)) > MOST_TEXT:
            mistakes.append(_mistake(dotted, "is no text, number or boolean"))
    if mistakes:
        raise ConfigErrors(mistakes)
    return dict(wanted)


def overrides_of(wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Table, key, value, as `load` takes them."""
    out: dict[str, dict[str, Any]] = {}
    for dotted, value in wanted.items():
        table, _, key = dotted.partition(".")
        whole = isinstance(value, float) and value.is_integer()
        out.setdefault(table, {})[key] = int(value) if whole else value
    return out


def load_with(file: str | Path, wanted: Mapping[str, Any], *, strict: bool = False) -> Config:
    """gateway.toml with this map before it.

    Raises:
        ConfigErrors: every mistake of both.
    """
    return load(file, strict=strict, overrides=overrides_of(wanted) or None)


def load_kept(file: str | Path) -> Config:
    """gateway.toml with what is kept in its data directory; without it where both together have a mistake.

    Raises:
        ConfigErrors: every mistake of gateway.toml.
    """
    plain = load(file, strict=False)
    wanted = kept(plain)
    if not wanted:
        return plain
    try:
        return load_with(file, wanted)
    except ConfigErrors as errors:
        log.warning("what the cloud set is not used, gateway.toml does not go with it: %s", errors)
        return plain


def keep(config: Config, wanted: Mapping[str, Any]) -> None:
    """Keep the map that is in use.

    Raises:
        OSError: the disk refuses.
    """
    write_private(config.data_dir / FILE, json.dumps(wanted).encode())


def kept(config: Config) -> Set:
    """The map that is in use; {} for none."""
    try:
        return set_of({"schema": SCHEMA, "set": json.loads((config.data_dir / FILE).read_bytes())})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ConfigErrors) as error:
        log.warning("%s is not used: %s", config.data_dir / FILE, error)
        return {}


def _mistake(key: str, problem: str, hint: str = "") -> ConfigError:
    return ConfigError("configuration from the cloud", key, "", problem, hint)
