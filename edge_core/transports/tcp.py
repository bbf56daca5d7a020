"""TCP connections to meters, concentrators and serial servers, with deadlines and keep-alive.

A connection that a modem or a NAT dropped without a word is found by keep-alive within about a minute, also while
nothing is asked. Small requests leave at once: asyncio and uvloop open TCP without Nagle.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from edge_core.transports.stream import AsyncioStream

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_TIMEOUT_S: Final = 5.0
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


async def connect(
    host: str,
    port: int,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    tracer: Callable[[str, bytes], None] | None = None,
    keep_alive: bool = True,
) -> AsyncioStream:
    """Connect within the time.

    Args:
        keep_alive: find out about a dead peer also while nothing is asked; a session in which somebody always waits
            for an answer need not.

    Raises:
        TimeoutError: no connection in time.
        OSError: refused, no route, or the name is unknown.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            transport, stream = await loop.create_connection(
                lambda: AsyncioStream(tracer), host, port
            )
    except TimeoutError:
        raise TimeoutError(f"no connection within {timeout_s:g} s") from None
    except socket.gaierror as error:
        raise OSError(f"the name {host} is not known: {error.strerror or error}") from error
    except UnicodeError as error:
        raise OSError(f"{host} is no host name") from error
    if keep_alive:
        _tune(transport.get_extra_info("socket"))
    return stream


def _tune(sock: socket.socket | None) -> None:
    """Keep-alive, where the system has it."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
