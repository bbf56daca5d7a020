"""The record of commands in uplink.db: what was asked, who runs it, what was answered. An id is run once, for ever.

    given     for the process that plays the role; it has not said yet that it begins
    accepted  begun: never begun again, whatever happens to the process
    done, failed

What runs in the uplink's own process is accepted here, durably, before it begins. Another process takes what is given to
its role, journals the reply `accepted`, durably, before it begins, and the uplink writes it down as it sends it on.

Limits: REMEMBERED commands, oldest finished ones go first; of an answer above KEPT_OCTETS only its state is kept.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core.uplink.outbox import open_reader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from edge_core.uplink.outbox import Outbox

REMEMBERED = 1_000
KEPT_OCTETS = 8 << 10
FINISHED = ("done", "failed")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A command as far as it is believed."""

    id: str
    do: str
    meter: str = ""
    args: dict[str, Any] = {}
    expires: int = 0
    sig: str = ""


class Record:
    """The uplink's half, on an outbox. Any thread."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}  # oldest first
        with (
            contextlib.closing(outbox.reading()) as db,
            contextlib.suppress(sqlite3.OperationalError),
        ):
            self._states.update(db.execute("SELECT id, state FROM command ORDER BY at, id"))

    def state(self, command: str) -> str:
        """State of a command, "" when it is unknown."""
        with self._lock:
            return self._states.get(command, "")

    def enter(
        self,
        order: Order,
        state: str,
        role: str,
        now: float,
        answer: dict[str, Any] | None = None,
    ) -> Future[None]:
        """Write a new command down, with its answer if it has one already; done when it is on disk."""
        with self._lock:
            self._states[order.id] = state
            surplus = self._surplus()
        for command in surplus:
            self._outbox.write("DELETE FROM command WHERE id = ?", command)
        self._outbox.write(
            "INSERT OR REPLACE INTO command VALUES (?, ?, ?, ?, ?, ?, ?)",
            order.id, role, state, int(now), order.expires, msgspec.msgpack.encode(order),
            None if answer is None else msgspec.json.encode(answer),
        )  # fmt: skip
        return self._outbox.sync()

    def answered(self, command: str, body: dict[str, Any]) -> None:
        """A reply leaves: its state holds from now on, and a repeat of the command is answered with it.

        What never was entered (no command at all, of a record that forgot it) is not kept.
        """
        state = str(body.get("state", ""))
        with self._lock:
            before = self._states.get(command)
            if before is None or before in FINISHED or before == state:
                return
            self._states[command] = state
        octets = msgspec.json.encode(body)
        if len(octets) > KEPT_OCTETS:
            why = {"class": "AnswerNotKept", "message": f"it had {len(octets)} octets: ask again"}
            octets = msgspec.json.encode({"state": state, "error": why})
        self._outbox.write(
            "UPDATE command SET state = ?, answer = ? WHERE id = ?", state, octets, command
        )

    def answer(self, command: str) -> dict[str, Any] | None:
        """What was answered last, from disk: not for the event loop."""
        with contextlib.suppress(TimeoutError):  # a disk that is full: what it has holds
            self._outbox.sync().result(timeout=5.0)
        with contextlib.closing(self._outbox.reading()) as db:
            row = db.execute("SELECT answer FROM command WHERE id = ?", (command,)).fetchone()
        body: dict[str, Any] | None = None
        if row is not None and row[0] is not None:
            body = msgspec.json.decode(row[0])
        return body

    def _surplus(self) -> list[str]:
        """Forget the oldest of too many."""
        out: list[str] = []
        while len(self._states) > REMEMBERED:
            finished = (c for c, s in self._states.items() if s in FINISHED)
            oldest = next(finished, None) or next(iter(self._states))
            del self._states[oldest]
            out.append(oldest)
        return out


def open_orders(path: Path, roles: Iterable[str], states: Iterable[str]) -> list[tuple[str, Order]]:
    """(state, order) of the commands that wait for these roles, oldest first; none where there is no record."""
    wanted, roles = set(states), set(roles)
    try:
        with contextlib.closing(open_reader(path)) as db:
            rows = db.execute(
                "SELECT role, state, payload FROM command WHERE state IN ('given', 'accepted') ORDER BY at, id"
            ).fetchall()
    except sqlite3.Error:
        return []
    out = []
    for role, state, payload in rows:
        if role in roles and state in wanted:
            with contextlib.suppress(msgspec.MsgspecError):
                out.append((state, msgspec.msgpack.decode(payload, type=Order)))
    return out
