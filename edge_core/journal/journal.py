"""The journal: everything acquired is durable here before anyone else sees it, except alarms.

SKELETON: signatures are final, bodies follow within the half hour.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_core.clock import Clock
    from edge_core.domain import Alarm, Block, Obis
    from edge_core.journal.records import (
        Appended,
        Aside,
        Durable,
        JournalStatus,
        Lane,
        LedgerEntry,
        Note,
        Segment,
        Verification,
    )

MIB = 1 << 20


class Journal:
    """One journal file with one writer thread. All methods may be called from any thread."""

    path: Path
    epoch: int
    was_damaged: str | None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        max_bytes: int = 512 * MIB,
        alarm_reserve_bytes: int = 16 * MIB,
        keep_acked_s: float = 60 * 86_400,
        keep_long_s: float = 400 * 86_400,
        machine_id: Path = Path("/etc/machine-id"),
    ) -> Journal:
        """Open or create. A damaged file is set aside into `<its folder>/damaged/` and what can be read of it is taken over.

        Raises:
            DataDirectoryBusy: another process (or another Journal) holds the file.
        """
        raise NotImplementedError

    def append(
        self,
        block: Block,
        *,
        durable: Durable = "lazy",
        lane: Lane = "live",
        watermark: int | None = None,
    ) -> Future[Appended]:
        """Keep the rows that are new.

        Args:
            watermark: where the next read of this profile starts (never moves back); None = the newest row of the block.
        """
        raise NotImplementedError

    def alarm(self, alarm: Alarm) -> Future[bool]:
        raise NotImplementedError

    def note(self, kind: str, sub: str, body: dict[str, Any]) -> Future[int]:
        raise NotImplementedError

    def flush(self) -> Future[None]:
        raise NotImplementedError

    def on_alarm(self, callback: Callable[[Alarm], None]) -> None:
        raise NotImplementedError

    def on_commit(self, callback: Callable[[], None]) -> None:
        raise NotImplementedError

    def watermark(self, meter: str, device: str, profile: Obis) -> int | None:
        raise NotImplementedError

    def ledger(self, meter: str) -> list[LedgerEntry]:
        raise NotImplementedError

    def note_gap(
        self, meter: str, device: str, profile: Obis, first: int, last: int, cause: str
    ) -> Future[None]:
        raise NotImplementedError

    def segments(self, after: int, *, lane: Lane | None = None, limit: int = 100) -> list[Segment]:
        """Unreleased segments with an id above `after`, ascending; not those set aside."""
        raise NotImplementedError

    def blocks(self, segment: int) -> list[Block]:
        """Blocks of a segment, also of a released or set-aside one; empty when it was freed.

        Raises:
            JournalDamaged: the segment cannot be decoded: set it aside.
        """
        raise NotImplementedError

    def alarms_waiting(self, limit: int = 1000) -> list[Alarm]:
        raise NotImplementedError

    def notes_waiting(self, after: int = 0, limit: int = 100) -> list[Note]:
        raise NotImplementedError

    def release(
        self, *, segments: Iterable[int] = (), alarms: Iterable[str] = (), notes: Iterable[int] = ()
    ) -> Future[None]:
        """Acked by the cloud. Takes effect at once, is durable with the next group commit (60 s at most)."""
        raise NotImplementedError

    def set_aside(
        self,
        cause: str,
        why: str = "",
        *,
        segments: Iterable[int] = (),
        alarms: Iterable[str] = (),
        notes: Iterable[int] = (),
    ) -> Future[None]:
        """Refused for good: served no more, kept with the cause until a later release."""
        raise NotImplementedError

    def aside(self, limit: int = 100) -> list[Aside]:
        raise NotImplementedError

    def renew_epoch(self) -> int:
        """Begin a new epoch (this journal is a restored copy)."""
        raise NotImplementedError

    def head(self) -> int:
        raise NotImplementedError

    def status(self) -> JournalStatus:
        raise NotImplementedError

    def verify(self) -> Verification:
        raise NotImplementedError

    def close(self, timeout_s: float = 4.0) -> None:
        raise NotImplementedError
