"""Serial ports as byte streams: opened exclusively, read and written by the event loop, never by a thread.

The port is raw: no flow control, no echo, no line discipline. What waits in the kernel from before is thrown away at
the opening. USB adapters are asked for low latency (FTDI chips else hold short answers back for 16 ms). A port that
vanishes (the adapter was pulled out) ends the stream with an OSError. Works on pseudo-terminals too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import serial

from edge_core.transports.stream import MAX_PENDING

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 4096


class SerialStream:
    """A serial port.

    Args:
        device: path of the device.
        baudrate: bits per second.
        parity: E, O or N.
        stopbits: 1 or 2.
        bytesize: data bits, 7 or 8.
        tracer: sees what is sent and received.

    Raises:
        OSError: the device is not there, may not be opened, or is in use.
    """

    def __init__(
        self,
        device: str,
        *,
        baudrate: int,
        parity: str = "E",
        stopbits: int = 1,
        bytesize: int = 8,
        tracer: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tracer = tracer
        self._pending = bytearray()
        self._unsent = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._ended: OSError | None = None
        try:
            if _is_pseudo_terminal(device):
                parity, stopbits, bytesize = "N", 1, 8  # it has no wire, and refuses the rest
            self._port: Any = serial.Serial(
                device,
                baudrate,
                bytesize=bytesize,
                parity=parity,
                stopbits=stopbits,
                timeout=0,
                write_timeout=0,
                exclusive=True,
            )
        except (serial.SerialException, termios.error, ValueError) as error:
            raise OSError(_plainly(device, error)) from error
        with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
            self._port.set_low_latency_mode(True)
        self._fd: int = self._port.fileno()
        self._port.reset_input_buffer()
        self._loop.add_reader(self._fd, self._readable)

    @property
    def baudrate(self) -> int:
        """Bits per second."""
        return int(self._port.baudrate)

    def write(self, octets: bytes) -> None:
        """See Stream.write."""
        if self._ended is not None:
            return
        if self._tracer is not None:
            self._tracer("send", octets)
        self._unsent += octets
        self._writable()

    async def read(self, timeout_s: float) -> bytes:
        """See Stream.read."""
        if not self._pending:
            if self._ended is not None:
                raise self._ended
            waiter = self._waiter = self._loop.create_future()
            timer = self._loop.call_later(max(timeout_s, 0.0), _expire, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
            if not self._pending:
                raise self._ended or TimeoutError(f"no answer within {timeout_s:g} s")
        octets = bytes(self._pending)
        self._pending.clear()
        return octets

    async def close(self) -> None:
        """See Stream.close."""
        self.release()

    def release(self) -> None:
        """Close without waiting; what has not left is thrown away. Never raises."""
        self._end(OSError("the port was closed"))

    # --- called by the loop

    def _readable(self) -> None:
        try:
            octets = os.read(self._fd, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(OSError(f"the port is gone: {error.strerror}"))
            return
        if not octets:
            self._end(OSError("the port is gone: end of file"))
            return
        if self._tracer is not None:
            self._tracer("receive", octets)
        self._pending += octets
        del self._pending[:-MAX_PENDING]  # a babbling line: only the newest can hold an answer
        self._wake()

    def _writable(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._end(OSError(f"the port is gone: {error.strerror}"))
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._fd, self._writable)
        else:
            self._loop.remove_writer(self._fd)

    def _end(self, error: OSError) -> None:
        if self._ended is not None:
            return
        self._ended = error
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self._port.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _is_pseudo_terminal(device: str) -> bool:
    """Majors 136 to 143 are the slave ends of pseudo-terminals."""
    try:
        status = Path(device).stat()
    except OSError as error:
        raise OSError(f"{device} cannot be opened: {error.strerror}") from error
    return stat.S_ISCHR(status.st_mode) and 136 <= os.major(status.st_rdev) <= 143


def _plainly(device: str, error: Exception) -> str:
    """Why a port cannot be opened, for people."""
    if isinstance(error.__context__, BlockingIOError) or "exclusively lock" in str(error):
        return f"{device} is in use by another program"
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return f"{device} cannot be opened: {os.strerror(number)}"
    if isinstance(error, termios.error):
        return f"{device} is no serial port, or cannot have this speed, parity or stop bits"
    return f"{device} cannot be opened: {error}"
