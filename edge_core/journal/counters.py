"""Invocation counters, ours and the meters': never used twice, never accepted twice.

SKELETON: signatures are final, bodies follow within the half hour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from edge_core.clock import Clock

Channel = Literal["association", "push"]


class CounterStore:
    """counters.db. All methods may be called from any thread."""

    was_created: bool
    """The file is new or was damaged: every counter needs max(ours, meter's) + 65,536 once."""

    @classmethod
    def open(cls, path: Path, *, clock: Clock) -> CounterStore:
        raise NotImplementedError

    def prepare(
        self, title: bytes, fingerprint: str, at_least: int = 0, count: int = 200
    ) -> Future[None]:
        """Make at least `count` calls of `next` possible; the next counter is `at_least` or above."""
        raise NotImplementedError

    def next(self, title: bytes, fingerprint: str) -> int:
        raise NotImplementedError

    def raise_to(self, title: bytes, fingerprint: str, at_least: int) -> Future[None]:
        raise NotImplementedError

    def current(self, title: bytes, fingerprint: str) -> int | None:
        """The next counter that would be used, or None if this key was never prepared."""
        raise NotImplementedError

    def accept(self, title: bytes, fingerprint: str, channel: Channel, counter: int) -> bool:
        raise NotImplementedError

    def flush(self) -> Future[None]:
        raise NotImplementedError

    def close(self, timeout_s: float = 4.0) -> None:
        raise NotImplementedError
