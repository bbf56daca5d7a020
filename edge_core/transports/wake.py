"""Wake-ups between the processes of one gateway: datagrams on `<data_dir>/wake-<role>.sock`.

A datagram is a word and, behind a space, lines. It may be lost (nobody listens): whoever is woken looks into files, and
looks now and then without being woken. Sending never waits. The kernel queues ten datagrams (net.unix.max_dgram_qlen):
lines that find the queue full wait here, WAITING of them at most, and leave together. The socket has mode 0600 in a
directory of mode 0700, and only datagrams of our own user and root are believed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING

from edge_core.transports.control import short_path

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

LARGEST = 64 << 10
WAITING = 20_000
STUCK_S = 2.0
"""A listener that takes nothing for so long is not waited for."""
_CREDENTIALS = struct.calcsize("3i")


class Waker:
    """Wakes one role up. Any thread; never waits, never raises for a listener that is away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._lines: deque[tuple[str, bytes]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.lost = 0  # lines that did not arrive

    def send(self, word: str, line: bytes = b"") -> bool:
        """Send a line, now, or behind those that wait; a word without a line is not kept. False: it does not arrive."""
        with self._lock:
            if self._closed:
                return False
            if not self._lines and (arrived := self._put(_octets(word, line))) is not False:
                return bool(arrived)
            if not line:
                return False
            if len(self._lines) >= WAITING:
                self.lost += 1
                return False
            self._lines.append((word, line))
            if self._thread is None:
                name = f"wake {self._path.stem}"
                self._thread = threading.Thread(target=self._empty, name=name, daemon=True)
                self._thread.start()
        return True

    def close(self) -> None:
        """Let go of the socket."""
        with self._lock:
            self._closed = True
            self._lines.clear()
            self._drop()

    def _put(self, octets: bytes) -> bool | None:
        """True: it is in the queue; False: the queue is full; None: nobody listens."""
        for _ in range(2):  # the second time with a listener that has begun anew
            try:
                self._connected().send(octets)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self._drop()
            else:
                return True
        self.lost += 1
        return None

    def _empty(self) -> None:
        """In a thread of its own while lines wait: as many as fit, in each datagram."""
        while True:
            with self._lock:
                if not self._lines:
                    self._thread = None
                    return
                word, count, size = self._lines[0][0], 0, 0
                for other, line in self._lines:
                    size += len(line) + 1
                    if other != word or size > LARGEST // 2:
                        break
                    count += 1
                count = max(1, count)
                lines = [self._lines[i][1] for i in range(count)]
                done = self._put(_octets(word, b"\n".join(lines)))
                if done is not False:
                    for _ in range(count):
                        self._lines.popleft()
                    continue
                waiting = self._socket
            if waiting is not None and not _writable(waiting):
                with self._lock:
                    self.lost += len(self._lines)
                    self._lines.clear()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            fresh = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
            try:
                with short_path(self._path) as name:
                    fresh.connect(name)
            except BaseException:
                fresh.close()
                raise
            self._socket = fresh
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _octets(word: str, lines: bytes) -> bytes:
    return word.encode() + b" " + lines if lines else word.encode()


def _writable(sender: socket.socket) -> bool:
    """Wait until the listener takes something, or until it counts as stuck."""
    try:
        poll = select.poll()
        poll.register(sender, select.POLLOUT)
        return bool(poll.poll(STUCK_S * 1000))
    except (OSError, ValueError):  # closed meanwhile
        return False


class WakeSocket:
    """Listens on the event loop.

    Args:
        path: one that is left over from a killed process is replaced.
        handle: (word, lines) of each datagram; must not block.
    """

    def __init__(self, path: Path, handle: Callable[[str, list[bytes]], None]) -> None:
        self._path, self._handle = path, handle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._inode = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind and listen.

        Raises:
            OSError: the socket cannot be made.
        """
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            fresh.unlink(missing_ok=True)
            with short_path(fresh) as name:
                listener.bind(name)
            fresh.chmod(0o600)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._inode = fresh.stat().st_ino
            fresh.rename(self._path)
            loop.add_reader(listener.fileno(), self._ready)
        except BaseException:
            listener.close()
            raise
        self._loop, self._socket = loop, listener

    def close(self) -> None:
        """Stop listening, and remove the socket if it is still ours."""
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _ready(self) -> None:
        assert self._socket is not None
        for _ in range(10):  # others have their turn in a storm
            try:
                octets, ancillary, _, _ = self._socket.recvmsg(
                    LARGEST, socket.CMSG_SPACE(_CREDENTIALS)
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                log.exception("the wake-up socket %s failed", self._path)
                return
            if not _ours(ancillary):
                continue
            word, _, lines = octets.partition(b" ")
            try:
                self._handle(word.decode("ascii", "replace"), lines.split(b"\n") if lines else [])
            except Exception:
                log.exception("a wake-up failed: %r", octets[:60])


def _ours(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            _pid, uid, _gid = struct.unpack("3i", data[:_CREDENTIALS])
            return uid in (0, os.geteuid())
    return False
