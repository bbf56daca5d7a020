"""The client side of an HDLC link, without I/O: SNRM, I frames with windows and segmentation, RR, DISC.

The caller sends what `outgoing` gives, feeds what comes, and calls `repeat` when nothing came in time. A lost answer is
asked for again with RR and the old N(R); a request is sent again only when the meter's N(R) says that it never came,
and then under its old N(S): a meter never runs an ACTION twice.

      DISCONNECTED --connect--> CONNECTING --UA--> CONNECTED --disconnect--> DISCONNECTING --UA, DM--> DISCONNECTED
           ^------------------------- DM ---------------------- DM, FRMR ----------'

Invariants: one APDU is under way at a time; frames of other stations and echoes of our own are passed over; damaged
frames are counted, not fatal. LLC octets are put before and taken off here, also where a meter repeats them.
Limits: a reassembled APDU has at most `max_apdu` octets; after `retries` exchanges without progress it gives up.
Source: DLMS UA Green Book ed. 9, clause 8.4; session in tests/data/frames/india_public_client_reads_invocation_counter.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

import msgspec

from edge_core.errors import LocalProtocolError, MalformedFrame
from edge_core.protocols.hdlc.frame import (
    Frame,
    FrameReader,
    Kind,
    information_control,
    ready_control,
    split_address,
    unnumbered_control,
)
from edge_core.protocols.hdlc.parameters import Parameters, parse_parameters

LLC_COMMAND: Final = b"\xe6\xe6\x00"
LLC_RESPONSE: Final = b"\xe6\xe7\x00"
RETRIES: Final = 10


class State(Enum):
    """Where the link stands."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"


class Connected(msgspec.Struct, frozen=True):
    """The meter answered UA; `parameters` hold for us."""

    parameters: Parameters


class Received(msgspec.Struct, frozen=True):
    """A whole APDU, without LLC octets."""

    apdu: bytes


class Unsolicited(msgspec.Struct, frozen=True):
    """What came in a UI frame: a push, without LLC octets."""

    information: bytes
    segmented: bool


class Waiting(msgspec.Struct, frozen=True):
    """The meter is there and has nothing to say yet: call `repeat` after a pause."""


class Closed(msgspec.Struct, frozen=True):
    """The link is down; `reason` is DM, FRMR, UA (as asked for) or what went wrong."""

    reason: str


Event = Connected | Received | Unsolicited | Waiting | Closed


