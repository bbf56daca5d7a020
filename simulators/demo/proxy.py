"""A line between gateway and broker that can be cut: a TCP relay on loopback.

Cut = connections are reset and new ones refused after the handshake, as a modem does that lost its carrier.
"""

from __future__ import annotations

import asyncio
import contextlib


class Relay:
    """Relays one port of 127.0.0.1 to another, unless it is cut.

    Attributes:
        octets_up: relayed from the gateway.
    """

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self.cut = False
        self.octets_up = 0
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def set_cut(self, cut: bool) -> None:
        """Cut the line, or mend it."""
        self.cut = cut
        if cut:
            for pair in self._pairs:
                pair.cancel()

    async def close(self) -> None:
        """Stop relaying."""
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._pairs.add(task)
        task.add_done_callback(self._pairs.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer, up=True))
                both.create_task(self._pump(far_reader, writer, up=False))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for side in (writer, far_writer):
                side.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        while octets := await reader.read(65_536):
            if up:
                self.octets_up += len(octets)
            writer.write(octets)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof() if writer.can_write_eof() else writer.close()
