"""A slave for the Modbus benchmarks: RTU on a pseudo-terminal with the time that octets take, or RTU in TCP at once.

As a program: modbus_slave.py rtu-tcp | pty [BAUD]     prints port or device; register n of every unit below 200 holds n;
units from 200 on are silent.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edge_core.protocols.modbus.rtu import crc

TURNAROUND_S = 0.02
DEAD_FROM = 200


class PacedSlave:
    """See above."""

    @staticmethod
    @contextlib.contextmanager
    def process(kind: str, baud: int = 9600) -> Iterator[str]:
        """The slave as a process of its own; its port or device."""
        command = [sys.executable, __file__, kind, str(baud)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.kill()


def answer(request: bytes) -> bytes:
    unit, function, address, count = struct.unpack(">BBHH", request[:6])
    body = bytes([unit, function, 2 * count]) + struct.pack(
        f">{count}H", *((address + i) % 65536 for i in range(count))
    )
    return body + crc(body)


def serve_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with peer:
                while len(request := peer.recv(512)) == 8:
                    peer.sendall(answer(request))


def serve_pty(baud: int) -> None:
    """Requests are heard when their last octet would be; answers come octet by octet."""
    character = 11 / baud
    silence = 3.5 * character if baud <= 19_200 else 0.00175
    master, slave = os.openpty()
    tty.setraw(slave)
    print(os.ttyname(slave), flush=True)
    buffer = b""
    while True:
        select.select([master], [], [])
        began = time.monotonic()
        buffer += os.read(master, 512)
        if len(buffer) < 8:
            continue
        request, buffer = buffer[:8], buffer[8:]
        if request[0] >= DEAD_FROM:
            continue
        due = began + 8 * character + silence + TURNAROUND_S
        octets = answer(request)
        for at in range(0, len(octets), 4):
            piece = octets[at : at + 4]
            due += len(piece) * character
            time.sleep(max(0.0, due - time.monotonic()))
            os.write(master, piece)


if __name__ == "__main__":
    serve_tcp() if sys.argv[1] == "rtu-tcp" else serve_pty(int(sys.argv[2]))
