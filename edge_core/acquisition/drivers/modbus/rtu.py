"""Modbus RTU with an own transport: on a serial port, or in a TCP stream behind a transparent serial server.

RTU frames carry no transaction id: nothing but unit, function and size tells whose answer it is. Hence the rules here:
- After a request without an answer (timed out, garbled, cancelled) the same unit is asked again only LATE_S after the
  request and QUIET_S after the last octet; what comes meanwhile is thrown away. Another unit need not wait: an answer
  of the first one has its unit in front and is passed over. A new TCP connection changes nothing: a serial server
  hands late octets to whoever is connected now.
- For STALE_S the line remembers what such a unit still owes (`owed`): function and count of the requests without an
  answer. The reader then asks for the same values with another count, one neighbour more or in two parts, so that a
  late answer does not fit whenever it comes.
- Where that cannot be had (one value alone, no neighbour that may be read, no room below the limit), the line listens
  on for DOUBT_S after the answer: a meter answers each request once, so two answers of one size mean that one of them
  is late; neither is believed, and the request is repeated.
- A request leaves after the line was silent for 3.5 characters (1.75 ms above 19,200 bits/s), or longer where the
  meter or the line wants it.
- Answers are hunted for in whatever comes (`protocols.modbus.rtu`): noise, echoes and other units' frames do no harm.
- The wait is calculated from speed and size; it is not three seconds.

Bounds: a line that never falls silent ends the request after BABBLE_S; STALE_SHAPES requests are remembered a unit.

What is left, and cannot be told by anybody: an answer later than LATE_S, to a request whose values have no other size
to be asked in, that comes in place of an answer which itself is lost or comes DOUBT_S later still; and an answer later
than STALE_S. Counters that fall are read twice (`series.py`), frequency and voltage are proven at first contact.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_core.acquisition.drivers.modbus.line import Answered, Ask, BackOff, Garbled, Silent
from edge_core.protocols.modbus import rtu
from edge_core.protocols.modbus.plan import rtu_cost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edge_core.acquisition.drivers import Tracer
    from edge_core.clock import Clock
    from edge_core.transports.stream import Stream

ANSWER_DELAY_S = 0.6  # some meters are allowed 500 ms before they answer
FIRST_DELAY_S = 1.0  # nobody knows yet how slow this one is
SPARE = (
    1.5  # of the calculated transmission time: pauses inside a frame are normal on USB and radio
)
SPARE_S = 0.2
HANDOVER_S = (
    0.001  # a busy kernel shows us an octet that much after it came (seen on pseudo-terminals)
)
LATE_S = 1.6
QUIET_S = 0.5
DOUBT_S = 0.5
STALE_S = 30.0
STALE_SHAPES = 8
BABBLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Speed of a line.

    Attributes:
        character_s: seconds of one character.
        silence_s: silent interval between frames.
        timeout_s: whole wait for an answer; 0 = by speed and size.
    """

    character_s: float
    silence_s: float
    timeout_s: float = 0.0

    @classmethod
    def of(cls, baudrate: int, parity: str, stopbits: int, timeout_s: float = 0.0) -> Timing:
        """The timing of a serial setting."""
        character = rtu.character_s(baudrate, parity, stopbits)
        return cls(character, rtu.silence_s(baudrate, character), timeout_s)

    def wait_s(self, request: int, answer: int, first: bool) -> float:
        """Longest time from the first octet sent to the last one received, for so many octets."""
        if self.timeout_s:
            return self.timeout_s
        wire = (request + answer) * self.character_s + self.silence_s
        return wire * SPARE + (FIRST_DELAY_S if first else ANSWER_DELAY_S) + SPARE_S


