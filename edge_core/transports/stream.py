"""A byte stream with deadlines: what TCP connections and serial ports have in common.

One task uses a stream: it writes, then waits for what comes until its deadline. What arrives meanwhile waits in a
bounded buffer; above MAX_PENDING octets the sender is not listened to until somebody reads.

Errors are the system's own: `ConnectionError` and other `OSError`s, `TimeoutError` when nothing came in time, each
with a text for people. Whoever knows the meter turns them into its errors.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PENDING: Final = 1 << 18
"""Octets that may wait unread."""


class Stream(Protocol):
    """Octets in both directions, in order, with deadlines."""

    def write(self, octets: bytes) -> None:
        """Send; what cannot leave is found out by the wait for the answer."""
        ...

    async def read(self, timeout_s: float) -> bytes:
        """What came, at least one octet.

        Raises:
            TimeoutError: nothing came in time.
            OSError: the line broke or was closed by the other side.
        """
        ...

    async def close(self) -> None:
        """Release the line; never raises."""
        ...


class AsyncioStream(asyncio.Protocol):
    """A stream over an asyncio transport."""

    def __init__(self, tracer: Callable[[str, bytes], None] | None = None) -> None:
        self._tracer = tracer
        self._transport: asyncio.Transport | None = None
        self._pending = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._ended: OSError | None = None
        self._closed: asyncio.Future[None] | None = None
        self._paused = False

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self._tracer is not None:
            self._tracer("receive", bytes(data))
        self._pending += data
        if len(self._pending) > MAX_PENDING and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended is None:
            if exc is None:
                self._ended = ConnectionResetError("the other side closed the connection")
            elif isinstance(exc, OSError):
                self._ended = exc
            else:
                self._ended = ConnectionError(str(exc) or type(exc).__name__)
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
        self._wake()

    # --- called by the user

    def write(self, octets: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._tracer is not None:
            self._tracer("send", octets)
        self._transport.write(octets)

    async def read(self, timeout_s: float) -> bytes:
        if not self._pending:
            if self._ended is not None:
                raise self._ended
            await self._wait(timeout_s)
            if not self._pending:
                raise self._ended or TimeoutError("nothing came")
        octets = bytes(self._pending)
        self._pending.clear()
        if self._paused and self._transport is not None:
            self._transport.resume_reading()
            self._paused = False
        return octets

    async def close(self) -> None:
        transport = self._transport
        if transport is None:
            return
        transport.abort() if self._pending or self._ended else transport.close()
        if self._closed is not None and not self._closed.done():
            # what a peer that takes nothing leaves in the send buffer must not keep us here
            done, _ = await asyncio.wait((self._closed,), timeout=1.0)
            if not done:
                transport.abort()

    async def _wait(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._expire, waiter, timeout_s)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    @staticmethod
    def _expire(waiter: asyncio.Future[None], timeout_s: float) -> None:
        if not waiter.done():
            waiter.set_exception(TimeoutError(f"no answer within {timeout_s:g} s"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
