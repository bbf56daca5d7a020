"""Sizes, durations, schedules and addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_core.config.values import (
    Address,
    Duration,
    Schedule,
    Size,
    join_host_port,
    parse_address,
    split_host_port,
)


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("512 MiB", 536_870_912),
        ("100 kB", 100_000),
        ("4,800 B", 4_800),
        (7, 7),
        ("0", 0),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(text: object, octets: int) -> None:
    assert Size.parse(text) == octets


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", -1, "1.5 MiB", "512 mib", "5 TB", True, None, 1.5, [1], "１ MiB"]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="is no size"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60d", 5_184_000), ("15min", 900), ("1h", 3600), ("200ms", 0.2), ("0", 0), ("3 s", 3)],
)
def test_durations(text: object, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "60", "5 m", "1.5h", "-1s", True, 5, None, "1 week", "9999999999s"]
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        Duration.parse(text)


def test_schedules() -> None:
    assert Schedule("off").off
    assert (Schedule("every 15min").every_s, Schedule("every 15min").at_s) == (900, None)
    assert (Schedule("00:05").every_s, Schedule("00:05").at_s) == (None, 300)
    assert Schedule("every 2d").every_s == 172_800
    assert Schedule("23:59") == "23:59"


@pytest.mark.parametrize(
    "text",
    ["", "on", "every", "every 0s", "every 5 m", "24:00", "0:05", "00:60", "every 400d", 5, None],
)
def test_no_schedules(text: object) -> None:
    with pytest.raises(ValueError, match="is no schedule"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "transport", "framing", "shared", "address"),
    [
        ("10.1.0.11:4059", "tcp", "wrapper", "", Address("10.1.0.11", 4059, logical=1)),
        ("10.1.0.11:4059/17", "udp", "wrapper", "", Address("10.1.0.11", 4059, logical=17)),
        ("[2001:db8::1]:4059", "tcp", "wrapper", "", Address("2001:db8::1", 4059, logical=1)),
        ("meter.example:4059", "tcp", "wrapper", "", Address("meter.example", 4059, logical=1)),
        ("10.1.0.11:502/3", "tcp", "modbus-tcp", "", Address("10.1.0.11", 502, unit=3)),
        ("gw:502/255", "tcp", "modbus-tcp", "", Address("gw", 502, unit=255)),
        ("7", "tcp", "modbus-rtu", "gw:4001", Address("gw", 4001, unit=7)),
        ("7", "serial", "modbus-rtu", "", Address(unit=7)),
        ("1.17", "serial", "hdlc", "", Address(logical=1, physical=17)),
        ("1", "serial", "hdlc", "", Address(logical=1)),
        (
            "10.1.0.11:4059/1.17",
            "tcp",
            "hdlc",
            "",
            Address("10.1.0.11", 4059, logical=1, physical=17),
        ),
        (
            "1.17",
            "tcp",
            "hdlc",
            "10.1.0.11:4059",
            Address("10.1.0.11", 4059, logical=1, physical=17),
        ),
    ],
)
def test_addresses(text: str, transport: str, framing: str, shared: str, address: Address) -> None:
    assert parse_address(text, transport=transport, framing=framing, shared=shared) == address


@pytest.mark.parametrize(
    ("text", "transport", "framing", "says"),
    [
        ("10.1.0.11", "tcp", "wrapper", "no host"),
        ("10.1.0.11:0", "tcp", "wrapper", "port 0"),
        ("10.1.0.11:70000", "tcp", "wrapper", "no host:port"),
        ("10.1.0.11:502", "tcp", "modbus-tcp", "no unit"),
        ("10.1.0.11:502/256", "tcp", "modbus-tcp", "unit"),
        ("10.1.0.11:502/0", "tcp", "modbus-rtu", "1 to 247"),
        ("10.1.0.11:502/x", "tcp", "modbus-tcp", "no Modbus unit"),
        ("3", "tcp", "modbus-tcp", "no host"),
        ("10.1.0.11:502/3", "serial", "modbus-rtu", "the line is serial"),
        ("1.99999", "serial", "hdlc", "physical"),
        ("10.1.0.11:4059", "tcp", "hdlc", "no HDLC address"),
        ("10.1.0.11:4059/1.2.3", "tcp", "hdlc", "physical"),
        ("", "tcp", "wrapper", "no host"),
        ("", "serial", "modbus-rtu", "no unit"),
        ("٣", "serial", "modbus-rtu", "no Modbus unit"),
    ],
)
def test_no_addresses(text: str, transport: str, framing: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_address(text, transport=transport, framing=framing)


@given(
    st.text(max_size=40),
    st.sampled_from(
        [("tcp", f) for f in ("wrapper", "hdlc", "modbus-tcp", "modbus-rtu")]
        + [("serial", "hdlc"), ("serial", "modbus-rtu")]
    ),
)
def test_any_text_is_an_address_or_a_value_error_and_addresses_print_as_they_parse(
    text: str, line: tuple[str, str]
) -> None:
    transport, framing = line
    try:
        address = parse_address(text, transport=transport, framing=framing)
    except ValueError:
        return
    assert parse_address(str(address), transport=transport, framing=framing) == address


@given(st.sampled_from(["10.0.0.1", "::1", "fe80::1%eth0", "a-b.example"]), st.integers(0, 65535))
def test_host_port_round_trip(host: str, port: int) -> None:
    assert split_host_port(join_host_port(host, port)) == (host, port)
