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
CLOSING_TURNS: Final = 2
"""Turns of the loop after which a peer in this process has heard of the end, too."""
TIMER_S: Final = 0.002
"""How much earlier than asked a loop may call: uvloop counts milliseconds."""


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
        self._loop: asyncio.AbstractEventLoop | None = None
        # one timer for all waits: it is set again when it fires early, not at every answer
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = self._deadline = self._timeout_s = 0.0

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()

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

    @property
    def ended(self) -> bool:
        """Has the line ended, or does something wait unread that nobody asked for?"""
        return self._ended is not None or bool(self._pending)

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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if transport is None:
            return
        if self._pending or self._ended or not transport.get_write_buffer_size():
            transport.abort() if self._pending or self._ended else transport.close()
            if self._closed is not None:
                await self._closed  # in the next turn of the loop: nothing is left to be sent
            for _ in range(CLOSING_TURNS):
                await asyncio.sleep(0)
            return
        transport.close()
        if self._closed is not None and not self._closed.done():
            # what a peer that takes nothing leaves in the send buffer must not keep us here
            done, _ = await asyncio.wait((self._closed,), timeout=1.0)
            if not done:
                transport.abort()

    async def _wait(self, timeout_s: float) -> None:
        loop = self._loop
        assert loop is not None
        waiter = self._waiter = loop.create_future()
        self._timeout_s = timeout_s
        self._deadline = loop.time() + timeout_s
        if self._timer is None or self._fires_at > self._deadline:
            self._set_timer(loop)
        try:
            await waiter
        finally:
            self._waiter = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = self._deadline
        self._timer = loop.call_later(max(0.0, self._deadline - loop.time()), self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return  # the next wait sets it
        if loop.time() < self._deadline - TIMER_S:
            self._set_timer(loop)
        else:
            waiter.set_exception(TimeoutError(f"no answer within {self._timeout_s:g} s"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
