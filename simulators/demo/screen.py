"""What the demo shows while it runs: a table that is drawn again each second, and a line per fault.

On a terminal the table stays in place and single keys act; elsewhere only the fault lines are printed, to standard
error, so that `--json` keeps standard output to itself.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import termios
import threading
import tty
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = {
    "c": "uplink-cut",
    "k": "kill-gateway",
    "g": "gasp-storm",
    "s": "meter-silent",
    "n": "garbage",
    "p": "power-cut",
}


class Screen:
    """Draws, and listens to keys.

    Args:
        on_key: called with a fault's name, or "quit", from a thread of its own.
    """

    def __init__(self, on_key: Callable[[str], None]) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = 0
        self._said: list[str] = []
        self._on_key = on_key
        self._attributes: list[Any] | None = None
        if self._live and sys.stdin.isatty():
            with contextlib.suppress(termios.error):
                self._attributes = termios.tcgetattr(sys.stdin)
                tty.setcbreak(sys.stdin)
                threading.Thread(target=self._listen, name="keys", daemon=True).start()

    def _listen(self) -> None:
        while key := sys.stdin.read(1):
            if key == "q":
                self._on_key("quit")
            elif key in KEYS:
                self._on_key(KEYS[key])

    def close(self) -> None:
        """Give the terminal back."""
        if self._attributes is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._attributes)

    def say(self, at_s: float, text: str) -> None:
        """One line that stays."""
        line = f"{at_s:6.1f} s  {text}"
        if self._live:
            self._said.append(line)
        else:
            click.echo(line, err=True)

    def draw(self, figures: dict[str, Any]) -> None:
        """The table, in place."""
        if not self._live:
            return
        lines = [*self._table(figures), "", *self._said[-8:]]
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
        self._drawn = len(lines)

    def _table(self, f: dict[str, Any]) -> list[str]:
        box, journal = f.get("overview") or {}, (f.get("overview") or {}).get("journal", {})
        meters, uplink = box.get("meters", {}), box.get("uplink", {})
        civil = dt.datetime.fromtimestamp(f["civil"], dt.UTC).strftime("%a %d %b %H:%M")
        state = "DOWN" if not box else uplink.get("state", "?")
        keys = "   ".join(f"[{k}] {v}" for k, v in KEYS.items())
        return [
            f"OpenDCU demo   {f['elapsed']:.0f} of {f['run_s']:.0f} s   meters' time {civil} UTC "
            f"({f['speed']:.0f} x)   console {f['console']}",
            f"  meters    {meters.get('total', 0):6} in all   {meters.get('silent', 0):5} silent   "
            f"{f['captured']:9,} readings captured",
            f"  journal   {journal.get('segments_waiting', 0):6} segments waiting   "
            f"{journal.get('readings', 0):9,} readings since start   {journal.get('used_bytes', 0) >> 10:7,} KiB",
            f"  uplink    {state:>12}   {uplink.get('in_flight', 0):3} in flight   "
            f"{uplink.get('unacked', 0):4} unacked   {box.get('uplink_counts', {}).get('resent', 0):4} resent",
            f"  cloud     {f['messages']:6} messages stored   {f['alarms']:5} alarms in the queues",
            f"  gateway   {box.get('memory_mb', 0):6} MB resident   {f['restarts']} restarts",
            f"  {keys}   [q] count and end",
        ]
