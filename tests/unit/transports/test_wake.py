"""Wake-ups between processes: real datagrams; who is away, full or new is no reason to wait or to raise."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from edge_core.transports import wake
from edge_core.transports.wake import Waker, WakeSocket
from tests.conftest import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wake-uplink.sock"


def listening(path: Path, heard: list[tuple[str, list[bytes]]]) -> WakeSocket:
    made = WakeSocket(path, lambda word, lines: heard.append((word, lines)))
    made.start(asyncio.get_running_loop())
    return made


async def test_a_word_and_its_lines_arrive(path):
    heard: list[tuple[str, list[bytes]]] = []
    listener, waker = listening(path, heard), Waker(path)
    assert waker.send("commit")
    assert waker.send("alarm", b'{"a b": 1}')
    await eventually(lambda: len(heard) == 2)
    assert heard == [("commit", []), ("alarm", [b'{"a b": 1}'])]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.close()
    assert not path.exists()
    waker.close()


async def test_nobody_listens_and_then_somebody_does(path):
    waker = Waker(path)
    assert not waker.send("alarm", b"1")
    assert waker.lost == 1
    heard: list[tuple[str, list[bytes]]] = []
    listener = listening(path, heard)
    assert waker.send("alarm", b"2")
    listener.close()
    assert not waker.send("alarm", b"3")
    again = listening(path, heard)  # of another process: the same name, another socket
    assert waker.send("alarm", b"4")
    await eventually(lambda: ("alarm", [b"4"]) in heard)
    assert waker.lost == 2
    again.close()
    waker.close()


async def test_a_storm_arrives_whole_and_in_order_though_ten_fit_the_queue(path):
    heard: list[tuple[str, list[bytes]]] = []
    listener, waker = listening(path, heard), Waker(path)
    lines = [b"%d %s" % (i, os.urandom(60).hex().encode()) for i in range(3_000)]
    for line in lines:  # on the loop: nobody reads meanwhile
        assert waker.send("alarm", line)
    assert not waker.send("commit")  # a word alone is not kept
    await eventually(lambda: sum(len(some) for _, some in heard) == len(lines))
    assert [line for _, some in heard for line in some] == lines
    assert waker.lost == 0
    assert waker.send("commit")
    listener.close()
    waker.close()


async def test_a_listener_that_is_stuck_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(wake, "STUCK_S", 0.05)
    heard: list[tuple[str, list[bytes]]] = []
    listener, waker = listening(path, heard), Waker(path)
    count = 0
    while waker.send("alarm", b"x") and not waker._lines:
        count += 1
    for _ in range(100):
        waker.send("alarm", b"y")

    def lost() -> bool:  # holds the loop, and with it the listener
        return waker.lost >= 100

    end = asyncio.get_running_loop().time() + 10
    while not lost() and asyncio.get_running_loop().time() < end:
        pass
    assert lost()
    await eventually(lambda: len(heard) >= count)
    assert waker.send("alarm", b"z")
    listener.close()
    waker.close()


async def test_a_handler_that_fails_and_octets_that_are_no_word_stop_nothing(path, caplog):
    heard: list[str] = []

    def handle(word: str, lines: list[bytes]) -> None:
        heard.append(word)
        raise ValueError(word)

    listener = WakeSocket(path, handle)
    listener.start(asyncio.get_running_loop())
    waker = Waker(path)
    waker.send("\x00\xff", b"\xff\xfe")
    waker.send("commit")
    await eventually(lambda: "commit" in heard)
    assert len(heard) == 2
    listener.close()
    waker.close()


async def test_a_path_longer_than_sun_path(tmp_path):
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    heard: list[tuple[str, list[bytes]]] = []
    listener, waker = listening(folder / "wake-dlms.sock", heard), Waker(folder / "wake-dlms.sock")
    assert waker.send("news")
    await eventually(lambda: heard == [("news", [])])
    listener.close()
    waker.close()


async def test_one_process_too_many_takes_the_name_and_the_first_leaves_it(path):
    heard: list[tuple[str, list[bytes]]] = []
    first, second = listening(path, heard), listening(path, heard)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()
