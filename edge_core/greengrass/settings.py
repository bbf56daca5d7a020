"""The component configuration: what differs from box to box, as scalars.

Recipes and deployments write text, integers, floats and booleans as they like ("15", 15, 15.0, "true"): whatever they
write is taken. Everything else stands in gateway.toml. The names of KEYS go before that file, and so does any
`"<table>.<key>"` in the map `Set`: a map and no list, since a deployment merges maps and replaces lists.

The last settings that could be read are kept in the work directory: a nucleus that does not answer at the start is no
reason not to start.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_core.config.load import load
from edge_core.config.schema import TABLES
from edge_core.config.tables import ConfigErrors, did_you_mean
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_core.config.schema import Config

log = logging.getLogger(__name__)

ROLES: dict[str, tuple[str, ...]] = {
    "io.opendcu.Gateway": (),  # those of the configuration
    "io.opendcu.DlmsReader": ("dlms", "push"),
    "io.opendcu.ModbusReader": ("modbus",),
    "io.opendcu.Detector": ("detector",),
    "io.opendcu.Uplink": ("uplink", "console"),
}

KEYS: dict[str, tuple[str, str]] = {
    "GatewayId": ("gateway", "id"),
    "DataDir": ("gateway", "data_dir"),
    "Timezone": ("gateway", "timezone"),
    "Roles": ("gateway", "roles"),
    "TopicPrefix": ("uplink", "topic_prefix"),
    "MaxMessageBytes": ("uplink", "max_message_bytes"),
    "ByteBudgetPerDay": ("uplink", "byte_budget_per_day"),
    "FleetFile": ("fleet", "file"),
    "KeysProvider": ("keys", "provider"),
    "KeysFile": ("keys", "file"),
    "KeysKek": ("keys", "kek"),
    "KeysSecret": ("keys", "secret"),
    "DetectorModel": ("detector", "model"),
    "ConsoleListen": ("console", "listen"),
    "HealthEvery": ("health", "every"),
    "LogLevel": ("logs", "level"),
}
FILE, SET = "ConfigFile", "Set"
OF_THE_NUCLEUS = ("accessControl",)
LISTS = {("gateway", "roles"), ("commands", "allow"), ("commands", "signers"), ("push", "listen")}
USUAL_FILE = "/etc/opendcu/gateway.toml"

ANOMALY_MODEL = (
    "../io.opendcu.AnomalyModel/model"  # from one component's work directory to another's
)
SEALED_KEYS = "keys.sealed"  # beside gateway.toml, where nothing says otherwise
SHARED_DATA = "../io.opendcu.data"
KEPT = "settings.json"


def overrides_of(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables and keys that a component configuration states; "" states nothing.

    Raises:
        ConfigErrors: every key that is not known, every value that is no scalar.
    """
    mistakes: list[ConfigError] = []
    out: dict[str, dict[str, Any]] = {}

    def state(name: str, place: tuple[str, str], value: Any) -> None:
        if isinstance(value, dict | list):
            mistakes.append(_mistake(name, "is no text, number or boolean"))
        elif value is not None and value != "":
            out.setdefault(place[0], {})[place[1]] = _listed(place, value)

    for name, value in raw.items():
        if name in KEYS:
            state(name, KEYS[name], value)
        elif name == SET and isinstance(value, dict):
            for dotted, inner in value.items():
                table, _, key = dotted.partition(".")
                if table not in TABLES or not key:
                    hint = did_you_mean(table, TABLES)
                    mistakes.append(_mistake(f"{SET}.{dotted}", "is no <table>.<key>", hint))
                else:
                    state(f"{SET}.{dotted}", (table, key), inner)
        elif name == SET and value not in ("", None):
            mistakes.append(_mistake(SET, "is no map of <table>.<key>"))
        elif name == FILE and not isinstance(value, str | None):
            mistakes.append(_mistake(FILE, "is no path"))
        elif name not in (FILE, SET, *OF_THE_NUCLEUS):
            mistakes.append(_mistake(name, "unknown key", did_you_mean(name, (*KEYS, FILE, SET))))
    if mistakes:
        raise ConfigErrors(mistakes)
    return out


def _listed(place: tuple[str, str], value: Any) -> Any:
    if place in LISTS:
        return str(value).replace(",", " ").split()
    if isinstance(value, bool) or not isinstance(value, float) or not value.is_integer():
        return value
    return int(value)  # numbers come back as floats from some nuclei


def _mistake(key: str, problem: str, hint: str = "") -> ConfigError:
    return ConfigError("component configuration", key, "", problem, hint)


def configure(
    raw: Mapping[str, Any],
    work: Path,
    *,
    nucleus: bool,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of this component: its settings before gateway.toml, defaults of a component behind it.

    Args:
        raw: the component configuration.
        work: the component's work directory; a gateway.toml is made there if none is named and none is usual.
        nucleus: messages go through it unless gateway.toml or `Set` name another kind.

    Raises:
        ConfigErrors: every mistake of one of the two.
    """
    overrides = overrides_of(raw)
    file = Path(str(raw.get(FILE) or (USUAL_FILE if Path(USUAL_FILE).exists() else "")))
    if not file.name:
        file = work / "gateway.toml"
        if not file.exists():
            _make(file)
    stated = _stated(file)
    gateway = overrides.setdefault("gateway", {})
    if not gateway.get("id") and not stated.get("gateway", {}).get("id"):
        gateway["id"] = environment.get("AWS_IOT_THING_NAME", "")
    if "data_dir" not in gateway and "data_dir" not in stated.get("gateway", {}):
        gateway["data_dir"] = str((work / SHARED_DATA).resolve())
    if nucleus and "kind" not in overrides.get("uplink", {}) | stated.get("uplink", {}):
        overrides.setdefault("uplink", {})["kind"] = "greengrass"
    keys = overrides.get("keys", {}) | stated.get("keys", {})
    if "provider" not in keys:
        overrides.setdefault("keys", {})["provider"] = "sealed"
        if "file" not in keys:
            overrides["keys"]["file"] = str(file.with_name(SEALED_KEYS))
    if "model" not in overrides.get("detector", {}) | stated.get("detector", {}):
        model = (work / ANOMALY_MODEL).resolve()
        if (model / "model.json").exists():
            overrides.setdefault("detector", {})["model"] = str(model)
    return load(file, strict=False, environment=environment, overrides=overrides)


def _make(file: Path) -> None:
    """A gateway.toml without meters, for whoever configures the box later."""
    file.write_text(
        '# Made by the component: no ConfigFile was named. Lines and meters go here.\n[gateway]\nid = ""\n',
        encoding="utf-8",
    )


def _stated(file: Path) -> dict[str, dict[str, Any]]:
    """The tables of gateway.toml as they are written; what is wrong with them `load` says."""
    import tomllib

    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: table for name, table in found.items() if isinstance(table, dict)}


def keep(work: Path, raw: Mapping[str, Any]) -> None:
    """Remember settings for a start without the nucleus; never a reason to fail."""
    fresh = work / f".{KEPT}.{os.getpid()}"
    try:
        fresh.write_text(json.dumps(raw), encoding="utf-8")
        fresh.replace(work / KEPT)
    except (OSError, TypeError, ValueError) as error:
        log.warning("component: the settings are not kept: %s", error)


def kept(work: Path) -> dict[str, Any]:
    """The settings of the last start that had any."""
    try:
        found = json.loads((work / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
