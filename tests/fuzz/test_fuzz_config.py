"""Whatever stands in the files of a configuration, it is read or refused with ConfigErrors: nothing else, and no key shown."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_core.config.keys import KeyRing, check_keys
from edge_core.config.load import ConfigErrors, load
from edge_core.config.models import load_model
from edge_core.config.schema import Config, Keys

T = TypeVar("T")
LIMITS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOOD: dict[str, Any] = {
    "gateway": {"id": "dcu-1", "data_dir": "data", "timezone": "Asia/Kolkata", "roles": ["dlms"]},
    "uplink": {
        "kind": "mqtt",
        "url": "mqtt://127.0.0.1:1883",
        "password": "file:pw",
        "max_in_flight": 5,
    },
    "journal": {"max_bytes": "512 MiB", "keep_acked": "60d"},
    "schedule": {"events": "every 6h", "midnight_reads": "00:05"},
    "push": {"listen": ["udp://127.0.0.1:0"]},
    "console": {"listen": "127.0.0.1:0"},
    "power": {"provider": "file", "source": "mains"},
    "keys": {"provider": "file", "file": "keys.toml"},
    "fleet": {"file": "meters.csv"},
    "lines": [
        {"id": "l", "transport": "tcp", "framing": "wrapper"},
        {"id": "s", "transport": "serial", "framing": "hdlc", "device": "tty"},
    ],
    "meters": [
        {
            "id": "m1",
            "line": "l",
            "model": "./d.toml",
            "address": "1.2.3.4:4059",
            "title": "4c475a1022335566",
        }
    ],
}
MODEL: dict[str, Any] = {
    "schema": "opendcu.model/1",
    "model": {"maker": "T", "families": ["T"], "protocol": "dlms", "source": ["t"]},
    "association": {
        "security": "hls5",
        "ciphering": "glo",
        "protection": "authenticated-encrypted",
    },
    "time": {"zone": "Asia/Kolkata"},
    "profiles": {"interval": {"obis": "1.0.99.1.0.255", "status_bits": {"1": "critical"}}},
    "push": {"alert": {"obis": "0.4.25.9.0.255", "alarms": {"85": "last-gasp"}}},
}
MODBUS: dict[str, Any] = {
    "schema": "opendcu.model/1",
    "model": {"maker": "T", "families": ["T"], "protocol": "modbus", "source": ["t"]},
    "link": {"transports": ["tcp"], "serial_default": {"baud": 9600}},
    "identify": {"address": 0, "values": {"1": "T"}},
    "derived": {"total": ["a"]},
    "interval": {"points": ["a"]},
    "points": [
        {"name": "a", "address": 0, "type": "uint32", "unit": "Wh", "obis": "1.0.1.8.0.255"}
    ],
}
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False),
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
        st.sampled_from(
            [
                "",
                "0",
                "off",
                "file:",
                "env:",
                "mqtt://[",
                "mqtt://h:x",
                "[::1]:5",
                "../../etc",
                "a" * 300,
            ]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value."""
    yield at
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*at, key))


def changed(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value at a place; `...` takes the place out."""
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(at) == 1 and value is ...:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(copy[at[0]], at[1:], value)
    return copy


def toml(value: Any) -> str:
    """A value as an inline TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) and "inf" not in repr(value) else "1.5"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"


def document(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"x = {toml(tree)}\n"
    return "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in tree.items())


def mutations(good: dict[str, Any]) -> st.SearchStrategy[Any]:
    everywhere = [p for p in places(good) if p]
    one = st.tuples(st.sampled_from(everywhere), VALUES | st.just(...))
    return st.lists(one, min_size=1, max_size=3)


def applied(good: dict[str, Any], changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
    tree: Any = good
    for at, value in changes:
        try:
            tree = changed(tree, at, value)
        except (KeyError, IndexError, TypeError):  # an earlier change took the place away
            continue
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "d.toml").write_text(document(MODEL))
    (tmp_path / "meters.csv").write_text("id,line,model,address\nm2,l,./d.toml,1.2.3.5:4059\n")
    return tmp_path


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What the call gives, or the text of its ConfigErrors; any other exception is a failure of the test."""
    try:
        return call(), ""
    except ConfigErrors as refusal:
        return None, str(refusal)


def tried(path: Path) -> Config | None:
    strict, why = attempt(lambda: load(path, environment={}))
    assert strict is not None or why
    tolerant, why = attempt(lambda: load(path, strict=False, environment={}))
    assert tolerant is not None or why
    return tolerant


def test_the_seeds_are_good(folder: Path) -> None:
    (folder / "gateway.toml").write_text(document(GOOD))
    assert set(load(folder / "gateway.toml", environment={}).meters) == {"m1", "m2"}
    (folder / "modbus.toml").write_text(document(MODBUS))
    load_model("./modbus.toml", base=folder)


@LIMITS
@given(mutations(GOOD))
def test_any_configuration(folder: Path, changes: list[Any]) -> None:
    (folder / "gateway.toml").write_text(document(applied(GOOD, changes)), encoding="utf-8")
    config = tried(folder / "gateway.toml")
    if config is not None:
        for meter in config.meters.values():
            config.address_of(meter)
        check_keys(config, {})


@LIMITS
@given(
    st.sampled_from([MODEL, MODBUS]).flatmap(lambda good: st.tuples(st.just(good), mutations(good)))
)
def test_any_model(folder: Path, case: tuple[dict[str, Any], list[Any]]) -> None:
    (folder / "x.toml").write_text(document(applied(*case)), encoding="utf-8")
    for strict in (True, False):
        model, why = attempt(
            lambda strict=strict: load_model("./x.toml", base=folder, strict=strict)
        )
        assert model is not None or why


CSV = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.lists(
            st.sampled_from(
                ["id", "line", "m2", "l", "./d.toml", "1.2.3.4:5", '"', "", "x,y", "\r", "ü"]
            ),
            max_size=6,
        ),
        max_size=5,
    ).map(
        lambda rows: ("id,line,model,address\n" + "\n".join(",".join(row) for row in rows)).encode()
    ),
)


@LIMITS
@given(CSV)
def test_any_fleet(folder: Path, octets: bytes) -> None:
    (folder / "gateway.toml").write_text(document(GOOD))
    (folder / "meters.csv").write_bytes(octets)
    tried(folder / "gateway.toml")


SECRET = "5ec7e7" * 5  # 30 digits: no key, and easily found


@LIMITS
@given(
    st.one_of(
        st.binary(max_size=200),
        st.dictionaries(
            st.sampled_from(["m1", "m2", "x"]),
            st.dictionaries(
                st.sampled_from(["guek", "gak", "password", "hls", "master", SECRET[:4]]),
                VALUES | st.just(SECRET),
            )
            | VALUES,
        ).map(lambda tree: document(tree).encode()),
        st.text().map(lambda text: f'[m1]\nguek = "{SECRET}\n{text}'.encode(errors="replace")),
    )
)
def test_any_keys_file_is_read_or_refused_without_showing_it(folder: Path, octets: bytes) -> None:
    path = folder / "keys.toml"
    path.write_bytes(octets)
    os.chmod(path, 0o600)
    ring, why = attempt(lambda: KeyRing.open(Keys(file=str(path))))
    assert SECRET not in why
    for meter in ("m1", "m2", "x") if ring is not None else ():
        held, why = attempt(lambda meter=meter: ring.get(meter))
        assert SECRET not in why
        assert SECRET not in repr(held)
