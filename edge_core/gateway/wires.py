"""What the processes of one gateway say to each other at once; everything they say stands in a file, too.

    alarm <JSON>...          to the uplink: it leaves in the same moment, while its commit is under way
    commit                   to the uplink and the detector: something was committed
    look                     to the uplink: some alarms did not arrive, look into the journals
    news                     from the uplink to the others: uplink.db has acks or commands for you
    hold <name> <epoch> <n>  from the detector: it has read your journal up to segment n

In one process nothing is sent: who listens is in the same process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from edge_core.domain import Alarm
from edge_core.transports.wake import Waker, WakeSocket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from edge_core.journal import Journal, Journals
    from edge_core.journal.datadir import DataDirectory
    from edge_core.journal.elsewhere import Elsewhere

log = logging.getLogger(__name__)

FOLLOWERS = ("uplink", "detector")
"""Roles that read the journals of others."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Alarm).decode


class Wires:
    """The sockets of one process.

    Args:
        name: of the process's files, "" with the uplink.
        roles: of this process.
        on_news, on_look: on the event loop.
    """

    def __init__(
        self,
        directory: DataDirectory,
        name: str,
        roles: Iterable[str],
        journal: Journal,
        journals: Journals | None,
        *,
        on_news: Callable[[], object],
        on_look: Callable[[], object],
    ) -> None:
        mine = set(roles)
        self._directory, self._journal, self._journals = directory, journal, journals
        self._on_news, self._on_look = on_news, on_look
        names = {name or "uplink", *(mine & set(FOLLOWERS))}
        self._sockets = [WakeSocket(directory.wake(n), self._woken) for n in sorted(names)]
        self._followers = {
            role: Waker(directory.wake(role)) for role in FOLLOWERS if role not in mine
        }
        self._told_of: dict[str, int] = dict.fromkeys(self._followers, 0)
        self._owners: dict[str, Waker] = {}
        if "uplink" in self._followers:
            journal.on_alarm(self._alarm)
        if self._followers:
            journal.on_commit(self._committed)
        if journals is not None:
            journals.on_hold = self._hold

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen.

        Raises:
            OSError: a socket cannot be made.
        """
        for each in self._sockets:
            each.start(loop)

    def close(self) -> None:
        """Stop listening and sending."""
        for listening in self._sockets:
            listening.close()
        for sending in (*self._followers.values(), *self._owners.values()):
            sending.close()

    def news(self) -> None:
        """Tell all others that uplink.db has something for them. Any thread."""
        if self._journals is not None:
            for name in self._journals.names().values():
                if (owner := owner_of(name)) is not None:
                    self._to(owner).send("news")

    # --- from our journal, in its threads

    def _alarm(self, alarm: Alarm) -> None:
        self._followers["uplink"].send("alarm", _encode(alarm))

    def _committed(self) -> None:
        for role, waker in self._followers.items():
            lost = waker.lost
            if waker.send("commit" if lost == self._told_of[role] else "look"):
                self._told_of[role] = lost

    def _hold(self, other: Elsewhere, name: str, cursor: int) -> None:
        if (owner := owner_of(other.name)) is not None:
            self._to(owner).send("hold", f"{name} {other.epoch} {cursor}".encode())

    def _to(self, owner: str) -> Waker:
        waker = self._owners.get(owner)
        if waker is None:
            waker = self._owners[owner] = Waker(self._directory.wake(owner))
        return waker

    # --- from others, on the event loop

    def _woken(self, word: str, lines: list[bytes]) -> None:
        match word:
            case "alarm" if self._journals is not None:
                for line in lines:
                    self._journals.heard(_decode(line))
            case "commit" | "look" if self._journals is not None:
                self._journals.committed()
                if word == "look":
                    self._on_look()
            case "news":
                self._on_news()
            case "hold":
                for line in lines:
                    name, epoch, cursor = line.decode().split(" ")
                    if int(epoch) == self._journal.epoch:
                        self._journal.hold(name, int(cursor))
            case _:
                log.debug("a wake-up that nobody knows: %s", word)


def owner_of(file: str) -> str | None:
    """Who listens for the process that writes a journal of this name; None for the uplink's own."""
    stem = file.removesuffix(".db")
    return stem.removeprefix("journal-") if stem.startswith("journal-") else None
