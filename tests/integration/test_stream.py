"""TCP streams with deadlines, against sockets that refuse, fall silent, dribble, flood and hang up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edge_core.transports import tcp
from edge_core.transports.stream import MAX_PENDING

pytestmark = pytest.mark.integration
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[int]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def test_octets_both_ways_and_the_tracer_sees_them() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readexactly(5))[::-1])
        await reader.read()

    seen: list[tuple[str, bytes]] = []
    async with peer(echo) as port:
        stream = await tcp.connect("127.0.0.1", port, tracer=lambda d, o: seen.append((d, o)))
        stream.write(b"hello")
        assert await stream.read(5) == b"olleh"
        await stream.close()
    assert seen == [("send", b"hello"), ("receive", b"olleh")]


async def test_silence_ends_at_the_deadline() -> None:
    async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(mute) as port:
        stream = await tcp.connect("127.0.0.1", port)
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await stream.read(0.05)
        await stream.close()


async def test_a_hang_up_gives_what_came_and_then_says_so() -> None:
    async def short(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"abc")
        await writer.drain()

    async with peer(short) as port:
        stream = await tcp.connect("127.0.0.1", port)
        assert await stream.read(5) == b"abc"
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="the other side closed"):
                await stream.read(5)
        stream.write(b"into the void")
        await stream.close()


async def test_nobody_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await tcp.connect("127.0.0.1", held.getsockname()[1])


async def test_a_name_that_is_none() -> None:
    for name in ("no-such-host.invalid", "x" * 300):
        with pytest.raises(OSError, match="name"):
            await tcp.connect(name, 4059)


async def test_connecting_takes_no_longer_than_allowed() -> None:
    with socket.socket() as full:  # its backlog is full: further connections stay in SYN
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = []
        for _ in range(8):
            s = socket.socket()
            s.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                s.connect(("127.0.0.1", port))
            held.append(s)
        try:
            with pytest.raises(TimeoutError, match=r"no connection within 0\.2 s"):
                await tcp.connect("127.0.0.1", port, timeout_s=0.2)
        finally:
            for s in held:
                s.close()


async def test_a_flood_is_not_kept_in_memory() -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(65536))
            sent += 65536
            await writer.drain()

    async with peer(flood) as port:
        stream = await tcp.connect("127.0.0.1", port)
        last = -1
        while last != sent:  # until the sender is held back
            last = sent
            await asyncio.sleep(0.1)
        assert len(stream._pending) <= MAX_PENDING + (1 << 20)
        got = len(await stream.read(5))
        assert got > MAX_PENDING
        assert await stream.read(5)  # it is listened to again
        await stream.close()


async def test_a_cancelled_read_leaves_the_stream_usable() -> None:
    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"x")
        await reader.read()

    async with peer(later) as port:
        stream = await tcp.connect("127.0.0.1", port)
        waiting = asyncio.create_task(stream.read(30))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stream.write(b"?")
        assert await stream.read(5) == b"x"
        await stream.close()


async def test_keep_alive_and_no_delay_are_on() -> None:
    async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with peer(mute) as port:
        stream = await tcp.connect("127.0.0.1", port)
        assert stream._transport is not None
        sock = stream._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await stream.close()
