"""What a Modbus line does for the driver, whatever it is made of: one request at a time, a checked answer or an error.

`tcp.py` is Modbus TCP through pymodbus, `rtu.py` is RTU on a serial port or in a TCP stream. `pool.py` makes sure that
there is one line for each host:port or serial device, shared by all units behind it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_core.errors import LocalProtocolError
from edge_core.protocols.modbus import pdu

if TYPE_CHECKING:
    from edge_core.acquisition.drivers import Tracer
    from edge_core.protocols.modbus.plan import Cost


class Silent(Exception):
    """Nothing came: no connection, no answer in time, or the peer hung up. The text is the cause."""


class Garbled(Exception):
    """Something came that is not the answer. The text is the cause."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        unit: whom.
        function: 3 = holding registers, 4 = input registers, 16 = write the request registers of a history.
        address: first register.
        count: how many, 1 to 125.
        first: the first request of a session: nobody knows yet whether the unit is there, so it gets more time.
        gap_s: silence before the request, beyond what the framing demands.
        words: what is written; function 16 only.
        declared: groups of registers (first, count) that may be written, from the meter model; function 16 only.
        patience_s: seconds to wait for the answer, where it may take longer than answers do.
    """

    unit: int
    function: int
    address: int
    count: int
    first: bool = False
    gap_s: float = 0.0
    words: tuple[int, ...] = ()
    declared: tuple[tuple[int, int], ...] = ()
    patience_s: float = 0.0

    def __str__(self) -> str:
        if self.function == pdu.WRITE:
            return f"ask the history with {self.count} registers from {self.address}"
        table = "holding" if self.function == 3 else "input"
        return f"read {self.count} {table} registers from {self.address}"

    def pdu(self) -> bytes:
        """The request's octets.

        Raises:
            LocalProtocolError: no request that may leave us.
        """
        if self.function != pdu.WRITE:
            return pdu.read_request(self.function, self.address, self.count)
        if not 1 <= self.unit <= 255:  # 0 would write to every unit of the line
            raise LocalProtocolError(f"a write to unit {self.unit}")
        return pdu.write_request(self.address, self.words, self.declared)

    def registers(self, answer: bytes) -> tuple[int, ...]:
        """Registers of the answer's PDU; () for a write.

        Raises:
            ModbusException, MalformedApdu: see `protocols.modbus.pdu`.
        """
        if self.function != pdu.WRITE:
            return pdu.read_answer(answer, self.function, self.count)
        pdu.written(answer, self.address, self.count)
        return ()


@dataclass(frozen=True, slots=True)
class Answered:
    """Registers, and when they were on the line, UTC epoch seconds of our clock."""

    registers: tuple[int, ...]
    sent_at: float
    heard_at: float


class BackOff:
    """After a refused connection the next attempt waits, longer each time: fifty units cost one time-out."""

    FIRST_S = 0.2
    LONGEST_S = 30.0

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._failures = 0
        self._not_before = 0.0

    def check(self, name: str) -> None:
        """Is an attempt allowed?

        Raises:
            Silent: not yet.
        """
        wait_s = self._not_before - self._time()
        if wait_s > 0:
            raise Silent(f"{name} could not be reached; the next attempt is in {wait_s:.1f} s")

    def failed(self) -> None:
        """An attempt failed."""
        pause = min(self.LONGEST_S, self.FIRST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._not_before = self._time() + pause * random.uniform(0.8, 1.2)

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._failures = 0


class ModbusLine(Protocol):
    """A line to units; requests of several drivers wait for each other."""

    cost: Cost

    def owed(self, unit: int) -> frozenset[tuple[int, int]]:
        """(function, count) of requests whose answers may still come and cannot be told from another's by their octets.

        Empty where answers carry a transaction id.
        """
        ...

    async def read(self, ask: Ask, tracer: Tracer | None = None) -> Answered:
        """Ask once, and wait no longer than the line's timeout, or as long as the request's patience.

        Raises:
            Silent, Garbled: no answer; the line is fit for the next request all the same.
            ModbusException: the unit said no.
        """
        ...

    async def close(self) -> None:
        """Close the connection or port; the next request opens it again."""
        ...
