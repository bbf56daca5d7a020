"""Modbus TCP: one pymodbus client per host:port, with guards against what it lets pass.

pymodbus 3.16.1 makes the connection, the transaction ids and the PDUs. Ours are the deadline, the reconnect and the
belief: `mbap.judge` sees every octet before pymodbus does, and what is not exactly the answer (unit, function, octet
count) ends the request at once and the connection with it.

Invariants: at most one request is outstanding; the old socket is closed before a new one is opened; after a failed
connection attempt the next one waits, so that fifty units behind a dead gateway cost one time-out; transaction ids
go on counting over reconnects, so that a late answer is never a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from typing import TYPE_CHECKING, Any

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException as PymodbusError

from edge_core.acquisition.drivers.modbus.line import Answered, Ask, BackOff, Garbled, Silent
from edge_core.protocols.modbus import mbap
from edge_core.protocols.modbus.pdu import WRITE, ModbusException
from edge_core.protocols.modbus.plan import TCP_COST

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from edge_core.acquisition.drivers import Tracer
    from edge_core.clock import Clock

CONNECT_S = 3.0
ANSWER_S = 3.0  # longer than most gateways wait for their unit before they say exception 11

# What pymodbus calls an error is raised by us, with meter and step; its own lines would say it a second time.
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


class TcpLine:
    """All units behind one host:port.

    Args:
        host: name or address.
        port: TCP port.
        clock: stamps answers.
        timeout_s: longest wait for an answer; 0 = ANSWER_S.
    """

    cost = TCP_COST

    def __init__(self, host: str, port: int, clock: Clock, timeout_s: float = 0.0) -> None:
        self._host = host
        self._port = port
        self._clock = clock
        self._timeout_s = timeout_s or ANSWER_S
        self._lock = asyncio.Lock()
        self._client: AsyncModbusTcpClient | None = None
        self._transaction = random.randrange(1, 60_000)
        self._asked: mbap.Asked | None = None
        self._deadline: asyncio.Timeout | None = None
        self._tracer: Tracer | None = None
        self._rubbish = ""
        self._lost = False
        self._back_off = BackOff()

    async def read(self, ask: Ask, tracer: Tracer | None = None) -> Answered:
        """See ModbusLine.read."""
        async with self._lock:
            self._tracer = tracer
            try:
                client = await self._connected()
                if ask.gap_s:
                    await asyncio.sleep(ask.gap_s)
                return await self._exchange(client, ask)
            finally:
                self._tracer = None

    async def _exchange(self, client: AsyncModbusTcpClient, ask: Ask) -> Answered:
        self._transaction = self._transaction % 60_000 + 1
        client.ctx.next_tid = self._transaction - 1  # pymodbus adds one before it sends
        if ask.function == WRITE:
            ask.pdu()  # what may not leave us does not
        self._asked = mbap.Asked(self._transaction, ask.unit, ask.function, ask.count, ask.address)
        sent_at = self._clock.now()
        try:
            async with asyncio.timeout(max(self._timeout_s, ask.patience_s)) as self._deadline:
                answer = await _call(client, ask)
        except (TimeoutError, PymodbusError) as error:
            raise self._failed(error) from error
        finally:
            self._deadline = None
            self._asked = None
        heard_at = self._clock.now()
        if answer.isError():
            raise ModbusException(answer.exception_code)
        registers = () if ask.function == WRITE else tuple(answer.registers)
        return Answered(registers, sent_at, heard_at)

    def _failed(self, error: Exception) -> Exception:
        """What to raise; the connection ends unless the peer was merely slow."""
        if self._rubbish:
            cause: Exception = Garbled(self._rubbish)
        elif self._lost:
            return Silent("the connection was closed before the answer came")
        elif isinstance(error, PymodbusError):
            cause = Silent(f"the connection failed: {error}")
        elif self._half_frame():
            cause = Garbled(f"only part of an answer came in {self._timeout_s:g} s")
        else:
            return Silent(f"no answer in {self._timeout_s:g} s")
        self._drop()
        return cause

    def owed(self, unit: int) -> frozenset[tuple[int, int]]:  # noqa: ARG002
        """See ModbusLine.owed: none, answers carry their transaction id."""
        return frozenset()

    def _half_frame(self) -> int:
        """Octets of a frame that has not ended: the next answer could not be found behind it."""
        return len(self._client.ctx.recv_buffer) if self._client else 0

    # --- connection

    async def _connected(self) -> AsyncModbusTcpClient:
        """The client, connected and at the beginning of a frame."""
        client = self._client
        if client is not None and client.connected and not self._half_frame() and not self._rubbish:
            return client
        await self.close()
        self._back_off.check(f"{self._host}:{self._port}")
        client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=CONNECT_S,
            retries=0,
            reconnect_delay=0,
            trace_packet=self._packet,
            trace_connect=self._connection,
        )
        self._rubbish, self._lost = "", False
        self._client = client
        connected = False
        try:
            connected = await client.connect()
        finally:
            if not connected:
                self._drop()
        if not connected:
            self._back_off.failed()
            raise Silent(f"no connection to {self._host}:{self._port}")
        self._back_off.succeeded()
        # An answer is awaited with a deadline of ours; pymodbus must not time out first.
        client.ctx.comm_params.timeout_connect = 3600.0
        _keep_alive(client.ctx.transport)
        return client

    def _packet(self, sending: bool, data: bytes) -> bytes:
        """See every octet first: raw frames to the tracer, rubbish away from pymodbus."""
        if sending:
            if self._tracer:
                self._tracer("send", data)
            return data
        if self._asked is None:
            # Late answers to what was given up: nobody waits, and the next request begins a new frame.
            return data
        judged = mbap.judge(data, self._asked)
        if self._tracer and (judged.complete or judged.why):
            self._tracer("receive", data)
        if not judged.why:
            return data
        self._rubbish = judged.why
        self._end_wait()
        return b""

    def _connection(self, made: bool) -> None:
        if not made:
            self._lost = True
            self._end_wait()

    def _end_wait(self) -> None:
        if self._deadline is not None and self._deadline.when() is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._deadline.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """See ModbusLine.close."""
        if self._drop():
            await asyncio.sleep(0)  # the socket is closed in the loop's next round

    def _drop(self) -> bool:
        """End the connection; was there one?"""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            self._rubbish = ""
        return client is not None


def _call(client: AsyncModbusTcpClient, ask: Ask) -> Awaitable[Any]:
    if ask.function == WRITE:
        return client.write_registers(ask.address, list(ask.words), device_id=ask.unit)
    call = client.read_holding_registers if ask.function == 3 else client.read_input_registers
    return call(ask.address, count=ask.count, device_id=ask.unit)


def _keep_alive(transport: Any) -> None:
    """Let the kernel find half-open connections: a meter that lost power never says goodbye."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