class Link:
    """One link to one meter.

    Args:
        client: our address octets, see `frame.client_address`.
        server: the meter's address octets, see `frame.server_address`.
        propose: what SNRM proposes; None = a bare SNRM, the defaults hold.
        max_apdu: longest APDU that is put together.
        retries: exchanges without progress before the link is given up.
    """

    def __init__(
        self,
        client: bytes,
        server: bytes,
        propose: Parameters | None = None,
        max_apdu: int = 0xFFFF,
        retries: int = RETRIES,
    ) -> None:
        self.client = client
        self.server = server
        self.state = State.DISCONNECTED
        self.parameters = Parameters()
        self.damaged = 0
        self.foreign = 0
        self._propose = propose
        self._max_apdu = max_apdu
        self._max_retries = retries
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._sent: list[Frame] = []  # since the last answer: what an echo may repeat
        self._clear()

    def _clear(self) -> None:
        self._next_send = 0  # V(S)
        self._next_receive = 0  # V(R)
        self._queue: deque[tuple[bytes, bool]] = deque()  # segments not yet sent
        self._unacknowledged: deque[tuple[int, bytes, bool]] = deque()
        self._assembly = bytearray()
        self._awaiting = False
        self._retries = 0

    def outgoing(self) -> bytes:
        """What is to be sent now; b"" = nothing."""
        octets = bytes(self._outgoing)
        self._outgoing.clear()
        return octets

    def connect(self) -> None:
        """Send SNRM.

        Raises:
            LocalProtocolError: the link is not down.
        """
        self._expect(State.DISCONNECTED)
        self._clear()
        self.state = State.CONNECTING
        self._unnumbered(Kind.SNRM, self._propose.to_bytes() if self._propose else b"")

    def send(self, apdu: bytes) -> None:
        """Send an APDU, in as many frames as it takes.

        Raises:
            LocalProtocolError: the link is not up, or an answer is still due.
        """
        self._expect(State.CONNECTED)
        if self._awaiting:
            raise LocalProtocolError("the answer to the last APDU is still due")
        size = self.parameters.max_information_send
        information = LLC_COMMAND + apdu
        pieces = [information[i : i + size] for i in range(0, len(information), size)]
        self._queue.extend((piece, i + 1 < len(pieces)) for i, piece in enumerate(pieces))
        self._awaiting = True
        self._assembly.clear()
        self._pump()

    def disconnect(self) -> None:
        """Send DISC, whatever the state."""
        self._clear()
        self.state = State.DISCONNECTING
        self._unnumbered(Kind.DISC)

    def repeat(self) -> None:
        """Nothing came in time: ask again, without doing anything twice.

        Raises:
            LocalProtocolError: nothing is due.
        """
        self._reader.reset()
        if self.state is State.CONNECTING:
            self._unnumbered(Kind.SNRM, self._propose.to_bytes() if self._propose else b"")
        elif self.state is State.DISCONNECTING:
            self._unnumbered(Kind.DISC)
        elif self._awaiting:
            self._ready()
        else:
            raise LocalProtocolError("nothing is due that could be repeated")

    def feed(self, octets: bytes) -> list[Event]:
        """Take what came from the line.

        Raises:
            MalformedFrame: an APDU longer than `max_apdu`, or UA parameters that cannot be.
        """
        self._reader.feed(octets)
        events: list[Event] = []
        while True:
            try:
                frame = self._reader.next()
                if frame is None:
                    return events
                kind = frame.kind
            except MalformedFrame:
                self.damaged += 1
                continue
            if not self._is_ours(frame):
                self.foreign += 1
                continue
            self._handle(frame, kind, events)

    def _is_ours(self, frame: Frame) -> bool:
        if frame in self._sent or frame.destination != self.client:
            return False
        logical, physical = split_address(frame.source)
        our_logical, our_physical = split_address(self.server)
        return logical == our_logical and (
            physical == our_physical or None in (physical, our_physical)
        )

    def _handle(self, frame: Frame, kind: Kind, events: list[Event]) -> None:
        if kind is Kind.UI:
            events.append(Unsolicited(strip_llc(frame.information), frame.segmented))
        elif kind is Kind.UA:
            self._acknowledged(frame, events)
        elif kind in (Kind.DM, Kind.FRMR):
            if kind is Kind.FRMR and self.state in (State.CONNECTING, State.DISCONNECTED):
                return  # of a session before this one
            if self.state is not State.DISCONNECTED:
                self._close(kind.name, events)
        elif self.state is State.CONNECTED:
            if kind is Kind.I:
                self._information(frame, events)
            elif kind in (Kind.RR, Kind.RNR):
                self._supervisory(frame, kind, events)

    def _acknowledged(self, frame: Frame, events: list[Event]) -> None:
        if self.state is State.CONNECTING:
            answer = parse_parameters(frame.information)
            self._clear()
            self.parameters = (self._propose or Parameters()).agreed(answer)
            self.state = State.CONNECTED
            self._sent.clear()
            events.append(Connected(self.parameters))
        elif self.state is State.DISCONNECTING:
            self._close(Kind.UA.name, events)

    def _information(self, frame: Frame, events: list[Event]) -> None:
        if not self._take_receive_number(frame):
            return
        if frame.send_number == self._next_receive and self._awaiting and not self._queue:
            information = frame.information
            if not self._assembly:
                information = strip_llc(information)
            if len(self._assembly) + len(information) > self._max_apdu:
                raise MalformedFrame(f"an APDU above {self._max_apdu} octets")
            self._assembly += information
            self._next_receive = (self._next_receive + 1) & 7
            self._retries = 0
            if not frame.segmented:
                events.append(Received(bytes(self._assembly)))
                self._assembly.clear()
                self._awaiting = False
                self._sent.clear()
                return
        elif self._awaiting and frame.final and self._too_often():
            self._close(f"the meter does not send frame {self._next_receive}", events)
            return
        if frame.final and self._awaiting:
            self._ready()  # the next segment, or again from the one that is missing

    def _supervisory(self, frame: Frame, kind: Kind, events: list[Event]) -> None:
        if not self._take_receive_number(frame) or not self._awaiting or not frame.final:
            return
        if kind is Kind.RNR:
            events.append(Waiting())
        elif self._unacknowledged:
            if self._too_often():
                number = self._unacknowledged[0][0]
                self._close(f"the meter does not take frame {number}", events)
                return
            for i, (number, information, more) in enumerate(self._unacknowledged):
                last = i + 1 == len(self._unacknowledged)
                self._write_information(number, information, more=more, poll=last)
        elif self._queue:
            self._pump()
        else:
            events.append(Waiting())

    def _too_often(self) -> bool:
        """Count an exchange without progress."""
        self._retries += 1
        return self._retries > self._max_retries

    def _take_receive_number(self, frame: Frame) -> bool:
        """Drop what the meter has received; False if it acknowledges what was never sent."""
        unacknowledged = self._unacknowledged
        received = (frame.receive_number - (self._next_send - len(unacknowledged))) & 7
        if received > len(unacknowledged):
            self.damaged += 1
            return False
        if received:
            self._retries = 0
        for _ in range(received):
            unacknowledged.popleft()
        return True

    def _pump(self) -> None:
        """Send as many segments as the window takes."""
        room = self.parameters.window_send - len(self._unacknowledged)
        while self._queue and room > 0:
            information, more = self._queue.popleft()
            number = self._next_send
            self._next_send = (number + 1) & 7
            self._unacknowledged.append((number, information, more))
            room -= 1
            self._write_information(
                number, information, more=more, poll=not self._queue or room == 0
            )

    def _write_information(
        self, number: int, information: bytes, *, more: bool, poll: bool
    ) -> None:
        control = information_control(number, self._next_receive, poll=poll)
        self._write(Frame(self.server, self.client, control, information, more))

    def _ready(self) -> None:
        self._write(Frame(self.server, self.client, ready_control(self._next_receive)))

    def _unnumbered(self, kind: Kind, information: bytes = b"") -> None:
        self._write(Frame(self.server, self.client, unnumbered_control(kind), information))

    def _write(self, frame: Frame) -> None:
        self._sent.append(frame)
        del self._sent[:-8]
        self._outgoing += frame.to_bytes()

    def _close(self, reason: str, events: list[Event]) -> None:
        self._clear()
        self._sent.clear()
        self.state = State.DISCONNECTED
        events.append(Closed(reason))

    def _expect(self, state: State) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"the link is {self.state.value}, not {state.value}")


def strip_llc(information: bytes) -> bytes:
    """What follows the LLC octets; some meters write them twice."""
    while information.startswith((LLC_RESPONSE, LLC_COMMAND)):
        information = information[3:]
    return information
