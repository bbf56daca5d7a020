"""UDP to one meter as a stream of datagrams: each read gives exactly one, as it came.

The socket is connected: datagrams of other senders never arrive, and a port that nobody listens on is told by the
system (ConnectionRefusedError). Limits: MAX_WAITING datagrams wait unread, of more the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAITING: Final = 64
RESOLVE_S: Final = 5.0


class DatagramStream(asyncio.DatagramProtocol):
    """Datagrams to and from one address; `transports.stream.Stream`, but `read` keeps datagrams apart."""

    def __init__(self, tracer: Callable[[str, bytes], None] | None = None) -> None:
        self._tracer = tracer
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._waiter: asyncio.Future[None] | None = None
        self._ended: OSError | None = None

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 the socket is connected
        if self._tracer is not None:
            self._tracer("receive", data)
        self._waiting.append(data)
        self._wake()

    def error_received(self, exc: Exception) -> None:
        self._end(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    # --- called by the user

    def write(self, octets: bytes) -> None:
        """Send one datagram."""
        if self._transport is None or self._ended is not None:
            return
        if self._tracer is not None:
            self._tracer("send", octets)
        self._transport.sendto(octets)

    async def read(self, timeout_s: float) -> bytes:
        """One datagram; see Stream.read for the errors."""
        if not self._waiting:
            if self._ended is not None:
                raise self._ended
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = loop.call_later(max(timeout_s, 0.0), self._wake)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
            if not self._waiting:
                raise self._ended or TimeoutError(f"no answer within {timeout_s:g} s")
        return self._waiting.popleft()

    async def close(self) -> None:
        """Give the port back; never raises."""
        if self._transport is not None:
            self._transport.abort()
            await asyncio.sleep(0)  # the loop closes the socket in its next turn

    def _end(self, exc: Exception | None) -> None:
        if self._ended is None:
            self._ended = exc if isinstance(exc, OSError) else OSError("the socket was closed")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(
    host: str,
    port: int,
    *,
    timeout_s: float = RESOLVE_S,
    tracer: Callable[[str, bytes], None] | None = None,
) -> DatagramStream:
    """A socket for one meter; nothing is sent yet.

    Raises:
        TimeoutError: the name was not resolved in time.
        OSError: no such name, no route.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, stream = await loop.create_datagram_endpoint(
                lambda: DatagramStream(tracer), remote_addr=(host, port)
            )
    except TimeoutError:
        raise TimeoutError(f"no socket within {timeout_s:g} s") from None
    except socket.gaierror as error:
        raise OSError(f"the name {host} is not known: {error.strerror or error}") from error
    except UnicodeError as error:
        raise OSError(f"{host} is no host name") from error
    return stream
