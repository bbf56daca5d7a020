"""The sockets of the simulated DLMS meters: one listening TCP or UDP port (or address) a meter, any number of connections.

Answers leave through `_Line.send`, where the faults of the line live. No task per connection: a meter answers inside
`data_received`, which keeps thousands of meters in one process cheap. Only `slow` uses timers.
"""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING, cast

from simulators.dlms.hdlc import Station
from simulators.dlms.session import Refused, Session

if TYPE_CHECKING:
    from simulators.dlms.meter import Meter

HEADER = 8
PIECE, PAUSE_S = 200, 0.12


def wrap(source: int, target: int, apdu: bytes) -> bytes:
    """A WPDU."""
    return struct.pack(">HHHH", 1, source, target, len(apdu)) + apdu


class _Line(asyncio.Protocol):
    """One connection to one meter."""

    def __init__(self, meter: Meter, rng: random.Random, live: set[_Line]) -> None:
        self.meter, self._rng, self._live = meter, rng, live
        self._sessions: dict[int, Session] = {}
        self._transport: asyncio.Transport | None = None
        self._queue = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it
        self._live.add(self)
        if self.meter.has("refuse") or self.meter.device.off_since is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 the protocol's signature
        self._transport = None
        self._live.discard(self)

    def session(self, client: int) -> Session:
        """The association of that client on this line."""
        if client not in self._sessions:
            if len(self._sessions) >= 4:
                raise Refused
            self._sessions[client] = Session(self.meter, client)
        return self._sessions[client]

    def forget(self) -> None:
        """Drop all associations: the line begins anew."""
        self._sessions.clear()

    def send(self, octets: bytes) -> None:
        """Let an answer out, or what the meter's fault makes of it."""
        meter, transport = self.meter, self._transport
        if transport is None or meter.has("silent") or meter.has("busy"):
            return
        if meter.device.off_since is not None:
            transport.abort()
        elif meter.has("garbage"):
            transport.write(self._rng.randbytes(len(octets)))
            transport.close()
        elif meter.has("cut"):
            transport.write(octets[: max(1, len(octets) // 2)])
            transport.close()
        elif meter.has("slow") or self._queue:
            idle = not self._queue
            self._queue += octets
            if idle:
                asyncio.get_running_loop().call_later(PAUSE_S, self._trickle)
        else:
            transport.write(octets)

    def _trickle(self) -> None:
        if self._transport is None:
            return
        self._transport.write(bytes(self._queue[:PIECE]))
        del self._queue[:PIECE]
        if self._queue:
            asyncio.get_running_loop().call_later(PAUSE_S, self._trickle)

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def hang_up(self) -> None:
        """Close without an answer."""
        if self._transport is not None:
            self._transport.close()


class WrapperLine(_Line):
    """TCP wrapper: header of 8 octets, APDU."""

    def __init__(self, meter: Meter, rng: random.Random, live: set[_Line]) -> None:
        super().__init__(meter, rng, live)
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        try:
            while len(buffer) >= HEADER:
                version, source, target, size = struct.unpack_from(">HHHH", buffer)
                if version != 1 or target != 1:
                    self.hang_up()
                    return
                if len(buffer) < HEADER + size:
                    return
                apdu = bytes(buffer[HEADER : HEADER + size])
                del buffer[: HEADER + size]
                answer = wrap(target, source, self.session(source).handle(apdu))
                if self.meter.answer_s:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self.meter.answer_s, self.send, answer)
                else:
                    self.send(answer)
        except Refused:
            self.hang_up()


class HdlcLine(_Line):
    """HDLC in a TCP stream."""

    def __init__(self, meter: Meter, rng: random.Random, live: set[_Line]) -> None:
        super().__init__(meter, rng, live)
        self._station = Station(
            meter.hdlc, lambda client, apdu: self.session(client).handle(apdu), self.forget
        )

    def data_received(self, data: bytes) -> None:
        try:
            for answer in self._station.receive(data):
                self.send(answer)
        except Refused:
            self.hang_up()


class DatagramLine(asyncio.DatagramProtocol):
    """The wrapper over UDP: one WPDU a datagram; associations belong to the sender's address."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._sessions: dict[tuple[object, int], Session] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        meter = self.meter
        if len(data) < HEADER or meter.has("silent") or meter.device.off_since is not None:
            return
        version, source, target, size = struct.unpack_from(">HHHH", data)
        if version != 1 or target != 1 or size != len(data) - HEADER or self._transport is None:
            return
        key = (addr, source)
        if key not in self._sessions:
            if len(self._sessions) >= 64:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[key] = Session(meter, source)
        try:
            answer = self._sessions[key].handle(data[HEADER:])
        except Refused:
            del self._sessions[key]
            return
        if answer:
            self._transport.sendto(wrap(target, source, answer), addr)


class Lines:
    """All listening sockets of the fleet's DLMS meters."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[asyncio.BaseTransport] = []
        self._live: set[_Line] = set()

    async def open(self, meter: Meter, port: int) -> None:
        """Listen for one meter at `meter.host`; port 0 = a free one, which is then in `meter.port`."""
        kind = HdlcLine if meter.framing == "hdlc" else WrapperLine
        loop = asyncio.get_running_loop()
        if meter.transport == "udp":
            transport, _ = await loop.create_datagram_endpoint(
                lambda: DatagramLine(meter), local_addr=(meter.host, port)
            )
            meter.port = transport.get_extra_info("sockname")[1]
            self._datagrams.append(transport)
            return
        server = await loop.create_server(
            lambda: kind(meter, self._rng, self._live), meter.host, port, backlog=16
        )
        meter.port = server.sockets[0].getsockname()[1]
        self._servers.append(server)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        for server in self._servers:
            server.close()
        live = list(self._live)
        for line in live:
            line.abort()
        for transport in self._datagrams:
            transport.close()
        if live or self._datagrams:
            await asyncio.sleep(0)  # the loop closes the sockets in its next turn
        self._servers.clear()
