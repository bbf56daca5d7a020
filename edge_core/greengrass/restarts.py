"""When the process may end so that the nucleus starts it anew: once per cause, at most twice an hour.

Some faults of the outside heal only with a new process: lite gives a fresh token to a new one. But three ends within
an hour break a component for good on both nuclei, so what was tried without success is not tried again before a
connection worked in between, and the third end of an hour never happens. The record is a file in the component's work
directory, since it has to outlive the process.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.clock import Clock

log = logging.getLogger(__name__)

MOST = 2
WITHIN_S = 3600.0


class Restarts:
    """The record of one component.

    Args:
        file: where it is kept.
        end: ends the process with a non-zero code; the default does so at once, which loses nothing that is durable.
    """

    def __init__(
        self, file: Path, *, end: Callable[[str], None] | None = None, clock: Clock | None = None
    ) -> None:
        self._file = file
        self._end = end or _exit
        self._clock = clock or SystemClock()

    def ask(self, cause: str, why: str) -> bool:
        """End the process for this cause, if that may help; False when it goes on."""
        record = self._read()
        now = self._clock.now()
        recent = [at for at in record["ends"] if abs(now - at) < WITHIN_S]
        if cause in record["causes"] or len(recent) >= MOST:
            return False
        if not self._write({"ends": [*recent, now], "causes": [*record["causes"], cause]}):
            return False  # without a record there is no limit
        log.error("ending for a fresh start under the nucleus: %s", why)
        self._end(why)
        return True

    def healed(self) -> None:
        """It works: every cause may end the process again, within the limit of the hour."""
        record = self._read()
        if record["causes"]:
            self._write(record | {"causes": []})

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {
                "ends": [float(at) for at in found["ends"]],
                "causes": [str(cause) for cause in found["causes"]],
            }
        except (OSError, ValueError, TypeError, KeyError):
            return {"ends": [], "causes": []}

    def _write(self, record: dict[str, Any]) -> bool:
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
        except OSError as error:
            log.warning("restarts: %s cannot be written: %s", self._file, error)
            return False
        return True


class Never(Restarts):
    """For a short-lived child, which is nothing that a nucleus would start anew; keeps no record."""

    def __init__(self) -> None:
        super().__init__(Path())

    def ask(self, cause: str, why: str) -> bool:  # noqa: ARG002 as Restarts has it
        return False

    def healed(self) -> None:
        """Nothing to forget."""


def _exit(why: str) -> None:  # noqa: ARG001 it is logged
    logging.shutdown()
    os._exit(1)
