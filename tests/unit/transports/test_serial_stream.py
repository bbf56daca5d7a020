"""Serial ports as streams, on pseudo-terminals: deadlines, exclusive use, adapters that vanish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import tty
from collections.abc import Iterator

import pytest

from edge_core.transports.serial import SerialStream
from tests.conftest import eventually


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The far end of a line, and the device at this end."""
    far, near = os.openpty()
    tty.setraw(near)
    os.set_blocking(far, False)
    yield far, os.ttyname(near)
    for fd in (far, near):
        with contextlib.suppress(OSError):  # the test pulled it out
            os.close(fd)


def opened(device: str, **other: object) -> SerialStream:
    return SerialStream(device, baudrate=9600, **other)


async def test_octets_go_both_ways_unchanged(terminal):
    far, device = terminal
    seen: list[tuple[str, bytes]] = []
    stream = opened(device, tracer=lambda way, octets: seen.append((way, octets)))
    every = bytes(range(256))
    stream.write(every)
    got = b""

    def arrived() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += os.read(far, 512)
        return len(got) >= 256

    await eventually(arrived)
    assert got == every
    os.write(far, every)
    back = b""
    while len(back) < 256:
        back += await stream.read(2)
    assert back == every
    assert seen[0] == ("send", every)
    assert b"".join(octets for way, octets in seen if way == "receive") == every
    await stream.close()


async def test_nothing_comes_in_time(terminal):
    stream = opened(terminal[1])
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await stream.read(0.05)
    assert 0.04 < time.monotonic() - began < 2
    await stream.close()


async def test_what_lay_in_the_kernel_before_is_thrown_away(terminal):
    far, device = terminal
    os.write(far, b"old")
    stream = opened(device)
    os.write(far, b"new")
    assert await stream.read(1) == b"new"
    await stream.close()


async def test_one_program_at_a_time(terminal):
    first = opened(terminal[1])
    with pytest.raises(OSError, match="in use by another program"):
        opened(terminal[1])
    await first.close()
    await opened(terminal[1]).close()


async def test_a_device_that_is_not_there():
    with pytest.raises(OSError, match="/dev/ttyNONE cannot be opened: No such file"):
        opened("/dev/ttyNONE")


async def test_a_device_that_is_no_port(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match=r"file cannot be opened|no serial port"):
        opened(str(file))


async def test_an_adapter_that_is_pulled_out(terminal):
    far, device = terminal
    stream = opened(device)
    reading = asyncio.create_task(stream.read(5))
    await asyncio.sleep(0)
    os.close(far)
    with pytest.raises(OSError, match="the port is gone"):
        await reading
    stream.write(b"into the void")  # never raises
    with pytest.raises(OSError, match="the port is gone"):
        await stream.read(1)
    await stream.close()


async def test_a_closed_port_says_so(terminal):
    stream = opened(terminal[1])
    await stream.close()
    await stream.close()
    with pytest.raises(OSError, match="closed"):
        await stream.read(1)


async def test_parity_is_no_obstacle_on_a_pseudo_terminal(terminal):
    for parity in ("E", "O", "N"):
        stream = opened(terminal[1], parity=parity, stopbits=2)
        await stream.close()
