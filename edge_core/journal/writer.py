"""Natural group commit: one thread per file that commits whatever has arrived, and then again.

An item waits for two syncs at most: the one that runs when it arrives, and its own. Items say how long they may wait
beyond that; "lazy" ones are collected until they weigh enough or the time is up, and do not join earlier commits, for small
segments compress badly. The commit callback runs in the thread, answers the futures of its items and never raises.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.clock import Clock

T = TypeVar("T")
log = logging.getLogger(__name__)

LAZY_WEIGHT = 1000
LAZY_S = 60.0
# of the 200 ms that are promised; the rest is for the way to the journal, the commit and its sync
SOON_S = 0.1
_NEVER = float("inf")
_NAP_S = 0.25  # a clock that is moved by hand wakes nobody


@dataclass(slots=True, eq=False)
class Item(Generic[T]):
    """One thing to make durable.

    Attributes:
        what: tells the commit callback what to do with `args`.
        weight: readings, for the lazy threshold; 0 = joins any commit.
        future: answered by the commit callback.
    """

    what: str
    args: tuple[Any, ...]
    due: float
    weight: int = 0
    future: Future[T] = field(default_factory=Future)

    def __post_init__(self) -> None:
        # running, hence not cancellable: what was handed over gets durable whoever still waits for it
        self.future.set_running_or_notify_cancel()


class GroupCommit:
    """The thread and its two queues. Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        commit: Callable[[list[Item[Any]]], None],
        idle: Callable[[], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._commit = commit
        self._idle = idle  # a piece of work for when nothing is due; False = there is no more
        self._changed = threading.Condition()
        self._items: list[Item[Any]] = []
        self._lazy: list[Item[Any]] = []
        self._due = self._lazy_due = _NEVER  # the earliest of each
        self._weight = self._lazy_weight = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start committing."""
        self._thread.start()

    def submit(self, what: str, *args: Any, within_s: float = 0.0, weight: int = 0) -> Item[Any]:
        """Queue an item; lazy when it has a weight and may wait as long as LAZY_S.

        Raises:
            RuntimeError: closed.
        """
        item: Item[Any] = Item(what, args, self._clock.monotonic() + within_s, weight)
        with self._changed:
            if self._closing:
                raise RuntimeError(f"{self._thread.name} is closed")
            if weight and within_s >= LAZY_S:
                self._lazy.append(item)
                self._lazy_weight += weight
                if self._lazy_weight >= LAZY_WEIGHT:
                    self._lazy_due = 0.0
                    self._changed.notify_all()
                elif item.due < self._lazy_due:
                    self._lazy_due = item.due
                    self._changed.notify_all()
            else:
                self._items.append(item)
                self._weight += weight
                if item.due < self._due:
                    self._due = item.due
                    self._changed.notify_all()
        return item

    def waiting(self) -> int:
        """Readings that are not yet committed."""
        return self._weight + self._lazy_weight

    def urgent(self) -> bool:
        """Does anything wait that is due now?"""
        return self._due <= self._clock.monotonic()

    def flush(self) -> Future[None]:
        """Commit everything queued so far; answered when it is durable."""
        with self._changed:
            if self._lazy:
                self._lazy_due = 0.0
        return self.submit("flush").future

    def close(self, timeout_s: float) -> bool:
        """Commit what is queued and end; False when that took longer than `timeout_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _take(self) -> list[Item[Any]] | None:
        """Wait until something is due and take what goes with it; None = closed and empty."""
        while self._idle is not None and not self.urgent() and not self._closing:
            if not self._idle():
                self._idle = None
        with self._changed:
            while True:
                now = self._clock.monotonic()
                lazy = bool(self._lazy) and (self._closing or self._lazy_due <= now)
                if lazy or (self._items and (self._closing or self._due <= now)):
                    batch, self._items = self._items, []
                    self._due, self._weight = _NEVER, 0
                    if lazy:
                        batch += self._lazy
                        self._lazy = []
                        self._lazy_due, self._lazy_weight = _NEVER, 0
                    return batch
                if self._closing:
                    return None
                due = min(self._due, self._lazy_due) - now
                self._changed.wait(
                    min(max(due, 0.001), _NAP_S) if self._items or self._lazy else None
                )

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            try:
                self._commit(batch)
            except Exception as error:
                log.exception("group commit failed")
                for item in batch:
                    if not item.future.done():
                        item.future.set_exception(error)
