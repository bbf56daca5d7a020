"""Logs: JSON lines and short lines, and no key in either."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator

import pytest

from edge_core.domain import Secret
from edge_core.health import logs

KEY = bytes(range(0xA0, 0xB0))
SHAPES = [
    KEY.hex(),
    KEY.hex().upper(),
    KEY.hex(" "),
    KEY.hex(":"),
    (KEY * 2).hex(),
    base64.b64encode(KEY).decode(),
    base64.b64encode(KEY * 2).decode(),
    repr(KEY),
    repr(bytearray(KEY)),
    repr(b"it's " + KEY),
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(style: str = "json", level: str = "debug", **environment: str) -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level, style, stream=stream, environment=environment)
    return stream


def test_a_json_line() -> None:
    stream = logged()
    logging.getLogger("edge_core.uplink.sender").warning(
        "uplink %s", "down", extra={"for_s": 1.5, "runs": [(1, 2)], "meter": "GP1", "at_all": None}
    )
    line = json.loads(stream.getvalue())
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "warning",
        "room": "uplink.sender",
        "event": "uplink down",
        "for_s": 1.5,
        "runs": [[1, 2]],
        "meter": "GP1",
        "at_all": None,
    }


def test_a_line_for_people() -> None:
    stream = logged("console")
    logging.getLogger("edge_core.uplink").error("down", extra={"for_s": 2})
    assert stream.getvalue().endswith(" error   uplink  down  for_s=2\n")
    assert logged("auto").getvalue() == ""  # no terminal: JSON lines
    assert isinstance(logging.getLogger().handlers[0].formatter, logs.JsonFormatter)


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_shaped_like_a_key_is_logged(style: str, shape: str) -> None:
    stream = logged(style)
    log = logging.getLogger("edge_core.x")
    log.info("the value %s came", shape)
    log.info("fields", extra={"frame": shape, "deep": {"list": [shape]}, "rows": (shape,)})
    try:
        raise ValueError(f"cannot use {shape}")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert len(text.splitlines()) >= 3
    assert "Traceback" in text
    for secret in SHAPES:
        assert secret not in text
    assert "\\xa4" not in text


@pytest.mark.parametrize("style", ["json", "console"])
def test_fields_with_a_telling_name_are_masked(style: str) -> None:
    stream = logged(style)
    log = logging.getLogger("edge_core.x")
    log.info(
        "x",
        extra={
            "password": "hunter2",
            "guek": KEY,
            "deep": {"LLS": "hunter2", "master_key": "hunter2"},
        },
    )
    log.info("y", extra={"frame": KEY, "secret": Secret(KEY), "held": Secret(b"hunter2")})
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "\\xa4" not in text
    assert "<16 octets>" in text
    assert "Secret(7 octets)" in text


def test_what_people_need_stays_readable() -> None:
    for text in (
        "meter GP1000001 (LGZ1030784321, tcp 10.20.0.7:4059, feeder-12): association refused",
        "alarm 1f8b2c3d4e5f6a7b of m1, epoch 1764000000, n 1234",
        "1.0.1.8.0.255 = 123456789 Wh",
        "system title 4f4443d980042a23",
        "sub 'bus' of b's line",
    ):
        assert logs.redact(text) == text


def test_level_and_format_of_the_environment() -> None:
    stream = logged("json", "debug", OPENDCU_LOG="error,console")
    logging.getLogger("edge_core.x").warning("quiet")
    logging.getLogger("edge_core.x").error("loud")
    assert stream.getvalue().endswith("error   x  loud\n")
    assert "quiet" not in stream.getvalue()
    for bad in ("loud", "debug,xml"):
        with pytest.raises(ValueError, match="OPENDCU_LOG"):
            logs.set_up(environment={"OPENDCU_LOG": bad})
    with pytest.raises(ValueError, match="no such log level"):
        logs.set_up("loud", environment={})


def test_setting_up_twice_logs_once_and_libraries_stay_quiet() -> None:
    logged()
    stream = logged()
    logging.getLogger("pymodbus.x").debug("a frame")
    logging.getLogger("paho").info("a packet")
    logging.getLogger("edge_core.x").info("once")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["once"]


def test_an_event_that_cannot_be_json_is_logged_all_the_same() -> None:
    stream = logged()
    logging.getLogger("x").info(
        "x", extra={"a": object(), "b": float("nan"), "c": {1: {2}}, "d": range(2)}
    )
    line = json.loads(stream.getvalue())
    assert line["c"] == {"1": [2]}
    assert line["b"] == "nan"
