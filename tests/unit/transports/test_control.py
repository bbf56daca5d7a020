"""The control socket: requests, streams, errors, hang-ups and bounds, over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.errors import ControlError, GatewayAbsent, LineSilent, MalformedApdu, PublishRefused
from edge_core.transports import control
from edge_core.transports.control import ControlServer, ask, stream
from tests.conftest import eventually


class Gateway:
    """Handlers of a gateway, and what happened to them."""

    def __init__(self) -> None:
        self.taps = 0
        self.ended = 0

    async def echo(self, request: dict[str, Any]) -> Any:
        return request["what"]

    async def count(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        for number in range(request["to"]):
            yield {"n": number}

    async def tap(self, _request: dict[str, Any]) -> AsyncIterator[Any]:
        self.taps += 1
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def silent(self, request: dict[str, Any]) -> Any:
        raise LineSilent(
            request["meter"], "feeder-1, tcp 10.0.0.1:4059", "AARQ", "no answer", "Check the line."
        )

    async def refused(self, request: dict[str, Any]) -> Any:
        raise PublishRefused("too large", 149) if request.get("mqtt") else MalformedApdu("short", 7)

    async def bug(self, _request: dict[str, Any]) -> Any:
        return 1 / 0

    async def flood(self, _request: dict[str, Any]) -> AsyncIterator[Any]:
        while True:
            yield "x" * 100_000


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[Gateway, Path]]:
    it = Gateway()
    handlers = {
        n: getattr(it, n) for n in ("echo", "count", "tap", "silent", "refused", "bug", "flood")
    }
    path = tmp_path / "control.sock"
    server = ControlServer(path, handlers)
    await server.start()
    yield it, path
    await server.close()
    assert not path.exists()


async def asked(path: Path, **request: Any) -> Any:
    return await asyncio.to_thread(ask, path, request)


async def test_one_value_and_many(gateway: tuple[Gateway, Path]) -> None:
    _, path = gateway
    assert await asked(path, do="echo", what={"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}
    assert await asked(path, do="echo", what=None) is None
    values = await asyncio.to_thread(lambda: list(stream(path, {"do": "count", "to": 3})))
    assert values == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert await asked(path, do="count", to=0) is None
    assert await asked(path, do="echo", what="x" * 500_000) == "x" * 500_000


async def test_it_is_private(gateway: tuple[Gateway, Path]) -> None:
    _, path = gateway
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["control.sock"]


async def test_errors_arrive_as_what_they_are(
    gateway: tuple[Gateway, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, path = gateway
    with pytest.raises(LineSilent) as silent:
        await asked(path, do="silent", meter="GP1")
    assert silent.value.meter == "GP1"
    assert silent.value.hint == "Check the line."
    assert str(silent.value).startswith("meter GP1 (feeder-1, tcp 10.0.0.1:4059): AARQ: no answer")
    with pytest.raises(MalformedApdu) as malformed:
        await asked(path, do="refused")
    assert malformed.value.offset == 7
    with pytest.raises(PublishRefused) as refused:
        await asked(path, do="refused", mqtt=True)
    assert refused.value.code == 149
    with pytest.raises(ControlError, match=r"no such request: 'ehco'; known are bug, count, echo"):
        await asked(path, do="ehco")
    with pytest.raises(ControlError, match="ZeroDivisionError in the gateway"):
        await asked(path, do="bug")
    assert "ZeroDivisionError" in caplog.text


async def test_a_client_that_hangs_up_ends_its_stream(gateway: tuple[Gateway, Path]) -> None:
    it, path = gateway

    def first() -> Any:
        values = stream(path, {"do": "tap"})
        value = next(values)
        values.close()  # type: ignore[attr-defined]
        return value

    assert await asyncio.to_thread(first) == "first"
    await eventually(lambda: it.ended == 1)
    assert it.taps == 1


async def test_closing_the_gateway_ends_streams(tmp_path: Path) -> None:
    it = Gateway()
    server = ControlServer(tmp_path / "control.sock", {"tap": it.tap})
    await server.start()
    reading = asyncio.create_task(
        asyncio.to_thread(lambda: list(stream(tmp_path / "control.sock", {"do": "tap"})))
    )
    await eventually(lambda: it.taps == 1)
    await server.close()
    with pytest.raises(ControlError, match="hung up before the end"):
        await reading
    assert it.ended == 1


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(GatewayAbsent):
        ask(tmp_path / "none.sock", {"do": "echo"})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    with pytest.raises(GatewayAbsent):
        ask(tmp_path / "control.sock", {"do": "echo"})


async def test_a_socket_left_by_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = ControlServer(path, {"echo": Gateway().echo})
    await server.start()
    assert await asked(path, do="echo", what=1) == 1
    newer = ControlServer(path, {"echo": Gateway().echo})
    await newer.start()
    await server.close()
    assert await asked(path, do="echo", what=2) == 2, (
        "closing the older one leaves the newer one's socket"
    )
    await newer.close()
    assert not path.exists()


async def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    path = folder / "control.sock"
    server = ControlServer(path, {"echo": Gateway().echo})
    await server.start()
    assert await asked(path, do="echo", what=1) == 1
    await server.close()
    assert not path.exists()
    with pytest.raises(GatewayAbsent):
        await asked(path, do="echo", what=1)


@pytest.mark.parametrize(
    "octets",
    [
        b"\n",
        b"nonsense\n",
        b"[1]\n",
        b'{"do": 5}\n',
        b'{"do": "echo"',
        b"x" * (control.MAX_REQUEST + 2) + b"\n",
    ],
)
async def test_nonsense_is_answered_with_an_error(
    gateway: tuple[Gateway, Path], octets: bytes
) -> None:
    _, path = gateway
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(octets)
    writer.write_eof()
    assert b'"error":"ControlError"' in await reader.readline()
    writer.close()
    assert await asked(path, do="echo", what=1) == 1


async def test_too_many_clients_are_told(gateway: tuple[Gateway, Path]) -> None:
    it, path = gateway
    taps = []
    for _ in range(control.MAX_CLIENTS):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"do": "tap"}\n')
        await reader.readline()
        taps.append(writer)
    with pytest.raises(ControlError, match="clients already"):
        await asked(path, do="echo", what=1)
    for writer in taps:
        writer.close()
    await eventually(lambda: it.ended == control.MAX_CLIENTS)
    assert await asked(path, do="echo", what=1) == 1


async def test_a_client_that_does_not_read_is_dropped(
    gateway: tuple[Gateway, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = gateway
    monkeypatch.setattr(control, "STALL_S", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        client.connect(str(path))
        client.send(b'{"do": "flood"}\n')

        def hung_up() -> bool:
            with socket.socket(fileno=os.dup(client.fileno())) as peek:
                peek.setblocking(False)
                try:
                    peek.send(b"x")
                except BrokenPipeError:
                    return True
                return False

        await eventually(hung_up)


async def test_a_gateway_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "control.sock"))
        deaf.listen()
        with pytest.raises(ControlError, match="no answer within"):
            await asyncio.to_thread(ask, tmp_path / "control.sock", {"do": "echo"}, 0.05)


STRANGER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout(5)
    s.connect(sys.argv[1])
    print("connected", flush=True)
    try:
        s.send(b'{"do": "echo", "what": 1}\\n')
        print("answered" if s.recv(100) else "hung up")
    except (BrokenPipeError, ConnectionResetError):
        print("hung up")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_other_users_are_not_answered_even_where_the_mode_lets_them() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.sock"
        server = ControlServer(path, {"echo": Gateway().echo})
        await server.start()
        Path(folder).chmod(0o755)
        path.chmod(0o666)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", STRANGER, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        await server.close()
    assert done.stdout == "connected\nhung up\n", done.stderr
