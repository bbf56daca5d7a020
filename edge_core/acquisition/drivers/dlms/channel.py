"""APDUs over a line: the wrapper by TCP or UDP, or HDLC, one request and one answer at a time, each wait bounded.

Invariants: an answer comes from the address that was asked and goes to the client that asked; whatever else comes
(pushes on the same connection, other stations of a bus, echoes) is passed over, MAX_STRAYS times at most. After any
error the stream is out of step: it must be closed. Silence is counted from the last octet that came, on a serial line
from the last octet that left us; the whole exchange has a limit of its own, so that a meter that dribbles octets for
ever ends too. On a serial line nothing is sent before the line was quiet for the turnaround time; and where an answer
is still due (a visit was cancelled) HDLC first hears it out, for behind a serial server, too, there is one speaker at a
time.

Errors: `TimeoutError` and other `OSError`s of the stream, `MalformedFrame`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from edge_core.errors import MalformedFrame, ProtocolError
from edge_core.protocols.dlms.wrapper import Wpdu, WrapperReader, parse_datagram, wrap
from edge_core.protocols.hdlc.frame import client_address, server_address
from edge_core.protocols.hdlc.link import Closed, Connected, Event, Link, Received, Waiting
from edge_core.protocols.hdlc.parameters import Parameters

if TYPE_CHECKING:
    from edge_core.transports.stream import Stream

MAX_STRAYS: Final = 32
HDLC_INFORMATION: Final = 1024
"""Information octets that SNRM proposes; a meter that takes less says so in UA."""
HDLC_SILENCE_RETRIES: Final = 2
DATAGRAM_RETRIES: Final = 3
_BLOCK: Final = b"\xe0"
_WAITING_PAUSE_S: Final = 0.2
_DISC_S: Final = 1.0
_HEAR_OUT_S: Final = 0.5
"""Silence after which an answer that nobody waits for any more is over, or will not come."""
_HEAR_OUT_WHOLE_S: Final = 2.0


class Channel(Protocol):
    """Carries APDUs to one logical device and back."""

    async def exchange(self, apdu: bytes, silence_s: float, whole_s: float) -> bytes:
        """Send an APDU (b"" = only wait) and return the next one that comes.

        Raises:
            TimeoutError: silence for `silence_s`, or no whole answer within `whole_s`.
            OSError: the line broke.
            MalformedFrame: what came is no frame, or longer than allowed.
        """
        ...

    async def close(self) -> None:
        """Release the line; never raises."""
        ...


class _Deadline:
    """How long the next read may wait."""

    def __init__(self, silence_s: float, whole_s: float) -> None:
        self._silence_s, self._whole_s = silence_s, whole_s
        self._end = asyncio.get_running_loop().time() + whole_s

    def wait_s(self) -> float:
        left = self._end - asyncio.get_running_loop().time()
        if left <= 0:
            raise TimeoutError(f"no whole answer within {self._whole_s:g} s")
        return min(left, self._silence_s)


class WrapperChannel:
    """Wrapper over TCP."""

    def __init__(self, stream: Stream, client: int, server: int, max_apdu: int = 0xFFFF) -> None:
        self._stream, self._client, self._server = stream, client, server
        self._reader = WrapperReader(max_apdu)
        self.heard = 0

    @property
    def ended(self) -> bool:
        """Has the other side closed the line?"""
        return getattr(self._stream, "ended", False)

    async def exchange(self, apdu: bytes, silence_s: float, whole_s: float) -> bytes:
        if apdu:
            self._stream.write(wrap(self._client, self._server, apdu))
        deadline = _Deadline(silence_s, whole_s)
        strays = 0
        self.heard = 0
        while True:
            while (wpdu := self._reader.next()) is not None:
                if wpdu.source == self._server and wpdu.destination == self._client:
                    return wpdu.apdu
                strays += 1
                if strays > MAX_STRAYS:
                    raise MalformedFrame(
                        f"{strays} APDUs from wPort {wpdu.source}, none of {self._server}"
                    )
            octets = await self._stream.read(deadline.wait_s())
            self.heard += len(octets)
            self._reader.feed(octets)

    async def close(self) -> None:
        await self._stream.close()


class DatagramChannel:
    """Wrapper over UDP: one WPDU a datagram.

    A request is not sent again: sealed, it must not come twice. Asking for the next block of a general-block-transfer,
    which is not sealed, is: DATAGRAM_RETRIES times.
    """

    def __init__(self, stream: Stream, client: int, server: int) -> None:
        self._stream, self._client, self._server = stream, client, server
        self.heard = 0

    async def exchange(self, apdu: bytes, silence_s: float, whole_s: float) -> bytes:
        if apdu:
            self._stream.write(wrap(self._client, self._server, apdu))
        deadline = _Deadline(silence_s, whole_s)
        self.heard = 0
        again = DATAGRAM_RETRIES if apdu[:1] == _BLOCK else 0
        for _ in range(MAX_STRAYS):
            try:
                datagram = await self._stream.read(deadline.wait_s())
            except TimeoutError:
                if again <= 0:
                    raise
                again -= 1
                self._stream.write(wrap(self._client, self._server, apdu))
                continue
            self.heard += len(datagram)
            wpdu = self._ours(datagram)
            if wpdu is not None:
                return wpdu.apdu
        raise MalformedFrame(f"{MAX_STRAYS} datagrams, none of them an answer")

    def _ours(self, datagram: bytes) -> Wpdu | None:
        """The answer that a datagram is; late ones, pushes and what is no WPDU are passed over."""
        try:
            wpdu = parse_datagram(datagram)
        except MalformedFrame:
            return None
        mine = wpdu.source == self._server and wpdu.destination == self._client
        return wpdu if mine else None

    async def close(self) -> None:
        await self._stream.close()


class HdlcChannel:
    """HDLC over TCP or a serial line.

    Args:
        stream: the line.
        client: client SAP.
        logical: upper HDLC address of the meter.
        physical: lower HDLC address, None without.
        max_apdu: longest APDU that is put together.
        turnaround_s: quiet time on the line before we send.
        character_s: time of one octet on the wire; 0 where octets take none that counts.
        window: frames that the meter may send before we acknowledge; what it takes it says in UA.
    """

    def __init__(
        self,
        stream: Stream,
        client: int,
        logical: int,
        physical: int | None,
        max_apdu: int,
        turnaround_s: float = 0.0,
        character_s: float = 0.0,
        window: int = 1,
    ) -> None:
        self._stream, self._turnaround_s = stream, turnaround_s
        self._character_s = character_s
        self._quiet_from = asyncio.get_running_loop().time()
        self._leaves_s = 0.0
        self._link = Link(
            client_address(client),
            server_address(logical, physical),
            Parameters(HDLC_INFORMATION, HDLC_INFORMATION, 1, window),
            max_apdu,
        )
        self._events: list[Event] = []
        self._due = False
        self.heard = 0

    async def connect(self, silence_s: float, retries: int = HDLC_SILENCE_RETRIES) -> None:
        """SNRM and UA; SNRM is sent again `retries` times. A meter that answers DM is asked once more.

        Raises:
            As `exchange`; ConnectionRefusedError when it answers DM.
        """
        self._link.connect()
        await self._flush()
        event = await self._next(silence_s, silence_s * (retries + 2), retries)
        if isinstance(event, Closed):
            self._link.connect()
            await self._flush()
            event = await self._next(silence_s, silence_s * (retries + 2), retries)
        if not isinstance(event, Connected):
            raise ConnectionRefusedError("the meter does not take SNRM")

    async def exchange(self, apdu: bytes, silence_s: float, whole_s: float) -> bytes:
        self.heard = 0
        if apdu:
            await self._hear_out()
            self._link.send(apdu)
            await self._flush()
        while True:
            event = await self._next(silence_s, whole_s)
            if isinstance(event, Received):
                return event.apdu
            if isinstance(event, Closed):
                raise ConnectionResetError(f"the meter dropped the link: {event.reason}")
            if isinstance(event, Waiting):
                await asyncio.sleep(_WAITING_PAUSE_S)
                self._link.repeat()
                await self._flush()

    async def close(self) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            await self._hear_out()
            self._link.disconnect()
            await self._flush()
            while not isinstance(await self._next(_DISC_S, _DISC_S, retries=0), Closed):
                pass
        await self._stream.close()

    async def _hear_out(self) -> None:
        """Let an answer that is due pass by; what it says is nobody's any more."""
        deadline = _Deadline(_HEAR_OUT_S, _HEAR_OUT_WHOLE_S)
        with contextlib.suppress(TimeoutError):
            while self._due:
                await self._stream.read(deadline.wait_s() + self._leaves_s)
                self._leaves_s = 0.0
                self._quiet_from = asyncio.get_running_loop().time()
        self._due = False

    async def _flush(self) -> None:
        octets = self._link.outgoing()
        if not octets:
            return
        loop = asyncio.get_running_loop()
        if self._turnaround_s:
            await asyncio.sleep(self._quiet_from + self._turnaround_s - loop.time())
        self._stream.write(octets)
        self._due = True
        self._leaves_s = len(octets) * self._character_s
        self._quiet_from = loop.time() + self._leaves_s

    async def _next(
        self, silence_s: float, whole_s: float, retries: int = HDLC_SILENCE_RETRIES
    ) -> Event:
        """The next event; silence is answered by asking again, as HDLC has it, a few times."""
        deadline = _Deadline(silence_s, whole_s)
        while not self._events:
            try:
                octets = await self._stream.read(deadline.wait_s() + self._leaves_s)
            except TimeoutError:
                if retries <= 0:
                    self._due = False
                    raise
                retries -= 1
                self._link.repeat()
            else:
                self._quiet_from = asyncio.get_running_loop().time()
                self._leaves_s = max(0.0, self._leaves_s - len(octets) * self._character_s)
                self.heard += len(octets)
                self._events.extend(self._link.feed(octets))
            await self._flush()
        self._due = False
        return self._events.pop(0)
