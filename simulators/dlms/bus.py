"""A serial line with DLMS meters on it: a pseudo-terminal whose octets take the time they take on a wire.

Several meters may hang on one bus (RS-485 multi-drop), each with an HDLC address of its own. What the gateway writes is
taken as if it left at the line's speed: a meter answers after the last octet has arrived, and its answer comes in
pieces of a few milliseconds. The bus counts what no bus should see: octets sent while a meter speaks (`collisions`),
and how long the line was quiet before each of our frames (`quiet_s`, the shortest). An optical head is a bus with one
meter, `mode_e` and `echo`.

Limits: meters do not hear each other; noise is not simulated here (see simulators.faults).
"""

from __future__ import annotations

import asyncio
import os
import termios
import tty
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simulators.dlms.hdlc import Station
from simulators.dlms.session import Refused, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simulators.dlms.meter import Meter

PIECE_S = 0.004
_SIGN_ON = b"/?!\r\n"
_SPEEDS = {"3": 2400, "4": 4800, "5": 9600, "6": 19_200}


class SerialBus:
    """One line.

    Args:
        meters: who hangs on it; their `hdlc` addresses differ.
        baud: bits per second of the pacing; 0 = octets take no time.
        bits: of one octet on the wire with start, parity and stop bits.
        echo: the line returns what is sent, as two-wire adapters and optical heads do.
        mode_e: the speed character of the identification; "" = HDLC at once.
        path: a stable name of the port, a symbolic link; "" = the terminal's own.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        *,
        baud: int = 0,
        bits: int = 11,
        echo: bool = False,
        mode_e: str = "",
        path: str = "",
    ) -> None:
        self.meters, self.path = list(meters), path
        self._character_s = bits / baud if baud else 0.0
        self._echo, self._mode_e = echo, mode_e
        self.collisions = 0
        self.quiet_s = float("inf")
        self.octets = 0
        self._master = self._slave = -1
        self._stations: list[Station] = []
        self._sessions: dict[tuple[str, int], Session] = {}
        self._heard_until = self._spoken_until = 0.0
        self._linked = not mode_e
        self._early = b""
        self._timers: set[asyncio.TimerHandle] = set()

    # --- life

    async def open(self) -> str:
        """Plug the adapter in; returns the device's path."""
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        device = os.ttyname(self._slave)
        if self.path:
            _point(Path(self.path), device)
        self._stations = [self._station(meter) for meter in self.meters]
        asyncio.get_running_loop().add_reader(self._master, self._readable)
        return self.path or device

    async def close(self) -> None:
        """Pull the adapter out: whoever holds the port gets an error."""
        if self._master < 0:
            return
        asyncio.get_running_loop().remove_reader(self._master)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self.path:
            _unpoint(Path(self.path))
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1
        self._sessions.clear()

    def _station(self, meter: Meter) -> Station:
        def handle(client: int, apdu: bytes) -> bytes:
            key = (meter.id, client)
            if key not in self._sessions:
                self._sessions[key] = Session(meter, client)
            return self._sessions[key].handle(apdu)

        def reset() -> None:
            for key in [k for k in self._sessions if k[0] == meter.id]:
                del self._sessions[key]

        return Station(meter.hdlc, handle, reset)

    def speaks_for_s(self) -> float:
        """How long the meter that speaks goes on; 0 = nobody speaks."""
        return max(0.0, self._spoken_until - asyncio.get_running_loop().time())

    # --- octets

    def _readable(self) -> None:
        try:
            octets = os.read(self._master, 65_536)
        except OSError:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now < self._spoken_until - 2 * self._character_s:
            self.collisions += 1
        elif self._spoken_until and now > self._heard_until:
            self.quiet_s = min(self.quiet_s, now - self._spoken_until)
        self.octets += len(octets)
        self._heard_until = max(now, self._heard_until) + len(octets) * self._character_s
        speed = termios.tcgetattr(self._slave)[5]
        if self._echo:
            self._at(self._heard_until, lambda: self._write(octets))
        self._at(self._heard_until, lambda: self._take(octets, speed))

    def _take(self, octets: bytes, speed: int) -> None:
        """What has arrived at the meters."""
        if self._mode_e and speed == termios.B300:
            self._linked = False
        if not self._linked:
            self._sign_on(octets, speed)
            return
        if self._mode_e and speed != getattr(termios, f"B{_SPEEDS[self._mode_e]}"):
            return  # gibberish at another speed
        for meter, station in zip(self.meters, self._stations, strict=True):
            if meter.has("silent") or meter.device.off_since is not None:
                continue
            try:
                answers = station.receive(octets)
            except Refused:
                continue  # on a bus a meter can only be silent
            for answer in answers:
                self._speak(answer)

    def _sign_on(self, octets: bytes, speed: int) -> None:
        if speed != termios.B300:
            return
        self._early = (self._early + octets)[-16:]
        if self._early.endswith(_SIGN_ON):
            self._early = b""
            self._speak(b"/ODC" + self._mode_e.encode() + b"E450\r\n")
        elif self._early.endswith(b"\x062" + self._mode_e.encode() + b"2\r\n"):
            self._early = b""
            self._linked = True

    def _speak(self, octets: bytes) -> None:
        """Put an answer on the wire, in pieces."""
        loop = asyncio.get_running_loop()
        start = max(loop.time(), self._spoken_until, self._heard_until)
        self.octets += len(octets)
        each = max(1, int(PIECE_S / self._character_s)) if self._character_s else len(octets)
        for at in range(0, len(octets), each):
            piece = octets[at : at + each]
            due = start + (at + len(piece)) * self._character_s
            self._at(due, partial(self._write, piece))
        self._spoken_until = start + len(octets) * self._character_s

    def _write(self, octets: bytes) -> None:
        if self._master >= 0:
            os.write(self._master, octets)

    def _at(self, when: float, call: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if when <= loop.time():
            call()
            return

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = loop.call_at(when, run)
        self._timers.add(timer)


def _unpoint(link: Path) -> None:
    """Take a stable name away, as udev does: another terminal may get the number."""
    link.unlink(missing_ok=True)


def _point(link: Path, device: str) -> None:
    """Let a stable name mean this device."""
    link.unlink(missing_ok=True)
    link.symlink_to(device)