class RtuLine:
    """All units on one RS-485 line.

    Args:
        opener: opens the port or connection.
        name: of the port or peer, for errors.
        timing: speed of the line (behind a serial server: of its serial side).
        clock: stamps answers.
        echo: the line returns what we send.
    """

    def __init__(
        self,
        opener: Callable[[], Awaitable[Stream]],
        name: str,
        timing: Timing,
        clock: Clock,
        *,
        echo: bool = False,
    ) -> None:
        self.cost = rtu_cost(timing.character_s, timing.silence_s)
        self._opener = opener
        self._name = name
        self._timing = timing
        self._clock = clock
        self._echo = echo
        self._lock = asyncio.Lock()
        self._stream: Stream | None = None
        self._back_off = BackOff()
        # Silences and deadlines run on the loop's clock, as the waits do; civil time may be scaled.
        self._time = asyncio.get_running_loop().time
        self._last_octet = 0.0
        # Until which monotonic second an answer of a unit may still come that nobody waits for any more.
        self._busy_until: dict[int, float] = {}
        # By unit: (function, count) of requests without an answer, and until when it may still come.
        self._stale: dict[int, dict[tuple[int, int], float]] = {}

    def owed(self, unit: int) -> frozenset[tuple[int, int]]:
        """See ModbusLine.owed."""
        now = self._time()
        shapes = self._stale.get(unit, {})
        for shape in [s for s, until in shapes.items() if until <= now]:
            del shapes[shape]
        if not shapes:
            self._stale.pop(unit, None)
        return frozenset(shapes)

    async def read(self, ask: Ask, tracer: Tracer | None = None) -> Answered:
        """See ModbusLine.read."""
        request = rtu.frame(ask.unit, ask.pdu())  # before anything: what may not leave us does not
        async with self._lock:
            stream = await self._opened()
            try:
                await self._fall_silent(stream, ask)
                return await self._exchange(stream, ask, request, tracer)
            except TimeoutError as error:  # a text of ours: see _fall_silent
                raise Silent(str(error)) from error
            except OSError as error:
                await self.close()
                raise Silent(str(error)) from error

    async def _exchange(
        self, stream: Stream, ask: Ask, request: bytes, tracer: Tracer | None
    ) -> Answered:
        hunt = rtu.Hunt(ask.unit, ask.function, ask.count, ask.address)
        sent_at, began = self._clock.now(), self._time()
        wait_s = max(self._timing.wait_s(len(request), hunt.size, ask.first), ask.patience_s)
        shape = (ask.function, ask.count)
        doubtful = shape in self.owed(ask.unit)
        self._busy_until[ask.unit] = began + max(LATE_S, wait_s)
        if tracer:
            tracer("send", request)
        stream.write(request)
        self._last_octet = began + len(request) * self._timing.character_s
        answered = False
        try:
            answer, octets = await self._hear(stream, hunt, request, began + wait_s)
            if tracer and octets:
                tracer("receive", octets)
            if answer is None:
                if octets:
                    raise Garbled(hunt.describe(octets))
                raise Silent(f"no answer in {wait_s:.1f} s")
            heard_at = self._clock.now()
            if doubtful and await self._again(stream, hunt, octets):
                raise Garbled("two answers to one request: one of them is late")
            answered = True
        finally:
            if not answered:  # cancelled, too
                self._remember(ask.unit, shape)
        del self._busy_until[ask.unit]
        return Answered(ask.registers(answer), sent_at, heard_at)

    def _remember(self, unit: int, shape: tuple[int, int]) -> None:
        shapes = self._stale.setdefault(unit, {})
        shapes.pop(shape, None)
        shapes[shape] = self._time() + STALE_S
        while len(shapes) > STALE_SHAPES:
            del shapes[next(iter(shapes))]

    async def _again(self, stream: Stream, hunt: rtu.Hunt, octets: bytes) -> bool:
        """Does a second answer of the same shape come, behind the first one or within DOUBT_S?"""
        until = self._time() + DOUBT_S
        while not hunt.twice(octets):
            left = until - self._time()
            if left <= 0:
                return False
            try:
                octets = (octets + await stream.read(left))[-rtu.MAX_BUFFER :]
            except TimeoutError:
                return False
            self._last_octet = self._time()
        return True

    async def _hear(
        self, stream: Stream, hunt: rtu.Hunt, request: bytes, until: float
    ) -> tuple[bytes | None, bytes]:
        """The PDU of the answer, or None at the deadline, and all octets that came but an announced echo."""
        octets = b""
        while (left := until - self._time()) > 0:
            try:
                octets += await stream.read(left)
            except TimeoutError:
                break
            self._last_octet = self._time()
            if self._echo and octets.startswith(request):
                octets = octets[len(request) :]
            answer = hunt.find(octets)
            if answer is not None:
                return answer, octets
            octets = octets[-rtu.MAX_BUFFER :]
        return None, octets

    async def _fall_silent(self, stream: Stream, ask: Ask) -> None:
        """Wait until the line is free for a request to this unit; what comes meanwhile is thrown away."""
        silence_s = self._timing.silence_s
        silence_s = max(silence_s + HANDOVER_S if silence_s else 0.0, ask.gap_s)
        began = self._time()
        until = began
        if ask.unit in self._busy_until:
            until = self._busy_until.pop(ask.unit)
            silence_s = max(silence_s, QUIET_S)
        while True:
            now = self._time()
            free = max(until, self._last_octet + silence_s)
            # Look at least once: what lies in the buffer came after the last answer.
            try:
                await stream.read(max(0.0, free - now))
            except TimeoutError:
                if self._time() >= free:
                    return
                continue
            self._last_octet = self._time()
            if self._last_octet > max(began, until) + BABBLE_S:
                raise TimeoutError(f"{self._name} never falls silent: somebody else is talking")

    # --- port

    async def _opened(self) -> Stream:
        if self._stream is None:
            self._back_off.check(self._name)
            try:
                self._stream = await self._opener()
            except OSError as error:
                self._back_off.failed()
                raise Silent(f"{self._name}: {error}") from error
            self._back_off.succeeded()
            self._last_octet = self._time()
        return self._stream

    async def close(self) -> None:
        """See ModbusLine.close."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
